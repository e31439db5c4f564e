//! One file per command: it reads the arguments, calls the verb and prints the outcome.

mod backup;
mod boot;
mod collect;
mod completions;
mod copy;
#[cfg(feature = "libvirt")]
mod demo;
mod files;
mod in_place;
mod init;
mod integrity;
mod kept;
mod key;
mod list;
mod man;
mod mount;
mod pin;
mod prune;
mod restore;
mod scrub;
mod serve;
mod status;
mod verify;

use std::path::{Path, PathBuf};

#[cfg(feature = "libvirt")]
pub(super) use demo::folder as demo_folder;

use super::args::{Cli, Command, ConnectArgs, SecretArgs};
use super::exclude;
use super::exit_code::ExitCode;
use super::log::{self, Entry, Level};
use super::report::lines::failure;
use super::secrets;
use super::select::Selection;
use crate::model::left_out::Exclusions;
use crate::model::period::GroupBy;
use crate::model::stop::Stop;
use crate::model::text::{shown, with_sources};
use crate::ops::each::{Judged, Round, Turn};
use crate::ops::{self, Access, Class, Error, Host, Repository};

/// An early end of a command, with a message for the user.
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

/// Runs the command and returns the exit code of the program.
pub fn run(cli: &Cli, stop: &Stop) -> ExitCode {
    let result = match &cli.command {
        Command::Backup(args) => backup::run(args, stop),
        Command::Restore(args) => restore::run(args, stop),
        Command::Boot(args) => boot::run(args, stop),
        Command::Serve(args) => serve::run(args, stop),
        Command::Mount(args) => mount::run(args, stop),
        Command::Files(args) => files::run(args, stop),
        Command::List(args) => list::run(args, stop),
        Command::Verify(args) => verify::run(args, stop),
        Command::Prune(args) => prune::run(args, stop),
        Command::Copy(args) => copy::run(args, stop),
        Command::Pin(args) => pin::pin(args, stop),
        Command::Unpin(args) => pin::unpin(args, stop),
        Command::Status(args) => status::run(args, stop),
        Command::Scrub(args) => scrub::run(args, stop),
        Command::Init(args) => init::run(args, stop),
        Command::Key(args) => key::run(args, stop),
        Command::Repository(args) => init::repository(args, stop),
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

/// Calls `open` with what opens a pack repository: the secret that the arguments or the environment
/// name, or that the user types.
fn with_access<T>(
    args: &SecretArgs,
    stop: &Stop,
    open: impl FnOnce(&Access<'_>) -> ops::Result<T>,
) -> ops::Result<T> {
    let opener = || secrets::opener(args, None, stop);
    open(&Access {
        opener: &opener,
        folders: secrets::host_folders(),
        stop,
    })
}

/// Opens the repository that a command reads, of which `path` is the location.
fn open_to_read(
    path: Option<&PathBuf>,
    args: &SecretArgs,
    stop: &Stop,
) -> Result<Box<dyn Repository>, Refusal> {
    let location = repository_to_read(path)?;
    Ok(with_access(args, stop, |access| {
        ops::open_repository(location, access)
    })?)
}

/// The given path of a repository.
fn repository_path(path: Option<&PathBuf>) -> Result<&Path, Refusal> {
    path.map(PathBuf::as_path)
        .filter(|path| !path.as_os_str().is_empty())
        .ok_or_else(|| Refusal::new(ExitCode::NoRepository, "No output directory specified"))
}

/// The given path of a repository, for a command that the Node.js VMSnap does not have. The message
/// names the switch.
fn repository_to_read(path: Option<&PathBuf>) -> Result<&Path, Refusal> {
    repository_path(path).map_err(|refusal| Refusal {
        message: "No repository specified: use --repository DIR".to_owned(),
        ..refusal
    })
}

fn group_by(word: &str) -> Result<GroupBy, Refusal> {
    GroupBy::from_word(word).ok_or_else(|| {
        let words = GroupBy::ALL.map(GroupBy::word).join(", ");
        let message = format!("invalid --group-by '{}': use one of {words}", shown(word));
        Refusal::new(ExitCode::GroupBy, message)
    })
}

/// The exclusions of `--exclude-disk` for the selected domains.
fn exclusions(
    typed: &[String],
    selection: &Selection,
    names: &[String],
    host: &dyn Host,
) -> Result<Exclusions, Refusal> {
    let excluded = exclude::excluded(typed, selection, names, host);
    let excluded = excluded.map_err(|message| Refusal::new(ExitCode::Usage, message))?;
    for item in &excluded.unused {
        let what =
            format!("--exclude-disk {item} matches no domain of this hypervisor, so it excludes nothing");
        log::tell(&Entry::new(Level::Warning, &what));
    }
    Ok(excluded.of)
}

/// Prints which patterns match no domain; the hint follows the last one.
fn tell_unmatched(patterns: &[String], hint: Option<&str>) {
    for (place, pattern) in patterns.iter().enumerate() {
        log::tell(&Entry {
            hint: hint.filter(|_| place + 1 == patterns.len()),
            ..Entry::new(Level::Error, &unmatched_text(pattern))
        });
    }
}

/// The connection that libvirt chooses for users other than root.
const SESSION: &str = "qemu:///session";

/// A hint for a user whose connection `uri` is by default that of a session, which has no domains
/// of the system. `None` if the user chose the connection, or uses the classic syntax.
fn session_hint(args: &ConnectArgs, uri: &str) -> Option<String> {
    let is_session = uri.split('?').next() == Some(SESSION);
    (is_session && args.connect.is_none() && !args.is_classic).then(|| {
        format!(
            "vmsnap is connected to {SESSION}, which has only this user's own domains; \
             for those of the system, add --connect qemu:///system"
        )
    })
}

/// Prints the error of a domain, if it has one. A missing program is printed once, at the end.
fn tell_error<T: Judged>(turn: &Turn<T>) {
    let Some(error) = turn.error() else { return };
    let message = with_sources(&error.cause);
    let hint = error.hint();
    log::tell(&Entry {
        disk: error.disk.as_deref(),
        hint: hint.as_deref().filter(|_| error.class() != Class::Missing),
        ..Entry::of(Level::Error, &error.domain, &message)
    });
}

/// Prints that a domain was skipped, and why.
fn tell_skipped<T>(turn: &Turn<T>) {
    if let Err(error) = &turn.result {
        log::tell(&Entry::of(Level::Notice, &turn.domain, &error.cause.to_string()));
    }
}

/// Prints which programs are missing, if a domain failed for that reason. `programs` are those that
/// the verb may need: all that are missing are named.
fn tell_missing<T: Judged>(round: &Round<T>, programs: &[&'static str]) {
    let errors = round.turns.iter().filter_map(Turn::error);
    let missed: Vec<&Error> = errors.filter(|error| error.class() == Class::Missing).collect();
    let Some(last) = missed.last() else { return };
    let mut missing: Vec<String> = missed.iter().map(|error| missing_of(error)).collect();
    missing.extend(ops::missing_programs(programs).into_iter().map(str::to_owned));
    missing.sort();
    missing.dedup();
    log::tell(&Entry {
        hint: last.hint().as_deref(),
        ..Entry::new(Level::Error, &missing_text(&missing))
    });
}

/// Prints with `--verbose` how many domains were selected, and the versions of the hypervisor.
fn tell_versions(host: &dyn Host, meant: usize, all: usize) {
    if log::tells(Level::Debug)
        && let Ok(capabilities) = host.capabilities()
    {
        let versions = format!("{meant} of {all} domains selected, {}", capabilities.versions);
        log::tell(&Entry::new(Level::Debug, &versions));
    }
}

/// If there are several domains, repeats all failures at the end. `failures` name the domains
/// that failed, each with the disk and the reason; `domains` is the number of domains that match. A
/// pattern that matches no domain counts as one domain.
fn tell_summary(unmatched: &[String], failures: impl IntoIterator<Item = String>, domains: usize) {
    let asked = domains + unmatched.len();
    let unmatched = unmatched.iter().map(|pattern| unmatched_text(pattern));
    let failures: Vec<String> = unmatched.chain(failures).collect();
    if asked > 1 && !failures.is_empty() {
        log::tell(&Entry {
            lines: &failures,
            ..Entry::new(
                Level::Notice,
                &format!("{} of {asked} domains failed:", failures.len()),
            )
        });
    }
}

/// The failures of domains, each with its domain, disk and reason.
fn failures<T: Judged>(round: &Round<T>) -> impl Iterator<Item = String> {
    round.turns.iter().filter_map(Turn::error).map(failure)
}

fn unmatched_text(pattern: &str) -> String {
    format!("No matching domains found for: {}", shown(pattern))
}

fn missing_text(names: &[String]) -> String {
    format!("Missing dependencies ({})", names.join(", "))
}

/// The program or library that is missing.
fn missing_of(error: &Error) -> String {
    error.missing().unwrap_or("libvirt").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_chosen_by_default_is_explained() {
        let args = |connect: Option<&str>, is_classic| ConnectArgs {
            connect: connect.map(str::to_owned),
            is_classic,
        };
        let hint = session_hint(&args(None, false), SESSION).expect("a hint");
        assert!(hint.contains("connected to qemu:///session"), "{hint}");
        assert!(hint.contains("--connect qemu:///system"), "{hint}");
        assert!(session_hint(&args(Some(SESSION), false), SESSION).is_none());
        assert!(session_hint(&args(None, true), SESSION).is_none());
        assert!(session_hint(&args(None, false), "qemu:///system").is_none());
    }
}
