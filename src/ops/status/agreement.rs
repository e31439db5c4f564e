//! Whether bitmaps, checkpoints and restore points agree. Pure.

use std::collections::BTreeSet;

use super::DiskStatus;
use crate::model::chain::KeptPoint;
use crate::model::checkpoint::{Bitmap, Checkpoint, is_own};
use crate::repo::History;

/// Our bitmaps of each disk must be those of our checkpoints that include it: sets of names, not counts.
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
            found.push(format!("disk {target} has a bitmap {name} without a checkpoint"));
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

/// The checkpoints that the period's newest chain recorded must be those of the domain, except that the oldest may have been retired.
/// Before the first restore point of a period there is nothing to disagree with. What a run at work has `begun` will belong to one.
pub(super) fn disagreeing_period(
    history: &History,
    period: &str,
    uuid: &str,
    checkpoints: &[Checkpoint],
    begun: &BTreeSet<String>,
) -> Vec<String> {
    let is_own = |name: &&str| is_own(name);
    let there: BTreeSet<&str> = checkpoints
        .iter()
        .map(|found| found.name.as_str())
        .filter(is_own)
        .collect();
    let mut recorded = Vec::new();
    let of_period = |kept: &&KeptPoint| kept.point.period == period && kept.point.uuid == uuid;
    for kept in history.chains.points().iter().rev().filter(of_period) {
        recorded.extend(
            kept.point
                .checkpoint
                .iter()
                .map(|checkpoint| checkpoint.name.as_str()),
        );
        if kept.point.parent.is_none() {
            break;
        }
    }
    if recorded.is_empty() {
        return Vec::new();
    }
    let oldest_there = recorded
        .iter()
        .rposition(|name| there.contains(name))
        .unwrap_or(0);
    let lost = recorded[..=oldest_there]
        .iter()
        .filter(|name| !there.contains(*name));
    let lost = lost.map(|name| format!("checkpoint {name} of a restore point is not in the domain"));
    let unknown = there
        .iter()
        .filter(|name| !recorded.contains(name) && !begun.contains(**name));
    let unknown =
        unknown.map(|name| format!("checkpoint {name} belongs to no restore point of this period's chain"));
    lost.chain(unknown).collect()
}
