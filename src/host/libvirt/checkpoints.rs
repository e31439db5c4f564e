//! Lists, checks and removes checkpoints with their bitmaps.
//!
//! For an active domain, libvirt reports the state of each bitmap, because bitmaps in QEMU's memory
//! are not in the image yet. For a shut-off domain, libvirt reports nothing, so the images are
//! inspected.

use std::collections::BTreeMap;

use virt::error::ErrorNumber;

use super::link::Link;
use super::{HostError, Result, failed, image_bitmaps, images, inspect, records};
use crate::host::qemu::ImageInfo;
use crate::host::xml::{CheckpointDescription, oldest_first, read_checkpoint};
use crate::model::checkpoint::{Bitmap, Checkpoint, CheckpointDisk};
use crate::model::domain::Domain;
use crate::model::stop::Stop;

pub fn list(link: &Link, domain: &Domain) -> Result<Vec<Checkpoint>> {
    let handle = link.find(domain)?;
    let active = inspect::is_active(&handle)?;
    let mut told_by_qemu = active;
    let mut descriptions = Vec::new();
    for checkpoint in records::all(&handle)? {
        let mut xml = checkpoint.xml(told_by_qemu);
        if told_by_qemu
            && xml
                .as_ref()
                .is_err_and(|error| error.number == ErrorNumber::InvalidArg)
        {
            // This driver does not report the state of bitmaps.
            told_by_qemu = false;
            xml = checkpoint.xml(false);
        }
        match xml {
            Ok(xml) => descriptions.push(read_checkpoint(&xml)?),
            // Another program has just removed it.
            Err(error) if error.number == ErrorNumber::NoDomainCheckpoint => {}
            Err(error) => return Err(failed("describe a checkpoint")(error)),
        }
    }
    let mut images = Images::new(link, domain);
    let mut checkpoints = Vec::with_capacity(descriptions.len());
    for description in oldest_first(descriptions) {
        checkpoints.push(judge(description, told_by_qemu, &mut images)?);
    }
    Ok(checkpoints)
}

fn judge(description: CheckpointDescription, told_by_qemu: bool, images: &mut Images) -> Result<Checkpoint> {
    let mut disks = Vec::with_capacity(description.disks.len());
    for disk in description.disks {
        // QEMU reports a size only for bitmaps that exist and are consistent.
        let bitmap = match (told_by_qemu, disk.dirty_bytes) {
            (true, Some(_)) => Bitmap::Sound,
            (true, None) => Bitmap::Broken,
            (false, _) => images.bitmap(&disk.target, &disk.bitmap)?,
        };
        disks.push(CheckpointDisk {
            target: disk.target,
            bitmap,
            dirty_bytes: disk.dirty_bytes,
        });
    }
    Ok(Checkpoint {
        name: description.name,
        created: description.created,
        mark: description.description,
        disks,
    })
}

/// The images of a shut-off domain's disks, each inspected at most once and only when needed.
struct Images<'a> {
    domain: &'a Domain,
    are_here: bool,
    /// `None` for a disk whose images cannot be opened now.
    chains: BTreeMap<String, Option<Vec<ImageInfo>>>,
}

impl<'a> Images<'a> {
    fn new(link: &Link, domain: &'a Domain) -> Self {
        Images {
            domain,
            are_here: link.location().is_local,
            chains: BTreeMap::new(),
        }
    }

    fn bitmap(&mut self, target: &str, name: &str) -> Result<Bitmap> {
        let disk = self.domain.disk(target);
        if !self.are_here {
            return Ok(Bitmap::Unknown);
        }
        if !self.chains.contains_key(target) {
            let chain = disk.map_or(Ok(Some(Vec::new())), |disk| {
                images::infos_if_reachable(disk, &Stop::default())
            })?;
            self.chains.insert(target.to_owned(), chain);
        }
        Ok(match self.chains.get(target) {
            Some(Some(chain)) if image_bitmaps::is_usable(chain, name) => Bitmap::Sound,
            Some(Some(_)) => Bitmap::Broken,
            _ => Bitmap::Unknown,
        })
    }
}

pub fn delete(link: &Link, domain: &Domain, name: &str) -> Result<()> {
    let handle = link.find(domain)?;
    let checkpoint = records::lookup(&handle, name)?;
    if inspect::is_active(&handle)? {
        let checkpoint = checkpoint.ok_or_else(|| HostError::NoSuchCheckpoint {
            name: name.to_owned(),
        })?;
        return records::delete_active(&handle, &checkpoint, name).map(drop);
    }
    if !link.location().is_local {
        return Err(inspect::not_here("its images"));
    }
    // Removes the bitmaps before the record: after an interruption, the record shows the remaining
    // work.
    let removed = image_bitmaps::remove_from_images(link, &domain.disks, name)?;
    match checkpoint {
        Some(checkpoint) => checkpoint
            .delete(true)
            .map_err(failed(format!("delete the checkpoint {name}"))),
        None if !removed.is_empty() => Ok(()),
        None => Err(HostError::NoSuchCheckpoint {
            name: name.to_owned(),
        }),
    }
}

/// Removes only the record of a checkpoint. libvirt supports this in every state of the domain.
pub fn forget(link: &Link, domain: &Domain, name: &str) -> Result<()> {
    let handle = link.find(domain)?;
    let checkpoint = records::lookup(&handle, name)?.ok_or_else(|| HostError::NoSuchCheckpoint {
        name: name.to_owned(),
    })?;
    checkpoint
        .delete(true)
        .map_err(failed(format!("delete the record of checkpoint {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_on_another_machine_are_never_looked_for_here() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("same-name-here.qcow2");
        std::fs::write(&path, b"no image: looking at it would be an error").expect("written");
        let domain = domain_with(&path);
        let ask = |are_here| {
            let chains = BTreeMap::new();
            let mut images = Images {
                domain: &domain,
                are_here,
                chains,
            };
            images.bitmap("vda", "a")
        };
        assert_eq!(ask(false).expect("nothing is asked"), Bitmap::Unknown);
        assert_eq!(ask(true).expect("it is no qcow2 image"), Bitmap::Unknown);
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(ask(false).expect("nothing is asked"), Bitmap::Unknown);
        assert_eq!(ask(true).expect("it is missing"), Bitmap::Broken);
    }

    fn domain_with(image: &std::path::Path) -> Domain {
        use crate::model::domain::{Agent, Disk, DiskFormat, DomainState, Source};
        let disk = Disk::new("vda", Source::File(image.to_owned()), DiskFormat::Qcow2);
        Domain {
            name: "vm1".to_owned(),
            uuid: String::new(),
            state: DomainState::ShutOff,
            persistent: true,
            id: None,
            disks: vec![disk],
            nvram: None,
            excluded: Vec::new(),
            tpm: None,
            agent: Agent::None,
            inactive_xml: String::new(),
        }
    }
}
