//! Registers checkpoints whose records libvirt has lost, on the disks whose bitmaps are sound.

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;

use super::link::Link;
use super::{Result, failed, ffi, image_bitmaps, inspect, records};
use crate::host::xml::{KnownCheckpoint, write_known_checkpoint};
use crate::model::checkpoint::Checkpoint;
use crate::model::domain::{Disk, DiskFormat, Domain};
use crate::model::stop::Stop;

/// Registers the checkpoint on those of its disks whose bitmaps are sound.
///
/// Returns false if no disk has a sound bitmap. Also returns false if the domain is shut off on
/// another machine, where its images cannot be examined.
pub fn register(link: &Link, domain: &Domain, checkpoint: &Checkpoint) -> Result<bool> {
    let handle = link.find(domain)?;
    let disks = inspect::domain_of(link, &handle)?.disks;
    let covers = |disk: &&Disk| {
        checkpoint
            .disks
            .iter()
            .any(|covered| covered.target == disk.target)
    };
    let carries = |disk: &&Disk| disk.format == DiskFormat::Qcow2 && !disk.readonly;
    let covered: Vec<&Disk> = disks.iter().filter(covers).filter(carries).collect();
    let known = Known {
        handle: &handle,
        checkpoint,
        disks: &disks,
        is_active: inspect::is_active(&handle)?,
    };
    if known.is_active {
        return known.register_active(&covered);
    }
    if !link.location().is_local {
        return Ok(false);
    }
    let mut sound = Vec::new();
    for disk in covered {
        if image_bitmaps::has_usable_bitmap(disk, &checkpoint.name, &Stop::default())? {
            sound.push(disk.target.as_str());
        }
    }
    known.register(&sound)
}

struct Known<'a> {
    handle: &'a Handle,
    checkpoint: &'a Checkpoint,
    /// All disks of the domain.
    disks: &'a [Disk],
    is_active: bool,
}

impl Known<'_> {
    /// Registers the checkpoint of an active domain, where QEMU checks the bitmaps.
    ///
    /// First tries all disks at once. If one of their bitmaps is not sound, tries each disk alone
    /// to find those with a sound bitmap.
    fn register_active(&self, covered: &[&Disk]) -> Result<bool> {
        let targets: Vec<&str> = covered.iter().map(|disk| disk.target.as_str()).collect();
        if self.register(&targets)? {
            return Ok(true);
        }
        let mut sound = Vec::new();
        for target in targets.iter().filter(|_| targets.len() > 1) {
            if self.register(&[*target])? {
                records::lookup(self.handle, &self.checkpoint.name)?
                    .map(|record| record.delete(true))
                    .transpose()
                    .map_err(failed(format!("check the bitmap {}", self.checkpoint.name)))?;
                sound.push(*target);
            }
        }
        self.register(&sound)
    }

    /// Registers the checkpoint on these disks.
    ///
    /// Returns false if libvirt reports that one of the bitmaps is missing or inconsistent.
    fn register(&self, targets: &[&str]) -> Result<bool> {
        if targets.is_empty() {
            return Ok(false);
        }
        let name = &self.checkpoint.name;
        let disks = self.disks.iter().map(|disk| {
            let target = disk.target.as_str();
            (target, targets.contains(&target))
        });
        let xml = write_known_checkpoint(&KnownCheckpoint {
            name,
            created: self.checkpoint.created,
            description: self.checkpoint.mark.as_deref(),
            // Nothing depends on the parent, and its record may be lost as well.
            parent: None,
            disks: &disks.collect::<Vec<_>>(),
        })?;
        let made = match self.is_active {
            true => ffi::Checkpoint::redefine_if_sound(self.handle, &xml),
            false => ffi::Checkpoint::redefine(self.handle, &xml),
        };
        match made {
            Ok(_) => Ok(true),
            Err(error) if error.number == ErrorNumber::CheckpointInconsistent => Ok(false),
            Err(error) => Err(failed(format!("register the checkpoint {name} again"))(error)),
        }
    }
}
