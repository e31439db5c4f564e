//! `vmsnap list`.

use super::{CommandResult, repository_path, tell_unmatched};
use crate::cli::answer;
use crate::cli::args::ListArgs;
use crate::cli::exit_code::ExitCode;
use crate::cli::report::list as shown;
use crate::cli::select::select;
use crate::ops;

/// Lists the restore points of the domains meant: all that are in the repository when none is named.
pub fn run(args: &ListArgs) -> CommandResult {
    let repo = ops::open_repository(repository_path(args.repository.dir.as_ref())?)?;
    let names = repo.domain_names().map_err(|error| ops::Error::of("", error))?;
    let mut typed = args.domains.all();
    if typed.is_empty() && !names.is_empty() {
        typed.push("*".to_owned());
    }
    let selection = select(&typed, &names);
    let domains = ops::list::list(&repo, &selection.domains)?;
    let text = if args.json {
        shown::json(&domains)
    } else {
        shown::text(&domains, repo.root())
    };
    answer(&text);
    Ok(tell_unmatched(&selection.unmatched).unwrap_or(ExitCode::Ok))
}
