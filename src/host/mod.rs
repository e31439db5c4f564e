//! The hypervisor: the trait that the verbs use, and the errors of its implementations.
//!
//! `libvirt` implements the trait for QEMU; `crate::testkit` has a simulated hypervisor.

pub mod background;
pub mod chain;
pub mod fuse;
pub mod guestfish;
pub mod no_connection;
pub mod qemu;
pub mod trial;
pub mod usage;
pub mod xml;

mod pool;
mod refusal;
mod rewrite;

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
use crate::model::guest::GuestFacts;
use crate::model::restore_point::{Consistency, FileId};
use crate::model::stop::Stop;
use crate::model::tpm_state::TpmState;

pub use no_connection::NoConnection;
pub use pool::{NewVolume, Pool, VolumeKind};
pub use refusal::Refusal;
pub use rewrite::{RewriteJob, RewriteRequest};
pub use usage::{DomainFile, DomainFiles};

/// The result of functions that fail with a [`HostError`].
pub type Result<T> = std::result::Result<T, HostError>;

/// A hypervisor with its domains.
pub trait Host: Send + Sync {
    /// Returns the features and versions of this hypervisor.
    fn capabilities(&self) -> Result<Capabilities>;

    /// Lists the names of all domains in the order of `virsh list --all`.
    ///
    /// Active domains come first, by id; the others follow by name.
    fn domain_names(&self) -> Result<Vec<String>>;

    /// Returns the URI of the connection, as completed by the hypervisor.
    fn uri(&self) -> &str;

    /// Returns the present state of the domain with this name.
    fn domain(&self, name: &str) -> Result<Domain>;

    /// Returns size and allocation of a disk, in bytes.
    fn disk_sizes(&self, domain: &Domain, target: &str) -> Result<DiskSizes>;

    /// Identifies the file that a disk's path names.
    ///
    /// `None` if the path is on another machine, cannot be examined or is not a regular file. Also
    /// `None` if the file system does not record when the file was created.
    fn file_id(&self, path: &Path) -> Option<FileId>;

    /// Lists the domain's checkpoints, oldest first, with the state of each bitmap.
    ///
    /// Works for running and for shut-off domains.
    fn checkpoints(&self, domain: &Domain) -> Result<Vec<Checkpoint>>;

    /// Lists the bitmaps in the image of a disk, whether or not a checkpoint owns them.
    ///
    /// For a shut-off domain these are all bitmaps of the disk. For an active domain they are the
    /// bitmaps that existed when it was started and have not been removed since; newer bitmaps are
    /// only in QEMU's memory. The list is empty if the image is missing or its format has no
    /// bitmaps. It is also empty if the domain is active and the image is on a server.
    ///
    /// # Errors
    /// [`HostError::NotHere`] if the image is on another machine.
    fn bitmap_names(&self, domain: &Domain, target: &str) -> Result<Vec<String>>;

    /// Removes a checkpoint with its bitmaps from a running or shut-off domain.
    ///
    /// A missing bitmap is not an error. If an image of a shut-off domain cannot be opened now, its
    /// bitmaps stay, which is not an error either. A missing checkpoint is an error, unless bitmaps
    /// of that name were removed from a shut-off domain.
    fn delete_checkpoint(&self, domain: &Domain, name: &str) -> Result<()>;

    /// Thaws the guest's file systems, in case a run that froze them was killed.
    ///
    /// A guest that is not frozen or has no agent is not an error.
    fn thaw(&self, domain: &Domain) -> Result<()>;

    /// Asks the guest agent of a running domain for its host name, system and file systems.
    ///
    /// `None` if no agent is connected, or if it does not answer in time. The limit counts in whole
    /// seconds, at least 1. Guests can report anything.
    fn guest_facts(&self, domain: &Domain, limit: Duration) -> Result<Option<GuestFacts>>;

    /// Removes only the record of a checkpoint from a running or shut-off domain.
    ///
    /// The bitmaps stay and continue to record.
    fn forget_checkpoint(&self, domain: &Domain, name: &str) -> Result<()>;

    /// Registers a checkpoint whose record the hypervisor has lost, with its name, time and mark.
    ///
    /// The new record covers those of the checkpoint's disks that have a sound bitmap of that name.
    /// If no disk has such a bitmap, returns false and changes nothing. Also returns false if the
    /// domain is shut off on another machine, where its bitmaps cannot be examined.
    fn register_checkpoint(&self, domain: &Domain, checkpoint: &Checkpoint) -> Result<bool>;

    /// Removes the bitmaps of that name from every disk of a running or shut-off domain.
    ///
    /// If a checkpoint owns them, its record stays. If an image of a shut-off domain cannot be
    /// opened now, its bitmaps stay too. Returns the targets of the disks from which a bitmap was
    /// removed; an empty list is not an error.
    fn remove_bitmaps(&self, domain: &Domain, name: &str) -> Result<Vec<String>>;

    /// Lists the names of the domain's internal snapshots, which are stored in its images.
    fn internal_snapshots(&self, domain: &Domain) -> Result<Vec<String>>;

    /// Returns the job that the domain is busy with now, if there is one.
    fn active_job(&self, domain: &Domain) -> Result<Option<ActiveJob>>;

    /// Ends the domain's active job, whichever program started it.
    ///
    /// It is not an error if there is no job. Resumes the guest if a disk error has paused it, for
    /// example because the scratch space of the job was full.
    fn abort_job(&self, domain: &Domain) -> Result<()>;

    /// Chooses the paths of the sockets, scratch files and folders of a job.
    ///
    /// Creates nothing, because the journal entry for the job has to be written first. The wishes
    /// apply only to an active domain. `run` makes the names unique; it has 1 to 36 characters,
    /// each an ASCII letter, a digit, `-` or `_`.
    fn places(&self, domain: &Domain, targets: &[String], wishes: &PlaceWishes, run: &str) -> Result<Places>;

    /// Removes what a run left at these places: sockets, scratch files and folders.
    ///
    /// First ends `qemu-nbd` processes that still serve one of the sockets. Files and folders
    /// without vmsnap's names stay. A missing file or folder is not an error.
    fn clear_places(&self, places: &Places) -> Result<()>;

    /// Freezes the guest's file systems, starts the job together with its checkpoint, and thaws.
    ///
    /// The guest is frozen only if the request asks for it, the guest runs and its agent is
    /// connected. The checkpoint and the job of an active domain begin in one step. Creates the
    /// folders among the places.
    ///
    /// # Errors
    /// After an error the steps so far have been undone, as far as possible. The caller has to
    /// check what is left, and libvirt may still have started the job. Nothing but the folders is
    /// left after [`HostError::BitmapExists`], [`HostError::NoSuchDomain`], [`HostError::NotHere`],
    /// [`HostError::Stopped`] (of an active domain), a missing `qemu-img`, and refusals other than
    /// [`Refusal::StartedMeanwhile`] and [`Refusal::NoBitmapInFormat`]; [`Host::clear_places`]
    /// removes the folders.
    fn begin_backup(&self, domain: &Domain, request: &BackupRequest) -> Result<Box<dyn BackupJob>>;

    /// Whether the memory of a shut-off domain is saved (managed save), so that its next start
    /// continues with the present content of its disks.
    fn has_saved_memory(&self, domain: &Domain) -> Result<bool>;

    /// Opens disks of a shut-off domain for reading and writing, through the domain's own images.
    ///
    /// Until the job has ended, the domain cannot start. Sound bitmaps in the images record what is
    /// written. Creates the folders among the places.
    ///
    /// # Errors
    /// The domain is active, an image cannot be opened or is in use, or a bitmap cannot be used.
    /// Nothing was written then. What is left of the job ends with [`Host::clear_places`].
    fn begin_rewrite(&self, domain: &Domain, request: &RewriteRequest) -> Result<Box<dyn RewriteJob>>;

    /// Reads the file of the domain's UEFI variables; `None` if there is no such file, or not yet.
    fn nvram(&self, domain: &Domain) -> Result<Option<Vec<u8>>>;

    /// Reads the state of the domain's emulated TPM; `None` if there is no state, or not yet.
    ///
    /// Works for running and for shut-off domains.
    fn tpm_state(&self, domain: &Domain) -> Result<Option<TpmState>>;

    /// Returns the folder that holds the state of each domain's TPM in a subfolder named by the
    /// domain's UUID; `None` if it is unknown or on another machine.
    fn tpm_folder(&self) -> Option<PathBuf>;

    /// Returns whether a domain with that name exists, and whether a domain with that UUID exists.
    fn is_defined(&self, name: &str, uuid: &str) -> Result<(bool, bool)>;

    /// Lists the files and block devices on this machine that the definitions of all domains name.
    ///
    /// Includes active and inactive domains. A domain whose XML cannot be read becomes a finding.
    /// Volumes whose path libvirt does not know now are left out.
    fn domain_files(&self) -> Result<DomainFiles>;

    /// Describes a storage pool of this machine in which volumes can be created.
    ///
    /// # Errors
    /// There is no such pool, it is not active, or vmsnap cannot write to its kind of volumes.
    fn pool(&self, name: &str) -> Result<Pool>;

    /// Whether a pool has a volume of this name.
    fn has_volume(&self, pool: &str, name: &str) -> Result<bool>;

    /// Creates a volume, and returns its path. An existing volume of that name is an error.
    fn create_volume(&self, volume: &NewVolume) -> Result<PathBuf>;

    /// Deletes a volume that [`Host::create_volume`] has created. Waits a few seconds if something
    /// still has it open.
    fn delete_volume(&self, pool: &str, name: &str) -> Result<()>;

    /// Lets the hypervisor look at the volumes of a pool again.
    fn refresh_pool(&self, pool: &str) -> Result<()>;

    /// Returns the folder in which the hypervisor keeps the UEFI variables of its domains; `None`
    /// if it is unknown or on another machine.
    fn nvram_folder(&self) -> Option<PathBuf>;

    /// Defines a new domain.
    ///
    /// An existing domain with the same name or UUID is an error.
    fn define(&self, xml: &str) -> Result<()>;

    /// Returns what starts domains from a restore point.
    fn trials(&self) -> &dyn trial::Trials;
}

/// The features and versions of a hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether checkpoints and incremental backups work: libvirt ≥ 7.6 with QEMU ≥ 6.1 or of
    /// unknown version. `Err` holds the reason why they do not.
    pub incremental: std::result::Result<(), String>,
    /// The versions of libvirt and QEMU in words (`libvirt 9.0.0, QEMU 7.2.22`).
    pub versions: String,
}

/// Size and allocation of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSizes {
    /// The size that the guest sees.
    pub virtual_size: u64,
    /// The space that the disk takes on the host.
    pub actual_size: u64,
}

/// A job that a domain is busy with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveJob {
    /// libvirt's name for the operation, such as `backup`.
    pub operation: String,
    /// The socket of a backup job, by which a run recognizes its own job.
    pub socket: Option<PathBuf>,
}

/// The places that the user has chosen; `None` leaves the choice to the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaceWishes {
    /// Path of the NBD socket.
    pub socket: Option<PathBuf>,
    /// Folder for scratch files.
    pub scratch_dir: Option<PathBuf>,
}

/// The paths of the sockets and scratch files of one job.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Places {
    /// The NBD sockets: one, or one per disk for a shut-off domain.
    pub sockets: Vec<PathBuf>,
    /// A scratch file per disk, by target; empty for a shut-off domain.
    pub scratch: Vec<(String, PathBuf)>,
    /// Folders that are created for this job alone.
    pub own_dirs: Vec<PathBuf>,
}

/// A request for a backup job.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// The checkpoint to create, if any.
    pub checkpoint: Option<CheckpointRequest>,
    /// The disks to read. The job leaves out all other disks of the domain.
    pub disks: Vec<DiskRequest>,
    /// The paths of socket and scratch files.
    pub places: Places,
    /// How long the guest agent may take to freeze the file systems; `None` does not freeze them.
    pub freeze: Option<Duration>,
    /// The current time, in seconds since 1970: the creation time of a shut-off domain's new
    /// checkpoint. libvirt sets the time of other checkpoints itself.
    pub now: i64,
    /// Ends the work when the user asks to stop (Ctrl-C, SIGTERM or SIGHUP).
    pub stop: Stop,
}

/// A checkpoint to be created with a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRequest {
    /// Its name.
    pub name: String,
    /// Its description, which identifies the run that created it.
    pub mark: String,
}

/// One disk of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// The disk's target.
    pub target: String,
    /// The checkpoint since which changes are wanted; `None` for the whole disk.
    pub since: Option<String>,
    /// Whether the new checkpoint covers this disk.
    pub checkpointed: bool,
}

/// Options for reading a disk of a job.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Whether to read only the changes; the disk must have been requested with `since`.
    pub changes_only: bool,
    /// Reads only these clusters, changed or not; `changes_only` is then ignored.
    pub only: Option<Arc<ClusterSet>>,
    /// The offset, in bytes, from which everything counts as changed: the disk has grown from
    /// there.
    pub all_from: Option<u64>,
    /// The content to which the changes will be applied. The source uses it to detect zeroes that
    /// the bitmap did not record. If the source finds some, it fails with
    /// [`crate::model::block::BlockErrorKind::Distrusted`].
    pub beneath: Option<Arc<dyn Beneath>>,
    /// The memory to read into. Each request takes one buffer.
    pub pool: BufferPool,
    /// How long the server may take to answer.
    pub deadline: Duration,
    /// Ends the work when a stop is requested: by a signal, or because another disk failed.
    pub stop: Stop,
}

/// A backup job, which offers the disks as they were at one moment.
///
/// Dropping an unfinished job aborts it: the job is ended and its checkpoint removed.
pub trait BackupJob: Send + Sync {
    /// Returns the checkpoint that was created with the job.
    fn checkpoint(&self) -> Option<&NewCheckpoint>;

    /// Returns the state of the guest's file systems in this backup.
    fn consistency(&self) -> Consistency;

    /// Returns the findings from the start of the job, such as an agent that did not answer.
    fn findings(&self) -> Vec<Finding>;

    /// Returns the size of a disk of the job in bytes, as its export reports it.
    fn disk_size(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<u64>;

    /// Returns the map of data and changes of a disk of the job, without reading the disk.
    ///
    /// The map of a disk that was requested in full has no changes.
    fn map(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<DiskMap>;

    /// Opens a disk of the job for reading.
    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>>;

    /// Checks whether the job is still usable. Called about once a second while disks are read.
    fn health(&self) -> Result<JobHealth>;

    /// Ends the job and keeps the checkpoint.
    ///
    /// Returns findings, for example about a file that could not be removed. The backup is valid in
    /// spite of them.
    fn finish(self: Box<Self>) -> Result<Vec<Finding>>;

    /// Ends the job, removes its checkpoint, and returns a finding for each step that failed.
    ///
    /// Dropping the job does the same without a report.
    fn abort(self: Box<Self>) -> Vec<Finding>;
}

/// A checkpoint that a job has created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCheckpoint {
    /// Name and creation time, which identify it.
    pub id: CheckpointId,
    /// Its XML as the hypervisor returned it.
    pub xml: String,
}

/// Whether a job is still usable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobHealth {
    /// The job is usable.
    Good,
    /// A disk error has paused the guest, for example because the scratch space is full. The text
    /// names the disks, as far as they are known.
    GuestPaused(String),
    /// The job has ended early, for example because the domain was stopped or another program
    /// aborted the job. The text is the reason.
    Gone(String),
}

/// An error of the hypervisor or of the programs and files on its side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The connection could not be made.
    #[error("cannot connect to {uri}: {message}")]
    Connect {
        /// The URI, or a description of the default hypervisor.
        uri: String,
        /// libvirt's message.
        message: String,
        /// The likely cause, as far as this machine shows it.
        why: NoConnection,
    },
    /// No domain has this name, or the domain that had it is gone.
    #[error("there is no domain named '{name}'")]
    NoSuchDomain {
        /// The requested name.
        name: String,
    },
    /// A libvirt call failed.
    #[error("libvirt could not {operation}: {message}")]
    Libvirt {
        /// The operation, as a verb phrase.
        operation: String,
        /// libvirt's error number (`virErrorNumber`).
        code: i32,
        /// libvirt's message.
        message: String,
    },
    /// A call to libvirt did not return in time. libvirt may still carry it out.
    #[error("libvirt did not {operation} in time")]
    NoAnswer {
        /// The operation, as a verb phrase.
        operation: String,
    },
    /// A bitmap that no checkpoint owns already has the name of the new checkpoint.
    #[error("a bitmap named '{name}' already exists, without a checkpoint")]
    BitmapExists {
        /// The name.
        name: String,
    },
    /// The domain has no checkpoint with this name.
    #[error("there is no checkpoint named '{name}'")]
    NoSuchCheckpoint {
        /// The name.
        name: String,
    },
    /// The request cannot be carried out with this domain or hypervisor.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The requested files are on another machine.
    #[error("the domain is on another machine, so {what} cannot be reached: run vmsnap on that machine")]
    NotHere {
        /// What cannot be reached, for example `its images`.
        what: String,
    },
    /// This program was built without libvirt.
    #[error(
        "this vmsnap was built without libvirt; the commands list, verify, restore (without --define), mount, files, prune, pin and unpin \
         do not need libvirt"
    )]
    NoLibvirt,
    /// XML from the hypervisor or from a file is invalid, or lacks something that is needed.
    #[error("cannot read the {what}: {message}")]
    Xml {
        /// The kind of document, for example `domain XML`.
        what: String,
        /// The reason.
        message: String,
    },
    /// A file or folder could not be used.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// The operation, as a verb phrase that the path completes.
        operation: String,
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A program such as `qemu-img` failed, or could not be used.
    #[error("{program} could not {operation}: {message}")]
    Program {
        /// The program's name.
        program: String,
        /// The operation, as a verb phrase.
        operation: String,
        /// The reason, usually the program's own message.
        message: String,
    },
    /// The virtual machine of libguestfs, its appliance, could not be built or started.
    #[error("guestfish could not start its virtual machine: {message}")]
    Appliance {
        /// What guestfish and the programs that it starts said.
        message: String,
    },
    /// An image of a shut-off domain is locked by another process.
    #[error("{image} is in use: {users}")]
    ImageInUse {
        /// The image, as messages name it.
        image: String,
        /// A description of its users: `process 4711 (qemu-system-x86, guest web) has it open`.
        users: String,
    },
    /// A program is not installed.
    #[error("the program {program} is not installed")]
    MissingProgram {
        /// Its name.
        program: String,
        /// The Debian and Fedora packages, for the hint.
        package: String,
    },
    /// The export of a disk could not be opened or read.
    #[error("cannot use the export of disk {disk}")]
    Export {
        /// The disk's target.
        disk: String,
        /// The cause.
        #[source]
        source: crate::nbd::Error,
    },
    /// An error that concerns one disk.
    #[error("disk {disk}")]
    OfDisk {
        /// The disk's target.
        disk: String,
        /// The error.
        #[source]
        source: Box<HostError>,
    },
    /// The user asked to stop.
    #[error("stopped on request")]
    Stopped,
}

impl HostError {
    /// Returns a function that adds this disk's target to an error.
    pub fn of_disk(disk: &str) -> impl FnOnce(HostError) -> HostError {
        let disk = disk.to_owned();
        move |error| HostError::OfDisk {
            disk,
            source: Box::new(error),
        }
    }

    /// Creates an I/O error with its operation and path.
    pub fn io(operation: impl fmt::Display, path: &Path, source: io::Error) -> Self {
        HostError::Io {
            operation: operation.to_string(),
            path: path.to_owned(),
            source,
        }
    }
}
