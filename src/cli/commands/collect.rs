//! `vmsnap repository collect`, and the collection after `vmsnap prune`.

use super::{CommandResult, Refusal, open_to_read};
use crate::cli::args::CollectArgs;
use crate::cli::exit_code::ExitCode;
use crate::cli::log::{self, Entry, Level};
use crate::cli::report::collect as shown;
use crate::cli::report::document::Document;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops::collect::{CollectReport, Collection, collect};
use crate::ops::{Repository, Result};

/// Deletes data that no restore point needs.
pub fn run(args: &CollectArgs, stop: &Stop) -> CommandResult {
    let how = Collection {
        grace: args.grace,
        dry_run: args.dry_run,
    };
    let repo = open_to_read(Some(&args.location), &args.secret, stop)?;
    let report = collect(repo.as_ref(), &how, stop)?.ok_or_else(|| {
        let what = format!(
            "{} is not a pack repository, so there is nothing to collect: removing a restore point frees its space at once",
            repo.location()
        );
        Refusal::new(ExitCode::Usage, what)
    })?;
    let location = repo.location();
    answer(&match args.output_args.json {
        true => Document::Collect(shown::document(&location, &report, args.dry_run)).json(),
        false => shown::lines(&location, &report, args.dry_run),
    });
    Ok(ExitCode::Ok)
}

/// Collects after restore points were removed, and prints a report unless the output is a document.
/// `None` if this kind of repository needs no collection.
pub(super) fn after_prune(
    repo: &dyn Repository,
    is_document: bool,
    stop: &Stop,
) -> Result<Option<CollectReport>> {
    let how = Collection {
        grace: Collection::GRACE,
        dry_run: false,
    };
    let collected = collect(repo, &how, stop);
    match &collected {
        Ok(Some(report)) if !is_document => answer(&shown::lines(&repo.location(), report, false)),
        Ok(_) => {}
        Err(error) => {
            let what = crate::model::text::with_sources(error);
            let hint = error.hint();
            log::tell(&Entry {
                hint: hint.as_deref(),
                ..Entry::new(Level::Error, &format!("collecting unused data failed: {what}"))
            });
        }
    }
    collected
}
