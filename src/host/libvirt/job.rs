//! Starts the pull-mode backup job of an active domain.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use virt::domain::Domain as Handle;

use super::active_job::{ActiveDomainJob, is_stuck};
use super::freeze::Freeze;
use super::link::Link;
use super::{
    BackupJob, BackupRequest, CallError, HostError, Places, Refusal, Result, failed, ffi, inspect, places,
};
use crate::host::xml::{self, BackupDisk};
use crate::host::{DiskRequest, NewCheckpoint};
use crate::model::checkpoint::CheckpointId;
use crate::model::domain::{Agent, Domain, DomainState};
use crate::model::restore_point::Consistency;

/// Starts a job together with its checkpoint.
pub fn begin(link: &Arc<Link>, handle: &Handle, request: &BackupRequest) -> Result<Box<dyn BackupJob>> {
    let domain = inspect::domain_of(link, handle)?;
    let (socket, backup, checkpoint) = documents(&domain, request)?;
    check_places(&request.places)?;
    let stuck_before = is_stuck(handle)?;
    places::make_for_qemu(&request.places, handle)?;

    // A paused guest cannot freeze its file systems, and its disks do not change.
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

/// How long libvirt may take to start a job while the guest is frozen, and how long if the domain
/// is gone.
const BEGINNING: Duration = Duration::from_secs(120);
const BEGINNING_OF_NOTHING: Duration = Duration::from_secs(10);

/// Starts the job on a separate thread, with a time limit.
///
/// If QEMU ends while it creates a scratch file, libvirt 9.0 blocks forever with the domain locked.
fn begin_within_reason(handle: &Handle, backup: String, checkpoint: Option<String>) -> Result<()> {
    let (sender, receiver) = channel();
    let on_thread = handle.clone();
    thread::spawn(move || {
        let begun = ffi::backup_begin(&on_thread, &backup, checkpoint.as_deref());
        // The receiver may have timed out.
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
        // If the state is unknown, the domain counts as alive and only the long deadline applies.
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

/// Returns the socket, and the documents for the job and its checkpoint.
///
/// The documents name every disk that the domain has now, including disks that were plugged in
/// after the backup was planned.
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
        "; QEMU cannot use this path for its socket (`vmsnap backup --socketfile` sets another path)"
    } else if error.message.contains("Permission denied")
        || error.message.contains("failed to create image file")
    {
        "; QEMU cannot create its scratch file: choose another folder with --scratch-dir"
    } else {
        ""
    };
    error.message.push_str(hint);
    failed("begin the backup job")(error)
}

/// Reads back the checkpoint that was just created.
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

#[cfg(test)]
mod tests {
    use super::*;
    use virt::error::ErrorNumber;

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
        assert!(begin_error(message(text)).to_string().contains("--socketfile"));
        let text = "'blockdev-add': Could not open '/x/s': Permission denied";
        assert!(begin_error(message(text)).to_string().contains("--scratch-dir"));
        assert!(begin_error(message("other")).to_string().ends_with("other"));
    }
}
