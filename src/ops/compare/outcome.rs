//! The result of a comparison, and its verdict.

use super::MISSED_WRITE;
use crate::model::finding::Finding;
use crate::ops::each::{Fault, Judged};

/// The result of a comparison.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The disks that were compared.
    pub disks: Vec<ComparedDisk>,
    /// The disks that were not compared.
    pub uncompared: Vec<UncomparedDisk>,
    /// Findings, including those of healing and one for each uncompared disk. The monitor has
    /// received all of them except those about uncompared disks, because the outcome names these
    /// disks already.
    pub findings: Vec<Finding>,
}

/// The verdict of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All compared clusters are the same.
    Same,
    /// No difference, but a disk could not be compared although its newest restore point has a
    /// checkpoint for it.
    Incomplete,
    /// A cluster differs; or one differed in an earlier comparison, and the disk has not been saved
    /// since.
    Differs,
}

impl Outcome {
    /// Returns the verdict.
    pub fn verdict(&self) -> Verdict {
        let means = |meaning| self.uncompared.iter().any(|disk| disk.meaning == meaning);
        if self.disks.iter().any(|disk| disk.differing > 0) || means(Meaning::MissedWrite) {
            Verdict::Differs
        } else if means(Meaning::NotComparable) {
            Verdict::Incomplete
        } else {
            Verdict::Same
        }
    }

    /// Whether everything that had to be compared was compared, and is the same.
    pub fn is_same(&self) -> bool {
        self.verdict() == Verdict::Same
    }
}

impl Judged for Outcome {
    fn faults(&self) -> Vec<Fault> {
        match self.verdict() {
            Verdict::Same => Vec::new(),
            Verdict::Incomplete => vec![Fault::Incomplete],
            Verdict::Differs => vec![Fault::Damaged],
        }
    }
}

/// A disk that was not compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UncomparedDisk {
    /// Its target.
    pub target: String,
    /// The reason, as a phrase.
    pub why: String,
    /// The kind of the reason.
    pub meaning: Meaning,
}

/// The kind of the reason why a disk was not compared. The verdict depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// An earlier comparison found that the disk's bitmap missed a write, and the disk was not
    /// saved since.
    MissedWrite,
    /// Its newest restore point has a checkpoint for it, but the disk cannot be compared now.
    NotComparable,
    /// No backup relies on the disk's bitmap: the disk is excluded, the domain no longer has it, or
    /// its newest restore point has no checkpoint for it.
    NothingToCompare,
}

impl UncomparedDisk {
    /// Returns the finding about this disk.
    pub(super) fn finding(&self) -> Finding {
        let code = match self.meaning {
            Meaning::MissedWrite => MISSED_WRITE,
            Meaning::NotComparable | Meaning::NothingToCompare => "not-compared",
        };
        let what = format!("disk {} is not compared: {}", self.target, self.why);
        Finding::of_disk(code, &self.target, what)
    }
}

/// A disk that was compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparedDisk {
    /// Its target.
    pub target: String,
    /// The restore point that it was compared with.
    pub point: String,
    /// The number of clusters that hold data and that the bitmap marks as unchanged.
    pub unchanged: u64,
    /// How many of them were compared.
    pub compared: u64,
    /// How many of the compared clusters differ.
    pub differing: u64,
    /// Whether the repository has recorded the difference, if there is one.
    pub is_remembered: bool,
    /// The offsets of the first differing clusters, in bytes; at most 20.
    pub places: Vec<u64>,
}

impl ComparedDisk {
    /// Returns what a difference means for the next backup.
    pub(crate) fn consequence(&self) -> &'static str {
        match self.is_remembered {
            true => "the next backup will save this disk in full",
            false => {
                "the difference cannot be recorded, so the next backup may rely on the disk's \
                 bitmap: remove the bitmap (vmsnap scrub), so that the next backup saves the disk in full"
            }
        }
    }
}
