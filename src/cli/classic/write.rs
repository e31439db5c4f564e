//! Writes tokens as the words of one subcommand.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

use super::Misuse;
use super::advice::unknown_to;
use super::read::Token;
use super::switches::{COMMANDS, Kind, SWITCHES, goes_by, negation};

/// The words of a command: its typed switches in the order of their first appearance, with the
/// plain words between them.
pub(super) fn write(command: &str, tokens: Vec<Token>, grammar: &Command) -> Result<Vec<OsString>, Misuse> {
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
        let off = || {
            let arg = own.and_then(|own| own.get_arguments().find(|arg| goes_by(arg, &name)));
            arg.and_then(negation).map(OsString::from)
        };
        written[place].1 = match (on, kind) {
            (false, _) => off().into_iter().collect(),
            (true, Kind::Count) => vec![switch; written[place].1.len() + 1],
            (true, _) => vec![switch],
        };
    }
    Ok(written.into_iter().flat_map(|(_, words)| words).collect())
}

/// The full name of a switch of this command; `None` for a classic switch that has no effect on the
/// command.
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
