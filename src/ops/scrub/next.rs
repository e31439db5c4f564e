//! Predicts the next backup from the checkpoints that there will be. Pure.

use super::DiskBitmap;
use crate::host::Capabilities;
use crate::model::chain::Chains;
use crate::model::checkpoint::{Checkpoint, is_own, is_unique, sort_key};
use crate::model::domain::Domain;
use crate::model::eligibility::{self, Allowed, Eligibility};
use crate::model::finding::Finding;
use crate::model::level::FullRule;
use crate::model::restore_point::Level;
use crate::ops::plan;
use crate::ops::survey::DiskFacts;

/// The kinds of disks in the prediction. Encrypted disks are included, because the switch that
/// allows them does not affect the level.
const USUAL: Allowed = Allowed {
    raw: false,
    decrypted: true,
};

/// The inputs of the prediction, besides checkpoints and bitmaps.
#[derive(Clone, Debug)]
pub(crate) struct Outlook {
    /// The features that the hypervisor supports.
    pub capabilities: Capabilities,
    /// The content of the repository, if one was named.
    pub kept: Option<Kept>,
}

/// What a repository holds of one domain, and the rules for its next backup.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its restore points.
    pub chains: Chains,
    /// The folder of the current period.
    pub period: String,
    /// When backups start a new chain.
    pub full: FullRule,
    /// The id of the repository, if it is known.
    pub repository: Option<String>,
    /// The facts about the domain's disks.
    pub disks: Vec<DiskFacts>,
    /// The finding about a refusal, if a backup with the current grouping would be refused.
    pub refused: Option<Finding>,
}

/// The prediction of the next backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextBackup {
    /// The level of the backup. `None` if it depends on a repository that was not named, or on a
    /// bitmap that only the backup can look for, or if the backup would be refused.
    pub level: Option<Level>,
    /// Whether the backup would be refused because its grouping differs from that of the domain's
    /// backups.
    pub is_refused: bool,
    /// The reason, or what the level depends on.
    pub reason: String,
}

/// The checkpoints and bitmaps that a scrub leaves for the next backup.
pub(crate) struct LeftByScrub<'a> {
    /// The checkpoints.
    pub checkpoints: &'a [Checkpoint],
    /// The bitmaps that could be listed.
    pub bitmaps: &'a [DiskBitmap],
    /// Names of bitmaps that certainly do not exist, even on disks whose bitmaps cannot be listed.
    pub gone: &'a [String],
}

/// Predicts the next backup of a domain that has these checkpoints and bitmaps.
pub(crate) fn next_backup(domain: &Domain, left: &LeftByScrub<'_>, outlook: &Outlook) -> NextBackup {
    match &outlook.kept {
        Some(kept) => next_in_repository(domain, left, &outlook.capabilities, kept),
        None => next_anywhere(domain, left, &outlook.capabilities),
    }
}

fn full(reason: impl Into<String>) -> NextBackup {
    NextBackup {
        level: Some(Level::Full),
        is_refused: false,
        reason: reason.into(),
    }
}

fn unknown(reason: String) -> NextBackup {
    NextBackup {
        level: None,
        is_refused: false,
        reason,
    }
}

fn next_in_repository(
    domain: &Domain,
    left: &LeftByScrub<'_>,
    capabilities: &Capabilities,
    kept: &Kept,
) -> NextBackup {
    if let Some(refused) = &kept.refused {
        return NextBackup {
            level: None,
            is_refused: true,
            reason: refused.message.clone(),
        };
    }
    let mut disks = kept.disks.clone();
    for disk in &mut disks {
        let of_disk = left.bitmaps.iter().filter(|bitmap| bitmap.disk == disk.target);
        disk.bitmaps = of_disk.map(|bitmap| bitmap.name.clone()).collect();
    }
    let backup = plan::plan(&plan::Inputs {
        domain,
        disks: &disks,
        capabilities,
        chains: &kept.chains,
        checkpoints: left.checkpoints,
        missing: left.gone,
        repository: kept.repository.as_deref(),
        period: &kept.period,
        full: kept.full,
        allowed: USUAL,
        exclude: &[],
    });
    let Some((first, others)) = backup.disks.split_first() else {
        return full("no disk of the domain can be incremental");
    };
    let why = first.announced_reason();
    let reason = if others.iter().all(|disk| disk.announced_reason() == why) {
        why
    } else {
        let disks = backup.disks.iter().map(|disk| {
            let level = disk.announced_level().map(|level| format!("{}, ", level.word()));
            format!(
                "disk {}: {}{}",
                disk.disk.target,
                level.unwrap_or_default(),
                disk.announced_reason()
            )
        });
        disks.collect::<Vec<_>>().join("; ")
    };
    NextBackup {
        level: backup.announced_level(),
        is_refused: false,
        reason,
    }
}

/// Predicts without a repository. Only one thing is certain then: a disk without a bitmap is full.
fn next_anywhere(domain: &Domain, left: &LeftByScrub<'_>, capabilities: &Capabilities) -> NextBackup {
    let LeftByScrub {
        checkpoints, bitmaps, ..
    } = left;
    if let Err(reason) = &capabilities.incremental {
        return full(reason);
    }
    let able = domain
        .disks
        .iter()
        .filter(|disk| eligibility::of(domain, disk, USUAL, &[]) == Eligibility::Incremental);
    let (mut bases, mut without) = (Vec::new(), Vec::new());
    for disk in able {
        let ours = checkpoints.iter().rev().filter(|one| is_own(&one.name));
        match ours.into_iter().find(|one| one.is_sound_for(&disk.target)) {
            Some(newest) if bases.contains(&newest.name.as_str()) => {}
            Some(newest) => bases.push(&newest.name),
            None => without.push(disk.target.as_str()),
        }
    }
    let is_listed = |bitmap: &&DiskBitmap| checkpoints.iter().any(|one| one.name == bitmap.name);
    let lost = bitmaps.iter().filter(|bitmap| is_unique(&bitmap.name));
    let lost = lost.filter(|bitmap| !is_listed(bitmap));
    let newest_lost = lost.max_by(|a, b| sort_key(&a.name).cmp(&sort_key(&b.name)));
    if let (true, Some(lost)) = (bases.is_empty(), newest_lost) {
        return unknown(format!(
            "bitmap {} remains; incremental only if the repository has the restore point of this bitmap; \
             use --output to find out",
            lost.name
        ));
    }
    if bases.is_empty() {
        return full("the domain has no vmsnap checkpoint with a sound bitmap");
    }
    let mut reason = format!(
        "{} {}; incremental only if the repository has {}; use --output to find out",
        bases.join(", "),
        if bases.len() == 1 { "remains" } else { "remain" },
        if bases.len() == 1 {
            "the restore point of this checkpoint"
        } else {
            "the restore points of these checkpoints"
        },
    );
    if !without.is_empty() {
        reason.push_str(&match without.as_slice() {
            [one] => format!("; disk {one} is saved in full in any case"),
            several => format!("; disks {} are saved in full in any case", several.join(", ")),
        });
    }
    unknown(reason)
}
