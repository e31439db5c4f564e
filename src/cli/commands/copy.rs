//! `vmsnap copy`.

use std::path::Path;

use super::kept::KeptDomains;
use super::prune::not_empty;
use super::{CommandResult, Refusal, failures, tell_summary, with_access};
use crate::cli::args::CopyArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::{ExitCode, Verb};
use crate::cli::progress::Progress;
use crate::cli::report::copy as shown;
use crate::cli::report::document::Document;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops;
use crate::ops::each::Turn;
use crate::ops::transfer::{Means, Options, Outcome, Wanted, preview, transfer};

/// Copies restore points of the given domains, or of all in the source. A failure does not stop the
/// others.
pub fn run(args: &CopyArgs, stop: &Stop) -> CommandResult {
    let options = Options {
        wanted: wanted(args),
        policy: args.keep.policy().map(not_empty).transpose()?.unwrap_or_default(),
        compression: args.compress,
        wait: args.wait.time(),
    };
    let [from, to] = [(&args.from, "--from"), (&args.to, "--to")].map(|(path, switch)| given(path, switch));
    let (from, to) = (from?, to?);
    let source = with_access(&args.source_secret(), stop, |access| {
        ops::open_repository(from, access)
    })?;
    let domains = KeptDomains::select(source.as_ref(), args.domains.all(), "copy", "--from")?;
    let target = with_access(&args.secret, stop, |access| match args.dry_run {
        true => ops::open_as_if_created_repository(to, access),
        false => ops::open_or_create_repository(to, access),
    })?;
    let progress = Progress::new();
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
    let show = |turn: &Turn<Outcome>| {
        if !args.output_args.json {
            answer(&shown::lines(turn));
        }
    };
    let round = domains.run(&progress, stop, verb, show);
    let unmatched = &domains.selection.unmatched;
    tell_summary(unmatched, failures(&round), round.turns.len());
    let code = ExitCode::of_faults(&round.faults(unmatched), Verb::Other);
    if args.output_args.json {
        let document = shown::document(&round.turns, unmatched, code, args.dry_run);
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
