//! Shows a restore point as files in a folder: `vmsnap mount`.
//!
//! Each disk is a raw file, read-only, beside the domain's definition and UEFI variables. Reads go
//! through a [`crate::repo::DiskReader`], so only bytes with a correct digest are returned. The
//! mount lasts until a stop is requested or until somebody unmounts it.
//!
//! * `files`: the files and their content.
//! * `serve`: answers the kernel's requests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use super::monitor::{Event, Monitor};
use super::stored::StoredPoint;
use super::{Cause, Error, Result, copy, restore};
use crate::host::fuse::{FuseMount, MountError, MountFolder};
use crate::model::block::{BlockError, BlockErrorKind};
use crate::model::finding::Finding;
use crate::model::restore_point::{DiskPoint, RestorePoint};
use crate::model::stop::Stop;
use crate::model::text::{shown, with_sources};
use crate::repo::{DomainRepository, History, Repository, SmallFile};
use crate::wait;

mod files;
mod serve;

pub use files::{MountedFile, MountedFiles};
use serve::{FailedRead, Service};

/// How often a mount looks for a request to stop.
const GLANCE: Duration = Duration::from_millis(100);

/// How long the end of the session may take after the file system was unmounted.
const END: Duration = Duration::from_secs(2);

/// The number of failed reads that wait to be reported.
const WAITING: usize = 16;

/// The most places of failed reads that are reported one by one.
const MOST_PLACES: usize = 1000;

/// The options of a mount.
#[derive(Clone, Debug)]
pub struct Options {
    /// Selects the restore point, as `vmsnap restore --at` does.
    pub at: String,
    /// The folder on which it is mounted. It must be empty, and not be a mount point.
    pub dir: PathBuf,
    /// Whether other users may read the files.
    pub allow_other: bool,
}

/// The environment of a mount.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The repository of the restore point.
    pub repo: &'a dyn Repository,
    /// The receiver of events.
    pub monitor: &'a dyn Monitor,
    /// The request to unmount.
    pub stop: &'a Stop,
}

/// A restore point whose files can be mounted.
#[derive(Debug)]
pub struct MountedPoint {
    /// The restore point.
    pub point: RestorePoint,
    /// Its files.
    pub files: Arc<MountedFiles>,
    /// The findings: damage that hides whole files.
    pub findings: Vec<Finding>,
    /// Keeps merges from replacing files that are read.
    _history: History,
}

/// How a mount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountEnding {
    /// After a request to stop.
    Stopped,
    /// Somebody else unmounted it.
    Unmounted,
}

/// The result of a mount that has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: MountEnding,
    /// The number of requests that failed.
    pub failed_reads: u64,
    /// Whether a read failed because stored data is damaged.
    pub is_damaged: bool,
}

/// Opens the files of a restore point. A file that cannot be read because of damage is included;
/// reading it fails.
///
/// # Errors
/// There is no such restore point, damage hides all of its disks, or something cannot be read for a
/// reason other than damage.
pub fn open(domain: &str, at: &str, repo: &dyn Repository, stop: &Stop) -> Result<MountedPoint> {
    let failed = |cause: Cause| match stop.reason() {
        Some(reason) => Error::of(domain, Cause::Stopped(reason)),
        None => Error::of(domain, cause),
    };
    let repository = repo.domain(domain).map_err(|error| failed(error.into()))?;
    let history = repository.history().map_err(|error| failed(error.into()))?;
    let point = restore::choose(domain, &history, at)?.point.clone();
    let kept = history.get(&point.id).ok_or_else(|| {
        let (id, fault) = (point.id.clone(), "it is missing".to_owned());
        failed(Cause::NotWhole { id, fault })
    })?;
    let mut files = MountedFiles::default();
    let mut findings = Vec::new();
    let mut hidden = None;
    for disk in &point.disks {
        let name = format!("{}.raw", disk.target);
        let file = match open_disk(repository.as_ref(), &history, &point, disk, stop) {
            Ok(file) => file,
            Err(cause) if is_damage(&cause) => {
                let what = format!("{} cannot be read: {}", shown(&name), with_sources(&cause));
                findings.push(Finding::of_disk("disk-not-readable", &disk.target, what.clone()));
                hidden.get_or_insert(Error::of_disk(domain, &disk.target, cause));
                MountedFile::damaged(name, disk.virtual_size, what)
            }
            Err(cause) => {
                return Err(Error {
                    disk: Some(disk.target.clone()),
                    ..failed(cause)
                });
            }
        };
        // Manifests with two disks of one name are refused.
        let _ = files.add(file);
    }
    if let Some(error) = hidden.filter(|_| files.all().iter().all(MountedFile::is_damaged)) {
        return Err(error);
    }
    let stored = StoredPoint {
        repository: repository.as_ref(),
        kept,
    };
    for small in [SmallFile::Definition, SmallFile::Nvram] {
        let Some(entry) = small.entry(&kept.manifest) else {
            continue;
        };
        let file = match stored.read(small) {
            Ok(bytes) => MountedFile::small(small.name(), bytes),
            Err(error) if error.cause.is_no_verdict() || stop.requested() => return Err(failed(error.cause)),
            Err(error) => {
                let what = with_sources(&error.cause);
                findings.push(Finding::new("file-not-readable", what.clone()));
                MountedFile::damaged(small.name().to_owned(), entry.size, what)
            }
        };
        let _ = files.add(file);
    }
    Ok(MountedPoint {
        point,
        files: Arc::new(files),
        findings,
        _history: history,
    })
}

fn open_disk(
    repository: &dyn DomainRepository,
    history: &History,
    point: &RestorePoint,
    disk: &DiskPoint,
    stop: &Stop,
) -> std::result::Result<MountedFile, Cause> {
    let reader = repository.open_disk(history, &point.id, &disk.target, stop)?;
    let allocated = files::allocated(reader.size(), data_of_chain(history, point, disk));
    let name = format!("{}.raw", disk.target);
    Ok(MountedFile::disk(name, reader, allocated))
}

/// The number of bytes that all images of a disk's chain store; `None` if the first one is not
/// full.
fn data_of_chain(history: &History, point: &RestorePoint, disk: &DiskPoint) -> Option<u64> {
    let line = history.chains.lineage(&point.id, &disk.target).ok()?;
    let disks: Vec<&DiskPoint> = line
        .iter()
        .filter_map(|step| step.point.disk(&disk.target))
        .collect();
    let is_whole = disks.last().is_some_and(|first| first.parent.is_none());
    let sum = disks
        .iter()
        .map(|disk| disk.data_bytes)
        .fold(0, u64::saturating_add);
    is_whole.then_some(sum)
}

/// Whether an error shows damage, and not only that something cannot be read now.
fn is_damage(cause: &Cause) -> bool {
    let is_stopped = matches!(cause, Cause::Copy(error) if copy::is_stop(error));
    !is_stopped && !cause.is_no_verdict()
}

/// Mounts a restore point, calls `ready` once its files can be read, and returns when the mount has
/// ended.
///
/// # Errors
/// The errors of [`open`]; or the folder cannot be used, something that mounting needs is missing,
/// or the file system cannot be unmounted.
pub fn mount(
    domain: &str,
    means: &Means<'_>,
    options: &Options,
    ready: &mut dyn FnMut(&MountedPoint),
) -> Result<Outcome> {
    let failed = |error: MountError| Error::of(domain, error);
    let folder = MountFolder::of(&options.dir).map_err(failed)?;
    let mounted = open(domain, &options.at, means.repo, means.stop)?;
    let mut report = Report::new(domain, &mounted, means.monitor);
    let (mount, device) = folder.mount(options.allow_other).map_err(failed)?;
    let (sender, failures) = mpsc::sync_channel(WAITING);
    let failed_reads = Arc::default();
    let service = Service {
        files: Arc::clone(&mounted.files),
        time: SystemTime::from(mounted.point.time),
        allow_other: options.allow_other,
        failures: sender,
        failed: Arc::clone(&failed_reads),
    };
    let session = service.start(device).and_then(|session| {
        let run = move || session.run();
        thread::Builder::new().name("mount".to_owned()).spawn(run)
    });
    let session = match session {
        Ok(session) => session,
        Err(error) => {
            // The first error is the one to report.
            let _ = mount.unmount();
            return Err(failed(no_session(mount.path(), &error)));
        }
    };
    ready(&mounted);
    let end = wait_for_end(&session, &failures, &mut report, means.stop);
    if end == MountEnding::Stopped {
        mount.unmount().map_err(failed)?;
        // Without the kernel's control files, a process that has a file open keeps the session
        // going until this process ends.
        wait::until(END, GLANCE / 10, || session.is_finished().then_some(()));
    }
    failures.try_iter().for_each(|failure| report.add(&failure));
    if end == MountEnding::Unmounted || session.is_finished() {
        end_of(session, &mount).map_err(failed)?;
    }
    Ok(Outcome {
        end,
        failed_reads: failed_reads.load(Ordering::Relaxed),
        is_damaged: report.is_damaged,
    })
}

/// Reports failed reads until a stop is requested or the session has ended.
fn wait_for_end(
    session: &JoinHandle<std::io::Result<()>>,
    failures: &Receiver<FailedRead>,
    report: &mut Report<'_>,
    stop: &Stop,
) -> MountEnding {
    loop {
        match failures.recv_timeout(GLANCE) {
            Ok(failure) => report.add(&failure),
            Err(RecvTimeoutError::Timeout) => {}
            // The session drops the sender at its end.
            Err(RecvTimeoutError::Disconnected) => return MountEnding::Unmounted,
        }
        if session.is_finished() {
            return MountEnding::Unmounted;
        }
        if stop.requested() {
            return MountEnding::Stopped;
        }
    }
}

/// The result of a session that has ended.
fn end_of(
    session: JoinHandle<std::io::Result<()>>,
    mount: &FuseMount,
) -> std::result::Result<(), MountError> {
    let ended = session.join();
    let ended = ended.unwrap_or_else(|_| Err(std::io::Error::other("a thread ended unexpectedly")));
    ended.map_err(|error| {
        // Nobody answers any more, so the mount must not stay.
        let _ = mount.unmount();
        no_session(mount.path(), &error)
    })
}

fn no_session(path: &Path, error: &std::io::Error) -> MountError {
    MountError::Failed {
        operation: "serve files at",
        path: path.to_owned(),
        message: error.to_string(),
    }
}

/// Reports damage and failed reads, each place once.
struct Report<'a> {
    domain: &'a str,
    monitor: &'a dyn Monitor,
    seen: BTreeSet<String>,
    is_damaged: bool,
}

impl<'a> Report<'a> {
    fn new(domain: &'a str, mounted: &MountedPoint, monitor: &'a dyn Monitor) -> Report<'a> {
        for finding in &mounted.findings {
            monitor.event(Event::Found { domain, finding });
        }
        Report {
            domain,
            monitor,
            seen: mounted
                .findings
                .iter()
                .map(|finding| finding.message.clone())
                .collect(),
            is_damaged: !mounted.findings.is_empty(),
        }
    }

    fn add(&mut self, failure: &FailedRead) {
        let FailedRead { file, error } = failure;
        self.is_damaged |= error.kind == BlockErrorKind::Damaged;
        if self.seen.len() >= MOST_PLACES || !self.seen.insert(with_sources(error)) {
            return;
        }
        self.found(&finding(file, error));
        if self.seen.len() == MOST_PLACES {
            let what = format!("reads failed at {MOST_PLACES} places; further failures are not reported");
            self.found(&Finding::new("read-failed", what));
        }
    }

    fn found(&self, finding: &Finding) {
        let domain = self.domain;
        self.monitor.event(Event::Found { domain, finding });
    }
}

fn finding(file: &str, error: &BlockError) -> Finding {
    let what = format!("a read of {} failed: {}", shown(file), with_sources(error));
    match file.strip_suffix(".raw") {
        Some(disk) => Finding::of_disk("read-failed", disk, what),
        None => Finding::new("read-failed", what),
    }
}

#[cfg(test)]
mod tests;
