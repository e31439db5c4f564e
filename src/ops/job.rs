//! Runs a backup job, from its journal entry to its end.
//!
//! The journal entry is durable before the job begins. A run that fails undoes what it began. What
//! it cannot undo is left to the next run, which finds the entry.

use super::journal::JournalEntry;
use super::monitor::Event;
use super::{Cause, Context, Error, Result, heal};
use crate::host::{BackupJob, BackupRequest, HostError, JobHealth, NewCheckpoint, Refusal};
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
    /// The run's mark, which identifies its checkpoint.
    pub(super) mark: &'a str,
    /// Two phrases for messages: the run that has the job, and the run that would clean up after a
    /// failure (such as `this run`, `the next run`).
    pub(super) actors: (&'static str, &'static str),
}

/// The results of a job that ended without an error.
pub(super) struct EndedJob<T> {
    /// The result of the work.
    pub(super) work: T,
    pub(super) checkpoint: Option<NewCheckpoint>,
    pub(super) consistency: Consistency,
    /// Findings about files that could not be removed at the end of the job. The monitor has
    /// received them already.
    pub(super) findings: Vec<Finding>,
}

/// A failed job.
struct Failure {
    error: Error,
    /// Whether nothing of the job is left at the hypervisor.
    is_undone: bool,
}

/// Returns a word for a run's mark and for the names of its places, which makes them unique.
pub(super) fn run_word(seed: u64) -> String {
    let mut random = Random::new(seed);
    let number = u128::from(random.next()) << 64 | u128::from(random.next());
    let bytes = number.to_be_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// Writes the journal entry, begins the job, does the work and ends the job.
///
/// After a success the journal entry still exists. It is removed together with the pending restore
/// point.
///
/// # Errors
/// The first failure. Afterwards nothing is left of the job, or a finding reports that the next run
/// will clean up.
pub(super) fn run<T>(
    plan: &JobPlan<'_>,
    pending: Box<dyn PendingPoint>,
    work: impl FnOnce(&dyn BackupJob, &dyn PendingPoint) -> Result<T>,
) -> Result<(Box<dyn PendingPoint>, EndedJob<T>)> {
    let entry = plan.entry();
    plan.write(&entry, pending.as_ref())?;
    let Failure { error, is_undone } = match plan.carry_out(pending.as_ref(), work) {
        Ok(ended) => return Ok((pending, ended)),
        Err(failure) => failure,
    };
    if error.is_unanswered() {
        // libvirt may still begin the job, whatever is undone now.
        plan.leave(pending, "libvirt may still begin the job");
    } else if !is_undone && let Err(trouble) = heal::undo(plan.domain, &entry, plan.context) {
        plan.leave(pending, &with_sources(&trouble.cause));
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
            // A job that may run still uses its places: it has to be aborted first.
            Failure {
                is_undone: !may_be_left(&error, self.domain)
                    && host.clear_places(&self.request.places).is_ok(),
                error: self.failed(error),
            }
        })?;
        let work = match work(job.as_ref(), pending) {
            Ok(work) => work,
            Err(error) => {
                // End the job first: the guest is slower until it has ended.
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

    /// Leaves the pending restore point with its journal entry to the next run, which undoes what
    /// this run could not undo.
    pub(super) fn leave(&self, pending: Box<dyn PendingPoint>, trouble: &str) {
        let (this, next) = self.actors;
        let location = pending.leave();
        let what = format!(
            "{this} could not clean up ({trouble}); {next} will clean up, guided by the journal entry in {location}"
        );
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

/// Whether a job that could not be begun may have left something besides its places.
fn may_be_left(error: &HostError, domain: &Domain) -> bool {
    match error {
        // Without a job libvirt has made nothing. Images of a shut-off domain may have bitmaps.
        HostError::Stopped => !domain.state.is_active(),
        // Bitmaps of the checkpoint's name belong to another program.
        HostError::BitmapExists { .. } => false,
        HostError::NoSuchDomain { .. } | HostError::NotHere { .. } => false,
        HostError::OfDisk { source, .. } if matches!(**source, HostError::MissingProgram { .. }) => {
            may_be_left(source, domain)
        }
        // Without it no bitmap was made.
        HostError::MissingProgram { program, .. } => program != "qemu-img",
        // Other refusals come before the first step.
        HostError::Refused(refusal) => matches!(
            refusal,
            Refusal::StartedMeanwhile | Refusal::NoBitmapInFormat { .. }
        ),
        _ => true,
    }
}

/// Creates the error of a run. A failure that a request to stop caused is reported as that request.
pub(super) fn failed(domain: &Domain, context: &Context, cause: impl Into<Cause>) -> Error {
    let error = Error::of(&domain.name, cause);
    match context.stop.reason() {
        Some(reason) if error.is_stopped() => Error::of(&domain.name, Cause::Stopped(reason)),
        _ => error,
    }
}

/// Returns the reason why a job is no longer reliable, or `None` if it is.
pub(super) fn trouble(domain: &str, job: &dyn BackupJob) -> Option<Error> {
    match job.health() {
        Ok(JobHealth::Good) => None,
        Ok(JobHealth::GuestPaused(why)) => Some(Error::of(domain, Cause::GuestPaused(why))),
        Ok(JobHealth::Gone(why)) => Some(Error::of(domain, Cause::JobLost(why))),
        // A failed query says nothing about the job. If the job is gone, the copy fails by itself.
        Err(_) => None,
    }
}
