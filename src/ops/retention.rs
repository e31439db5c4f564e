//! Removes the restore points that a policy does not keep.
//!
//! The plan is data: a verdict for each restore point. Nothing is removed unless the newest restore
//! point can be given back, and none upon which another stands that stays.

use jiff::{Span, Zoned};

use super::each::{Fault, Judged};
use super::lock;
use super::monitor::{self, Event, Monitor};
use super::{Cause, Error, Result};
use crate::model::chain::KeptPoint;
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;
use crate::model::retention::{self, Candidate, KeepReason, Policy, Verdict};
use crate::model::stop::Stop;
use crate::repo::{DomainRepository, DomainWriter, History, RepoError, Repository};

/// What retention would do with a domain's restore points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionPlan {
    /// The restore points, in the order they were made.
    pub points: Vec<PlannedPoint>,
    /// Why nothing is removed of the domain that has this name now.
    pub obstacle: Option<Obstacle>,
    /// The same for domains that had the name before, each with its UUID.
    pub earlier_obstacles: Vec<(String, Obstacle)>,
}

/// What would become of a restore point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPoint {
    /// The restore point.
    pub point: RestorePoint,
    /// Bytes of its files.
    pub size: u64,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// Why no restore point of a domain may be removed, whatever the policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The newest restore point cannot be given back whole.
    NotWhole {
        /// Its id.
        id: String,
        /// The first thing that is wrong with it.
        fault: String,
    },
    /// A verification found the newest restore point damaged.
    Damaged {
        /// Its id.
        id: String,
        /// What was found.
        what: String,
    },
    /// The newest restore point lacks a disk that nobody asked to leave out.
    Partial {
        /// Its id.
        id: String,
    },
    /// A restore point cannot be read, so nobody knows upon which others it stands.
    Unreadable {
        /// Its id.
        id: String,
        /// A sentence that names its manifest.
        what: String,
    },
    /// A restore point is of a day that has not come: the clock is wrong, or was then.
    Future {
        /// Its id.
        id: String,
    },
    /// The record of removed restore points cannot be read.
    NoRecord {
        /// A sentence that names it.
        what: String,
    },
}

impl RetentionPlan {
    /// The restore points that go, newest first: none goes before those that depend on it.
    pub fn removals(&self) -> impl Iterator<Item = &PlannedPoint> {
        let goes = |planned: &&PlannedPoint| planned.verdict == Verdict::Remove;
        self.points.iter().rev().filter(goes)
    }

    /// Bytes that are freed.
    pub fn freed(&self) -> u64 {
        self.removals().map(|planned| planned.size).sum()
    }
}

/// Decides what a policy removes now.
pub fn plan(history: &History, policy: &Policy, now: &Zoned) -> RetentionPlan {
    let chains = &history.chains;
    let candidates: Vec<Candidate> = chains
        .points()
        .iter()
        .map(|kept| candidate(history, kept))
        .collect();
    let mut verdicts = retention::decide(&candidates, policy, now);
    let of_all = obstacle_of_all(history, now);
    let mut plan = RetentionPlan {
        points: Vec::new(),
        obstacle: of_all.clone(),
        earlier_obstacles: Vec::new(),
    };
    let current = chains.latest_in_periods().map(|kept| &kept.point.uuid);
    for uuid in uuids(chains.in_periods()) {
        let obstacle = of_all.clone().or_else(|| obstacle_of(history, uuid));
        let Some(obstacle) = obstacle else { continue };
        for (candidate, verdict) in candidates.iter().zip(&mut verdicts) {
            if candidate.uuid == *uuid && !matches!(verdict, Verdict::Keep(_)) {
                *verdict = Verdict::Keep(vec![KeepReason::HeldBack]);
            }
        }
        if Some(uuid) == current {
            plan.obstacle = Some(obstacle);
        } else if of_all.is_none() {
            plan.earlier_obstacles.push((uuid.clone(), obstacle));
        }
    }
    let points = chains.points().iter().zip(verdicts);
    plan.points = points
        .map(|(kept, verdict)| PlannedPoint {
            point: kept.point.clone(),
            size: history.get(&kept.point.id).map_or(0, |kept| kept.size()),
            verdict,
        })
        .collect();
    plan
}

/// The UUIDs of these restore points, each once.
fn uuids<'a>(points: impl Iterator<Item = &'a KeptPoint>) -> Vec<&'a String> {
    let mut uuids = Vec::new();
    for kept in points {
        if !uuids.contains(&&kept.point.uuid) {
            uuids.push(&kept.point.uuid);
        }
    }
    uuids
}

fn candidate(history: &History, kept: &KeptPoint) -> Candidate {
    let point = &kept.point;
    let chains = &history.chains;
    let disks = || point.disks.iter();
    Candidate {
        id: point.id.clone(),
        sequence: point.sequence,
        uuid: point.uuid.clone(),
        time: point.time,
        period: point.period.clone(),
        disks: disks().map(|disk| disk.target.clone()).collect(),
        parents: disks().filter_map(|disk| disk.parent.clone()).collect(),
        is_copy: point.is_copy(),
        is_pinned: kept.pin.is_some(),
        is_intact: chains.faults(&point.id).is_empty() && chains.any_suspected_damage(&point.id).is_none(),
    }
}

/// What keeps every restore point from being removed.
fn obstacle_of_all(history: &History, now: &Zoned) -> Option<Obstacle> {
    let chains = &history.chains;
    let unreadable = |finding: &&Finding| finding.code == "removals-unreadable";
    if let Some(finding) = history.findings.iter().find(unreadable) {
        return Some(Obstacle::NoRecord {
            what: finding.message.clone(),
        });
    }
    // Nothing stands upon data that have gone.
    if let Some(lost) = chains.all_lost().find(|lost| !lost.is_gone) {
        return Some(Obstacle::Unreadable {
            id: lost.id.clone(),
            what: lost.what.clone(),
        });
    }
    let tomorrow = now.checked_add(Span::new().hours(24)).ok()?.timestamp();
    let future = chains.points().iter().find(|kept| kept.point.time > tomorrow)?;
    Some(Obstacle::Future {
        id: future.point.id.clone(),
    })
}

/// What keeps the restore points of the domain with this UUID from being removed.
fn obstacle_of(history: &History, uuid: &str) -> Option<Obstacle> {
    let chains = &history.chains;
    let newest = chains.in_periods().rev().find(|kept| kept.point.uuid == *uuid)?;
    let id = newest.point.id.clone();
    if let Some(lost) = chains.lost_after(&id).next() {
        return Some(Obstacle::Unreadable {
            id: lost.id.clone(),
            what: lost.what.clone(),
        });
    }
    if let Some(fault) = chains.faults(&id).into_iter().next() {
        return Some(Obstacle::NotWhole { id, fault });
    }
    if let Some(what) = chains.any_suspected_damage(&id) {
        return Some(Obstacle::Damaged { id, what });
    }
    newest.point.is_partial().then_some(Obstacle::Partial { id })
}

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
    let of_history = history.findings.iter().cloned().chain(history.damage());
    let findings: Vec<Finding> = of_history.chain(earlier).collect();
    findings.iter().for_each(|finding| tell(domain, finding, monitor));
    findings
}

fn tell(domain: &str, finding: &Finding, monitor: &dyn Monitor) {
    monitor.event(Event::Found { domain, finding });
}

impl Obstacle {
    /// Why nothing is removed, in a sentence.
    pub fn sentence(&self) -> String {
        match self {
            Obstacle::NotWhole { id, fault } => {
                format!("the newest restore point {id} is not whole: {fault}")
            }
            Obstacle::Damaged { id, what } => {
                format!("the newest restore point {id} is damaged: {what}")
            }
            Obstacle::Partial { id } => {
                format!("the newest restore point {id} is partial: older ones may hold what it lacks")
            }
            Obstacle::Unreadable { id, what } => {
                format!("restore point {id} cannot be read, so nobody knows what it needs: {what}")
            }
            Obstacle::Future { id } => format!(
                "restore point {id} is of a later day than today: the clock is wrong, or was then"
            ),
            Obstacle::NoRecord { what } => what.clone(),
        }
    }
}
