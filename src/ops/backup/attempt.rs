//! One attempt at a backup, from the plan to the restore point. A failed attempt undoes what it
//! began.

use std::time::Duration;

use super::disks::{self, CopiedDisk};
use super::firmware::FirmwareState;
use super::{Options, Outcome, report};
use crate::host::{BackupRequest, CheckpointRequest, DiskRequest, Host, NewCheckpoint};
use crate::model::checkpoint::{mark_of_run, new_name};
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::guest::GuestFacts;
use crate::model::restore_point::Consistency;
use crate::ops::job::{self, JobPlan};
use crate::ops::monitor::Event;
use crate::ops::plan::BackupPlan;
use crate::ops::reconcile::Reconciliation;
use crate::ops::{Cause, Context, Error, Result};
use crate::repo::{DomainRepository, DomainWriter, History, Identity};

/// How long the guest agent may take to report about its guest.
const GUEST_LIMIT: Duration = Duration::from_secs(5);

/// A backup with everything that it works on.
pub(super) struct Attempt<'a> {
    pub(super) domain: &'a Domain,
    pub(super) repository: &'a dyn DomainRepository,
    pub(super) locked: &'a dyn DomainWriter,
    pub(super) history: &'a History,
    pub(super) context: &'a Context<'a>,
    pub(super) options: &'a Options,
}

/// The results of a job that ended well.
pub(super) struct Copied {
    pub(super) disks: Vec<CopiedDisk>,
    pub(super) firmware: FirmwareState,
    pub(super) checkpoint: Option<NewCheckpoint>,
    pub(super) consistency: Consistency,
    pub(super) guest: Option<GuestFacts>,
    pub(super) findings: Vec<Finding>,
}

impl Attempt<'_> {
    /// Copies and commits what was planned, then retires what the new restore point supersedes.
    pub(super) fn make(&self, planned: &Reconciliation) -> Result<Outcome> {
        let plan = &planned.backup;
        for finding in &plan.findings {
            self.report(finding);
        }
        if plan.disks.is_empty() {
            return Err(self.failed(Cause::NothingToBackUp));
        }
        if let Some(reason) = self.context.stop.reason() {
            return Err(self.failed(Cause::Stopped(reason)));
        }
        let guest = self.ask_guest();
        let begun = self.locked.begin(&plan.period, self.context.now.timestamp());
        let pending = begun.map_err(|error| self.failed(error))?;
        let seed = (self.context.random)();
        let run = job::run_word(seed);
        let mark = mark_of_run(&run, self.repository_id()?.as_deref());
        let request = self.request(plan, seed, &run, &mark)?;
        let job_plan = JobPlan {
            domain: self.domain,
            context: self.context,
            request: &request,
            mark: &mark,
            actors: ("this run", "the next run"),
        };
        self.step(match plan.checkpoint {
            true => "making the checkpoint",
            false => "beginning the backup job",
        });
        let (pending, ended) = job::run(&job_plan, pending, |job, pending| {
            let findings = job.findings();
            findings.iter().for_each(|finding| self.report(finding));
            let firmware = FirmwareState::read(self.host(), self.domain, self.history);
            firmware.findings.iter().for_each(|finding| self.report(finding));
            let copied = disks::copy_all(
                self.domain,
                plan,
                (self.repository, self.history),
                pending,
                job,
                self.context,
                (seed, self.options.compression),
            );
            Ok((copied?, firmware, findings))
        })?;
        let (disks, firmware, mut findings) = ended.work;
        findings.extend(ended.findings);
        let copied = Copied {
            disks,
            firmware,
            checkpoint: ended.checkpoint,
            consistency: ended.consistency,
            guest,
            findings,
        };
        let outcome = self.commit(plan, &job_plan, pending, copied)?;
        Ok(match self.options.copy {
            true => self.record_copy(outcome),
            false => self.retire(&planned.retired, outcome),
        })
    }

    /// Asks the guest agent for what a boot proof is compared with. A failure is not reported: the
    /// freeze reports an agent that does not answer.
    fn ask_guest(&self) -> Option<GuestFacts> {
        let facts = self.host().guest_facts(self.domain, GUEST_LIMIT);
        let facts = facts.ok().flatten()?;
        (facts != GuestFacts::default()).then_some(facts)
    }

    /// Returns the repository's id, which checkpoints carry. A standalone copy makes no checkpoint.
    fn repository_id(&self) -> Result<Option<String>> {
        if self.options.copy {
            return Ok(None);
        }
        let identity = self.context.repo.ensure_identity();
        let identity = identity.map_err(|error| self.failed(error))?;
        if let Identity::Unusable(why) = &identity {
            self.report(&Finding::new(
                "repository-id-unusable",
                format!("the id of the repository cannot be used ({why}), so the new checkpoint does not name the repository"),
            ));
        }
        Ok(identity.id().map(str::to_owned))
    }

    fn request(&self, plan: &BackupPlan, seed: u64, run: &str, mark: &str) -> Result<BackupRequest> {
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
                name: new_name(now, seed),
                mark: mark.to_owned(),
            }),
            disks: disks.collect(),
            places: places.map_err(|error| self.failed(error))?,
            freeze: self.options.freeze,
            now,
            stop: self.context.stop.clone(),
        })
    }

    pub(super) fn host(&self) -> &dyn Host {
        self.context.host
    }

    pub(super) fn failed(&self, cause: impl Into<Cause>) -> Error {
        job::failed(self.domain, self.context, cause)
    }

    pub(super) fn report(&self, finding: &Finding) {
        report(&self.domain.name, finding, self.context);
    }

    fn step(&self, what: &str) {
        let domain = &self.domain.name;
        self.context.monitor.event(Event::Step { domain, what });
    }
}
