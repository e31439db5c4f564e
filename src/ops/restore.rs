//! Brings disks back from a restore point, and on request the domain.
//!
//! Every block of a disk is read once, from the newest image of its chain that holds it. The digest of every image is verified on the way, so
//! what was damaged is not given back as if it were sound. Nothing that exists is ever overwritten, except a block device that was named.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::OFlags;

use super::copy::{self, Progress};
use super::define::{self, DefinePlan};
use super::error::Cause;
use super::lineage::{self, PlannedImage};
use super::monitor::{Event, Monitor};
use super::{Error, Result};
use crate::host::Host;
use crate::image::chain::ChainSource;
use crate::image::qcow2::{Qcow2Options, Qcow2Writer};
use crate::image::raw::{RawTarget, RawWriter};
use crate::model::block::{BlockError, BlockSink, BlockSource, Written};
use crate::model::chain::{KeptPoint, LostPoint};
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;
use crate::model::stop::Stop;
use crate::model::text::shown;
use crate::repo::{DiskStore, History, Repository, Store, layout};

/// How a restored disk is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// A qcow2 file without a backing file.
    #[default]
    Qcow2,
    /// The bytes themselves, with holes where they are zero.
    Raw,
}

impl Format {
    /// QEMU's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
        }
    }
}

/// What a restore is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which restore point: an id, a checkpoint's name, a time (RFC 3339: the newest one not after it), or `latest`.
    pub at: String,
    /// A folder; for a single disk also a file or a block device.
    pub to: PathBuf,
    /// The disks wanted, by target; empty for all.
    pub disks: Vec<String>,
    /// How the disks are laid out; `None` goes by the ending of a file's name, and is qcow2 otherwise.
    pub format: Option<Format>,
    /// Whether to define the domain too, and under which name.
    pub define: Option<DefineOptions>,
}

/// How the domain is to be defined.
#[derive(Clone, Debug, Default)]
pub struct DefineOptions {
    /// Its new name; `None` keeps the old one.
    pub name: Option<String>,
}

/// What a restore will do.
#[derive(Clone, Debug)]
pub struct RestorePlan {
    /// The restore point.
    pub point: RestorePoint,
    /// A folder that has to be created first.
    pub new_dir: Option<PathBuf>,
    /// The disks.
    pub disks: Vec<PlannedDisk>,
    /// The domain to be defined.
    pub define: Option<DefinePlan>,
    /// What is worth knowing.
    pub findings: Vec<Finding>,
}

/// One disk of a restore.
#[derive(Clone, Debug)]
pub struct PlannedDisk {
    /// The disk's target.
    pub target: String,
    /// Its size, in bytes.
    pub size: u64,
    /// Where it goes.
    pub to: PathBuf,
    /// Whether that is a block device.
    pub device: bool,
    /// How it is laid out.
    pub format: Format,
    /// The images it is read from, newest first.
    pub images: Vec<PlannedImage>,
}

/// A restore that is done.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The plan that was carried out.
    pub plan: RestorePlan,
    /// What was written, disk by disk.
    pub written: Vec<Written>,
}

/// Decides what a restore would do. Reads only; `host` is needed to define the domain.
pub fn plan(
    domain: &str,
    repo: &Repository,
    host: Option<&dyn Host>,
    options: &Options,
) -> Result<RestorePlan> {
    let failed = |cause: Cause| Error::of(domain, cause);
    let history = repo
        .domain(domain)
        .and_then(|repository| repository.history())
        .map_err(|error| failed(error.into()))?;
    let kept = choose(domain, &history, &options.at)?;
    let point = &kept.point;
    let targets = chosen_targets(domain, point, &options.disks)?;
    let place = Place::of(domain, options, targets.len())?;
    let mut disks = Vec::new();
    for target in &targets {
        disks.push(plan_disk(
            domain,
            &history,
            point,
            target,
            &place,
            options.format,
        )?);
    }
    let mut findings = history.findings.clone();
    let define = match &options.define {
        None => None,
        Some(wanted) => {
            let host =
                host.ok_or_else(|| failed(Cause::Usage("defining a domain needs a hypervisor".to_owned())))?;
            if !options.disks.is_empty() {
                let what = "--define needs all disks of the restore point, so it does not go with --disk";
                return Err(failed(Cause::Usage(what.to_owned())));
            }
            let Place::Dir { dir, .. } = &place else {
                let what = "--define needs a folder for the domain's files: name one with --to";
                return Err(failed(Cause::Usage(what.to_owned())));
            };
            Some(define::plan(
                host,
                &history,
                point,
                &disks,
                dir,
                wanted,
                &mut findings,
            )?)
        }
    };
    Ok(RestorePlan {
        point: point.clone(),
        new_dir: place.new_dir(),
        disks,
        define,
        findings,
    })
}

/// Carries a plan out. The files get their names when all of them are whole; a failure before leaves none of them.
pub fn restore(
    domain: &str,
    plan: RestorePlan,
    host: Option<&dyn Host>,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<Outcome> {
    let _new_dir = plan
        .new_dir
        .clone()
        .map(|dir| NewDir::create(domain, dir))
        .transpose()?;
    for finding in &plan.findings {
        monitor.event(Event::Found { domain, finding });
    }
    let mut written = Vec::new();
    let mut unfinished = Vec::new();
    for disk in &plan.disks {
        let file = Unfinished::of(disk);
        written.push(restore_disk(domain, disk, &file, monitor, stop)?);
        unfinished.push(file);
    }
    for (disk, file) in plan.disks.iter().zip(unfinished) {
        file.keep(&disk.to)
            .map_err(|cause| Error::of_disk(domain, &disk.target, cause))?;
    }
    if let (Some(define), Some(host)) = (&plan.define, host) {
        let what = format!("defining domain '{}'", shown(&define.name));
        monitor.event(Event::Step { domain, what: &what });
        define::carry_out(domain, define, host)?;
    }
    Ok(Outcome { plan, written })
}

/// The restore point that the user means.
pub(super) fn choose<'a>(domain: &str, history: &'a History, at: &str) -> Result<&'a KeptPoint> {
    let chains = &history.chains;
    let none = |what: String| Error::of(domain, Cause::NoSuchRestorePoint(what));
    if chains.points().is_empty() && chains.lost_after("").next().is_none() {
        return Err(none(
            "there are no restore points of this domain in the repository".to_owned(),
        ));
    }
    let newest_first = || chains.points().iter().rev();
    if at == "latest" {
        let latest = chains.latest();
        let mut lost = chains.lost_after(latest.map_or("", |kept| &kept.point.id));
        return match lost.next() {
            Some(lost) => Err(cannot_be_read(domain, lost)),
            None => latest.ok_or_else(|| none("there are no restore points".to_owned())),
        };
    }
    if let Some(kept) = chains.get(at) {
        return Ok(kept);
    }
    if let Some(lost) = chains.lost(at) {
        return Err(cannot_be_read(domain, lost));
    }
    let has_checkpoint = |kept: &&KeptPoint| {
        kept.point
            .checkpoint
            .as_ref()
            .is_some_and(|found| found.name == at)
    };
    if let Some(kept) = newest_first().find(has_checkpoint) {
        return Ok(kept);
    }
    if let Ok(time) = at.parse::<Timestamp>() {
        let nearest = newest_first()
            .filter(|kept| kept.point.time <= time)
            .max_by_key(|kept| kept.point.time)
            .ok_or_else(|| none(format!("there is no restore point from {at} or before")))?;
        let until = layout::id_of(time);
        let mut lost = chains.lost_after(&nearest.point.id);
        return match lost.find(|lost| lost.id <= until) {
            Some(lost) => Err(cannot_be_read(domain, lost)),
            None => Ok(nearest),
        };
    }
    Err(none(format!(
        "'{}' is neither the id of a restore point, nor a checkpoint of one, nor a time like 2026-11-01T02:00:00Z",
        shown(at)
    )))
}

/// Not even an older one is given instead: who asks for a moment gets that one or hears why not.
fn cannot_be_read(domain: &str, lost: &LostPoint) -> Error {
    let (id, fault) = (lost.id.clone(), lost.what.clone());
    Error::of(domain, Cause::NotWhole { id, fault })
}

fn chosen_targets(domain: &str, point: &RestorePoint, wanted: &[String]) -> Result<Vec<String>> {
    if wanted.is_empty() {
        return Ok(point.disks.iter().map(|disk| disk.target.clone()).collect());
    }
    let mut targets = Vec::new();
    for target in wanted {
        if point.disk(target).is_none() {
            let there: Vec<&str> = point.disks.iter().map(|disk| disk.target.as_str()).collect();
            let what = format!(
                "restore point {} holds no disk {target}, only {}",
                point.id,
                there.join(", ")
            );
            return Err(Error::of(domain, Cause::NoSuchRestorePoint(what)));
        }
        if !targets.contains(target) {
            targets.push(target.clone());
        }
    }
    Ok(targets)
}

fn plan_disk(
    domain: &str,
    history: &History,
    point: &RestorePoint,
    target: &str,
    place: &Place,
    format: Option<Format>,
) -> Result<PlannedDisk> {
    let not_whole = |fault: String| {
        let id = point.id.clone();
        Error::of_disk(domain, target, Cause::NotWhole { id, fault })
    };
    let images = lineage::images(history, &point.id, target).map_err(not_whole)?;
    let size = point.disk(target).map_or(0, |disk| disk.virtual_size);
    let (to, device, format) = place.of_disk(target, format);
    if !device && to.symlink_metadata().is_ok() {
        return Err(Error::of_disk(domain, target, Cause::Exists(to)));
    }
    Ok(PlannedDisk {
        target: target.to_owned(),
        size,
        to,
        device,
        format,
        images,
    })
}

/// What `--to` means.
enum Place {
    Dir { dir: PathBuf, new: bool },
    File(PathBuf),
    Device(PathBuf),
}

impl Place {
    fn of(domain: &str, options: &Options, disks: usize) -> Result<Place> {
        let to = std::path::absolute(&options.to)
            .map_err(|source| Error::of(domain, io_cause("use", &options.to, source)))?;
        let single = |place: Place| {
            if disks == 1 {
                return Ok(place);
            }
            let what = format!("{} can take one disk only; choose it with --disk", to.display());
            Err(Error::of(domain, Cause::Usage(what)))
        };
        match to.metadata() {
            Ok(found) if found.is_dir() => Ok(Place::Dir { dir: to, new: false }),
            Ok(found) if found.file_type().is_block_device() => single(Place::Device(to.clone())),
            Ok(_) => Err(Error::of(domain, Cause::Exists(to))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let looks_like_a_file = to
                    .extension()
                    .is_some_and(|ending| ["qcow2", "raw", "img"].iter().any(|known| ending == *known));
                if looks_like_a_file {
                    single(Place::File(to.clone()))
                } else {
                    Ok(Place::Dir { dir: to, new: true })
                }
            }
            Err(source) => Err(Error::of(domain, io_cause("use", &to, source))),
        }
    }

    fn new_dir(&self) -> Option<PathBuf> {
        match self {
            Place::Dir { dir, new: true } => Some(dir.clone()),
            _ => None,
        }
    }

    fn of_disk(&self, target: &str, format: Option<Format>) -> (PathBuf, bool, Format) {
        match self {
            Place::Dir { dir, .. } => {
                let format = format.unwrap_or_default();
                (dir.join(format!("{target}.{}", format.word())), false, format)
            }
            Place::File(path) => {
                let is_qcow2 = path.extension().is_some_and(|ending| ending == "qcow2");
                let by_name = if is_qcow2 { Format::Qcow2 } else { Format::Raw };
                (path.clone(), false, format.unwrap_or(by_name))
            }
            Place::Device(path) => (path.clone(), true, Format::Raw),
        }
    }
}

fn restore_disk(
    domain: &str,
    disk: &PlannedDisk,
    unfinished: &Unfinished,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<Written> {
    let target = disk.target.as_str();
    let own_stop = stop.child();
    let failed = |cause: Cause| match (stop.signal(), &cause) {
        (Some(signal), Cause::Copy(error)) if copy::is_stop(error) => {
            Error::of(domain, Cause::Stopped(signal))
        }
        _ => Error::of_disk(domain, target, cause),
    };
    monitor.event(Event::DiskBegins {
        domain,
        disk: target,
        level: None,
        reason: "",
        size: disk.size,
    });
    if disk.device {
        // What is on the device is lost with the first write: so be sure of the images first.
        let mut rehearsal = open_chain(disk, &own_stop).map_err(&failed)?;
        while rehearsal
            .next_block()
            .map_err(|error| failed(error.into()))?
            .is_some()
        {}
    }
    let mut source = open_chain(disk, &own_stop).map_err(&failed)?;
    let mut sink = unfinished.sink(disk, &own_stop).map_err(&failed)?;
    let mut progress = |at: Progress| {
        monitor.event(Event::DiskAt {
            domain,
            disk: target,
            position: at.position,
            copied: at.copied,
        });
    };
    let written = copy::copy(&mut source, sink.as_mut(), &own_stop, &mut progress)
        .map_err(|error| failed(error.into()))?;
    monitor.event(Event::DiskEnds {
        domain,
        disk: target,
        copied: written.data_bytes,
    });
    Ok(written)
}

fn open_chain(disk: &PlannedDisk, stop: &Stop) -> std::result::Result<ChainSource, Cause> {
    let open = |image: &PlannedImage| {
        image
            .open()
            .map_err(|source| io_cause("open", &image.path, source))
    };
    let images = disk
        .images
        .iter()
        .map(open)
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let source = ChainSource::open(images, copy::pool(), stop.clone()).map_err(BlockError::from)?;
    Ok(source)
}

/// A file being restored: under another name until it is whole, removed when it never gets there.
struct Unfinished {
    path: Option<PathBuf>,
}

impl Unfinished {
    fn of(disk: &PlannedDisk) -> Unfinished {
        let path = (!disk.device).then(|| {
            let name = disk.to.file_name().unwrap_or_default().to_string_lossy();
            disk.to
                .with_file_name(format!(".{name}.{}{}", std::process::id(), layout::PARTIAL))
        });
        Unfinished { path }
    }

    fn sink(&self, disk: &PlannedDisk, stop: &Stop) -> std::result::Result<Box<dyn BlockSink>, Cause> {
        let path = self.path.as_deref().unwrap_or(&disk.to);
        let create = |source| io_cause("create", path, source);
        if self.path.is_none() {
            let device = OpenOptions::new()
                .read(true)
                .write(true)
                // A device that is mounted, or otherwise in use, is refused by the kernel.
                .custom_flags(OFlags::EXCL.bits() as i32)
                .open(path)
                .map_err(|source| io_cause("use", path, source))?;
            return raw_sink(device, path, disk.size, RawTarget::Device, stop);
        }
        match disk.format {
            Format::Qcow2 => {
                let file = DiskStore.create_image(path).map_err(create)?;
                let options = Qcow2Options {
                    path: path.to_owned(),
                    size: disk.size,
                    backing: None,
                    detect_zeroes: true,
                    stop: stop.clone(),
                };
                Ok(Box::new(
                    Qcow2Writer::new(file, options).map_err(BlockError::from)?,
                ))
            }
            Format::Raw => {
                let file: File = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(create)?;
                raw_sink(file, path, disk.size, RawTarget::File, stop)
            }
        }
    }

    fn keep(mut self, to: &Path) -> std::result::Result<(), Cause> {
        let Some(path) = self.path.as_ref() else {
            return Ok(());
        };
        DiskStore.rename(path, to).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Cause::Exists(to.to_owned()),
            _ => io_cause("create", to, source),
        })?;
        self.path = None;
        let dir = to.parent().unwrap_or(Path::new("/"));
        DiskStore
            .sync_dir(dir)
            .map_err(|source| io_cause("sync", dir, source))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A folder made for this restore; it goes again if nothing comes to lie in it.
struct NewDir(PathBuf);

impl NewDir {
    fn create(domain: &str, dir: PathBuf) -> Result<NewDir> {
        std::fs::create_dir(&dir)
            .map_err(|source| Error::of(domain, io_cause("create the folder", &dir, source)))?;
        Ok(NewDir(dir))
    }
}

impl Drop for NewDir {
    fn drop(&mut self) {
        // Fails, as it should, as soon as something is in the folder.
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn raw_sink(
    file: File,
    path: &Path,
    size: u64,
    target: RawTarget,
    stop: &Stop,
) -> std::result::Result<Box<dyn BlockSink>, Cause> {
    let sink = RawWriter::new(file, path, size, target, stop.clone()).map_err(BlockError::from)?;
    Ok(Box::new(sink))
}

fn io_cause(operation: &'static str, path: &Path, source: io::Error) -> Cause {
    Cause::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}
