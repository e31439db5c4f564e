//! The terminal: what is typed, what is shown, and how the program ends. Everything else is in `ops`.
//!
//! stdout carries the answer only; progress, findings and errors go to stderr.

pub mod args;
mod commands;
pub mod exit_code;
pub mod pretty;
mod progress;
mod report;
pub mod select;
mod signals;

use std::ffi::OsString;
use std::io::Write;

use clap::Parser;
use clap::error::ErrorKind;

use args::Cli;
use exit_code::ExitCode;

/// Runs the program with these arguments (the program's name first) and returns its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> i32 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error).number(),
    };
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

/// Prints a line for the person at the terminal.
fn tell(line: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}
