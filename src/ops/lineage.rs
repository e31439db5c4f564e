//! The images that make up a disk at a restore point, as restores, backups and checks read them.

use std::fs::File;
use std::path::PathBuf;

use super::Cause;
use crate::image::chain::{ChainDisk, ChainImage, Recorded};
use crate::model::block::BlockError;
use crate::model::stop::Stop;
use crate::repo::History;

/// An image of a chain, with what its manifest says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedImage {
    /// Its path.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// Its BLAKE3 digest in hexadecimal.
    pub blake3: String,
}

impl PlannedImage {
    /// Opens it for reading.
    fn open(&self) -> Result<ChainImage, Cause> {
        let opened = File::open(&self.path);
        Ok(ChainImage {
            file: opened.map_err(|source| Cause::Io {
                operation: "open",
                path: self.path.clone(),
                source,
            })?,
            path: self.path.clone(),
            recorded: Some(Recorded {
                bytes: self.size,
                blake3: self.blake3.clone(),
            }),
        })
    }
}

/// The images of a disk at a restore point, newest first, or what is wrong with the chain.
pub fn images(history: &History, id: &str, target: &str) -> Result<Vec<PlannedImage>, String> {
    let mut images = Vec::new();
    for step in history.chains.lineage(id, target)? {
        // `lineage` only names restore points that are in the history, each with this disk.
        let (Some(kept), Some(disk)) = (history.get(&step.point.id), step.point.disk(target)) else {
            return Err(format!("restore point {} is missing", step.point.id));
        };
        let path = kept.dir.join(&disk.image);
        let Some(file) = kept.manifest.file(&disk.image) else {
            return Err(format!("its manifest names no {}", path.display()));
        };
        images.push(PlannedImage {
            path,
            size: file.size,
            blake3: file.blake3.clone(),
        });
    }
    Ok(images)
}

/// These images, open for reading.
pub fn open(images: &[PlannedImage]) -> Result<Vec<ChainImage>, Cause> {
    images.iter().map(PlannedImage::open).collect()
}

/// The images of a disk at a restore point, newest first and open.
///
/// # Errors
/// [`Cause::NotWhole`] when something is wrong with the chain; others when a file cannot be opened.
pub fn open_at(history: &History, id: &str, target: &str) -> Result<Vec<ChainImage>, Cause> {
    let images = images(history, id, target).map_err(|fault| Cause::NotWhole {
        id: id.to_owned(),
        fault,
    })?;
    open(&images)
}

/// The disk that they make up, to be read anywhere.
///
/// # Errors
/// As [`open_at`], and when an image cannot be read as such.
pub fn open_disk(history: &History, id: &str, target: &str, stop: &Stop) -> Result<ChainDisk, Cause> {
    let images = open_at(history, id, target)?;
    ChainDisk::open(images, stop.clone()).map_err(|error| Cause::Copy(BlockError::from(error)))
}
