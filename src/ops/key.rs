//! Manages the key slots of a pack repository.

use std::path::Path;

use super::{DiskStore, Error, Result, Store};
use crate::model::stop::Stop;
use crate::repo::{self, PackError, PackResult, RepoError};

pub use crate::repo::{IdentityFile, KeySlot, NewSlot, Opener, RecoveryFile, Secret, SlotOwner};

/// The largest recovery file, in bytes.
const LARGEST_RECOVERY_FILE: u64 = 16 * 1024;

/// Adds a key slot.
///
/// # Errors
/// The secret opens no slot, or the repository cannot be used.
pub fn add(location: &Path, opener: &Opener, new: &NewSlot<'_>, stop: &Stop) -> Result<KeySlot> {
    done(repo::open_pack(location, stop).and_then(|repository| repository.add_slot(opener, new, stop)))
}

/// Removes a key slot.
///
/// # Errors
/// The slot is the last one, the secret opens no slot, or the repository cannot be used.
pub fn remove(location: &Path, opener: &Opener, slot: &str, stop: &Stop) -> Result<KeySlot> {
    done(repo::open_pack(location, stop).and_then(|repository| repository.remove_slot(opener, slot, stop)))
}

/// Writes a copy of a key slot, in the format of age, to a new file that only its owner may read.
///
/// # Errors
/// There is no such slot, the repository cannot be used, or the file exists or cannot be written.
pub fn export(location: &Path, slot: Option<&str>, file: &Path, stop: &Stop) -> Result<KeySlot> {
    let write = |content: &[u8]| {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        DiskStore.create_file(file, content)?;
        DiskStore.sync_dir(folder.unwrap_or(Path::new(".")))
    };
    let export = || -> PackResult<KeySlot> {
        let (slot, content) = repo::open_pack(location, stop)?.export(slot, stop)?;
        write(&content).map_err(|source| PackError::Write {
            path: file.to_owned(),
            source,
        })?;
        Ok(slot)
    };
    done(export())
}

/// Reads a recovery file.
///
/// # Errors
/// The file cannot be read, or is too large.
pub fn read_recovery_file(path: &Path) -> Result<RecoveryFile> {
    let unusable = |why: String| PackError::SecretFile {
        path: path.to_owned(),
        why,
    };
    let read = || -> PackResult<RecoveryFile> {
        let content = read_bounded(path).map_err(|error| unusable(error.to_string()))?;
        match content.len() as u64 > LARGEST_RECOVERY_FILE {
            true => Err(unusable(format!(
                "this file is larger than any recovery file (at most {} KiB)",
                LARGEST_RECOVERY_FILE / 1024
            ))),
            false => Ok(RecoveryFile {
                name: path.display().to_string(),
                content,
            }),
        }
    };
    done(read())
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(LARGEST_RECOVERY_FILE + 1).read_to_end(&mut content)?;
    Ok(content)
}

/// Turns an error of the repository into one of a verb.
pub(crate) fn done<T>(result: PackResult<T>) -> Result<T> {
    result.map_err(|error| Error::of("", RepoError::from(error)))
}
