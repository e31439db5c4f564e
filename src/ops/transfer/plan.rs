//! Decides which restore points are copied, and why the others are not. Pure.

use std::collections::BTreeSet;

use jiff::Zoned;

use super::Options;
use crate::model::chain::{Chains, KeptPoint};
use crate::model::restore_point::RestorePoint;
use crate::ops::restore::choose;
use crate::ops::{Cause, Error, Result, retention};
use crate::repo::History;

/// Which restore points a user wants in the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them, except those that were removed from the target on purpose.
    All,
    /// The newest one, unless it was removed from the target on purpose.
    Newest,
    /// The one that this text selects, as for a restore.
    At(String),
}

/// The decision about a restore point of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferDecision {
    /// It is copied.
    Copy,
    /// The target has it already.
    Present,
    /// It is not copied, because it was removed from the target on purpose.
    Removed,
    /// It is not copied, because the policy would remove it at once.
    NotKept,
    /// It is not copied, because another restore point of the target has its id.
    IdTaken,
    /// It is not copied, because the target has it, but damaged; the text says how.
    DamagedInTarget(String),
    /// It cannot be read completely; the text says why.
    Unusable(String),
}

/// A restore point of the source with the decision about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTransfer {
    /// The restore point.
    pub point: RestorePoint,
    /// The size of its files in the source, in bytes.
    pub size: u64,
    /// The decision.
    pub decision: TransferDecision,
}

/// The plan of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferPlan {
    /// The wanted restore points of the source, in the order of their commits.
    pub points: Vec<PlannedTransfer>,
    /// Sentences about wanted restore points of the source that cannot be read at all.
    pub lost: Vec<String>,
}

impl TransferPlan {
    /// The restore points to copy, oldest first.
    pub fn copies(&self) -> impl Iterator<Item = &PlannedTransfer> {
        let is_copied = |planned: &&PlannedTransfer| planned.decision == TransferDecision::Copy;
        self.points.iter().filter(is_copied)
    }

    /// The reasons why wanted restore points cannot be copied although the target lacks them: one
    /// sentence per restore point.
    pub fn obstacles(&self) -> impl Iterator<Item = String> {
        let obstacles = self.points.iter().filter_map(|planned| {
            let id = &planned.point.id;
            match &planned.decision {
                TransferDecision::Unusable(why) => Some(format!("restore point {id} cannot be copied: {why}")),
                TransferDecision::DamagedInTarget(what) => Some(format!(
                    "restore point {id} is damaged in the target ({what}), and copying does not replace it: delete \
                     its remains in the target, then copy again"
                )),
                TransferDecision::IdTaken => Some(format!(
                    "restore point {id} cannot be copied: the target has another one with this id"
                )),
                _ => None,
            }
        });
        obstacles.chain(self.lost.iter().cloned())
    }

    /// Whether a wanted restore point is damaged in the source or in the target.
    pub fn has_damage(&self) -> bool {
        let is_damaged = |planned: &PlannedTransfer| {
            matches!(
                planned.decision,
                TransferDecision::Unusable(_) | TransferDecision::DamagedInTarget(_)
            )
        };
        !self.lost.is_empty() || self.points.iter().any(is_damaged)
    }

    /// How many restore points have this decision.
    pub fn count(&self, decision: &TransferDecision) -> usize {
        let points = self.points.iter();
        points.filter(|planned| planned.decision == *decision).count()
    }
}

/// Plans a transfer between these histories of a domain.
///
/// # Errors
/// The source has no restore points, or lacks the wanted one.
pub(super) fn plan(
    domain: &str,
    from: &History,
    to: &History,
    options: &Options,
    now: &Zoned,
) -> Result<TransferPlan> {
    let chains = &from.chains;
    let mut lost = Vec::new();
    let wanted: Vec<&KeptPoint> = match &options.wanted {
        Wanted::All => {
            let unread = chains.all_lost().filter(|lost| to.get(&lost.id).is_none());
            lost.extend(unread.map(|lost| lost.what.clone()));
            chains.points().iter().collect()
        }
        Wanted::Newest => vec![choose(domain, from, "latest")?],
        Wanted::At(at) => vec![choose(domain, from, at)?],
    };
    if wanted.is_empty() && lost.is_empty() {
        return Err(Error::of(domain, Cause::NoRestorePoints));
    }
    let kept: Option<BTreeSet<String>> = match options.policy.is_empty() {
        true => None,
        false => Some(retention::kept(from, &options.policy, now)),
    };
    let points = wanted.into_iter().map(|kept_point| {
        let point = &kept_point.point;
        let removed = || to.chains.removed().any(|removed| removed.id == point.id);
        let is_dropped = || kept.as_ref().is_some_and(|kept| !kept.contains(&point.id));
        let decision = match to.get(&point.id) {
            Some(copy) if is_same(&copy.manifest.point, point) => damage(&to.chains, &point.id)
                .map_or(TransferDecision::Present, TransferDecision::DamagedInTarget),
            Some(_) => TransferDecision::IdTaken,
            None if to.chains.lost(&point.id).is_some_and(|lost| !lost.is_gone) => {
                let what = to.chains.lost(&point.id).map(|lost| lost.what.clone());
                TransferDecision::DamagedInTarget(what.unwrap_or_default())
            }
            None if !matches!(options.wanted, Wanted::At(_)) && removed() => TransferDecision::Removed,
            None if is_dropped() => TransferDecision::NotKept,
            None => {
                let fault = chains.faults(&point.id).into_iter().next();
                fault.map_or(TransferDecision::Copy, TransferDecision::Unusable)
            }
        };
        PlannedTransfer {
            point: point.clone(),
            size: from.get(&point.id).map_or(0, |kept| kept.size()),
            decision,
        }
    });
    Ok(TransferPlan {
        points: points.collect(),
        lost,
    })
}

/// What is known to be damaged in a restore point, or in one on which it depends.
fn damage(chains: &Chains, id: &str) -> Option<String> {
    let fault = chains.faults(id).into_iter().next();
    fault.or_else(|| chains.any_suspected_damage(id))
}

/// Whether two restore points show the same moment of the same domain.
pub(super) fn is_same(a: &RestorePoint, b: &RestorePoint) -> bool {
    let key = |point: &RestorePoint| (point.id.clone(), point.uuid.clone(), point.time);
    key(a) == key(b)
}
