//! `vmsnap prune`.

use super::{
    CommandResult, Refusal, failures, open_to_read, select_kept, tell_error, tell_skipped, tell_summary,
    tell_unmatched, was_never_saved,
};
use crate::cli::args::PruneArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::{ExitCode, Verb};
use crate::cli::progress::Progress;
use crate::cli::report::document::Document;
use crate::cli::report::prune as shown;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops;
use crate::ops::each::{Each, Turn};
use crate::ops::monitor::Ending;
use crate::ops::retention::{EMPTY_POLICY, Means, Options, Outcome, Policy, preview, prune};

/// Removes the restore points that the policy does not keep, of the given domains or of all domains
/// in the repository. A failure of one domain does not stop the others.
pub fn run(args: &PruneArgs, stop: &Stop) -> CommandResult {
    let policy = args.keep.policy().unwrap_or_default();
    let options = Options {
        policy: not_empty(policy)?,
        wait: args.wait.time(),
    };
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let (selection, named) = select_kept(repo.as_ref(), args.domains.all(), "prune")?;
    tell_unmatched(&selection.unmatched, None);
    let progress = Progress::new();
    let each = Each {
        domains: &selection.domains,
        monitor: &progress,
        stop,
    };
    let verb = |domain: &str| {
        let means = Means {
            repo: repo.as_ref(),
            now: now(),
            monitor: &progress,
            stop,
        };
        match args.dry_run {
            true => preview(domain, &means, &options),
            false => prune(domain, &means, &options),
        }
    };
    let may_skip = |domain: &str, error: &ops::Error| {
        !named.iter().any(|name| name == domain) && was_never_saved(repo.as_ref(), domain, error)
    };
    let ended = |turn: &Turn<Outcome>| match turn.ending {
        Ending::Skipped => tell_skipped(turn),
        _ => {
            if !args.output_args.json {
                answer(&shown::lines(turn));
            }
            tell_error(turn);
        }
    };
    let round = each.run(verb, may_skip, ended);
    tell_summary(&selection.unmatched, failures(&round), round.turns.len());
    let code = ExitCode::of_faults(&round.faults(&selection.unmatched), Verb::Other);
    if args.output_args.json {
        let document = shown::document(&round.turns, &selection.unmatched, code, args.dry_run);
        answer(&Document::Prune(document).json());
    }
    Ok(code)
}

/// Refuses a policy that keeps nothing.
pub(super) fn not_empty(policy: Policy) -> Result<Policy, Refusal> {
    match policy.is_empty() {
        true => Err(Refusal::new(ExitCode::Usage, EMPTY_POLICY)),
        false => Ok(policy),
    }
}
