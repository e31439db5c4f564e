//! The terminal: what is typed, what is shown, and how the program ends. Everything else is in `ops`.
//!
//! stdout carries the answer only; progress, findings and errors go to stderr.

pub mod args;
pub mod classic;
mod commands;
pub mod exit_code;
pub mod log;
pub mod pretty;
mod progress;
pub mod report;
pub mod select;
mod signals;

use std::ffi::OsString;
use std::io::Write;

use clap::Parser;
use clap::error::ErrorKind;

use args::Cli;
use exit_code::ExitCode;
use log::{Entry, Level};

/// Runs the program with these arguments (the program's name first) and returns its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> i32 {
    let words = match classic::translate(arguments.into_iter().collect(), &args::grammar()) {
        Ok(words) => words,
        Err(misuse) => {
            log::tell(&Entry::new(Level::Error, misuse.message()));
            return misuse.code().number();
        }
    };
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error).number(),
    };
    log::start(&cli.log);
    #[cfg(feature = "libvirt")]
    if matches!(cli.command, args::Command::Demo(_)) {
        crate::demo::quiet_driver();
    }
    let stop = signals::listen();
    commands::run(&cli, &stop).number()
}

fn usage(error: &clap::Error) -> ExitCode {
    // When the text cannot be printed there is nobody to tell.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::Ok,
        _ => ExitCode::Usage,
    }
}

/// Prints the answer. A reader that has gone away (`vmsnap list | head`) is no error.
fn answer(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints an answer with colours in it, which are taken out where stdout is no terminal, or as `NO_COLOR` and `CLICOLOR_FORCE` say.
fn answer_in_colour(text: &str) {
    let mut out = anstream::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Tells on stderr what went wrong.
fn tell_error(message: &str) {
    log::tell(&Entry::new(Level::Error, message));
}

/// Tells on stderr what the user should read in any case.
fn tell(message: &str) {
    log::tell(&Entry::new(Level::Notice, message));
}
