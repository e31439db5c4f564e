//! Removes the restore points that a policy does not keep.
//!
//! The plan is data: a decision about each restore point. Nothing is removed unless the newest restore
//! point can be given back, and none upon which another stands that stays.

use jiff::Zoned;

use super::each::{Fault, Judged};
use super::lock;
use super::monitor::{self, Event, Monitor};
use super::{Cause, Error, Result};
use crate::model::finding::Finding;
use crate::model::stop::Stop;
use crate::repo::{DomainRepository, DomainWriter, History, RepoError, Repository};

mod after_backup;
mod plan;

pub use crate::model::retention::{Decision, KeepReason, Policy, PolicyError, Quota, Rule, Within};
pub use after_backup::{RetentionOutcome, RetentionPreview};
pub(super) use after_backup::{after_backup, preview_after};
pub use plan::{NextPoint, Obstacle, PlannedPoint, RetentionPlan, plan, plan_after};

/// What was removed, and what ended it early.
#[derive(Debug, Default)]
pub struct Removed {
    /// The ids, in the order in which they went.
    pub ids: Vec<String>,
    /// Why the rest of the plan was not carried out.
    pub failure: Option<Error>,
}

/// Carries a plan out, under the lock and on the history under which it was made.
pub fn carry_out(
    domain: &str,
    locked: &dyn DomainWriter,
    history: &History,
    plan: &RetentionPlan,
    now: &Zoned,
    stop: &Stop,
) -> Removed {
    let mut removed = Removed::default();
    for planned in plan.removals() {
        if let Some(reason) = stop.reason() {
            removed.failure = Some(Error::of(domain, Cause::Stopped(reason)));
            break;
        }
        let id = &planned.point.id;
        if let Err(error) = locked.remove_point(history, id, now.timestamp()) {
            removed.failure = Some(Error::of(domain, error));
            break;
        }
        removed.ids.push(id.clone());
    }
    removed
}

/// What a prune by policy works with.
pub struct Means<'a> {
    /// Where restore points are kept.
    pub repo: &'a dyn Repository,
    /// Now, in the local time zone.
    pub now: Zoned,
    /// Whom to tell.
    pub monitor: &'a dyn Monitor,
    /// The wish to stop. What has begun is finished first.
    pub stop: &'a Stop,
}

/// What a prune by policy is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is to stay.
    pub policy: Policy,
    /// How long to wait for another run that writes to the domain's folder.
    pub wait: std::time::Duration,
}

/// What a prune by policy did, or would do.
#[derive(Debug)]
pub struct Outcome {
    /// What was decided.
    pub plan: RetentionPlan,
    /// What was removed; `None` for a dry run.
    pub removed: Option<Removed>,
    /// The run that writes to the domain's folder now, for a dry run: a prune would be refused.
    pub writer: Option<String>,
    /// What is worth telling.
    pub findings: Vec<Finding>,
}

impl Judged for Outcome {
    fn faults(&self) -> Vec<Fault> {
        let held_back = self.plan.obstacle.is_some().then_some(Fault::NotPruned);
        let locked = self.writer.is_some();
        let locked = locked.then_some(Fault::Failed(super::Class::Locked));
        let failed = self.error().map(|error| Fault::Failed(error.class()));
        held_back.into_iter().chain(locked).chain(failed).collect()
    }

    fn error(&self) -> Option<&Error> {
        self.removed.as_ref()?.failure.as_ref()
    }
}

/// Removes the restore points of the domain that the policy does not keep.
///
/// # Errors
/// The policy is empty, the domain has no restore points, or its folder cannot be locked or read. A
/// removal that fails is in the outcome.
pub fn prune(domain: &str, means: &Means<'_>, options: &Options) -> Result<Outcome> {
    monitor::noting(means.monitor, |monitor| {
        let repository = open(domain, means, options)?;
        let failed = |error: RepoError| Error::of(domain, error);
        let locked = lock::lock(repository.as_ref(), options.wait, monitor, means.stop)?;
        let mut findings = Vec::new();
        for removal in repository.interrupted_removals().map_err(failed)? {
            locked.finish_removal(&removal).map_err(failed)?;
            findings.push(finished(domain, &removal.location, monitor));
        }
        let history = locked.history().map_err(failed)?;
        let plan = plan(&history, &options.policy, &means.now);
        findings.extend(report(domain, &history, &plan, monitor));
        let removed = carry_out(domain, locked.as_ref(), &history, &plan, &means.now, means.stop);
        // Of what has gone nothing needs to be known; that it is still known does no harm.
        let _ = repository.forget_removed();
        Ok(Outcome {
            plan,
            removed: Some(removed),
            writer: None,
            findings,
        })
    })
}

/// Tells what a prune would do, and does nothing.
///
/// # Errors
/// As [`prune`], except for the lock.
pub fn preview(domain: &str, means: &Means<'_>, options: &Options) -> Result<Outcome> {
    let repository = open(domain, means, options)?;
    let writer = repository.writer();
    let history = repository.history().map_err(|error| Error::of(domain, error))?;
    let plan = plan(&history, &options.policy, &means.now);
    Ok(Outcome {
        findings: report(domain, &history, &plan, means.monitor),
        plan,
        removed: None,
        writer,
    })
}

/// The domain's part of the repository, if there is anything to prune and a policy to do it by.
fn open(domain: &str, means: &Means<'_>, options: &Options) -> Result<Box<dyn DomainRepository>> {
    if options.policy.is_empty() {
        return Err(Error::of(domain, Cause::Usage(EMPTY_POLICY.to_owned())));
    }
    let failed = |error: RepoError| Error::of(domain, error);
    let repository = means.repo.domain(domain).map_err(failed)?;
    let history = repository.history().map_err(failed)?;
    match history.chains.points().is_empty() && history.chains.all_lost().next().is_none() {
        true => Err(Error::of(domain, Cause::NoRestorePoints)),
        false => Ok(repository),
    }
}

/// What an empty policy is told.
pub const EMPTY_POLICY: &str = "the policy keeps nothing: give at least one --keep-… above 0";

fn finished(domain: &str, location: &str, monitor: &dyn Monitor) -> Finding {
    let what = format!("removed what an interrupted removal had left of {location}");
    let finding = Finding::new("removal-finished", what);
    tell(domain, &finding, monitor);
    finding
}

/// What is worth telling of a domain that is pruned: what is wrong with its folder, and what holds
/// back the restore points of domains that had its name before.
fn report(domain: &str, history: &History, plan: &RetentionPlan, monitor: &dyn Monitor) -> Vec<Finding> {
    let earlier = plan.earlier_obstacles.iter().map(|(uuid, obstacle)| {
        let what = format!(
            "nothing is removed of the earlier domain of that name with UUID {uuid}: {}",
            obstacle.sentence()
        );
        Finding::new("earlier-domain-held-back", what)
    });
    let held_back = plan.obstacle.iter().map(|obstacle| {
        let what = format!("nothing is removed: {}", obstacle.sentence());
        Finding::new("held-back", what)
    });
    let of_history = history.findings.iter().cloned().chain(history.damage());
    let findings: Vec<Finding> = held_back.chain(of_history).chain(earlier).collect();
    findings.iter().for_each(|finding| tell(domain, finding, monitor));
    findings
}

fn tell(domain: &str, finding: &Finding, monitor: &dyn Monitor) {
    monitor.event(Event::Found { domain, finding });
}
