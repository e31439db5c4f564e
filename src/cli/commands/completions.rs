//! `vmsnap completions`.

use super::CommandResult;
use crate::cli::answer;
use crate::cli::args::{self, CompletionsArgs};
use crate::cli::exit_code::ExitCode;

/// Prints the completions of a shell.
pub fn run(args: &CompletionsArgs) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::grammar(), "vmsnap", &mut script);
    answer(&String::from_utf8_lossy(&script));
    Ok(ExitCode::Ok)
}
