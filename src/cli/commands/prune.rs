//! `vmsnap prune`.

use super::kept::KeptDomains;
use super::{CommandResult, Refusal, collect, failures, open_to_read, tell_summary};
use crate::cli::args::PruneArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::{ExitCode, Verb};
use crate::cli::progress::Progress;
use crate::cli::report::collect::PruneDocument;
use crate::cli::report::document::Document;
use crate::cli::report::prune as shown;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops::each::Turn;
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
    let domains = KeptDomains::select(repo.as_ref(), args.domains.all(), "prune", "--repository")?;
    let progress = Progress::new();
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
    let show = |turn: &Turn<Outcome>| {
        if !args.output_args.json {
            answer(&shown::lines(turn));
        }
    };
    let round = domains.run(&progress, stop, verb, show);
    let unmatched = &domains.selection.unmatched;
    tell_summary(unmatched, failures(&round), round.turns.len());
    let code = ExitCode::of_faults(&round.faults(unmatched), Verb::Other);
    let collects = !args.dry_run && !args.no_collect && !stop.requested();
    let collected = match collects {
        true => collect::after_prune(repo.as_ref(), args.output_args.json, stop),
        false => Ok(None),
    };
    let of_collection = collected.as_ref().err().map(ExitCode::of_error);
    let code = ExitCode::worst([code].into_iter().chain(of_collection));
    if args.output_args.json {
        let domains = shown::document(&round.turns, unmatched, code, args.dry_run);
        let document = PruneDocument::new(domains, &collected);
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
