//! A backup job of a run, from its journal entry to its end.
//!
//! The journal entry is durable before the job begins. When the run fails, what it began is undone; what cannot be undone is left to the next run,
//! which finds the entry.

use super::journal::JournalEntry;
use super::monitor::Event;
use super::{Cause, Context, Error, Result, heal};
use crate::host::{BackupJob, BackupRequest, HostError, JobHealth, NewCheckpoint};
use crate::model::domain::{Domain, DomainState};
use crate::model::finding::Finding;
use crate::model::random::Random;
use crate::model::restore_point::Consistency;
use crate::model::text::with_sources;
use crate::repo::{PendingPoint, RepoError};

/// A job that is about to begin.
pub(super) struct JobPlan<'a> {
    pub(super) domain: &'a Domain,
    pub(super) context: &'a Context<'a>,
    pub(super) request: &'a BackupRequest,
    /// The run's mark, by which its checkpoint is recognised.
    pub(super) mark: &'a str,
    /// Who begins it and who would end what it left, for a message: `this run`, `the next one`.
    pub(super) actors: (&'static str, &'static str),
}

/// A job that has ended well.
pub(super) struct EndedJob<T> {
    /// The result of the work.
    pub(super) work: T,
    pub(super) checkpoint: Option<NewCheckpoint>,
    pub(super) consistency: Consistency,
    /// What could not be cleared away at its end; reported already.
    pub(super) findings: Vec<Finding>,
}

/// A job that failed.
struct Failure {
    error: Error,
    /// Whether nothing of it is left at the hypervisor.
    is_undone: bool,
}

/// The word that makes the names of a run's places and its mark unique.
pub(super) fn run_word(seed: u64) -> String {
    let mut random = Random::new(seed);
    let number = u128::from(random.next()) << 64 | u128::from(random.next());
    let bytes = number.to_be_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// Writes the journal entry, begins the job, does the work and ends the job. After a success the journal entry is still there: it goes with the pending restore point.
///
/// # Errors
/// What failed first. Then nothing is left of the job, or a finding has said that the next run will end it.
pub(super) fn run<T>(
    plan: &JobPlan<'_>,
    pending: Box<dyn PendingPoint>,
    work: impl FnOnce(&dyn BackupJob, &dyn PendingPoint) -> Result<T>,
) -> Result<(Box<dyn PendingPoint>, EndedJob<T>)> {
    let entry = plan.entry();
    if let Err(error) = plan.write(&entry, pending.as_ref()) {
        // Nothing but the places was begun; they are empty folders.
        let _ = plan.context.host.clear_places(&plan.request.places);
        return Err(error);
    }
    let Failure { error, is_undone } = match plan.carry_out(pending.as_ref(), work) {
        Ok(ended) => return Ok((pending, ended)),
        Err(failure) => failure,
    };
    if error.is_unanswered() {
        // It may yet begin, whatever is undone now.
        plan.leave(pending, "libvirt may still begin it");
    } else if !is_undone && let Err(trouble) = heal::undo(plan.domain, &entry, plan.context) {
        plan.leave(pending, &with_sources(&trouble));
    }
    Err(error)
}

impl JobPlan<'_> {
    fn entry(&self) -> JournalEntry {
        let checkpoint = self.request.checkpoint.as_ref();
        JournalEntry {
            uuid: self.domain.uuid.clone(),
            mark: self.mark.to_owned(),
            checkpoint: checkpoint.map(|wanted| wanted.name.clone()),
            places: self.request.places.clone(),
            freezes: self.request.freeze.is_some() && self.domain.state == DomainState::Running,
        }
    }

    fn write(&self, entry: &JournalEntry, pending: &dyn PendingPoint) -> Result<()> {
        let text = serde_json::to_vec_pretty(entry).map_err(|source| {
            self.failed(RepoError::Manifest {
                id: pending.id().to_owned(),
                source,
            })
        })?;
        pending.write_note(&text).map_err(|error| self.failed(error))
    }

    fn carry_out<T>(
        &self,
        pending: &dyn PendingPoint,
        work: impl FnOnce(&dyn BackupJob, &dyn PendingPoint) -> Result<T>,
    ) -> std::result::Result<EndedJob<T>, Failure> {
        let host = self.context.host;
        let job = host.begin_backup(self.domain, self.request).map_err(|error| {
            // A refusal means that nothing was started; after an error of libvirt's its answer may have been lost.
            let may_have_begun = matches!(
                error,
                HostError::Libvirt { .. } | HostError::Connect { .. } | HostError::NoAnswer { .. }
            );
            Failure {
                is_undone: !may_have_begun && host.clear_places(&self.request.places).is_ok(),
                error: self.failed(error),
            }
        })?;
        let work = match work(job.as_ref(), pending) {
            Ok(work) => work,
            Err(error) => {
                // The job first: until it has ended the guest pays for it.
                let trouble = job.abort();
                trouble.iter().for_each(|finding| self.report(finding));
                let is_undone = trouble.is_empty();
                return Err(Failure { error, is_undone });
            }
        };
        let checkpoint = job.checkpoint().cloned();
        let consistency = job.consistency();
        let findings = job.finish().map_err(|error| Failure {
            error: self.failed(error),
            is_undone: false,
        })?;
        findings.iter().for_each(|finding| self.report(finding));
        Ok(EndedJob {
            work,
            checkpoint,
            consistency,
            findings,
        })
    }

    /// Leaves the pending restore point with its journal entry to the next run, which ends what this one could not.
    pub(super) fn leave(&self, pending: Box<dyn PendingPoint>, trouble: &str) {
        let (this, next) = self.actors;
        let location = pending.leave();
        let what = format!("what {this} began could not be ended ({trouble}); {next} will, by {location}");
        self.report(&Finding::new("left-to-heal", what));
    }

    fn failed(&self, cause: impl Into<Cause>) -> Error {
        failed(self.domain, self.context, cause)
    }

    fn report(&self, finding: &Finding) {
        let domain = &self.domain.name;
        self.context.monitor.event(Event::Found { domain, finding });
    }
}

/// The error of a run. What fails because the user asked to stop is no failure of its own.
pub(super) fn failed(domain: &Domain, context: &Context, cause: impl Into<Cause>) -> Error {
    let error = Error::of(&domain.name, cause);
    match context.stop.reason() {
        Some(reason) if error.is_stopped() => Error::of(&domain.name, Cause::Stopped(reason)),
        _ => error,
    }
}

/// Why a job cannot be relied on any more, if it cannot.
pub(super) fn trouble(domain: &str, job: &dyn BackupJob) -> Option<Error> {
    match job.health() {
        Ok(JobHealth::Good) => None,
        Ok(JobHealth::ScratchFull(disk)) => Some(Error::of(domain, Cause::ScratchFull(disk))),
        Ok(JobHealth::Gone(why)) => Some(Error::of(domain, Cause::JobLost(why))),
        // A question that could not be asked says nothing about the job: the data path tells by itself.
        Err(_) => None,
    }
}
