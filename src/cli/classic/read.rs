//! Splits the command line into switches, each with its value, and plain words.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::Command;

use super::Misuse;
use super::advice::{single_hyphen, unknown_short};
use super::switches::{Kind, every_arg, kebab, kind, kind_of};
use crate::model::text::shown;

/// One typed word, or two: a switch and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Switch {
        name: String,
        kind: Kind,
        /// For a flag: whether it is on.
        on: bool,
        value: Option<OsString>,
    },
    /// A switch that no command has, as it was typed.
    Unknown(String),
    Plain(OsString),
    /// `--` and everything after it.
    Rest(Vec<OsString>),
}

/// Splits the words of a command line, without the name of the program.
pub(super) fn read(words: &[OsString], grammar: &Command) -> Result<Vec<Token>, Misuse> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut words = words.iter().peekable();
    let mut after_flag = None;
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            tokens.push(Token::Rest(words.cloned().collect()));
            break;
        }
        let flag: Option<(String, bool)> = after_flag.take();
        if !bytes.starts_with(b"-") || bytes == b"-" {
            if let (Some((flag, on)), b"true" | b"false") = (flag, bytes) {
                return Err(separate_value(&flag, on, &word.to_string_lossy()));
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
                on,
                value: None,
            } = &token
                && *kind != Kind::Value
            {
                after_flag = Some((name.clone(), *on));
            }
            tokens.push(token);
        } else {
            short_switches(word, grammar, &mut next, &mut tokens)?;
        }
    }
    Ok(tokens)
}

/// The error for `true` or `false` as a word of its own after a flag. `on` is false after `--no-…`.
fn separate_value(flag: &str, on: bool, value: &str) -> Misuse {
    Misuse::Word(match on {
        true => format!("--{flag} takes no separate value: write --{flag}={value}"),
        false => format!("--no-{flag} takes no value: remove '{value}', or write --{flag}=false"),
    })
}

/// Whether a word cannot be the value of the switch before it. A negative number can.
fn is_switch(word: &OsStr) -> bool {
    let after = word.as_bytes().strip_prefix(b"-");
    after.is_some_and(|after| !after.iter().all(u8::is_ascii_digit))
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
            return Err(Misuse::Word(format!(
                "--{name} must be true or false, not '{other}'"
            )));
        }
    };
    Ok(Token::Switch {
        name,
        kind,
        on,
        value,
    })
}

/// Reads a word of short switches, such as `-nq`, `-c URI` or `-cURI`.
fn short_switches(
    word: &OsStr,
    grammar: &Command,
    next: &mut dyn FnMut() -> Option<OsString>,
    tokens: &mut Vec<Token>,
) -> Result<(), Misuse> {
    let bytes = word.as_bytes();
    let text = word.to_string_lossy();
    let name = text[1..].split('=').next().unwrap_or_default();
    if name.len() > 1 && kind_of(&kebab(name), grammar).is_some() {
        return Err(single_hyphen(name));
    }
    for place in 1..bytes.len() {
        let short = char::from(bytes[place]);
        let arg = every_arg(grammar).find(|arg| arg.get_short() == Some(short));
        let Some((name, kind)) = arg.and_then(|arg| Some((arg.get_long()?.to_owned(), kind(arg)))) else {
            let unknown = String::from_utf8_lossy(&bytes[place..]);
            return Err(unknown_short(&text, unknown.chars().next(), grammar));
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
