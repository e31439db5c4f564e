//! Decides which parts of each disk have to be compared with the restore point. Pure.

use crate::model::chain::Chains;
use crate::model::checkpoint::Checkpoint;
use crate::model::domain::{Disk, Domain};
use crate::model::eligibility::{self, Allowed, Eligibility};
use crate::model::finding::Finding;
use crate::model::level::{self, FullRule, Parent};
use crate::model::restore_point::RestorePoint;
use crate::ops::plan::disk_now;
use crate::ops::restore_mark::RestoreMark;
use crate::ops::survey::DiskFacts;

/// The plan of a restore in place.
#[derive(Clone, Debug)]
pub struct InPlacePlan {
    /// The restore point.
    pub point: RestorePoint,
    /// The domain of the restore point, if a disk gets the content of another one.
    pub of: Option<String>,
    /// Whether the present state is saved first.
    pub saves: bool,
    /// The mark of an unfinished restore in place that this one finishes.
    pub ends: Option<RestoreMark>,
    /// The disks.
    pub disks: Vec<InPlaceDisk>,
    /// The findings.
    pub findings: Vec<Finding>,
}

/// One disk of a restore in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InPlaceDisk {
    /// The disk's target.
    pub target: String,
    /// The target of the disk in the restore point, if it differs from `target`.
    pub from: Option<String>,
    /// The size of the disk in the restore point, in bytes.
    pub size: u64,
    /// The place of the disk's image, in words.
    pub source: String,
    /// Which parts have to be compared.
    pub basis: Basis,
}

/// What is known about the places where a disk may differ from the restore point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The disk can differ only where the bitmap of a checkpoint marks writes, and where the
    /// restore points between the checkpoint's restore point and the wanted one hold data.
    Changes {
        /// The restore point and its checkpoint.
        since: Parent,
        /// The part of the chain between that restore point and the wanted one; `None` if they are
        /// the same.
        between: Option<ChainPart>,
    },
    /// Nothing is known, for this reason: the whole disk is compared.
    Whole(String),
}

impl Basis {
    /// The checkpoint whose bitmap is needed.
    pub fn checkpoint(&self) -> Option<&str> {
        match self {
            Basis::Changes { since, .. } => Some(&since.checkpoint),
            Basis::Whole(_) => None,
        }
    }

    /// Which parts are compared, in words.
    pub fn sentence(&self) -> String {
        match self {
            Basis::Changes { since, between: None } => format!("what was written since {}", since.id),
            Basis::Changes {
                since,
                between: Some(part),
            } => format!(
                "what was written since {}, and the data of {} in its chain",
                since.id,
                match part.steps {
                    1 => "one restore point".to_owned(),
                    steps => format!("{steps} restore points"),
                }
            ),
            Basis::Whole(why) => format!("the whole disk ({why})"),
        }
    }
}

impl InPlaceDisk {
    /// The target of the disk in the restore point.
    pub(super) fn in_point(&self) -> &str {
        self.from.as_ref().unwrap_or(&self.target)
    }
}

/// A part of a chain: two restore points of which one depends on the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainPart {
    /// The id of the newer one.
    pub newer: String,
    /// The id of the older one.
    pub older: String,
    /// The number of steps from the newer one to the older one in the chain; at least 1.
    pub steps: usize,
}

/// The inputs of the decision about each disk.
pub(super) struct Known<'a> {
    pub(super) domain: &'a Domain,
    pub(super) disks: &'a [DiskFacts],
    pub(super) chains: &'a Chains,
    pub(super) checkpoints: &'a [Checkpoint],
    /// The reason why no bitmap can be used on this hypervisor; `None` if bitmaps can be used.
    pub(super) no_bitmaps: Option<&'a str>,
}

/// Decides which parts of a disk have to be compared with a restore point.
pub(super) fn basis(known: &Known<'_>, disk: &Disk, point: &RestorePoint) -> Basis {
    let full_only = match eligibility::of(known.domain, disk, Allowed::ALL, &[]) {
        Eligibility::FullOnly(why) => Some(why),
        _ => known.no_bitmaps.map(str::to_owned),
    };
    let facts = known.disks.iter().find(|facts| facts.target == disk.target);
    let now = disk_now(disk, full_only, facts);
    let (uuid, chains) = (&known.domain.uuid, known.chains);
    // The newest restore point with a usable bitmap: it shows the least.
    let newest = level::decide(&now, uuid, ("", FullRule::Never), chains, known.checkpoints);
    if let Some(since) = &newest.parent {
        let since = since.clone();
        if since.id == point.id {
            return Basis::Changes { since, between: None };
        }
        let part = chain_part(chains, &since.id, &point.id, &disk.target);
        if part.is_some() {
            return Basis::Changes { since, between: part };
        }
    }
    match level::recorded_since(&now, uuid, &point.id, chains, known.checkpoints) {
        Some(since) => Basis::Changes { since, between: None },
        None => Basis::Whole(match newest.parent {
            Some(other) => format!(
                "the bitmap records writes since {}, which is not in the same chain as {}",
                other.id, point.id
            ),
            None => newest.reason.to_string(),
        }),
    }
}

/// The part of the chain between two restore points, if one of them depends on the other for this
/// disk.
fn chain_part(chains: &Chains, one: &str, other: &str, target: &str) -> Option<ChainPart> {
    let below = |newer: &str, older: &str| {
        let line = chains.lineage(newer, target).ok()?;
        let steps = line.iter().position(|kept| kept.point.id == older)?;
        Some(ChainPart {
            newer: newer.to_owned(),
            older: older.to_owned(),
            steps,
        })
    };
    below(one, other).or_else(|| below(other, one))
}
