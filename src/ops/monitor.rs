//! Whom the verbs tell how they are getting on. The terminal, silence and a recorder for tests are three of them.

use std::time::Duration;

use crate::model::finding::Finding;
use crate::model::restore_point::Level;

/// Something worth showing while a verb works.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A step that may take a moment has begun.
    Step {
        /// The domain.
        domain: &'a str,
        /// What is being done, as a phrase (`freezing the file systems`).
        what: &'a str,
    },
    /// Another run writes to the domain's folder, and this one waits until it has ended.
    Waits {
        /// The domain.
        domain: &'a str,
        /// The other run, as it wrote itself down.
        holder: &'a str,
        /// How long it waits at most.
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
        /// Why this level; empty for a restore.
        reason: &'a str,
        /// Size of the disk, in bytes.
        size: u64,
    },
    /// A disk is so far.
    DiskAt {
        /// The domain.
        domain: &'a str,
        /// The disk's target.
        disk: &'a str,
        /// Everything before this offset of the disk is done, in bytes.
        position: u64,
        /// Bytes of data copied so far.
        copied: u64,
    },
    /// A disk is done.
    DiskEnds {
        /// The domain.
        domain: &'a str,
        /// The disk's target.
        disk: &'a str,
        /// Bytes of data copied.
        copied: u64,
    },
    /// A file is about to be read.
    FileBegins {
        /// The domain.
        domain: &'a str,
        /// Its path within the domain's folder.
        file: &'a str,
        /// Its size, in bytes.
        size: u64,
    },
    /// A file is so far.
    FileAt {
        /// The domain.
        domain: &'a str,
        /// Its path within the domain's folder.
        file: &'a str,
        /// Everything before this offset is read, in bytes.
        position: u64,
    },
    /// A file is done.
    FileEnds {
        /// The domain.
        domain: &'a str,
        /// Its path within the domain's folder.
        file: &'a str,
    },
    /// Something that did not stop the work.
    Found {
        /// The domain.
        domain: &'a str,
        /// What.
        finding: &'a Finding,
    },
}

/// Takes events, from several threads at once, and never fails.
pub trait Monitor: Send + Sync {
    /// Called for every event; returns soon.
    fn event(&self, event: Event<'_>);
}

/// Silence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn event(&self, _event: Event<'_>) {}
}
