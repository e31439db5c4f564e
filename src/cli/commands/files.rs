//! `vmsnap files`.

use std::ffi::OsString;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;

use super::{CommandResult, Refusal, open_to_read};
use crate::cli::args::{FilesArgs, FilesVerb};
use crate::cli::exit_code::ExitCode;
use crate::cli::progress::Progress;
use crate::cli::report::document::Document;
use crate::cli::report::files as shown;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops::files::{Done, FilesAction, Means, Options, Outcome, files};

/// Lists or copies files of a restore point.
pub fn run(args: &FilesArgs, stop: &Stop) -> CommandResult {
    let action = action(args)?;
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let options = Options {
        at: args.at.clone(),
        disks: args.disks.clone(),
        device: args.device.clone(),
        action,
    };
    let progress = Progress::new();
    let means = Means {
        repo: repo.as_ref(),
        monitor: &progress,
        stop,
        random: super::random(),
    };
    let mut out = Output {
        inner: io::stdout().lock(),
        is_closed: false,
    };
    let outcome = match files(&args.domain, &means, &options, &mut out) {
        Ok(outcome) => outcome,
        // As for all output: a reader that has closed the pipe has what it wants.
        Err(_) if out.is_closed => return Ok(ExitCode::Ok),
        Err(error) => return Err(Refusal::from(error)),
    };
    drop(out);
    answer(&match args.output_args.json {
        true => document(&args.domain, &options.action, &outcome),
        false => shown::text(&args.domain, &outcome),
    });
    Ok(match (outcome.has_damage, outcome.has_failures) {
        (true, _) => ExitCode::Damaged,
        (false, true) => ExitCode::Failed,
        (false, false) => ExitCode::Ok,
    })
}

/// The document of what was done. Content that was written to the output has none.
fn document(domain: &str, action: &FilesAction, outcome: &Outcome) -> String {
    let document = match (&outcome.done, action) {
        (Done::Devices(systems), _) => Document::FileSystems(shown::file_systems(domain, outcome, systems)),
        (Done::Listed(entries), FilesAction::List(path)) => {
            Document::Files(shown::files(domain, path, outcome, entries))
        }
        (Done::Copied(copies), _) => Document::Copies(shown::copies(domain, outcome, copies)),
        (Done::Listed(_) | Done::Written, _) => return String::new(),
    };
    document.json()
}

/// What the arguments ask for.
fn action(args: &FilesArgs) -> Result<FilesAction, Refusal> {
    let misuse = |what: &str| Err(Refusal::new(ExitCode::Usage, what));
    let paths = &args.paths;
    let Some(verb) = args.action else {
        return Ok(FilesAction::Devices);
    };
    let is_json = args.output_args.json;
    match verb {
        FilesVerb::Ls => match &paths[..] {
            [] => Ok(FilesAction::List(OsString::from("/"))),
            [path] => Ok(FilesAction::List(path.clone())),
            _ => misuse("ls takes one path"),
        },
        FilesVerb::Cat | FilesVerb::Tar if is_json => {
            misuse("cat and tar write files to stdout, so --json is not possible")
        }
        FilesVerb::Cat if paths.is_empty() => misuse("cat needs a path in the guest"),
        FilesVerb::Cat => Ok(FilesAction::Print(paths.clone())),
        FilesVerb::Get => match paths.split_last() {
            Some((dir, paths)) if !paths.is_empty() => Ok(FilesAction::Copy {
                paths: paths.to_vec(),
                dir: PathBuf::from(dir),
            }),
            _ => misuse("get needs a path in the guest, and then a folder of this host"),
        },
        FilesVerb::Tar => match &paths[..] {
            [_] if io::stdout().is_terminal() => {
                misuse("tar does not write to a terminal: redirect stdout to a file or program")
            }
            [path] => Ok(FilesAction::Archive(path.clone())),
            _ => misuse("tar needs one path in the guest"),
        },
    }
}

/// Standard output, which remembers whether its reader has closed it.
struct Output {
    inner: io::StdoutLock<'static>,
    is_closed: bool,
}

impl Output {
    fn noted<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        let closed = result
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
        self.is_closed |= closed;
        result
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(bytes);
        self.noted(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.inner.flush();
        self.noted(result)
    }
}
