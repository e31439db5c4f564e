//! The terminal: what is typed, what is shown, and how the program ends. Everything else is in `ops`.
//!
//! stdout carries the answer only; progress, findings and errors go to stderr.

pub mod args;
pub mod classic;
mod clock;
mod commands;
mod exclude;
pub mod exit_code;
mod limits;
pub mod log;
pub mod pretty;
mod progress;
pub mod report;
pub mod select;
mod signals;
mod stdout;

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

use args::Cli;
use exit_code::ExitCode;

/// Runs the program with these arguments (the program's name first) and returns its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> i32 {
    let code = run(arguments.into_iter().collect());
    let Some(error) = stdout::unwritten() else {
        return code.number();
    };
    log::error(&format!("cannot write the output to stdout: {error}"));
    ExitCode::worst([code, ExitCode::Failed]).number()
}

fn run(arguments: Vec<OsString>) -> ExitCode {
    let grammar = args::grammar();
    let is_classic = classic::is_classic(&arguments, &grammar);
    let words = match classic::translate(arguments, &grammar) {
        Ok(words) => words,
        Err(misuse) => {
            log::error(misuse.message());
            return misuse.code();
        }
    };
    let mut cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            stdout::answer_of_parser(&error);
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::Ok,
                _ => ExitCode::Usage,
            };
        }
    };
    if is_classic {
        cli.set_classic();
    }
    log::start(&cli.log);
    limits::raise_open_files();
    #[cfg(feature = "libvirt")]
    if let args::Command::Demo(args) = &mut cli.command {
        args.folder = commands::demo_folder(&args.dir);
        crate::demo::prepare_environment(&args.folder.join("run"));
    }
    let stop = signals::listen();
    commands::run(&cli, &stop)
}
