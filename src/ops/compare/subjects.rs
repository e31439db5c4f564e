//! Decides which disks can be compared, and why the others cannot.

use super::{Meaning, UncomparedDisk};
use crate::model::chain::Chains;
use crate::model::eligibility::Allowed;
use crate::model::finding::Finding;
use crate::model::left_out::{Exclusion, Kind, LeftOut};
use crate::model::level::{FullRule, Parent};
use crate::ops::heal::HealedDomain;
use crate::ops::plan::{self, BackupPlan, PlannedDisk, STORED_DECRYPTED};
use crate::ops::reconcile::{self, Repair};
use crate::ops::survey::Survey;

/// The disks of a domain, sorted by whether they can be compared.
pub(super) struct Subjects {
    /// Disks with a restore point to compare with: the parent that a backup would choose.
    pub(super) comparable: Vec<(PlannedDisk, Parent)>,
    /// The disks that cannot be compared.
    pub(super) uncompared: Vec<UncomparedDisk>,
    /// Other findings that a backup would report about the disks.
    pub(super) findings: Vec<Finding>,
}

/// Returns the repairs needed before the disks can be compared with their restore points of this
/// period.
pub(super) fn repairs(survey: &Survey, chains: &Chains, period: &str) -> Vec<Repair> {
    let mut repairs = reconcile::repairs(survey);
    if survey.job.is_none() || repairs.contains(&Repair::AbortJob) {
        let lost = planned(survey, chains, period).registered;
        repairs.extend(lost.into_iter().map(Repair::Register));
    }
    repairs
}

/// Returns the disks that the newest restore point leaves out on purpose. No backup relies on their
/// bitmaps.
fn recorded_exclusions(chains: &Chains) -> impl Iterator<Item = &LeftOut> {
    let newest = chains.latest_in_periods().into_iter();
    let left_out = newest.flat_map(|kept| &kept.point.left_out);
    left_out.filter(|left| left.kind == Kind::Excluded)
}

fn planned(survey: &Survey, chains: &Chains, period: &str) -> BackupPlan {
    // A mark in the metadata is found without this, and has a reason of its own.
    let is_unmarked = |left: &&LeftOut| !survey.domain.excluded.contains(&left.disk);
    let exclude: Vec<Exclusion> = recorded_exclusions(chains)
        .filter(is_unmarked)
        .map(|left| Exclusion {
            disk: left.disk.clone(),
            is_expected: false,
        })
        .collect();
    plan::plan(&plan::Inputs {
        domain: &survey.domain,
        disks: &survey.disks,
        capabilities: &survey.capabilities,
        chains,
        checkpoints: &survey.checkpoints,
        missing: &survey.missing,
        repository: survey.repository.as_deref(),
        period,
        // The newest restore point is of this period, and a comparison needs no other.
        full: FullRule::Period,
        // Nothing is stored here, so all disks are allowed. The reason then says why a disk cannot
        // be compared, not which switch a backup of it needs.
        allowed: Allowed::ALL,
        exclude: &exclude,
    })
}

/// Finds the disks that can be compared, from the plan of a backup into this period.
pub(super) fn subjects(healed: &HealedDomain, period: &str) -> Subjects {
    let chains = &healed.history.chains;
    let planned = planned(&healed.survey, chains, period);
    let mut comparable = Vec::new();
    let mut uncompared = Vec::new();
    for disk in planned.disks {
        match disk.level.parent.clone() {
            Some(parent) => comparable.push((disk, parent)),
            None => uncompared.push(why_not(&disk.disk.target, disk.level.reason.to_string(), chains)),
        }
    }
    let newest = chains.latest_in_periods();
    for before in newest.iter().flat_map(|kept| &kept.point.disks) {
        let target = &before.target;
        if healed.survey.domain.disk(target).is_none() {
            uncompared.push(UncomparedDisk {
                target: target.clone(),
                why: "the domain no longer has this disk".to_owned(),
                meaning: Meaning::NothingToCompare,
            });
        }
    }
    for left in &planned.left_out {
        let is_saved = newest.is_some_and(|kept| kept.point.disk(&left.disk).is_some());
        match left.kind {
            Kind::Excluded => uncompared.push(excluded(healed, left)),
            Kind::Raw | Kind::Encrypted | Kind::Skipped if is_saved => {
                uncompared.push(why_not(
                    &left.disk,
                    format!("no backup saves it now: {}", left.reason),
                    chains,
                ));
            }
            // A finding says why no backup saves it.
            Kind::Raw | Kind::Encrypted | Kind::Skipped => {}
        }
    }
    // Findings about a disk that is not compared are reported with that disk.
    let is_of_disks = |finding: &Finding| match &finding.disk {
        Some(_) if finding.code == STORED_DECRYPTED => false,
        Some(disk) => !uncompared.iter().any(|other| other.target == *disk),
        None => finding.code == "no-incremental",
    };
    let findings = planned.findings.into_iter().filter(is_of_disks).collect();
    Subjects {
        comparable,
        uncompared,
        findings,
    }
}

fn excluded(healed: &HealedDomain, left: &LeftOut) -> UncomparedDisk {
    let recorded = recorded_exclusions(&healed.history.chains).find(|recorded| recorded.disk == left.disk);
    let is_marked = healed.survey.domain.excluded.contains(&left.disk);
    let why = match recorded {
        Some(recorded) if !is_marked => {
            format!("the newest restore point leaves it out: {}", recorded.reason)
        }
        _ => left.reason.clone(),
    };
    UncomparedDisk {
        target: left.disk.clone(),
        why,
        meaning: Meaning::NothingToCompare,
    }
}

/// Describes a disk that is not compared. The disk counts as not comparable only if its newest
/// restore point has a checkpoint for it: otherwise no backup relies on the disk's bitmap.
fn why_not(target: &str, why: String, chains: &Chains) -> UncomparedDisk {
    let latest = chains.latest_with(target);
    let missed = latest.and_then(|kept| kept.missed_write(target));
    let was_checkpointed = latest
        .and_then(|kept| kept.point.disk(target))
        .is_some_and(|disk| disk.checkpointed);
    let (meaning, why) = match missed {
        Some(missed) => {
            let why = format!(
                "an earlier comparison ({:.0}) found that a bitmap missed a write; the next backup will save this disk in full",
                missed.found
            );
            (Meaning::MissedWrite, why)
        }
        None if was_checkpointed => (Meaning::NotComparable, why),
        None => (Meaning::NothingToCompare, why),
    };
    UncomparedDisk {
        target: target.to_owned(),
        why,
        meaning,
    }
}
