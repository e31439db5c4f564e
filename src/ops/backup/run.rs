//! One attempt at a backup, from the plan to the copied disks; everything it began is taken back when it fails.

use super::disks::{self, CopiedDisk};
use super::{Options, Outcome, tell};
use crate::host::{
    BackupJob, BackupRequest, CheckpointRequest, DiskRequest, Host, HostError, NewCheckpoint, Places,
};
use crate::model::checkpoint::{mark_of_run, new_name};
use crate::model::domain::{Domain, DomainState};
use crate::model::finding::Finding;
use crate::model::restore_point::Consistency;
use crate::model::text::with_sources;
use crate::ops::heal;
use crate::ops::journal::JournalEntry;
use crate::ops::monitor::Event;
use crate::ops::plan::BackupPlan;
use crate::ops::reconcile::Reconciliation;
use crate::ops::{Cause, Context, Error, Result};
use crate::repo::{DomainRepository, DomainWriter, History, Identity, PendingPoint, RepoError};

/// One backup with everything it works on.
pub(super) struct Run<'a> {
    pub(super) domain: &'a Domain,
    pub(super) repository: &'a dyn DomainRepository,
    pub(super) locked: &'a dyn DomainWriter,
    pub(super) history: &'a History,
    pub(super) context: &'a Context<'a>,
    pub(super) options: &'a Options,
}

/// What a job has given, once it has ended well.
pub(super) struct Copied {
    pub(super) disks: Vec<CopiedDisk>,
    pub(super) checkpoint: Option<NewCheckpoint>,
    pub(super) consistency: Consistency,
    pub(super) findings: Vec<Finding>,
}

impl Run<'_> {
    /// Copies and commits what was planned, and retires what it makes superfluous.
    pub(super) fn attempt(&self, planned: &Reconciliation) -> Result<Outcome> {
        let plan = &planned.backup;
        for finding in &plan.findings {
            self.tell(finding);
        }
        if plan.disks.is_empty() {
            return Err(self.failed(Cause::NothingToBackUp));
        }
        if let Some(reason) = self.context.stop.reason() {
            return Err(self.failed(Cause::Stopped(reason)));
        }
        let begun = self.locked.begin(&plan.period, self.context.now.timestamp());
        let pending = begun.map_err(|error| self.failed(error))?;
        let run = uuid::Uuid::new_v4().to_string();
        let mark = mark_of_run(&run, self.repository_id()?.as_deref());
        let request = self.request(plan, &run, &mark)?;
        let intent = self.intent(&request, &mark);
        if let Err(error) = self.note(&intent, pending.as_ref()) {
            // Nothing but the places was begun; they are empty folders.
            let _ = self.host().clear_places(&request.places);
            return Err(error);
        }
        match self.copy(plan, pending.as_ref(), &request) {
            Ok(copied) => {
                let outcome = self.commit(plan, pending, copied)?;
                Ok(match self.options.copy {
                    true => self.remembered(outcome),
                    false => self.retire(&planned.retired, outcome),
                })
            }
            Err(Failure { error, is_undone }) => {
                if error.is_unanswered() {
                    // It may yet begin, whatever is undone now.
                    self.leave(pending, "libvirt may still begin it");
                } else if !is_undone && let Err(trouble) = heal::undo(self.domain, &intent, self.context) {
                    self.leave(pending, &with_sources(&trouble));
                }
                Err(error)
            }
        }
    }

    /// The id of the repository; a standalone copy makes no checkpoint that would carry it.
    fn repository_id(&self) -> Result<Option<String>> {
        if self.options.copy {
            return Ok(None);
        }
        let identity = self.context.repo.ensure_identity();
        let identity = identity.map_err(|error| self.failed(error))?;
        if let Identity::Unusable(why) = &identity {
            self.tell(&Finding::new(
                "repository-id-unusable",
                format!("the id of the repository cannot be used, so its checkpoints do not carry it: {why}"),
            ));
        }
        Ok(identity.id().map(str::to_owned))
    }

    fn request(&self, plan: &BackupPlan, run: &str, mark: &str) -> Result<BackupRequest> {
        let targets: Vec<String> = plan.disks.iter().map(|disk| disk.disk.target.clone()).collect();
        let now = self.context.now.timestamp().as_second();
        let places = self
            .host()
            .places(self.domain, &targets, &self.options.places, run);
        let disks = plan.disks.iter().map(|disk| DiskRequest {
            target: disk.disk.target.clone(),
            since: disk.level.parent.as_ref().map(|parent| parent.checkpoint.clone()),
            checkpointed: disk.checkpointed,
        });
        Ok(BackupRequest {
            checkpoint: plan.checkpoint.then(|| CheckpointRequest {
                name: new_name(now, (self.context.random)()),
                mark: mark.to_owned(),
            }),
            disks: disks.collect(),
            places: places.map_err(|error| self.failed(error))?,
            freeze: self.options.freeze,
            now,
            stop: self.context.stop.clone(),
        })
    }

    fn intent(&self, request: &BackupRequest, mark: &str) -> JournalEntry {
        JournalEntry {
            uuid: self.domain.uuid.clone(),
            mark: mark.to_owned(),
            checkpoint: request.checkpoint.as_ref().map(|wanted| wanted.name.clone()),
            places: request.places.clone(),
            freezes: self.options.freeze.is_some() && self.domain.state == DomainState::Running,
        }
    }

    fn note(&self, intent: &JournalEntry, pending: &dyn PendingPoint) -> Result<()> {
        let text = serde_json::to_vec_pretty(intent).map_err(|source| {
            self.failed(RepoError::Manifest {
                id: pending.id().to_owned(),
                source,
            })
        })?;
        pending.write_note(&text).map_err(|error| self.failed(error))
    }

    /// Begins the job, copies the disks, ends the job.
    fn copy(
        &self,
        plan: &BackupPlan,
        pending: &dyn PendingPoint,
        request: &BackupRequest,
    ) -> std::result::Result<Copied, Failure> {
        self.step(match plan.checkpoint {
            true => "making the checkpoint",
            false => "beginning the backup job",
        });
        let job = self.host().begin_backup(self.domain, request).map_err(|error| {
            // Who refuses has begun nothing; behind an error of libvirt's the answer may have been lost.
            let has_begun = matches!(
                error,
                HostError::Libvirt { .. } | HostError::Connect { .. } | HostError::NoAnswer { .. }
            );
            Failure {
                is_undone: !has_begun && self.clear(&request.places),
                error: self.failed(error),
            }
        })?;
        for finding in job.findings() {
            self.tell(&finding);
        }
        let disks = match disks::copy_all(
            self.domain,
            plan,
            (self.repository, self.history),
            pending,
            job.as_ref(),
            self.context,
        ) {
            Ok(disks) => disks,
            Err(error) => {
                // The job first: until it has ended the guest pays for it.
                let trouble = job.abort();
                trouble.iter().for_each(|finding| self.tell(finding));
                return Err(Failure {
                    error,
                    is_undone: trouble.is_empty(),
                });
            }
        };
        self.end(job, disks)
    }

    fn end(&self, job: Box<dyn BackupJob>, disks: Vec<CopiedDisk>) -> std::result::Result<Copied, Failure> {
        let checkpoint = job.checkpoint().cloned();
        let consistency = job.consistency();
        let mut findings = job.findings();
        let left = job.finish().map_err(|error| Failure {
            error: self.failed(error),
            is_undone: false,
        })?;
        left.iter().for_each(|finding| self.tell(finding));
        findings.extend(left);
        Ok(Copied {
            disks,
            checkpoint,
            consistency,
            findings,
        })
    }

    fn clear(&self, places: &Places) -> bool {
        self.host().clear_places(places).is_ok()
    }

    /// Leaves the partial folder with its intent to the next run, which ends what this one could not.
    pub(super) fn leave(&self, pending: Box<dyn PendingPoint>, trouble: &str) {
        let location = pending.leave();
        let what =
            format!("what this run began could not be ended ({trouble}); the next one will, by {location}");
        self.tell(&Finding::new("left-to-heal", what));
    }

    pub(super) fn host(&self) -> &dyn Host {
        self.context.host
    }

    pub(super) fn failed(&self, cause: impl Into<Cause>) -> Error {
        let error = Error::of(&self.domain.name, cause);
        match self.context.stop.reason() {
            // What fails because the user asked to stop is no failure of its own.
            Some(reason) if error.is_stopped() => Error::of(&self.domain.name, Cause::Stopped(reason)),
            _ => error,
        }
    }

    pub(super) fn tell(&self, finding: &Finding) {
        tell(&self.domain.name, finding, self.context);
    }

    fn step(&self, what: &str) {
        let domain = &self.domain.name;
        self.context.monitor.event(Event::Step { domain, what });
    }
}

/// An attempt that failed.
struct Failure {
    error: Error,
    /// Whether nothing of it is left at the hypervisor.
    is_undone: bool,
}
