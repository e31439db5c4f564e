//! A pull-mode backup job of an active domain.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;
use virt_sys as sys;

use super::freeze::{Freeze, ThawGuard};
use super::link::Link;
use super::{
    BackupJob, BackupRequest, CallError, HostError, Places, Refusal, Result, checkpoints, failed, ffi,
    inspect, places,
};
use crate::host::export::Export;
use crate::host::xml::{self, BackupDisk};
use crate::host::{DiskRequest, JobHealth, NewCheckpoint, ReadOptions};
use crate::model::block::BlockSource;
use crate::model::checkpoint::CheckpointId;
use crate::model::clusters::DiskMap;
use crate::model::domain::{Agent, Domain, DomainState};
use crate::model::finding::Finding;
use crate::model::restore_point::Consistency;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::wait;

/// How long QEMU may take to close what belonged to a job.
const ENDING: Duration = Duration::from_secs(15);

/// Begins a job, with its checkpoint in the same call.
pub fn begin(link: &Arc<Link>, handle: &Handle, request: &BackupRequest) -> Result<Box<dyn BackupJob>> {
    let domain = inspect::domain_of(link, handle)?;
    let (socket, backup, checkpoint) = documents(&domain, request)?;
    check_places(&request.places)?;
    let stuck_before = is_stuck(handle)?;
    places::make_for_qemu(&request.places, handle)?;

    // A guest that stands still cannot freeze anything, and its disks do not change either.
    let can_freeze = domain.state == DomainState::Running && domain.agent == Agent::Connected;
    let freeze = request.freeze.filter(|_| can_freeze);
    let freeze = freeze.map(|deadline| Freeze::start(handle, deadline, &request.stop));
    let begun = match request.stop.requested() {
        true => Err(HostError::Stopped),
        false => begin_within_reason(handle, backup, checkpoint),
    };
    let (consistency, findings, thaw) = match freeze.map(Freeze::thaw) {
        None => (Consistency::Crash, Vec::new(), None),
        Some((consistency, findings, guard)) => (consistency, findings, Some(guard)),
    };
    begun?;

    let mut job = ActiveDomainJob {
        link: Arc::clone(link),
        stuck_before,
        domain,
        bitmaps: request
            .disks
            .iter()
            .map(|disk| (disk.target.clone(), disk.since.is_some()))
            .collect(),
        socket,
        places: request.places.clone(),
        wanted_checkpoint: request.checkpoint.as_ref().map(|wanted| wanted.name.clone()),
        checkpoint: None,
        consistency,
        findings,
        thaw,
        ended: false,
    };
    if let Some(wanted) = &request.checkpoint {
        job.checkpoint = Some(record(handle, &wanted.name)?);
    }
    Ok(Box::new(job))
}

/// How long libvirt may take to begin a job, with the guest's file systems frozen, and how long for a domain that is gone.
const BEGINNING: Duration = Duration::from_secs(120);
const BEGINNING_OF_NOTHING: Duration = Duration::from_secs(10);

/// Begins the job on a thread of its own. libvirt 9.0 waits for ever, and keeps the domain locked, when QEMU goes away while it makes a scratch file.
fn begin_within_reason(handle: &Handle, backup: String, checkpoint: Option<String>) -> Result<()> {
    let (sender, receiver) = channel();
    let on_thread = handle.clone();
    thread::spawn(move || {
        let begun = ffi::backup_begin(&on_thread, &backup, checkpoint.as_deref());
        // Who has given up does not listen.
        let _ = sender.send(begun);
    });
    let id = handle.get_id();
    let started = Instant::now();
    let mut last_alive = Instant::now();
    loop {
        match receiver.recv_timeout(Duration::from_millis(200)) {
            Ok(begun) => return begun.map_err(begin_error),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        // What cannot be asked now is taken for alive: only the long deadline ends that.
        if handle.get_id() == id && inspect::is_active(handle).unwrap_or(true) {
            last_alive = Instant::now();
        }
        if last_alive.elapsed() > BEGINNING_OF_NOTHING || started.elapsed() > BEGINNING {
            break;
        }
    }
    Err(HostError::NoAnswer {
        operation: "begin the backup".to_owned(),
    })
}

/// The socket, and the documents for the job and its checkpoint. They name every disk that the domain has at this
/// moment, those included that were plugged in after the decision what to read.
fn documents(live: &Domain, request: &BackupRequest) -> Result<(PathBuf, String, Option<String>)> {
    let [socket] = request.places.sockets.as_slice() else {
        return Err(Refusal::NotOneSocket.into());
    };
    let wanted = |target: &str| request.disks.iter().find(|disk| disk.target == target);
    if let Some(missing) = request
        .disks
        .iter()
        .find(|disk| !live.disks.iter().any(|here| here.target == disk.target))
    {
        return Err(Refusal::no_such_disk(&missing.target).into());
    }
    let mut disks = Vec::with_capacity(live.disks.len());
    for disk in &live.disks {
        let target = disk.target.as_str();
        disks.push(match wanted(target) {
            None => BackupDisk::LeftOut { target },
            Some(DiskRequest { since, .. }) => BackupDisk::Read {
                target,
                since: since.as_deref(),
                scratch: scratch_of(&request.places, target)?,
            },
        });
    }
    let covered = |target: &str| wanted(target).is_some_and(|disk| disk.checkpointed);
    let covered: Vec<(&str, bool)> = live
        .disks
        .iter()
        .map(|disk| (disk.target.as_str(), covered(&disk.target)))
        .collect();
    let checkpoint = request
        .checkpoint
        .as_ref()
        .map(|wanted| xml::write_new_checkpoint(&wanted.name, &wanted.mark, &covered));
    Ok((
        socket.clone(),
        xml::write_backup(socket, &disks)?,
        checkpoint.transpose()?,
    ))
}

fn scratch_of<'a>(places: &'a Places, target: &str) -> Result<&'a Path> {
    let found = places.scratch.iter().find(|(disk, _)| disk == target);
    let (_, file) = found.ok_or_else(|| Refusal::NoScratchFile {
        disk: target.to_owned(),
    })?;
    Ok(file.as_path())
}

fn check_places(places: &Places) -> Result<()> {
    places
        .sockets
        .iter()
        .try_for_each(|socket| places::check_socket(socket))?;
    places
        .scratch
        .iter()
        .try_for_each(|(_, file)| places::check_scratch(file))
}

fn begin_error(mut error: CallError) -> HostError {
    const TAKEN: &str = "Bitmap already exists: ";
    if let Some((_, name)) = error.message.split_once(TAKEN) {
        return HostError::BitmapExists {
            name: name.trim().to_owned(),
        };
    }
    let hint = if error.message.contains("nbd-server-start") {
        "; QEMU may not use this folder: name another place for the socket"
    } else if error.message.contains("Permission denied")
        || error.message.contains("failed to create image file")
    {
        "; QEMU may not use this folder: name another one for scratch files"
    } else {
        ""
    };
    error.message.push_str(hint);
    failed("begin the backup job")(error)
}

/// Reads back the checkpoint that was just made.
pub fn record(handle: &Handle, name: &str) -> Result<NewCheckpoint> {
    let operation = || format!("describe the new checkpoint {name}");
    let checkpoint = ffi::Checkpoint::lookup(handle, name).map_err(failed(operation()))?;
    let text = checkpoint.xml(false).map_err(failed(operation()))?;
    let description = xml::read_checkpoint(&text)?;
    Ok(NewCheckpoint {
        id: CheckpointId {
            name: description.name,
            created: description.created,
        },
        xml: text,
    })
}

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

struct ActiveDomainJob {
    link: Arc<Link>,
    domain: Domain,
    /// Whether the guest stood still because of a disk before the job: then it is not for the job to let it go on.
    stuck_before: bool,
    /// The disks of the job, with whether each tells its changes.
    bitmaps: Vec<(String, bool)>,
    socket: PathBuf,
    places: Places,
    /// The name asked for: known from the beginning, though it could not be read back.
    wanted_checkpoint: Option<String>,
    checkpoint: Option<NewCheckpoint>,
    consistency: Consistency,
    findings: Vec<Finding>,
    thaw: Option<ThawGuard>,
    ended: bool,
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
fn is_stuck(handle: &Handle) -> Result<bool> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(message: &str) -> CallError {
        CallError {
            number: ErrorNumber::InternalError,
            message: message.to_owned(),
        }
    }

    #[test]
    fn taken_name_has_its_own_error() {
        let text = "internal error: unable to execute QEMU command 'transaction': Bitmap already exists: virtnbdbackup.3";
        match begin_error(message(text)) {
            HostError::BitmapExists { name } => assert_eq!(name, "virtnbdbackup.3"),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn folder_that_qemu_may_not_use_is_explained() {
        let text = "'nbd-server-start': Failed to bind socket to /x/s: Permission denied";
        assert!(begin_error(message(text)).to_string().contains("for the socket"));
        let text = "'blockdev-add': Could not open '/x/s': Permission denied";
        assert!(begin_error(message(text)).to_string().contains("scratch files"));
        assert!(begin_error(message("other")).to_string().ends_with("other"));
    }
}
