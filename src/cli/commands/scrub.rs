//! `vmsnap scrub`.

use super::{
    CommandResult, Refusal, failures, group_by, session_hint, tell_error, tell_missing, tell_summary,
    tell_unmatched, tell_versions, with_access,
};
use crate::cli::args::ScrubArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::{ExitCode, Verb};
use crate::cli::progress::Progress;
use crate::cli::report::document::Document;
use crate::cli::report::scrub::{self as shown, Scrubbed};
use crate::cli::select::select;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::model::text;
use crate::ops;
use crate::ops::each::{Each, Turn};
use crate::ops::scrub::{Means, Options, ScrubType, preview, scrub};

/// The name that selects all of vmsnap's checkpoints, which is also the default.
const ALL: &str = "*";

/// Removes vmsnap's checkpoints and bitmaps from each given domain. A failure of one domain does
/// not stop the others.
pub fn run(args: &ScrubArgs, stop: &Stop) -> CommandResult {
    let typed = args.domains.all();
    if typed.iter().all(|item| item.trim().is_empty()) {
        return Err(Refusal::new(ExitCode::NoDomains, "No domains specified"));
    }
    let options = Options {
        kind: scrub_type(
            args.scrub_type.as_deref().unwrap_or_default(),
            args.connect.is_classic,
        )?,
        name: args.checkpoint_name.clone().filter(|name| name != ALL),
        group_by: group_by(&args.group_by)?,
        full: args.full,
        wait: args.wait.time(),
    };
    // An empty path comes from an unset variable.
    let path = args.output.as_deref().filter(|path| !path.as_os_str().is_empty());
    let repo = path
        .map(|path| with_access(&args.secret, stop, |access| ops::open_repository(path, access)))
        .transpose()?;
    let host = ops::connect(args.connect.connect.as_deref())?;
    let names = host.domain_names().map_err(|error| ops::Error::of("", error))?;
    let selection = select(&typed, &names);
    let hint = session_hint(&args.connect, host.uri());
    tell_unmatched(&selection.unmatched, hint.as_deref());
    tell_versions(host.as_ref(), selection.domains.len(), names.len());
    let progress = Progress::new();
    let each = Each {
        domains: &selection.domains,
        monitor: &progress,
        stop,
    };
    let verb = |domain: &str| {
        let means = Means {
            host: host.as_ref(),
            repo: repo.as_deref(),
            today: now().date(),
            monitor: &progress,
            stop: stop.clone(),
        };
        match args.dry_run {
            true => preview(domain, &means, &options).map(Scrubbed::Planned),
            false => scrub(domain, &means, &options).map(Scrubbed::Done),
        }
    };
    let ended = |turn: &Turn<Scrubbed>| {
        if !args.output_args.json {
            answer(&shown::lines(turn));
        }
        tell_error(turn);
    };
    let round = each.run(verb, |_, _| false, ended);
    tell_summary(&selection.unmatched, failures(&round), round.turns.len());
    tell_missing(&round, &["qemu-img"]);
    let code = ExitCode::of_faults(&round.faults(&selection.unmatched), Verb::Scrub);
    if args.output_args.json {
        let document = shown::document(&round.turns, &selection.unmatched, code);
        answer(&Document::Scrub(document).json());
    }
    Ok(code)
}

/// The type that a word names. The classic message about a wrong word does not list the types.
fn scrub_type(word: &str, is_classic: bool) -> Result<ScrubType, Refusal> {
    ScrubType::from_word(word).ok_or_else(|| {
        let typed = match word.is_empty() {
            true => "none given".into(),
            false => text::shown(word),
        };
        let mut message = format!("Invalid scrub type: {typed}");
        if word.is_empty() || !is_classic {
            let words = ScrubType::ALL.map(ScrubType::word).join(", ");
            message.push_str(&format!("; use one of {words}"));
        }
        Refusal::new(ExitCode::ScrubType, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_known_by_its_word_and_no_other_is() {
        for kind in ScrubType::ALL {
            assert_eq!(scrub_type(kind.word(), false).ok(), Some(kind));
        }
        for word in ["", "Both", "bitmaps", " both", "**"] {
            for is_classic in [false, true] {
                let refusal = scrub_type(word, is_classic).expect_err("no type");
                assert_eq!(refusal.code, ExitCode::ScrubType);
                let message = refusal.message;
                assert!(
                    message.starts_with(&format!("Invalid scrub type: {word}")),
                    "{message}"
                );
                let lists_types = message.ends_with("; use one of checkpoint, bitmap, both, *");
                assert_eq!(lists_types, word.is_empty() || !is_classic, "{message}");
            }
        }
    }
}
