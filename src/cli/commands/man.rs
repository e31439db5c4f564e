//! `vmsnap man`: the manual pages, generated from the grammar of the command line.

use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{CommandResult, Refusal};
use crate::cli::args::{self, ManArgs};
use crate::cli::exit_code::ExitCode;
use crate::cli::stdout::answer;
use crate::model::text::shown;

/// Prints the manual page of vmsnap or of one of its commands.
pub fn run(args: &ManArgs) -> CommandResult {
    let grammar = args::grammar();
    let command = match &args.command {
        None => grammar,
        Some(name) => {
            let found = grammar.find_subcommand(name).cloned();
            let found = found.ok_or_else(|| {
                let names = grammar.get_subcommands().map(|sub| sub.get_name().to_owned());
                let names = names.filter(|name| name != "help").collect::<Vec<_>>().join(", ");
                let message = format!("there is no command '{}'; use one of {names}", shown(name));
                Refusal::new(ExitCode::Usage, message)
            })?;
            found.display_name(format!("vmsnap-{name}"))
        }
    };
    let page = page(command).map_err(|error| Refusal::new(ExitCode::Failed, error.to_string()))?;
    answer(&String::from_utf8_lossy(&page));
    Ok(ExitCode::Ok)
}

fn page(command: clap::Command) -> std::io::Result<Vec<u8>> {
    // `help` has no page of its own.
    let command = match command.find_subcommand("help") {
        Some(_) => command.mut_subcommand("help", |help| help.hide(true)),
        None => command,
    };
    // Each command has a page. Its subcommands are sections of that page.
    let is_main = command.get_name() == "vmsnap";
    let sections: Vec<Roff> = match is_main {
        true => Vec::new(),
        false => command.get_subcommands().filter_map(subcommand).collect(),
    };
    let examples = command.get_after_help().map(ToString::to_string);
    let source = concat!("vmsnap ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).source(source).manual("vmsnap");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if is_main {
        man.render_subcommands_section(&mut page)?;
    }
    for section in sections {
        section.to_writer(&mut page)?;
    }
    if let Some(examples) = examples {
        verbatim("EXAMPLES", &examples).to_writer(&mut page)?;
    }
    exit_status().to_writer(&mut page)?;
    Ok(page)
}

/// The section about a subcommand of a command; `None` for `help`.
fn subcommand(command: &clap::Command) -> Option<Roff> {
    let name = Some(command.get_bin_name()?).filter(|_| command.get_name() != "help")?;
    let help = command.clone().render_long_help().to_string();
    Some(verbatim(&name.to_uppercase(), &help))
}

/// A section whose lines stay as they are.
fn verbatim(title: &str, text: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    roff.control("nf", []);
    let lines = text.lines().filter(|line| !line.starts_with("Example"));
    for line in lines {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff
}

fn exit_status() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    let mut entry = |number: String, meaning: &str| {
        roff.control("TP", ["6"]);
        roff.text([bold(number)]);
        roff.text([roman(meaning)]);
    };
    for code in ExitCode::ALL {
        entry(code.number().to_string(), code.meaning());
    }
    let signal = ExitCode::Signal(0);
    entry("128+N".to_owned(), signal.meaning());
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(command: clap::Command) -> String {
        String::from_utf8(page(command).expect("written to memory")).expect("UTF-8")
    }

    #[test]
    fn every_command_has_a_page_with_every_exit_code() {
        let grammar = args::grammar();
        for command in grammar.get_subcommands().chain([&grammar]) {
            let page = text(command.clone());
            assert!(page.contains(".SH NAME\n"), "{page}");
            for code in ExitCode::ALL {
                let entry = format!("\n.TP 6\n\\fB{}\\fR\n", code.number());
                assert!(page.contains(&entry), "{} lacks {entry}", command.get_name());
            }
        }
    }

    #[test]
    fn every_page_that_the_main_page_names_can_be_printed() {
        let grammar = args::grammar();
        let main = text(grammar.clone());
        let named: Vec<&str> = main
            .lines()
            .filter_map(|line| line.strip_prefix("vmsnap\\-")?.strip_suffix("(1)"))
            .collect();
        let commands = grammar.get_subcommands().map(clap::Command::get_name);
        let commands: Vec<&str> = commands.filter(|name| *name != "help").collect();
        assert_eq!(named, commands);
    }

    #[test]
    fn subcommands_are_sections_of_their_command() {
        let grammar = args::grammar();
        let key = grammar.find_subcommand("key").expect("it is there");
        let page = text(key.clone());
        for part in ["KEY LIST", "KEY EXPORT", "\\-\\-recovery\\-file"] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }

    #[test]
    fn examples_stay_line_by_line() {
        let grammar = args::grammar();
        let backup = grammar.find_subcommand("backup").expect("it is there");
        let page = text(backup.clone());
        assert!(page.contains(".SH EXAMPLES\n.nf\n"), "{page}");
        assert!(page.contains("vmsnap backup vm1 \\-\\-output /backups"), "{page}");
    }
}
