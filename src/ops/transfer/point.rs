//! Copies one restore point.

use super::plan::is_same;
use super::{CopiedPoint, Work};
use crate::model::block::{BlockError, BlockErrorKind, Written};
use crate::model::restore_point::{CopiedFrom, DiskPoint, Level, RestorePoint};
use crate::model::text::with_sources;
use crate::ops::copy::{self, Progress};
use crate::ops::monitor::Event;
use crate::ops::{Cause, Error, Result};
use crate::repo::{
    FileEntry, History, Kept, Manifest, NewDisk, PendingPoint, RepoError, SmallFile, SourceOptions,
};

/// The transfer of one restore point.
pub(super) struct PointTransfer<'a> {
    pub(super) work: &'a Work<'a>,
    /// The original.
    pub(super) kept: &'a Kept,
    /// The target's restore points now.
    pub(super) to: &'a History,
}

impl PointTransfer<'_> {
    /// Copies the restore point, and commits the copy.
    pub(super) fn run(&self) -> Result<CopiedPoint> {
        let failed = |error: RepoError| self.failed(error);
        let point = &self.kept.manifest.point;
        let pending = self.work.locked.begin_with_id(&point.period, &point.id);
        let mut pending = pending.map_err(failed)?;
        let mut files = Vec::new();
        let mut disks = Vec::new();
        for disk in &point.disks {
            let (file, disk) = self.copy_disk(pending.as_ref(), disk)?;
            files.push(file);
            disks.push(disk);
        }
        files.extend(self.copy_files(pending.as_ref())?);
        let copy = self.describe(disks);
        let manifest = Manifest::new(&self.kept.manifest.host, copy, files, None);
        let location = pending.commit(&manifest).map_err(failed)?;
        Ok(CopiedPoint {
            id: point.id.clone(),
            location,
            data_bytes: manifest.point.data_bytes(),
            stored_bytes: manifest.files.iter().map(FileEntry::stored).sum(),
        })
    }

    /// Copies a disk. Where the target has a copy of its parent, only what the disk changed; in
    /// full if that parent proves to be damaged.
    fn copy_disk(&self, pending: &dyn PendingPoint, disk: &DiskPoint) -> Result<(FileEntry, DiskPoint)> {
        let mut parent = self.parent_of(disk);
        let mut written = self.copy_blocks(pending, disk, parent);
        if parent.is_some() && matches!(&written, Err(Cause::Copy(error)) if is_damage(error)) {
            parent = None;
            written = self.copy_blocks(pending, disk, parent);
        }
        let written = written.map_err(|cause| self.failed_at(&disk.target, cause))?;
        let file = pending.entry(&disk.target, &written);
        let copy = DiskPoint {
            level: level_on(parent),
            reason: reason_on(parent, disk),
            parent: parent.map(|parent| parent.manifest.point.id.clone()),
            parent_manifest: parent.map(|parent| parent.manifest.digest.clone()),
            checkpointed: false,
            image: file.name.clone(),
            data_bytes: written.data_bytes,
            zero_bytes: written.zero_bytes,
            compression: written.is_compressed.then(|| "zstd".to_owned()),
            ..disk.clone()
        };
        Ok((file, copy))
    }

    /// Copies the blocks of a disk: those that it changed since this parent, or all.
    fn copy_blocks(
        &self,
        pending: &dyn PendingPoint,
        disk: &DiskPoint,
        parent: Option<&Kept>,
    ) -> std::result::Result<Written, Cause> {
        let (work, target) = (self.work, disk.target.as_str());
        let (domain, monitor) = (work.domain, work.means.monitor);
        let own_stop = work.means.stop.child();
        monitor.event(Event::DiskBegins {
            domain,
            disk: target,
            level: Some(level_on(parent)),
            reason: &reason_on(parent, disk),
            size: disk.virtual_size,
        });
        let reading = SourceOptions {
            above: parent.map(|parent| parent.manifest.point.id.clone()),
            pool: copy::pool(),
            stop: own_stop.clone(),
            past_caches: false,
        };
        let id = &self.kept.manifest.point.id;
        let mut source = work.source.open_source(work.from, id, target, &reading)?;
        let mut sink = pending.sink(&NewDisk {
            target,
            size: disk.virtual_size,
            parent,
            compression: work.options.compression,
            stop: own_stop.clone(),
        })?;
        let mut progress = |at: Progress| {
            monitor.event(Event::DiskAt {
                domain,
                disk: target,
                position: at.position,
                copied: at.copied,
            });
        };
        let written = copy::copy_chain(source.as_mut(), sink.as_mut(), &own_stop, &mut progress)?;
        monitor.event(Event::DiskEnds {
            domain,
            disk: target,
            copied: written.data_bytes,
        });
        Ok(written)
    }

    /// The copy of the disk's parent in the target, if both can be relied on.
    fn parent_of(&self, disk: &DiskPoint) -> Option<&Kept> {
        let (id, target) = (disk.parent.as_deref()?, disk.target.as_str());
        let original = self.work.from.get(id)?;
        let copy = self.to.get(id)?;
        // Where restore points hold whole disks, the difference from a parent cannot be read.
        let own = &self.kept.manifest.point.id;
        let line = self.work.from.chains.lineage(own, target).ok()?;
        let is_beneath = line.iter().skip(1).any(|kept| kept.point.id == id);
        let chains = &self.to.chains;
        let is_sound = chains.lineage(id, target).is_ok() && chains.suspected_damage(id, target).is_none();
        let is_copy = is_same(&original.manifest.point, &copy.manifest.point);
        (is_beneath && is_sound && is_copy).then_some(copy)
    }

    fn copy_files(&self, pending: &dyn PendingPoint) -> Result<Vec<FileEntry>> {
        let mut files = Vec::new();
        for file in [SmallFile::Definition, SmallFile::Nvram, SmallFile::Tpm] {
            if file.entry(&self.kept.manifest).is_none() {
                continue;
            }
            let content = self.work.source.read_file(self.kept, file);
            let content = content.map_err(|fault| {
                let id = self.kept.manifest.point.id.clone();
                self.failed(Cause::NotWhole { id, fault })
            })?;
            let entry = pending.put(file, &content);
            files.push(entry.map_err(|error| self.failed(error))?);
        }
        Ok(files)
    }

    /// The description of the copy. The checkpoint belongs to the original alone: what follows the
    /// copy is copied too.
    fn describe(&self, disks: Vec<DiskPoint>) -> RestorePoint {
        let original = &self.kept.manifest.point;
        let sequence = |id: &String| self.to.get(id).map(|kept| kept.manifest.point.sequence);
        let parents = disks.iter().filter_map(|disk| disk.parent.clone());
        let parent = parents.max_by_key(sequence);
        RestorePoint {
            level: match parent {
                Some(_) => Level::Incremental,
                None => Level::Full,
            },
            parent,
            checkpoint: None,
            disks,
            merged: None,
            copied_from: Some(CopiedFrom {
                repository: self.work.source.identity().id().map(str::to_owned),
                location: self.work.means.from.location(),
                manifest: self.kept.manifest.digest.clone(),
                time: self.work.means.now.timestamp(),
            }),
            ..original.clone()
        }
    }

    fn failed(&self, cause: impl Into<Cause>) -> Error {
        self.stopped()
            .unwrap_or_else(|| Error::of(self.work.domain, cause.into()))
    }

    fn failed_at(&self, target: &str, cause: Cause) -> Error {
        let is_stop = matches!(&cause, Cause::Copy(error) if copy::is_stop(error));
        let stopped = self.stopped().filter(|_| is_stop);
        stopped.unwrap_or_else(|| {
            let id = self.kept.manifest.point.id.clone();
            match cause {
                Cause::Copy(error) if is_damage(&error) => {
                    let fault = format!("disk {target}: {}", with_sources(&error));
                    Error::of_disk(self.work.domain, target, Cause::NotWhole { id, fault })
                }
                cause => Error::of_disk(self.work.domain, target, cause),
            }
        })
    }

    fn stopped(&self) -> Option<Error> {
        let reason = self.work.means.stop.reason()?;
        Some(Error::of(self.work.domain, Cause::Stopped(reason)))
    }
}

/// The level of a disk with this parent.
fn level_on(parent: Option<&Kept>) -> Level {
    match parent {
        Some(_) => Level::Incremental,
        None => Level::Full,
    }
}

/// Why the copy of a disk has its level.
fn reason_on(parent: Option<&Kept>, disk: &DiskPoint) -> String {
    match level_on(parent) == disk.level {
        true => disk.reason.clone(),
        false => "copied without its parent".to_owned(),
    }
}

fn is_damage(error: &BlockError) -> bool {
    error.kind == BlockErrorKind::Damaged
}
