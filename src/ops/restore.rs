//! Restores disks from a restore point and, on request, defines the domain.
//!
//! Every block of a disk is read from the newest image of its chain that holds it. The digest of
//! every image is verified on the way, so damaged data is not restored as if it were sound. Nothing
//! that exists is ever overwritten, except a block device that the user named.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Cause;
use super::monitor::{self, Event, Monitor};
use super::stored::StoredPoint;
use super::{Error, Result};
use crate::host::{Host, Pool};
use crate::io::Store;
use crate::model::block::{CLUSTER, Written};
use crate::model::finding::Finding;
use crate::model::left_out;
use crate::model::restore_point::RestorePoint;
use crate::model::stop::Stop;
use crate::model::text::shown;
use crate::repo::{History, Repository, history};

mod choose;
mod define;
mod disk;
mod encrypted;
mod in_use;
mod place;
mod tpm;
mod unfinished;
mod volume;

pub(super) use choose::{choose, chosen_targets};
pub use define::{DefinePlan, NvramPlan};
pub(super) use define::{Purpose, plan as plan_definition};
use disk::{Origin, restore_disk};
pub(super) use encrypted::Encrypted;
pub(super) use encrypted::perhaps_encrypted;
use place::{DiskPlace, Place};
pub(super) use tpm::NewState;
pub use tpm::TpmPlan;
use unfinished::{NewDir, Unfinished, place_all, sweep};
use volume::{NewDevice, UsedPool};

/// The format of a restored disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// A qcow2 file without a backing file.
    #[default]
    Qcow2,
    /// The disk's bytes without a header; ranges of zeroes become holes.
    Raw,
}

impl Format {
    /// Returns QEMU's name for the format.
    pub fn word(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
        }
    }
}

/// The options of a restore.
#[derive(Clone, Debug)]
pub struct Options {
    /// Selects the restore point: an id, a checkpoint's name, a time (RFC 3339; selects the newest
    /// restore point at or before it), or `latest`.
    pub at: String,
    /// The target: a folder; for a single disk also a new file or a block device. Ignored if there
    /// is a pool.
    pub to: PathBuf,
    /// The name of the storage pool in which the disks become volumes.
    pub pool: Option<String>,
    /// The targets of the disks to restore; empty for all.
    pub disks: Vec<String>,
    /// The format of the disks. `None` chooses by the ending of a file's name, raw for a block
    /// device, and qcow2 in a folder.
    pub format: Option<Format>,
    /// Whether to define the domain too, and how.
    pub define: Option<DefineOptions>,
}

/// The options for defining the domain.
#[derive(Clone, Debug, Default)]
pub struct DefineOptions {
    /// Its new name; `None` keeps the old one.
    pub name: Option<String>,
}

/// The plan of a restore.
#[derive(Clone, Debug)]
pub struct RestorePlan {
    /// The restore point.
    pub point: RestorePoint,
    /// A folder that has to be created first.
    pub new_dir: Option<PathBuf>,
    /// The storage pool in which the disks become volumes.
    pub pool: Option<Pool>,
    /// The disks.
    pub disks: Vec<RestoredDisk>,
    /// The domain to define, if requested.
    pub define: Option<DefinePlan>,
    /// The findings.
    pub findings: Vec<Finding>,
    /// The domain's history when the restore was planned; the disks are read according to it.
    history: Arc<History>,
}

/// One disk of a restore.
#[derive(Clone, Debug)]
pub struct RestoredDisk {
    /// The disk's target.
    pub target: String,
    /// Its size, in bytes.
    pub size: u64,
    /// The file or block device that it is written to.
    pub to: PathBuf,
    /// Whether `to` is a block device.
    pub device: bool,
    /// Its format.
    pub format: Format,
    /// The number of images in its chain, from which it is read.
    pub steps: usize,
    /// The volume that it becomes, if there is a pool.
    pub volume: Option<Volume>,
}

/// A volume of a storage pool, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The name of the pool.
    pub pool: String,
    /// The name of the volume.
    pub name: String,
}

impl RestorePlan {
    /// Returns the folders that the files are written to.
    fn folders(&self) -> BTreeSet<&Path> {
        let files = self.disks.iter().filter(|disk| !disk.device);
        let nvram = self.define.as_ref().and_then(DefinePlan::nvram_content);
        let paths = files
            .map(|disk| disk.to.as_path())
            .chain(nvram.map(|(path, _)| path));
        paths.filter_map(Path::parent).collect()
    }
}

/// The result of a restore.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The plan that was carried out.
    pub plan: RestorePlan,
    /// What was written, one entry per disk.
    pub written: Vec<Written>,
}

/// Plans a restore, and changes nothing. `host` is needed to define the domain; otherwise it only
/// shows which domains use the target.
pub fn plan(
    domain: &str,
    repo: &dyn Repository,
    host: Option<&dyn Host>,
    options: &Options,
) -> Result<RestorePlan> {
    let mut findings = Vec::new();
    let plan = plan_noting(domain, repo, host, options, &mut findings);
    plan.map_err(|error| Error { findings, ..error })
}

/// Plans a restore. If that fails, `findings` keeps what was found before.
fn plan_noting(
    domain: &str,
    repo: &dyn Repository,
    host: Option<&dyn Host>,
    options: &Options,
    findings: &mut Vec<Finding>,
) -> Result<RestorePlan> {
    let failed = |cause: Cause| Error::of(domain, cause);
    let repository = repo.domain(domain).map_err(|error| failed(error.into()))?;
    let history = repository.history().map_err(|error| failed(error.into()))?;
    findings.extend(history.findings.iter().cloned());
    let chosen = choose(domain, &history, &options.at);
    let point = &chosen.map_err(|error| mention_sets(error, repo))?.point;
    let Some(kept) = history.get(&point.id) else {
        let (id, fault) = (point.id.clone(), "it is missing".to_owned());
        return Err(failed(Cause::NotWhole { id, fault }));
    };
    let stored = StoredPoint {
        repository: repository.as_ref(),
        kept,
    };
    let targets = chosen_targets(domain, point, &options.disks)?;
    let place = Place::of(domain, options, targets.len(), host)?;
    let mut disks = Vec::new();
    for target in &targets {
        disks.push(plan_disk(
            domain,
            &history,
            point,
            target,
            (&place, host),
            options.format,
        )?);
    }
    if let Some(pool) = place.pool() {
        let needed = space_for(stored, &history, &disks)?;
        volume::check_room(domain, pool, needed)?;
    }
    monitor::add_new(findings, cautions(&history, &point.id, &targets));
    findings.extend(check_targets(domain, &disks, &place, host)?);
    let encrypted = Encrypted::of(stored, &targets);
    if options.define.is_some()
        && let Some((disk, what)) = encrypted.refusal()
    {
        return Err(Error::of_disk(domain, disk, Cause::Usage(what)));
    }
    findings.extend(encrypted.findings());
    let define = match &options.define {
        None if options.disks.is_empty() => {
            findings.extend(not_in_point(point));
            None
        }
        None => None,
        Some(wanted) => {
            let host =
                host.ok_or_else(|| failed(Cause::Usage("defining a domain needs a hypervisor".to_owned())))?;
            if !options.disks.is_empty() {
                let what =
                    "--define needs all disks of the restore point, so it cannot be combined with --disk";
                return Err(failed(Cause::Usage(what.to_owned())));
            }
            let dir = match &place {
                Place::Dir { dir, .. } => dir.clone(),
                Place::Pool { .. } => host.nvram_folder().ok_or_else(|| {
                    let what = "--define with --pool needs libvirt's folder for UEFI variables, which is not known here: \
                                use --to";
                    failed(Cause::Usage(what.to_owned()))
                })?,
                Place::File(_) | Place::Device(_) => {
                    let what = "--define needs a folder for the domain's files: name one with --to";
                    return Err(failed(Cause::Usage(what.to_owned())));
                }
            };
            let place = (dir.as_path(), Purpose::Restored);
            Some(define::plan(host, stored, &disks, place, wanted, findings)?)
        }
    };
    Ok(RestorePlan {
        point: point.clone(),
        new_dir: place.new_dir(),
        pool: place.pool().cloned(),
        disks,
        define,
        findings: std::mem::take(findings),
        history: Arc::new(history),
    })
}

/// How many bytes the disks take at least: devices their whole size, files their data.
fn space_for(stored: StoredPoint<'_>, history: &History, disks: &[RestoredDisk]) -> Result<u64> {
    let (domain, id) = (stored.point().domain.as_str(), &stored.point().id);
    let mut needed = 0;
    for disk in disks {
        needed += match disk.device {
            true => disk.size,
            false => {
                let failed = |cause: Cause| Error::of_disk(domain, &disk.target, cause);
                let opened = stored
                    .repository
                    .open_disk(history, id, &disk.target, &Stop::default());
                let opened = opened.map_err(|error| failed(error.into()))?;
                let data = opened.verified_data_clusters();
                let data = data.map_err(|error| failed(error.into()))?;
                data.count().saturating_mul(CLUSTER)
            }
        };
    }
    Ok(needed)
}

/// Names the location of backups of virtnbdbackup, if no restore point exists.
fn mention_sets(error: Error, repo: &dyn Repository) -> Error {
    let has_none = matches!(error.cause, Cause::NoRestorePoints);
    let Some(location) = repo.sets_location().filter(|_| has_none) else {
        return error;
    };
    let what = format!(
        "there are no restore points of this domain in the repository; the domain's folder holds backups of virtnbdbackup: \
         to read them, use --repository {location}"
    );
    Error {
        cause: Cause::NoSuchRestorePoint(what),
        ..error
    }
}

/// What the restored disks may lack, and whether damage of them could be found: the findings of the
/// restore points from which they are read, oldest first.
fn cautions(history: &History, id: &str, targets: &[String]) -> Vec<Finding> {
    let lines = targets
        .iter()
        .filter_map(|target| history.chains.lineage(id, target).ok());
    let ids: BTreeSet<&str> = lines.flatten().map(|step| step.point.id.as_str()).collect();
    let points = history.kept.iter().map(|kept| &kept.manifest.point);
    let needed = points.filter(|point| ids.contains(point.id.as_str()));
    let found = needed.flat_map(history::cautions);
    found.cloned().collect()
}

/// The environment of a restore.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The repository of the restore point.
    pub repo: &'a dyn Repository,
    /// The store that the restored files are written to.
    pub store: &'a dyn Store,
    /// The hypervisor: defines the domain, and shows which domains use a target.
    pub host: Option<&'a dyn Host>,
    /// The receiver of events.
    pub monitor: &'a dyn Monitor,
    /// The request to stop (Ctrl-C, SIGTERM or SIGHUP).
    pub stop: &'a Stop,
}

/// Carries out a plan. The files get their final names after all of them are complete and synced.
/// If the restore fails before that, they are removed.
pub fn restore(domain: &str, plan: RestorePlan, means: &Means) -> Result<Outcome> {
    monitor::noting(means.monitor, |monitor| {
        carry_out(domain, plan, &Means { monitor, ..*means })
    })
}

fn carry_out(domain: &str, mut plan: RestorePlan, means: &Means) -> Result<Outcome> {
    let Means {
        store, host, monitor, ..
    } = *means;
    let repository = means
        .repo
        .domain(domain)
        .map_err(|error| Error::of(domain, error))?;
    let new_dir = match &plan.new_dir {
        Some(dir) => Some(NewDir::create(domain, store, dir.clone())?),
        None => None,
    };
    let mut healed: Vec<Finding> = plan
        .folders()
        .into_iter()
        .flat_map(|dir| sweep(store, dir))
        .collect();
    plan.findings.append(&mut healed);
    // Before the disks: whatever stands in its way is noticed early.
    let state = plan.define.as_ref().and_then(|define| define.tpm.clone());
    let state = state.map(|state| NewState::write(store, &state, &mut plan.findings));
    let mut state = state.transpose().map_err(|cause| Error::of(domain, cause))?;
    for finding in &plan.findings {
        monitor.event(Event::Found { domain, finding });
    }
    // Refreshed last, when nothing unfinished is left in it.
    let pool = plan.pool.clone();
    let pool = pool.as_ref().zip(host);
    let pool = pool.map(|(pool, host)| UsedPool::new(host, pool));
    let mut all_written = Vec::new();
    let mut files = Vec::new();
    let mut devices = Vec::new();
    for disk in &plan.disks {
        if let (true, Some(volume), Some(host)) = (disk.device, &disk.volume, host) {
            let made = NewDevice::create(host, disk, volume);
            devices.push(made.map_err(|cause| Error::of_disk(domain, &disk.target, cause))?);
        }
        let origin = Origin {
            repository: repository.as_ref(),
            history: &plan.history,
            id: &plan.point.id,
        };
        let (written, file) = restore_disk(domain, disk, &origin, means)?;
        all_written.push(written);
        files.extend(file);
    }
    let failed = |cause: Cause| Error::of(domain, cause);
    if let Some((path, content)) = plan.define.as_ref().and_then(DefinePlan::nvram_content) {
        files.push(Unfinished::write(store, path, content).map_err(failed)?);
    }
    if let Some(state) = &mut state {
        state.place().map_err(failed)?;
    }
    place_all(store, files, new_dir.as_ref().map(NewDir::path)).map_err(failed)?;
    devices.into_iter().for_each(NewDevice::keep);
    if let Some(finding) = pool.and_then(UsedPool::refresh) {
        let found = &finding;
        monitor.event(Event::Found {
            domain,
            finding: found,
        });
        plan.findings.push(finding);
    }
    if let (Some(define), Some(host)) = (&plan.define, host) {
        let what = format!("defining domain '{}'", shown(&define.name));
        monitor.event(Event::Step { domain, what: &what });
        let defined = host.define(&define.xml);
        // A failed call may have defined the domain, which then needs the state of its TPM.
        let is_undone =
            defined.is_err() && matches!(host.is_defined(&define.name, &define.uuid), Ok((_, false)));
        if let Some(state) = state.filter(|_| !is_undone) {
            state.keep();
        }
        defined.map_err(|error| Error::of(domain, error))?;
    }
    Ok(Outcome {
        plan,
        written: all_written,
    })
}

/// Refuses targets that are in use. A folder that does not exist yet contains nothing that could be
/// in use.
fn check_targets(
    domain: &str,
    disks: &[RestoredDisk],
    place: &Place,
    host: Option<&dyn Host>,
) -> Result<Vec<Finding>> {
    // A volume is new.
    let is_old_device = |disk: &RestoredDisk| disk.device && disk.volume.is_none();
    let is_device = disks.iter().any(is_old_device);
    if !is_device && (place.new_dir().is_some() || host.is_none()) {
        return Ok(Vec::new());
    }
    let named = in_use::domain_files(host).map_err(|cause| Error::of(domain, cause))?;
    let mut findings = Vec::new();
    for disk in disks {
        let found = match is_old_device(disk) {
            true => in_use::check_device(disk, &named),
            false => in_use::check_file(&disk.to, &named),
        };
        let found = found.map_err(|cause| Error::of_disk(domain, &disk.target, cause))?;
        monitor::add_new(&mut findings, found);
    }
    Ok(findings)
}

/// Reports the disks that a partial restore point lacks and that should have been saved.
fn not_in_point(point: &RestorePoint) -> impl Iterator<Item = Finding> {
    left_out::unasked(&point.left_out).map(|left| {
        let (disk, reason) = (shown(&left.disk), shown(&left.reason));
        let what = format!("the restore point is partial: disk {disk} was left out ({reason})");
        Finding::of_disk("disk-not-restored", &left.disk, what)
    })
}

fn plan_disk(
    domain: &str,
    history: &History,
    point: &RestorePoint,
    target: &str,
    (place, host): (&Place, Option<&dyn Host>),
    format: Option<Format>,
) -> Result<RestoredDisk> {
    let not_whole = |fault: String| {
        let id = point.id.clone();
        Error::of_disk(domain, target, Cause::NotWhole { id, fault })
    };
    let lineage = history.chains.lineage(&point.id, target);
    let steps = lineage.map_err(not_whole)?.len();
    let size = point.disk(target).map_or(0, |disk| disk.virtual_size);
    let wants_qcow2 = format == Some(Format::Qcow2);
    let DiskPlace {
        to,
        device,
        format,
        volume,
    } = place.of_disk(target, format);
    if device && wants_qcow2 {
        let what = format!(
            "vmsnap writes only raw images to block devices such as {}: use --format raw, or name a file with --to",
            to.display()
        );
        return Err(Error::of_disk(domain, target, Cause::Usage(what)));
    }
    if let (Some(volume), Some(host)) = (&volume, host) {
        volume::refuse_existing(domain, target, volume, &to, host)?;
    }
    if (!device || volume.is_some()) && to.symlink_metadata().is_ok() {
        return Err(Error::of_disk(domain, target, Cause::Exists(to)));
    }
    Ok(RestoredDisk {
        target: target.to_owned(),
        size,
        to,
        device,
        format,
        steps,
        volume,
    })
}

fn io_cause(operation: &'static str, path: &Path, source: io::Error) -> Cause {
    Cause::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}
