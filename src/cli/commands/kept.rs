//! Runs a verb for domains of a repository; needs no hypervisor.

use super::{Refusal, tell_error, tell_skipped, tell_unmatched};
use crate::cli::exit_code::ExitCode;
use crate::cli::log;
use crate::cli::progress::Progress;
use crate::cli::select::{Selection, patterns, select};
use crate::model::stop::Stop;
use crate::ops::each::{Each, Fault, Faults, Judged, Round, Turn};
use crate::ops::monitor::Ending;
use crate::ops::{self, Cause, Error, Repository};

/// The refusal of domain names that are all empty.
pub(super) const NO_NAMES: &str =
    "the domain names are empty (an unset variable?); leave them out to select all domains";

/// Selected domains of a repository.
pub(super) struct KeptDomains<'a> {
    repo: &'a dyn Repository,
    /// The selection.
    pub(super) selection: Selection,
    /// The typed patterns.
    typed: Vec<String>,
}

impl<'a> KeptDomains<'a> {
    /// Selects domains of the repository; all of them if no word is typed. The error about an empty
    /// repository quotes `verb` and `switch`, the switch that names the repository.
    ///
    /// # Errors
    /// The repository cannot be read or has no domains, or all words are empty (an unset
    /// variable?).
    pub(super) fn select(
        repo: &'a dyn Repository,
        mut words: Vec<String>,
        verb: &str,
        switch: &str,
    ) -> Result<KeptDomains<'a>, Refusal> {
        let names = repo.domains().map_err(|error| Error::of("", error))?;
        if words.is_empty() {
            if names.is_empty() {
                let what = nothing_in(repo, verb);
                let what = format!("{what}: it has no restore points (check {switch})");
                return Err(Refusal {
                    hint: sets_hint(repo),
                    ..Refusal::new(ExitCode::NoDomains, what)
                });
            }
            words.push("*".to_owned());
        }
        let typed = patterns(&words, &names);
        if typed.is_empty() {
            return Err(Refusal::new(ExitCode::NoDomains, NO_NAMES));
        }
        let selection = select(&words, &names);
        let hint = names.is_empty().then(|| sets_hint(repo)).flatten();
        tell_unmatched(&selection.unmatched, hint.as_deref());
        Ok(KeptDomains {
            repo,
            selection,
            typed,
        })
    }

    /// Runs a verb for each domain. `show` reports the outcome of a domain that was not skipped.
    pub(super) fn run<T: Judged>(
        &self,
        progress: &Progress,
        stop: &Stop,
        verb: impl FnMut(&str) -> ops::Result<T>,
        show: impl Fn(&Turn<T>),
    ) -> Round<T> {
        let each = Each {
            domains: &self.selection.domains,
            monitor: progress,
            stop,
        };
        // A glob also matches the folder that a killed first backup left.
        let may_skip =
            |domain: &str, error: &Error| !self.is_named(domain) && self.was_never_saved(domain, error);
        let ended = |turn: &Turn<T>| match turn.ending {
            Ending::Skipped => tell_skipped(turn),
            _ => {
                show(turn);
                tell_error(turn);
            }
        };
        each.run(verb, may_skip, ended)
    }

    /// Collects the faults of a round. A round without any restore point is a fault, too, which is
    /// logged.
    pub(super) fn faults<T: Judged>(
        &self,
        round: &Round<T>,
        verb: &str,
        has_points: impl Fn(&T) -> bool,
    ) -> Faults {
        let mut faults = round.faults(&self.selection.unmatched);
        if faults.is_success() && !round.outcomes().any(has_points) {
            let what = nothing_in(self.repo, verb);
            log::error(&format!("{what}: none of these domains has a restore point"));
            faults.add(Fault::Nothing);
        }
        faults
    }

    fn is_named(&self, domain: &str) -> bool {
        self.typed.iter().any(|name| name == domain)
    }

    /// Whether the domain has a folder without restore points, as a killed first backup leaves it.
    /// A folder that disappeared since it was listed is an error.
    fn was_never_saved(&self, domain: &str, error: &Error) -> bool {
        let has_folder = || {
            self.repo
                .domain(domain)
                .is_ok_and(|repository| repository.exists())
        };
        matches!(error.cause, Cause::NoRestorePoints) && has_folder()
    }
}

/// A hint at backups of virtnbdbackup in the repository's folder.
pub(super) fn sets_hint(repo: &dyn Repository) -> Option<String> {
    let location = repo.sets_location()?;
    Some(format!(
        "the folder holds backups of virtnbdbackup: to read them, give {location} instead of the folder's path"
    ))
}

/// The beginning of a message that there is nothing to do.
fn nothing_in(repo: &dyn Repository, verb: &str) -> String {
    format!("there is nothing to {verb} in {}", repo.location())
}
