//! `vmsnap completions`.

use clap_complete::Shell;

use super::CommandResult;
use crate::cli::args::{self, CompletionsArgs};
use crate::cli::exit_code::ExitCode;
use crate::cli::stdout::answer;

/// Prints the completions of a shell.
pub fn run(args: &CompletionsArgs) -> CommandResult {
    answer(&script(args.shell));
    Ok(ExitCode::Ok)
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::grammar(), "vmsnap", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_packaged_shell_completes_every_command() {
        let grammar = args::grammar();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for command in grammar.get_subcommands() {
                let name = command.get_name();
                assert!(script.contains(name), "{shell} does not know {name}");
            }
            assert!(script.contains("group-by"), "{shell} knows no switches");
        }
    }
}
