//! One file per verb: from what was typed to what is meant, the call, and what is shown of its outcome.

mod backup;
#[cfg(feature = "libvirt")]
mod demo;
mod list;
mod restore;
mod scrub;
mod status;

use std::path::{Path, PathBuf};

use super::args::{Cli, Command};
use super::exit_code::ExitCode;
use super::{report, tell};
use crate::model::period::GroupBy;
use crate::model::stop::Stop;
use crate::model::text::shown;
use crate::ops::Error;

/// How a command ends early: with words for the user.
pub(super) struct Refusal {
    code: ExitCode,
    message: String,
}

impl Refusal {
    fn new(code: ExitCode, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::new(ExitCode::of_error(&error), report::error_text(&error))
    }
}

type CommandResult = Result<ExitCode, Refusal>;

/// Runs the command and returns how the program ends.
pub fn run(cli: &Cli, stop: &Stop) -> ExitCode {
    let result = match &cli.command {
        Command::Backup(args) => backup::run(args, stop),
        Command::Restore(args) => restore::run(args, stop),
        Command::List(args) => list::run(args),
        Command::Status(args) => status::run(args),
        Command::Scrub(args) => scrub::run(args, stop),
        #[cfg(feature = "libvirt")]
        Command::Demo(args) => demo::run(args, stop),
        #[cfg(not(feature = "libvirt"))]
        Command::Demo(_) => crate::ops::connect(None)
            .map(|_| ExitCode::Ok)
            .map_err(Refusal::from),
    };
    match result {
        Ok(code) => code,
        Err(refusal) => {
            tell(&format!("vmsnap: {}", refusal.message));
            refusal.code
        }
    }
}

/// The moment a verb begins: the only place where the clock is read.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
fn now() -> jiff::Zoned {
    jiff::Zoned::now()
}

fn repository_path(path: Option<&PathBuf>) -> Result<&Path, Refusal> {
    path.map(PathBuf::as_path)
        .filter(|path| !path.as_os_str().is_empty())
        .ok_or_else(|| Refusal::new(ExitCode::NoRepository, "No output directory specified"))
}

fn group_by(word: &str) -> Result<GroupBy, Refusal> {
    GroupBy::from_word(word).ok_or_else(|| {
        let words = GroupBy::ALL.map(GroupBy::word).join(", ");
        let message = format!("Invalid groupBy: {}. It is one of {words}", shown(word));
        Refusal::new(ExitCode::GroupBy, message)
    })
}

/// Tells which patterns matched nothing, and the code for it.
fn tell_unmatched(unmatched: &[String]) -> Option<ExitCode> {
    for pattern in unmatched {
        tell(&format!(
            "vmsnap: No matching domains found for: {}",
            shown(pattern)
        ));
    }
    (!unmatched.is_empty()).then_some(ExitCode::NoDomains)
}
