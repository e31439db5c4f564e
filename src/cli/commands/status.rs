//! `vmsnap status`.

use super::{CommandResult, group_by, now, tell_unmatched};
use crate::cli::args::StatusArgs;
use crate::cli::exit_code::ExitCode;
use crate::cli::report::{self, status as shown};
use crate::cli::select::select;
use crate::cli::{answer, tell};
use crate::ops;

/// Shows how the domains meant stand: all of them when none is named.
pub fn run(args: &StatusArgs) -> CommandResult {
    let group_by = group_by(&args.group_by)?;
    let repo = args.output.as_deref().map(ops::open_repository).transpose()?;
    let host = ops::connect(args.connect.connect.as_deref())?;
    let names = host.domain_names().map_err(|error| ops::Error::of("", error))?;
    let mut typed = args.domains.all();
    if typed.is_empty() && !names.is_empty() {
        typed.push("*".to_owned());
    }
    let selection = select(&typed, &names);
    let mut codes: Vec<ExitCode> = tell_unmatched(&selection.unmatched).into_iter().collect();
    let mut statuses = Vec::new();
    for domain in &selection.domains {
        match ops::status::status(domain, host.as_ref(), repo.as_ref(), group_by, now().date()) {
            Ok(status) => statuses.push(status),
            Err(error) => {
                tell(&format!("vmsnap: {}", report::error_text(&error)));
                codes.push(ExitCode::of_error(&error));
            }
        }
    }
    let text = if args.json {
        shown::json(&statuses)
    } else {
        shown::text(&statuses)
    };
    answer(&text);
    Ok(ExitCode::worst(codes))
}
