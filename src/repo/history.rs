//! The content of a repository for one domain, independent of the kind of repository.

use super::manifest::{FileEntry, Manifest};
use super::proof::{BootProof, Proof};
use crate::model::chain::Chains;
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;

/// The code of the finding for a restore point that only a newer version of vmsnap can read. This
/// is not damage.
pub(crate) const WRITTEN_BY_A_NEWER_VMSNAP: &str = "restore-point-too-new";

/// The code of the finding for a checkpoint's XML that is missing or differs from its entry in the
/// manifest.
pub(crate) const CHECKPOINT_DAMAGED: &str = "checkpoint-file-damaged";

/// The code of the finding for a record of removed restore points that cannot be read.
pub(crate) const REMOVALS_UNREADABLE: &str = "removals-unreadable";

/// The code of the finding for an incremental backup of virtnbdbackup that may lack ranges which
/// became zero.
pub(crate) const ZEROES_MISSING: &str = "zeroes-may-be-missing";

/// The code of the finding for a file of virtnbdbackup without a checksum.
pub(crate) const CHECKSUM_MISSING: &str = "checksum-missing";

/// The findings of a restore point whose content may be incomplete, or whose damage cannot be
/// detected. They are reported to those who read it. A copy has digests of its own.
pub(crate) fn cautions(point: &RestorePoint) -> impl Iterator<Item = &Finding> {
    let is_copied = point.copied_from.is_some();
    point
        .findings
        .iter()
        .filter(move |finding| match finding.code.as_str() {
            ZEROES_MISSING => true,
            CHECKSUM_MISSING => !is_copied,
            _ => false,
        })
}

/// The content of a repository for one domain.
#[derive(Debug, Default)]
pub struct History {
    /// The restore points whose manifests can be read.
    pub chains: Chains,
    /// The manifests and locations of these restore points, in the order of `chains`.
    pub kept: Vec<Kept>,
    /// The problems that were found, such as restore points without a readable manifest.
    pub findings: Vec<Finding>,
    /// The leftovers of unfinished runs.
    pub leftovers: Vec<Leftover>,
    /// Whether a merge can probably append to an existing image, instead of copying it.
    pub(crate) can_continue: bool,
    /// Keeps merges from replacing the files that this history names; `None` if there is no need.
    pub(crate) _guard: Option<Box<dyn Guard>>,
}

/// Keeps merges from replacing files until it is dropped.
pub(crate) trait Guard: std::fmt::Debug + Send + Sync {}

impl History {
    /// The manifest and location of a restore point.
    pub fn get(&self, id: &str) -> Option<&Kept> {
        self.kept.iter().find(|kept| kept.manifest.point.id == id)
    }

    /// The restore points that depend directly on this one, in the order of `kept`.
    pub(crate) fn children<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Kept> {
        let depends = move |kept: &&Kept| {
            let mut parents = self.chains.parents(&kept.manifest.point);
            parents.any(|(_, parent)| parent == id)
        };
        self.kept.iter().filter(depends)
    }

    /// Whether removing a restore point frees the space of its data at once. If not, restore points
    /// share data, and a collection deletes data that none of them needs.
    pub(crate) fn frees_space(&self) -> bool {
        self.chains.points().iter().all(|kept| kept.needs_parents)
    }

    /// Findings about faults of the files of restore points, as far as names and sizes show them.
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
    /// Its location, for messages.
    pub location: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// The verification that counts: the newest one, unless an older one found damage that no later
    /// one has disproved.
    pub proof: Option<Proof>,
    /// The names of all records of its verifications, without those of boot proofs.
    pub records: Vec<String>,
    /// Its newest boot proof; `None` if there is none.
    pub boot_proof: Option<BootProof>,
    /// Whether the XML of its checkpoint exists and has the recorded length; true without a
    /// checkpoint.
    pub has_checkpoint_file: bool,
}

impl Kept {
    /// The number of bytes that its files store, without its manifest and its checkpoint's XML.
    pub(crate) fn size(&self) -> u64 {
        self.manifest.files.iter().map(FileEntry::stored).sum()
    }
}

/// The leftover of a run that ended early: an uncommitted restore point, a partly removed period or
/// restore point, or an unfinished merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The key by which the repository finds the leftover again.
    pub key: String,
    /// Its location, for messages.
    pub location: String,
    /// Whether it is an unfinished merge.
    pub is_merge: bool,
}

/// The journal entry of an unfinished run, which the run wrote before it began anything outside the
/// repository; or the mark of a restore in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// There is none, for example because the run ended before it wrote one.
    None,
    /// The content of the entry.
    Text(Vec<u8>),
    /// Something else is in its place, such as a folder. The sentence names the path.
    Unusable(String),
}
