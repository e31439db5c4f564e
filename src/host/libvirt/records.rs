//! Finds, reads and deletes libvirt's records of checkpoints, mainly of active domains.

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;

use super::{CallError, Result, failed, ffi, inspect};
use crate::host::xml::{
    CheckpointDescription, KnownCheckpoint, oldest_first, read_checkpoint, write_known_checkpoint,
};
use crate::model::checkpoint::REMOVAL_MARK;
use crate::model::domain::Disk;

/// Lists all checkpoints of the domain; the list is empty if the driver does not support them.
pub fn all(handle: &Handle) -> Result<Vec<ffi::Checkpoint>> {
    match ffi::Checkpoint::all(handle) {
        Ok(checkpoints) => Ok(checkpoints),
        Err(error) if error.number == ErrorNumber::NoSupport => Ok(Vec::new()),
        Err(error) => Err(failed("list the checkpoints")(error)),
    }
}

/// Returns the name of the newest checkpoint.
pub fn newest(handle: &Handle) -> Result<Option<String>> {
    let mut descriptions = Vec::new();
    for checkpoint in all(handle)? {
        descriptions.push(describe(&checkpoint)?);
    }
    Ok(oldest_first(descriptions).pop().map(|newest| newest.name))
}

/// Looks up the checkpoint with this name.
pub(crate) fn lookup(handle: &Handle, name: &str) -> Result<Option<ffi::Checkpoint>> {
    match ffi::Checkpoint::lookup(handle, name) {
        Ok(checkpoint) => Ok(Some(checkpoint)),
        Err(error) if error.number == ErrorNumber::NoDomainCheckpoint => Ok(None),
        Err(error) => Err(failed(format!("look up the checkpoint {name}"))(error)),
    }
}

/// Reads libvirt's record of a checkpoint.
pub fn describe(checkpoint: &ffi::Checkpoint) -> Result<CheckpointDescription> {
    read_checkpoint(&checkpoint.xml(false).map_err(failed("describe a checkpoint"))?)
}

/// Deletes a checkpoint of an active domain with its bitmaps, and returns the disks that had one.
///
/// libvirt deletes nothing if one of the bitmaps is missing. In that case, only the record is
/// deleted. Then a record for one disk at a time is registered and deleted with its bitmap, if it
/// exists.
pub(crate) fn delete_active(
    handle: &Handle,
    checkpoint: &ffi::Checkpoint,
    name: &str,
) -> Result<Vec<String>> {
    let operation = format!("delete the checkpoint {name}");
    let live = inspect::live(handle)?.disks;
    let mut covered: Vec<String> = describe(checkpoint)?
        .disks
        .into_iter()
        .map(|disk| disk.target)
        .collect();
    covered.retain(|target| live.iter().any(|disk| disk.target == *target));
    match checkpoint.delete(false) {
        Ok(()) => return Ok(covered),
        Err(error) if is_lost_bitmap(&error) => {}
        Err(error) => return Err(failed(operation)(error)),
    }
    checkpoint.delete(true).map_err(failed(operation.as_str()))?;
    if covered.len() < 2 {
        return Ok(Vec::new());
    }
    let mut removed = Vec::new();
    for target in covered {
        if remove_of_disk(handle, &live, &target, name)? {
            removed.push(target);
        }
    }
    Ok(removed)
}

/// Recognizes libvirt's error for a missing bitmap.
///
/// The text is the same since libvirt 7.x (qemuBlockBitmapsHandle… in src/qemu/qemu_checkpoint.c).
/// The error number is that of all internal errors.
pub(crate) fn is_lost_bitmap(error: &CallError) -> bool {
    error.message.contains("not found in backing chain")
}

/// Removes a bitmap without a record from one disk of an active domain.
///
/// Returns whether the disk had the bitmap.
pub(crate) fn remove_of_disk(handle: &Handle, live: &[Disk], target: &str, name: &str) -> Result<bool> {
    let operation = || failed(format!("remove the bitmap {name} of disk {target}"));
    let disks: Vec<(&str, bool)> = live
        .iter()
        .map(|disk| (disk.target.as_str(), disk.target == target))
        .collect();
    let known = KnownCheckpoint {
        name,
        // libvirt requires a time; the record is deleted at once.
        created: 1,
        description: Some(REMOVAL_MARK),
        parent: None,
        disks: &disks,
    };
    let record = ffi::Checkpoint::redefine(handle, &write_known_checkpoint(&known)?).map_err(operation())?;
    match record.delete(false) {
        Ok(()) => Ok(true),
        Err(error) => {
            // The temporary record must not stay after any error.
            record.delete(true).map_err(operation())?;
            if is_lost_bitmap(&error) {
                Ok(false)
            } else {
                Err(operation()(error))
            }
        }
    }
}
