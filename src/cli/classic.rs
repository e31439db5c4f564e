//! Translates the classic syntax, that of the Node.js VMSnap, into a subcommand and its switches.
//! Pure.
//!
//! A command line in the syntax with subcommands is translated too, so clap parses only one form:
//! the subcommand, then its switches by their full names (`--name=value`) and plain words. Flags
//! that are off are left out, or written as `--no-…` if a variable could turn them on. Counted
//! switches are repeated. So scripts may keep `--domains=vm1 --backup --groupBy=quarter
//! --prune=false`, which clap itself would reject.
//!
//! * `switches`: all switches.
//! * `read`: from words to tokens.
//! * `write`: from tokens to the words of one subcommand.
//! * `advice`: suggestions for unknown commands and switches.

mod advice;
mod read;
mod switches;
mod write;

use std::ffi::{OsStr, OsString};

use clap::Command;

use super::exit_code::ExitCode;
use advice::{all_switches, no_command, unknown};
use read::{Token, read};
use switches::COMMANDS;
use write::write;

/// An error in the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// More than one command.
    SeveralCommands,
    /// A word that is not valid here. The text is the message.
    Word(String),
}

impl Misuse {
    /// The message for the user.
    pub fn message(&self) -> &str {
        match self {
            Misuse::SeveralCommands => "Only one command can be run at a time",
            Misuse::Word(message) => message,
        }
    }

    /// The exit code.
    pub fn code(&self) -> ExitCode {
        match self {
            Misuse::SeveralCommands => ExitCode::SeveralCommands,
            Misuse::Word(_) => ExitCode::Usage,
        }
    }
}

/// Translates a command line, which starts with the program's name, into the form that clap parses.
/// `grammar` is the built command line of the subcommands.
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
    // The classic syntax has no commands with subcommands.
    let has_own = |name: &str| {
        grammar
            .find_subcommand(name)
            .is_some_and(Command::has_subcommands)
    };
    if subcommand.is_some_and(|name| name == "help" || has_own(name)) {
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

/// Whether this command line uses the classic syntax, which has no plain words. The first of
/// `words` is the program's name.
pub fn is_classic(words: &[OsString], grammar: &Command) -> bool {
    let typed = words.get(1..).unwrap_or_default();
    read(typed, grammar).is_ok_and(|tokens| !tokens.iter().any(|token| matches!(token, Token::Plain(_))))
}

fn is_help(name: &str) -> bool {
    matches!(name, "help" | "version")
}

fn asks_for_help(token: &Token) -> bool {
    matches!(token, Token::Switch { name, .. } if is_help(name))
}

/// Finds the subcommand of this name. Any other plain word in its place is an error, because the
/// classic syntax has no plain words.
fn known_subcommand<'a>(word: &OsStr, tokens: &[Token], grammar: &'a Command) -> Result<&'a str, Misuse> {
    let found = grammar.get_subcommands().find(|sub| word == sub.get_name());
    // The classic commands are known even to a program that was built without them.
    let classic = COMMANDS.into_iter().find(|name| word == *name);
    if let Some(name) = found.map(Command::get_name).or(classic) {
        return Ok(name);
    }
    // The value of a misspelt switch is read as a plain word.
    let misspelt = tokens.iter().find_map(|token| match token {
        Token::Unknown(name) => Some(unknown(name, all_switches(grammar), None)),
        _ => None,
    });
    Err(misspelt.unwrap_or_else(|| no_command(word, grammar)))
}

/// The command that was asked for, as a word or as a switch; `None` if there is none.
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
