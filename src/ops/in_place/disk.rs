//! Compares one disk with the restore point, and writes the clusters that differ.

use std::sync::Arc;

use super::look;
use super::plan::{Basis, InPlaceDisk};
use crate::host::{ReadOptions, RewriteJob};
use crate::model::block::{Block, BlockError, BlockErrorKind, BlockSource, CLUSTER, Content, Written};
use crate::model::buffer::{Buffer, BufferPool};
use crate::model::clusters::{ClusterSet, DiskMap};
use crate::model::finding::Finding;
use crate::model::in_place::check_size;
use crate::model::restore_point::RestorePoint;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::ops::copy::{self, BUFFER_SIZE, DEADLINE, Progress};
use crate::ops::monitor::{Event, Monitor};
use crate::ops::{Cause, Error, Result};
use crate::repo::{DiskReader, DomainRepository, History, Stored};

/// The environment of the work on each disk.
pub(super) struct DiskWork<'a> {
    pub(super) domain: &'a str,
    /// The repository's part of the domain of the restore point.
    pub(super) repository: &'a dyn DomainRepository,
    /// Its history.
    pub(super) history: &'a History,
    pub(super) point: &'a RestorePoint,
    pub(super) job: &'a dyn RewriteJob,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) stop: &'a Stop,
}

/// A disk that was compared with the restore point.
pub(super) struct Compared {
    /// The disk at the restore point.
    wanted: Arc<dyn DiskReader>,
    /// How many bytes were compared.
    pub(super) bytes: u64,
    /// The clusters that differ.
    pub(super) differing: ClusterSet,
    /// A finding, if the disk was compared as a whole because of damage in the repository.
    pub(super) finding: Option<Finding>,
}

fn is_damage(cause: &Cause) -> bool {
    match cause {
        Cause::Copy(error) => error.kind == BlockErrorKind::Damaged,
        cause => matches!(cause, Cause::NotWhole { .. }),
    }
}

impl DiskWork<'_> {
    fn failed(&self, disk: &InPlaceDisk, cause: Cause) -> Error {
        match (self.stop.reason(), &cause) {
            (Some(reason), Cause::Copy(error)) if copy::is_stop(error) => {
                Error::of(self.domain, Cause::Stopped(reason))
            }
            (Some(reason), Cause::Host(crate::host::HostError::Stopped)) => {
                Error::of(self.domain, Cause::Stopped(reason))
            }
            _ => Error::of_disk(self.domain, &disk.target, cause),
        }
    }

    /// Whether a disk was written to since its present state was saved, if a bitmap shows that.
    pub(super) fn is_changed(&self, disk: &InPlaceDisk) -> Result<Option<bool>> {
        let changed = self.job.is_changed(&disk.target, DEADLINE, self.stop);
        changed.map_err(|error| self.failed(disk, error.into()))
    }

    /// Makes all earlier writes to a disk durable.
    pub(super) fn flush(&self, disk: &InPlaceDisk) -> Result<Written> {
        let sink = self.job.sink(&disk.target, DEADLINE, self.stop);
        let mut sink = sink.map_err(|error| self.failed(disk, error.into()))?;
        let flushed = sink.finish();
        flushed.map_err(|error| self.failed(disk, error.into()))
    }

    /// Compares a disk. All of its content that will be written is read here once, so damage in the
    /// repository is found before anything changes.
    pub(super) fn compare(&self, disk: &InPlaceDisk) -> Result<Compared> {
        let compared = self.compare_disk(disk);
        compared.map_err(|cause| self.failed(disk, cause))
    }

    fn compare_disk(&self, disk: &InPlaceDisk) -> std::result::Result<Compared, Cause> {
        let (target, stop) = (disk.target.as_str(), self.stop);
        let size = self.job.disk_size(target, DEADLINE, stop)?;
        check_size(target, self.point, (disk.size, Some(size)), disk.from.is_some())?;
        if size > ClusterSet::LARGEST_DISK {
            let what = format!("disk {target} is too large to be compared");
            return Err(Cause::Usage(what));
        }
        let wanted = self
            .repository
            .open_disk(self.history, &self.point.id, disk.in_point(), stop)?;
        let map = self.job.map(target, DEADLINE, stop)?;
        let (between, finding) = match self.recorded(disk, size, &map) {
            Ok(found) => (found, None),
            // Damage of another restore point costs only time.
            Err(cause) if is_damage(&cause) => (None, Some(self.compared_whole(target, &cause))),
            Err(cause) => return Err(cause),
        };
        let all = look::to_compare(&map, &wanted.verified_data_clusters()?, between.as_ref());
        // What is after the disk of the restore point stays.
        let mut clusters = ClusterSet::new(disk.size);
        all.ranges()
            .for_each(|(offset, length)| clusters.add(offset, length));
        let bytes = clusters.ranges().map(|(_, length)| length).sum();
        let differing = self.differing(disk, clusters, wanted.as_ref(), bytes)?;
        self.rehearse(&differing, wanted.as_ref())?;
        Ok(Compared {
            wanted,
            bytes,
            differing,
            finding,
        })
    }

    /// The clusters in which the restore point differs from the one since which the disk's bitmap
    /// has recorded writes. `None` if there is no such bitmap, or it must not be trusted.
    fn recorded(
        &self,
        disk: &InPlaceDisk,
        size: u64,
        map: &DiskMap,
    ) -> std::result::Result<Option<ClusterSet>, Cause> {
        let Basis::Changes { since, between } = &disk.basis else {
            return Ok(None);
        };
        let open = |id: &str| {
            self.repository
                .open_disk(self.history, id, &disk.target, self.stop)
        };
        // A bitmap that has missed a range that became zero may have missed more
        // (docs/adr/0006-unrecorded-zeroes.md).
        if !look::is_complete(map, open(&since.id)?.as_ref())? {
            return Ok(None);
        }
        let mut found = ClusterSet::new(size);
        if let Some(part) = between {
            let (newer, older) = (open(&part.newer)?, open(&part.older)?);
            found.add_all(&look::between(newer.as_ref(), older.as_ref(), part.steps)?);
        }
        // The bitmap says nothing about what the disk has gained.
        if since.virtual_size < size {
            found.add(since.virtual_size, size - since.virtual_size);
        }
        Ok(Some(found))
    }

    fn compared_whole(&self, target: &str, cause: &Cause) -> Finding {
        let why = with_sources(cause);
        let what =
            format!("disk {target} is compared as a whole, because another restore point is damaged: {why}");
        let finding = Finding::new("compared-as-a-whole", what);
        let domain = self.domain;
        self.monitor.event(Event::Found {
            domain,
            finding: &finding,
        });
        finding
    }

    /// Returns those of the clusters in which the disk differs from the restore point.
    fn differing(
        &self,
        disk: &InPlaceDisk,
        clusters: ClusterSet,
        wanted: &dyn DiskReader,
        size: u64,
    ) -> std::result::Result<ClusterSet, Cause> {
        let (domain, file) = (self.domain, disk.target.as_str());
        let mut differing = ClusterSet::new(disk.size);
        if size == 0 {
            return Ok(differing);
        }
        self.monitor.event(Event::FileBegins { domain, file, size });
        let mut done = 0;
        let compared = self.each(file, clusters, wanted, |offset, length, is_same| {
            if !is_same {
                differing.add(offset, length);
            }
            done += length;
            let position = done;
            self.monitor.event(Event::FileAt {
                domain,
                file,
                position,
            });
        });
        self.monitor.event(Event::FileEnds { domain, file });
        compared.map(|()| differing)
    }

    /// Reads clusters of the disk, and reports whether each is as in the restore point. Damage in
    /// the repository is an error.
    fn each(
        &self,
        target: &str,
        clusters: ClusterSet,
        wanted: &dyn DiskReader,
        mut report: impl FnMut(u64, u64, bool),
    ) -> std::result::Result<(), Cause> {
        let options = ReadOptions {
            changes_only: false,
            only: Some(Arc::new(clusters)),
            all_from: None,
            beneath: None,
            pool: copy::pool(),
            deadline: DEADLINE,
            stop: self.stop.clone(),
        };
        let mut live = self.job.open(target, &options)?;
        let zeroes = vec![0; CLUSTER as usize];
        // Verified bytes: after damage, a disk that is wrong could look right.
        let mut then = vec![0; CLUSTER as usize];
        while let Some(block) = live.next_block()? {
            let mut at = 0;
            let left = wanted.size().saturating_sub(block.offset);
            while at < block.length().min(left) {
                let length = CLUSTER.min(block.length().min(left) - at);
                let (start, end) = (at as usize, (at + length) as usize);
                let now = match &block.content {
                    Content::Data(bytes) => &bytes[start..end],
                    Content::Zero(_) => &zeroes[..length as usize],
                };
                let offset = block.offset + at;
                let then = &mut then[..now.len()];
                wanted.read_at(then, offset)?;
                report(offset, length, now == then);
                at += length;
            }
        }
        Ok(())
    }

    /// Reads what will be written, and drops it.
    fn rehearse(&self, differing: &ClusterSet, wanted: &dyn DiskReader) -> std::result::Result<(), Cause> {
        let mut source = Wanted::new(wanted, differing, self.stop);
        while source.next_block()?.is_some() {}
        Ok(())
    }

    /// Writes the clusters that differ, and makes them durable.
    pub(super) fn write(&self, disk: &InPlaceDisk, compared: &Compared) -> Result<Written> {
        let (domain, target) = (self.domain, disk.target.as_str());
        self.monitor.event(Event::DiskBegins {
            domain,
            disk: target,
            level: None,
            reason: "",
            size: disk.size,
        });
        let written = self.write_disk(disk, compared);
        let written = written.map_err(|cause| self.failed(disk, cause))?;
        self.monitor.event(Event::DiskEnds {
            domain,
            disk: target,
            copied: written.data_bytes,
        });
        Ok(written)
    }

    fn write_disk(&self, disk: &InPlaceDisk, compared: &Compared) -> std::result::Result<Written, Cause> {
        let target = disk.target.as_str();
        let own_stop = self.stop.child();
        let mut source = Wanted::new(compared.wanted.as_ref(), &compared.differing, &own_stop);
        let mut sink = self.job.sink(target, DEADLINE, &own_stop)?;
        let mut progress = |at: Progress| {
            self.monitor.event(Event::DiskAt {
                domain: self.domain,
                disk: target,
                position: at.position,
                copied: at.copied,
            });
        };
        let written = copy::copy_chain(&mut source, sink.as_mut(), &own_stop, &mut progress)?;
        drop(sink);
        let mut is_right = true;
        let differing = compared.differing.clone();
        self.each(target, differing, compared.wanted.as_ref(), |_, _, is_same| {
            is_right &= is_same;
        })?;
        match is_right {
            true => Ok(written),
            false => Err(Cause::NotAsWritten),
        }
    }
}

/// Clusters of a disk at a restore point, in the disk's order.
struct Wanted<'a> {
    disk: &'a dyn DiskReader,
    ranges: Box<dyn Iterator<Item = (u64, u64)> + Send + 'a>,
    /// The rest of the present range: its start and its end.
    rest: (u64, u64),
    pool: BufferPool,
    stop: Stop,
}

impl<'a> Wanted<'a> {
    fn new(disk: &'a dyn DiskReader, clusters: &'a ClusterSet, stop: &Stop) -> Wanted<'a> {
        Wanted {
            disk,
            ranges: Box::new(clusters.ranges()),
            rest: (0, 0),
            pool: copy::pool(),
            stop: stop.clone(),
        }
    }

    fn buffer(&self) -> std::result::Result<Buffer, BlockError> {
        loop {
            if self.stop.requested() {
                return Err(BlockError::stopped());
            }
            if let Some(buffer) = self.pool.take_within(std::time::Duration::from_millis(50)) {
                return Ok(buffer);
            }
        }
    }
}

impl BlockSource for Wanted<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn next_block(&mut self) -> std::result::Result<Option<Block>, BlockError> {
        if self.rest.0 == self.rest.1 {
            let Some((offset, length)) = self.ranges.next() else {
                return Ok(None);
            };
            self.rest = (offset, offset + length);
        }
        if self.stop.requested() {
            return Err(BlockError::stopped());
        }
        let (offset, end) = self.rest;
        // Zeroes are written without a read.
        let extent = self.disk.verified_extent_at(offset)?;
        // A disk ends where it does; the size was compared.
        let length = extent.map_or(end - offset, |extent| extent.length.min(end - offset));
        if extent.is_none_or(|extent| extent.stored == Stored::Zero) {
            self.rest.0 += length;
            return Ok(Some(Block {
                offset,
                content: Content::Zero(length),
            }));
        }
        let length = length.min(BUFFER_SIZE as u64);
        let mut buffer = self.buffer()?;
        buffer.set_len(length as usize);
        self.disk.read_at(&mut buffer, offset)?;
        self.rest.0 += length;
        Ok(Some(Block {
            offset,
            content: Content::Data(buffer),
        }))
    }
}
