//! Reads what a domain's folder holds: restore points, what is wrong with them, and what unfinished runs left.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::layout::{self, split_finished};
use super::manifest::{self, FileEntry, Manifest};
use super::proof::{Proof, Proofs};
use super::{RepoError, Result, spent};
use crate::model::chain::{Chains, FileFault, KeptPoint, LostPoint};
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
    /// The checkpoints whose XML lies beside restore points that cannot be read: nobody can tell which of them those recorded.
    pub unclear_checkpoints: Vec<String>,
}

impl History {
    /// Manifest and folder of a restore point.
    pub fn get(&self, id: &str) -> Option<&Kept> {
        self.kept.iter().find(|kept| kept.manifest.point.id == id)
    }

    /// What is wrong with the files of restore points, as far as names and sizes tell: `list` tells it beside each, the others by this.
    pub fn damage(&self) -> Vec<Finding> {
        let faults = self.chains.points().iter().flat_map(|kept| &kept.faults);
        faults
            .map(|fault| Finding::new("restore-point-damaged", fault.what.clone()))
            .collect()
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

impl Kept {
    /// The content of a small file of this restore point, if it is what the manifest says; otherwise a sentence that names it.
    pub fn read(&self, name: &str) -> std::result::Result<Vec<u8>, String> {
        let path = self.dir.join(name);
        let Some(entry) = self.manifest.file(name) else {
            return Err(format!("its manifest names no {}", path.display()));
        };
        if let Some(fault) = fault_of(&path, entry) {
            return Err(fault);
        }
        let bytes = read_bounded(&path, MAX_SMALL_FILE)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        let digest = blake3::hash(&bytes).to_hex();
        if !digest.as_str().eq_ignore_ascii_case(&entry.blake3) {
            return Err(format!(
                "{} is damaged: its digest is not the recorded one",
                path.display()
            ));
        }
        Ok(bytes)
    }
}

/// The largest file that is read into memory as a whole, in bytes: UEFI variables and XML are far smaller.
const MAX_SMALL_FILE: u64 = 256 << 20;

/// What an unfinished run left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its folder.
    pub dir: PathBuf,
}

/// What an unfinished run noted down before it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Nothing: it did not come so far.
    None,
    /// This text.
    Text(Vec<u8>),
    /// In its place is something that is no note, and will never be one; a sentence that names it.
    Unusable(String),
}

impl Note {
    /// Its text, if it has one.
    pub fn text(self) -> Option<Vec<u8>> {
        match self {
            Note::Text(bytes) => Some(bytes),
            Note::None | Note::Unusable(_) => None,
        }
    }
}

impl Leftover {
    /// What it noted down before it began. A note that cannot be read now is an error: what it tells must not be lost.
    pub fn intent(&self) -> Result<Note> {
        let path = self.dir.join(layout::INTENT);
        match read_bounded(&path, manifest::MAX_BYTES) {
            Ok(bytes) => Ok(Note::Text(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Note::None),
            Err(error) if is_of_another_kind(&error) => {
                Ok(Note::Unusable(format!("{} is no note: {error}", path.display())))
            }
            Err(error) => Err(RepoError::io("read", &path)(error)),
        }
    }
}

/// Reads a domain's folder. A folder that is not there holds nothing.
pub(super) fn read(dir: &Path, domain: &str) -> Result<History> {
    let proofs = Proofs::read(dir);
    let mut found = Found::default();
    for period in period_names(dir)? {
        let period_dir = dir.join(&period);
        let of_period = read_period(&period_dir, domain, &period, &proofs)?;
        // A period loses its name before its files: one that is being removed meanwhile has not lost some of them, it is not there.
        if !is_gone(&period_dir) {
            found.take(of_period);
        }
    }
    let Found {
        mut history,
        points,
        lost,
    } = found;
    history.unclear_checkpoints.extend(spent::read(dir));
    history.chains = Chains::new(points).beside(lost);
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

/// What was found before it is put in order.
#[derive(Default)]
struct Found {
    history: History,
    points: Vec<KeptPoint>,
    lost: Vec<LostPoint>,
}

impl Found {
    fn take(&mut self, other: Found) {
        self.history.kept.extend(other.history.kept);
        self.history.findings.extend(other.history.findings);
        self.history.leftovers.extend(other.history.leftovers);
        let unclear = other.history.unclear_checkpoints;
        self.history.unclear_checkpoints.extend(unclear);
        self.points.extend(other.points);
        self.lost.extend(other.lost);
    }
}

fn read_period(period_dir: &Path, domain: &str, period: &str, proofs: &Proofs) -> Result<Found> {
    let mut found = Found::default();
    let history = &mut found.history;
    for folder in folder_names(period_dir)? {
        let point_dir = period_dir.join(&folder);
        if folder.ends_with(layout::PARTIAL) {
            history.leftovers.push(Leftover { dir: point_dir });
        } else if let Some((id, _)) = split_finished(&folder) {
            match read_point(&point_dir, id, domain, period, &folder) {
                Ok(manifest) => {
                    let proof = proofs.of(&manifest);
                    history.findings.extend(checkpoint_fault(period_dir, &manifest));
                    found.points.push(KeptPoint {
                        point: manifest.point.clone(),
                        manifest: manifest.digest.clone(),
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
                Err(what) => {
                    history
                        .findings
                        .push(Finding::new("restore-point-unreadable", what.clone()));
                    let id = id.to_owned();
                    found.lost.push(LostPoint { id, what });
                }
            }
        }
    }
    if !found.lost.is_empty() {
        history.unclear_checkpoints = checkpoint_names(&period_dir.join(layout::CHECKPOINTS));
    }
    Ok(found)
}

/// The ids of the restore points that are there, whatever their manifests are like.
pub(super) fn finished_ids(dir: &Path) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    for period in period_names(dir)? {
        let folders = folder_names(&dir.join(period))?;
        ids.extend(
            folders
                .iter()
                .filter_map(|folder| Some(split_finished(folder)?.0.to_owned())),
        );
    }
    Ok(ids)
}

fn period_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = folder_names(dir)?;
    names.retain(|name| name.starts_with(FOLDER_PREFIX));
    Ok(names)
}

fn is_gone(dir: &Path) -> bool {
    dir.symlink_metadata()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
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
fn file_faults(dir: &Path, manifest: &Manifest) -> Vec<FileFault> {
    let fault = |file: &FileEntry| {
        Some(FileFault {
            file: file.name.clone(),
            what: fault_of(&dir.join(&file.name), file)?,
        })
    };
    manifest.files.iter().filter_map(fault).collect()
}

/// What is wrong with the XML of a restore point's checkpoint. No restore needs it, so it is told and no more.
fn checkpoint_fault(period_dir: &Path, manifest: &Manifest) -> Option<Finding> {
    let file = manifest.checkpoint_file.as_ref()?;
    let path = period_dir.join(layout::CHECKPOINTS).join(&file.name);
    fault_of(&path, file).map(|what| Finding::new("checkpoint-file-damaged", what))
}

fn fault_of(path: &Path, file: &FileEntry) -> Option<String> {
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

/// The checkpoints whose XML is in a folder, as far as it can be read.
fn checkpoint_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_suffix(".xml").map(str::to_owned))
        .collect()
}

/// Whether a folder has the folder of a period in it.
pub(super) fn holds_periods(dir: &Path) -> bool {
    period_names(dir).is_ok_and(|names| !names.is_empty())
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
        // A link to a folder counts as one: people spread large domains over disks. One that leads nowhere, or in a circle, does not.
        match fs::metadata(entry.path()) {
            Ok(found) if found.is_dir() => names.push(name),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_circle(&error) => {}
            Err(error) => return Err(RepoError::io("look at", &entry.path())(error)),
        }
    }
    names.sort();
    Ok(names)
}

fn is_circle(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// Whether what is there is no file, or none that could be ours: to read it once more would not help.
fn is_of_another_kind(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::IsADirectory,
        io::ErrorKind::InvalidInput,
        io::ErrorKind::FileTooLarge,
    ];
    kinds.contains(&error.kind()) || is_circle(error)
}

pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        // To open a pipe would wait for somebody who writes to it.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let found = file.metadata()?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {limit} bytes"),
        ));
    }
    Ok(bytes)
}
