//! libvirt's records of an active domain's checkpoints: found, described, and deleted with their bitmaps.

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;

use super::{CallError, Result, failed, ffi, inspect};
use crate::host::xml::{
    CheckpointDescription, KnownCheckpoint, oldest_first, read_checkpoint, write_known_checkpoint,
};
use crate::model::checkpoint::REMOVAL_MARK;
use crate::model::domain::Disk;

/// All checkpoints of the domain; none where the driver keeps none.
pub fn all(handle: &Handle) -> Result<Vec<ffi::Checkpoint>> {
    match ffi::Checkpoint::all(handle) {
        Ok(checkpoints) => Ok(checkpoints),
        Err(error) if error.number == ErrorNumber::NoSupport => Ok(Vec::new()),
        Err(error) => Err(failed("list the checkpoints")(error)),
    }
}

/// The name of the newest checkpoint.
pub fn newest(handle: &Handle) -> Result<Option<String>> {
    let mut descriptions = Vec::new();
    for checkpoint in all(handle)? {
        descriptions.push(describe(&checkpoint)?);
    }
    Ok(oldest_first(descriptions).pop().map(|newest| newest.name))
}

/// The checkpoint of this name, if there is one.
pub fn lookup(handle: &Handle, name: &str) -> Result<Option<ffi::Checkpoint>> {
    match ffi::Checkpoint::lookup(handle, name) {
        Ok(checkpoint) => Ok(Some(checkpoint)),
        Err(error) if error.number == ErrorNumber::NoDomainCheckpoint => Ok(None),
        Err(error) => Err(failed(format!("look for the checkpoint {name}"))(error)),
    }
}

/// What libvirt has recorded of a checkpoint.
pub fn describe(checkpoint: &ffi::Checkpoint) -> Result<CheckpointDescription> {
    read_checkpoint(&checkpoint.xml(false).map_err(failed("describe a checkpoint"))?)
}

/// Deletes a checkpoint of an active domain with its bitmaps, and tells on which disks it had one.
///
/// libvirt deletes nothing at all if one of the bitmaps is lost. The record then goes alone, and comes back for one
/// disk after the other: where the bitmap is there it goes with it.
pub fn delete_active(handle: &Handle, checkpoint: &ffi::Checkpoint, name: &str) -> Result<Vec<String>> {
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

/// libvirt's words since 7.x (qemuBlockBitmapsHandle… in src/qemu/qemu_checkpoint.c); the number is that of any internal error.
pub fn is_lost_bitmap(error: &CallError) -> bool {
    error.message.contains("not found in backing chain")
}

/// Removes a bitmap that libvirt has no record of from one disk of an active domain, and tells whether there was one.
pub fn remove_of_disk(handle: &Handle, live: &[Disk], target: &str, name: &str) -> Result<bool> {
    let operation = || failed(format!("remove the bitmap {name} of disk {target}"));
    let disks: Vec<(&str, bool)> = live
        .iter()
        .map(|disk| (disk.target.as_str(), disk.target == target))
        .collect();
    let known = KnownCheckpoint {
        name,
        // libvirt wants a time, and nobody will ever see this one.
        created: 1,
        description: Some(REMOVAL_MARK),
        parent: None,
        disks: &disks,
    };
    let record = ffi::Checkpoint::redefine(handle, &write_known_checkpoint(&known)?).map_err(operation())?;
    match record.delete(false) {
        Ok(()) => Ok(true),
        Err(error) => {
            // Whatever it was, the record of our own making does not stay.
            record.delete(true).map_err(operation())?;
            if is_lost_bitmap(&error) {
                Ok(false)
            } else {
                Err(operation()(error))
            }
        }
    }
}
