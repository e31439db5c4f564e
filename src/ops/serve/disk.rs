//! A disk of a restore point as the NBD server reads it: verified, counted, and with findings about
//! what cannot be read.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::model::block::{BlockError, BlockErrorKind};
use crate::model::finding::Finding;
use crate::model::text::with_sources;
use crate::nbd::server::ExportDisk;
use crate::repo::{DiskReader, Stored};

/// The largest number of findings about one disk. Further failures are only counted.
const MOST_FINDINGS: usize = 100;

/// How much of a disk clients have read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// The number of bytes of data that they read; ranges that are reported as zero do not count.
    pub bytes: u64,
    /// How many reads failed because stored data is damaged.
    pub damaged: u64,
    /// How many reads failed for another reason.
    pub failed: u64,
}

/// What happened to the reads of a disk.
#[derive(Debug, Default)]
pub(super) struct Readings {
    bytes: AtomicU64,
    damaged: AtomicU64,
    failed: AtomicU64,
    found: Mutex<Found>,
    changed: Condvar,
}

/// The findings about a disk.
#[derive(Debug, Default)]
struct Found {
    /// The messages of all findings.
    known: HashSet<String>,
    /// The findings that nobody has taken.
    new: Vec<Finding>,
}

impl Readings {
    pub(super) fn counts(&self) -> ReadCounts {
        ReadCounts {
            bytes: self.bytes.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    /// Waits up to `at_most` for a finding, and returns all new findings.
    pub(super) fn take_findings(&self, at_most: Duration) -> Vec<Finding> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(found, at_most, |found| found.new.is_empty());
        let mut found = waited.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::take(&mut found.new)
    }

    /// Counts a failure, and keeps a finding about it unless there is the same already.
    fn note(&self, target: &str, error: &BlockError) {
        let is_damage = match error.kind {
            BlockErrorKind::Stopped => return,
            BlockErrorKind::Damaged | BlockErrorKind::Invalid => true,
            _ => false,
        };
        let count = if is_damage { &self.damaged } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
        let message = with_sources(error);
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.known.len() >= MOST_FINDINGS || !found.known.insert(message.clone()) {
            return;
        }
        found.new.push(match is_damage {
            true => Finding::of_disk("served-data-damaged", target, message),
            false => Finding::of_disk("served-data-unreadable", target, message),
        });
        self.changed.notify_all();
    }
}

/// A disk that is served.
#[derive(Debug)]
pub(super) struct ServedReader {
    target: String,
    reader: Arc<dyn DiskReader>,
    readings: Arc<Readings>,
}

impl ServedReader {
    pub(super) fn new(target: &str, reader: Arc<dyn DiskReader>, readings: Arc<Readings>) -> ServedReader {
        ServedReader {
            target: target.to_owned(),
            reader,
            readings,
        }
    }

    fn noted<T>(&self, result: Result<T, BlockError>) -> Result<T, BlockError> {
        result.inspect_err(|error| self.readings.note(&self.target, error))
    }
}

impl ExportDisk for ServedReader {
    fn size(&self) -> u64 {
        self.reader.size()
    }

    fn status_at(&self, offset: u64) -> Result<(u64, bool), BlockError> {
        let beyond = || {
            BlockError::new(
                BlockErrorKind::Invalid,
                format!("the disk ends before offset {offset}"),
            )
        };
        // A wrong table could hide data behind zeroes.
        let found = self.reader.verified_extent_at(offset);
        let found = found.and_then(|extent| extent.ok_or_else(beyond));
        let extent = self.noted(found)?;
        Ok((extent.length, extent.stored == Stored::Zero))
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), BlockError> {
        self.noted(self.reader.read_at(out, offset))?;
        self.readings.bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
