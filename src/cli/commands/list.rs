//! `vmsnap list`.

use super::kept::{NO_NAMES, sets_hint};
use super::{CommandResult, Refusal, open_to_read, tell_error, tell_unmatched};
use crate::cli::args::ListArgs;
use crate::cli::exit_code::{ExitCode, Verb};
use crate::cli::log::{self, Entry, Level};
use crate::cli::report::document::Document;
use crate::cli::report::list::{self as shown, Columns};
use crate::cli::select::{patterns, select};
use crate::cli::stdout::{self, answer};
use crate::model::stop::Stop;
use crate::ops;
use crate::ops::each::Each;
use crate::ops::monitor::Silent;

/// Lists the restore points of the given domains, or of all domains in the repository. A failure
/// of one domain does not stop the others.
pub fn run(args: &ListArgs, stop: &Stop) -> CommandResult {
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let names = repo.domains().map_err(|error| ops::Error::of("", error))?;
    let mut typed = args.domains.all();
    if typed.is_empty() && !names.is_empty() {
        typed.push("*".to_owned());
    }
    if !typed.is_empty() && patterns(&typed, &names).is_empty() {
        return Err(Refusal::new(ExitCode::NoDomains, NO_NAMES));
    }
    let selection = select(&typed, &names);
    let each = Each {
        domains: &selection.domains,
        monitor: &Silent,
        stop,
    };
    let verb = |domain: &str| ops::list::list_domain(repo.as_ref(), domain);
    let round = each.run(verb, |_, _| false, tell_error);
    let faults = round.faults(&selection.unmatched);
    let listed = round.turns.into_iter().filter_map(|turn| turn.result.ok());
    let domains: Vec<_> = listed.collect();
    let text = if args.json {
        Document::List(shown::document(&domains)).json()
    } else {
        let columns = match args.wide {
            true => Columns::Wide,
            false => Columns::Fitting(stdout::columns()),
        };
        shown::text(&domains, &repo.location(), columns)
    };
    // If no domain could be listed, the errors are enough.
    if args.json || !domains.is_empty() || names.is_empty() {
        answer(&text);
    }
    if names.is_empty()
        && let Some(hint) = sets_hint(repo.as_ref())
    {
        log::tell(&Entry::new(Level::Notice, &hint));
    }
    tell_unmatched(&selection.unmatched, None);
    Ok(ExitCode::of_faults(&faults, Verb::Other))
}
