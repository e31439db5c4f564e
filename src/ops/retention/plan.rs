//! Decides which of a domain's restore points a policy removes, and what forbids it. Pure.

use jiff::{Span, Zoned};

use crate::model::chain::{Chains, KeptPoint};
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;
use crate::model::retention::{self, Candidate, Decision, KeepReason, Policy};
use crate::repo::History;
use crate::repo::history::REMOVALS_UNREADABLE;
use crate::repo::merge::{self, ImageSize, method};

/// The decisions of a policy about a domain's restore points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionPlan {
    /// The restore points, in the order of their commits.
    pub points: Vec<PlannedPoint>,
    /// Why no restore point of the current domain of this name is removed; `None` if nothing
    /// forbids it.
    pub obstacle: Option<Obstacle>,
    /// The obstacles of earlier domains with this name, each with the domain's UUID.
    pub earlier_obstacles: Vec<(String, Obstacle)>,
    /// Whether merges can append to existing images instead of copying them.
    pub(crate) can_continue: bool,
    /// Whether removing a restore point frees what it stores.
    pub(crate) frees_space: bool,
}

/// A restore point with the decision about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPoint {
    /// The restore point.
    pub point: RestorePoint,
    /// The size of its files, in bytes.
    pub size: u64,
    /// Its images, each with the disk.
    pub(crate) images: Vec<(String, ImageSize)>,
    /// The decision.
    pub decision: Decision,
}

/// A merge of restore points into one that depends on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMerge {
    /// The ids of the restore points that are removed, oldest first.
    pub run: Vec<String>,
    /// The id of the restore point that stays.
    pub into: String,
    /// The largest number of bytes that the merge writes.
    pub bytes: u64,
    /// The largest number of bytes that the merge frees, estimated.
    pub freed: u64,
}

/// The reason why no restore point of a domain may be removed, whatever the policy keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The newest restore point is not whole.
    NotWhole {
        /// Its id.
        id: String,
        /// Its first fault.
        fault: String,
    },
    /// A verification found damage in the newest restore point or its parents.
    Damaged {
        /// Its id.
        id: String,
        /// The damage.
        what: String,
    },
    /// The newest restore point lacks a disk that should have been saved.
    Partial {
        /// Its id.
        id: String,
    },
    /// A restore point cannot be read, so its parents are unknown.
    Unreadable {
        /// Its id.
        id: String,
        /// A sentence that names its manifest.
        what: String,
    },
    /// A restore point is dated in the future: the clock is or was wrong.
    Future {
        /// Its id.
        id: String,
    },
    /// The record of removed restore points cannot be read.
    NoRecord {
        /// A sentence that names the record.
        what: String,
    },
}

impl RetentionPlan {
    /// The restore points to remove without a merge, newest first, so that children precede their
    /// parents.
    pub fn removals(&self) -> impl Iterator<Item = &PlannedPoint> {
        let goes = |planned: &&PlannedPoint| planned.decision == Decision::Remove;
        self.points.iter().rev().filter(goes)
    }

    /// The merges, oldest first.
    pub fn merges(&self) -> Vec<PlannedMerge> {
        let mut merges: Vec<PlannedMerge> = Vec::new();
        for planned in &self.points {
            let Decision::Merge { into } = &planned.decision else {
                continue;
            };
            let id = planned.point.id.clone();
            match merges.iter_mut().find(|merge| merge.into == *into) {
                Some(merge) => merge.run.push(id),
                None => merges.push(PlannedMerge {
                    run: vec![id],
                    into: into.clone(),
                    bytes: 0,
                    freed: 0,
                }),
            }
        }
        for merge in &mut merges {
            merge.bytes = self.bytes_of(merge);
            merge.freed = self.freed_by(merge);
        }
        merges
    }

    /// The restore points of a merge, oldest first.
    fn merged(&self, merge: &PlannedMerge) -> Vec<&PlannedPoint> {
        let is_merged = |planned: &&PlannedPoint| {
            let id = &planned.point.id;
            *id == merge.into || merge.run.contains(id)
        };
        self.points.iter().filter(is_merged).collect()
    }

    /// About the most that a merge frees, in bytes. A newer image makes at most as many bytes of
    /// older images superfluous as it changes.
    fn freed_by(&self, merge: &PlannedMerge) -> u64 {
        let merged = self.merged(merge);
        let removed = merged.iter().filter(|planned| planned.point.id != merge.into);
        let removed: u64 = removed.map(|planned| planned.size).sum();
        let replaced = |planned: &&PlannedPoint| {
            let disks = planned.point.disks.iter();
            let changed = disks.map(|disk| disk.data_bytes + disk.zero_bytes).sum();
            planned.size.max(changed)
        };
        removed.min(merged.iter().skip(1).map(replaced).sum())
    }

    /// The most that a merge writes, in bytes.
    fn bytes_of(&self, merge: &PlannedMerge) -> u64 {
        let merged = self.merged(merge);
        let child = merged.iter().filter(|planned| planned.point.id == merge.into);
        let of_disk = |disk: &String| {
            let images = merged.iter().flat_map(|planned| &planned.images);
            let images = images.filter(|(of, _)| of == disk).map(|(_, size)| *size);
            method(self.can_continue, &images.collect::<Vec<_>>()).1
        };
        child
            .flat_map(|child| &child.images)
            .map(|(disk, _)| of_disk(disk))
            .sum()
    }

    /// The number of bytes that the removals without a merge free.
    pub(crate) fn freed(&self) -> u64 {
        self.freed_of(|_| true)
    }

    /// The number of bytes that the selected removals free, not counting merges.
    pub(crate) fn freed_of(&self, is_meant: impl Fn(&str) -> bool) -> u64 {
        let removals = self.removals().filter(|planned| is_meant(&planned.point.id));
        match self.frees_space {
            true => removals.map(|planned| planned.size).sum(),
            false => 0,
        }
    }

    /// The largest number of bytes that all merges free, estimated.
    pub(crate) fn merge_freed(&self) -> u64 {
        self.merges().iter().map(|merge| merge.freed).sum()
    }

    /// The largest number of bytes that all merges write.
    pub(crate) fn merge_bytes(&self) -> u64 {
        self.merges().iter().map(|merge| merge.bytes).sum()
    }
}

/// A restore point that does not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NextPoint {
    /// The UUID of its domain.
    pub uuid: String,
    /// The folder of its period.
    pub period: String,
    /// The targets of its disks.
    pub disks: Vec<String>,
    /// The ids of the restore points on which it depends or may depend.
    pub parents: Vec<String>,
}

impl NextPoint {
    fn candidate(&self, chains: &Chains, now: &Zoned) -> Candidate {
        // Where its parent is complete, it will be complete itself.
        let is_needed = |parent: &&String| chains.get(parent).is_none_or(|kept| kept.needs_parents);
        Candidate {
            id: "the next restore point".to_owned(),
            sequence: chains.next_sequence(now.timestamp()),
            uuid: self.uuid.clone(),
            time: now.timestamp(),
            period: self.period.clone(),
            disks: self.disks.clone(),
            parents: self.parents.iter().filter(is_needed).cloned().collect(),
            is_copy: false,
            is_pinned: false,
            is_intact: true,
        }
    }
}

/// The sizes of a restore point's images.
fn images(history: &History, kept: &KeptPoint) -> Vec<(String, ImageSize)> {
    let disks = kept.point.disks.iter();
    let sizes = disks.filter_map(|disk| {
        let size = merge::size_of(history, &kept.point.id, &disk.target)?;
        Some((disk.target.clone(), size))
    });
    sizes.collect()
}

/// Decides what a policy removes now.
pub(super) fn plan(history: &History, policy: &Policy, now: &Zoned) -> RetentionPlan {
    plan_after(history, policy, now, None)
}

/// Decides what a policy removes once the next restore point exists. The plan does not list the
/// next restore point.
pub(super) fn plan_after(
    history: &History,
    policy: &Policy,
    now: &Zoned,
    next: Option<&NextPoint>,
) -> RetentionPlan {
    let chains = &history.chains;
    let points = chains.points().iter().map(|kept| candidate(history, kept));
    let next_candidate = next.map(|next| next.candidate(chains, now));
    let candidates: Vec<Candidate> = points.chain(next_candidate).collect();
    let mut decisions = retention::decide(&candidates, policy, now);
    let of_all = obstacle_of_all(history, now);
    let mut plan = RetentionPlan {
        points: Vec::new(),
        obstacle: of_all.clone(),
        earlier_obstacles: Vec::new(),
        can_continue: history.can_continue,
        frees_space: history.frees_space(),
    };
    let newest = chains.latest_in_periods().map(|kept| &kept.point.uuid);
    let current = next.map(|next| &next.uuid).or(newest);
    for uuid in uuids(chains.in_periods()) {
        // The next restore point will be the newest, and it will be whole.
        let is_of_next = next.is_some_and(|next| next.uuid == *uuid);
        let own = || obstacle_of(history, uuid).filter(|_| !is_of_next);
        let obstacle = of_all.clone().or_else(own);
        let Some(obstacle) = obstacle else { continue };
        for (candidate, decision) in candidates.iter().zip(&mut decisions) {
            if candidate.uuid == *uuid && !matches!(decision, Decision::Keep(_)) {
                *decision = Decision::Keep(vec![KeepReason::HeldBack]);
            }
        }
        if Some(uuid) == current {
            plan.obstacle = Some(obstacle);
        } else if of_all.is_none() {
            plan.earlier_obstacles.push((uuid.clone(), obstacle));
        }
    }
    let points = chains.points().iter().zip(decisions);
    plan.points = points
        .map(|(kept, decision)| PlannedPoint {
            point: kept.point.clone(),
            size: history.get(&kept.point.id).map_or(0, |kept| kept.size()),
            images: images(history, kept),
            decision,
        })
        .collect();
    plan
}

/// The UUIDs of the domains of these restore points, each once, in the order of the restore points.
fn uuids<'a>(points: impl Iterator<Item = &'a KeptPoint>) -> Vec<&'a String> {
    let mut uuids = Vec::new();
    for kept in points {
        if !uuids.contains(&&kept.point.uuid) {
            uuids.push(&kept.point.uuid);
        }
    }
    uuids
}

fn candidate(history: &History, kept: &KeptPoint) -> Candidate {
    let point = &kept.point;
    let chains = &history.chains;
    let disks = || point.disks.iter();
    Candidate {
        id: point.id.clone(),
        sequence: point.sequence,
        uuid: point.uuid.clone(),
        time: point.time,
        period: point.period.clone(),
        disks: disks().map(|disk| disk.target.clone()).collect(),
        parents: chains
            .parents(point)
            .map(|(_, parent)| parent.to_owned())
            .collect(),
        is_copy: point.is_copy(),
        is_pinned: kept.pin.is_some(),
        is_intact: chains.faults(&point.id).is_empty() && chains.any_suspected_damage(&point.id).is_none(),
    }
}

/// The obstacle for all restore points of the domain's name, whatever the UUID of their domain.
fn obstacle_of_all(history: &History, now: &Zoned) -> Option<Obstacle> {
    let chains = &history.chains;
    let unreadable = |finding: &&Finding| finding.code == REMOVALS_UNREADABLE;
    if let Some(finding) = history.findings.iter().find(unreadable) {
        return Some(Obstacle::NoRecord {
            what: finding.message.clone(),
        });
    }
    // A restore point that is gone completely needs no parents.
    if let Some(lost) = chains.all_lost().find(|lost| !lost.is_gone) {
        return Some(Obstacle::Unreadable {
            id: lost.id.clone(),
            what: lost.what.clone(),
        });
    }
    let tomorrow = now.checked_add(Span::new().hours(24)).ok()?.timestamp();
    let future = chains.in_periods().find(|kept| kept.point.time > tomorrow)?;
    Some(Obstacle::Future {
        id: future.point.id.clone(),
    })
}

/// The obstacle for the restore points of the domain with this UUID.
fn obstacle_of(history: &History, uuid: &str) -> Option<Obstacle> {
    let chains = &history.chains;
    let newest = chains.in_periods().rev().find(|kept| kept.point.uuid == *uuid)?;
    let id = newest.point.id.clone();
    if let Some(lost) = chains.lost_after(&id).next() {
        return Some(Obstacle::Unreadable {
            id: lost.id.clone(),
            what: lost.what.clone(),
        });
    }
    if let Some(fault) = chains.faults(&id).into_iter().next() {
        return Some(Obstacle::NotWhole { id, fault });
    }
    if let Some(what) = chains.any_suspected_damage(&id) {
        return Some(Obstacle::Damaged { id, what });
    }
    newest.point.is_partial().then_some(Obstacle::Partial { id })
}

impl Obstacle {
    /// The obstacle as a sentence.
    pub(crate) fn sentence(&self) -> String {
        match self {
            Obstacle::NotWhole { id, fault } => {
                format!("the newest restore point {id} is not whole: {fault}")
            }
            Obstacle::Damaged { id, what } => {
                format!("the newest restore point {id} is damaged: {what}")
            }
            Obstacle::Partial { id } => {
                format!("the newest restore point {id} is partial, and older ones may hold the missing disk")
            }
            Obstacle::Unreadable { id, what } => {
                format!("restore point {id} cannot be read ({what}), so its parents are unknown")
            }
            Obstacle::Future { id } => {
                format!("restore point {id} is dated in the future: the clock is or was wrong")
            }
            Obstacle::NoRecord { what } => what.clone(),
        }
    }
}
