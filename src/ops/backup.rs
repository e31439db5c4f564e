//! Makes a restore point of a domain.
//!
//! The order, which `docs/safety.md` explains: lock, heal, plan, note the intent, begin job and checkpoint, copy the disks, end the job,
//! commit. Only then is removed what the new restore point has made superfluous. A failure before the commit takes back the checkpoint and
//! the partial folder, and nothing that was kept before is touched.

use std::path::PathBuf;
use std::time::Duration;

use super::monitor::Event;
use super::plan::{self, BackupPlan};
use super::prune::{self, PrunePlan};
use super::{Context, Error, Result, heal};
use crate::host::{
    BackupJob, BackupRequest, CheckpointRequest, DiskRequest, Host, HostError, PlaceWishes, Places,
};
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::period::{GroupBy, Period};
use crate::model::restore_point::{Consistency, DiskPoint, Level, RestorePoint};
use crate::repo::{DomainRepository, History, LockedDomain, Manifest, Pending, layout};

mod disks;

use disks::CopiedDisk;

/// What a backup is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which restore points share a folder and a chain.
    pub group_by: GroupBy,
    /// Whether raw disks are saved too.
    pub raw: bool,
    /// How long the guest agent may take to freeze the file systems; `None` does not ask it.
    pub freeze: Option<Duration>,
    /// Where socket and scratch files are to be.
    pub places: PlaceWishes,
    /// How many checkpoints of the active chain stay in the domain.
    pub keep_checkpoints: usize,
    /// Whether the previous period may be deleted once this one has come far enough.
    pub prune: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            group_by: GroupBy::default(),
            raw: false,
            freeze: Some(Duration::from_secs(10)),
            places: PlaceWishes::default(),
            keep_checkpoints: plan::KEPT_CHECKPOINTS,
            prune: false,
        }
    }
}

/// A restore point that now exists.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What its manifest says.
    pub point: RestorePoint,
    /// Its folder.
    pub dir: PathBuf,
    /// Bytes of its images.
    pub file_bytes: u64,
    /// What pruning did, if it was asked for.
    pub prune: Option<PruneOutcome>,
    /// Everything worth telling: what the manifest says, what was healed before, and trouble after the commit.
    pub findings: Vec<Finding>,
}

/// What pruning did after a backup that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PruneOutcome {
    /// This period is gone.
    Deleted(String),
    /// Nothing was deleted, for this reason.
    Kept(String),
    /// The period should have been deleted, and is not, or not wholly.
    Failed(String),
}

/// How often a number is skipped because bitmaps without a checkpoint use it.
const MAX_TAKEN: usize = 64;

/// Makes a restore point of the domain of that name.
pub fn backup(name: &str, context: &Context, options: &Options) -> Result<Outcome> {
    let failed = |error: HostError| Error::of(name, error);
    let domain = context.host.domain(name).map_err(failed)?;
    let repository = context
        .repo
        .domain(name)
        .map_err(|error| Error::of(name, error))?;
    let locked = repository.lock().map_err(|error| Error::of(name, error))?;
    let history = locked.history().map_err(|error| Error::of(name, error))?;
    let mut findings = heal::heal(&domain, &locked, &history.leftovers, context)?;
    findings.extend(history.findings.iter().cloned());
    if let Some(job) = context.host.active_job(&domain).map_err(failed)? {
        return Err(Error::of(
            name,
            super::error::Cause::Busy {
                operation: job.operation,
            },
        ));
    }

    let mut taken = Vec::new();
    let run = Run {
        domain: &domain,
        locked: &locked,
        history: &history,
        context,
        options,
    };
    loop {
        match run.attempt(&taken) {
            Err(Error {
                cause: super::error::Cause::Host(HostError::BitmapExists { name: bitmap }),
                ..
            }) if taken.len() < MAX_TAKEN && !taken.contains(&bitmap) => {
                findings.push(Finding::new(
                    "bitmap-without-checkpoint",
                    format!("bitmap {bitmap} belongs to no checkpoint; its number was left out"),
                ));
                taken.push(bitmap);
            }
            Err(error) => return Err(error),
            Ok(mut outcome) => {
                findings.append(&mut outcome.findings);
                outcome.findings = findings;
                if options.prune {
                    outcome.prune = Some(prune_after(name, &repository, &locked, context, options));
                }
                return Ok(outcome);
            }
        }
    }
}

/// Prunes now that the domain's new restore point exists. The backup has succeeded whatever comes of this.
fn prune_after(
    name: &str,
    repository: &DomainRepository,
    locked: &LockedDomain,
    context: &Context,
    options: &Options,
) -> PruneOutcome {
    let pruned = locked
        .history()
        .map_err(|error| Error::of(name, error))
        .and_then(|history| {
            let plan = prune::plan(repository, &history.chains, options.group_by, context.now.date());
            prune::carry_out(name, locked, &plan)?;
            Ok(plan)
        });
    match pruned {
        Ok(PrunePlan::Delete { period, .. }) => PruneOutcome::Deleted(period),
        Ok(PrunePlan::Keep(why)) => PruneOutcome::Kept(why),
        Err(error) => PruneOutcome::Failed(with_sources(&error)),
    }
}

/// What a dry run shows.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The backup that would be made.
    pub backup: BackupPlan,
    /// Folders of unfinished runs that would be removed before, with what those runs began.
    pub leftovers: Vec<PathBuf>,
    /// What would be pruned after it, if that was asked for.
    pub prune: Option<PrunePlan>,
}

/// Tells what a backup would do, and does nothing.
pub fn preview(name: &str, context: &Context, options: &Options) -> Result<Preview> {
    let domain = context
        .host
        .domain(name)
        .map_err(|error| Error::of(name, error))?;
    let repository = context
        .repo
        .domain(name)
        .map_err(|error| Error::of(name, error))?;
    let history = repository.history().map_err(|error| Error::of(name, error))?;
    let backup = make_plan(&domain, &history, &[], context, options)?;
    let today = context.now.date();
    let prune = || prune::plan(&repository, &history.chains, options.group_by, today);
    Ok(Preview {
        prune: options.prune.then(prune),
        leftovers: history
            .leftovers
            .into_iter()
            .map(|leftover| leftover.dir)
            .collect(),
        backup,
    })
}

fn make_plan(
    domain: &Domain,
    history: &History,
    taken: &[String],
    context: &Context,
    options: &Options,
) -> Result<BackupPlan> {
    let failed = |error: HostError| Error::of(&domain.name, error);
    let host = context.host;
    let capabilities = host.capabilities().map_err(failed)?;
    let checkpoints = host.checkpoints(domain).map_err(failed)?;
    let mut sizes = Vec::new();
    let mut taken = taken.to_vec();
    for disk in domain.disks.iter().filter(|disk| disk.source.path().is_some()) {
        // A disk whose size cannot be told now is looked at again when its export is open.
        if let Ok(found) = host.disk_sizes(domain, &disk.target) {
            sizes.push((disk.target.clone(), found.virtual_size));
        }
        if !domain.state.is_active() {
            taken.extend(host.bitmap_names(domain, &disk.target).unwrap_or_default());
        }
    }
    let period = Period::containing(options.group_by, context.now.date()).folder();
    Ok(plan::plan(&plan::Inputs {
        domain,
        sizes: &sizes,
        capabilities: &capabilities,
        chains: &history.chains,
        checkpoints: &checkpoints,
        taken: &taken,
        period: &period,
        raw: options.raw,
    }))
}

/// One backup with everything it works on.
struct Run<'a> {
    domain: &'a Domain,
    locked: &'a LockedDomain,
    history: &'a History,
    context: &'a Context<'a>,
    options: &'a Options,
}

impl Run<'_> {
    fn attempt(&self, taken: &[String]) -> Result<Outcome> {
        let plan = make_plan(self.domain, self.history, taken, self.context, self.options)?;
        for finding in &plan.findings {
            self.tell(finding);
        }
        if plan.disks.is_empty() {
            return Err(self.failed(super::error::Cause::NothingToBackUp));
        }
        if let Some(signal) = self.context.stop.signal() {
            return Err(self.failed(super::error::Cause::Stopped(signal)));
        }
        let pending = self
            .locked
            .begin(&plan.period, self.context.now.timestamp())
            .map_err(|error| self.failed(error))?;
        let mark = format!("vmsnap run {}", uuid::Uuid::new_v4());
        let request = self.request(&plan, &mark)?;
        self.note_intent(&pending, &plan, &mark, &request.places)?;
        self.step("making the checkpoint");
        let job = self
            .host()
            .begin_backup(self.domain, &request)
            .map_err(|error| self.failed(error))?;
        for finding in job.findings() {
            self.tell(&finding);
        }
        let done = self.copy_and_commit(&plan, pending, job)?;
        Ok(self.retire_checkpoints(done))
    }

    fn request(&self, plan: &BackupPlan, mark: &str) -> Result<BackupRequest> {
        let targets: Vec<String> = plan.disks.iter().map(|disk| disk.disk.target.clone()).collect();
        let run = mark.rsplit(' ').next().unwrap_or(mark);
        let places = self
            .host()
            .places(self.domain, &targets, &self.options.places, run)
            .map_err(|error| self.failed(error))?;
        let disks = plan.disks.iter().map(|disk| DiskRequest {
            target: disk.disk.target.clone(),
            since: disk.level.parent.as_ref().map(|parent| parent.checkpoint.clone()),
            checkpointed: disk.checkpointed,
        });
        Ok(BackupRequest {
            checkpoint: plan.checkpoint.as_ref().map(|name| CheckpointRequest {
                name: name.clone(),
                mark: mark.to_owned(),
            }),
            disks: disks.collect(),
            places,
            freeze: self.options.freeze,
            now: self.context.now.timestamp().as_second(),
            stop: self.context.stop.clone(),
        })
    }

    fn note_intent(&self, pending: &Pending, plan: &BackupPlan, mark: &str, places: &Places) -> Result<()> {
        let intent = heal::Intent {
            uuid: self.domain.uuid.clone(),
            mark: mark.to_owned(),
            checkpoint: plan.checkpoint.clone(),
            places: places.clone(),
        };
        let text = serde_json::to_vec_pretty(&intent).map_err(|source| {
            self.failed(crate::repo::RepoError::Manifest {
                id: pending.id().to_owned(),
                source,
            })
        })?;
        pending.write_intent(&text).map_err(|error| self.failed(error))
    }

    /// From a begun job to a committed restore point. Whatever fails here, job, checkpoint and partial folder are taken back.
    fn copy_and_commit(
        &self,
        plan: &BackupPlan,
        pending: Pending,
        job: Box<dyn BackupJob>,
    ) -> Result<Outcome> {
        let copied = match disks::copy_all(self.domain, plan, &pending, job.as_ref(), self.context) {
            Ok(copied) => copied,
            Err(error) => {
                // The job first: until it has ended the guest pays for it.
                for finding in job.abort() {
                    self.tell(&finding);
                }
                return Err(error);
            }
        };
        let checkpoint = job.checkpoint().cloned();
        let consistency = job.consistency();
        let mut findings = plan.findings.clone();
        findings.extend(job.findings());
        job.finish().map_err(|error| self.failed(error))?;

        let committed = self.commit(plan, pending, copied, checkpoint.as_ref(), consistency, findings);
        if committed.is_err()
            && let Some(checkpoint) = &checkpoint
            && let Err(error) = self.host().delete_checkpoint(self.domain, &checkpoint.id.name)
        {
            let name = &checkpoint.id.name;
            self.tell(&Finding::new(
                "checkpoint-left",
                format!("checkpoint {name} could not be removed ({error}); the next backup ends it"),
            ));
        }
        committed
    }

    fn commit(
        &self,
        plan: &BackupPlan,
        pending: Pending,
        copied: Vec<CopiedDisk>,
        checkpoint: Option<&crate::host::NewCheckpoint>,
        consistency: Consistency,
        mut findings: Vec<Finding>,
    ) -> Result<Outcome> {
        let failed = |error| Error::of(&self.domain.name, super::error::Cause::Repo(error));
        let mut files = Vec::new();
        let mut disks = Vec::new();
        for disk in copied {
            files.push(disk.file);
            disks.push(disk.point);
        }
        let xml = self.domain.inactive_xml.as_bytes();
        files.push(pending.add_file(layout::DOMAIN_XML, xml).map_err(failed)?);
        match self.host().nvram(self.domain) {
            Ok(None) => {}
            Ok(Some(bytes)) => files.push(pending.add_file(layout::NVRAM, &bytes).map_err(failed)?),
            Err(error) => findings.push(Finding::new(
                "nvram-skipped",
                format!("the UEFI variables could not be saved: {}", with_sources(&error)),
            )),
        }
        let checkpoint_file = checkpoint
            .map(|checkpoint| pending.add_checkpoint(&checkpoint.id.name, &checkpoint.xml))
            .transpose()
            .map_err(failed)?;
        let file_bytes = files.iter().map(|file| file.size).sum();
        let versions = self
            .host()
            .capabilities()
            .map_or_else(|_| String::new(), |found| found.versions);
        let point = self.point(
            plan,
            pending.id(),
            disks,
            checkpoint,
            consistency,
            findings.clone(),
        );
        let manifest = Manifest::new(&versions, point, files, checkpoint_file);
        let dir = pending.commit(&manifest).map_err(failed)?;
        Ok(Outcome {
            point: manifest.point,
            dir,
            file_bytes,
            prune: None,
            findings,
        })
    }

    fn point(
        &self,
        plan: &BackupPlan,
        id: &str,
        disks: Vec<DiskPoint>,
        checkpoint: Option<&crate::host::NewCheckpoint>,
        consistency: Consistency,
        findings: Vec<Finding>,
    ) -> RestorePoint {
        let points = self.history.chains.points();
        let sequence = |id: &str| self.history.chains.get(id).map(|kept| kept.point.sequence);
        let parents = disks.iter().filter_map(|disk| disk.parent.clone());
        let parent = parents.max_by_key(|parent| sequence(parent));
        RestorePoint {
            id: id.to_owned(),
            sequence: points.iter().map(|kept| kept.point.sequence).max().unwrap_or(0) + 1,
            domain: self.domain.name.clone(),
            uuid: self.domain.uuid.clone(),
            time: self.context.now.timestamp(),
            period: plan.period.clone(),
            level: if parent.is_some() {
                Level::Incremental
            } else {
                Level::Full
            },
            parent,
            checkpoint: checkpoint.map(|checkpoint| checkpoint.id.clone()),
            consistency,
            disks,
            findings,
        }
    }

    /// The restore point exists: now the checkpoints before it may go. Trouble here is told, and costs nothing.
    fn retire_checkpoints(&self, mut outcome: Outcome) -> Outcome {
        let trouble = |what: String| Finding::new("checkpoints-not-retired", what);
        let retired = self
            .locked
            .history()
            .map_err(|error| trouble(error.to_string()))
            .and_then(|history| {
                let checkpoints = self
                    .host()
                    .checkpoints(self.domain)
                    .map_err(|error| trouble(error.to_string()))?;
                let today = self.context.now.date();
                let current = GroupBy::ALL.map(|by| Period::containing(by, today).folder());
                let keep = self.options.keep_checkpoints;
                let names =
                    plan::superfluous(&history.chains, &self.domain.uuid, &checkpoints, &current, keep);
                for name in names {
                    self.host()
                        .delete_checkpoint(self.domain, &name)
                        .map_err(|error| trouble(format!("checkpoint {name}: {error}")))?;
                }
                Ok(())
            });
        if let Err(finding) = retired {
            self.tell(&finding);
            outcome.findings.push(finding);
        }
        outcome
    }

    fn host(&self) -> &dyn Host {
        self.context.host
    }

    fn failed(&self, cause: impl Into<super::error::Cause>) -> Error {
        let error = Error::of(&self.domain.name, cause);
        match self.context.stop.signal() {
            // What fails because the user asked to stop is no failure of its own.
            Some(signal) if error.is_stopped() => {
                Error::of(&self.domain.name, super::error::Cause::Stopped(signal))
            }
            _ => error,
        }
    }

    fn tell(&self, finding: &Finding) {
        let domain = &self.domain.name;
        self.context.monitor.event(Event::Found { domain, finding });
    }

    fn step(&self, what: &str) {
        let domain = &self.domain.name;
        self.context.monitor.event(Event::Step { domain, what });
    }
}

/// An error with everything beneath it in one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        text.push_str(&format!(": {source}"));
        below = source.source();
    }
    text
}
