//! Checks whether bitmaps, checkpoints and restore points agree. Pure.

use std::collections::BTreeSet;

use super::DiskStatus;
use crate::model::checkpoint::{Bitmap, Checkpoint, is_own};
use crate::repo::History;

/// Compares vmsnap's bitmaps of each disk with vmsnap's checkpoints that include the disk: sets of
/// names, not counts.
pub(super) fn disagreeing_bitmaps(disks: &[DiskStatus], checkpoints: &[Checkpoint]) -> Vec<String> {
    let mut found = Vec::new();
    let is_own = |name: &&String| is_own(name);
    for disk in disks.iter().filter(|disk| disk.bitmaps_known) {
        let target = &disk.target;
        let there: BTreeSet<&String> = disk.bitmaps.iter().filter(is_own).collect();
        let covering = checkpoints
            .iter()
            .filter(|checkpoint| checkpoint.disks.iter().any(|covered| covered.target == *target));
        let expected: BTreeSet<&String> = covering
            .map(|checkpoint| &checkpoint.name)
            .filter(is_own)
            .collect();
        for name in expected.difference(&there) {
            found.push(format!("disk {target} lacks a sound bitmap of checkpoint {name}"));
        }
        for name in there.difference(&expected) {
            found.push(format!(
                "disk {target} has a bitmap {name} that belongs to no checkpoint of this disk"
            ));
        }
        let is_broken = |checkpoint: &&Checkpoint| {
            let of_disk = checkpoint.disks.iter().find(|covered| covered.target == *target);
            of_disk.is_some_and(|covered| covered.bitmap == Bitmap::Broken)
        };
        for checkpoint in checkpoints.iter().filter(is_broken) {
            if there.contains(&checkpoint.name) {
                found.push(format!(
                    "disk {target}: the bitmap {} is inconsistent",
                    checkpoint.name
                ));
            }
        }
    }
    found
}

/// The records that the checkpoints of a domain are compared with.
pub(super) struct Records<'a> {
    /// The restore points.
    pub(super) history: &'a History,
    /// The id of their repository, if it is known.
    pub(super) repository: Option<&'a str>,
    /// The folder of the period that is examined.
    pub(super) period: &'a str,
    /// The folders of the current periods, one per grouping.
    pub(super) current: &'a [String],
    /// The domain's UUID.
    pub(super) uuid: &'a str,
    /// The checkpoints of a run in progress, which will belong to a restore point.
    pub(super) begun: &'a BTreeSet<String>,
}

impl Records<'_> {
    /// Returns the names of the checkpoints that the newest chain of a period recorded, newest
    /// first.
    fn newest_chain(&self, period: &str) -> Vec<&str> {
        let chain = self.history.chains.newest_chain(self.uuid, period).into_iter();
        let checkpoints = chain.filter_map(|kept| kept.point.checkpoint.as_ref());
        checkpoints.map(|checkpoint| checkpoint.name.as_str()).collect()
    }
}

/// Compares the checkpoints that the period's newest chain recorded with those of the domain.
///
/// The oldest recorded checkpoints may have been retired. Checkpoints of other repositories, and of
/// the current periods of other groupings, are expected too. A period without a restore point
/// agrees with any checkpoints.
pub(super) fn disagreeing_period(records: &Records<'_>, checkpoints: &[Checkpoint]) -> Vec<String> {
    let ours = || checkpoints.iter().filter(|found| is_own(&found.name));
    let there: BTreeSet<&str> = ours().map(|found| found.name.as_str()).collect();
    let recorded = records.newest_chain(records.period);
    if recorded.is_empty() {
        return Vec::new();
    }
    let current = records.current.iter();
    let of_groupings: Vec<&str> = current.flat_map(|period| records.newest_chain(period)).collect();
    let oldest_there = recorded
        .iter()
        .rposition(|name| there.contains(name))
        .unwrap_or(0);
    let lost = recorded[..=oldest_there]
        .iter()
        .filter(|name| !there.contains(*name));
    let lost = lost.map(|name| format!("checkpoint {name} of a restore point is not in the domain"));
    let is_known = |found: &&Checkpoint| {
        let name = found.name.as_str();
        recorded.contains(&name) || of_groupings.contains(&name) || records.begun.contains(name)
    };
    // The next backup retires the checkpoints of removed restore points.
    let is_removed = |found: &&Checkpoint| {
        let mut removed = records.history.chains.removed();
        removed.any(|point| {
            point
                .checkpoint
                .as_ref()
                .is_some_and(|recorded| found.is(recorded))
        })
    };
    let is_other = |found: &&Checkpoint| found.is_of_other_repository(records.repository);
    let unknown = ours().filter(|found| !is_known(found) && !is_other(found) && !is_removed(found));
    let names: BTreeSet<&str> = unknown.map(|found| found.name.as_str()).collect();
    let unknown = names
        .iter()
        .map(|name| format!("checkpoint {name} is not used by any restore point in this chain"));
    lost.chain(unknown).collect()
}
