//! Reconciles three views of a domain: the hypervisor's checkpoints, the bitmaps of its disks, and
//! the repository's restore points.
//!
//! Pure: state in, plan out. `heal` and `backup` carry the plan out. Dry runs print it, and so does
//! `status --verbose`.

use std::fmt;

use super::journal::JournalEntry;
use super::plan::{self, BackupPlan};
use super::survey::Survey;
use crate::host::{ActiveJob, Places};
use crate::model::chain::Chains;
use crate::model::checkpoint::{Checkpoint, REMOVAL_MARK, is_own, is_unique};
use crate::model::eligibility::Allowed;
use crate::model::left_out::Exclusion;
use crate::model::level::FullRule;
use crate::model::restore_point::Level;
use crate::repo::Leftover;

/// The inputs of a reconciliation besides the survey.
#[derive(Clone, Debug)]
pub struct Wishes<'a> {
    /// The folder of the period that the next restore point goes to.
    pub period: &'a str,
    /// The folders of the current periods, one per grouping.
    pub current: &'a [String],
    /// The rule for full restore points, which decides whether a chain may cross periods.
    pub full: FullRule,
    /// The kinds of disks that the user allows beyond the usual ones.
    pub allowed: Allowed,
    /// The exclusions of the command line.
    pub exclude: &'a [Exclusion],
    /// How many checkpoints to keep in the domain for the newest chain of each current period.
    pub keep_checkpoints: usize,
}

/// What to do for a backup: repairs first, then the backup itself, then removals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconciliation {
    /// The repairs that come first, in this order.
    pub repairs: Vec<Repair>,
    /// libvirt's name for a job that blocks the backup, because no unfinished run of this
    /// repository started it.
    pub obstacle: Option<String>,
    /// The backup: the level of each disk, and why.
    pub backup: BackupPlan,
    /// What to remove after the new restore point exists.
    pub retired: Vec<Retired>,
}

/// A repair that is made before a backup or a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Finishes the interrupted removal of a period or restore point, or completes or undoes an
    /// interrupted merge.
    FinishRemoval(Leftover),
    /// Ends the job of a dead run, and resumes the guest if the job had paused it.
    AbortJob,
    /// Thaws the guest's file systems, which a dead run may have left frozen.
    Thaw,
    /// Removes the sockets and scratch files of a dead run, and ends processes that still read
    /// images for it.
    ClearPlaces(Places),
    /// Removes the checkpoint that a dead run made, identified by its mark, with its bitmaps.
    DeleteCheckpoint(String),
    /// Removes the bitmaps of a checkpoint that a dead run did not finish making.
    DeleteBitmaps(String),
    /// Registers again a checkpoint whose record libvirt has lost, if its bitmaps still exist.
    Register(Checkpoint),
    /// Removes the folder of a dead run. This is the last repair after that run, because the folder
    /// holds the journal entry, which shows the other repairs.
    RemovePartial(Leftover),
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Repair::FinishRemoval(merge) if merge.is_merge => {
                write!(f, "complete or undo the merge recorded in {}", merge.location)
            }
            Repair::FinishRemoval(removal) => write!(f, "finish the removal of {}", removal.location),
            Repair::AbortJob => write!(f, "end the backup job of an unfinished run"),
            Repair::Thaw => write!(
                f,
                "thaw the guest's file systems, in case an unfinished run left them frozen"
            ),
            Repair::ClearPlaces(places) => {
                let files = places.sockets.len() + places.scratch.len();
                write!(
                    f,
                    "remove the sockets and scratch files of an unfinished run (at most {files} files)"
                )
            }
            Repair::DeleteCheckpoint(name) => write!(f, "remove checkpoint {name} of an unfinished run"),
            Repair::DeleteBitmaps(name) => {
                write!(f, "remove bitmaps {name} of an unfinished run, if there are any")
            }
            Repair::Register(lost) => write!(
                f,
                "re-register checkpoint {}, which libvirt has lost, if its bitmaps still exist",
                lost.name
            ),
            Repair::RemovePartial(leftover) => write!(f, "remove {}", leftover.location),
        }
    }
}

/// A checkpoint or bitmaps that a new restore point supersedes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retired {
    /// A checkpoint with its bitmaps.
    Checkpoint(String),
    /// Bitmaps whose checkpoint no longer exists, but was recorded by a restore point.
    Bitmaps(String),
}

impl fmt::Display for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Retired::Checkpoint(name) => write!(f, "remove checkpoint {name}"),
            Retired::Bitmaps(name) => write!(
                f,
                "remove the bitmaps of checkpoint {name}, which no longer exists"
            ),
        }
    }
}

/// Decides what to repair, back up and retire, from the survey and the domain's restore points.
pub fn reconcile(survey: &Survey, chains: &Chains, wishes: &Wishes<'_>) -> Reconciliation {
    let mut repairs = repairs(survey);
    let aborts = repairs.contains(&Repair::AbortJob);
    let obstacle = survey.job.as_ref().filter(|_| !aborts);
    let is_left =
        |checkpoint: &&Checkpoint| !repairs.contains(&Repair::DeleteCheckpoint(checkpoint.name.clone()));
    let mut checkpoints: Vec<Checkpoint> = survey.checkpoints.iter().filter(is_left).cloned().collect();
    let backup = plan::plan(&plan::Inputs {
        domain: &survey.domain,
        disks: &survey.disks,
        capabilities: &survey.capabilities,
        chains,
        checkpoints: &checkpoints,
        missing: &survey.missing,
        repository: survey.repository.as_deref(),
        period: wishes.period,
        full: wishes.full,
        allowed: wishes.allowed,
        exclude: wishes.exclude,
    });
    if obstacle.is_none() {
        checkpoints.extend(backup.registered.iter().cloned());
        repairs.extend(backup.registered.iter().cloned().map(Repair::Register));
    }
    Reconciliation {
        obstacle: obstacle.map(|job| job.operation.clone()),
        retired: retired(survey, chains, &checkpoints, &backup, wishes),
        repairs,
        backup,
    }
}

/// Returns the repairs needed before a backup, or before anything else that begins a job.
pub fn repairs(survey: &Survey) -> Vec<Repair> {
    let removals = survey.removals.iter().cloned().map(Repair::FinishRemoval);
    let mut repairs: Vec<Repair> = removals.collect();
    for run in &survey.leftovers {
        if let Some(entry) = &run.journal_entry {
            let uuid = &survey.domain.uuid;
            repairs.extend(ending(entry, uuid, survey.job.as_ref(), &survey.checkpoints));
        }
        repairs.push(Repair::RemovePartial(run.leftover.clone()));
    }
    repairs
}

/// Returns the repairs that end what a run began, according to its journal entry. Repairs of the
/// guest come first. Processes that hold images open are ended before these images are changed.
///
/// `uuid`, `job` and `checkpoints` are the domain's UUID, active job and current checkpoints.
pub fn ending(
    entry: &JournalEntry,
    uuid: &str,
    job: Option<&ActiveJob>,
    checkpoints: &[Checkpoint],
) -> Vec<Repair> {
    let mut repairs = Vec::new();
    // A domain made again under the same name has nothing of that run.
    let is_same = entry.uuid == uuid;
    let is_its_job = |job: &ActiveJob| {
        let socket = job.socket.as_ref();
        socket.is_some_and(|socket| entry.places.sockets.contains(socket))
    };
    if is_same && job.is_some_and(is_its_job) {
        repairs.push(Repair::AbortJob);
    }
    if is_same && entry.freezes {
        repairs.push(Repair::Thaw);
    }
    repairs.push(Repair::ClearPlaces(entry.places.clone()));
    if let (true, Some(name)) = (is_same, &entry.checkpoint) {
        match checkpoints.iter().find(|checkpoint| checkpoint.name == *name) {
            Some(checkpoint) if is_of_run(checkpoint, entry) => {
                repairs.push(Repair::DeleteCheckpoint(name.clone()));
            }
            // The name belongs to another checkpoint now.
            Some(_) => {}
            // A checkpoint is made in two steps, bitmaps first: by vmsnap if the domain is shut
            // off, else by libvirt. Either may have died between the steps.
            None => repairs.push(Repair::DeleteBitmaps(name.clone())),
        }
    }
    repairs
}

/// Whether the checkpoint is that run's, or a record made to remove that run's bitmaps.
fn is_of_run(checkpoint: &Checkpoint, entry: &JournalEntry) -> bool {
    let mark = checkpoint.mark.as_deref();
    mark == Some(&entry.mark) || mark == Some(REMOVAL_MARK)
}

/// Returns what to remove after the planned restore point exists.
fn retired(
    survey: &Survey,
    chains: &Chains,
    checkpoints: &[Checkpoint],
    backup: &BackupPlan,
    wishes: &Wishes<'_>,
) -> Vec<Retired> {
    if backup.disks.is_empty() {
        return Vec::new();
    }
    let uuid = &survey.domain.uuid;
    let next = Next {
        period: &backup.period,
        // If the level is uncertain, only what is superseded in both cases goes.
        is_full: backup.announced_level() == Some(Level::Full),
        parents: parents(backup),
    };
    let keep = wishes.keep_checkpoints;
    let superseded = superseded(chains, uuid, checkpoints, wishes.current, keep, Some(&next));
    let orphans = orphans(survey, chains, checkpoints);
    let checkpoints = superseded.into_iter().map(Retired::Checkpoint);
    checkpoints
        .chain(orphans.into_iter().map(Retired::Bitmaps))
        .collect()
}

/// Returns the bitmaps without a checkpoint that a restore point of this domain recorded. They cost
/// space and slow down writes.
///
/// Bitmaps that no restore point of this repository recorded are not touched, nor are those whose
/// name another program may have given too.
fn orphans(survey: &Survey, chains: &Chains, checkpoints: &[Checkpoint]) -> Vec<String> {
    let recorded = chains.recorded_checkpoints(&survey.domain.uuid);
    let recorded: Vec<&String> = recorded.map(|checkpoint| &checkpoint.name).collect();
    let on_disks = survey.disks.iter().flat_map(|disk| &disk.bitmaps);
    let mut orphans: Vec<String> = Vec::new();
    // Bitmaps that were not found may still be there, on a disk where they are broken.
    let candidates = on_disks.chain(&survey.missing);
    for name in candidates.filter(|name| is_unique(name)) {
        let is_owned = checkpoints
            .iter()
            .chain(&survey.checkpoints)
            .any(|checkpoint| checkpoint.name == *name);
        if recorded.contains(&name) && !is_owned && !orphans.contains(name) {
            orphans.push(name.clone());
        }
    }
    orphans
}

/// A restore point that does not exist yet.
#[derive(Clone, Debug)]
pub struct Next<'a> {
    /// The folder of its period.
    pub period: &'a str,
    /// Whether it begins a new chain.
    pub is_full: bool,
    /// The ids of the restore points on which it depends, as far as they are known.
    pub parents: Vec<String>,
}

/// The ids of the restore points on which a planned one depends.
fn parents(backup: &BackupPlan) -> Vec<String> {
    let parents = backup.disks.iter().filter_map(|disk| disk.level.parent.as_ref());
    parents.map(|parent| parent.id.clone()).collect()
}

/// Returns the checkpoints that are superseded, or will be once `next` exists.
///
/// These are the checkpoints that restore points of this repository recorded, except
///
/// * for each period in `current` (the folders of the current periods), the newest `keep`
///   checkpoints of its newest chain;
/// * the checkpoint of the newest restore point.
///
/// Checkpoints that no restore point of this repository recorded are not touched.
pub(crate) fn superseded(
    chains: &Chains,
    uuid: &str,
    checkpoints: &[Checkpoint],
    current: &[String],
    keep: usize,
    next: Option<&Next<'_>>,
) -> Vec<String> {
    let mut wanted = Vec::new();
    for period in current {
        let mut left = keep.max(1);
        let mut chain = chains.newest_chain(uuid, period);
        if let Some(next) = next.filter(|next| next.period == period) {
            left = if next.is_full { 0 } else { left - 1 };
            if chain.is_empty() {
                let newest = next.parents.iter().filter_map(|parent| chains.get(parent));
                let newest = newest.max_by_key(|kept| kept.point.sequence);
                chain.extend(
                    newest
                        .into_iter()
                        .flat_map(|newest| chains.chain_from(&newest.point.id)),
                );
            }
        }
        wanted.extend(
            chain
                .into_iter()
                .take(left)
                .filter_map(|kept| kept.point.checkpoint.as_ref()),
        );
    }
    if next.is_none() {
        // The next backup may depend on it, whatever its period.
        let mut of_domain = chains.in_periods().rev().filter(|kept| kept.point.uuid == uuid);
        wanted.extend(
            of_domain
                .next()
                .and_then(|newest| newest.point.checkpoint.as_ref()),
        );
    }
    let recorded_here: Vec<_> = chains.recorded_checkpoints(uuid).collect();
    checkpoints
        .iter()
        .filter(|checkpoint| is_own(&checkpoint.name))
        .filter(|checkpoint| recorded_here.iter().any(|recorded| checkpoint.is(recorded)))
        .filter(|checkpoint| !wanted.iter().any(|recorded| checkpoint.is(recorded)))
        .map(|checkpoint| checkpoint.name.clone())
        .collect()
}
