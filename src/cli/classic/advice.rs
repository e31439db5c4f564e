//! Suggests known words for unknown ones.

use std::ffi::OsStr;

use clap::{Arg, Command};

use super::Misuse;
use super::switches::{COMMANDS, SWITCHES, every_arg, kebab};
use crate::model::text::shown;

pub(super) fn no_command(word: &OsStr, grammar: &Command) -> Misuse {
    let text = shown(&word.to_string_lossy());
    let names = grammar.get_subcommands().map(|sub| sub.get_name().to_owned());
    let advice = match nearest(&text, names) {
        Some(name) => format!("did you mean `vmsnap {name}`?"),
        None => {
            format!("if '{text}' is a domain, write `--domains={text}`; `vmsnap --help` lists the commands")
        }
    };
    Misuse::Word(format!("there is no command '{text}': {advice}"))
}

pub(super) fn unknown_to(command: &str, own: Option<&Command>, name: &str) -> Misuse {
    let of_command = own.into_iter().flat_map(Command::get_arguments);
    let names = of_command.filter_map(|arg| arg.get_long().map(str::to_owned));
    let classic = COMMANDS.contains(&command).then(classic_switches);
    unknown(name, names.chain(classic.into_iter().flatten()), Some(command))
}

fn classic_switches() -> impl Iterator<Item = String> {
    let switches = SWITCHES.iter().map(|(name, ..)| *name);
    switches.chain(COMMANDS).map(str::to_owned)
}

pub(super) fn all_switches(grammar: &Command) -> impl Iterator<Item = String> {
    let longs = every_arg(grammar).filter_map(|arg| arg.get_long().map(str::to_owned));
    longs.chain(classic_switches())
}

pub(super) fn unknown(name: &str, names: impl Iterator<Item = String>, command: Option<&str>) -> Misuse {
    let of = command.map_or_else(String::new, |command| format!(" for `vmsnap {command}`"));
    let help = command.map_or_else(String::new, |command| format!(" {command}"));
    let advice = match nearest(&kebab(name), names) {
        Some(name) => format!("did you mean '--{name}'?"),
        None => format!("`vmsnap{help} --help` lists the switches"),
    };
    Misuse::Word(format!("there is no switch '--{}'{of}: {advice}", shown(name)))
}

/// The error for a long switch that was typed with one hyphen.
pub(super) fn single_hyphen(name: &str) -> Misuse {
    let (typed, long) = (shown(name), kebab(name));
    Misuse::Word(format!("there is no switch '-{typed}': did you mean '--{long}'?"))
}

/// The error for a letter of `word` that is not a short switch. The message also quotes `word` if
/// `word` has more letters.
pub(super) fn unknown_short(word: &str, letter: Option<char>, grammar: &Command) -> Misuse {
    let letter = letter.unwrap_or('-');
    let switch = shown(&format!("-{letter}"));
    let is_alone = word.chars().count() == 2;
    let place = match is_alone {
        true => String::new(),
        false => format!(" in '{}'", shown(word)),
    };
    let other_case = |short: &char| *short != letter && short.eq_ignore_ascii_case(&letter);
    let short = every_arg(grammar).filter_map(Arg::get_short).find(other_case);
    let name = word.trim_start_matches('-').split('=').next().unwrap_or_default();
    let long = nearest(&kebab(name), all_switches(grammar)).filter(|_| !is_alone);
    let advice = match (long, short) {
        (Some(long), _) => format!("did you mean '--{long}'?"),
        (None, Some(short)) => format!("did you mean '-{short}'?"),
        (None, None) => "`vmsnap COMMAND --help` lists the switches of a command".to_owned(),
    };
    Misuse::Word(format!("there is no switch '{switch}'{place}: {advice}"))
}

/// The name most similar to the typed one, if any is similar.
fn nearest(typed: &str, names: impl Iterator<Item = String>) -> Option<String> {
    const LIKE: f64 = 0.75;
    let rated = names.map(|name| (strsim::jaro_winkler(typed, &name), name));
    let like = rated.filter(|(likeness, _)| *likeness >= LIKE);
    like.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, name)| name)
}
