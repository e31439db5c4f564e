//! What a repository holds of a domain, whatever kind it is of.

use std::io;
use std::path::PathBuf;

use super::folder::layout;
use super::folder::look::{is_of_another_kind, read_bounded};
use super::folder::point::fault_of;
use super::manifest::{self, Manifest};
use super::proof::Proof;
use super::{RepoError, Result};
use crate::model::chain::Chains;
use crate::model::finding::Finding;

/// The code of the finding that only a newer program can read a restore point. It is no damage.
pub const WRITTEN_BY_A_NEWER_VMSNAP: &str = "restore-point-too-new";

/// The code of what is found of a checkpoint's XML that a manifest records and that is not there as it was.
pub const CHECKPOINT_DAMAGED: &str = "checkpoint-file-damaged";

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
    /// The names of all records of its verifications.
    pub records: Vec<String>,
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
