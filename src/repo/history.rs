//! The content of a repository for one domain, independent of the kind of repository.

use super::manifest::{FileEntry, Manifest};
use super::proof::{BootProof, Proof};
use crate::model::chain::Chains;
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;

/// The code of the finding that only a newer program can read a restore point. This is not damage.
pub(crate) const WRITTEN_BY_A_NEWER_VMSNAP: &str = "restore-point-too-new";

/// The code of the finding that a checkpoint's XML is missing or differs from its entry in the
/// manifest.
pub(crate) const CHECKPOINT_DAMAGED: &str = "checkpoint-file-damaged";

/// The code of the finding that the record of removed restore points cannot be read.
pub(crate) const REMOVALS_UNREADABLE: &str = "removals-unreadable";

/// The code of the finding that an incremental backup of virtnbdbackup may lack what became zero.
pub(crate) const ZEROES_MISSING: &str = "zeroes-may-be-missing";

/// The code of the finding that a file of virtnbdbackup has no checksum.
pub(crate) const CHECKSUM_MISSING: &str = "checksum-missing";

/// The findings of a restore point that say what its content may lack, or that damage of it cannot
/// be found. Readers report them. A copy has digests of its own.
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
    /// Their manifests and where they are, in the order of `chains`.
    pub kept: Vec<Kept>,
    /// The problems that were found, such as restore points without a readable manifest.
    pub findings: Vec<Finding>,
    /// The leftovers of unfinished runs.
    pub leftovers: Vec<Leftover>,
    /// Whether a merge can probably continue an image where it is, instead of copying it.
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

    /// Whether removing a restore point frees what it stores. Complete restore points share their
    /// data, and a collection deletes what none of them needs.
    pub(crate) fn frees_space(&self) -> bool {
        self.chains.points().iter().all(|kept| kept.needs_parents)
    }

    /// Faults of the files of restore points, as far as names and sizes show. `list` reports them
    /// with each restore point; other callers use these findings.
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
    /// Its location, for people.
    pub location: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// The verification that counts for it: the newest one, unless an older one found damage that
    /// no later one has disproved.
    pub proof: Option<Proof>,
    /// The names of all records of its verifications, without those of boot proofs.
    pub records: Vec<String>,
    /// The newest boot proof of it; `None` if there is none.
    pub boot_proof: Option<BootProof>,
    /// Whether the XML of its checkpoint is there with the recorded length; true if it has no
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
    /// The key by which its repository finds it again.
    pub key: String,
    /// Its location, for people.
    pub location: String,
    /// Whether it is an unfinished merge.
    pub is_merge: bool,
}

/// The journal entry of an unfinished run, which the run wrote before it began anything outside the
/// repository; or the mark of a restore in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// None: for example, the run ended before it wrote one.
    None,
    /// The content of the entry.
    Text(Vec<u8>),
    /// Something that can never become one is in its place. The sentence names the path.
    Unusable(String),
}
