//! The classic spelling: from the words of the Node.js VMSnap to those of the subcommands. Pure.
//!
//! Whatever was typed comes out in one form: the subcommand, then its switches by their full names (`--name=value`), each boolean as
//! often as it counts. So a script may keep `--domains=vm1 --backup --groupBy=quarter --prune=false`, and clap never sees it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::builder::ArgAction;
use clap::{Arg, Command};

use super::exit_code::ExitCode;
use crate::model::text::shown;

/// The commands of the Node program, each of which is also a switch of it.
const COMMANDS: [&str; 3] = ["status", "backup", "scrub"];

/// What follows a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing, or `=true` or `=false`.
    Flag,
    /// The same, and it counts how often.
    Count,
    /// A value.
    Value,
}

/// The switches of the Node program, with the commands that they mean something to. The others of its commands take and ignore them.
const SWITCHES: [(&str, Kind, &[&str]); 15] = [
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
    ("pretty", Kind::Flag, &["status"]),
    ("checkpoint-name", Kind::Value, &["scrub"]),
    ("scrub-type", Kind::Value, &["scrub"]),
    ("connect", Kind::Value, &COMMANDS),
    ("socketfile", Kind::Value, &["backup"]),
];

/// Why the words cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// More than one command.
    SeveralCommands,
    /// A word that has no place here; the sentence says which.
    Word(String),
}

impl Misuse {
    /// What the user is told.
    pub fn message(&self) -> &str {
        match self {
            Misuse::SeveralCommands => "Only one command can be run at a time",
            Misuse::Word(message) => message,
        }
    }

    /// How the program ends.
    pub fn code(&self) -> ExitCode {
        match self {
            Misuse::SeveralCommands => ExitCode::SeveralCommands,
            Misuse::Word(_) => ExitCode::Usage,
        }
    }
}

/// One typed word, or two that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Switch {
        name: String,
        kind: Kind,
        /// Of a flag: whether it is on.
        on: bool,
        value: Option<OsString>,
    },
    /// A switch that no command has, as it was typed.
    Unknown(String),
    Plain(OsString),
    /// `--` and everything behind it.
    Rest(Vec<OsString>),
}

/// Translates the typed words, the program's name first. `grammar` is the built command line of the subcommands.
pub fn translate(words: Vec<OsString>, grammar: &Command) -> Result<Vec<OsString>, Misuse> {
    let mut typed = words.iter().cloned();
    let program = typed.next().unwrap_or_else(|| "vmsnap".into());
    let tokens = read(&typed.collect::<Vec<_>>(), grammar)?;
    let first = tokens.iter().position(|token| matches!(token, Token::Plain(_)));
    let subcommand = match first.map(|place| &tokens[place]) {
        Some(Token::Plain(word)) => Some(known_subcommand(word, &tokens, grammar)?),
        _ => None,
    };
    if let (None, Some(Token::Rest(rest))) = (subcommand, tokens.last())
        && let Some(word) = rest.first()
    {
        return Err(no_command(word, grammar));
    }
    if subcommand == Some("help") {
        return Ok(words);
    }
    let command = match the_command(subcommand, &tokens)? {
        Some(command) => command,
        None if tokens.iter().any(asks_for_help) => {
            let help = tokens.into_iter().find_map(|token| match token {
                Token::Switch { name, .. } if is_help(&name) => Some(name),
                _ => None,
            });
            return Ok(vec![program, format!("--{}", help.unwrap_or_default()).into()]);
        }
        None => "status",
    };
    let rest = tokens.into_iter().enumerate();
    let tokens = rest
        .filter(|(place, _)| first != Some(*place))
        .map(|(_, token)| token);
    let mut translated = vec![program, command.into()];
    translated.extend(write(command, tokens.collect(), grammar)?);
    Ok(translated)
}

fn is_help(name: &str) -> bool {
    matches!(name, "help" | "version")
}

fn asks_for_help(token: &Token) -> bool {
    matches!(token, Token::Switch { name, .. } if is_help(name))
}

/// The subcommand of that name. Another plain word in its place is a mistake: the classic form has none.
fn known_subcommand<'a>(word: &OsStr, tokens: &[Token], grammar: &'a Command) -> Result<&'a str, Misuse> {
    let found = grammar.get_subcommands().find(|sub| word == sub.get_name());
    // Spelt out, so that the classic form does not depend on which subcommands this program was built with.
    let classic = COMMANDS.into_iter().find(|name| word == *name);
    if let Some(name) = found.map(Command::get_name).or(classic) {
        return Ok(name);
    }
    // A misspelt switch leaves its value behind as a plain word.
    let misspelt = tokens.iter().find_map(|token| match token {
        Token::Unknown(name) => Some(unknown(name, all_switches(grammar), None)),
        _ => None,
    });
    Err(misspelt.unwrap_or_else(|| no_command(word, grammar)))
}

fn no_command(word: &OsStr, grammar: &Command) -> Misuse {
    let text = shown(&word.to_string_lossy());
    let names = grammar.get_subcommands().map(|sub| sub.get_name().to_owned());
    let advice = match nearest(&text, names) {
        Some(name) => format!("did you mean `vmsnap {name}`?"),
        None => format!("`--domains={text}` names a domain, `vmsnap --help` lists the commands"),
    };
    Misuse::Word(format!("there is no command '{text}': {advice}"))
}

/// The one command that was asked for, as a word or as a switch; `None` when none was.
fn the_command<'a>(subcommand: Option<&'a str>, tokens: &[Token]) -> Result<Option<&'a str>, Misuse> {
    let is_on = |command: &&&str| {
        let last = tokens.iter().rev().find_map(|token| match token {
            Token::Switch { name, on, .. } if name == **command => Some(*on),
            _ => None,
        });
        last == Some(true)
    };
    let switched = COMMANDS.iter().filter(is_on).copied();
    let mut asked: Vec<&str> = subcommand.into_iter().chain(switched).collect();
    asked.dedup();
    match asked.as_slice() {
        [] => Ok(None),
        [command] => Ok(Some(command)),
        _ => Err(Misuse::SeveralCommands),
    }
}

/// Takes the words apart.
fn read(words: &[OsString], grammar: &Command) -> Result<Vec<Token>, Misuse> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut words = words.iter().peekable();
    let mut behind_flag = None;
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            tokens.push(Token::Rest(words.cloned().collect()));
            break;
        }
        let flag: Option<String> = behind_flag.take();
        if !bytes.starts_with(b"-") || bytes == b"-" {
            if let (Some(flag), b"true" | b"false") = (flag, bytes) {
                let value = word.to_string_lossy();
                let advice = format!("write --{flag}={value}");
                return Err(Misuse::Word(format!(
                    "--{flag} takes no word behind it: {advice}"
                )));
            }
            tokens.push(Token::Plain(word.clone()));
            continue;
        }
        let mut next = || words.next_if(|next| !is_switch(next)).cloned();
        if let Some(long) = bytes.strip_prefix(b"--") {
            let token = long_switch(long, grammar, &mut next)?;
            if let Token::Switch {
                name,
                kind,
                value: None,
                ..
            } = &token
                && *kind != Kind::Value
            {
                behind_flag = Some(name.clone());
            }
            tokens.push(token);
        } else {
            short_switches(word, grammar, &mut next, &mut tokens)?;
        }
    }
    Ok(tokens)
}

/// Whether a word cannot be the value of the switch before it.
fn is_switch(word: &OsStr) -> bool {
    word.len() > 1 && word.as_bytes().starts_with(b"-")
}

fn long_switch(
    typed: &[u8],
    grammar: &Command,
    next: &mut dyn FnMut() -> Option<OsString>,
) -> Result<Token, Misuse> {
    let (name, value) = match typed.iter().position(|byte| *byte == b'=') {
        Some(place) => (
            &typed[..place],
            Some(OsString::from_vec(typed[place + 1..].to_vec())),
        ),
        None => (typed, None),
    };
    let spelling = String::from_utf8_lossy(name).into_owned();
    let name = kebab(&spelling);
    let negated = name
        .strip_prefix("no-")
        .and_then(|name| Some((name, kind_of(name, grammar)?)));
    let (name, kind, positive) = match (kind_of(&name, grammar), negated) {
        (Some(kind), _) => (name, kind, true),
        (None, Some((negated, kind))) if kind != Kind::Value && value.is_none() => {
            (negated.to_owned(), kind, false)
        }
        _ => return Ok(Token::Unknown(spelling)),
    };
    if kind == Kind::Value {
        let value = value.or_else(next);
        return Ok(Token::Switch {
            name,
            kind,
            on: true,
            value,
        });
    }
    let on = match value.as_deref().map(OsStr::as_bytes) {
        None | Some(b"true") => positive,
        Some(b"false") => false,
        Some(other) => {
            let other = shown(&String::from_utf8_lossy(other));
            return Err(Misuse::Word(format!("--{name} is true or false, not '{other}'")));
        }
    };
    Ok(Token::Switch {
        name,
        kind,
        on,
        value,
    })
}

/// `-nq`, `-c URI`, `-cURI`.
fn short_switches(
    word: &OsStr,
    grammar: &Command,
    next: &mut dyn FnMut() -> Option<OsString>,
    tokens: &mut Vec<Token>,
) -> Result<(), Misuse> {
    let bytes = word.as_bytes();
    for place in 1..bytes.len() {
        let short = char::from(bytes[place]);
        let arg = every_arg(grammar).find(|arg| arg.get_short() == Some(short));
        let Some((name, kind)) = arg.and_then(|arg| Some((arg.get_long()?.to_owned(), kind(arg)))) else {
            let word = shown(&word.to_string_lossy());
            return Err(Misuse::Word(format!(
                "there is no switch '-{short}' (in '{word}')"
            )));
        };
        let mut value = None;
        if kind == Kind::Value {
            let rest = &bytes[place + 1..];
            let rest = rest.strip_prefix(b"=").unwrap_or(rest);
            value = match rest {
                [] => next(),
                rest => Some(OsString::from_vec(rest.to_vec())),
            };
        }
        tokens.push(Token::Switch {
            name,
            kind,
            on: true,
            value,
        });
        if kind == Kind::Value {
            break;
        }
    }
    Ok(())
}

/// `groupBy` as `group-by`.
fn kebab(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(character.to_ascii_lowercase());
    }
    text
}

fn kind(arg: &Arg) -> Kind {
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

/// What follows the switch of this name, whatever the command.
fn kind_of(name: &str, grammar: &Command) -> Option<Kind> {
    if COMMANDS.contains(&name) {
        return Some(Kind::Flag);
    }
    if let Some((_, kind, _)) = SWITCHES.iter().find(|(switch, ..)| *switch == name) {
        return Some(*kind);
    }
    every_arg(grammar).find(|arg| goes_by(arg, name)).map(kind)
}

fn every_arg(grammar: &Command) -> impl Iterator<Item = &Arg> {
    let of_commands = grammar.get_subcommands().flat_map(Command::get_arguments);
    grammar.get_arguments().chain(of_commands)
}

fn goes_by(arg: &Arg, name: &str) -> bool {
    let is_alias = || {
        arg.get_all_aliases()
            .is_some_and(|aliases| aliases.contains(&name))
    };
    arg.get_long().is_some_and(|long| long == name || is_alias())
}

/// The switches of a command: the typed ones that it has, in the order of their first appearance, and the plain words between them.
fn write(command: &str, tokens: Vec<Token>, grammar: &Command) -> Result<Vec<OsString>, Misuse> {
    let own = grammar.find_subcommand(command);
    let mut written: Vec<(Option<String>, Vec<OsString>)> = Vec::new();
    for token in tokens {
        let (name, kind, on, value) = match token {
            Token::Plain(word) => {
                written.push((None, vec![word]));
                continue;
            }
            Token::Rest(words) => {
                written.push((None, [vec!["--".into()], words].concat()));
                continue;
            }
            Token::Unknown(name) => return Err(unknown_to(command, own, &name)),
            Token::Switch { name, .. } if COMMANDS.contains(&name.as_str()) => continue,
            Token::Switch {
                name,
                kind,
                on,
                value,
            } => (name, kind, on, value),
        };
        let Some(long) = name_in(command, own, &name)? else {
            continue;
        };
        let switch = OsString::from(format!("--{long}"));
        if kind == Kind::Value {
            let word = match value {
                Some(value) => [switch.as_os_str(), OsStr::new("="), &value]
                    .iter()
                    .copied()
                    .collect(),
                None => switch,
            };
            written.push((None, vec![word]));
            continue;
        }
        let place = written.iter().position(|(of, _)| of.as_deref() == Some(&long));
        let place = place.unwrap_or_else(|| {
            written.push((Some(long), Vec::new()));
            written.len() - 1
        });
        let times = match (on, kind) {
            (false, _) => 0,
            (true, Kind::Count) => written[place].1.len() + 1,
            (true, _) => 1,
        };
        written[place].1 = vec![switch; times];
    }
    Ok(written.into_iter().flat_map(|(_, words)| words).collect())
}

/// The full name that the command knows a switch by; `None` for one of the Node program's that means nothing to it.
fn name_in(command: &str, own: Option<&Command>, name: &str) -> Result<Option<String>, Misuse> {
    let arg = own.and_then(|own| own.get_arguments().find(|arg| goes_by(arg, name)));
    if let Some(long) = arg.and_then(Arg::get_long) {
        return Ok(Some(long.to_owned()));
    }
    let is_classic = COMMANDS.contains(&command);
    match SWITCHES.iter().find(|(switch, ..)| is_classic && *switch == name) {
        Some((_, _, concerned)) if concerned.contains(&command) => Ok(Some(name.to_owned())),
        Some(_) => Ok(None),
        None => Err(unknown_to(command, own, name)),
    }
}

fn unknown_to(command: &str, own: Option<&Command>, name: &str) -> Misuse {
    let of_command = own.into_iter().flat_map(Command::get_arguments);
    let names = of_command.filter_map(|arg| arg.get_long().map(str::to_owned));
    let classic = COMMANDS.contains(&command).then(classic_switches);
    unknown(name, names.chain(classic.into_iter().flatten()), Some(command))
}

fn classic_switches() -> impl Iterator<Item = String> {
    let switches = SWITCHES.iter().map(|(name, ..)| *name);
    switches.chain(COMMANDS).map(str::to_owned)
}

fn all_switches(grammar: &Command) -> impl Iterator<Item = String> {
    let longs = every_arg(grammar).filter_map(|arg| arg.get_long().map(str::to_owned));
    longs.chain(classic_switches())
}

fn unknown(name: &str, names: impl Iterator<Item = String>, command: Option<&str>) -> Misuse {
    let of = command.map_or_else(String::new, |command| format!(" for `vmsnap {command}`"));
    let help = command.map_or_else(String::new, |command| format!(" {command}"));
    let advice = match nearest(&kebab(name), names) {
        Some(name) => format!("did you mean '--{name}'?"),
        None => format!("`vmsnap{help} --help` lists them"),
    };
    Misuse::Word(format!("there is no switch '--{}'{of}: {advice}", shown(name)))
}

/// The name most like what was typed, unless none is like it.
fn nearest(typed: &str, names: impl Iterator<Item = String>) -> Option<String> {
    const LIKE: f64 = 0.7;
    let rated = names.map(|name| (strsim::jaro_winkler(typed, &name), name));
    let like = rated.filter(|(likeness, _)| *likeness >= LIKE);
    like.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args;

    #[test]
    fn every_switch_of_the_node_program_is_known_to_the_commands_it_concerns() {
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
    fn a_switch_means_the_same_to_every_command() {
        let grammar = args::grammar();
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
