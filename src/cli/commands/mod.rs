//! One file per verb: from what was typed to what is meant, the call, and what is shown of its outcome.

mod backup;
mod completions;
#[cfg(feature = "libvirt")]
mod demo;
mod list;
mod man;
mod restore;
mod scrub;
mod status;
mod verify;

use std::path::{Path, PathBuf};

#[cfg(feature = "libvirt")]
pub(super) use demo::folder as demo_folder;

use super::args::{Cli, Command};
use super::exclude;
use super::exit_code::ExitCode;
use super::log::{self, Entry, Level};
use super::select::Selection;
use crate::model::left_out::Exclusions;
use crate::model::period::GroupBy;
use crate::model::stop::Stop;
use crate::model::text::{shown, with_sources};
use crate::ops::{self, Class, Error, Host};

/// How a command ends early: with words for the user.
pub(super) struct Refusal {
    code: ExitCode,
    message: String,
    hint: Option<String>,
}

impl Refusal {
    fn new(code: ExitCode, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
            hint: None,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal {
            code: ExitCode::of_error(&error),
            message: match error.class() {
                Class::Missing => missing_text(&[missing_of(&error)]),
                _ => with_sources(&error),
            },
            hint: error.hint(),
        }
    }
}

type CommandResult = Result<ExitCode, Refusal>;

/// Runs the command and returns how the program ends.
pub fn run(cli: &Cli, stop: &Stop) -> ExitCode {
    let result = match &cli.command {
        Command::Backup(args) => backup::run(args, stop),
        Command::Restore(args) => restore::run(args, stop),
        Command::List(args) => list::run(args),
        Command::Verify(args) => verify::run(args, stop),
        Command::Status(args) => status::run(args, stop),
        Command::Scrub(args) => scrub::run(args, stop),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
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
            log::tell(&Entry {
                hint: refusal.hint.as_deref(),
                ..Entry::new(Level::Error, &refusal.message)
            });
            refusal.code
        }
    }
}

/// A random number.
pub(super) fn random() -> u64 {
    // Each half of a UUID has a few fixed bits, at different places in the two halves.
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}

fn repository_path(path: Option<&PathBuf>) -> Result<&Path, Refusal> {
    path.map(PathBuf::as_path)
        .filter(|path| !path.as_os_str().is_empty())
        .ok_or_else(|| Refusal::new(ExitCode::NoRepository, "No output directory specified"))
}

/// The repository of a command that the Node program did not have.
fn repository_to_read(path: Option<&PathBuf>) -> Result<&Path, Refusal> {
    repository_path(path).map_err(|refusal| Refusal {
        message: "No repository specified: --repository DIR names it".to_owned(),
        ..refusal
    })
}

fn group_by(word: &str) -> Result<GroupBy, Refusal> {
    GroupBy::from_word(word).ok_or_else(|| {
        let words = GroupBy::ALL.map(GroupBy::word).join(", ");
        let message = format!("Invalid groupBy: {}. It is one of {words}", shown(word));
        Refusal::new(ExitCode::GroupBy, message)
    })
}

/// What `--exclude-disk` means for these domains.
fn exclusions(
    typed: &[String],
    selection: &Selection,
    names: &[String],
    host: &dyn Host,
) -> Result<Exclusions, Refusal> {
    let excluded = exclude::excluded(typed, selection, names, host);
    let excluded = excluded.map_err(|message| Refusal::new(ExitCode::Usage, message))?;
    for item in &excluded.unused {
        let what = format!("--exclude-disk {item} is for no domain of this host");
        log::tell(&Entry::new(Level::Warning, &what));
    }
    Ok(excluded.of)
}

/// What a command over several domains has met with so far.
#[derive(Default)]
struct Tally {
    codes: Vec<ExitCode>,
    missing: Vec<String>,
    hint: Option<String>,
}

impl Tally {
    /// Tells which patterns matched nothing.
    fn unmatched(&mut self, patterns: &[String]) {
        for pattern in patterns {
            log::error(&unmatched_text(pattern));
            self.codes.push(ExitCode::NoDomains);
        }
    }

    /// Tells of a domain's failure.
    fn failed(&mut self, error: &Error, code: ExitCode) {
        let message = with_sources(&error.cause);
        let hint = error.hint();
        // What is missing is said once, at the end.
        let said_here = hint.as_deref().filter(|_| error.class() != Class::Missing);
        log::tell(&Entry {
            disk: error.disk.as_deref(),
            hint: said_here,
            ..Entry::of(Level::Error, &error.domain, &message)
        });
        if error.class() == Class::Missing {
            self.missing.push(missing_of(error));
            self.hint = hint;
        }
        self.codes.push(code);
    }

    /// Whether nothing has failed so far.
    fn is_clean(&self) -> bool {
        self.codes.iter().all(|code| *code == ExitCode::Ok)
    }

    /// Counts an end that has been told of already.
    fn count(&mut self, code: ExitCode) {
        self.codes.push(code);
    }

    /// How the program ends. `programs` are those that the command may need: when one was missed, all that are missing are named.
    fn end(mut self, programs: &[&'static str]) -> ExitCode {
        if !self.missing.is_empty() {
            self.missing
                .extend(ops::missing_programs(programs).into_iter().map(str::to_owned));
            self.missing.sort();
            self.missing.dedup();
            log::tell(&Entry {
                hint: self.hint.as_deref(),
                ..Entry::new(Level::Error, &missing_text(&self.missing))
            });
        }
        ExitCode::worst(self.codes)
    }
}

/// What `--verbose` adds to every command: how many domains are meant, and what they run on.
fn tell_versions(host: &dyn Host, meant: usize, all: usize) {
    if log::tells(Level::Debug)
        && let Ok(capabilities) = host.capabilities()
    {
        let versions = format!("{meant} of {all} domains, {}", capabilities.versions);
        log::tell(&Entry::new(Level::Debug, &versions));
    }
}

/// With several domains every failure is named again at the end, where one looks. `failures` are those of domains, each with its domain,
/// its disk and its reason; `domains` is how many had their turn.
fn tell_summary(unmatched: &[String], failures: impl IntoIterator<Item = String>, domains: usize) {
    let asked = domains + unmatched.len();
    let unmatched = unmatched.iter().map(|pattern| unmatched_text(pattern));
    let failures: Vec<String> = unmatched.chain(failures).collect();
    if asked > 1 && !failures.is_empty() {
        log::tell(&Entry {
            lines: &failures,
            ..Entry::new(Level::Notice, &format!("{} of {asked} failed:", failures.len()))
        });
    }
}

fn unmatched_text(pattern: &str) -> String {
    format!("No matching domains found for: {}", shown(pattern))
}

fn missing_text(names: &[String]) -> String {
    format!("Missing dependencies ({})", names.join(", "))
}

/// The program or library that an error misses.
fn missing_of(error: &Error) -> String {
    error.missing().unwrap_or("libvirt").to_owned()
}
