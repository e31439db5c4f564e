//! Tells how a domain stands: its checkpoints, its disks with their bitmaps, and whether they agree with each other and with the repository.
//! Changes nothing and waits for nobody.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::civil::Date;

use super::error::Cause;
use super::{Error, Result};
use crate::host::{Host, HostError};
use crate::model::chain::KeptPoint;
use crate::model::checkpoint::{Bitmap, Checkpoint, own_number};
use crate::model::domain::{Domain, DomainState, Eligibility};
use crate::model::finding::Finding;
use crate::model::period::{GroupBy, Period};
use crate::repo::{History, Repository};

/// How a domain stands.
#[derive(Clone, Debug)]
pub struct DomainStatus {
    /// Its name.
    pub domain: String,
    /// Whether it runs.
    pub state: DomainState,
    /// Names of its checkpoints, oldest first.
    pub checkpoints: Vec<String>,
    /// Its eligible disks.
    pub disks: Vec<DiskStatus>,
    /// What disagrees; empty when all is well.
    pub inconsistencies: Vec<String>,
    /// The folder of the current period.
    pub dir: Option<DirStats>,
    /// The newest restore point: its id.
    pub latest: Option<String>,
    /// What is worth telling.
    pub findings: Vec<Finding>,
}

/// How a disk stands.
#[derive(Clone, Debug)]
pub struct DiskStatus {
    /// Its target.
    pub target: String,
    /// Its size, in bytes.
    pub virtual_size: u64,
    /// What it takes on the host, in bytes.
    pub actual_size: u64,
    /// Names of its sound bitmaps.
    pub bitmaps: Vec<String>,
}

/// What the folder of a period holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirStats {
    /// The folder.
    pub path: PathBuf,
    /// Files in it, at any depth.
    pub total_files: u64,
    /// Bytes of those files.
    pub total_size: u64,
    /// Checkpoints that its restore points recorded.
    pub checkpoints: u64,
}

/// Tells how the domain of that name stands. With a repository, also what the current period (at `today`) holds.
pub fn status(
    name: &str,
    host: &dyn Host,
    repo: Option<&Repository>,
    group_by: GroupBy,
    today: Date,
) -> Result<DomainStatus> {
    let failed = |error: HostError| Error::of(name, error);
    let domain = host.domain(name).map_err(failed)?;
    let checkpoints = host.checkpoints(&domain).map_err(failed)?;
    let mut findings = Vec::new();
    let mut disks = Vec::new();
    for disk in &domain.disks {
        // Raw disks have no bitmaps to show, but are there to be seen when they could be backed up.
        if let Eligibility::Skipped(finding) = disk.eligibility(true) {
            findings.push(finding);
            continue;
        }
        let sizes = host.disk_sizes(&domain, &disk.target).map_err(failed)?;
        disks.push(DiskStatus {
            target: disk.target.clone(),
            virtual_size: sizes.virtual_size,
            actual_size: sizes.actual_size,
            bitmaps: bitmaps(host, &domain, &disk.target, &checkpoints).map_err(failed)?,
        });
    }
    let mut inconsistencies = disagreeing_bitmaps(&disks, &checkpoints);
    let mut dir = None;
    let mut latest = None;
    if let Some(repo) = repo {
        let failed = |error| Error::of(name, Cause::Repo(error));
        let repository = repo.domain(name).map_err(failed)?;
        let history = repository.history().map_err(failed)?;
        let period = Period::containing(group_by, today).folder();
        inconsistencies.extend(disagreeing_period(&history, &period, &domain.uuid, &checkpoints));
        latest = history.chains.latest().map(|kept| kept.point.id.clone());
        dir = Some(dir_stats(repository.dir().join(&period), &history, &period));
        findings.extend(history.findings);
    }
    Ok(DomainStatus {
        domain: domain.name,
        state: domain.state,
        checkpoints: checkpoints
            .into_iter()
            .map(|checkpoint| checkpoint.name)
            .collect(),
        disks,
        inconsistencies,
        dir,
        latest,
        findings,
    })
}

/// The bitmaps of a disk: those of checkpoints in their order, then the others. While the domain runs only those of checkpoints can be known.
fn bitmaps(
    host: &dyn Host,
    domain: &Domain,
    target: &str,
    checkpoints: &[Checkpoint],
) -> std::result::Result<Vec<String>, HostError> {
    if !domain.state.is_active() {
        let mut names = host.bitmap_names(domain, target)?;
        let place = |name: &String| checkpoints.iter().position(|found| found.name == *name);
        names.sort_by_key(|name| (place(name).unwrap_or(usize::MAX), name.clone()));
        return Ok(names);
    }
    let sound = checkpoints
        .iter()
        .filter(|checkpoint| checkpoint.is_sound_for(target));
    Ok(sound.map(|checkpoint| checkpoint.name.clone()).collect())
}

/// Our bitmaps of each disk must be those of our checkpoints that include it: sets of names, not counts.
fn disagreeing_bitmaps(disks: &[DiskStatus], checkpoints: &[Checkpoint]) -> Vec<String> {
    let mut found = Vec::new();
    let is_own = |name: &&String| own_number(name).is_some();
    for disk in disks {
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
/// Before the first restore point of a period there is nothing to disagree with.
fn disagreeing_period(
    history: &History,
    period: &str,
    uuid: &str,
    checkpoints: &[Checkpoint],
) -> Vec<String> {
    let is_own = |name: &&str| own_number(name).is_some();
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
    let unknown = there.iter().filter(|name| !recorded.contains(name));
    let unknown =
        unknown.map(|name| format!("checkpoint {name} belongs to no restore point of this period's chain"));
    lost.chain(unknown).collect()
}

fn dir_stats(path: PathBuf, history: &History, period: &str) -> DirStats {
    let (total_files, total_size) = count_files(&path, 4);
    let of_period = history
        .chains
        .points()
        .iter()
        .filter(|kept| kept.point.period == period);
    DirStats {
        total_files,
        total_size,
        checkpoints: of_period.filter(|kept| kept.point.checkpoint.is_some()).count() as u64,
        path,
    }
}

/// Files and their bytes below a folder, down to a depth beyond which nothing of ours lies.
fn count_files(dir: &Path, depth: u32) -> (u64, u64) {
    let mut files = 0;
    let mut bytes = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(found) = entry.metadata() else { continue };
        if found.is_dir() && depth > 0 {
            let (below_files, below_bytes) = count_files(&entry.path(), depth - 1);
            files += below_files;
            bytes += below_bytes;
        } else if found.is_file() {
            files += 1;
            bytes += found.len();
        }
    }
    (files, bytes)
}
