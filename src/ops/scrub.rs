//! Removes vmsnap's checkpoints and bitmaps from a domain, and predicts the next backup. Other
//! names are never touched.
//!
//! A scrub is planned first, as plain data (`plan`). Afterwards it looks again, and fails if
//! something that it removed is still there.

use std::time::Duration;

use jiff::civil::Date;

use super::each::Judged;
use super::error::Cause;
use super::journal::JournalEntry;
use super::{Error, Monitor, Result, grouping, lock, survey};
use crate::host::{Host, HostError};
use crate::model::domain::{Domain, Source};
use crate::model::finding::Finding;
use crate::model::level::FullRule;
use crate::model::period::{GroupBy, Period};
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::repo::{History, Note, Repository};

mod found;
mod next;
mod others;
mod plan;

pub use next::NextBackup;
pub use plan::{ScrubPlan, ScrubType};

use found::Found;
use next::{Kept, LeftByScrub, Outlook, next_backup};
use plan::Step;

/// A bitmap of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskBitmap {
    /// The disk's target.
    pub disk: String,
    /// The bitmap's name.
    pub name: String,
}

/// The options of a scrub.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to remove.
    pub kind: ScrubType,
    /// The name of the only checkpoint or bitmap to remove; `None` for all of vmsnap's.
    pub name: Option<String>,
    /// The grouping of backups. With a repository, the predicted level of the next backup depends
    /// on it.
    pub group_by: GroupBy,
    /// The rule for full restore points. With a repository, the predicted level of the next backup
    /// depends on it too.
    pub full: FullRule,
    /// How long to wait for another run that writes to the domain's folder.
    pub wait: Duration,
}

/// The environment of a scrub.
pub struct Means<'a> {
    /// The hypervisor.
    pub host: &'a dyn Host,
    /// The repository, if the user named one. A scrub, but not its dry run, locks the domain in it.
    pub repo: Option<&'a dyn Repository>,
    /// The current day, in the local time zone.
    pub today: Date,
    /// The receiver of events.
    pub monitor: &'a dyn Monitor,
    /// The request to stop (Ctrl-C, SIGTERM or SIGHUP).
    pub stop: Stop,
}

/// The result of a scrub.
#[derive(Debug)]
pub struct Outcome {
    /// The checkpoints whose records were removed.
    pub checkpoints: Vec<String>,
    /// The bitmaps that were removed.
    pub bitmaps: Vec<DiskBitmap>,
    /// The bitmaps that remain without a checkpoint.
    pub left: Vec<DiskBitmap>,
    /// The prediction of the next backup.
    pub next: NextBackup,
    /// Other findings.
    pub findings: Vec<Finding>,
    /// The error, if a removal failed or had no effect, or if its effect could not be checked. The
    /// lists above show what was removed nevertheless.
    pub failure: Option<Error>,
}

impl Judged for Outcome {
    fn error(&self) -> Option<&Error> {
        self.failure.as_ref()
    }
}

impl Judged for ScrubPlan {}

/// Plans a scrub of the domain without doing anything.
pub fn preview(name: &str, means: &Means, options: &Options) -> Result<ScrubPlan> {
    let history = match means.repo {
        Some(repo) => {
            let history = repo.domain(name).and_then(|repository| repository.history());
            Some(history.map_err(|error| Error::of(name, error))?)
        }
        None => None,
    };
    Ok(Scrub::begin(name, means, options, history)?.plan)
}

/// Removes what the options select from the domain `name`.
pub fn scrub(name: &str, means: &Means, options: &Options) -> Result<Outcome> {
    let locked = match means.repo {
        Some(repo) => {
            let repository = repo.domain(name).map_err(|error| Error::of(name, error))?;
            Some(lock::lock(
                repository.as_ref(),
                options.wait,
                means.monitor,
                &means.stop,
            )?)
        }
        None => None,
    };
    let history = locked.as_ref().map(|locked| locked.history()).transpose();
    let history = history.map_err(|error| Error::of(name, error))?;
    Ok(Scrub::begin(name, means, options, history)?.carry_out())
}

/// Returns a finding if the domain's backups in the repository have another grouping.
fn refused(name: &str, means: &Means, options: &Options, history: &History) -> Result<Option<Finding>> {
    let Some(repo) = means.repo else { return Ok(None) };
    let repository = repo.domain(name).map_err(|error| Error::of(name, error))?;
    grouping::finding(repository.as_ref(), history, options.group_by)
}

/// A scrub with everything that it works on.
struct Scrub<'a> {
    means: &'a Means<'a>,
    options: &'a Options,
    domain: Domain,
    history: Option<History>,
    found: Found,
    outlook: Outlook,
    plan: ScrubPlan,
}

impl<'a> Scrub<'a> {
    fn begin(
        name: &str,
        means: &'a Means<'a>,
        options: &'a Options,
        history: Option<History>,
    ) -> Result<Scrub<'a>> {
        let failed = |error: HostError| Error::of(name, error);
        let host = means.host;
        let domain = host.domain(name).map_err(failed)?;
        if let Some(job) = host.active_job(&domain).map_err(failed)? {
            let operation = job.operation;
            return Err(Error::of(name, Cause::Busy { operation }));
        }
        let recorded = recorded(&domain, means, history.as_ref())?;
        let (found, unknown) = look(host, &domain, options.kind, recorded).map_err(failed)?;
        let failed_after = |cause: Cause| Error {
            findings: unknown.clone(),
            ..Error::of(name, cause)
        };
        let kept = |history: &History| -> Result<Kept> {
            Ok(Kept {
                chains: history.chains.clone(),
                full: options.full,
                period: Period::containing(options.group_by, means.today).folder(),
                repository: means
                    .repo
                    .and_then(|repo| repo.identity().id().map(str::to_owned)),
                disks: survey::disk_facts(&domain, &history.chains, &found.checkpoints, host),
                refused: refused(name, means, options, history)?,
            })
        };
        let outlook = Outlook {
            capabilities: host.capabilities().map_err(|error| failed_after(error.into()))?,
            kept: history.as_ref().map(kept).transpose()?,
        };
        let plan = plan::plan(&domain, &found, options.kind, options.name.as_deref(), &outlook);
        let mut plan = plan.map_err(failed_after)?;
        let refused = outlook.kept.iter().filter_map(|kept| kept.refused.clone());
        plan.findings.splice(0..0, unknown.into_iter().chain(refused));
        Ok(Scrub {
            means,
            options,
            domain,
            history,
            found,
            outlook,
            plan,
        })
    }

    fn carry_out(self) -> Outcome {
        let mut outcome = Outcome {
            checkpoints: Vec::new(),
            bitmaps: Vec::new(),
            left: Vec::new(),
            next: self.plan.next.clone(),
            findings: self.plan.findings.clone(),
            failure: None,
        };
        let mut gone = Vec::new();
        let done = self.take_steps(&mut outcome, &mut gone);
        let is_done = |name: &String| outcome.checkpoints.contains(name);
        let left = self.plan.left.iter().filter(|bitmap| is_done(&bitmap.name));
        outcome.left = left.cloned().collect();
        let verified = self.verify(&gone, &mut outcome.next);
        outcome.failure = done.and(verified).err();
        outcome
    }

    /// Stops at the first failure: later steps would most likely fail for the same reason, after a
    /// long wait. Adds to `gone` the names whose bitmaps do not exist any more.
    fn take_steps(&self, outcome: &mut Outcome, gone: &mut Vec<String>) -> Result<()> {
        let host = self.means.host;
        for step in &self.plan.steps {
            if let Some(reason) = self.means.stop.reason() {
                return Err(self.failed(Cause::Stopped(reason)));
            }
            let done = match step {
                Step::Forget(name) => host
                    .forget_checkpoint(&self.domain, name)
                    .map(|()| outcome.checkpoints.push(name.clone())),
                Step::Delete(name) => host.delete_checkpoint(&self.domain, name).map(|()| {
                    outcome.checkpoints.push(name.clone());
                    outcome.bitmaps.extend(self.gone_with(name));
                }),
                Step::RemoveBitmaps(name) => host.remove_bitmaps(&self.domain, name).map(|targets| {
                    let bitmap = |disk| DiskBitmap {
                        disk,
                        name: name.clone(),
                    };
                    outcome.bitmaps.extend(targets.into_iter().map(bitmap));
                }),
            };
            done.map_err(|error| self.failed(error))?;
            gone.extend(step.bitmaps().cloned());
        }
        match &self.options.name {
            // Only now is it known that nothing had this name.
            Some(name) if outcome.checkpoints.is_empty() && outcome.bitmaps.is_empty() => {
                match self.options.kind {
                    ScrubType::All => Ok(()),
                    kind => Err(self.failed(plan::not_there(kind, name))),
                }
            }
            _ => Ok(()),
        }
    }

    /// Returns the known bitmaps that go with the checkpoint of this name.
    fn gone_with(&self, name: &str) -> Vec<DiskBitmap> {
        let checkpoint = self.found.checkpoints.iter().find(|one| one.name == name);
        let goes = |bitmap: &&DiskBitmap| {
            bitmap.name == name
                && (!self.domain.state.is_active()
                    || checkpoint.is_some_and(|checkpoint| plan::covers(checkpoint, &bitmap.disk)))
        };
        self.plan.bitmaps.iter().filter(goes).cloned().collect()
    }

    /// Looks again: everything removed has to be gone. What is there now decides the next backup.
    fn verify(&self, gone: &[String], next: &mut NextBackup) -> Result<()> {
        let looked = look(
            self.means.host,
            &self.domain,
            self.options.kind,
            recorded(&self.domain, self.means, self.history.as_ref())?,
        );
        let (now, unknown) = looked.map_err(|error| self.failed(error))?;
        let bitmaps = plan::staying(&self.found, &self.plan);
        let left = LeftByScrub {
            checkpoints: &now.checkpoints,
            bitmaps: &bitmaps,
            gone,
        };
        *next = next_backup(&self.domain, &left, &self.outlook);
        let is_listed = |name: &&String| now.checkpoints.iter().any(|one| one.name == **name);
        if let Some(name) = self.plan.checkpoints.iter().find(is_listed) {
            return Err(self.failed(Cause::StillThere(format!("checkpoint {name}"))));
        }
        let is_there = |bitmap: &&DiskBitmap| now.bitmaps.contains(bitmap);
        if let Some(bitmap) = self.plan.bitmaps.iter().find(is_there) {
            let what = format!("bitmap {} of disk {}", bitmap.name, bitmap.disk);
            return Err(self.failed(Cause::StillThere(what)));
        }
        match unknown.first() {
            Some(disk) if has_to_be_seen(&self.domain, self.options.kind) => {
                Err(self.failed(Cause::NotAllRemoved(disk.message.clone())))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, cause: impl Into<Cause>) -> Error {
        Error::of(&self.domain.name, cause)
    }
}

/// Whether a scrub is complete only if the bitmaps in every image are known. For an active domain,
/// the checkpoints name most of them.
fn has_to_be_seen(domain: &Domain, kind: ScrubType) -> bool {
    !domain.state.is_active() && kind != ScrubType::Checkpoint
}

/// Returns what the domain has: for an active one, what its checkpoints and its images show. The
/// findings name the disks that could not be examined.
fn look(
    host: &dyn Host,
    domain: &Domain,
    kind: ScrubType,
    recorded: Vec<String>,
) -> std::result::Result<(Found, Vec<Finding>), HostError> {
    let mut found = Found {
        checkpoints: host.checkpoints(domain)?,
        bitmaps: Vec::new(),
        recorded,
        bitmaps_known: true,
    };
    let mut unknown = Vec::new();
    for disk in domain.disks.iter().filter(|disk| disk.source != Source::Empty) {
        let target = &disk.target;
        let mut names: Vec<String> = Vec::new();
        if domain.state.is_active() {
            let sound = found.checkpoints.iter().filter(|one| one.is_sound_for(target));
            names.extend(sound.map(|one| one.name.clone()));
        }
        match host.bitmap_names(domain, target) {
            Ok(listed) => names.extend(listed),
            Err(error @ HostError::NotHere { .. }) if has_to_be_seen(domain, kind) => return Err(error),
            Err(error) => {
                found.bitmaps_known = false;
                unknown.push(Finding::of_disk(
                    "bitmaps-unknown",
                    target,
                    format!(
                        "the bitmaps in the image of disk {target} could not be listed: {}",
                        with_sources(&error)
                    ),
                ));
            }
        }
        for name in names {
            let bitmap = DiskBitmap {
                disk: target.clone(),
                name,
            };
            if !found.bitmaps.contains(&bitmap) {
                found.bitmaps.push(bitmap);
            }
        }
    }
    Ok((found, unknown))
}

/// Returns the names of checkpoints that restore points and unfinished runs of this domain
/// recorded.
fn recorded(domain: &Domain, means: &Means, history: Option<&History>) -> Result<Vec<String>> {
    let (Some(repo), Some(history)) = (means.repo, history) else {
        return Ok(Vec::new());
    };
    let repository = repo.domain(&domain.name);
    let repository = repository.map_err(|error| Error::of(&domain.name, error))?;
    let uuid = &domain.uuid;
    let points = history.chains.points().iter().map(|kept| &kept.point);
    let committed = points
        .filter(|point| point.uuid == *uuid)
        .filter_map(|point| point.checkpoint.as_ref())
        .map(|checkpoint| checkpoint.name.clone());
    let entries = history
        .leftovers
        .iter()
        .filter_map(|leftover| match repository.note(leftover) {
            Ok(Note::Text(text)) => Some(text),
            Ok(Note::None | Note::Unusable(_)) | Err(_) => None,
        })
        .filter_map(|text| serde_json::from_slice::<JournalEntry>(&text).ok());
    let begun = entries
        .filter(|entry| entry.uuid == *uuid)
        .filter_map(|entry| entry.checkpoint);
    Ok(committed.chain(begun).collect())
}
