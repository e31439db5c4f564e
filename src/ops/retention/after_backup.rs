//! Applies a policy after a backup. A failure here does not make the backup fail.

use super::{NextPoint, Policy, RetentionMeans, RetentionPlan, plan, plan_after, waiting};
use crate::model::finding::Finding;
use crate::model::text::with_sources;
use crate::ops::Context;
use crate::ops::reconcile::Reconciliation;
use crate::repo::{DomainRepository, DomainWriter, History};

/// The result of a policy after a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetentionOutcome {
    /// The policy was applied.
    Applied {
        /// The decisions.
        plan: RetentionPlan,
        /// The ids of the removed restore points, in the order of removal.
        removed: Vec<String>,
    },
    /// The policy was not applied, for this reason.
    Kept(String),
    /// The policy could not be applied, or only in part.
    Failed {
        /// The ids of the restore points that were removed before the failure.
        removed: Vec<String>,
        /// The reason.
        why: String,
    },
}

/// The dry run of a policy after a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetentionPreview {
    /// The decisions.
    Plan(RetentionPlan),
    /// The policy would not be applied, for this reason.
    Keep(String),
}

/// Applies a policy after the domain's new restore point was committed. Also returns a finding
/// about removals that have to wait; the monitor has received it already.
pub(in crate::ops) fn after_backup(
    domain: &str,
    repository: &dyn DomainRepository,
    locked: &dyn DomainWriter,
    policy: &Policy,
    context: &Context,
) -> (RetentionOutcome, Option<Finding>) {
    let history = match locked.history() {
        Ok(history) => history,
        Err(error) => {
            let (removed, why) = (Vec::new(), with_sources(&error));
            return (RetentionOutcome::Failed { removed, why }, None);
        }
    };
    let plan = plan(&history, policy, &context.now);
    let retention = RetentionMeans {
        domain,
        locked,
        now: &context.now,
        monitor: context.monitor,
        stop: &context.stop,
    };
    let removed = retention.carry_out(&history, &plan);
    let waiting = waiting(domain, &removed, context.monitor);
    // Records of removed restore points are useless but harmless, so a failure does not matter.
    let _ = repository.forget_removed();
    let outcome = match removed.failure {
        None => RetentionOutcome::Applied {
            plan,
            removed: removed.ids,
        },
        Some(error) => RetentionOutcome::Failed {
            removed: removed.ids,
            why: with_sources(&error.cause),
        },
    };
    (outcome, waiting)
}

/// Plans what a policy would do after the planned backup.
pub(in crate::ops) fn preview_after(
    history: &History,
    planned: &Reconciliation,
    uuid: &str,
    policy: &Policy,
    context: &Context,
) -> RetentionPreview {
    let backup = &planned.backup;
    let points = history.chains.points().iter();
    let with_checkpoint = |name: &String| {
        let points = points.clone();
        let holds = move |point: &&crate::model::chain::KeptPoint| {
            let checkpoint = point.point.checkpoint.as_ref();
            checkpoint.is_some_and(|checkpoint| checkpoint.name == *name)
        };
        points
            .filter(holds)
            .map(|kept| kept.point.id.clone())
            .collect::<Vec<_>>()
    };
    let disks = backup.disks.iter();
    let certain = disks
        .clone()
        .filter_map(|disk| Some(disk.level.parent.as_ref()?.id.clone()));
    let possible = disks.clone().filter_map(|disk| disk.possible_parent.as_ref());
    let next = NextPoint {
        uuid: uuid.to_owned(),
        period: backup.period.clone(),
        disks: disks.clone().map(|disk| disk.disk.target.clone()).collect(),
        parents: certain.chain(possible.flat_map(with_checkpoint)).collect(),
    };
    RetentionPreview::Plan(plan_after(history, policy, &context.now, Some(&next)))
}
