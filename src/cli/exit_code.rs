//! Every exit code, in one place.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::model::stop::StopReason;
use crate::ops::each::{Fault, Faults};
use crate::ops::{Class, Error};

/// The verb whose failures an exit code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `backup`.
    Backup,
    /// `scrub`.
    Scrub,
    /// A verb whose failures have no code of their own.
    Other,
}

/// The exit code of the program. The numbers up to 10 are the classic ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Everything that was requested was done.
    Ok,
    /// No domain was given where one is required, a name or pattern matched none, the domain,
    /// restore point or disk does not exist, or there is nothing to prune, verify or compare.
    NoDomains,
    /// No repository was given where one is required, or the given one cannot be used.
    NoRepository,
    /// Any other failure, including (except for a scrub) a lock held by another run.
    Failed,
    /// A program or library is missing.
    Missing,
    /// The lock could not be released.
    LockNotReleased,
    /// More than one command.
    SeveralCommands,
    /// The scrub of at least one domain failed; the others were still scrubbed.
    ScrubFailed,
    /// `--scrub-type` is missing or invalid.
    ScrubType,
    /// The backup of at least one domain failed or was partial; the others were still backed up.
    BackupFailed,
    /// `--group-by` is invalid, or differs from the grouping of the domain's backups.
    GroupBy,
    /// Stored data is damaged, or differs from the domain.
    Damaged,
    /// A guest that was started from a restore point did not come as far as it should.
    NotProven,
    /// An unknown command or switch, an invalid value, or a request that contradicts itself or
    /// conflicts with something that exists.
    Usage,
    /// Stopped by a signal.
    Signal(i32),
}

impl ExitCode {
    /// All codes except those of signals, in the order of their numbers.
    pub const ALL: [ExitCode; 14] = [
        ExitCode::Ok,
        ExitCode::NoDomains,
        ExitCode::NoRepository,
        ExitCode::Failed,
        ExitCode::Missing,
        ExitCode::ScrubFailed,
        ExitCode::LockNotReleased,
        ExitCode::SeveralCommands,
        ExitCode::ScrubType,
        ExitCode::BackupFailed,
        ExitCode::GroupBy,
        ExitCode::Damaged,
        ExitCode::NotProven,
        ExitCode::Usage,
    ];

    /// The number that the shell gets.
    pub fn number(self) -> i32 {
        match self {
            ExitCode::Ok => 0,
            ExitCode::NoDomains => 1,
            ExitCode::NoRepository => 2,
            ExitCode::Failed => 3,
            ExitCode::Missing => 4,
            ExitCode::LockNotReleased => 6,
            ExitCode::SeveralCommands => 7,
            ExitCode::ScrubFailed => 5,
            ExitCode::ScrubType => 8,
            ExitCode::BackupFailed => 9,
            ExitCode::GroupBy => 10,
            ExitCode::Damaged => 11,
            ExitCode::NotProven => 12,
            ExitCode::Usage => 64,
            ExitCode::Signal(signal) => 128 + signal,
        }
    }

    /// The meaning of the code.
    pub fn meaning(self) -> &'static str {
        match self {
            ExitCode::Ok => "everything that was requested was done",
            ExitCode::NoDomains => {
                "no domain was given where one is required, a given name or pattern matched none, \
                 the domain, restore point or disk does not exist, or there is nothing to prune, verify or compare"
            }
            ExitCode::NoRepository => {
                "no repository was given where one is required, or the given one cannot be used"
            }
            ExitCode::Failed => {
                "any other failure, for example output that cannot be written, or (except for scrub) a lock held by another run"
            }
            ExitCode::Missing => "a required program or library is missing",
            ExitCode::LockNotReleased => {
                "the lock could not be released (this code is unused: the kernel releases the lock when the process ends)"
            }
            ExitCode::SeveralCommands => "more than one command was given",
            ExitCode::ScrubFailed => "the scrub of at least one domain failed; the others were scrubbed",
            ExitCode::ScrubType => "--scrub-type is missing or invalid",
            ExitCode::BackupFailed => {
                "the backup of at least one domain failed or was partial; the others were backed up"
            }
            ExitCode::GroupBy => {
                "--group-by is invalid, or differs from the grouping of the domain's backups (--force overrides)"
            }
            ExitCode::Damaged => {
                "stored data is damaged, or differs from the domain (verify --compare-live); this code takes precedence over all others except those of signals"
            }
            ExitCode::NotProven => {
                "a restore point is not proven: the guest that was started from it did not come as far as it should (verify --boot)"
            }
            ExitCode::Usage => {
                "an unknown command or switch, an invalid value, or a request that contradicts itself or conflicts with something that exists"
            }
            ExitCode::Signal(_) => "stopped by a signal (129 SIGHUP, 130 SIGINT, 143 SIGTERM)",
        }
    }

    /// The code for work that was stopped: 128 plus the number of the signal, as in a shell.
    pub(crate) fn of_stop(reason: StopReason) -> ExitCode {
        match reason {
            StopReason::Interrupted => ExitCode::Signal(SIGINT),
            StopReason::Terminated => ExitCode::Signal(SIGTERM),
            StopReason::HungUp => ExitCode::Signal(SIGHUP),
            StopReason::OtherPartFailed => ExitCode::Failed,
        }
    }

    /// The code with which another process of this program has ended.
    pub(crate) fn of_number(number: i32) -> ExitCode {
        let signals = [SIGHUP, SIGINT, SIGTERM].map(ExitCode::Signal);
        let mut known = ExitCode::ALL.into_iter().chain(signals);
        known
            .find(|code| code.number() == number)
            .unwrap_or(ExitCode::Failed)
    }

    /// The code for the faults of a run of this verb over several domains.
    pub fn of_faults(faults: &Faults, verb: Verb) -> ExitCode {
        let codes = faults
            .kinds()
            .iter()
            .map(|fault| ExitCode::of_fault(*fault, verb));
        ExitCode::worst(codes)
    }

    fn of_fault(fault: Fault, verb: Verb) -> ExitCode {
        match fault {
            Fault::Unmatched | Fault::Nothing => ExitCode::NoDomains,
            Fault::Failed(class) => ExitCode::of_class(class, verb),
            Fault::Partial => ExitCode::BackupFailed,
            Fault::NotPruned | Fault::Incomplete => ExitCode::Failed,
            Fault::Damaged => ExitCode::Damaged,
            Fault::NotProven => ExitCode::NotProven,
            Fault::Stopped(reason) => ExitCode::of_stop(reason),
        }
    }

    /// The code for a failure that concerns no single domain, or for the failure of a verb without
    /// a code of its own.
    pub fn of_error(error: &Error) -> ExitCode {
        ExitCode::of_class(error.class(), Verb::Other)
    }

    /// The code for the failure of a verb on one domain. Most failures of `backup` and `scrub` have
    /// a code of their own. A backup that another run's lock blocks ends with the general code 3.
    fn of_class(class: Class, verb: Verb) -> ExitCode {
        let own = match verb {
            Verb::Backup => ExitCode::BackupFailed,
            Verb::Scrub => ExitCode::ScrubFailed,
            Verb::Other => ExitCode::Failed,
        };
        match class {
            Class::NotFound => ExitCode::NoDomains,
            Class::Repository => ExitCode::NoRepository,
            Class::Damaged | Class::Usage | Class::Failed if verb != Verb::Other => own,
            Class::Damaged => ExitCode::Damaged,
            Class::Missing => ExitCode::Missing,
            Class::Stopped(reason) => ExitCode::of_stop(reason),
            Class::Usage => ExitCode::Usage,
            Class::GroupBy => ExitCode::GroupBy,
            Class::Locked if verb == Verb::Scrub => own,
            Class::Failed | Class::Locked => ExitCode::Failed,
        }
    }

    /// The code to end with: a signal takes precedence, then damage, then the lowest number.
    pub(crate) fn worst(codes: impl IntoIterator<Item = ExitCode>) -> ExitCode {
        let failures = codes.into_iter().filter(|code| *code != ExitCode::Ok);
        failures
            .min_by_key(|code| match code {
                ExitCode::Signal(signal) => (0, *signal),
                ExitCode::Damaged => (1, 0),
                other => (2, other.number()),
            })
            .unwrap_or(ExitCode::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_different_and_each_has_a_meaning() {
        let mut numbers: Vec<i32> = ExitCode::ALL.iter().map(|code| code.number()).collect();
        assert!(numbers.is_sorted());
        numbers.dedup();
        assert_eq!(numbers.len(), ExitCode::ALL.len());
        assert!(ExitCode::ALL.iter().all(|code| !code.meaning().is_empty()));
    }

    #[test]
    fn the_worst_code_wins() {
        use ExitCode::{BackupFailed, Damaged, Failed, NoDomains, Ok, Signal};
        assert_eq!(ExitCode::worst([]), Ok);
        assert_eq!(ExitCode::worst([Ok, BackupFailed, NoDomains]), NoDomains);
        assert_eq!(ExitCode::worst([Failed, Signal(2)]), Signal(2));
        assert_eq!(ExitCode::worst([NoDomains, Damaged]), Damaged);
        assert_eq!(ExitCode::worst([Damaged, Signal(15)]), Signal(15));
    }
}
