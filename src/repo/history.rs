//! What a repository holds of a domain, whatever kind it is of.

use super::manifest::Manifest;
use super::proof::Proof;
use crate::model::chain::Chains;
use crate::model::finding::Finding;

/// The code of the finding that only a newer program can read a restore point. It is no damage.
pub const WRITTEN_BY_A_NEWER_VMSNAP: &str = "restore-point-too-new";

/// The code of what is found of a checkpoint's XML that a manifest records and that is not there as
/// it was.
pub const CHECKPOINT_DAMAGED: &str = "checkpoint-file-damaged";

/// The code of the finding that the record of removed restore points cannot be read.
pub const REMOVALS_UNREADABLE: &str = "removals-unreadable";

/// What a repository holds of a domain.
#[derive(Debug, Default)]
pub struct History {
    /// The restore points whose manifests can be read.
    pub chains: Chains,
    /// Their manifests and where they are, in the order of `chains`.
    pub kept: Vec<Kept>,
    /// What is wrong: restore points without a readable manifest and the like.
    pub findings: Vec<Finding>,
    /// What unfinished runs left.
    pub leftovers: Vec<Leftover>,
}

impl History {
    /// Manifest and place of a restore point.
    pub fn get(&self, id: &str) -> Option<&Kept> {
        self.kept.iter().find(|kept| kept.manifest.point.id == id)
    }

    /// The restore points that depend directly on this one, in the order of `kept`.
    pub fn children<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Kept> {
        let depends = move |kept: &&Kept| {
            let mut disks = kept.manifest.point.disks.iter();
            disks.any(|disk| disk.parent.as_deref() == Some(id))
        };
        self.kept.iter().filter(depends)
    }

    /// What is wrong with the files of restore points, as far as names and sizes tell: `list` tells
    /// it beside each, the others by this.
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
    /// Where it is, for people.
    pub location: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// When it was last verified, and with what result.
    pub proof: Option<Proof>,
    /// The names of all records of its verifications.
    pub records: Vec<String>,
    /// Whether the XML of its checkpoint is there, as far as names and lengths tell; also if it has
    /// no checkpoint.
    pub has_checkpoint_file: bool,
}

impl Kept {
    /// Bytes of its files.
    pub fn size(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.size).sum()
    }
}

/// What a run left in a repository that ended early: a restore point that is not committed, or a
/// period that is half removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// By which its repository finds it again.
    pub key: String,
    /// Where it is, for people.
    pub location: String,
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
