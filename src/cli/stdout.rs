//! Writes the output of a command to stdout.
//!
//! If a write fails, the error is remembered until the end, so that the other domains are still
//! backed up. A reader that has closed the pipe (`vmsnap list | head`) is not an error.

use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

use rustix::termios::tcgetwinsize;

/// The error of the first write that failed.
static UNWRITTEN: OnceLock<io::Error> = OnceLock::new();

/// The width of the lines, in characters, if stdout is no terminal.
const COLUMNS: usize = 80;

/// The number of characters on a line: the terminal's, or 80.
pub(crate) fn columns() -> usize {
    let size = tcgetwinsize(io::stdout()).ok();
    let columns = size.map(|size| usize::from(size.ws_col));
    // Terminals that do not know their size report zero.
    columns.filter(|columns| *columns > 0).unwrap_or(COLUMNS)
}

/// Prints output.
pub fn answer(text: &str) {
    note(print(&mut io::stdout().lock(), text));
}

/// Prints output with colours, unless stdout is not a terminal. `NO_COLOR` and `CLICOLOR_FORCE`
/// override this.
pub(crate) fn answer_in_colour(text: &str) {
    note(print(&mut anstream::stdout().lock(), text));
}

/// Prints the parser's output: help and versions on stdout, errors on stderr.
pub(crate) fn answer_of_parser(said: &clap::Error) {
    let printed = said.print();
    if !said.use_stderr() {
        note(printed.and_then(|()| io::stdout().flush()));
    }
}

/// The error of the first write that failed; `None` if all succeeded or the reader closed the pipe.
pub fn unwritten() -> Option<&'static io::Error> {
    UNWRITTEN.get()
}

fn print(out: &mut dyn Write, text: &str) -> io::Result<()> {
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn note(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        // Later errors have the same reason.
        let _ = UNWRITTEN.set(error);
    }
}
