//! `vmsnap copy`.

use std::path::Path;

use super::{
    CommandResult, Refusal, failures, select_kept, tell_error, tell_skipped, tell_summary, tell_unmatched,
    was_never_saved, with_access,
};
use crate::cli::args::CopyArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::{ExitCode, Verb};
use crate::cli::progress::Progress;
use crate::cli::report::copy as shown;
use crate::cli::report::document::Document;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops;
use crate::ops::each::{Each, Turn};
use crate::ops::monitor::Ending;
use crate::ops::transfer::{Means, Options, Outcome, Wanted, preview, transfer};

/// Copies restore points of the given domains, or of all in the source. A failure does not stop the
/// others.
pub fn run(args: &CopyArgs, stop: &Stop) -> CommandResult {
    let options = Options {
        wanted: wanted(args),
        policy: args.keep.policy().unwrap_or_default(),
        compression: args.compress,
        wait: args.wait.time(),
    };
    let [from, to] = [(&args.from, "--from"), (&args.to, "--to")].map(|(path, switch)| given(path, switch));
    let (from, to) = (from?, to?);
    let source = with_access(&args.source_secret(), stop, |access| {
        ops::open_repository(from, access)
    })?;
    let (selection, named) = select_kept(source.as_ref(), args.domains.all(), "copy")?;
    let target = with_access(&args.secret, stop, |access| match args.dry_run {
        true => ops::open_as_if_created_repository(to, access),
        false => ops::open_or_create_repository(to, access),
    })?;
    tell_unmatched(&selection.unmatched, None);
    let progress = Progress::new();
    let each = Each {
        domains: &selection.domains,
        monitor: &progress,
        stop,
    };
    let verb = |domain: &str| {
        let means = Means {
            from: source.as_ref(),
            to: target.as_ref(),
            now: now(),
            monitor: &progress,
            stop,
        };
        match args.dry_run {
            true => preview(domain, &means, &options),
            false => transfer(domain, &means, &options),
        }
    };
    let may_skip = |domain: &str, error: &ops::Error| {
        !named.iter().any(|name| name == domain) && was_never_saved(source.as_ref(), domain, error)
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
        answer(&Document::Copy(document).json());
    }
    Ok(code)
}

/// Which restore points the arguments name.
fn wanted(args: &CopyArgs) -> Wanted {
    match (&args.at, args.newest) {
        (Some(at), _) => Wanted::At(at.clone()),
        (None, true) => Wanted::Newest,
        (None, false) => Wanted::All,
    }
}

/// Refuses an empty location, as an unset variable leaves it.
fn given<'a>(path: &'a Path, switch: &str) -> Result<&'a Path, Refusal> {
    match path.as_os_str().is_empty() {
        true => Err(Refusal::new(
            ExitCode::NoRepository,
            format!("the location of {switch} is empty"),
        )),
        false => Ok(path),
    }
}
