//! Lists and removes bitmaps, with or without a checkpoint that owns them.
//!
//! libvirt removes bitmaps only through checkpoints. To remove a bitmap without a checkpoint, a
//! record is registered and deleted with the bitmap. To remove a bitmap and keep its checkpoint's
//! record, the checkpoint is deleted and its record registered again.

use virt::domain::Domain as Handle;

use super::link::Link;
use super::{Refusal, Result, failed, ffi, image_bitmaps, images, inspect, records};
use crate::host::qemu::Use;
use crate::host::xml::{CheckpointDescription, KnownCheckpoint, write_known_checkpoint};
use crate::model::domain::{Disk, DiskFormat, Domain, Source};
use crate::model::stop::Stop;

/// Lists the bitmaps in the image of a disk.
pub fn names(link: &Link, domain: &Domain, target: &str) -> Result<Vec<String>> {
    let disk = domain.disk(target).ok_or_else(|| Refusal::no_such_disk(target))?;
    if !link.location().is_local {
        return Err(inspect::not_here("its images"));
    }
    let is_active = inspect::is_active(&link.find(domain)?)?;
    // Does not connect to a server: it may allow only the connection of the domain's QEMU.
    if is_active && disk.source.path().is_none() {
        return Ok(Vec::new());
    }
    let used = if is_active { Use::Running } else { Use::None };
    let top = images::infos(disk, used, &Stop::default())?.into_iter().next();
    let bitmaps = top.map(|image| image.bitmaps).unwrap_or_default();
    Ok(bitmaps.into_iter().map(|bitmap| bitmap.name).collect())
}

/// Removes the bitmaps of this name from every disk, and returns the disks that had one.
///
/// Keeps the record of the checkpoint that owns them.
pub fn remove(link: &Link, domain: &Domain, name: &str) -> Result<Vec<String>> {
    let handle = link.find(domain)?;
    if inspect::is_active(&handle)? {
        return match records::lookup(&handle, name)? {
            Some(checkpoint) => remove_keeping_record(&handle, &checkpoint, name),
            None => remove_orphans(&handle, name, &[]),
        };
    }
    if !link.location().is_local {
        return Err(inspect::not_here("its images"));
    }
    image_bitmaps::remove_from_images(link, &domain.disks, name)
}

/// Deletes the checkpoint and registers its record again, even if the deletion fails midway.
fn remove_keeping_record(handle: &Handle, checkpoint: &ffi::Checkpoint, name: &str) -> Result<Vec<String>> {
    let record = records::describe(checkpoint)?;
    let covered: Vec<&str> = record.disks.iter().map(|disk| disk.target.as_str()).collect();
    let removed = records::delete_active(handle, checkpoint, name).and_then(|mut removed| {
        removed.extend(remove_orphans(handle, name, &covered)?);
        Ok(removed)
    });
    if records::lookup(handle, name)?.is_none() {
        make_known_again(handle, &record)?;
    }
    removed
}

fn make_known_again(handle: &Handle, record: &CheckpointDescription) -> Result<()> {
    let name = &record.name;
    // libvirt refuses a parent that no longer exists and a disk that has been unplugged.
    let parent = record.parent.as_deref();
    let parent = parent.filter(|parent| ffi::Checkpoint::lookup(handle, parent).is_ok());
    let live = inspect::live(handle)?.disks;
    let covered = |target: &str| record.disks.iter().any(|disk| disk.target == target);
    let disks: Vec<(&str, bool)> = live
        .iter()
        .map(|disk| (disk.target.as_str(), covered(&disk.target)))
        .collect();
    let xml = write_known_checkpoint(&KnownCheckpoint {
        name,
        created: record.created,
        description: record.description.as_deref(),
        parent,
        disks: &disks,
    })?;
    let made = ffi::Checkpoint::redefine(handle, &xml);
    made.map(drop).map_err(failed(format!(
        "keep the record of checkpoint {name}, whose bitmaps are gone"
    )))
}

/// Removes the bitmaps of this name from an active domain's disks that are not in `covered`.
fn remove_orphans(handle: &Handle, name: &str, covered: &[&str]) -> Result<Vec<String>> {
    let live = inspect::live(handle)?.disks;
    let carries =
        |disk: &&Disk| disk.format == DiskFormat::Qcow2 && !disk.readonly && disk.source != Source::Empty;
    let mut removed = Vec::new();
    for disk in live.iter().filter(carries) {
        let target = &disk.target;
        if !covered.contains(&target.as_str()) && records::remove_of_disk(handle, &live, target, name)? {
            removed.push(target.clone());
        }
    }
    Ok(removed)
}
