//! What a comparison has found, and what it comes to.

use super::MISSED_WRITE;
use crate::model::finding::Finding;
use crate::ops::each::{Fault, Judged};

/// What a comparison has found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The disks that could be compared.
    pub disks: Vec<ComparedDisk>,
    /// The disks that were not.
    pub uncompared: Vec<UncomparedDisk>,
    /// What else is worth reporting, including what was healed before, and a finding for each uncompared disk. Only those about uncompared disks
    /// have not been passed to the monitor: the outcome names these disks already.
    pub findings: Vec<Finding>,
}

/// What a comparison comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that a bitmap calls unchanged and that was compared is the same.
    Same,
    /// The same, but a disk could not be compared though its newest restore point has a checkpoint.
    Incomplete,
    /// Something differs, or has differed before and nothing was saved of that disk since.
    Differs,
}

impl Outcome {
    /// What it comes to.
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

    /// Whether all that had to be compared was, and was the same.
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
    /// Why not: a phrase.
    pub why: String,
    /// What follows from it.
    pub meaning: Meaning,
}

/// What it means that a disk was not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// An earlier comparison found that its bitmap had missed a write, and nothing was saved of it since.
    MissedWrite,
    /// Its newest restore point has a checkpoint of it, but that checkpoint cannot be used.
    NotComparable,
    /// It has no restore point, or none with a checkpoint: no backup relies on a bitmap of it.
    NothingToCompare,
}

impl UncomparedDisk {
    /// The finding about it.
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
    /// How many clusters with data had to be unchanged.
    pub unchanged: u64,
    /// How many of them were compared.
    pub compared: u64,
    /// How many of those differ.
    pub differing: u64,
    /// Whether it is remembered that some differ.
    pub is_remembered: bool,
    /// Where the first of those are on the disk, in bytes.
    pub places: Vec<u64>,
}

impl ComparedDisk {
    /// What follows for the next backup when it differs.
    pub fn consequence(&self) -> &'static str {
        match self.is_remembered {
            true => "the next backup of this disk will be full",
            false => {
                "that cannot be remembered, so the next backup may rely on its bitmap: remove it (vmsnap scrub), and it will be full"
            }
        }
    }
}
