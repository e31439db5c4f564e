//! A process that goes on in the background once its start has been reported.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use rustix::process::setsid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// The last byte that a process prints before it goes into the background. Text never has it.
const GOES_ON: u8 = 0;

/// The most output that is passed on, in bytes.
const LONGEST: u64 = 16 << 20;

/// Starts this program again with these arguments, and waits until the new process has called
/// [`detach`] or ended. Returns the process's output, and its exit code if it has ended.
///
/// # Errors
/// The program cannot be started, or its output cannot be read.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place where vmsnap starts itself"
)]
pub fn begin(words: impl IntoIterator<Item = OsString>) -> io::Result<(String, Option<i32>)> {
    let program = std::env::current_exe()?;
    let mut child = Command::new(program).args(words).stdout(Stdio::piped()).spawn()?;
    let mut text = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(LONGEST).read_to_end(&mut text)?;
    }
    if text.last() == Some(&GOES_ON) {
        text.pop();
        return Ok((String::from_utf8_lossy(&text).into_owned(), None));
    }
    let code = child.wait()?.code().unwrap_or(1);
    Ok((String::from_utf8_lossy(&text).into_owned(), Some(code)))
}

/// Detaches this process from the terminal and from the caller of [`begin`]. From here on, its
/// output goes to the file `log`, which is emptied first.
///
/// # Errors
/// The file cannot be used, or a call failed. The process then remains attached.
pub fn detach(log: &Path) -> io::Result<()> {
    let nothing = File::open("/dev/null")?;
    let log = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(log)?;
    setsid()?;
    let mut out = io::stdout().lock();
    out.write_all(&[GOES_ON])?;
    out.flush()?;
    dup2_stdin(&nothing)?;
    dup2_stderr(&log)?;
    dup2_stdout(&log)?;
    Ok(())
}
