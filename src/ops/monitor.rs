//! Receives the events of the verbs: progress and findings.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Error, Result};
use crate::model::finding::Finding;
use crate::model::restore_point::Level;

/// An event to show while a verb works.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The work on a domain begins.
    DomainBegins {
        /// The domain.
        domain: &'a str,
        /// Its place among the domains, from 1.
        number: usize,
        /// The number of domains.
        of: usize,
    },
    /// The work on a domain has ended.
    DomainEnds {
        /// The domain.
        domain: &'a str,
        /// How the work ended.
        ending: Ending,
    },
    /// A step that may take a moment has begun.
    Step {
        /// The domain.
        domain: &'a str,
        /// What is being done, as a phrase (`making the checkpoint`).
        what: &'a str,
    },
    /// Another run writes to the domain's folder, and this one waits until it has ended.
    Waits {
        /// The domain.
        domain: &'a str,
        /// The description of the other run.
        holder: &'a str,
        /// The longest time that this run waits.
        at_most: Duration,
    },
    /// A disk is about to be copied.
    DiskBegins {
        /// The domain.
        domain: &'a str,
        /// The disk's target.
        disk: &'a str,
        /// Full or incremental; `None` for a restore.
        level: Option<Level>,
        /// The reason for the level; empty for a restore.
        reason: &'a str,
        /// Size of the disk, in bytes.
        size: u64,
    },
    /// A disk was copied up to a position.
    DiskAt {
        /// The domain.
        domain: &'a str,
        /// The disk's target.
        disk: &'a str,
        /// The offset on the disk, in bytes, before which everything is done.
        position: u64,
        /// The number of bytes of data copied so far.
        copied: u64,
    },
    /// A disk is done.
    DiskEnds {
        /// The domain.
        domain: &'a str,
        /// The disk's target.
        disk: &'a str,
        /// The number of bytes of data copied.
        copied: u64,
    },
    /// A file or a stored disk is about to be read.
    FileBegins {
        /// The domain.
        domain: &'a str,
        /// The file's path within the domain's folder, or words that name the disk.
        file: &'a str,
        /// Its size in bytes; in a comparison, the number of bytes to compare.
        size: u64,
    },
    /// A file or a stored disk was read up to a position.
    FileAt {
        /// The domain.
        domain: &'a str,
        /// The same text as in [`Event::FileBegins`].
        file: &'a str,
        /// The offset in bytes before which everything was read; in a comparison, the number of
        /// bytes compared so far.
        position: u64,
    },
    /// Reading a file or a stored disk has ended, or has failed.
    FileEnds {
        /// The domain.
        domain: &'a str,
        /// The same text as in [`Event::FileBegins`].
        file: &'a str,
    },
    /// A finding: something worth reporting that did not stop the work.
    Found {
        /// The domain.
        domain: &'a str,
        /// The finding.
        finding: &'a Finding,
    },
}

/// How the work on a domain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything that was requested was done.
    Done,
    /// The work ended without an error, but with a fault: a part is missing, or damage was found.
    Partial,
    /// The work failed.
    Failed,
    /// The domain was skipped: there was nothing to do, and the user did not name it.
    Skipped,
    /// The user asked to stop before the work was done, or before it began.
    Stopped,
}

impl Ending {
    /// Returns the word for this ending.
    pub fn word(self) -> &'static str {
        match self {
            Ending::Done => "done",
            Ending::Partial => "partial",
            Ending::Failed => "failed",
            Ending::Skipped => "skipped",
            Ending::Stopped => "stopped",
        }
    }
}

/// Receives events, from several threads at once. Never fails.
pub trait Monitor: Send + Sync {
    /// Receives an event. Must return quickly.
    fn event(&self, event: Event<'_>);
}

/// A monitor that ignores all events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn event(&self, _event: Event<'_>) {}
}

/// Passes events on, each finding only once, and keeps the findings for the error of a verb that
/// fails.
struct Notes<'a> {
    next: &'a dyn Monitor,
    findings: Mutex<Vec<Finding>>,
}

impl Monitor for Notes<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::Found { finding, .. } = &event {
            let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
            if findings.contains(finding) {
                return;
            }
            findings.push((*finding).clone());
        }
        self.next.event(event);
    }
}

/// Runs `work` with a monitor that passes each finding on once. An error carries the findings
/// reported before it.
pub(super) fn noting<T>(monitor: &dyn Monitor, work: impl FnOnce(&dyn Monitor) -> Result<T>) -> Result<T> {
    let notes = Notes {
        next: monitor,
        findings: Mutex::default(),
    };
    let result = work(&notes);
    let findings = notes
        .findings
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    result.map_err(|error| Error { findings, ..error })
}

/// Adds those of the `further` findings that are not in the list yet.
pub(super) fn add_new(findings: &mut Vec<Finding>, further: impl IntoIterator<Item = Finding>) {
    for finding in further {
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Cause;

    struct Count(Mutex<usize>);

    impl Monitor for Count {
        fn event(&self, _event: Event<'_>) {
            *self.0.lock().expect("no thread panicked") += 1;
        }
    }

    #[test]
    fn findings_pass_once_and_stay_with_the_error() {
        let count = Count(Mutex::new(0));
        let findings = ["a", "b", "a"].map(|code| Finding::new(code, "said"));
        let failed = noting(&count, |monitor| {
            for finding in &findings {
                let domain = "vm1";
                monitor.event(Event::Found { domain, finding });
            }
            Err::<(), _>(Error::of("vm1", Cause::NothingToBackUp))
        });
        assert_eq!(failed.expect_err("it fails").findings, findings[..2]);
        assert_eq!(count.0.into_inner().expect("no thread panicked"), 2);
    }
}
