//! Copies the disks of an active job into images, several at a time, and watches the job.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::final_level::{FinalLevel, reason_for_full};
use super::spot::SpotCheck;
use crate::host::{BackupJob, ReadOptions};
use crate::model::block::{Beneath, Written};
use crate::model::compression::Compression;
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::restore_point::DiskPoint;
use crate::model::stop::{Stop, StopReason};
use crate::ops::copy::{self, DEADLINE, Progress};
use crate::ops::error::Cause;
use crate::ops::monitor::Event;
use crate::ops::plan::{BackupPlan, PlannedDisk};
use crate::ops::{Context, Error, Result, job};
use crate::repo::{DomainRepository, FileEntry, History, Kept, NewDisk, ParentDisk, PendingPoint};

/// The largest number of disks copied at the same time. Each has a reader thread, a writer thread
/// and its own buffers.
const AT_ONCE: usize = 4;

/// The longest time between two checks for a request to stop.
const GLANCE: Duration = Duration::from_millis(100);

/// The number of checks for a request to stop between two checks of the job's health.
const LOOKS_PER_HEALTH_CHECK: u32 = 10;

/// A disk that was copied into its image.
pub(crate) struct CopiedDisk {
    /// Its description in the manifest.
    pub point: DiskPoint,
    /// The manifest's entry for its image.
    pub file: FileEntry,
    /// The reason, if the disk is full although it was planned as incremental.
    pub finding: Option<Finding>,
}

/// Copies every disk of the plan. The first failure stops all copies. `seed` chooses the clusters
/// of the spot checks.
pub(crate) fn copy_all(
    domain: &Domain,
    plan: &BackupPlan,
    (repository, history): (&dyn DomainRepository, &History),
    pending: &dyn PendingPoint,
    job: &dyn BackupJob,
    context: &Context,
    (seed, compression): (u64, Compression),
) -> Result<Vec<CopiedDisk>> {
    let stop = context.stop.child();
    let queue: Mutex<VecDeque<usize>> = Mutex::new((0..plan.disks.len()).collect());
    let worker = Worker {
        domain,
        plan,
        repository,
        history,
        pending,
        job,
        context,
        seed,
        compression,
        stop: &stop,
        queue: &queue,
    };
    let (sender, results) = channel();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(plan.disks.len()) {
            let sender = sender.clone();
            let worker = &worker;
            scope.spawn(move || worker.work(&sender));
        }
        drop(sender);
        let mut copied: Vec<Option<CopiedDisk>> = plan.disks.iter().map(|_| None).collect();
        let mut failure: Option<Error> = None;
        let mut looks = 0;
        loop {
            match results.recv_timeout(GLANCE) {
                Ok((index, Ok(disk))) => copied[index] = Some(disk),
                Ok((_, Err(error))) => {
                    stop.request(StopReason::OtherPartFailed);
                    // The other copies then only report that they were stopped.
                    if failure.as_ref().is_none_or(Error::is_stopped) {
                        failure = Some(error);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    looks += 1;
                    if let Some(trouble) = look(domain, job, context, looks)
                        && failure.is_none()
                    {
                        stop.request(StopReason::OtherPartFailed);
                        failure = Some(trouble);
                    }
                }
            }
        }
        match failure {
            Some(error) => Err(reason_of(error, domain, job, context)),
            None => all_of(copied).ok_or_else(|| stopped(domain, context)),
        }
    })
}

/// Returns the disks if all of them were copied. After a request to stop, a disk may still be in
/// the queue although no copy failed.
fn all_of(copied: Vec<Option<CopiedDisk>>) -> Option<Vec<CopiedDisk>> {
    copied.into_iter().collect()
}

fn stopped(domain: &Domain, context: &Context) -> Error {
    Error::of(
        &domain.name,
        Cause::Stopped(context.stop.reason().unwrap_or(StopReason::OtherPartFailed)),
    )
}

/// Looks for a reason to give up: a request to stop, or trouble with the job.
fn look(domain: &Domain, job: &dyn BackupJob, context: &Context, looks: u32) -> Option<Error> {
    if let Some(reason) = context.stop.reason() {
        return Some(Error::of(&domain.name, Cause::Stopped(reason)));
    }
    if !looks.is_multiple_of(LOOKS_PER_HEALTH_CHECK) {
        return None;
    }
    job::trouble(&domain.name, job)
}

/// Finds the real cause of a failed copy: a connection often breaks because of the user's signal,
/// or because the job has ended.
fn reason_of(error: Error, domain: &Domain, job: &dyn BackupJob, context: &Context) -> Error {
    if let Some(reason) = context.stop.reason() {
        return Error::of(&domain.name, Cause::Stopped(reason));
    }
    match &error.cause {
        Cause::Copy(_) | Cause::Host(_) => job::trouble(&domain.name, job).unwrap_or(error),
        _ => error,
    }
}

struct Worker<'a> {
    domain: &'a Domain,
    plan: &'a BackupPlan,
    repository: &'a dyn DomainRepository,
    history: &'a History,
    pending: &'a dyn PendingPoint,
    job: &'a dyn BackupJob,
    context: &'a Context<'a>,
    seed: u64,
    compression: Compression,
    stop: &'a Stop,
    queue: &'a Mutex<VecDeque<usize>>,
}

impl Worker<'_> {
    fn work(&self, results: &Sender<(usize, Result<CopiedDisk>)>) {
        loop {
            let next = self
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some(index) = next.filter(|_| !self.stop.requested()) else {
                return;
            };
            let copied = self.copy_disk(&self.plan.disks[index]);
            if results.send((index, copied)).is_err() {
                return;
            }
        }
    }

    fn copy_disk(&self, planned: &PlannedDisk) -> Result<CopiedDisk> {
        let domain = &self.domain.name;
        let target = &planned.disk.target;
        let failed = |cause: Cause| Error::of_disk(domain, target, cause);
        let size = self
            .job
            .disk_size(target, DEADLINE, self.stop)
            .map_err(|error| failed(error.into()))?;
        let mut level =
            FinalLevel::of(planned, size, (self.repository, self.history), self.stop).map_err(failed)?;
        self.begins(target, &level, size);
        let mut copied = self.copy_image(planned, &level, size);
        if let Err(error) = &copied
            && let Some(reason) = reason_for_full(&error.cause).filter(|_| level.parent.is_some())
        {
            // The chain is closed before the second try: the first one may have run out of open
            // files.
            level = FinalLevel::full(reason);
            self.begins(target, &level, size);
            copied = self.copy_image(planned, &level, size);
        }
        let written = copied?;
        let finding = level.finding(planned);
        if let Some(finding) = &finding {
            self.context.monitor.event(Event::Found { domain, finding });
        }
        self.context.monitor.event(Event::DiskEnds {
            domain,
            disk: target,
            copied: written.data_bytes,
        });
        let parent = self.parent(&level);
        let file = self.pending.entry(target, &written);
        Ok(CopiedDisk {
            point: DiskPoint {
                target: target.clone(),
                level: level.level(),
                reason: level.reason,
                parent_manifest: parent.map(|kept| kept.manifest.digest.clone()),
                parent: level.parent.map(|parent| parent.id),
                checkpointed: planned.checkpointed,
                virtual_size: size,
                source: planned.disk.source.text(),
                source_file: planned.source_file,
                source_format: planned.disk.format.word().to_owned(),
                decrypted: Some(planned.disk.is_encrypted()),
                image: file.name.clone(),
                data_bytes: written.data_bytes,
                zero_bytes: written.zero_bytes,
                compression: written.is_compressed.then(|| "zstd".to_owned()),
            },
            file,
            finding,
        })
    }

    /// Returns the restore point that the disk's image depends on.
    fn parent(&self, level: &FinalLevel) -> Option<&Kept> {
        self.history.get(&level.parent.as_ref()?.id)
    }

    fn begins(&self, disk: &str, level: &FinalLevel, size: u64) {
        self.context.monitor.event(Event::DiskBegins {
            domain: &self.domain.name,
            disk,
            level: Some(level.level()),
            reason: &level.reason,
            size,
        });
    }

    fn copy_image(&self, planned: &PlannedDisk, level: &FinalLevel, size: u64) -> Result<Written> {
        let domain = &self.domain.name;
        let target = &planned.disk.target;
        let options = ReadOptions {
            changes_only: level.parent.is_some(),
            only: None,
            all_from: level
                .parent
                .as_ref()
                .map(|parent| parent.virtual_size)
                .filter(|before| *before < size),
            beneath: level
                .parent
                .as_ref()
                .map(|parent| Arc::new(ParentDisk(Arc::clone(&parent.disk))) as Arc<dyn Beneath>),
            pool: copy::pool(),
            deadline: DEADLINE,
            stop: self.stop.clone(),
        };
        let mut source = self
            .job
            .open(target, &options)
            .map_err(|error| Error::of_disk(domain, target, error))?;
        let disk = NewDisk {
            target,
            size,
            parent: self.parent(level),
            compression: self.compression,
            stop: self.stop.clone(),
        };
        let mut sink = self
            .pending
            .sink(&disk)
            .map_err(|error| Error::of_disk(domain, target, error))?;
        let mut progress = |at: Progress| {
            self.context.monitor.event(Event::DiskAt {
                domain,
                disk: target,
                position: at.position,
                copied: at.copied,
            });
        };
        let failed = |cause: Cause| Error::of_disk(domain, target, cause);
        let Some(parent) = &level.parent else {
            let copied = copy::copy_export(source.as_mut(), sink.as_mut(), self.stop, &mut progress);
            return copied.map_err(|error| failed(Cause::Copy(error)));
        };
        let spots = SpotCheck::choose(Arc::clone(&parent.disk), parent.virtual_size, self.seed);
        let mut spots = spots.map_err(|error| failed(Cause::Copy(error)))?;
        let mut watched = spots.watch(source.as_mut());
        let copied = copy::copy_export(&mut watched, sink.as_mut(), self.stop, &mut progress);
        let written = copied.map_err(|error| failed(Cause::Copy(error)))?;
        spots.compare(self.job, target, self.stop).map_err(failed)?;
        Ok(written)
    }
}
