//! Reads one restore point: its manifest, and what a look at the names and sizes of its files tells.

use std::io;
use std::path::Path;

use super::history::CHECKPOINT_DAMAGED;
use super::layout;
use super::look::read_bounded;
use super::manifest::{self, FileEntry, Manifest, ManifestError};
use crate::model::chain::FileFault;
use crate::model::finding::Finding;
use crate::model::text::shown;

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

/// Reads one manifest.
pub(super) fn read_point(
    dir: &Path,
    id: &str,
    domain: &str,
    period: &str,
    folder: &str,
) -> std::result::Result<Manifest, Unusable> {
    let path = dir.join(layout::MANIFEST);
    let text = read_bounded(&path, manifest::MAX_BYTES)
        .map_err(|error| Unusable::damaged(format!("{} cannot be read: {error}", path.display())))?;
    let manifest = Manifest::parse(&text).map_err(|error| Unusable {
        what: format!("{} cannot be used: {error}", path.display()),
        is_newer: matches!(error, ManifestError::TooNew(_)),
    })?;
    let point = &manifest.point;
    let claims = [
        ("restore point", point.id.as_str(), id),
        ("domain", &point.domain, domain),
        ("period", &point.period, period),
        ("folder", &point.folder(), folder),
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
    let file = manifest.checkpoint_file.as_ref()?;
    let path = period_dir.join(layout::CHECKPOINTS).join(&file.name);
    fault_of(&path, file).map(|what| Finding::new(CHECKPOINT_DAMAGED, what))
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
