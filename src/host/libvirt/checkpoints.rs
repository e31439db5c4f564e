//! Checkpoints and their bitmaps: listed, judged, removed.
//!
//! Of an active domain libvirt tells the state of each bitmap: what QEMU holds in memory is not in the image yet. Of a
//! shut-off one it tells nothing, and the images are asked.

use std::collections::BTreeMap;
use std::time::Duration;

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;

use super::inspect;
use super::link::Link;
use super::{CallError, HostError, Result, failed, ffi};
use crate::host::qemu::{self, ImageInfo, Patience};
use crate::host::xml::{
    CheckpointDescription, KnownCheckpoint, oldest_first, read_checkpoint, write_known_checkpoint,
};
use crate::model::checkpoint::{Bitmap, Checkpoint, CheckpointDisk};
use crate::model::domain::{Disk, DiskFormat, Domain};
use crate::model::stop::Stop;

/// How long `qemu-img` may take to read or change what an image says of itself.
pub const IMAGE_DEADLINE: Duration = Duration::from_secs(60);

pub fn list(link: &Link, domain: &Domain) -> Result<Vec<Checkpoint>> {
    let handle = link.find(domain)?;
    let active = inspect::is_active(&handle)?;
    let mut told_by_qemu = active;
    let mut descriptions = Vec::new();
    for checkpoint in all(&handle)? {
        let mut xml = checkpoint.xml(told_by_qemu);
        if told_by_qemu
            && xml
                .as_ref()
                .is_err_and(|error| error.number == ErrorNumber::InvalidArg)
        {
            // A driver that cannot be asked for bitmaps.
            told_by_qemu = false;
            xml = checkpoint.xml(false);
        }
        match xml {
            Ok(xml) => descriptions.push(read_checkpoint(&xml)?),
            // Somebody has removed it just now.
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

fn all(handle: &Handle) -> Result<Vec<ffi::Checkpoint>> {
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
        let xml = checkpoint.xml(false).map_err(failed("describe a checkpoint"))?;
        descriptions.push(read_checkpoint(&xml)?);
    }
    Ok(oldest_first(descriptions).pop().map(|newest| newest.name))
}

fn judge(description: CheckpointDescription, told_by_qemu: bool, images: &mut Images) -> Result<Checkpoint> {
    let mut disks = Vec::with_capacity(description.disks.len());
    for disk in description.disks {
        // QEMU gives a size for each bitmap that is there and consistent, and for no other.
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

/// The images of a shut-off domain's disks, each looked at once, and only if it is asked for.
struct Images<'a> {
    domain: &'a Domain,
    are_here: bool,
    chains: BTreeMap<String, Vec<ImageInfo>>,
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
        if !self.are_here {
            return Ok(Bitmap::Unknown);
        }
        if !self.chains.contains_key(target) {
            let disk = self.domain.disk(target);
            let chain = disk.map_or(Ok(Vec::new()), |disk| chain(disk, &Stop::default()))?;
            self.chains.insert(target.to_owned(), chain);
        }
        let chain = self.chains.get(target);
        Ok(match chain.is_some_and(|chain| is_usable(chain, name)) {
            true => Bitmap::Sound,
            false => Bitmap::Broken,
        })
    }
}

/// The chain of images beneath a disk, topmost first. Empty for disks that carry no bitmaps and for images that are not there.
fn chain(disk: &Disk, stop: &Stop) -> Result<Vec<ImageInfo>> {
    match disk.source.path() {
        Some(path) if disk.format == DiskFormat::Qcow2 && path.exists() => {
            qemu::image_chain(path, "qcow2", &patience(stop))
        }
        _ => Ok(Vec::new()),
    }
}

fn patience(stop: &Stop) -> Patience {
    Patience {
        deadline: IMAGE_DEADLINE,
        stop: stop.clone(),
    }
}

/// Whether an incremental read of the image can rely on the bitmap.
///
/// It has to lie in the topmost image alone: `qemu-nbd --bitmap` also finds one further down the chain, which knows
/// nothing of what was written above it, and one bitmap out of several is only a part of the truth.
fn is_usable(chain: &[ImageInfo], name: &str) -> bool {
    let Some((top, beneath)) = chain.split_first() else {
        return false;
    };
    let has = |image: &ImageInfo| image.bitmaps.iter().any(|bitmap| bitmap.name == name);
    top.bitmaps
        .iter()
        .any(|bitmap| bitmap.name == name && bitmap.sound)
        && !beneath.iter().any(has)
}

/// Whether the image of a shut-off domain's disk has a bitmap of this name, in whatever state.
pub fn has_bitmap(disk: &Disk, name: &str) -> Result<bool> {
    let chain = chain(disk, &Stop::default())?;
    Ok(chain
        .first()
        .is_some_and(|top| top.bitmaps.iter().any(|bitmap| bitmap.name == name)))
}

/// Whether a shut-off domain's disk has a bitmap that an incremental read can rely on.
pub fn has_usable_bitmap(disk: &Disk, name: &str, stop: &Stop) -> Result<bool> {
    Ok(is_usable(&chain(disk, stop)?, name))
}

pub fn bitmap_names(link: &Link, domain: &Domain, target: &str) -> Result<Vec<String>> {
    let disk = domain.disk(target).ok_or_else(|| HostError::Unsupported {
        what: format!("the domain has no disk {target}"),
    })?;
    if inspect::is_active(&link.find(domain)?)? {
        let covers = |checkpoint: &Checkpoint| checkpoint.disks.iter().any(|disk| disk.target == target);
        let checkpoints = list(link, domain)?;
        return Ok(checkpoints
            .into_iter()
            .filter(covers)
            .map(|checkpoint| checkpoint.name)
            .collect());
    }
    if !link.location().is_local {
        return Err(inspect::not_here("its images"));
    }
    let top = chain(disk, &Stop::default())?.into_iter().next();
    let bitmaps = top.map(|image| image.bitmaps).unwrap_or_default();
    Ok(bitmaps.into_iter().map(|bitmap| bitmap.name).collect())
}

pub fn delete(link: &Link, domain: &Domain, name: &str) -> Result<()> {
    let handle = link.find(domain)?;
    let checkpoint = match ffi::Checkpoint::lookup(&handle, name) {
        Ok(checkpoint) => Some(checkpoint),
        Err(error) if error.number == ErrorNumber::NoDomainCheckpoint => None,
        Err(error) => return Err(failed(format!("look for the checkpoint {name}"))(error)),
    };
    if inspect::is_active(&handle)? {
        let checkpoint = checkpoint.ok_or_else(|| HostError::NoSuchCheckpoint {
            name: name.to_owned(),
        })?;
        return delete_active(&handle, &checkpoint, name);
    }
    if !link.location().is_local {
        return Err(inspect::not_here("its images"));
    }
    let removed = remove_bitmaps(&domain.disks, name)?;
    match checkpoint {
        Some(checkpoint) => checkpoint
            .delete(true)
            .map_err(failed(format!("delete the checkpoint {name}"))),
        None if removed => Ok(()),
        None => Err(HostError::NoSuchCheckpoint {
            name: name.to_owned(),
        }),
    }
}

/// Removes the bitmap of this name from the disks of a shut-off domain, and tells whether there was one.
///
/// The bitmaps go before libvirt's record of them: if this is interrupted, the record still says what is left to do.
fn remove_bitmaps(disks: &[Disk], name: &str) -> Result<bool> {
    let stop = Stop::default();
    let mut removed = false;
    for disk in disks {
        let chain = chain(disk, &stop)?;
        let (Some(top), Some(path)) = (chain.first(), disk.source.path()) else {
            continue;
        };
        if top.bitmaps.iter().any(|bitmap| bitmap.name == name) {
            qemu::remove_bitmap(path, name, &patience(&stop))?;
            removed = true;
        }
    }
    Ok(removed)
}

/// libvirt deletes nothing at all if one of the bitmaps is lost. The record then goes alone, and comes back for one
/// disk after the other: where the bitmap is there it goes with it.
fn delete_active(handle: &Handle, checkpoint: &ffi::Checkpoint, name: &str) -> Result<()> {
    let operation = format!("delete the checkpoint {name}");
    match checkpoint.delete(false) {
        Ok(()) => return Ok(()),
        Err(error) if is_lost_bitmap(&error) => {}
        Err(error) => return Err(failed(operation)(error)),
    }
    let xml = checkpoint.xml(false).map_err(failed("describe a checkpoint"))?;
    let description = read_checkpoint(&xml)?;
    checkpoint.delete(true).map_err(failed(operation.as_str()))?;
    if description.disks.len() < 2 {
        return Ok(());
    }
    let live = inspect::live(handle)?;
    for covered in &description.disks {
        if live.disks.iter().any(|disk| disk.target == covered.target) {
            delete_of_disk(handle, &live.disks, &covered.target, name)?;
        }
    }
    Ok(())
}

/// Removes a bitmap that libvirt has no record of from one disk: it gets a record, with which it goes.
fn delete_of_disk(handle: &Handle, live: &[Disk], target: &str, name: &str) -> Result<()> {
    let operation = || failed(format!("remove the bitmap {name} of disk {target}"));
    let disks: Vec<(&str, bool)> = live
        .iter()
        .map(|disk| (disk.target.as_str(), disk.target == target))
        .collect();
    let known = KnownCheckpoint {
        name,
        // libvirt wants a time, and nobody will ever see this one.
        created: 1,
        description: None,
        parent: None,
        disks: &disks,
    };
    let record = ffi::Checkpoint::redefine(handle, &write_known_checkpoint(&known)?).map_err(operation())?;
    match record.delete(false) {
        Ok(()) => Ok(()),
        Err(error) if is_lost_bitmap(&error) => record.delete(true).map_err(operation()),
        Err(error) => Err(operation()(error)),
    }
}

/// Removes the bitmaps of this name that no checkpoint owns.
pub fn delete_bitmap(link: &Link, domain: &Domain, name: &str) -> Result<()> {
    let handle = link.find(domain)?;
    match ffi::Checkpoint::lookup(&handle, name) {
        // They are not without an owner.
        Ok(_) => return Ok(()),
        Err(error) if error.number == ErrorNumber::NoDomainCheckpoint => {}
        Err(error) => return Err(failed(format!("look for the checkpoint {name}"))(error)),
    }
    if inspect::is_active(&handle)? {
        let live = inspect::live(&handle)?;
        let carries = |disk: &&Disk| disk.format == DiskFormat::Qcow2 && !disk.readonly;
        let carrying = live
            .disks
            .iter()
            .filter(carries)
            .filter(|disk| disk.source.path().is_some());
        return carrying
            .into_iter()
            .try_for_each(|disk| delete_of_disk(&handle, &live.disks, &disk.target, name));
    }
    if !link.location().is_local {
        return Err(inspect::not_here("its images"));
    }
    remove_bitmaps(&domain.disks, name).map(drop)
}

/// libvirt's words since 7.x (qemuBlockBitmapsHandle… in src/qemu/qemu_checkpoint.c); the number is that of any internal error.
fn is_lost_bitmap(error: &CallError) -> bool {
    error.message.contains("not found in backing chain")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::qemu::ImageBitmap;

    fn image(bitmaps: &[(&str, bool)]) -> ImageInfo {
        let bitmap = |&(name, sound): &(&str, bool)| ImageBitmap {
            name: name.to_owned(),
            sound,
        };
        ImageInfo {
            path: "/x".into(),
            bitmaps: bitmaps.iter().map(bitmap).collect(),
        }
    }

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
        ask(true).expect_err("that is no qcow2 image");
    }

    fn domain_with(image: &std::path::Path) -> Domain {
        use crate::model::domain::{Agent, Device, DomainState, Source};
        let disk = Disk {
            target: "vda".to_owned(),
            device: Device::Disk,
            source: Source::File(image.to_owned()),
            format: DiskFormat::Qcow2,
            readonly: false,
            shareable: false,
            transient: false,
        };
        Domain {
            name: "vm1".to_owned(),
            uuid: String::new(),
            state: DomainState::ShutOff,
            persistent: true,
            id: None,
            disks: vec![disk],
            nvram: None,
            has_tpm_state: false,
            agent: Agent::None,
            inactive_xml: String::new(),
        }
    }

    #[test]
    fn only_a_sound_bitmap_in_the_topmost_image_alone_can_be_relied_on() {
        assert!(is_usable(&[image(&[("a", true), ("b", false)])], "a"));
        assert!(is_usable(&[image(&[("a", true)]), image(&[("b", true)])], "a"));
        assert!(!is_usable(&[image(&[("a", false)])], "a"), "interrupted");
        assert!(
            !is_usable(&[image(&[]), image(&[("a", true)])], "a"),
            "only beneath"
        );
        assert!(
            !is_usable(&[image(&[("a", true)]), image(&[("a", true)])], "a"),
            "in two layers"
        );
        assert!(!is_usable(&[], "a"));
    }
}
