//! The images of restore points: the chain that makes up a disk, and new ones.

use std::fs::File;
use std::path::PathBuf;

use super::point;
use crate::image::chain::{ChainDisk, ChainExtent, ChainImage, Recorded};
use crate::image::qcow2::{Base, CompressingWriter, Qcow2Options, Qcow2Writer};
use crate::model::block::{BlockError, BlockSink, ImageFile, Written};
use crate::model::chain::KeptPoint;
use crate::model::compression::Compression;
use crate::repo::{
    DiskReader, FileEntry, History, Kept, PieceEntry, RepoError, Result, Stored, StoredExtent,
};

/// Opens the images of a disk at a restore point, newest first. Images of the restore point `above`
/// and of its ancestors are left out. `dir_of` returns the folder of a restore point.
///
/// # Errors
/// [`RepoError::NotWhole`] if the chain has a fault, [`RepoError::Open`] if a file or its patch
/// cannot be opened or read.
pub(super) fn open(
    history: &History,
    id: &str,
    target: &str,
    above: Option<&str>,
    dir_of: impl Fn(&Kept) -> PathBuf,
) -> Result<Vec<ChainImage>> {
    let not_whole = |fault: String| RepoError::NotWhole {
        id: id.to_owned(),
        fault,
    };
    let mut images = Vec::new();
    let steps = history.chains.lineage(id, target).map_err(not_whole)?;
    let is_above = |step: &&KeptPoint| Some(step.point.id.as_str()) != above;
    for step in steps.into_iter().take_while(is_above) {
        // `lineage` only names restore points that are in the history, each with this disk.
        let (Some(kept), Some(disk)) = (history.get(&step.point.id), step.point.disk(target)) else {
            return Err(not_whole(format!("restore point {} is missing", step.point.id)));
        };
        let path = point::path_of(&dir_of(kept), &kept.manifest, &disk.image);
        let Some(file) = kept.manifest.file(&disk.image) else {
            return Err(not_whole(format!("{} is not in the manifest", path.display())));
        };
        let recorded = Recorded {
            bytes: file.size,
            blake3: file.blake3.clone(),
            pieces: file.pieces(),
        };
        images.push((path, file, recorded));
    }
    let open = |(path, entry, recorded): (PathBuf, &FileEntry, Recorded)| {
        let opened = File::open(&path).and_then(|file| point::stored(file, &path, entry));
        let opened = opened.map_err(|source| RepoError::Open {
            location: path.display().to_string(),
            source,
        });
        opened.map(|file| ChainImage {
            file,
            path,
            recorded: Some(recorded),
        })
    };
    images.into_iter().map(open).collect()
}

/// Begins to continue an image in its file.
pub(super) fn continuing(
    file: Box<dyn ImageFile>,
    options: Qcow2Options,
    base: Base,
    compression: Compression,
) -> Result<Box<dyn BlockSink>> {
    Ok(match compression {
        Compression::None => Box::new(Qcow2Writer::continued(file, options, base).map_err(BlockError::from)?),
        Compression::Zstd(level) => {
            let writer = CompressingWriter::continued(file, options, base, level);
            Box::new(writer.map_err(BlockError::from)?)
        }
    })
}

/// Begins an image in a new, empty file.
pub(super) fn writer(
    file: Box<dyn ImageFile>,
    options: Qcow2Options,
    compression: Compression,
) -> Result<Box<dyn BlockSink>> {
    Ok(match compression {
        Compression::None => Box::new(Qcow2Writer::new(file, options).map_err(BlockError::from)?),
        Compression::Zstd(level) => {
            Box::new(CompressingWriter::new(file, options, level).map_err(BlockError::from)?)
        }
    })
}

/// The manifest's entry for an image that was written.
pub(super) fn entry(name: &str, written: &Written) -> FileEntry {
    FileEntry {
        name: name.to_owned(),
        size: written.file_bytes,
        blake3: written.blake3.clone().unwrap_or_default(),
        pieces: written.pieces.as_ref().map(PieceEntry::from),
        unused: None,
    }
}

/// A disk that a chain of images makes up.
#[derive(Debug)]
pub(super) struct FolderDisk(pub(super) ChainDisk);

fn stored(offset: u64, extent: ChainExtent) -> StoredExtent {
    StoredExtent {
        offset,
        length: extent.length,
        stored: extent.image.map_or(Stored::Zero, |depth| Stored::Data { depth }),
    }
}

impl DiskReader for FolderDisk {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn extent_at(&self, offset: u64) -> std::result::Result<Option<StoredExtent>, BlockError> {
        Ok(self.0.extent_at(offset)?.map(|extent| stored(offset, extent)))
    }

    fn verified_extent_at(&self, offset: u64) -> std::result::Result<Option<StoredExtent>, BlockError> {
        let found = self.0.verified_extent_at(offset)?;
        Ok(found.map(|extent| stored(offset, extent)))
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> std::result::Result<(), BlockError> {
        Ok(self.0.read_at(out, offset)?)
    }

    fn holds(&self, bytes: &[u8], offset: u64) -> std::result::Result<bool, BlockError> {
        Ok(self.0.holds(bytes, offset)?)
    }
}
