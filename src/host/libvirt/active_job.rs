//! A pull-mode backup job of an active domain, once it has begun.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;
use virt_sys as sys;

use super::freeze::ThawGuard;
use super::link::Link;
use super::{BackupJob, HostError, Places, Refusal, Result, checkpoints, failed, ffi, inspect, places};
use crate::host::export::Export;
use crate::host::{JobHealth, NewCheckpoint, ReadOptions};
use crate::model::block::BlockSource;
use crate::model::clusters::DiskMap;
use crate::model::domain::{Domain, DomainState};
use crate::model::finding::Finding;
use crate::model::restore_point::Consistency;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::wait;

/// How long QEMU may take to close what belonged to a job.
const ENDING: Duration = Duration::from_secs(15);

/// Ends the domain's backup job and waits until QEMU has closed what belonged to it. No job is no error.
pub fn end(handle: &Handle) -> Result<()> {
    match ffi::abort_job(handle) {
        Ok(()) => {}
        Err(error) if error.number == ErrorNumber::OperationInvalid => return Ok(()),
        Err(error) => return Err(failed("end the job")(error)),
    }
    let gone = wait::until(ENDING, Duration::from_millis(10), || {
        match inspect::active_job(handle) {
            Ok(Some(_)) => None,
            Ok(None) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        }
    });
    gone.unwrap_or_else(|| {
        Err(HostError::Libvirt {
            operation: "end the job".to_owned(),
            code: 0,
            message: format!("it still runs after {} s", ENDING.as_secs()),
        })
    })
}

/// A job that QEMU carries out for a running or paused domain.
pub struct ActiveDomainJob {
    pub link: Arc<Link>,
    pub domain: Domain,
    /// Whether the guest stood still because of a disk before the job: then it is not for the job to let it go on.
    pub stuck_before: bool,
    /// The disks of the job, with whether each tells its changes.
    pub bitmaps: Vec<(String, bool)>,
    pub socket: PathBuf,
    pub places: Places,
    /// The name asked for: known from the beginning, though it could not be read back.
    pub wanted_checkpoint: Option<String>,
    pub checkpoint: Option<NewCheckpoint>,
    pub consistency: Consistency,
    pub findings: Vec<Finding>,
    pub thaw: Option<ThawGuard>,
    pub ended: bool,
}

impl ActiveDomainJob {
    fn export(&self, target: &str) -> Result<Export<'_>> {
        let disk = self.bitmaps.iter().find(|(disk, _)| disk == target);
        let (name, tells_changes) = disk.ok_or_else(|| Refusal::NotInJob {
            disk: target.to_owned(),
        })?;
        Ok(Export {
            socket: &self.socket,
            name,
            // libvirt's own name for it (qemuBackupDiskPrepareOneBitmaps in src/qemu/qemu_backup.c).
            bitmap: tells_changes.then(|| format!("backup-{name}")),
        })
    }

    /// Ends our job. One that is not ours is left alone: somebody has ended ours and begun another.
    fn end_job(&self) -> Result<()> {
        let handle = self.link.find(&self.domain)?;
        match inspect::active_job(&handle)? {
            Some(job) if job.socket.as_ref() == Some(&self.socket) => end(&handle),
            _ => Ok(()),
        }
    }

    /// Lets a guest run on that stands still because the scratch space was full, and tells whether it did.
    fn resume(&self) -> Result<bool> {
        let handle = self.link.find(&self.domain)?;
        if self.stuck_before {
            return Ok(false);
        }
        resume_if_stuck(&handle)
    }

    /// The scratch space may have become full since the job's health was last asked for. What was read is right all the same.
    fn resume_finding(&self) -> Option<Finding> {
        match self.resume() {
            Ok(false) => None,
            Ok(true) => Some(Finding::new(
                "guest-stood-still",
                "the scratch space was full before the copy was done, and the guest stood still until then; \
                 --scratch-dir names a folder with more room",
            )),
            Err(error) => Some(Finding::new("guest-not-resumed", with_sources(&error))),
        }
    }

    fn delete_checkpoint(&self) -> Result<()> {
        let Some(name) = &self.wanted_checkpoint else {
            return Ok(());
        };
        match checkpoints::delete(&self.link, &self.domain, name) {
            Err(HostError::NoSuchCheckpoint { .. }) => Ok(()),
            deleted => deleted,
        }
    }

    /// The guest comes first: it may stand still until the job has ended.
    fn undo(&mut self) -> Vec<Finding> {
        self.ended = true;
        let steps = [
            ("job-not-ended", self.end_job()),
            ("guest-not-resumed", self.resume().map(drop)),
            ("checkpoint-not-removed", self.delete_checkpoint()),
            ("files-not-removed", places::clear(&self.places)),
        ];
        self.thaw = None;
        steps
            .into_iter()
            .filter_map(|(code, step)| step.err().map(|error| Finding::new(code, with_sources(&error))))
            .collect()
    }
}

/// Lets a guest run on that a full scratch space had stopped, and tells whether one had.
pub fn resume_if_stuck(handle: &Handle) -> Result<bool> {
    let was_stuck = is_stuck(handle)?;
    if was_stuck {
        handle.resume().map_err(failed("resume the domain"))?;
    }
    Ok(was_stuck)
}

/// Whether the domain was paused because a disk could not be written to.
pub fn is_stuck(handle: &Handle) -> Result<bool> {
    let (state, reason) = inspect::state(handle)?;
    Ok(state == DomainState::Paused && reason == sys::VIR_DOMAIN_PAUSED_IOERROR as i32)
}

impl BackupJob for ActiveDomainJob {
    fn checkpoint(&self) -> Option<&NewCheckpoint> {
        self.checkpoint.as_ref()
    }

    fn consistency(&self) -> Consistency {
        self.consistency
    }

    fn findings(&self) -> Vec<Finding> {
        self.findings.clone()
    }

    fn disk_size(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<u64> {
        self.export(target)?.size(deadline, stop)
    }

    fn map(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<DiskMap> {
        self.export(target)?.map(deadline, stop)
    }

    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>> {
        self.export(target)?.open(options)
    }

    fn health(&self) -> Result<JobHealth> {
        // A daemon that is being restarted hurts neither the job nor the reading. What is wrong shows when it is back.
        let handle = match self.link.find(&self.domain) {
            Err(HostError::NoSuchDomain { .. }) => {
                return Ok(JobHealth::Gone("the domain is gone".to_owned()));
            }
            Err(_) => return Ok(JobHealth::Good),
            Ok(handle) => handle,
        };
        if !inspect::is_active(&handle)? || handle.get_id() != self.domain.id {
            return Ok(JobHealth::Gone("the domain was stopped".to_owned()));
        }
        if !self.stuck_before && is_stuck(&handle)? {
            let errors = ffi::disk_errors(&handle).map_err(failed("tell the disks' errors"))?;
            let words = |error: &ffi::DiskError| {
                format!(
                    "{}: {}",
                    error.target,
                    if error.no_space { "no space" } else { "I/O error" }
                )
            };
            return Ok(JobHealth::ScratchFull(
                errors.iter().map(words).collect::<Vec<_>>().join(", "),
            ));
        }
        match inspect::active_job(&handle)? {
            Some(job) if job.socket.as_ref() == Some(&self.socket) => Ok(JobHealth::Good),
            // A domain that is being stopped loses its job before it is gone itself.
            _ => Ok(JobHealth::Gone(
                "somebody has ended it, or the domain is being stopped".to_owned(),
            )),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Finding>> {
        self.end_job()?;
        self.ended = true;
        self.thaw = None;
        let mut findings: Vec<Finding> = self.resume_finding().into_iter().collect();
        findings.extend(places::clear_finding(&self.places));
        Ok(findings)
    }

    fn abort(mut self: Box<Self>) -> Vec<Finding> {
        self.undo()
    }
}

impl Drop for ActiveDomainJob {
    fn drop(&mut self) {
        if !self.ended {
            self.undo();
        }
    }
}
