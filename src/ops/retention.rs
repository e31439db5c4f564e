//! Removes the restore points that a policy does not keep.
//!
//! The plan is data: a decision about each restore point. Nothing is removed unless the newest
//! restore point can be restored. If a kept restore point needs data of a removed one, the data is
//! merged into the kept one.

use std::collections::BTreeSet;

use jiff::Zoned;

use super::each::{Fault, Judged};
use super::lock;
use super::monitor::{self, Event, Monitor};
use super::{Cause, Error, Result};
use crate::model::finding::Finding;
use crate::model::stop::Stop;
use crate::repo::{
    DomainRepository, DomainWriter, History, Leftover, Merge, MergeWatch, Merged, RepoError, Repository,
};

mod after_backup;
mod plan;

pub use crate::model::retention::{Decision, KeepReason, Policy, PolicyError, Quota, Rule, Within};
pub use after_backup::{RetentionOutcome, RetentionPreview};
pub(super) use after_backup::{after_backup, preview_after};
use plan::{NextPoint, plan, plan_after};
pub use plan::{Obstacle, PlannedMerge, PlannedPoint, RetentionPlan};

/// The removed restore points, and the error that ended the removal early.
#[derive(Debug, Default)]
pub struct Removed {
    /// The ids, in the order of removal.
    pub ids: Vec<String>,
    /// The reason why the rest of the plan was not carried out.
    pub failure: Option<Error>,
    /// The ids of restore points whose files stay for now, because files of the domain are being
    /// read. Those that are not among `ids` are not removed yet; a later prune merges them.
    pub waiting: Vec<String>,
}

/// The environment in which a plan is carried out.
pub(super) struct RetentionMeans<'a> {
    /// The domain's name.
    pub domain: &'a str,
    /// The right to write.
    pub locked: &'a dyn DomainWriter,
    /// The current time.
    pub now: &'a Zoned,
    /// Receives progress.
    pub monitor: &'a dyn Monitor,
    /// A request to stop. A merge that is not committed yet is undone.
    pub stop: &'a Stop,
}

impl RetentionMeans<'_> {
    /// Carries out a plan that was made with this history, under the same lock.
    pub(super) fn carry_out(&self, history: &History, plan: &RetentionPlan) -> Removed {
        let mut removed = Removed::default();
        if let Err(failure) = self.remove(history, plan, &mut removed) {
            removed.failure = Some(failure);
        }
        removed
    }

    fn remove(&self, history: &History, plan: &RetentionPlan, removed: &mut Removed) -> Result<()> {
        for planned in plan.removals() {
            self.check_stop()?;
            let id = &planned.point.id;
            let gone = self.locked.remove_point(history, id, self.now.timestamp());
            gone.map_err(|error| Error::of(self.domain, error))?;
            removed.ids.push(id.clone());
        }
        for planned in plan.merges() {
            self.check_stop()?;
            match self.merge(&planned)? {
                Merged::Completely => removed.ids.extend(planned.run),
                Merged::ExceptFiles => {
                    removed.waiting.extend(planned.run.iter().cloned());
                    removed.ids.extend(planned.run);
                }
                Merged::NotYet => removed.waiting.extend(planned.run),
            }
        }
        Ok(())
    }

    fn merge(&self, planned: &PlannedMerge) -> Result<Merged> {
        let failed = |error: RepoError| Error::of(self.domain, error);
        let what = format!("merging {} into {}", planned.run.join(", "), planned.into);
        self.monitor.event(Event::Step {
            domain: self.domain,
            what: &what,
        });
        // Each merge changes what the next one reads.
        let history = self.locked.history().map_err(failed)?;
        let merge = Merge {
            run: &planned.run,
            into: &planned.into,
            now: self.now.timestamp(),
            stop: self.stop,
            watch: &Progress {
                domain: self.domain,
                monitor: self.monitor,
            },
        };
        let merged = self.locked.merge_points(&history, &merge);
        merged.map_err(|error| match self.stop.reason() {
            Some(reason) => Error::of(self.domain, Cause::Stopped(reason)),
            None => failed(error),
        })
    }

    fn check_stop(&self) -> Result<()> {
        match self.stop.reason() {
            Some(reason) => Err(Error::of(self.domain, Cause::Stopped(reason))),
            None => Ok(()),
        }
    }
}

/// Reports the progress of a merge.
struct Progress<'a> {
    domain: &'a str,
    monitor: &'a dyn Monitor,
}

impl std::fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Progress({})", self.domain)
    }
}

impl MergeWatch for Progress<'_> {
    fn begins(&self, disk: &str, size: u64) {
        let (domain, file) = (self.domain, disk);
        self.monitor.event(Event::FileBegins { domain, file, size });
    }

    fn at(&self, disk: &str, position: u64) {
        let (domain, file) = (self.domain, disk);
        self.monitor.event(Event::FileAt {
            domain,
            file,
            position,
        });
    }

    fn ends(&self, disk: &str) {
        let (domain, file) = (self.domain, disk);
        self.monitor.event(Event::FileEnds { domain, file });
    }
}

/// The environment of a prune by policy.
pub struct Means<'a> {
    /// The repository.
    pub repo: &'a dyn Repository,
    /// The current time in the local time zone.
    pub now: Zoned,
    /// Receives progress and findings.
    pub monitor: &'a dyn Monitor,
    /// A request to stop. A removal that has begun is finished first; a merge that is not committed
    /// yet is undone.
    pub stop: &'a Stop,
}

/// The options of a prune by policy.
#[derive(Clone, Debug)]
pub struct Options {
    /// The policy that decides which restore points stay.
    pub policy: Policy,
    /// How long to wait for another run that writes to the domain's folder.
    pub wait: std::time::Duration,
}

/// The result of a prune by policy, or of its dry run.
#[derive(Debug)]
pub struct Outcome {
    /// The decisions.
    pub plan: RetentionPlan,
    /// The removed restore points; `None` for a dry run.
    pub removed: Option<Removed>,
    /// For a dry run: a description of the run that writes to the domain's folder now, if there is
    /// one. A prune would wait for it or be refused.
    pub writer: Option<String>,
    /// The findings.
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

/// Removes the restore points of a domain that the policy does not keep.
///
/// # Errors
/// The policy is empty, the domain has no restore points, its folder cannot be locked or read, or
/// an interrupted removal cannot be finished. The outcome reports a removal that failed later.
pub fn prune(domain: &str, means: &Means<'_>, options: &Options) -> Result<Outcome> {
    monitor::noting(means.monitor, |monitor| {
        let repository = open(domain, means, options)?;
        let failed = |error: RepoError| Error::of(domain, error);
        let locked = lock::lock(repository.as_ref(), options.wait, monitor, means.stop)?;
        let mut findings = Vec::new();
        for removal in repository.interrupted_removals().map_err(failed)? {
            if locked.finish_removal(&removal).map_err(failed)? {
                let finding = finished(&removal);
                notify(domain, &finding, monitor);
                findings.push(finding);
            }
        }
        let history = locked.history().map_err(failed)?;
        let plan = plan(&history, &options.policy, &means.now);
        findings.extend(report(domain, &history, &plan, monitor));
        let retention = RetentionMeans {
            domain,
            locked: locked.as_ref(),
            now: &means.now,
            monitor,
            stop: means.stop,
        };
        let removed = retention.carry_out(&history, &plan);
        findings.extend(waiting(domain, &removed, monitor));
        // Records of removed restore points are useless but harmless, so a failure does not matter.
        let _ = repository.forget_removed();
        Ok(Outcome {
            plan,
            removed: Some(removed),
            writer: None,
            findings,
        })
    })
}

/// Plans a prune without doing anything.
///
/// # Errors
/// The same as for [`prune`], except that no lock is needed.
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

/// The ids of the restore points that a policy keeps now, or that may not be removed now.
pub(super) fn kept(history: &History, policy: &Policy, now: &Zoned) -> BTreeSet<String> {
    let points = plan(history, policy, now).points.into_iter();
    let kept = points.filter(|planned| matches!(planned.decision, Decision::Keep(_)));
    kept.map(|planned| planned.point.id).collect()
}

/// Opens the domain's part of the repository. Fails if there are no restore points, or if the
/// policy is empty.
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

/// The code of the finding that a removal or merge has to wait, for example until nobody reads the
/// files.
const REMOVAL_WAITS: &str = "removal-waits";

/// The message for an empty policy.
pub(crate) const EMPTY_POLICY: &str =
    "the policy keeps nothing: give at least one --keep-… switch a value above 0";

/// Reports that an interrupted removal or merge was cleaned up.
pub(super) fn finished(removal: &Leftover) -> Finding {
    let location = &removal.location;
    let what = match removal.is_merge {
        true => format!("completed or undid the interrupted merge recorded in {location}"),
        false => format!("finished the interrupted removal of {location}"),
    };
    Finding::new("removal-finished", what)
}

/// Reports that an interrupted removal or merge cannot be cleaned up now.
pub(super) fn not_finished(removal: &Leftover) -> Finding {
    let location = &removal.location;
    let work = match removal.is_merge {
        true => format!("merge recorded in {location}"),
        false => format!("removal of {location}"),
    };
    let what = format!(
        "the interrupted {work} cannot be finished now, because files are being read or cannot be changed, or a manifest cannot be used: \
         a later run will try again"
    );
    Finding::new(REMOVAL_WAITS, what)
}

/// Reports that files of removed restore points stay for the moment.
fn waiting(domain: &str, removed: &Removed, monitor: &dyn Monitor) -> Option<Finding> {
    let ids = removed.waiting.join(", ");
    let what = format!(
        "files of restore points {ids} stay for now, because files of the domain are being read or cannot be changed: \
         a later prune removes these files"
    );
    let finding = Finding::new(REMOVAL_WAITS, what);
    let is_one = !removed.waiting.is_empty();
    is_one.then(|| {
        notify(domain, &finding, monitor);
        finding
    })
}

/// Reports findings about a pruned domain: problems with its folder, and the reasons why nothing is
/// removed, also for earlier domains of its name.
fn report(domain: &str, history: &History, plan: &RetentionPlan, monitor: &dyn Monitor) -> Vec<Finding> {
    let earlier = plan.earlier_obstacles.iter().map(|(uuid, obstacle)| {
        let what = format!(
            "no restore point of the earlier domain with this name (UUID {uuid}) is removed: {}",
            obstacle.sentence()
        );
        Finding::new("earlier-domain-held-back", what)
    });
    let held_back = plan.obstacle.iter().map(|obstacle| {
        let what = format!(
            "no restore point of this domain is removed: {}",
            obstacle.sentence()
        );
        Finding::new("held-back", what)
    });
    let of_history = history.findings.iter().cloned().chain(history.damage());
    let findings: Vec<Finding> = held_back.chain(of_history).chain(earlier).collect();
    findings
        .iter()
        .for_each(|finding| notify(domain, finding, monitor));
    findings
}

fn notify(domain: &str, finding: &Finding, monitor: &dyn Monitor) {
    monitor.event(Event::Found { domain, finding });
}
