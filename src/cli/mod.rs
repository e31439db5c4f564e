//! The command line: arguments, output and exit codes. Everything else is in `ops`.
//!
//! Results go to stdout; progress, findings and errors go to stderr.

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
mod secrets;
pub mod select;
mod signals;
mod stdout;

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, LogArgs, LogFormat};
use exit_code::ExitCode;
use log::{Entry, Level};

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
    let typed = arguments.clone();
    let words = match classic::translate(arguments, &grammar) {
        Ok(words) => words,
        Err(misuse) => {
            log::start(&LogArgs::before_parsing(&typed));
            log::error(misuse.message());
            return misuse.code();
        }
    };
    let mut cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            tell_usage_error(&error, &LogArgs::before_parsing(&typed));
            return ExitCode::Usage;
        }
        Err(help) => {
            stdout::answer_of_parser(&help);
            return match help.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::Ok,
                _ => ExitCode::Usage,
            };
        }
    };
    if is_classic {
        cli.set_classic();
    }
    log::start(&cli.log);
    limits::forbid_core_dumps();
    limits::raise_open_files();
    #[cfg(feature = "libvirt")]
    if let args::Command::Demo(args) = &mut cli.command {
        args.folder = commands::demo_folder(&args.dir);
        crate::demo::prepare_environment(&args.folder.join("run"));
    }
    let stop = signals::listen();
    commands::run(&cli, &stop)
}

/// Prints an error in the command line: for people as the parser writes it, otherwise as a log
/// entry.
fn tell_usage_error(error: &clap::Error, log: &LogArgs) {
    if log.log_format == LogFormat::Text {
        stdout::answer_of_parser(error);
        return;
    }
    log::start(log);
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let usage = text
        .find("\nUsage:")
        .or_else(|| text.find("\nFor more information"));
    let (message, usage) = text.split_at(usage.unwrap_or(text.len()));
    let in_one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (message, hint) = (in_one_line(message), in_one_line(usage));
    log::tell(&Entry {
        hint: Some(hint.as_str()).filter(|hint| !hint.is_empty()),
        ..Entry::new(Level::Error, &message)
    });
}
