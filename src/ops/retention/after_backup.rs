//! Applies a policy after a backup: the backup has succeeded whatever comes of this.

use super::{NextPoint, Policy, Removed, RetentionPlan, carry_out, plan, plan_after};
use crate::model::text::with_sources;
use crate::ops::Context;
use crate::ops::reconcile::Reconciliation;
use crate::repo::{DomainRepository, DomainWriter, History};

/// What a policy did after a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetentionOutcome {
    /// It was applied.
    Applied {
        /// What was decided.
        plan: RetentionPlan,
        /// The ids of those that were removed, in the order in which they went.
        removed: Vec<String>,
    },
    /// Nothing was decided, for this reason.
    Kept(String),
    /// It was not applied, or not to its end.
    Failed {
        /// The ids of those that were removed before.
        removed: Vec<String>,
        /// Why not.
        why: String,
    },
}

/// What a policy would do after a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetentionPreview {
    /// What would be decided.
    Plan(RetentionPlan),
    /// Nothing would be decided, for this reason.
    Keep(String),
}

/// Applies a policy now that the domain's new restore point exists.
pub(in crate::ops) fn after_backup(
    domain: &str,
    repository: &dyn DomainRepository,
    locked: &dyn DomainWriter,
    policy: &Policy,
    context: &Context,
) -> RetentionOutcome {
    let history = match locked.history() {
        Ok(history) => history,
        Err(error) => {
            return RetentionOutcome::Failed {
                removed: Vec::new(),
                why: with_sources(&error),
            };
        }
    };
    let plan = plan(&history, policy, &context.now);
    let Removed { ids, failure } = carry_out(domain, locked, &history, &plan, &context.now, &context.stop);
    // Of what has gone nothing needs to be known; that it is still known does no harm.
    let _ = repository.forget_removed();
    match failure {
        None => RetentionOutcome::Applied { plan, removed: ids },
        Some(error) => RetentionOutcome::Failed {
            removed: ids,
            why: with_sources(&error.cause),
        },
    }
}

/// Tells what a policy would do once the planned backup is made.
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
