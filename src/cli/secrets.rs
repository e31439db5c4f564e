//! Gets passphrases and keys from files, or asks for a passphrase on the terminal.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::args::SecretArgs;
use crate::model::stop::{Stop, StopReason};
use crate::ops::init::Passphrase;
use crate::ops::key::{IdentityFile, Opener, Secret, done, read_recovery_file};
use crate::ops::{Cause, Error, HostFolders, Result};

/// The variable with the path of a file with a passphrase.
const PASSPHRASE_FILE: &str = "VMSNAP_PASSPHRASE_FILE";

/// The variable with the path of an identity file.
const IDENTITY_FILE: &str = "VMSNAP_IDENTITY_FILE";

/// The longest line that is read from a terminal, in bytes.
const LONGEST: usize = 1024;

/// The secret that opens a repository. It is read from the file that a switch or the environment
/// names; without such a file, the user types a passphrase.
pub(super) fn opener(args: &SecretArgs, recovery: Option<&Path>, stop: &Stop) -> Result<Opener> {
    let recovery = recovery.map(read_recovery_file).transpose()?;
    let passphrase = |path: &Path| done(Passphrase::read(path)).map(Secret::Passphrase);
    let identities = |path: &Path| done(IdentityFile::read(path)).map(Secret::Identities);
    let secret = match (&args.passphrase_file, &args.identity_file) {
        (Some(path), _) => passphrase(path)?,
        (None, Some(path)) => identities(path)?,
        (None, None) => match (of_environment(IDENTITY_FILE), of_environment(PASSPHRASE_FILE)) {
            (Some(path), _) => identities(&path)?,
            (None, Some(path)) => passphrase(&path)?,
            (None, None) => {
                check_terminal("use --passphrase-file FILE or --identity-file FILE")?;
                let what = match recovery {
                    Some(_) => "Passphrase of the recovery file: ",
                    None => "Passphrase of the repository: ",
                };
                Secret::Passphrase(ask(what, stop)?)
            }
        },
    };
    Ok(Opener { secret, recovery })
}

/// The passphrase for a new key slot, read from a file or typed twice by the user. `otherwise` is
/// the advice in the error if there is neither a file nor a terminal.
pub(super) fn new_passphrase(path: Option<&Path>, otherwise: &str, stop: &Stop) -> Result<Passphrase> {
    let passphrase = match path {
        Some(path) => done(Passphrase::read(path))?,
        None => {
            check_terminal(otherwise)?;
            let passphrase = ask("New passphrase: ", stop)?;
            done(passphrase.check_new())?;
            if !ask("New passphrase again: ", stop)?.is_same(&passphrase) {
                return Err(Error::of(
                    "",
                    Cause::Usage("the two passphrases differ".to_owned()),
                ));
            }
            passphrase
        }
    };
    done(passphrase.check_new())?;
    Ok(passphrase)
}

/// The folders in which this host keeps its own files about pack repositories.
pub(super) fn host_folders() -> HostFolders {
    HostFolders::of_environment(rustix::process::geteuid().is_root(), |name| {
        std::env::var_os(name)
    })
}

/// The passphrase file that the environment names.
pub(super) fn passphrase_file() -> Option<PathBuf> {
    of_environment(PASSPHRASE_FILE)
}

/// An empty variable counts as unset.
fn of_environment(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

fn check_terminal(otherwise: &str) -> Result<()> {
    match io::stdin().is_terminal() {
        true => Ok(()),
        false => {
            let what =
                format!("no passphrase was given, and there is no terminal to ask for one: {otherwise}");
            Err(Error::of("", Cause::Usage(what)))
        }
    }
}

/// Asks for a passphrase on the terminal, without showing it.
fn ask(what: &str, stop: &Stop) -> Result<Passphrase> {
    let failed = |source| {
        let operation = "read a passphrase from";
        let path = "the terminal".into();
        Error::of(
            "",
            Cause::Io {
                operation,
                path,
                source,
            },
        )
    };
    // The question goes to stderr, because stdout may be a document.
    let _ = write!(io::stderr(), "{what}").and_then(|()| io::stderr().flush());
    let line = read_line(stop);
    let _ = writeln!(io::stderr());
    match line.map_err(failed)? {
        Line::Text(text) => done(Passphrase::new(&text)),
        Line::Stopped(reason) => Err(Error::of("", Cause::Stopped(reason))),
    }
}

enum Line {
    Text(Zeroizing<String>),
    Stopped(StopReason),
}

/// Reads a line from the terminal, without echo. A read ends after a tenth of a second, so that a
/// stop is noticed.
fn read_line(stop: &Stop) -> io::Result<Line> {
    let _silence = Silence::begin()?;
    let mut line = Zeroizing::new(Vec::with_capacity(LONGEST));
    loop {
        if let Some(reason) = stop.reason() {
            return Ok(Line::Stopped(reason));
        }
        let mut byte = [0];
        match rustix::io::read(io::stdin(), &mut byte) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            read => read?,
        };
        match edit(&mut line, byte[0]) {
            Edited::Continues => {}
            Edited::Done => break,
        }
    }
    let text =
        std::str::from_utf8(&line).map_err(|_| io::Error::other("the typed text is not valid UTF-8"))?;
    Ok(Line::Text(Zeroizing::new(text.to_owned())))
}

#[derive(Debug, PartialEq, Eq)]
enum Edited {
    Continues,
    Done,
}

/// Handles a typed byte as a terminal in line mode does.
fn edit(line: &mut Vec<u8>, byte: u8) -> Edited {
    const END: u8 = 4;
    const BACKSPACE: u8 = 8;
    const KILL_LINE: u8 = 21;
    const DELETE: u8 = 127;
    match byte {
        b'\n' | b'\r' | END => return Edited::Done,
        BACKSPACE | DELETE => {
            // Removes a whole UTF-8 character, up to and including its first byte.
            while line.pop().is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000) {}
        }
        KILL_LINE => line.clear(),
        // A longer line would be reallocated, which leaves a copy in freed memory.
        byte if line.len() < LONGEST => line.push(byte),
        _ => {}
    }
    Edited::Continues
}

/// Hides what is typed on the terminal, until the value is dropped.
struct Silence {
    before: Termios,
}

impl Silence {
    fn begin() -> io::Result<Silence> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes -= LocalModes::ECHO | LocalModes::ICANON;
        silent.special_codes[SpecialCodeIndex::VMIN] = 0;
        silent.special_codes[SpecialCodeIndex::VTIME] = 1;
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Silence { before })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8]) -> String {
        let mut line = Vec::new();
        for byte in bytes {
            if edit(&mut line, *byte) == Edited::Done {
                break;
            }
        }
        String::from_utf8(line).expect("UTF-8")
    }

    #[test]
    fn typed_lines_can_be_corrected() {
        assert_eq!(typed(b"abc\nx"), "abc");
        assert_eq!(typed(b"abd\x7fc\r"), "abc");
        assert_eq!(typed("a\u{e9}\u{20ac}\u{8}\u{8}b\n".as_bytes()), "ab");
        assert_eq!(typed(b"\x7f\x7fxyz\x15a\x04"), "a");
        assert_eq!(typed(&[b'x'; 2 * LONGEST]).len(), LONGEST);
    }
}
