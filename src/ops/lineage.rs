//! The images that make up a disk at a restore point, as restores, backups and checks read them.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use crate::image::chain::{ChainImage, Recorded};
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
    pub fn open(&self) -> io::Result<ChainImage> {
        Ok(ChainImage {
            file: File::open(&self.path)?,
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

/// The images of a disk at a restore point, newest first and open, or what is wrong with the chain.
pub fn open(history: &History, id: &str, target: &str) -> Result<Vec<ChainImage>, String> {
    let opened = images(history, id, target)?.into_iter().map(|image| {
        let opened = image.open();
        opened.map_err(|error| format!("{} cannot be opened: {error}", image.path.display()))
    });
    opened.collect()
}
