//! Checks and removes bitmaps in the images of a shut-off domain's disks.

use std::time::Duration;

use super::link::Link;
use super::{HostError, Result, images};
use crate::host::qemu::{self, ImageInfo, Use};
use crate::model::domain::Disk;
use crate::model::stop::{Stop, WaitLimit};

/// How long `qemu-img` may take to add or remove a bitmap.
///
/// Much longer than it ever needs, because killing it midway breaks all bitmaps of the image.
pub(crate) const EDIT_DEADLINE: Duration = Duration::from_secs(600);

/// Returns whether an incremental read of the image can rely on the bitmap.
///
/// The bitmap has to be sound and in the topmost image only. `qemu-nbd --bitmap` also finds a
/// bitmap further down the chain, which lacks the writes to the images above it. If several images
/// have the bitmap, each records only a part of the writes.
pub fn is_usable(chain: &[ImageInfo], name: &str) -> bool {
    let Some((top, beneath)) = chain.split_first() else {
        return false;
    };
    let has = |image: &ImageInfo| image.bitmaps.iter().any(|bitmap| bitmap.name == name);
    top.bitmaps
        .iter()
        .any(|bitmap| bitmap.name == name && bitmap.sound)
        && !beneath.iter().any(has)
}

/// Returns whether the image of a shut-off domain's disk has a bitmap of this name, sound or
/// broken.
pub(crate) fn has_bitmap(disk: &Disk, name: &str) -> Result<bool> {
    let chain = images::infos(disk, Use::None, &Stop::default())?;
    Ok(chain
        .first()
        .is_some_and(|top| top.bitmaps.iter().any(|bitmap| bitmap.name == name)))
}

/// Returns whether a shut-off domain's disk has a bitmap that an incremental read can rely on.
pub(crate) fn has_usable_bitmap(disk: &Disk, name: &str, stop: &Stop) -> Result<bool> {
    Ok(is_usable(&images::infos(disk, Use::None, stop)?, name))
}

/// Removes the bitmap of this name from the disks of a shut-off domain.
///
/// Returns the targets of the disks that had one. A disk whose images cannot be opened now keeps
/// its bitmap, which does no harm, because its name is never used again.
///
/// # Errors
/// An image is in use or cannot be changed. The bitmaps of other disks may have been removed then.
pub(crate) fn remove_from_images(link: &Link, disks: &[Disk], name: &str) -> Result<Vec<String>> {
    let stop = Stop::default();
    let mut carriers = Vec::new();
    for disk in disks {
        let chain = images::infos_if_reachable(disk, &stop)?.unwrap_or_default();
        let has = |top: &ImageInfo| top.bitmaps.iter().any(|bitmap| bitmap.name == name);
        if chain.first().is_some_and(has) {
            carriers.push((disk, images::to_edit(link, disk, &stop)));
        }
    }
    let mut removed = Vec::new();
    for (disk, image) in carriers {
        // The image cannot be opened, for example because its secret is not available.
        let Ok(image) = image else { continue };
        // Never stopped midway: that would break all bitmaps of the image.
        let limit = WaitLimit {
            deadline: EDIT_DEADLINE,
            stop: Stop::default(),
        };
        qemu::remove_bitmap(&image, name, &limit).map_err(HostError::of_disk(&disk.target))?;
        removed.push(disk.target.clone());
    }
    Ok(removed)
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
