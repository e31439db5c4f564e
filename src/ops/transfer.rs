//! Copies restore points of a domain from one repository to another: `vmsnap copy`.
//!
//! The plan is data: which restore points are copied, and why the others are not. Restore points
//! are copied oldest first, each as a whole: a copy that is interrupted leaves those that are
//! complete, and the next one continues after them. A copy keeps the id, the time and the order of
//! the original. Its disks depend on copies of the original's parents where these exist in the
//! target; other disks are copied in full.

use jiff::Zoned;

use super::each::{Fault, Judged};
use super::monitor::{self, Event, Monitor};
use super::retention::{self, Policy};
use super::{Cause, Error, Result, lock};
use crate::model::compression::Compression;
use crate::model::finding::Finding;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::repo::{DomainRepository, DomainWriter, History, Note, RepoError, Repository, history};

mod plan;
mod point;

pub use plan::{PlannedTransfer, TransferDecision, TransferPlan, Wanted};
use point::PointTransfer;

/// The environment of a transfer.
pub struct Means<'a> {
    /// The repository from which restore points are copied.
    pub from: &'a dyn Repository,
    /// The repository to which they are copied.
    pub to: &'a dyn Repository,
    /// The current time in the local time zone.
    pub now: Zoned,
    /// Receives progress and findings.
    pub monitor: &'a dyn Monitor,
    /// A request to stop. The restore point that is being copied then is not committed.
    pub stop: &'a Stop,
}

/// The options of a transfer.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which restore points to copy.
    pub wanted: Wanted,
    /// The policy for the target. Restore points that it would remove at once are not copied, and
    /// it is applied to the target afterwards. An empty policy has no effect.
    pub policy: Policy,
    /// How data is compressed in the target.
    pub compression: Compression,
    /// How long to wait for another run that writes to the domain's part of the target.
    pub wait: std::time::Duration,
}

/// A restore point that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedPoint {
    /// Its id.
    pub id: String,
    /// The location of its copy, for messages.
    pub location: String,
    /// How many bytes of data were copied.
    pub data_bytes: u64,
    /// The size of its files in the target, in bytes.
    pub stored_bytes: u64,
}

/// The result of a transfer, or of its dry run.
#[derive(Debug)]
pub struct Outcome {
    /// The plan.
    pub plan: TransferPlan,
    /// The copied restore points, oldest first; `None` for a dry run.
    pub copied: Option<Vec<CopiedPoint>>,
    /// Why the rest of the plan was not carried out.
    pub failure: Option<Error>,
    /// What the policy did in the target afterwards; `None` without a policy, or if it was not
    /// applied because the transfer failed.
    pub retention: Option<retention::Outcome>,
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Judged for Outcome {
    fn faults(&self) -> Vec<Fault> {
        let damaged = self.plan.has_damage().then_some(Fault::Damaged);
        let is_taken = self.plan.count(&TransferDecision::IdTaken) > 0;
        let incomplete = is_taken.then_some(Fault::Incomplete);
        let failed = self.failure.as_ref().map(|error| Fault::Failed(error.class()));
        let pruned = self.retention.iter().flat_map(Judged::faults);
        let own = damaged.into_iter().chain(incomplete).chain(failed);
        own.chain(pruned).collect()
    }

    fn error(&self) -> Option<&Error> {
        let of_retention = || self.retention.as_ref().and_then(Judged::error);
        self.failure.as_ref().or_else(of_retention)
    }
}

/// Copies those wanted restore points of a domain that the target lacks.
///
/// # Errors
/// The repositories are the same, the source has no such restore point, or the target cannot be
/// locked or read. The outcome reports a transfer that failed later.
pub fn transfer(domain: &str, means: &Means<'_>, options: &Options) -> Result<Outcome> {
    monitor::noting(means.monitor, |monitor| {
        let failed = |error: RepoError| Error::of(domain, error);
        let source = open_source(domain, means)?;
        let target = means.to.domain(domain).map_err(failed)?;
        let from = source.history().map_err(failed)?;
        // Fails for an unknown restore point before anything is created in the target.
        plan::plan(domain, &from, &History::default(), options, &means.now)?;
        let mut outcome = {
            let locked = lock::lock(target.as_ref(), options.wait, monitor, means.stop)?;
            let mut findings = clean_up(domain, target.as_ref(), locked.as_ref(), monitor)?;
            let to = locked.history().map_err(failed)?;
            let plan = plan::plan(domain, &from, &to, options, &means.now)?;
            findings.extend(report(domain, &plan, monitor));
            let work = Work {
                domain,
                source: source.as_ref(),
                from: &from,
                locked: locked.as_ref(),
                means: &Means {
                    monitor,
                    now: means.now.clone(),
                    ..*means
                },
                options,
            };
            let (copied, failure) = work.carry_out(&plan, &mut findings);
            Outcome {
                plan,
                copied: Some(copied),
                failure,
                retention: None,
                findings,
            }
        };
        if outcome.failure.is_none() && !options.policy.is_empty() {
            outcome.retention = Some(apply_policy(domain, means, monitor, options)?);
        }
        Ok(outcome)
    })
}

/// Plans a transfer without doing anything.
///
/// # Errors
/// The same as for [`transfer`], except that no lock is needed.
pub fn preview(domain: &str, means: &Means<'_>, options: &Options) -> Result<Outcome> {
    let failed = |error: RepoError| Error::of(domain, error);
    let source = open_source(domain, means)?;
    let from = source.history().map_err(failed)?;
    let to = means
        .to
        .domain(domain)
        .map_err(failed)?
        .history()
        .map_err(failed)?;
    let plan = plan::plan(domain, &from, &to, options, &means.now)?;
    Ok(Outcome {
        findings: report(domain, &plan, means.monitor),
        plan,
        copied: None,
        failure: None,
        retention: None,
    })
}

/// Opens the domain's part of the source. Fails if both repositories are the same.
fn open_source(domain: &str, means: &Means<'_>) -> Result<Box<dyn DomainRepository>> {
    let (from, to) = (means.from, means.to);
    let ids = [from, to].map(|repository| repository.identity().id().map(str::to_owned));
    let is_same = ids[0].is_some() && ids[0] == ids[1];
    if is_same || from.location() == to.location() {
        let what = format!(
            "{} and {} are the same repository: there is nothing to copy",
            from.location(),
            to.location()
        );
        return Err(Error::of(domain, Cause::Usage(what)));
    }
    from.domain(domain).map_err(|error| Error::of(domain, error))
}

/// Removes what an interrupted transfer has left, and finishes interrupted removals. What a backup
/// has left stays if it has a journal entry: only a run with the hypervisor can undo it.
fn clean_up(
    domain: &str,
    target: &dyn DomainRepository,
    locked: &dyn DomainWriter,
    monitor: &dyn Monitor,
) -> Result<Vec<Finding>> {
    let failed = |error: RepoError| Error::of(domain, error);
    let mut findings = Vec::new();
    for removal in target.interrupted_removals().map_err(failed)? {
        if locked.finish_removal(&removal).map_err(failed)? {
            findings.push(retention::finished(&removal));
        }
    }
    for leftover in locked.history().map_err(failed)?.leftovers {
        if target.note(&leftover).map_err(failed)? == Note::None {
            locked.remove_leftover(&leftover).map_err(failed)?;
            let what = format!("removed {}, left by a run that did not finish", leftover.location);
            findings.push(Finding::new("healed-partial", what));
        }
    }
    for finding in &findings {
        monitor.event(Event::Found { domain, finding });
    }
    Ok(findings)
}

/// Reports the wanted restore points that cannot be copied, and what copied ones may lack.
fn report(domain: &str, plan: &TransferPlan, monitor: &dyn Monitor) -> Vec<Finding> {
    let obstacles = plan.obstacles().map(|why| Finding::new("not-copied", why));
    let copied = plan.copies().map(|planned| &planned.point);
    let cautions = copied.flat_map(history::cautions);
    let findings: Vec<Finding> = obstacles.chain(cautions.cloned()).collect();
    for finding in &findings {
        monitor.event(Event::Found { domain, finding });
    }
    findings
}

/// Applies the policy to the target.
fn apply_policy(
    domain: &str,
    means: &Means<'_>,
    monitor: &dyn Monitor,
    options: &Options,
) -> Result<retention::Outcome> {
    let means = retention::Means {
        repo: means.to,
        now: means.now.clone(),
        monitor,
        stop: means.stop,
    };
    let options = retention::Options {
        policy: options.policy,
        wait: options.wait,
    };
    retention::prune(domain, &means, &options)
}

/// A transfer that is carried out.
struct Work<'a> {
    domain: &'a str,
    source: &'a dyn DomainRepository,
    /// The source's restore points. The files that they name stay until this is dropped.
    from: &'a History,
    locked: &'a dyn DomainWriter,
    means: &'a Means<'a>,
    options: &'a Options,
}

impl Work<'_> {
    /// Copies what the plan says. Returns what was copied, and the first failure. Damage of one
    /// restore point in the source does not stop the others.
    fn carry_out(
        &self,
        plan: &TransferPlan,
        findings: &mut Vec<Finding>,
    ) -> (Vec<CopiedPoint>, Option<Error>) {
        let mut copied = Vec::new();
        let mut failure = None;
        for planned in plan.copies() {
            let error = match self.copy(&planned.point.id) {
                Ok(point) => {
                    copied.push(point);
                    continue;
                }
                Err(error) => error,
            };
            if !matches!(error.cause, Cause::NotWhole { .. }) {
                return (copied, Some(error));
            }
            let finding = Finding::new("not-copied", with_sources(&error.cause));
            let domain = self.domain;
            self.means.monitor.event(Event::Found {
                domain,
                finding: &finding,
            });
            findings.push(finding);
            failure.get_or_insert(error);
        }
        (copied, failure)
    }

    fn copy(&self, id: &str) -> Result<CopiedPoint> {
        let failed = |error: RepoError| Error::of(self.domain, error);
        if let Some(reason) = self.means.stop.reason() {
            return Err(Error::of(self.domain, Cause::Stopped(reason)));
        }
        let Some(kept) = self.from.get(id) else {
            let (id, fault) = (id.to_owned(), "it is missing".to_owned());
            return Err(Error::of(self.domain, Cause::NotWhole { id, fault }));
        };
        let what = format!("copying restore point {id}");
        self.means.monitor.event(Event::Step {
            domain: self.domain,
            what: &what,
        });
        // Each copy changes what the next one can depend on.
        let to = self.locked.history().map_err(failed)?;
        let work = PointTransfer {
            work: self,
            kept,
            to: &to,
        };
        let transferred = work.run()?;
        let to = self.locked.history().map_err(failed)?;
        self.locked.remember_committed(&to).map_err(failed)?;
        Ok(transferred)
    }
}
