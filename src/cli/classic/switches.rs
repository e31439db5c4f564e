//! All switches: those of the Node.js VMSnap by name, those of the subcommands from the grammar.

use clap::builder::ArgAction;
use clap::{Arg, Command};

/// The commands of the Node.js VMSnap, where each is a switch.
pub(super) const COMMANDS: [&str; 3] = ["status", "backup", "scrub"];

/// The kind of value that a switch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing, or `=true` or `=false`.
    Flag,
    /// Like a flag, but the number of times counts.
    Count,
    /// A value.
    Value,
}

/// The switches of the Node.js VMSnap, each with the commands on which it has an effect. The other
/// classic commands accept and ignore it.
pub(super) const SWITCHES: [(&str, Kind, &[&str]); 17] = [
    ("domains", Kind::Value, &COMMANDS),
    ("output", Kind::Value, &COMMANDS),
    ("verbose", Kind::Count, &COMMANDS),
    ("machine", Kind::Flag, &["status"]),
    ("json", Kind::Flag, &COMMANDS),
    ("yaml", Kind::Flag, &["status"]),
    ("yml", Kind::Flag, &["status"]),
    ("raw", Kind::Flag, &["backup"]),
    ("group-by", Kind::Value, &["status", "backup"]),
    ("prune", Kind::Flag, &["backup"]),
    ("force", Kind::Flag, &["backup"]),
    ("copy", Kind::Flag, &["backup"]),
    ("pretty", Kind::Flag, &["status"]),
    ("checkpoint-name", Kind::Value, &["scrub"]),
    ("scrub-type", Kind::Value, &["scrub"]),
    ("connect", Kind::Value, &COMMANDS),
    ("socketfile", Kind::Value, &["backup"]),
];

/// Converts camel case to kebab case: `groupBy` becomes `group-by`.
pub(super) fn kebab(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(character.to_ascii_lowercase());
    }
    text
}

pub(super) fn kind(arg: &Arg) -> Kind {
    match arg.get_action() {
        ArgAction::SetTrue
        | ArgAction::Help
        | ArgAction::HelpShort
        | ArgAction::HelpLong
        | ArgAction::Version => Kind::Flag,
        ArgAction::Count => Kind::Count,
        _ => Kind::Value,
    }
}

/// Returns the kind of value of the switch with this name in any command.
pub(super) fn kind_of(name: &str, grammar: &Command) -> Option<Kind> {
    if COMMANDS.contains(&name) {
        return Some(Kind::Flag);
    }
    if let Some((_, kind, _)) = SWITCHES.iter().find(|(switch, ..)| *switch == name) {
        return Some(*kind);
    }
    every_arg(grammar).find(|arg| goes_by(arg, name)).map(kind)
}

/// Every argument of the command line, except the hidden `--no-…` that [`negation`] writes. The
/// arguments of the classic commands come first, because if several arguments have the same name,
/// the first one decides its kind.
pub(super) fn every_arg(grammar: &Command) -> impl Iterator<Item = &Arg> {
    let (of_node, others): (Vec<&Command>, Vec<&Command>) =
        grammar.get_subcommands().partition(|command| is_of_node(command));
    let commands = of_node.into_iter().chain(others);
    let of_commands = commands.flat_map(Command::get_arguments);
    let is_negation =
        |arg: &&Arg| arg.is_hide_set() && arg.get_long().is_some_and(|long| long.starts_with("no-"));
    let all = grammar.get_arguments().chain(of_commands);
    all.filter(move |arg| !is_negation(arg))
}

fn is_of_node(command: &Command) -> bool {
    COMMANDS.contains(&command.get_name())
}

/// The switch that turns off a flag that an environment variable may have turned on.
pub(super) fn negation(arg: &Arg) -> Option<String> {
    let long = arg.get_long().filter(|_| arg.get_env().is_some())?;
    Some(format!("--no-{long}"))
}

pub(super) fn goes_by(arg: &Arg, name: &str) -> bool {
    let is_alias = || {
        arg.get_all_aliases()
            .is_some_and(|aliases| aliases.contains(&name))
    };
    arg.get_long().is_some_and(|long| long == name || is_alias())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args;

    #[test]
    fn every_node_switch_is_known_to_its_commands() {
        let grammar = args::grammar();
        for (name, expected, concerned) in SWITCHES {
            for command in concerned {
                let Some(own) = grammar.find_subcommand(command) else {
                    continue;
                };
                let arg = own.get_arguments().find(|arg| goes_by(arg, name));
                let arg = arg.unwrap_or_else(|| panic!("vmsnap {command} lacks --{name}"));
                assert_eq!(kind(arg), expected, "{command} --{name}");
            }
        }
    }

    #[test]
    fn a_flag_that_a_variable_can_turn_on_can_be_turned_off() {
        let grammar = args::grammar();
        let mut found = 0;
        for command in grammar.get_subcommands() {
            let flags = command.get_arguments().filter(|arg| kind(arg) == Kind::Flag);
            for name in flags.filter_map(negation) {
                let is_it = |arg: &&Arg| arg.get_long().is_some_and(|long| name == format!("--{long}"));
                let arg = command.get_arguments().find(is_it);
                assert!(
                    arg.is_some_and(Arg::is_hide_set),
                    "{}: {name}",
                    command.get_name()
                );
                found += 1;
            }
        }
        assert_eq!(found, 2, "--store-decrypted of backup and status");
    }

    #[test]
    fn a_switch_means_the_same_to_every_command() {
        let mut grammar = args::grammar();
        // Never read in the classic syntax, where `--full` is that of a backup.
        let verify = grammar.find_subcommand_mut("verify").expect("a command");
        *verify = verify.clone().mut_arg("full", |arg| arg.long("all-clusters"));
        for arg in every_arg(&grammar).filter(|arg| arg.get_long().is_some()) {
            let name = arg.get_long().expect("just asked");
            assert_eq!(kind_of(name, &grammar), Some(kind(arg)), "--{name}");
        }
        let shorts = every_arg(&grammar).filter_map(|arg| Some((arg.get_short()?, arg)));
        for (short, arg) in shorts {
            let first = every_arg(&grammar).find(|arg| arg.get_short() == Some(short));
            assert_eq!(first.map(kind), Some(kind(arg)), "-{short}");
        }
    }
}
