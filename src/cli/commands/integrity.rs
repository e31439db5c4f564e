//! `vmsnap repository check` and `vmsnap repository rebuild-index`.

use super::{CommandResult, Refusal, open_to_read};
use crate::cli::args::{CheckArgs, RebuildArgs};
use crate::cli::exit_code::ExitCode;
use crate::cli::report::document::Document;
use crate::cli::report::integrity as shown;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops::Repository;
use crate::ops::integrity::{self, Rebuild};

/// Checks a repository as a whole.
pub fn check(args: &CheckArgs, stop: &Stop) -> CommandResult {
    let repo = open_to_read(Some(&args.location), &args.secret, stop)?;
    let check = integrity::check(repo.as_ref(), args.deep, stop)?;
    let check = check.ok_or_else(|| {
        let advice = "`vmsnap verify --all` checks its restore points, and everything else in it";
        other_kind(repo.as_ref(), advice)
    })?;
    let location = repo.location();
    answer(&match args.output_args.json {
        true => Document::Check(shown::check_document(&location, &check)).json(),
        false => shown::check_lines(&location, &check),
    });
    Ok(match check.damage.is_empty() {
        true => ExitCode::Ok,
        false => ExitCode::Damaged,
    })
}

/// Adds missing packs to the index.
pub fn rebuild_index(args: &RebuildArgs, stop: &Stop) -> CommandResult {
    let how = Rebuild {
        dry_run: args.dry_run,
        delete_damaged: args.delete_damaged,
    };
    let repo = open_to_read(Some(&args.location), &args.secret, stop)?;
    let report = integrity::rebuild_index(repo.as_ref(), &how, stop)?;
    let report = report.ok_or_else(|| other_kind(repo.as_ref(), "it has no index"))?;
    let location = repo.location();
    answer(&match args.output_args.json {
        true => Document::Rebuild(shown::rebuild_document(&location, &report, args.dry_run)).json(),
        false => shown::rebuild_lines(&location, &report, args.dry_run),
    });
    Ok(match report.damaged.iter().all(|damaged| damaged.is_deleted) {
        true => ExitCode::Ok,
        false => ExitCode::Damaged,
    })
}

/// The refusal of a repository of another kind.
fn other_kind(repo: &dyn Repository, advice: &str) -> Refusal {
    let what = format!("{} is not a pack repository: {advice}", repo.location());
    Refusal::new(ExitCode::Usage, what)
}
