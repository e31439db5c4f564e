//! Brings the disks of a shut-off domain back to a restore point, and writes only what differs.
//!
//! First the present state is saved as a restore point. Then the domain is marked durably, its
//! images are opened for writing, and each disk is compared with the restore point: only where it
//! may differ, if a bitmap shows that. All disks are compared before the first write, and then the
//! mark says that it begins to write. The mark goes after the last write is durable, or if nothing
//! was written. From the first write until then no backup takes the disks for a good state, and
//! another restore in place can finish the work. QEMU records the writes in the bitmaps, so the
//! next backup is incremental and holds them.

use std::time::Duration;

use super::backup;
use super::heal::{self, HealedDomain};
use super::monitor::{self, Event};
use super::restore::{choose, chosen_targets, perhaps_encrypted};
use super::restore_mark::{self, FoundMark, RestoreMark};
use super::stored::StoredPoint;
use super::{Cause, Context, Error, Result, job, lock, reconcile, survey};
use crate::host::{DiskRequest, PlaceWishes, Places, RewriteRequest};
use crate::model::block::Written;
use crate::model::compression::Compression;
use crate::model::domain::{DiskFormat, Domain};
use crate::model::finding::Finding;
use crate::model::in_place::{self, InPlaceFacts, InPlaceRefusal, Unfinished};
use crate::model::left_out::{Exclusion, Kind};
use crate::model::level::FullRule;
use crate::model::period::{GroupBy, Period};
use crate::model::restore_point::RestorePoint;
use crate::model::text::with_sources;
use crate::repo::{DomainRepository, DomainWriter, History, SmallFile};

mod disk;
mod look;
mod plan;
mod users;

use disk::{Compared, DiskWork};
use plan::Known;
pub use plan::{Basis, ChainPart, InPlaceDisk, InPlacePlan};

/// The options of a restore in place.
#[derive(Clone, Debug)]
pub struct Options {
    /// Selects the restore point, as for a restore to another place.
    pub at: String,
    /// The targets of the disks to restore; empty for all of the restore point.
    pub disks: Vec<String>,
    /// A disk of the restore point, and the other disk onto which it is written. If given, `disks`
    /// is empty.
    pub mapping: Option<Mapping>,
    /// Whether the present state of the disks is discarded instead of saved.
    pub discard_current: bool,
    /// The rule for full restore points, for the backup of the present state.
    pub full: FullRule,
    /// How the images of that backup are compressed.
    pub compression: Compression,
    /// How long to wait for another run that writes to the domain's folder.
    pub wait: Duration,
}

/// A disk of a restore point, and the disk onto which it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The domain of the restore point.
    pub domain: String,
    /// The target of the disk in the restore point.
    pub disk: String,
    /// The target of the disk that is written to.
    pub onto: String,
}

/// The result of a restore in place.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The restore point.
    pub point: RestorePoint,
    /// The domain of the restore point, if a disk got the content of another one.
    pub of: Option<String>,
    /// The id of the restore point that holds the previous state of the disks, if this run saved
    /// it, or the unfinished run that this run finished.
    pub saved: Option<String>,
    /// The disks, each with what was compared and written.
    pub disks: Vec<RestoredInPlace>,
    /// The findings.
    pub findings: Vec<Finding>,
}

/// A disk that was restored in place.
#[derive(Clone, Debug)]
pub struct RestoredInPlace {
    /// The disk and what was known about it.
    pub disk: InPlaceDisk,
    /// How many bytes were compared.
    pub compared_bytes: u64,
    /// What was written.
    pub written: Written,
}

/// Plans a restore in place. Changes nothing, and does not open the disks.
pub fn preview(domain: &str, context: &Context, options: &Options) -> Result<InPlacePlan> {
    let repository = context.repo.domain(domain);
    let repository = repository.map_err(|error| Error::of(domain, error))?;
    let request = Request::read(repository.as_ref(), context, options)?;
    let findings = match request.is_marked {
        false => users::check(domain, &request.targets, context.host)?,
        // What the dead run has left open is ended first.
        true => Vec::new(),
    };
    let look = |found| survey::survey(found, repository.as_ref(), &request.history, context.host);
    let survey = survey::steadily(domain, context.host, look)?;
    let mut plan = request.plan(&survey, &request.history)?;
    plan.findings.splice(0..0, findings);
    Ok(plan)
}

/// Brings the disks of the domain `name` back to a restore point.
///
/// # Errors
/// The domain or its disks do not allow a restore in place, or something failed. If the disks are
/// only partly restored, a finding reports it.
pub fn restore_in_place(name: &str, context: &Context, options: &Options) -> Result<Outcome> {
    monitor::noting(context.monitor, |monitor| {
        carry_out(name, &context.with_monitor(monitor), options)
    })
}

fn carry_out(name: &str, context: &Context, options: &Options) -> Result<Outcome> {
    let repository = context.repo.domain(name);
    let repository = repository.map_err(|error| Error::of(name, error))?;
    let repository = repository.as_ref();
    // Everything that can be refused is refused before the present state is saved.
    let mut request = Request::read(repository, context, options)?;
    if !request.is_marked {
        users::check(name, &request.targets, context.host)?;
    }
    let new_point = match request.saves() {
        true => Some(save(&request, context, options)?),
        false => None,
    };
    let locked = lock::lock_for(repository, options.wait, context)?;
    restore_mark::clear_unwritten(repository, locked.as_ref(), context.host)?;
    let unfinished = restore_mark::read(repository)?;
    if unfinished != request.unfinished {
        // Another restore in place has begun or ended in the meantime.
        let cause = match unfinished {
            Some(found) => Cause::InBetween(found.sentence()),
            None => Cause::Usage(
                "another restore in place ended in the meantime: run the command again".to_owned(),
            ),
        };
        return Err(Error::of(name, cause));
    }
    if let Some(mark) = request.mark() {
        // Ends what still writes for the dead run, before anything opens the images.
        let cleared = context.host.clear_places(&mark.places);
        cleared.map_err(|error| Error::of(name, error))?;
    }
    let healed = heal::heal(repository, locked.as_ref(), context, |survey, _| {
        reconcile::repairs(survey)
    })?;
    if let Some(job) = &healed.survey.job {
        let operation = job.operation.clone();
        return Err(Error::of(name, Cause::Busy { operation }));
    }
    request.domain = healed.survey.domain.clone();
    request.check(context)?;
    let mut plan = request.plan(&healed.survey, &healed.history)?;
    plan.findings
        .extend(users::check(name, &request.targets, context.host)?);
    let before = request.mark().and_then(|mark| mark.saved.clone());
    let source = match &options.mapping {
        None => None,
        Some(mapping) => Some(Source::read(context, mapping)?),
    };
    let attempt = Attempt {
        source: match &source {
            None => (repository, &healed.history),
            Some(source) => (source.repository.as_ref(), &source.history),
        },
        locked: locked.as_ref(),
        healed: &healed,
        context,
        saved: new_point.clone().or(before),
        new_point,
        plan: &plan,
        was_marked: request.unfinished.is_some(),
    };
    attempt.make()
}

/// Gives up an unfinished restore in place: the disks stay as they are, and backups are allowed
/// again. Returns the removed mark; `None` if there was none.
pub fn abandon(name: &str, context: &Context, wait: Duration) -> Result<Option<FoundMark>> {
    let repository = context.repo.domain(name);
    let repository = repository.map_err(|error| Error::of(name, error))?;
    if restore_mark::read(repository.as_ref())?.is_none() {
        return Ok(None);
    }
    let locked = lock::lock_for(repository.as_ref(), wait, context)?;
    let found = restore_mark::read(repository.as_ref())?;
    if let Some(mark) = found.as_ref().and_then(FoundMark::mark) {
        let cleared = context.host.clear_places(&mark.places);
        cleared.map_err(|error| Error::of(name, error))?;
    }
    let removed = locked.remove_restore_mark();
    removed.map_err(|error| Error::of(name, error))?;
    Ok(found)
}

/// The part of the repository that holds the restore point of another domain.
struct Source {
    repository: Box<dyn DomainRepository>,
    history: History,
}

impl Source {
    fn read(context: &Context, mapping: &Mapping) -> Result<Source> {
        let failed = |error: crate::repo::RepoError| Error::of(&mapping.domain, error);
        let repository = context.repo.domain(&mapping.domain).map_err(failed)?;
        let history = repository.history().map_err(failed)?;
        Ok(Source { repository, history })
    }
}

/// What the user wants, together with the domain and its restore points.
struct Request {
    domain: Domain,
    /// The restore points of this domain.
    history: History,
    point: RestorePoint,
    targets: Vec<String>,
    mapping: Option<Mapping>,
    /// Whether the restore point holds UEFI variables or the state of a TPM.
    has_firmware: bool,
    has_saved_memory: bool,
    /// The mark of an earlier restore that may have written.
    unfinished: Option<FoundMark>,
    /// Whether there is any mark: something may still be open for the earlier restore.
    is_marked: bool,
    discard_current: bool,
    /// The sizes of the domain's disks, as far as they are known.
    sizes: Vec<(String, u64)>,
}

impl Request {
    /// Reads everything, and refuses what cannot be restored in place.
    fn read(repository: &dyn DomainRepository, context: &Context, options: &Options) -> Result<Request> {
        let name = repository.name();
        let host = context.host;
        let domain = host.domain(name).map_err(|error| Error::of(name, error))?;
        let history = repository.history().map_err(|error| Error::of(name, error))?;
        let source = match &options.mapping {
            None => None,
            Some(mapping) => Some(Source::read(context, mapping)?),
        };
        let (of, part, points) = match (&source, &options.mapping) {
            (Some(source), Some(mapping)) => (
                mapping.domain.as_str(),
                source.repository.as_ref(),
                &source.history,
            ),
            _ => (name, repository, &history),
        };
        let point = choose(of, points, &options.at)?.point.clone();
        let wanted = match &options.mapping {
            None => options.disks.clone(),
            Some(mapping) => vec![mapping.disk.clone()],
        };
        let in_point = chosen_targets(of, &point, &wanted)?;
        for target in &in_point {
            let whole = points.chains.lineage(&point.id, target);
            whole.map_err(|fault| {
                let id = point.id.clone();
                Error::of_disk(of, target, Cause::NotWhole { id, fault })
            })?;
        }
        let stored = points.get(&point.id).map(|kept| StoredPoint {
            repository: part,
            kept,
        });
        if let Some(disk) = stored.and_then(|stored| perhaps_encrypted(stored, &in_point)) {
            let id = point.id.clone();
            return Err(Error::of(name, InPlaceRefusal::PerhapsEncrypted { disk, id }));
        }
        let has_firmware =
            stored.is_some_and(|stored| stored.has(SmallFile::Nvram) || stored.has(SmallFile::Tpm));
        let targets = match &options.mapping {
            None => in_point,
            Some(mapping) => vec![mapping.onto.clone()],
        };
        if let Some(renamed) = restore_mark::of_former_name(context.repo, name, &domain.uuid)? {
            return Err(Error::of(name, renamed));
        }
        let found = restore_mark::read(repository)?;
        let mut request = Request {
            is_marked: found.is_some(),
            unfinished: found.filter(FoundMark::is_writing),
            domain,
            history,
            point,
            targets,
            mapping: options.mapping.clone(),
            has_firmware,
            has_saved_memory: false,
            discard_current: options.discard_current,
            sizes: Vec::new(),
        };
        request.check(context)?;
        Ok(request)
    }

    /// Refuses what cannot be restored in place now.
    fn check(&mut self, context: &Context) -> Result<()> {
        let name = &self.domain.name;
        if !self.domain.state.is_active() {
            let saved = context.host.has_saved_memory(&self.domain);
            self.has_saved_memory = saved.map_err(|error| Error::of(name, error))?;
        }
        let size = |target: &String| {
            self.domain.disk(target)?;
            let sizes = context.host.disk_sizes(&self.domain, target).ok()?;
            Some((target.clone(), sizes.virtual_size))
        };
        // A size that cannot be read now is compared when the disk is open.
        self.sizes = self.targets.iter().filter_map(size).collect();
        self.with_facts(in_place::check)
            .map_err(|refused| Error::of(name, refused))
    }

    fn with_facts<T>(&self, work: impl FnOnce(&InPlaceFacts<'_>) -> T) -> T {
        let size = |target: &str| {
            self.sizes
                .iter()
                .find(|(of, _)| of == target)
                .map(|(_, size)| *size)
        };
        work(&InPlaceFacts {
            domain: &self.domain,
            point: &self.point,
            targets: &self.targets,
            from: self.mapping.as_ref().map(|mapping| mapping.disk.as_str()),
            sizes: &size,
            has_saved_memory: self.has_saved_memory,
            unfinished: self.unfinished.as_ref().map(|found| match found {
                FoundMark::Mark(mark) => Unfinished::Known {
                    uuid: &mark.uuid,
                    id: &mark.restore_point,
                    disks: &mark.disks,
                },
                FoundMark::Unreadable(_) => Unfinished::Unknown,
            }),
        })
    }

    fn mark(&self) -> Option<&RestoreMark> {
        self.unfinished.as_ref().and_then(FoundMark::mark)
    }

    /// Whether the present state is saved first. A state in between is never saved.
    fn saves(&self) -> bool {
        !self.discard_current && self.unfinished.is_none()
    }

    /// Decides what is compared.
    fn plan(&self, survey: &survey::Survey, history: &History) -> Result<InPlacePlan> {
        let known = Known {
            domain: &self.domain,
            disks: &survey.disks,
            chains: &history.chains,
            checkpoints: &survey.checkpoints,
            no_bitmaps: survey.capabilities.incremental.as_ref().err().map(String::as_str),
        };
        let disk = |target: &String| {
            let disk = self.domain.disk(target)?;
            let from = self.mapping.as_ref().map(|mapping| mapping.disk.clone());
            let in_point = self.point.disk(from.as_ref().unwrap_or(target));
            Some(InPlaceDisk {
                target: target.clone(),
                size: in_point.map_or(0, |disk| disk.virtual_size),
                source: disk.source.text(),
                basis: match &self.mapping {
                    None => plan::basis(&known, disk, &self.point),
                    Some(_) => Basis::Whole("the content comes from another disk".to_owned()),
                },
                from,
            })
        };
        Ok(InPlacePlan {
            point: self.point.clone(),
            of: self.mapping.as_ref().map(|mapping| mapping.domain.clone()),
            saves: self.saves(),
            ends: self.mark().cloned(),
            disks: self.targets.iter().filter_map(disk).collect(),
            findings: self.with_facts(|facts| in_place::findings(facts, self.has_firmware)),
        })
    }
}

/// Saves the present state as `vmsnap backup` does, and returns the id of the restore point.
fn save(request: &Request, context: &Context, options: &Options) -> Result<String> {
    let name = &request.domain.name;
    let what = "saving the present state of the disks";
    context.monitor.event(Event::Step { domain: name, what });
    let chosen: Vec<_> = request
        .targets
        .iter()
        .filter_map(|target| request.domain.disk(target))
        .collect();
    let newest = request.history.chains.latest_in_periods().map(|kept| &kept.point);
    let group_by = newest
        .and_then(|point| Period::of_folder(&point.period))
        .map_or_else(GroupBy::default, Period::group_by);
    // What the newest restore point leaves out on purpose is left out here, too.
    let excluded = newest.iter().flat_map(|point| &point.left_out);
    let exclude = excluded
        .filter(|left| left.kind == Kind::Excluded && !request.targets.contains(&left.disk))
        .map(|left| Exclusion {
            disk: left.disk.clone(),
            is_expected: false,
        });
    let outcome = backup::backup(
        name,
        context,
        &backup::Options {
            group_by,
            raw: chosen.iter().any(|disk| disk.format == DiskFormat::Raw),
            store_decrypted: chosen.iter().any(|disk| disk.is_encrypted()),
            exclude: exclude.collect(),
            freeze: None,
            full: options.full,
            compression: options.compression,
            wait: options.wait,
            ..backup::Options::default()
        },
    )?;
    let lacking = request
        .targets
        .iter()
        .find(|target| outcome.point.disk(target).is_none());
    match lacking {
        None => Ok(outcome.point.id),
        Some(disk) => {
            let (disk, id) = (disk.clone(), outcome.point.id);
            Err(Error::of(name, InPlaceRefusal::NotSaved { disk, id }))
        }
    }
}

/// A restore in place that has the right to write to the domain's part of the repository.
struct Attempt<'a> {
    /// The part of the repository with the restore point, and its history.
    source: (&'a dyn DomainRepository, &'a History),
    locked: &'a dyn DomainWriter,
    healed: &'a HealedDomain,
    context: &'a Context<'a>,
    /// The restore point that holds the state before.
    saved: Option<String>,
    /// The same, if this run has made it.
    new_point: Option<String>,
    plan: &'a InPlacePlan,
    /// Whether an earlier restore in place has not ended.
    was_marked: bool,
}

/// A failure, and whether anything may have been written before.
struct Failure {
    error: Error,
    has_written: bool,
}

impl Attempt<'_> {
    fn make(&self) -> Result<Outcome> {
        let (name, host) = (self.name(), self.context.host);
        let targets: Vec<String> = self.plan.disks.iter().map(|disk| disk.target.clone()).collect();
        let run = job::run_word((self.context.random)());
        let places = host.places(self.domain(), &targets, &PlaceWishes::default(), &run);
        let places = places.map_err(|error| Error::of(name, error))?;
        let mut findings = self.healed.findings.clone();
        for finding in &self.plan.findings {
            report(name, finding, self.context);
            findings.push(finding.clone());
        }
        self.mark(&targets, &places, self.was_marked)?;
        match self.work(&targets, &places) {
            Ok((disks, of_work)) => {
                findings.extend(of_work);
                let removed = self.locked.remove_restore_mark();
                removed.map_err(|error| Error::of(name, error))?;
                Ok(Outcome {
                    point: self.plan.point.clone(),
                    of: self.plan.of.clone(),
                    saved: self.saved.clone(),
                    disks,
                    findings,
                })
            }
            Err(failure) => Err(self.undo(failure, &places)),
        }
    }

    fn name(&self) -> &str {
        &self.healed.survey.domain.name
    }

    fn domain(&self) -> &Domain {
        &self.healed.survey.domain
    }

    /// Marks the domain durably, with the word whether the disks may be in between.
    fn mark(&self, disks: &[String], places: &Places, writing: bool) -> Result<()> {
        let failed = |error: crate::repo::RepoError| Error::of(self.name(), error);
        let mark = RestoreMark {
            domain: self.name().to_owned(),
            uuid: self.domain().uuid.clone(),
            restore_point: self.plan.point.id.clone(),
            of: self.plan.of.clone().filter(|of| of != self.name()),
            disks: disks.to_vec(),
            began: self.context.now.timestamp(),
            saved: self.saved.clone(),
            places: places.clone(),
            writing,
        };
        let text = serde_json::to_vec_pretty(&mark).map_err(|source| {
            failed(crate::repo::RepoError::Manifest {
                id: mark.restore_point.clone(),
                source,
            })
        })?;
        let written = self.locked.write_restore_mark(&text);
        if written.is_err() && !self.was_marked {
            // It may be there in spite of the error, and nothing was written.
            let _ = self.locked.remove_restore_mark();
        }
        written.map_err(failed)
    }

    /// Opens the disks, compares all of them, and writes what differs.
    fn work(
        &self,
        targets: &[String],
        places: &Places,
    ) -> std::result::Result<(Vec<RestoredInPlace>, Vec<Finding>), Failure> {
        let before = |error: Error| Failure {
            error,
            has_written: false,
        };
        let after = |error: Error| Failure {
            error,
            has_written: true,
        };
        let request = RewriteRequest {
            disks: self.plan.disks.iter().map(|disk| self.request(disk)).collect(),
            witness: self.witness().map(|(_, checkpoint)| checkpoint),
            places: places.clone(),
            stop: self.context.stop.clone(),
        };
        let begun = self.context.host.begin_rewrite(self.domain(), &request);
        let job = begun.map_err(|error| before(job::failed(self.domain(), self.context, error)))?;
        let work = DiskWork {
            domain: self.name(),
            repository: self.source.0,
            history: self.source.1,
            point: &self.plan.point,
            job: job.as_ref(),
            monitor: self.context.monitor,
            stop: &self.context.stop,
        };
        self.check_unchanged(&work).map_err(before)?;
        let compared = self.plan.disks.iter().map(|disk| work.compare(disk));
        let mut compared: Vec<Compared> = compared.collect::<Result<_>>().map_err(before)?;
        let mut findings: Vec<Finding> = compared
            .iter_mut()
            .filter_map(|compared| compared.finding.take())
            .collect();
        let has_written = compared.iter().any(|compared| compared.differing.count() > 0);
        if has_written && !self.was_marked {
            self.mark(targets, places, true).map_err(before)?;
        }
        let mut restored = Vec::new();
        for (disk, compared) in self.plan.disks.iter().zip(&compared) {
            let written = match compared.differing.count() {
                // What the earlier restore wrote may not be durable yet.
                0 if self.was_marked => work.flush(disk).map_err(after)?,
                0 => Written::default(),
                _ => work.write(disk, compared).map_err(after)?,
            };
            restored.push(RestoredInPlace {
                disk: disk.clone(),
                compared_bytes: compared.bytes,
                written,
            });
        }
        let of_job = job.finish().map_err(|error| Failure {
            error: Error::of(self.name(), error),
            has_written,
        })?;
        for finding in &of_job {
            report(self.name(), finding, self.context);
        }
        findings.extend(of_job);
        Ok((restored, findings))
    }

    /// Requests a disk with the bitmap that the comparison needs, if there is one.
    fn request(&self, disk: &InPlaceDisk) -> DiskRequest {
        let since = disk.basis.checkpoint().map(str::to_owned);
        DiskRequest {
            target: disk.target.clone(),
            since,
            checkpointed: false,
        }
    }

    /// The restore point that this run has made of the present state, and its checkpoint.
    fn witness(&self) -> Option<(&RestorePoint, String)> {
        let saved = self.healed.history.get(self.new_point.as_ref()?)?;
        let checkpoint = saved.manifest.point.checkpoint.as_ref()?;
        Some((&saved.manifest.point, checkpoint.name.clone()))
    }

    /// Refuses if a disk was written to after this run saved its state: the domain was started in
    /// between. Only the bitmap of the new restore point shows that.
    fn check_unchanged(&self, work: &DiskWork<'_>) -> Result<()> {
        let Some((saved, _)) = self.witness() else {
            return Ok(());
        };
        for disk in &self.plan.disks {
            let target = disk.target.clone();
            let is_covered = saved.disk(&target).is_some_and(|disk| disk.checkpointed);
            let refused = match work.is_changed(disk)? {
                Some(true) => InPlaceRefusal::ChangedSinceSaved(target),
                // QEMU leaves such a bitmap when it is killed.
                None if is_covered => InPlaceRefusal::UnknownSinceSaved(target),
                Some(false) | None => continue,
            };
            return Err(Error::of(self.name(), refused));
        }
        Ok(())
    }

    /// Removes the mark if nothing was written; otherwise reports that the disks are in between.
    fn undo(&self, failure: Failure, places: &Places) -> Error {
        let Failure { error, has_written } = failure;
        let cleared = self.context.host.clear_places(places);
        if !has_written && !self.was_marked {
            let removed = cleared.map_err(|error| with_sources(&error)).and_then(|()| {
                let removed = self.locked.remove_restore_mark();
                removed.map_err(|error| with_sources(&error))
            });
            if let Err(why) = removed {
                let what = format!(
                    "nothing was written to the disks, but the mark of the restore could not be removed ({why}): \
                     run the restore again, or remove the mark with --abandon"
                );
                self.report(&Finding::new("restore-mark-left", what));
            }
            return error;
        }
        let what = "the disks are only partly restored, so do not start the domain; when the cause of the failure is gone, \
                    run the restore in place again, with this or another restore point";
        self.report(&Finding::new("disks-in-between", what));
        error
    }

    fn report(&self, finding: &Finding) {
        report(self.name(), finding, self.context);
    }
}

fn report(domain: &str, finding: &Finding, context: &Context) {
    context.monitor.event(Event::Found { domain, finding });
}
