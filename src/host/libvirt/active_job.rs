//! A pull-mode backup job of an active domain, from its start to its end.

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

/// How long QEMU may take to close the files and exports of a job.
const ENDING: Duration = Duration::from_secs(15);

/// Ends the domain's job and waits until QEMU has closed its files and exports.
///
/// It is not an error if there is no job.
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
            message: format!("the job is still running after {} s", ENDING.as_secs()),
        })
    })
}

/// A job that QEMU carries out for a running or paused domain.
pub(crate) struct ActiveDomainJob {
    pub link: Arc<Link>,
    pub domain: Domain,
    /// Whether a disk error had already paused the guest before the job. If so, the job does not
    /// resume the guest.
    pub stuck_before: bool,
    /// The disks of the job, and whether the export of each reports its changes.
    pub bitmaps: Vec<(String, bool)>,
    pub socket: PathBuf,
    pub places: Places,
    /// The requested name, which is known even if the new checkpoint cannot be read back.
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
            // This is libvirt's name (qemuBackupDiskPrepareOneBitmaps in src/qemu/qemu_backup.c).
            bitmap: tells_changes.then(|| format!("backup-{name}")),
        })
    }

    /// Ends this job. If another program has ended it and started its own job, that job is not
    /// touched.
    fn end_job(&self) -> Result<()> {
        let handle = self.link.find(&self.domain)?;
        match inspect::active_job(&handle)? {
            Some(job) if job.socket.as_ref() == Some(&self.socket) => end(&handle),
            _ => Ok(()),
        }
    }

    /// Resumes the guest if a disk error during the job has paused it. Returns whether it was
    /// paused.
    fn resume(&self) -> Result<bool> {
        let handle = self.link.find(&self.domain)?;
        if self.stuck_before {
            return Ok(false);
        }
        resume_if_stuck(&handle)
    }

    /// Resumes the guest if a disk error, such as full scratch space, has paused it since the last
    /// health check.
    ///
    /// The data that was read is correct in any case.
    fn resume_finding(&self) -> Option<Finding> {
        match self.resume() {
            Ok(false) => None,
            Ok(true) => Some(Finding::new(
                "guest-stood-still",
                "a disk error paused the guest until the copy ended; if the scratch space was full, \
                 use --scratch-dir to choose a folder with more space",
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

    /// Undoes the job. Ends the job first, because the guest may be paused until then.
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

/// Resumes the guest if a disk error has paused it, and returns whether that was the case.
pub(crate) fn resume_if_stuck(handle: &Handle) -> Result<bool> {
    let was_stuck = is_stuck(handle)?;
    if was_stuck {
        handle.resume().map_err(failed("resume the domain"))?;
    }
    Ok(was_stuck)
}

/// Returns whether the domain is paused because of a disk error.
pub fn is_stuck(handle: &Handle) -> Result<bool> {
    let (state, reason) = inspect::state(handle)?;
    Ok(state == DomainState::Paused && reason == sys::VIR_DOMAIN_PAUSED_IOERROR as i32)
}

/// Describes the errors of a domain's disks. libvirt does not say whether writing to an image or to
/// a scratch file failed.
fn described(errors: &[ffi::DiskError]) -> String {
    let words = |error: &ffi::DiskError| {
        let what = if error.no_space {
            "no space left"
        } else {
            "I/O error"
        };
        format!("disk {}: {what}", error.target)
    };
    match errors {
        [] => "libvirt names no disk".to_owned(),
        errors => errors.iter().map(words).collect::<Vec<_>>().join(", "),
    }
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
        // A restart of libvirtd harms neither the job nor the reading. A lost job is noticed when
        // the daemon is back.
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
            let errors = ffi::disk_errors(&handle).map_err(failed("report the disks' errors"))?;
            return Ok(JobHealth::GuestPaused(described(&errors)));
        }
        match inspect::active_job(&handle)? {
            Some(job) if job.socket.as_ref() == Some(&self.socket) => Ok(JobHealth::Good),
            // A domain that is being stopped loses its job before it disappears.
            _ => Ok(JobHealth::Gone(
                "another program has ended the job, or the domain is being stopped".to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_errors_are_described_without_a_guess_at_the_place() {
        let error = |target: &str, no_space| ffi::DiskError {
            target: target.to_owned(),
            no_space,
        };
        let errors = [error("vda", true), error("vdb", false)];
        assert_eq!(described(&errors), "disk vda: no space left, disk vdb: I/O error");
        assert_eq!(described(&[]), "libvirt names no disk");
    }
}
