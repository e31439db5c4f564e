//! Compares a domain's disks with the newest restore point on which a backup could rely. Makes no
//! restore point.
//!
//! A job without a checkpoint shows the disks as they were at one moment. Clusters that the bitmap
//! since the restore point marks as unchanged, and that hold data on either side, are read from
//! both sides: a random sample of them, or all. If one differs, a bitmap has missed a write, or the
//! restore point is damaged. The repository records the difference, so that the next backup saves
//! the disk in full.

use std::time::Duration;

use super::heal;
use super::job::JobPlan;
use super::monitor::{self, Event};
use super::plan::PlannedDisk;
use super::{Cause, Context, Error, Result, job, lock, restore};
use crate::host::{BackupJob, BackupRequest, DiskRequest, PlaceWishes};
use crate::model::block::CLUSTER;
use crate::model::finding::Finding;
use crate::model::level::Parent;
use crate::model::text::with_sources;
use crate::repo::{DomainRepository, History, MissedWriteRecord, PendingPoint, RepoError};

mod differences;
mod outcome;
mod subjects;

use differences::Differences;
pub use outcome::{ComparedDisk, Meaning, Outcome, UncomparedDisk, Verdict};
use subjects::{Subjects, subjects};

/// How long the NBD server of a disk may take to answer.
const DEADLINE: Duration = Duration::from_secs(60);

/// The code of the finding that a bitmap missed a write.
const MISSED_WRITE: &str = "missed-write";

/// How many clusters are compared between two checks of the job's health. The guest is paused while
/// its scratch space is full.
const CLUSTERS_PER_HEALTH_CHECK: u64 = 1024;

/// The largest number of differing clusters of a disk whose offsets are reported.
const MOST_PLACES: usize = 20;

/// The options of a comparison.
#[derive(Clone, Debug)]
pub struct Options {
    /// The largest number of clusters of each disk that are compared; `None` for all.
    pub sample: Option<u64>,
    /// The seed that chooses the clusters of a sample.
    pub seed: u64,
    /// Where to put the socket and scratch files.
    pub places: PlaceWishes,
    /// How long to wait for another run that writes to the domain's folder.
    pub wait: Duration,
}

/// Compares the disks of the domain `name` with the newest restore point on which a backup could
/// rely.
///
/// # Errors
/// There is nothing to compare with, the domain or its folder cannot be used now, reading failed,
/// or a stop was requested. A difference is not an error; the outcome reports it.
pub fn compare(name: &str, context: &Context, options: &Options) -> Result<Outcome> {
    monitor::noting(context.monitor, |monitor| {
        compare_noting(name, &context.with_monitor(monitor), options)
    })
}

fn compare_noting(name: &str, context: &Context, options: &Options) -> Result<Outcome> {
    let failed = |error: RepoError| Error::of(name, error);
    let repository = context.repo.domain(name).map_err(failed)?;
    context
        .host
        .domain(name)
        .map_err(|error| Error::of(name, error))?;
    let history = repository.history().map_err(failed)?;
    let latest = match history.chains.latest_in_periods() {
        Some(latest) => latest,
        None if history.chains.latest().is_some() => {
            let what = "the repository holds only standalone copies of this domain, and no bitmap records what was written since a copy: make a backup without --copy first";
            return Err(Error::of(name, Cause::NoSuchRestorePoint(what.to_owned())));
        }
        None => restore::choose(name, &history, "latest")?,
    };
    let period = latest.point.period.clone();
    let locked = lock::lock_for(repository.as_ref(), options.wait, context)?;
    let healed = heal::heal(
        repository.as_ref(),
        locked.as_ref(),
        context,
        |survey, history| subjects::repairs(survey, &history.chains, &period),
    )?;
    if let Some(job) = &healed.survey.job {
        let operation = job.operation.clone();
        return Err(Error::of(name, Cause::Busy { operation }));
    }
    let Subjects {
        comparable,
        uncompared,
        findings: of_disks,
    } = subjects(&healed, &period);
    let comparison = Comparison {
        repository: repository.as_ref(),
        healed: &healed,
        context,
        options,
    };
    // Healing has reported its findings already.
    let mut findings = healed.findings.clone();
    let of_history = healed.history.findings.iter().cloned();
    for finding in of_history.chain(healed.history.damage()).chain(of_disks) {
        comparison.report(finding, &mut findings);
    }
    let of_uncompared: Vec<Finding> = uncompared.iter().map(UncomparedDisk::finding).collect();
    findings.extend(of_uncompared.iter().cloned());
    let outcome = Outcome {
        disks: Vec::new(),
        uncompared,
        findings,
    };
    let begin = || {
        let pending = locked.begin(&period, context.now.timestamp());
        pending.map_err(|error| Error::of(name, error))
    };
    let compared = match comparable.is_empty() {
        false => begin().and_then(|pending| comparison.run(&comparable, pending, outcome)),
        true if outcome.is_same() => {
            let what =
                "no disk of this domain can be compared with a restore point; the notes say why".to_owned();
            Err(Error::of(name, Cause::NoSuchRestorePoint(what)))
        }
        true => Ok(outcome),
    };
    if compared.is_err() {
        // There is no outcome to name them.
        for finding in of_uncompared {
            comparison.report(finding, &mut Vec::new());
        }
    }
    compared
}

/// Returns the missed writes to record, each with the newest restore point of its disk.
///
/// The restore point that was compared may be an older one. The record applies to the newest one,
/// so that the next backup saves the disk in full, whichever restore point it could rely on.
fn missed_writes(compared: &[ComparedDisk], history: &History, context: &Context) -> Vec<MissedWriteRecord> {
    let mut found: Vec<MissedWriteRecord> = Vec::new();
    for disk in compared.iter().filter(|disk| disk.differing > 0) {
        let Some(newest) = history.chains.latest_with(&disk.target) else {
            continue;
        };
        match found.iter_mut().find(|missed| missed.id == newest.point.id) {
            Some(missed) => missed.disks.push(disk.target.clone()),
            None => found.push(MissedWriteRecord {
                id: newest.point.id.clone(),
                manifest: newest.manifest.clone(),
                time: context.now.timestamp(),
                disks: vec![disk.target.clone()],
            }),
        }
    }
    found
}

struct Comparison<'a> {
    repository: &'a dyn DomainRepository,
    healed: &'a heal::HealedDomain,
    context: &'a Context<'a>,
    options: &'a Options,
}

impl Comparison<'_> {
    /// Begins the job, compares the disks, and ends the job.
    fn run(
        &self,
        disks: &[(PlannedDisk, Parent)],
        pending: Box<dyn PendingPoint>,
        mut outcome: Outcome,
    ) -> Result<Outcome> {
        let request = self.request(disks)?;
        let plan = JobPlan {
            domain: &self.healed.survey.domain,
            context: self.context,
            request: &request,
            mark: "vmsnap comparison",
            actors: ("the comparison", "the next backup"),
        };
        let mut compared = Vec::new();
        let ended = job::run(&plan, pending, |job, _| {
            let all = disks
                .iter()
                .try_for_each(|(disk, parent)| self.disk(&disk.disk.target, parent, job, &mut compared));
            // Record first, even after a failure: the process could die while it ends the job.
            self.remember(&mut compared, &mut outcome.findings);
            all
        });
        if ended.is_err() {
            // There will be no outcome to name them.
            self.report_differing(&compared);
        }
        let (_, ended) = ended?;
        outcome.findings.extend(ended.findings);
        outcome.disks = compared;
        Ok(outcome)
    }

    /// Records the disks that differ. If that fails, they are still reported.
    fn remember(&self, compared: &mut [ComparedDisk], findings: &mut Vec<Finding>) {
        let missed = missed_writes(compared, &self.healed.history, self.context);
        let kept = missed
            .iter()
            .try_for_each(|missed| self.repository.keep_missed_writes(missed));
        for disk in compared.iter_mut().filter(|disk| disk.differing > 0) {
            disk.is_remembered = kept.is_ok();
        }
        if let Err(error) = kept {
            let what = format!("the differences cannot be recorded: {}", with_sources(&error));
            self.report(Finding::new("missed-write-not-kept", what), findings);
        }
    }

    /// Reports the disks that differ.
    fn report_differing(&self, compared: &[ComparedDisk]) {
        for disk in compared.iter().filter(|disk| disk.differing > 0) {
            let (target, point) = (&disk.target, &disk.point);
            let what = format!(
                "disk {target} differs from {point} although the bitmap marks the data as unchanged \
                 (differing clusters: {}); {}",
                disk.differing,
                disk.consequence()
            );
            self.report(Finding::of_disk(MISSED_WRITE, target, what), &mut Vec::new());
        }
    }

    fn request(&self, disks: &[(PlannedDisk, Parent)]) -> Result<BackupRequest> {
        let targets: Vec<String> = disks.iter().map(|(disk, _)| disk.disk.target.clone()).collect();
        let run = job::run_word((self.context.random)());
        let domain = &self.healed.survey.domain;
        let places = self
            .context
            .host
            .places(domain, &targets, &self.options.places, &run);
        let disks = disks.iter().map(|(disk, parent)| DiskRequest {
            target: disk.disk.target.clone(),
            since: Some(parent.checkpoint.clone()),
            checkpointed: false,
        });
        Ok(BackupRequest {
            checkpoint: None,
            disks: disks.collect(),
            places: places.map_err(|error| self.failed(error))?,
            freeze: None,
            now: self.context.now.timestamp().as_second(),
            stop: self.context.stop.clone(),
        })
    }

    /// Compares one disk. Differences found before a failure are added to `compared` too.
    fn disk(
        &self,
        target: &str,
        parent: &Parent,
        job: &dyn BackupJob,
        compared: &mut Vec<ComparedDisk>,
    ) -> Result<()> {
        let domain = &self.healed.survey.domain.name;
        let failed = |cause: Cause| match (self.context.stop.reason(), cause) {
            (Some(reason), _) => Error::of(domain, Cause::Stopped(reason)),
            (None, cause) => Error::of_disk(domain, target, cause),
        };
        let stop = &self.context.stop;
        let history = &self.healed.history;
        let kept = self.repository.open_disk(history, &parent.id, target, stop);
        let kept = kept.map_err(|error| failed(error.into()))?;
        let mut differences =
            Differences::of(job, target, kept, parent.virtual_size, stop).map_err(failed)?;
        let unchanged = differences.unchanged.count();
        if let Some(sample) = self.options.sample {
            differences.unchanged = differences.unchanged.sample(sample, self.options.seed);
        }
        let chosen = differences.unchanged.count();
        let size = chosen * CLUSTER;
        self.context.monitor.event(Event::FileBegins {
            domain,
            file: target,
            size,
        });
        let mut done = 0;
        let mut differing = 0;
        let mut places = Vec::new();
        let ended = differences.each(job, target, stop, |offset, is_same| {
            done += CLUSTER;
            if (done / CLUSTER).is_multiple_of(CLUSTERS_PER_HEALTH_CHECK)
                && let Some(trouble) = job::trouble(domain, job)
            {
                return Err(trouble.cause);
            }
            if !is_same {
                differing += 1;
                if places.len() < MOST_PLACES {
                    places.push(offset);
                }
            }
            self.context.monitor.event(Event::FileAt {
                domain,
                file: target,
                position: done,
            });
            Ok(())
        });
        let ended = ended.and_then(|()| match job::trouble(domain, job) {
            Some(trouble) => Err(trouble.cause),
            None => Ok(()),
        });
        self.context
            .monitor
            .event(Event::FileEnds { domain, file: target });
        if ended.is_ok() || differing > 0 {
            compared.push(ComparedDisk {
                target: target.to_owned(),
                point: parent.id.clone(),
                unchanged,
                compared: done / CLUSTER,
                differing,
                is_remembered: false,
                places,
            });
        }
        ended.map_err(failed)
    }

    fn failed(&self, cause: impl Into<Cause>) -> Error {
        let error = Error::of(&self.healed.survey.domain.name, cause);
        match self.context.stop.reason() {
            Some(reason) => Error::of(&error.domain, Cause::Stopped(reason)),
            None => error,
        }
    }

    fn report(&self, finding: Finding, findings: &mut Vec<Finding>) {
        let (domain, found) = (&self.healed.survey.domain.name, &finding);
        let monitor = self.context.monitor;
        monitor.event(Event::Found {
            domain,
            finding: found,
        });
        findings.push(finding);
    }
}
