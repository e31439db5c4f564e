//! Verifies one restore point: its files and, on request, its disks from end to end.

use std::collections::BTreeSet;

use super::Damage;
use crate::model::block::{BlockErrorKind, Content};
use crate::model::chain::KeptPoint;
use crate::model::restore_point::DiskPoint;
use crate::model::stop::{Stop, StopReason};
use crate::model::text::with_sources;
use crate::ops::monitor::{Event, Monitor};
use crate::ops::{Cause, Error, Result, copy};
use crate::repo::{DomainRepository, FileWatch, History, Kept, SourceOptions};

/// Verifies restore points of one domain.
pub(super) struct Prover<'a> {
    domain: &'a str,
    repository: &'a dyn DomainRepository,
    history: &'a History,
    monitor: &'a dyn Monitor,
    stop: &'a Stop,
    bytes: u64,
    /// The disks that were read from end to end and are sound: restore points and targets.
    read: BTreeSet<(String, String)>,
}

impl<'a> Prover<'a> {
    pub(super) fn new(
        domain: &'a str,
        repository: &'a dyn DomainRepository,
        history: &'a History,
        monitor: &'a dyn Monitor,
        stop: &'a Stop,
    ) -> Self {
        Prover {
            domain,
            repository,
            history,
            monitor,
            stop,
            bytes: 0,
            read: BTreeSet::new(),
        }
    }

    /// Returns the number of bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds the damage of a restore point to `damage`, which already contains the damage of its
    /// parents.
    ///
    /// # Errors
    /// The user asked to stop, or something could not be read for a reason other than damage.
    /// Damage that was found before that is in `damage` nevertheless.
    pub(super) fn prove(&mut self, kept: &Kept, deep: bool, damage: &mut Vec<Damage>) -> Result<()> {
        self.prove_files(kept, damage)?;
        for disk in &kept.manifest.point.disks {
            let (id, target) = (&kept.manifest.point.id, disk.target.as_str());
            let is_damaged = damage.iter().any(|damage| damage.disk.as_deref() == Some(target));
            match self.history.chains.lineage(id, target) {
                // Damage in its own files is in the list already. Damage in its parents is reported
                // with the parents.
                _ if is_damaged => {}
                Err(fault) => {
                    let what = format!("disk {target} of {id} cannot be restored: {fault}");
                    damage.push(Damage::found(what).of_disk(target));
                }
                Ok(line) if deep => {
                    let above = self.newest_read(&line, target);
                    match self.prove_disk(id, disk, above)? {
                        None => self.has_read(id, target),
                        found => damage.extend(found),
                    }
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    fn prove_files(&mut self, kept: &Kept, damage: &mut Vec<Damage>) -> Result<()> {
        let mut reading = Reading {
            domain: self.domain,
            monitor: self.monitor,
            position: 0,
            bytes: 0,
        };
        let mut found = Vec::new();
        let checked = self
            .repository
            .check_files(self.history, kept, &mut reading, self.stop, &mut found);
        self.bytes += reading.bytes;
        damage.extend(found.into_iter().map(Damage::from));
        checked.map_err(|error| match Cause::from(error) {
            Cause::Copy(error) if copy::is_stop(&error) => self.stopped(),
            cause => Error::of(self.domain, cause),
        })
    }

    /// The newest parent in this chain whose disk was read from end to end and is sound.
    ///
    /// Everything that the chain takes from this parent and from older images was read with the
    /// parent, because the parent's disk shows the same older data at these places. So each image
    /// of a chain is read once, however many restore points depend on the image.
    fn newest_read(&self, line: &[&KeptPoint], target: &str) -> Option<String> {
        let mut parents = line.iter().skip(1).map(|step| &step.point.id);
        let was_read = |id: &&String| self.read.contains(&((*id).clone(), target.to_owned()));
        parents.find(was_read).cloned()
    }

    fn has_read(&mut self, id: &str, target: &str) {
        self.read.insert((id.to_owned(), target.to_owned()));
    }

    /// Reads a disk from end to end, as a restore would, except what the restore point `above`
    /// holds of it.
    fn prove_disk(&mut self, id: &str, disk: &DiskPoint, above: Option<String>) -> Result<Option<Damage>> {
        let target = &disk.target;
        let name = format!("disk {target} of {id}");
        let domain = self.domain;
        let (file, size) = (name.as_str(), disk.virtual_size);
        self.monitor.event(Event::FileBegins { domain, file, size });
        let read = self.read_disk(id, disk, above, |position| {
            self.monitor.event(Event::FileAt {
                domain,
                file,
                position,
            });
        });
        self.monitor.event(Event::FileEnds { domain, file });
        match read {
            Ok(bytes) => {
                self.bytes += bytes;
                Ok(None)
            }
            Err(Cause::Copy(error)) if error.kind == BlockErrorKind::Stopped => Err(self.stopped()),
            Err(cause) if cause.is_no_verdict() => Err(Error::of_disk(domain, target, cause)),
            Err(cause) => {
                let what = format!("{name} cannot be restored: {}", with_sources(&cause));
                Ok(Some(Damage::found(what).of_disk(target)))
            }
        }
    }

    fn read_disk(
        &self,
        id: &str,
        disk: &DiskPoint,
        above: Option<String>,
        mut progress: impl FnMut(u64),
    ) -> std::result::Result<u64, Cause> {
        let options = SourceOptions {
            above,
            pool: copy::pool(),
            stop: self.stop.clone(),
            // The bytes on the disk are verified, not those in the page cache.
            past_caches: true,
        };
        let opened = self
            .repository
            .open_source(self.history, id, &disk.target, &options);
        let mut source = opened?;
        let mut bytes = 0;
        while let Some(block) = source.next_block().map_err(Cause::Copy)? {
            if matches!(block.content, Content::Data(_)) {
                bytes += block.length();
            }
            progress(block.offset + block.length());
        }
        Ok(bytes)
    }

    fn stopped(&self) -> Error {
        Error::of(
            self.domain,
            Cause::Stopped(self.stop.reason().unwrap_or(StopReason::Interrupted)),
        )
    }
}

/// Reports the progress of reading files, and counts their bytes.
struct Reading<'a> {
    domain: &'a str,
    monitor: &'a dyn Monitor,
    /// Bytes read of the current file.
    position: u64,
    bytes: u64,
}

impl FileWatch for Reading<'_> {
    fn begins(&mut self, file: &str, size: u64) {
        let domain = self.domain;
        self.position = 0;
        self.monitor.event(Event::FileBegins { domain, file, size });
    }

    fn at(&mut self, file: &str, position: u64) {
        let domain = self.domain;
        self.position = position;
        self.monitor.event(Event::FileAt {
            domain,
            file,
            position,
        });
    }

    fn ends(&mut self, file: &str) {
        let domain = self.domain;
        self.bytes += self.position;
        self.monitor.event(Event::FileEnds { domain, file });
    }
}
