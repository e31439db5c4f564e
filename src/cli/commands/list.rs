//! `vmsnap list`.

use super::{CommandResult, Tally, repository_to_read};
use crate::cli::args::ListArgs;
use crate::cli::exit_code::ExitCode;
use crate::cli::report::document::Document;
use crate::cli::report::list::{self as shown, Columns};
use crate::cli::select::select;
use crate::cli::stdout::answer;
use crate::ops;

/// Lists the restore points of the domains meant: all that are in the repository when none is named. One that cannot be read stops no other.
pub fn run(args: &ListArgs) -> CommandResult {
    let repo = ops::open_repository(repository_to_read(args.repository.dir.as_ref())?)?;
    let names = repo.domain_names().map_err(|error| ops::Error::of("", error))?;
    let mut typed = args.domains.all();
    if typed.is_empty() && !names.is_empty() {
        typed.push("*".to_owned());
    }
    let selection = select(&typed, &names);
    let mut tally = Tally::default();
    let mut domains = Vec::new();
    for domain in &selection.domains {
        match ops::list::list(&repo, std::slice::from_ref(domain)) {
            Ok(listed) => domains.extend(listed),
            Err(error) => tally.failed(&error, ExitCode::of_error(&error)),
        }
    }
    let text = if args.json {
        Document::List(shown::document(&domains)).json()
    } else {
        let columns = if args.wide { Columns::Wide } else { Columns::Narrow };
        shown::text(&domains, repo.root(), columns)
    };
    // Where no domain could be listed, the errors say all there is to say.
    if args.json || !domains.is_empty() || names.is_empty() {
        answer(&text);
    }
    tally.unmatched(&selection.unmatched);
    Ok(tally.end(&[]))
}
