//! Plans a backup before anything is done: which disks, at which level, why, and whether a
//! checkpoint is made. Pure.

use std::path::PathBuf;

use super::survey::DiskFacts;
use crate::host::Capabilities;
use crate::model::chain::Chains;
use crate::model::checkpoint::Checkpoint;
use crate::model::domain::{Disk, Domain};
use crate::model::eligibility::{self, Allowed, Eligibility};
use crate::model::finding::Finding;
use crate::model::left_out::{self, Exclusion, LeftOut};
use crate::model::level::{DiskLevel, DiskNow, FullRule, SourceNow, decide};
use crate::model::restore_point::{FileId, Level};
use crate::model::text::shown;

mod lost;

/// The inputs of a plan.
pub struct Inputs<'a> {
    /// The domain as it is now.
    pub domain: &'a Domain,
    /// The facts about its disks.
    pub disks: &'a [DiskFacts],
    /// The features that the hypervisor supports.
    pub capabilities: &'a Capabilities,
    /// The domain's restore points.
    pub chains: &'a Chains,
    /// The domain's checkpoints.
    pub checkpoints: &'a [Checkpoint],
    /// Lost checkpoints that could not be registered again.
    pub missing: &'a [String],
    /// The id of the repository, if it is known.
    pub repository: Option<&'a str>,
    /// The folder of the period for which the backup is planned.
    pub period: &'a str,
    /// The rule for full restore points, which decides whether a chain may cross periods.
    pub full: FullRule,
    /// The kinds of disks that the user allows beyond the usual ones.
    pub allowed: Allowed,
    /// The exclusions of the command line.
    pub exclude: &'a [Exclusion],
}

/// The plan of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupPlan {
    /// The folder of its period.
    pub period: String,
    /// Lost checkpoints to register with libvirt first, if their bitmaps still exist.
    pub registered: Vec<Checkpoint>,
    /// Whether the backup makes a checkpoint: `false` for a copy, and if no disk can have one.
    pub checkpoint: bool,
    /// The disks it saves, in the order of the domain's XML.
    pub disks: Vec<PlannedDisk>,
    /// The disks it leaves out, and why.
    pub left_out: Vec<LeftOut>,
    /// Findings, including one for each disk that is left out.
    pub findings: Vec<Finding>,
}

/// One disk of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedDisk {
    /// The disk.
    pub disk: Disk,
    /// Its level and the reason, as far as they are known before the backup.
    pub level: DiskLevel,
    /// A lost checkpoint whose bitmap only the backup can look for. If the bitmap exists, the disk
    /// is incremental to this checkpoint.
    pub possible_parent: Option<String>,
    /// Whether the new checkpoint covers the disk.
    pub checkpointed: bool,
    /// The identity of the file that holds the disk's content, if it can be determined.
    pub source_file: Option<FileId>,
}

impl PlannedDisk {
    /// The disk's level; `None` if the level depends on a bitmap that only the backup can look for.
    pub fn announced_level(&self) -> Option<Level> {
        match self.possible_parent {
            Some(_) => None,
            None => Some(self.level.level()),
        }
    }

    /// The reason for the disk's level.
    pub(crate) fn announced_reason(&self) -> String {
        match &self.possible_parent {
            Some(name) => format!("incremental if the bitmap of checkpoint {name} still exists, else full"),
            None => self.level.reason.to_string(),
        }
    }
}

impl BackupPlan {
    /// The backup's level; `None` if the level depends on bitmaps that only the backup can look
    /// for, or if there is nothing to back up.
    pub fn announced_level(&self) -> Option<Level> {
        let levels = || self.disks.iter().map(PlannedDisk::announced_level);
        if levels().any(|level| level == Some(Level::Incremental)) {
            return Some(Level::Incremental);
        }
        let is_full = !self.disks.is_empty() && levels().all(|level| level.is_some());
        is_full.then_some(Level::Full)
    }

    /// Whether the backup lacks a disk that should be saved.
    pub fn is_partial(&self) -> bool {
        left_out::is_partial(&self.left_out)
    }

    /// The backup's planned level: incremental if at least one disk is incremental. A disk with a
    /// possible parent counts as full.
    pub fn level(&self) -> Level {
        if self.disks.iter().any(|disk| disk.level.parent.is_some()) {
            Level::Incremental
        } else {
            Level::Full
        }
    }

    /// Returns the reason for the backup's level, in one line. If disks have different reasons,
    /// each reason names its disks.
    pub fn reason(&self) -> String {
        let mut reasons: Vec<(String, Vec<&str>)> = Vec::new();
        for planned in &self.disks {
            let (target, why) = (planned.disk.target.as_str(), planned.announced_reason());
            match reasons.iter_mut().find(|(reason, _)| *reason == why) {
                Some((_, targets)) => targets.push(target),
                None => reasons.push((why, vec![target])),
            }
        }
        match reasons.as_slice() {
            [] => "no disk of the domain can be backed up".to_owned(),
            [(reason, _)] => reason.clone(),
            several => {
                let of_disks = several
                    .iter()
                    .map(|(reason, targets)| format!("{}: {reason}", targets.join(", ")));
                of_disks.collect::<Vec<_>>().join("; ")
            }
        }
    }
}

/// Plans a backup of the domain.
pub fn plan(inputs: &Inputs<'_>) -> BackupPlan {
    let seen = lost::seen(inputs);
    let known = [inputs.checkpoints, &seen].concat();
    let mut disks = Vec::new();
    let mut all_now = Vec::new();
    let mut left_out = Vec::new();
    for disk in &inputs.domain.disks {
        let full_only = match eligibility::of(inputs.domain, disk, inputs.allowed, inputs.exclude) {
            Eligibility::NoDisk(_) => continue,
            Eligibility::Skipped(left) => {
                left_out.push(left);
                continue;
            }
            Eligibility::FullOnly(reason) => Some(reason),
            Eligibility::Incremental => inputs.capabilities.incremental.clone().err(),
        };
        let facts = inputs.disks.iter().find(|facts| facts.target == disk.target);
        let now = disk_now(disk, full_only, facts);
        let uuid = &inputs.domain.uuid;
        disks.push(PlannedDisk {
            disk: disk.clone(),
            level: decide(&now, uuid, (inputs.period, inputs.full), inputs.chains, &known),
            possible_parent: None,
            checkpointed: now.full_only.is_none(),
            source_file: now.sources.first().and_then(|source| source.file),
        });
        all_now.push(now);
    }
    let mut findings: Vec<Finding> = left_out.iter().map(LeftOut::finding).collect();
    findings.extend(eligibility::missing_exclusions(inputs.domain, inputs.exclude));
    let encrypted = disks.iter().filter(|planned| planned.disk.is_encrypted());
    findings.extend(encrypted.map(|planned| stored_decrypted(&planned.disk)));
    if let Err(reason) = &inputs.capabilities.incremental {
        findings.push(Finding::new(
            "no-incremental",
            format!("every backup is full: {reason}"),
        ));
    }
    let secret = inputs.domain.tpm.as_ref().and_then(|tpm| tpm.secret.as_deref());
    findings.extend(secret.map(encrypted_tpm_state));
    let is_parent = |checkpoint: &Checkpoint| {
        let mut parents = disks.iter().filter_map(|disk| disk.level.parent.as_ref());
        parents.any(|parent| parent.checkpoint == checkpoint.name)
    };
    let seen: Vec<Checkpoint> = seen.into_iter().filter(is_parent).collect();
    let suspected = lost::suspected(inputs, &known, &all_now);
    for planned in disks.iter_mut().filter(|planned| planned.level.parent.is_none()) {
        let suspected = suspected.as_ref();
        let covering = suspected.filter(|checkpoint| checkpoint.is_sound_for(&planned.disk.target));
        planned.possible_parent = covering.map(|checkpoint| checkpoint.name.clone());
    }
    BackupPlan {
        registered: seen.into_iter().chain(suspected).collect(),
        period: inputs.period.to_owned(),
        checkpoint: disks.iter().any(|disk| disk.checkpointed),
        disks,
        left_out,
        findings,
    }
}

/// The code of the finding that says that the backup of an encrypted disk holds its plain text.
pub(crate) const STORED_DECRYPTED: &str = "stored-decrypted";

fn stored_decrypted(disk: &Disk) -> Finding {
    let what = format!(
        "disk {} is encrypted in the domain: the backup holds its plain text, so protect the repository accordingly",
        disk.target
    );
    Finding::of_disk(STORED_DECRYPTED, &disk.target, what)
}

/// Returns a finding: the saved state of a TPM cannot be used without this secret of libvirt.
pub(crate) fn encrypted_tpm_state(secret: &str) -> Finding {
    let what = format!(
        "the state of the emulated TPM is encrypted: a restored domain starts only where libvirt has the secret {}, \
         which backups do not contain",
        shown(secret)
    );
    Finding::new("tpm-state-encrypted", what)
}

/// Returns the facts that decide what is known about a disk since a restore point.
pub(super) fn disk_now(disk: &Disk, full_only: Option<String>, facts: Option<&DiskFacts>) -> DiskNow {
    let file = |path: &PathBuf| {
        let mut files = facts?.files.iter();
        files.find(|(of, _)| of == path).map(|(_, file)| *file)
    };
    let beneath = disk.beneath().map(|layer| &layer.source);
    let images = std::iter::once(&disk.source).chain(beneath);
    DiskNow {
        target: disk.target.clone(),
        full_only,
        virtual_size: facts.and_then(|facts| facts.size),
        sources: images
            .map(|source| SourceNow {
                path: source.text(),
                file: source.path().and_then(file),
            })
            .collect(),
    }
}
