//! Reads one restore point: its manifest, and what a look at the names and sizes of its files tells.

use std::io;
use std::path::{Path, PathBuf};

use super::layout;
use super::look::read_bounded;
use crate::model::chain::FileFault;
use crate::model::finding::Finding;
use crate::model::text::shown;
use crate::repo::history::CHECKPOINT_DAMAGED;
use crate::repo::manifest::{self, FileEntry, Manifest, ManifestError};
use crate::repo::{RepoError, Result};

/// Why a restore point cannot be used.
pub(super) struct Unusable {
    /// A sentence that names the file.
    pub(super) what: String,
    /// Whether nothing is wrong with it, as far as this program can tell.
    pub(super) is_newer: bool,
}

impl Unusable {
    /// Something is wrong with it.
    pub(super) fn damaged(what: String) -> Unusable {
        Unusable {
            what,
            is_newer: false,
        }
    }
}

/// What a restore point has to be, by the folders in which it lies.
pub(super) struct Expected<'a> {
    pub(super) id: &'a str,
    pub(super) domain: &'a str,
    pub(super) period: &'a str,
    pub(super) folder: &'a str,
}

/// Reads one manifest; if it is not usable, why not.
///
/// # Errors
/// That it may not be read: whether anything is wrong with it only somebody with more rights can tell.
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

/// The manifest in this text, if it is that of what lies there.
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
                "{} does not belong here: it is of {what} '{}' and lies where '{}' is expected",
                path.display(),
                shown(said),
                shown(expected)
            )));
        }
    }
    Ok(manifest)
}

/// What is wrong with the files of a restore point, as far as a look at names and sizes tells.
pub(super) fn file_faults(dir: &Path, manifest: &Manifest) -> Vec<FileFault> {
    let fault = |file: &FileEntry| {
        Some(FileFault {
            file: file.name.clone(),
            what: fault_of(&dir.join(&file.name), file)?,
        })
    };
    manifest.files.iter().filter_map(fault).collect()
}

/// What is wrong with the XML of a restore point's checkpoint. No restore needs it, so it is told and no more.
pub(super) fn checkpoint_fault(period_dir: &Path, manifest: &Manifest) -> Option<Finding> {
    let (path, file) = checkpoint_file(period_dir, manifest)?;
    fault_of(&path, file).map(|what| Finding::new(CHECKPOINT_DAMAGED, what))
}

/// Where the XML of a restore point's checkpoint has to be, and what the manifest says of it.
pub(super) fn checkpoint_file<'a>(
    period_dir: &Path,
    manifest: &'a Manifest,
) -> Option<(PathBuf, &'a FileEntry)> {
    let file = manifest.checkpoint_file.as_ref()?;
    Some((period_dir.join(layout::CHECKPOINTS).join(&file.name), file))
}

/// What is wrong with a file, as far as a look tells.
pub(super) fn fault_of(path: &Path, file: &FileEntry) -> Option<String> {
    let shown = path.display();
    match path.symlink_metadata() {
        Ok(found) if !found.is_file() => Some(format!("{shown} is not a file")),
        Ok(found) if found.len() != file.size => Some(format!(
            "{shown} has {} bytes instead of {}",
            found.len(),
            file.size
        )),
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(format!("{shown} is missing")),
        Err(error) => Some(format!("{shown} cannot be read: {error}")),
    }
}
