//! Opens the images of a shut-off domain's disks as libvirt would.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::link::Link;
use super::{HostError, Result, secrets};
use crate::host::chain::header::Header;
use crate::host::chain::{self, Chain, Head, Image, Layout, Look, Trouble, open};
use crate::host::qemu::{self, ImageInfo, Keys, Target, Use};
use crate::model::domain::{Disk, DiskFormat};
use crate::model::stop::{Stop, WaitLimit};

/// How long `qemu-img` may take to read the properties of an image.
const IMAGE_DEADLINE: Duration = Duration::from_secs(60);

/// Reads image headers from this machine.
struct Here<'a> {
    /// If set, images on servers are inspected, too, until the user asks to stop.
    servers: Option<&'a Stop>,
}

impl Look for Here<'_> {
    fn head(&self, path: &Path) -> std::result::Result<Head, Trouble> {
        open::read_head(path)
    }

    fn remote_header(&self, storage: &Value) -> std::result::Result<Header, Trouble> {
        let Some(stop) = self.servers else {
            return Ok(Header::default());
        };
        let image = json!({"driver": "qcow2", "file": storage, "backing": null});
        let shown = "the image on the server";
        let info = Target::new(&image, shown, Keys::default())
            .and_then(|image| qemu::image_info(&image, Use::None, &limit(stop)))
            .map_err(|error| Trouble::Host(Box::new(error)))?;
        Ok(Header {
            backing: info.backing,
            has_data_file: info.data_file.is_some(),
            data_file: info.data_file,
            encryption: if info.is_encrypted { 2 } else { 0 },
            has_bitmaps: !info.bitmaps.is_empty(),
        })
    }
}

fn limit(stop: &Stop) -> WaitLimit {
    WaitLimit {
        deadline: IMAGE_DEADLINE,
        stop: stop.clone(),
    }
}

fn plan(disk: &Disk, stop: &Stop) -> Result<Chain> {
    Ok(chain::plan(disk, &Here { servers: Some(stop) })?)
}

/// Returns the reason why a disk of a shut-off domain must not be read, if there is one.
///
/// Does not connect to servers. An image that is broken or cannot be read now is not a reason.
pub fn refusal(disk: &Disk) -> Option<String> {
    match chain::plan(disk, &Here { servers: None }) {
        Err(Trouble::Refused(why)) => Some(why),
        _ => None,
    }
}

/// Describes a disk of a shut-off domain with its whole chain, for reading.
pub(crate) fn to_read(link: &Link, disk: &Disk, stop: &Stop) -> Result<Target> {
    let chain = plan(disk, stop)?;
    let keys = secrets::keys(link, &chain.secrets)?;
    Target::new(&chain.top.node()?, &chain.top.storage.text(), keys)
}

/// Describes only the topmost image of a shut-off domain's disk, to change its bitmaps.
pub(crate) fn to_edit(link: &Link, disk: &Disk, stop: &Stop) -> Result<Target> {
    let chain = plan(disk, stop)?;
    let keys = secrets::keys(link, &chain.secrets)?;
    Target::new(&chain.top.node_alone()?, &chain.top.storage.text(), keys)
}

/// Reads the properties of a disk's images, topmost first.
///
/// The list is empty if the disk's format has no bitmaps or if its image is missing.
pub(crate) fn infos(disk: &Disk, used: Use, stop: &Stop) -> Result<Vec<ImageInfo>> {
    let is_missing = disk.source.path().is_some_and(|path| !path.exists());
    if disk.format != DiskFormat::Qcow2 || is_missing {
        return Ok(Vec::new());
    }
    let chain = plan(disk, stop)?;
    let mut infos = Vec::new();
    for (depth, image) in chain.top.images().enumerate() {
        infos.push(match image.layout {
            Layout::Qcow2 { has_bitmaps, .. } if depth == 0 || has_bitmaps => info(image, used, stop)?,
            _ => ImageInfo::default(),
        });
    }
    Ok(infos)
}

/// Reads the properties of a disk's images; `None` if the images cannot be opened now.
///
/// Used for work on all disks of a shut-off domain: a disk that is refused, broken or on a server
/// that does not answer must not prevent work on the others.
///
/// # Errors
/// An image is in use, `qemu-img` is missing, or the user asked to stop.
pub(crate) fn infos_if_reachable(disk: &Disk, stop: &Stop) -> Result<Option<Vec<ImageInfo>>> {
    if disk.unreadable.is_some() {
        return Ok(None);
    }
    match infos(disk, Use::None, stop) {
        Ok(infos) => Ok(Some(infos)),
        Err(error @ (HostError::Stopped | HostError::MissingProgram { .. })) => Err(error),
        Err(error) if qemu::is_locked(&error) => Err(HostError::of_disk(&disk.target)(error)),
        Err(_) => Ok(None),
    }
}

/// Reads the properties of one image, which needs no key.
fn info(image: &Image, used: Use, stop: &Stop) -> Result<ImageInfo> {
    let image = Target::new(&image.node_alone()?, &image.storage.text(), Keys::default())?;
    qemu::image_info(&image, used, &limit(stop))
}
