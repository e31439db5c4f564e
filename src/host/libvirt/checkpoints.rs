//! Checkpoints with their bitmaps: listed, judged, removed.
//!
//! Of an active domain libvirt tells the state of each bitmap: what QEMU holds in memory is not in the image yet. Of a
//! shut-off one it tells nothing, and the images are asked.

use std::collections::BTreeMap;
use std::time::Duration;

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;

use super::link::Link;
use super::{CallError, HostError, Result, bitmaps, failed, ffi, images, inspect};
use crate::host::qemu::{ImageInfo, Use};
use crate::host::xml::{CheckpointDescription, oldest_first, read_checkpoint};
use crate::model::checkpoint::{Bitmap, Checkpoint, CheckpointDisk};
use crate::model::domain::{Disk, Domain};
use crate::model::stop::Stop;

/// How long `qemu-img` may take to read what an image says of itself.
pub const IMAGE_DEADLINE: Duration = Duration::from_secs(60);

/// How long `qemu-img` may take to add or remove a bitmap: much longer than it ever needs, because ending it half-way breaks all bitmaps of
/// the image.
pub const EDIT_DEADLINE: Duration = Duration::from_secs(600);

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
        descriptions.push(describe(&checkpoint)?);
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
            Some(Some(chain)) if is_usable(chain, name) => Bitmap::Sound,
            Some(Some(_)) => Bitmap::Broken,
            _ => Bitmap::Unknown,
        })
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
    let chain = images::infos(disk, Use::None, &Stop::default())?;
    Ok(chain
        .first()
        .is_some_and(|top| top.bitmaps.iter().any(|bitmap| bitmap.name == name)))
}

/// Whether a shut-off domain's disk has a bitmap that an incremental read can rely on.
pub fn has_usable_bitmap(disk: &Disk, name: &str, stop: &Stop) -> Result<bool> {
    Ok(is_usable(&images::infos(disk, Use::None, stop)?, name))
}

pub fn delete(link: &Link, domain: &Domain, name: &str) -> Result<()> {
    let handle = link.find(domain)?;
    let checkpoint = lookup(&handle, name)?;
    if inspect::is_active(&handle)? {
        let checkpoint = checkpoint.ok_or_else(|| HostError::NoSuchCheckpoint {
            name: name.to_owned(),
        })?;
        return delete_active(&handle, &checkpoint, name).map(drop);
    }
    if !link.location().is_local {
        return Err(inspect::not_here("its images"));
    }
    // The bitmaps go before libvirt's record of them: if this is interrupted, the record still says what is left to do.
    let removed = bitmaps::remove_from_images(link, &domain.disks, name)?;
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

/// Removes the record of a checkpoint alone. libvirt does that in every state of the domain.
pub fn forget(link: &Link, domain: &Domain, name: &str) -> Result<()> {
    let handle = link.find(domain)?;
    let checkpoint = lookup(&handle, name)?.ok_or_else(|| HostError::NoSuchCheckpoint {
        name: name.to_owned(),
    })?;
    checkpoint
        .delete(true)
        .map_err(failed(format!("forget the checkpoint {name}")))
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
        if bitmaps::remove_of_disk(handle, &live, &target, name)? {
            removed.push(target);
        }
    }
    Ok(removed)
}

/// libvirt's words since 7.x (qemuBlockBitmapsHandle… in src/qemu/qemu_checkpoint.c); the number is that of any internal error.
pub fn is_lost_bitmap(error: &CallError) -> bool {
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
            bitmaps: bitmaps.iter().map(bitmap).collect(),
            ..ImageInfo::default()
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
        assert_eq!(ask(true).expect("it is no qcow2 image"), Bitmap::Unknown);
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(ask(false).expect("nothing is asked"), Bitmap::Unknown);
        assert_eq!(ask(true).expect("it is missing"), Bitmap::Broken);
    }

    fn domain_with(image: &std::path::Path) -> Domain {
        use crate::model::domain::{Agent, DiskFormat, DomainState, Source};
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
            has_tpm_state: false,
            agent: Agent::None,
            inactive_xml: String::new(),
        }
    }

    #[test]
    fn sound_bitmap_in_the_top_image_only_is_usable() {
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
