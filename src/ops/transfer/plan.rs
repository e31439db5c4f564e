//! Decides which restore points are copied, and why the others are not. Pure.

use std::collections::BTreeSet;

use jiff::Zoned;

use super::Options;
use crate::model::chain::KeptPoint;
use crate::model::restore_point::RestorePoint;
use crate::ops::restore::choose;
use crate::ops::{Cause, Error, Result, retention};
use crate::repo::History;

/// Which restore points a user wants in the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them, except those that were removed from the target on purpose.
    All,
    /// The newest one.
    Newest,
    /// The one that this text selects, as for a restore.
    At(String),
}

/// What happens to a restore point of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
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
    /// It cannot be read completely; the text says why.
    Unusable(String),
}

/// A restore point of the source with the decision about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTransfer {
    /// The restore point.
    pub point: RestorePoint,
    /// What its files store in the source, in bytes.
    pub size: u64,
    /// The decision.
    pub verdict: Verdict,
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
        let is_copied = |planned: &&PlannedTransfer| planned.verdict == Verdict::Copy;
        self.points.iter().filter(is_copied)
    }

    /// Why wanted restore points cannot be copied although the target lacks them: one sentence for
    /// each.
    pub fn obstacles(&self) -> impl Iterator<Item = String> {
        let obstacles = self.points.iter().filter_map(|planned| {
            let id = &planned.point.id;
            match &planned.verdict {
                Verdict::Unusable(why) => Some(format!("restore point {id} cannot be copied: {why}")),
                Verdict::IdTaken => Some(format!(
                    "restore point {id} cannot be copied: the target has another one with this id"
                )),
                _ => None,
            }
        });
        obstacles.chain(self.lost.iter().cloned())
    }

    /// Whether wanted restore points cannot be read completely.
    pub fn is_source_damaged(&self) -> bool {
        let unusable = |planned: &PlannedTransfer| matches!(planned.verdict, Verdict::Unusable(_));
        !self.lost.is_empty() || self.points.iter().any(unusable)
    }

    /// How many restore points have this verdict.
    pub fn count(&self, verdict: &Verdict) -> usize {
        let points = self.points.iter();
        points.filter(|planned| planned.verdict == *verdict).count()
    }
}

/// Plans a transfer between these histories of a domain.
///
/// # Errors
/// The source has no restore points, or not the wanted one.
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
            let unread = chains.all_lost().filter(|lost| !lost.is_gone);
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
        let verdict = match to.get(&point.id) {
            Some(copy) if is_same(&copy.manifest.point, point) => Verdict::Present,
            Some(_) => Verdict::IdTaken,
            None if options.wanted == Wanted::All && removed() => Verdict::Removed,
            None if is_dropped() => Verdict::NotKept,
            None => {
                let fault = chains.faults(&point.id).into_iter().next();
                fault.map_or(Verdict::Copy, Verdict::Unusable)
            }
        };
        PlannedTransfer {
            point: point.clone(),
            size: from.get(&point.id).map_or(0, |kept| kept.size()),
            verdict,
        }
    });
    Ok(TransferPlan {
        points: points.collect(),
        lost,
    })
}

/// Whether two restore points show the same moment of the same domain.
pub(super) fn is_same(a: &RestorePoint, b: &RestorePoint) -> bool {
    let key = |point: &RestorePoint| (point.id.clone(), point.uuid.clone(), point.time);
    key(a) == key(b)
}
