//! Reads one restore point: its manifest, and the names and sizes of its files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::look::read_bounded;
use super::{layout, patch};
use crate::image::StoredFile;
use crate::model::chain::FileFault;
use crate::model::finding::Finding;
use crate::model::text::shown;
use crate::repo::history::CHECKPOINT_DAMAGED;
use crate::repo::manifest::{self, FileEntry, Manifest, ManifestError};
use crate::repo::{RepoError, Result};

/// The reason why a restore point cannot be used.
pub(super) struct Unusable {
    /// A sentence that names the file.
    pub(super) what: String,
    /// Whether a newer version of vmsnap wrote it, so that it may be sound.
    pub(super) is_newer: bool,
}

impl Unusable {
    /// The reason `what` means damage.
    pub(super) fn damaged(what: String) -> Unusable {
        Unusable {
            what,
            is_newer: false,
        }
    }
}

/// The values that a manifest must contain to match the folder it is in.
pub(super) struct Expected<'a> {
    pub(super) id: &'a str,
    pub(super) domain: &'a str,
    pub(super) period: &'a str,
    pub(super) folder: &'a str,
}

/// Reads one manifest, or returns the reason why it is not usable.
///
/// # Errors
/// Permission was denied, so it is unknown whether the manifest is usable.
pub(super) fn read_point(
    dir: &Path,
    expected: &Expected<'_>,
) -> Result<std::result::Result<Manifest, Unusable>> {
    let path = dir.join(layout::MANIFEST);
    match read_bounded(&path, manifest::MAX_BYTES) {
        Ok(text) => Ok(usable(&path, &text, expected)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(RepoError::io("read", &path)(error))
        }
        Err(error) => {
            let what = format!("{} cannot be read: {error}", path.display());
            Ok(Err(Unusable::damaged(what)))
        }
    }
}

/// The manifest in this text, if it belongs to this place.
fn usable(path: &Path, text: &[u8], expected: &Expected<'_>) -> std::result::Result<Manifest, Unusable> {
    let manifest = Manifest::parse(text).map_err(|error| Unusable {
        what: format!("{} cannot be used: {error}", path.display()),
        is_newer: matches!(error, ManifestError::TooNew(_)),
    })?;
    let point = &manifest.point;
    let claims = [
        ("restore point", point.id.as_str(), expected.id),
        ("domain", &point.domain, expected.domain),
        ("period", &point.period, expected.period),
        ("folder", &point.folder(), expected.folder),
    ];
    for (what, said, expected) in claims {
        if said != expected {
            return Err(Unusable::damaged(format!(
                "{} is in the wrong folder: its {what} is '{}' instead of '{}'",
                path.display(),
                shown(said),
                shown(expected)
            )));
        }
    }
    Ok(manifest)
}

/// The path of a file of a restore point. A new image of a merge has a name of its own until it
/// takes the place of the old one.
pub(super) fn path_of(dir: &Path, manifest: &Manifest, name: &str) -> PathBuf {
    let merges = manifest.point.merges();
    let is_image = manifest.point.disks.iter().any(|disk| disk.image == name);
    let new = (merges > 0 && is_image).then(|| dir.join(layout::merged_image(name, merges)));
    let new = new.filter(|new| new.symlink_metadata().is_ok());
    new.unwrap_or_else(|| dir.join(name))
}

/// The faults of a restore point's files, as far as names and sizes show.
pub(super) fn file_faults(dir: &Path, manifest: &Manifest) -> Vec<FileFault> {
    let fault = |file: &FileEntry| {
        Some(FileFault {
            file: file.name.clone(),
            what: fault_of(&path_of(dir, manifest, &file.name), file)?,
        })
    };
    manifest.files.iter().filter_map(fault).collect()
}

/// The fault of a checkpoint's XML, if it has one. Such a fault is only reported, because no
/// restore needs the file.
pub(super) fn checkpoint_fault(period_dir: &Path, manifest: &Manifest) -> Option<Finding> {
    let (path, file) = checkpoint_file(period_dir, manifest)?;
    fault_of(&path, file).map(|what| Finding::new(CHECKPOINT_DAMAGED, what))
}

/// The path of a checkpoint's XML, and its entry in the manifest.
pub(super) fn checkpoint_file<'a>(
    period_dir: &Path,
    manifest: &'a Manifest,
) -> Option<(PathBuf, &'a FileEntry)> {
    let file = manifest.checkpoint_file.as_ref()?;
    Some((period_dir.join(layout::CHECKPOINTS).join(&file.name), file))
}

/// Whether a file that was found with this length has the size in the manifest. A merge may be
/// continuing it.
fn has_size(path: &Path, length: u64, file: &FileEntry) -> bool {
    let is_longer = length > file.size;
    // A merge that is taken back cuts the file before it removes its note.
    let is_cut = || {
        path.symlink_metadata()
            .is_ok_and(|found| found.len() == file.size)
    };
    length == file.size || is_longer && (is_continued(path) || is_cut())
}

/// Whether a merge continues the image at this path.
fn is_continued(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let note = name.map(|name| path.with_file_name(layout::continued(name)));
    note.is_some_and(|note| note.symlink_metadata().is_ok())
}

/// The bytes of an opened file as its manifest describes them, even if a merge is appending to the
/// file or has done so.
///
/// # Errors
/// The file cannot be examined, or the changes that are still to be made in it cannot be read.
pub(super) fn stored(file: File, path: &Path, entry: &FileEntry) -> io::Result<StoredFile> {
    let length = file.metadata()?.len();
    let stored = StoredFile::from(file).with_patch(patch::read(path, entry)?);
    Ok(match has_size(path, length, entry) {
        true => stored.limited_to(entry.size),
        // The reader reports the wrong length.
        false => stored,
    })
}

/// The fault of a file, as far as its kind and size show.
pub(super) fn fault_of(path: &Path, file: &FileEntry) -> Option<String> {
    let shown = path.display();
    match path.symlink_metadata() {
        Ok(found) if !found.is_file() => Some(format!("{shown} is not a file")),
        Ok(found) if !has_size(path, found.len(), file) => Some(format!(
            "{shown} has {} bytes instead of {}",
            found.len(),
            file.size
        )),
        Ok(_) => {
            let changes = patch::path_of(path);
            let is_lost = patch::is_due(path, file) && changes.symlink_metadata().is_err();
            is_lost.then(|| format!("{} is missing", changes.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(format!("{shown} is missing")),
        Err(error) => Some(format!("{shown} cannot be read: {error}")),
    }
}
