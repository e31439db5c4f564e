//! Reads what a domain's folder holds: restore points, what is wrong with them, and what unfinished runs left.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::layout::{self, split_finished};
use super::manifest::{self, Manifest};
use super::proof::{Proof, Proofs};
use super::{RepoError, Result};
use crate::model::chain::{Chains, KeptPoint};
use crate::model::finding::Finding;
use crate::model::period::FOLDER_PREFIX;
use crate::model::text::shown;

/// What a domain's folder holds.
#[derive(Debug, Default)]
pub struct History {
    /// The restore points whose manifests can be read.
    pub chains: Chains,
    /// Their manifests and folders, in the order of `chains`.
    pub kept: Vec<Kept>,
    /// What is wrong with the folder: restore points without a readable manifest and the like.
    pub findings: Vec<Finding>,
    /// What unfinished runs left.
    pub leftovers: Vec<Leftover>,
}

impl History {
    /// Manifest and folder of a restore point.
    pub fn get(&self, id: &str) -> Option<&Kept> {
        self.kept.iter().find(|kept| kept.manifest.point.id == id)
    }
}

/// A restore point with a manifest that could be read.
#[derive(Debug)]
pub struct Kept {
    /// Its folder.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// When it was last verified, and with what result.
    pub proof: Option<Proof>,
}

/// What an unfinished run left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its folder.
    pub dir: PathBuf,
}

impl Leftover {
    /// What it noted down before it began, if it came so far. A note that cannot be read is an error: what it tells must not be lost.
    pub fn intent(&self) -> Result<Option<Vec<u8>>> {
        let path = self.dir.join(layout::INTENT);
        match read_bounded(&path, manifest::MAX_BYTES) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RepoError::io("read", &path)(error)),
        }
    }
}

/// Reads a domain's folder. A folder that is not there holds nothing.
pub(super) fn read(dir: &Path, domain: &str) -> Result<History> {
    let mut history = History::default();
    let mut points = Vec::new();
    let proofs = Proofs::read(dir);
    for period in folder_names(dir)? {
        if !period.starts_with(FOLDER_PREFIX) {
            continue;
        }
        let period_dir = dir.join(&period);
        for folder in folder_names(&period_dir)? {
            let point_dir = period_dir.join(&folder);
            if folder.ends_with(layout::PARTIAL) {
                history.leftovers.push(Leftover { dir: point_dir });
            } else if let Some((id, _)) = split_finished(&folder) {
                match read_point(&point_dir, id, domain, &period, &folder) {
                    Ok(manifest) => {
                        let proof = proofs.of(&manifest);
                        points.push(KeptPoint {
                            point: manifest.point.clone(),
                            faults: file_faults(&point_dir, &manifest),
                            doubt: proof.as_ref().and_then(Proof::doubt),
                            missed: proofs.missed(&manifest),
                        });
                        history.kept.push(Kept {
                            dir: point_dir,
                            manifest,
                            proof,
                        });
                    }
                    Err(what) => history
                        .findings
                        .push(Finding::new("restore-point-unreadable", what)),
                }
            }
        }
    }
    history.chains = Chains::new(points);
    let order: Vec<&str> = history
        .chains
        .points()
        .iter()
        .map(|kept| kept.point.id.as_str())
        .collect();
    history
        .kept
        .sort_by_key(|kept| order.iter().position(|id| *id == kept.manifest.point.id));
    Ok(history)
}

/// Reads one manifest; the error is a sentence that names the file.
fn read_point(
    dir: &Path,
    id: &str,
    domain: &str,
    period: &str,
    folder: &str,
) -> std::result::Result<Manifest, String> {
    let path = dir.join(layout::MANIFEST);
    let text = read_bounded(&path, manifest::MAX_BYTES)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    let manifest =
        Manifest::parse(&text).map_err(|error| format!("{} cannot be used: {error}", path.display()))?;
    let point = &manifest.point;
    let claims = [
        ("restore point", point.id.as_str(), id),
        ("domain", &point.domain, domain),
        ("period", &point.period, period),
        ("folder", &point.folder(), folder),
    ];
    for (what, said, expected) in claims {
        if said != expected {
            return Err(format!(
                "{} does not belong here: it is of {what} '{}' and lies where '{}' is expected",
                path.display(),
                shown(said),
                shown(expected)
            ));
        }
    }
    Ok(manifest)
}

/// What is wrong with the files of a restore point, as far as a look at names and sizes tells.
fn file_faults(dir: &Path, manifest: &Manifest) -> Vec<String> {
    let mut faults = Vec::new();
    for file in &manifest.files {
        let path = dir.join(&file.name);
        match path.symlink_metadata() {
            Ok(found) if !found.is_file() => faults.push(format!("{} is not a file", path.display())),
            Ok(found) if found.len() != file.size => faults.push(format!(
                "{} has {} bytes instead of {}",
                path.display(),
                found.len(),
                file.size
            )),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                faults.push(format!("{} is missing", path.display()));
            }
            Err(error) => faults.push(format!("{} cannot be read: {error}", path.display())),
        }
    }
    faults
}

/// Whether a folder has the folder of a period in it.
pub(super) fn holds_periods(dir: &Path) -> bool {
    folder_names(dir).is_ok_and(|names| names.iter().any(|name| name.starts_with(FOLDER_PREFIX)))
}

/// The names of the folders in a folder, sorted; those that are no UTF-8 are none of ours. No folder, no names.
pub(super) fn folder_names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(RepoError::io("read the folder", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(RepoError::io("read the folder", dir))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // A link to a folder counts as one: people spread large domains over disks. One that leads nowhere does not.
        match fs::metadata(entry.path()) {
            Ok(found) if found.is_dir() => names.push(name),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(RepoError::io("look at", &entry.path())(error)),
        }
    }
    names.sort();
    Ok(names)
}

pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {limit} bytes"),
        ));
    }
    Ok(bytes)
}
