//! stdout: the answer, and nothing else.
//!
//! An answer that could not be written is remembered until the end, since what else was asked is done all the same: the other domains are
//! still backed up. A reader that has gone away (`vmsnap list | head`) has read what it wanted, and is no failure.

use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// Why the first answer that could not be written was not.
static UNWRITTEN: OnceLock<io::Error> = OnceLock::new();

/// Prints the answer.
pub fn answer(text: &str) {
    note(print(&mut io::stdout().lock(), text));
}

/// Prints an answer with colours in it, which are taken out where stdout is no terminal, or as `NO_COLOR` and `CLICOLOR_FORCE` say.
pub fn answer_in_colour(text: &str) {
    note(print(&mut anstream::stdout().lock(), text));
}

/// Prints what the command line's parser has to say: help and versions on stdout, what is wrong on stderr.
pub fn answer_of_parser(said: &clap::Error) {
    let printed = said.print();
    if !said.use_stderr() {
        note(printed.and_then(|()| io::stdout().flush()));
    }
}

/// Why an answer could not be written; `None` when all were, or when nobody wanted to read on.
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
        // Later ones have the same reason.
        let _ = UNWRITTEN.set(error);
    }
}
