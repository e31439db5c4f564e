//! The hypervisor: the trait that the verbs see, and the errors of everything behind it.
//!
//! `libvirt` is the real one, `crate::testkit` has a simulated one.

pub mod chain;
pub mod no_connection;
pub mod qemu;
pub mod usage;
pub mod xml;

mod refusal;

#[cfg(feature = "libvirt")]
mod export;
#[cfg(feature = "libvirt")]
mod ffi;
#[cfg(feature = "libvirt")]
pub mod libvirt;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::model::block::{Beneath, BlockSource};
use crate::model::buffer::BufferPool;
use crate::model::checkpoint::{Checkpoint, CheckpointId};
use crate::model::clusters::{ClusterSet, DiskMap};
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::restore_point::{Consistency, FileId};
use crate::model::stop::Stop;

pub use no_connection::NoConnection;
pub use refusal::Refusal;
pub use usage::{DomainFile, DomainFiles};

/// Result of everything in this room.
pub type Result<T> = std::result::Result<T, HostError>;

/// A hypervisor with its domains.
pub trait Host: Send + Sync {
    /// What this hypervisor can do.
    fn capabilities(&self) -> Result<Capabilities>;

    /// The names of all domains in the order of `virsh list --all`: active ones by id, then the others by name.
    fn domain_names(&self) -> Result<Vec<String>>;

    /// The URI of the connection, as the hypervisor completes it.
    fn uri(&self) -> &str;

    /// The domain of that name, as it is now.
    fn domain(&self, name: &str) -> Result<Domain>;

    /// Size and allocation of a disk, in bytes.
    fn disk_sizes(&self, domain: &Domain, target: &str) -> Result<DiskSizes>;

    /// Which file a path of a disk names; `None` where that cannot be known: it is on another machine, no file, or its file system does not
    /// tell when it was created.
    fn file_id(&self, path: &Path) -> Option<FileId>;

    /// The domain's checkpoints, oldest first, with the state of each bitmap (running or shut off).
    fn checkpoints(&self, domain: &Domain) -> Result<Vec<Checkpoint>>;

    /// Names of the bitmaps that lie in the image of a disk, whether or not a checkpoint owns them.
    ///
    /// For a shut-off domain these are all bitmaps of the disk. For an active one they are those that were there when it was started and have
    /// not been removed since; newer ones are in QEMU's memory only. On another machine none can be listed ([`HostError::NotHere`]).
    fn bitmap_names(&self, domain: &Domain, target: &str) -> Result<Vec<String>>;

    /// Removes a checkpoint with its bitmaps, running or shut off. Bitmaps that are lost already are no error, nor are those in images of a shut-off
    /// domain that cannot be opened now, which stay;
    /// a checkpoint that is not there is one.
    fn delete_checkpoint(&self, domain: &Domain, name: &str) -> Result<()>;

    /// Thaws the guest's file systems, in case a run that froze them was killed. A guest that is not frozen, or has no agent, is no error.
    fn thaw(&self, domain: &Domain) -> Result<()>;

    /// Removes the record of a checkpoint and nothing else, running or shut off. Its bitmaps stay, and go on recording.
    fn forget_checkpoint(&self, domain: &Domain, name: &str) -> Result<()>;

    /// Makes a checkpoint known to the hypervisor that has lost its record, with its name, time and mark, on those of its disks whose bitmaps of
    /// that name are there and sound. False, and nothing done, where none is.
    fn register_checkpoint(&self, domain: &Domain, checkpoint: &Checkpoint) -> Result<bool>;

    /// Removes the bitmaps of that name from every disk, running or shut off, and keeps the record of the checkpoint that owns them, if
    /// there is one. Returns the targets of the disks that had one; none is no error.
    fn remove_bitmaps(&self, domain: &Domain, name: &str) -> Result<Vec<String>>;

    /// The names of the domain's internal snapshots: those that lie within its images.
    fn internal_snapshots(&self, domain: &Domain) -> Result<Vec<String>>;

    /// The job that holds the domain now.
    fn active_job(&self, domain: &Domain) -> Result<Option<ActiveJob>>;

    /// Ends the domain's active backup job, whoever began it, and lets the guest go on if that job's full scratch space had stopped it.
    fn abort_job(&self, domain: &Domain) -> Result<()>;

    /// Chooses where socket and scratch files of a job go, such that QEMU may create them there. Creates nothing: what a job begins is noted
    /// down before.
    /// `run` is a word of at most 36 safe characters that makes the names unique.
    fn places(&self, domain: &Domain, targets: &[String], wishes: &PlaceWishes, run: &str) -> Result<Places>;

    /// Removes what a killed run left at these places: the sockets, scratch files and our own folders. What is not there is no error.
    fn clear_places(&self, places: &Places) -> Result<()>;

    /// Freezes the guest's file systems if that is wished and possible, makes the checkpoint and begins the job in one step, thaws.
    ///
    /// When this fails there is neither job nor checkpoint nor a frozen file system left, unless libvirt's answer itself was lost
    /// ([`HostError::Libvirt`]: then see what is there). The folders among the places, which it makes, may stay: [`Host::clear_places`]
    /// removes them.
    fn begin_backup(&self, domain: &Domain, request: &BackupRequest) -> Result<Box<dyn BackupJob>>;

    /// The bytes of the domain's UEFI variables, if it has any.
    fn nvram(&self, domain: &Domain) -> Result<Option<Vec<u8>>>;

    /// Whether a domain of that name and whether one of that UUID is defined.
    fn is_defined(&self, name: &str, uuid: &str) -> Result<(bool, bool)>;

    /// The files and block devices on this machine that the definitions of all domains name, active and inactive ones. What cannot be
    /// found out is a finding.
    fn domain_files(&self) -> Result<DomainFiles>;

    /// Defines a domain. One that has the same name or UUID is an error, never redefined.
    fn define(&self, xml: &str) -> Result<()>;
}

/// What a hypervisor can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether checkpoints and incremental backups work: libvirt ≥ 7.6 with QEMU ≥ 6.1. `Err` says why not.
    pub incremental: std::result::Result<(), String>,
    /// Versions, for the manifest (`libvirt 9.0.0, QEMU 7.2.22`).
    pub versions: String,
}

/// Size and allocation of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSizes {
    /// What the guest sees.
    pub virtual_size: u64,
    /// What it takes on the host.
    pub actual_size: u64,
}

/// A job that holds a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveJob {
    /// libvirt's word for what it does (`backup`, `migration` …).
    pub operation: String,
    /// The socket of a backup job: by it a run knows its own again.
    pub socket: Option<PathBuf>,
}

/// What the user said about places; `None` leaves the choice to the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaceWishes {
    /// Path of the NBD socket.
    pub socket: Option<PathBuf>,
    /// Folder for scratch files.
    pub scratch_dir: Option<PathBuf>,
}

/// Where socket and scratch files of one job go.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Places {
    /// The NBD sockets: one, or one per disk for a shut-off domain.
    pub sockets: Vec<PathBuf>,
    /// A scratch file per disk, by target; empty for a shut-off domain.
    pub scratch: Vec<(String, PathBuf)>,
    /// Folders made for this job alone.
    pub own_dirs: Vec<PathBuf>,
}

/// What a job is to do.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// The checkpoint to make; `None` makes none.
    pub checkpoint: Option<CheckpointRequest>,
    /// The disks to read. Disks of the domain that are not here are left out of the job.
    pub disks: Vec<DiskRequest>,
    /// Where socket and scratch files go.
    pub places: Places,
    /// How long the guest agent may take to freeze the file systems; `None` does not ask it.
    pub freeze: Option<Duration>,
    /// The time now, in seconds since 1970: the date of a shut-off domain's new checkpoint. libvirt dates the others itself.
    pub now: i64,
    /// Asked for by the user's Ctrl-C.
    pub stop: Stop,
}

/// The checkpoint that a job is to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRequest {
    /// Its name.
    pub name: String,
    /// Its description, by which the run that made it is known again.
    pub mark: String,
}

/// One disk of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// The disk's target.
    pub target: String,
    /// The checkpoint since which changes are wanted; `None` for the whole disk.
    pub since: Option<String>,
    /// Whether the new checkpoint is to cover this disk.
    pub checkpointed: bool,
}

/// How a disk of a job is to be read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Whether to read changes only (the disk was requested with `since`), or everything.
    pub changes_only: bool,
    /// Only these clusters, whatever is known of them; the other wishes then say nothing.
    pub only: Option<Arc<ClusterSet>>,
    /// From this offset on everything counts as changed, in bytes: the part by which the disk has grown.
    pub all_from: Option<u64>,
    /// What the changes will be put upon, so that zeroes that no bitmap knows of are noticed: the source then ends with
    /// [`crate::model::block::BlockErrorKind::Distrusted`].
    pub beneath: Option<Arc<dyn Beneath>>,
    /// The memory to read into. One buffer is one request.
    pub pool: BufferPool,
    /// How long the other side may keep silent.
    pub deadline: Duration,
    /// Asked for by the user's Ctrl-C.
    pub stop: Stop,
}

/// A backup job: the disks frozen at one moment. Dropped unfinished it is aborted: the job ended and its checkpoint removed.
pub trait BackupJob: Send + Sync {
    /// The checkpoint that was made, to be recorded.
    fn checkpoint(&self) -> Option<&NewCheckpoint>;

    /// In which state the guest's file systems are.
    fn consistency(&self) -> Consistency;

    /// What was worth telling at the beginning (an agent that did not answer).
    fn findings(&self) -> Vec<Finding>;

    /// Size of a disk of the job in bytes, as its export tells.
    fn disk_size(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<u64>;

    /// What is known of a disk of the job without reading it. A disk that was requested in full has no changes.
    fn map(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<DiskMap>;

    /// Opens a disk of the job for reading.
    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>>;

    /// Whether the job is still good. Called about once a second while disks are being read.
    fn health(&self) -> Result<JobHealth>;

    /// Ends the job and keeps the checkpoint. What could not be cleared away is told, and costs nothing.
    fn finish(self: Box<Self>) -> Result<Vec<Finding>>;

    /// Ends the job and removes its checkpoint, and tells what could not be undone. Dropping does the same, silently.
    fn abort(self: Box<Self>) -> Vec<Finding>;
}

/// A checkpoint that a job has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCheckpoint {
    /// Name and time, to know it again.
    pub id: CheckpointId,
    /// Its XML as the hypervisor gave it.
    pub xml: String,
}

/// Whether a job is still good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobHealth {
    /// All is well.
    Good,
    /// The scratch space is full and the guest stands still until the job is aborted; the text tells which disk.
    ScratchFull(String),
    /// The job is gone (domain stopped, job aborted by somebody else).
    Gone(String),
}

/// What can go wrong at the hypervisor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The connection could not be made.
    #[error("cannot connect to {uri}: {message}")]
    Connect {
        /// The URI, or words for the default one.
        uri: String,
        /// libvirt's words.
        message: String,
        /// Why, as far as this machine shows.
        why: NoConnection,
    },
    /// No domain has that name.
    #[error("there is no domain named '{name}'")]
    NoSuchDomain {
        /// The name asked for.
        name: String,
    },
    /// A libvirt call failed.
    #[error("libvirt could not {operation}: {message}")]
    Libvirt {
        /// What was being done, as a verb phrase.
        operation: String,
        /// libvirt's error number (`virErrorNumber`).
        code: i32,
        /// libvirt's words.
        message: String,
    },
    /// A call to libvirt did not come back in time. It may still be carried out.
    #[error("libvirt does not answer: it was to {operation}")]
    NoAnswer {
        /// What was being done, as a verb phrase.
        operation: String,
    },
    /// The name of the new checkpoint is taken by a bitmap that no checkpoint owns.
    #[error("a bitmap named '{name}' without a checkpoint is in the way")]
    BitmapExists {
        /// The name.
        name: String,
    },
    /// A checkpoint of that name is not there.
    #[error("there is no checkpoint named '{name}'")]
    NoSuchCheckpoint {
        /// The name.
        name: String,
    },
    /// What was asked cannot be done with this domain or hypervisor.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What is asked for lies on another machine.
    #[error("the domain runs on another machine, where {what} cannot be reached: run there")]
    NotHere {
        /// What, in words (`its images`).
        what: String,
    },
    /// This program was built without libvirt.
    #[error("this vmsnap was built without libvirt: it lists and restores disks, and nothing else")]
    NoLibvirt,
    /// XML from the hypervisor or a file that cannot be understood.
    #[error("cannot read the {what}: {message}")]
    Xml {
        /// Which document.
        what: String,
        /// Why not.
        message: String,
    },
    /// A file or folder could not be used.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        operation: String,
        /// To which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A QEMU program failed.
    #[error("{program} could not {operation}: {message}")]
    Program {
        /// The program's name.
        program: String,
        /// What was being done, as a verb phrase.
        operation: String,
        /// Its words.
        message: String,
    },
    /// An image of a shut-off domain is locked by another process.
    #[error("{image} is in use: {users}")]
    ImageInUse {
        /// The image, as it is shown.
        image: String,
        /// Who uses it, in words: `process 4711 (qemu-system-x86, guest web) has it open`.
        users: String,
    },
    /// A program is not installed.
    #[error("the program {program} is not installed")]
    MissingProgram {
        /// Its name.
        program: String,
        /// Debian and Fedora package, for the hint.
        package: String,
    },
    /// The export of a disk could not be opened or read.
    #[error("cannot open the export of disk {disk}")]
    Export {
        /// The disk's target.
        disk: String,
        /// Why not.
        #[source]
        source: crate::nbd::Error,
    },
    /// Something that concerns one disk.
    #[error("disk {disk}")]
    OfDisk {
        /// The disk's target.
        disk: String,
        /// What.
        #[source]
        source: Box<HostError>,
    },
    /// The user asked to stop.
    #[error("stopped on request")]
    Stopped,
}

impl HostError {
    /// Says of an error which disk it concerns.
    pub fn of_disk(disk: &str) -> impl FnOnce(HostError) -> HostError {
        let disk = disk.to_owned();
        move |error| HostError::OfDisk {
            disk,
            source: Box::new(error),
        }
    }

    /// An I/O error with its path.
    pub fn io(operation: impl fmt::Display, path: &Path, source: io::Error) -> Self {
        HostError::Io {
            operation: operation.to_string(),
            path: path.to_owned(),
            source,
        }
    }
}
