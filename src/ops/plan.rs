//! Decides a backup before anything is done: which disks, at which level, why, and under which checkpoint. Pure.

use crate::host::Capabilities;
use crate::model::chain::{Chains, DiskLevel, DiskNow, KeptPoint, decide};
use crate::model::checkpoint::{Checkpoint, next_name, own_number};
use crate::model::domain::{Disk, Domain, Eligibility};
use crate::model::finding::Finding;
use crate::model::restore_point::Level;

/// Everything that a plan follows from.
pub struct Inputs<'a> {
    /// The domain as it is now.
    pub domain: &'a Domain,
    /// Sizes of its disks in bytes, by target, as far as they are known.
    pub sizes: &'a [(String, u64)],
    /// What the hypervisor can do.
    pub capabilities: &'a Capabilities,
    /// The domain's restore points.
    pub chains: &'a Chains,
    /// The domain's checkpoints.
    pub checkpoints: &'a [Checkpoint],
    /// Names that a new checkpoint must not have: bitmaps without a checkpoint.
    pub taken: &'a [String],
    /// The folder of the current period.
    pub period: &'a str,
    /// Whether raw disks are wanted.
    pub raw: bool,
}

/// What a backup will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupPlan {
    /// The folder of the period it goes to.
    pub period: String,
    /// The checkpoint it makes; `None` when no disk can carry one.
    pub checkpoint: Option<String>,
    /// The disks it saves, in the order of the domain's XML.
    pub disks: Vec<PlannedDisk>,
    /// What it leaves out, and why.
    pub findings: Vec<Finding>,
}

/// One disk of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedDisk {
    /// The disk.
    pub disk: Disk,
    /// Its level and why.
    pub level: DiskLevel,
    /// Whether the new checkpoint covers it.
    pub checkpointed: bool,
}

impl BackupPlan {
    /// Incremental as soon as one disk is.
    pub fn level(&self) -> Level {
        if self.disks.iter().any(|disk| disk.level.parent.is_some()) {
            Level::Incremental
        } else {
            Level::Full
        }
    }

    /// Why it has this level, in one line: each reason once, with the disks it holds for where they differ.
    pub fn reason(&self) -> String {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for planned in &self.disks {
            let (target, why) = (planned.disk.target.as_str(), planned.level.reason.as_str());
            match reasons.iter_mut().find(|(reason, _)| *reason == why) {
                Some((_, targets)) => targets.push(target),
                None => reasons.push((why, vec![target])),
            }
        }
        match reasons.as_slice() {
            [] => "there is nothing to back up".to_owned(),
            [(reason, _)] => (*reason).to_owned(),
            several => {
                let of_disks = several
                    .iter()
                    .map(|(reason, targets)| format!("{}: {reason}", targets.join(", ")));
                of_disks.collect::<Vec<_>>().join("; ")
            }
        }
    }
}

/// Decides what a backup of the domain would do now.
pub fn plan(inputs: &Inputs<'_>) -> BackupPlan {
    let mut disks = Vec::new();
    let mut findings = Vec::new();
    for disk in &inputs.domain.disks {
        let full_only = match disk.eligibility(inputs.raw) {
            Eligibility::Skipped(finding) => {
                findings.push(finding);
                continue;
            }
            Eligibility::FullOnly(reason) => Some(reason),
            Eligibility::Incremental => inputs.capabilities.incremental.clone().err(),
        };
        let now = DiskNow {
            target: disk.target.clone(),
            full_only,
            virtual_size: size_of(inputs.sizes, &disk.target),
            sources: disk
                .source
                .path()
                .into_iter()
                .chain(&disk.beneath)
                .map(|path| path.display().to_string())
                .collect(),
        };
        let uuid = &inputs.domain.uuid;
        disks.push(PlannedDisk {
            disk: disk.clone(),
            level: decide(&now, uuid, inputs.period, inputs.chains, inputs.checkpoints),
            checkpointed: now.full_only.is_none(),
        });
    }
    if let Err(reason) = &inputs.capabilities.incremental {
        findings.push(Finding::new(
            "no-incremental",
            format!("every backup is full: {reason}"),
        ));
    }
    if inputs.domain.has_tpm_state {
        findings.push(Finding::new(
            "tpm-state-skipped",
            "the state of the emulated TPM is not backed up",
        ));
    }
    let checkpoint = disks
        .iter()
        .any(|disk| disk.checkpointed)
        .then(|| next_checkpoint(inputs));
    BackupPlan {
        period: inputs.period.to_owned(),
        checkpoint,
        disks,
        findings,
    }
}

fn size_of(sizes: &[(String, u64)], target: &str) -> Option<u64> {
    sizes.iter().find(|(of, _)| of == target).map(|(_, size)| *size)
}

/// A number that no checkpoint, no bitmap and no restore point has had: a name once written into a manifest is not used again.
fn next_checkpoint(inputs: &Inputs<'_>) -> String {
    let listed = inputs
        .checkpoints
        .iter()
        .map(|checkpoint| checkpoint.name.as_str());
    let recorded = inputs
        .chains
        .points()
        .iter()
        .filter(|kept| kept.point.period == inputs.period || kept.point.uuid == inputs.domain.uuid)
        .filter_map(|kept| kept.point.checkpoint.as_ref())
        .map(|checkpoint| checkpoint.name.as_str());
    let taken = inputs.taken.iter().map(String::as_str);
    next_name(listed.chain(recorded).chain(taken))
}

/// How many checkpoints of the active chain are kept in the domain.
pub const KEPT_CHECKPOINTS: usize = 32;

/// The checkpoints that a new restore point has made superfluous: those that restore points of this repository recorded, unless they
/// belong to the newest chain of a period in `current` (the folders of the periods that go on now), and there to its newest `keep`.
/// Checkpoints that nobody here recorded are not ours to remove.
pub fn superfluous(
    chains: &Chains,
    uuid: &str,
    checkpoints: &[Checkpoint],
    current: &[String],
    keep: usize,
) -> Vec<String> {
    let mut wanted = Vec::new();
    let mut recorded_here = Vec::new();
    for period in current {
        let mut left = keep.max(1);
        let of_period = |kept: &&KeptPoint| kept.point.uuid == uuid && kept.point.period == *period;
        for kept in chains.points().iter().rev().filter(of_period) {
            if left == 0 {
                break;
            }
            wanted.extend(&kept.point.checkpoint);
            left -= 1;
            if kept.point.level == Level::Full {
                break;
            }
        }
    }
    for kept in chains.points().iter().filter(|kept| kept.point.uuid == uuid) {
        recorded_here.extend(&kept.point.checkpoint);
    }
    checkpoints
        .iter()
        .filter(|checkpoint| own_number(&checkpoint.name).is_some())
        .filter(|checkpoint| recorded_here.iter().any(|recorded| checkpoint.is(recorded)))
        .filter(|checkpoint| !wanted.iter().any(|recorded| checkpoint.is(recorded)))
        .map(|checkpoint| checkpoint.name.clone())
        .collect()
}
