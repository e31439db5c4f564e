//! Which disks can be compared, and why the others cannot.

use super::{Meaning, UncomparedDisk};
use crate::model::chain::{Chains, Parent};
use crate::model::domain::Allowed;
use crate::model::finding::Finding;
use crate::model::left_out::Kind;
use crate::ops::heal::Settled;
use crate::ops::plan::{self, BackupPlan, PlannedDisk, STORED_DECRYPTED};
use crate::ops::reconcile::{self, Repair};
use crate::ops::survey::Survey;

/// The disks of a domain, by whether they can be compared.
pub(super) struct Subjects {
    /// Those with a restore point to compare with, as a backup would find it.
    pub(super) comparable: Vec<(PlannedDisk, Parent)>,
    /// The others.
    pub(super) uncompared: Vec<UncomparedDisk>,
    /// What else a backup would tell of the disks.
    pub(super) findings: Vec<Finding>,
}

/// What has to be put right before the disks can be compared with their restore points of this period.
pub(super) fn repairs(survey: &Survey, chains: &Chains, period: &str) -> Vec<Repair> {
    let mut repairs = reconcile::repairs(survey);
    if survey.job.is_none() || repairs.contains(&Repair::AbortJob) {
        let lost = planned(survey, chains, period).registered;
        repairs.extend(lost.into_iter().map(Repair::Register));
    }
    repairs
}

fn planned(survey: &Survey, chains: &Chains, period: &str) -> BackupPlan {
    plan::plan(&plan::Inputs {
        domain: &survey.domain,
        disks: &survey.disks,
        capabilities: &survey.capabilities,
        chains,
        checkpoints: &survey.checkpoints,
        missing: &survey.missing,
        period,
        // So that it tells why such a disk is not compared, and not why it might not be backed up. Nothing is stored here.
        allowed: Allowed::ALL,
        exclude: &[],
    })
}

/// Sorts the disks by what a backup into this period would do.
pub(super) fn subjects(settled: &Settled, period: &str) -> Subjects {
    let chains = &settled.history.chains;
    let planned = planned(&settled.survey, chains, period);
    let mut comparable = Vec::new();
    let mut uncompared = Vec::new();
    for disk in planned.disks {
        match disk.level.parent.clone() {
            Some(parent) => comparable.push((disk, parent)),
            None => uncompared.push(why_not(&disk.disk.target, disk.level.reason, chains)),
        }
    }
    let kept = chains.latest_in_periods();
    for before in kept.iter().flat_map(|kept| &kept.point.disks) {
        let target = &before.target;
        if settled.survey.domain.disk(target).is_none() {
            uncompared.push(UncomparedDisk {
                target: target.clone(),
                why: "the domain has no such disk any more".to_owned(),
                meaning: Meaning::NothingToCompare,
            });
        } else if let Some(left) = planned.left_out.iter().find(|left| left.disk == *target) {
            uncompared.push(match left.kind {
                Kind::Excluded => UncomparedDisk {
                    target: target.clone(),
                    why: left.reason.clone(),
                    meaning: Meaning::NothingToCompare,
                },
                Kind::Raw | Kind::Encrypted | Kind::Skipped => {
                    why_not(target, left.finding().message, chains)
                }
            });
        }
    }
    // What is known of a disk that is not compared is reported there.
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

/// What it means that a disk is not compared. A restore point that made a checkpoint of it promised that its bitmap would tell; one that made
/// none promised nothing.
fn why_not(target: &str, why: String, chains: &Chains) -> UncomparedDisk {
    let latest = chains.latest_with(target);
    let missed = latest.and_then(|kept| Some((kept, kept.missed_write(target)?)));
    let was_checkpointed = latest
        .and_then(|kept| kept.point.disk(target))
        .is_some_and(|disk| disk.checkpointed);
    let (meaning, why) = match missed {
        Some((kept, missed)) => {
            let why = format!(
                "its bitmap missed a write, as a comparison with {} found on {:.0}; the next backup of it is full",
                kept.point.id, missed.found
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
