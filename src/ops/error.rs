//! Errors of the verbs: the cause, the class that decides the exit code, and a hint for the user.

use std::fmt;
use std::io;

use crate::host::HostError;
use crate::host::fuse::MountError;
use crate::host::usage::{Usage, User};
use crate::model::block::{BlockError, BlockErrorKind};
use crate::model::files_fault::FilesFault;
use crate::model::finding::Finding;
use crate::model::in_place::InPlaceRefusal;
use crate::model::stop::StopReason;
use crate::model::text::{bytes, shell_word, shown};
use crate::nbd::server::ListenError;
use crate::repo::error::{is_no_verdict, lacks_files};
use crate::repo::{PackErrorClass, RepoError};

/// The result of every verb.
pub type Result<T> = std::result::Result<T, Error>;

/// The kind of a failure; `cli` derives the exit code from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The requested domain, restore point or disk does not exist, or there is nothing to compare
    /// with.
    NotFound,
    /// The repository's folder cannot be used.
    Repository,
    /// Another run writes to the domain's folder.
    Locked,
    /// Stored data is damaged or missing.
    Damaged,
    /// A program or library is missing.
    Missing,
    /// The work was stopped, for this reason.
    Stopped(StopReason),
    /// The options are invalid, contradict each other, or do not fit what exists.
    Usage,
    /// The requested grouping differs from that of the domain's backups.
    GroupBy,
    /// Anything else.
    Failed,
}

/// A failure of a verb.
#[derive(Debug)]
pub struct Error {
    /// The domain that the failure concerns; empty if it concerns none.
    pub domain: String,
    /// The disk that the failure concerns, if it concerns one disk.
    pub disk: Option<String>,
    /// The cause of the failure.
    pub cause: Cause,
    /// The findings of the verb before it failed; empty if the verb does not collect them.
    pub findings: Vec<Finding>,
}

/// The cause of a failure.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The hypervisor's side failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The repository failed.
    #[error(transparent)]
    Repo(RepoError),
    /// Reading or writing blocks failed.
    #[error(transparent)]
    Copy(#[from] BlockError),
    /// A server cannot listen for clients.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The domain has no disk that can be backed up.
    #[error("there is nothing to back up: no disk of the domain is eligible")]
    NothingToBackUp,
    /// The requested grouping differs from that of the domain's backups.
    #[error("the domain's backups are grouped by {existing} (newest period: {folder}), not by {wanted}")]
    OtherGrouping {
        /// The grouping of the existing backups.
        existing: &'static str,
        /// The requested grouping.
        wanted: &'static str,
        /// The folder of the newest period.
        folder: String,
    },
    /// A job that this run did not start is active on the domain.
    #[error("another job ({operation}) is active on the domain")]
    Busy {
        /// libvirt's name for the job.
        operation: String,
    },
    /// The backup job ended while it was in use.
    #[error("the backup job is lost: {0}")]
    JobLost(String),
    /// QEMU has paused the guest because of a disk error during the job. The text names the disks,
    /// as far as they are known.
    #[error("a disk error paused the guest ({0}); vmsnap gives up the job, so that the guest can continue")]
    GuestPaused(String),
    /// The requested restore point or disk does not exist, or there is nothing to compare with. The
    /// text names it.
    #[error("{0}")]
    NoSuchRestorePoint(String),
    /// The restore point cannot be restored completely.
    #[error("restore point {id} cannot be restored completely: {fault}")]
    NotWhole {
        /// Its id.
        id: String,
        /// The first fault that was found.
        fault: String,
    },
    /// The restore point was written by a newer program.
    #[error("restore point {id}: {what}")]
    WrittenByANewerVmsnap {
        /// Its id.
        id: String,
        /// A sentence that names its manifest.
        what: String,
    },
    /// The repository contains no restore point of the domain, not even an unreadable one.
    #[error("there are no restore points of this domain in the repository")]
    NoRestorePoints,
    /// The name to scrub is not of the form that vmsnap uses.
    #[error(
        "'{}' is not a vmsnap name (virtnbdbackup.N): vmsnap never touches checkpoints or bitmaps with other names",
        shown(name)
    )]
    NotOurs {
        /// The requested name.
        name: String,
    },
    /// Another repository may need the checkpoint or bitmap to scrub.
    #[error(
        "'{}' was not removed, because it may belong to a repository other than the given one",
        shown(name)
    )]
    OtherRepository {
        /// The requested name.
        name: String,
    },
    /// The checkpoint or bitmap to scrub does not exist.
    #[error("there is no {what} named '{}'", shown(name))]
    NotThere {
        /// `checkpoint`, `bitmap` or `checkpoint or bitmap`.
        what: &'static str,
        /// The requested name.
        name: String,
    },
    /// Something still exists although it was removed without an error.
    #[error("{0} still exists although its removal reported success")]
    StillThere(String),
    /// Several rounds of repairs were not enough; the text describes the last round.
    #[error("several rounds of repairs were not enough; the last repairs were: {0}")]
    NotCleanedUp(String),
    /// A scrub removed all that it could see, but could not examine every disk.
    #[error("some bitmaps may remain: {0}")]
    NotAllRemoved(String),
    /// The target already exists.
    #[error("{} already exists; it was not overwritten", .0.display())]
    Exists(std::path::PathBuf),
    /// The state of a TPM already exists in the place for the new one.
    #[error("the state of a TPM already exists in {}; it was not overwritten", .0.display())]
    TpmStateExists(std::path::PathBuf),
    /// The target of a restore is in use. Nothing has been written.
    #[error("nothing was written to {}, because it is in use: {}", path.display(), listed(users))]
    InUse {
        /// The block device or file.
        path: std::path::PathBuf,
        /// The users, at least one.
        users: Vec<Usage>,
    },
    /// A block device came into use while it was being written.
    #[error("{} came into use while vmsnap was writing to it: {}", path.display(), listed(users))]
    TakenMeanwhile {
        /// The block device.
        path: std::path::PathBuf,
        /// The users, at least one.
        users: Vec<Usage>,
    },
    /// A block device is too small for the disk. Nothing has been written.
    #[error(
        "{} is too small: the device has {device} bytes ({}), and the disk has {disk} bytes ({})",
        path.display(), bytes(*device), bytes(*disk)
    )]
    TooSmall {
        /// The block device.
        path: std::path::PathBuf,
        /// Its size in bytes.
        device: u64,
        /// The disk's size in bytes.
        disk: u64,
    },
    /// A volume with the requested name already exists in the storage pool. Nothing has been
    /// written.
    #[error(
        "the storage pool '{}' already has a volume '{}'{}, which was not overwritten", shown(pool), shown(name),
        if *is_unfinished { " of an unfinished restore" } else { "" }
    )]
    VolumeExists {
        /// The pool.
        pool: String,
        /// The volume.
        name: String,
        /// Whether the volume has the mark of a restore that did not end.
        is_unfinished: bool,
    },
    /// A storage pool has too little space. Nothing has been written.
    #[error(
        "the storage pool '{}' has {} free, and the disks need {}", shown(pool), bytes(*free), bytes(*needed)
    )]
    PoolFull {
        /// The pool.
        pool: String,
        /// Its free space in bytes.
        free: u64,
        /// What the disks need at least, in bytes.
        needed: u64,
    },
    /// The disks cannot be restored in place. Nothing has been written.
    #[error(transparent)]
    InPlaceRefusal(#[from] InPlaceRefusal),
    /// A restore in place has not ended. The text describes it.
    #[error("{0}")]
    InBetween(String),
    /// Reading back a disk that was restored in place returned other bytes than were written.
    #[error("the disk does not hold what was written to it")]
    NotAsWritten,
    /// An operation on a file failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// The operation, as a verb phrase that the path completes.
        operation: &'static str,
        /// The file, folder or device.
        path: std::path::PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file system could not be mounted or unmounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Files of the guest cannot be read.
    #[error(transparent)]
    Files(#[from] FilesFault),
    /// The options are invalid, contradict each other, or do not fit what exists. The text says
    /// how.
    #[error("{0}")]
    Usage(String),
    /// The work was stopped, for this reason.
    #[error("stopped on request")]
    Stopped(StopReason),
}

impl Cause {
    /// Whether this process, or the whole machine, may have run out of open files. The stored data
    /// may be sound nevertheless.
    pub(crate) fn lacks_files(&self) -> bool {
        lacks_files(self)
    }

    /// Whether reading failed for a reason other than damage, such as a missing permission.
    pub fn is_no_verdict(&self) -> bool {
        match self {
            Cause::Repo(error) => is_no_verdict(error),
            cause => is_no_verdict(cause),
        }
    }
}

impl From<RepoError> for Cause {
    fn from(error: RepoError) -> Cause {
        match error {
            RepoError::NotWhole { id, fault } => Cause::NotWhole { id, fault },
            RepoError::Open { location, source } => Cause::Io {
                operation: "open",
                path: location.into(),
                source,
            },
            RepoError::Blocks(error) => Cause::Copy(error),
            error => Cause::Repo(error),
        }
    }
}

impl Error {
    /// Creates an error that concerns a whole domain, or one disk if the cause is
    /// [`HostError::OfDisk`]. An empty `domain` stands for none.
    pub fn of(domain: &str, cause: impl Into<Cause>) -> Error {
        let (disk, cause) = match cause.into() {
            Cause::Host(HostError::OfDisk { disk, source }) => (Some(disk), Cause::Host(*source)),
            cause => (None, cause),
        };
        Error {
            domain: domain.to_owned(),
            disk,
            cause,
            findings: Vec::new(),
        }
    }

    /// Creates an error that concerns one disk.
    pub fn of_disk(domain: &str, disk: &str, cause: impl Into<Cause>) -> Error {
        Error {
            disk: Some(disk.to_owned()),
            ..Error::of(domain, cause)
        }
    }

    /// Returns the kind of the failure.
    pub fn class(&self) -> Class {
        match &self.cause {
            Cause::Host(HostError::NoSuchDomain { .. })
            | Cause::NoSuchRestorePoint(_)
            | Cause::NoRestorePoints => Class::NotFound,
            Cause::Host(HostError::MissingProgram { .. } | HostError::NoLibvirt) => Class::Missing,
            Cause::Repo(RepoError::Unusable { .. } | RepoError::ReadOnly { .. }) => Class::Repository,
            Cause::Repo(RepoError::Locked { .. }) => Class::Locked,
            Cause::Repo(RepoError::Pack(error)) => match error.class() {
                PackErrorClass::Unusable => Class::Repository,
                PackErrorClass::Damaged => Class::Damaged,
                PackErrorClass::Usage => Class::Usage,
                PackErrorClass::Stopped(reason) => Class::Stopped(reason),
                PackErrorClass::Failed => Class::Failed,
            },
            Cause::Copy(error) if error.kind == BlockErrorKind::Damaged => Class::Damaged,
            Cause::NotWhole { .. } | Cause::Files(FilesFault::Reads { is_damage: true, .. }) => {
                Class::Damaged
            }
            Cause::Files(FilesFault::NoSuchFile(_) | FilesFault::NoSuchDevice { .. }) => Class::NotFound,
            Cause::Files(FilesFault::Several { .. } | FilesFault::WrongKind(_)) => Class::Usage,
            Cause::Stopped(reason) => Class::Stopped(*reason),
            Cause::OtherGrouping { .. } => Class::GroupBy,
            Cause::Mount(error) if error.missing().is_some() => Class::Missing,
            Cause::Mount(error) if error.is_usage() => Class::Usage,
            Cause::Usage(_) | Cause::Listen(ListenError::InUse(_) | ListenError::NotASocket(_)) => {
                Class::Usage
            }
            _ => Class::Failed,
        }
    }

    /// Returns the program or device that is missing, if that is the cause.
    pub fn missing(&self) -> Option<&str> {
        match &self.cause {
            Cause::Mount(error) => error.missing(),
            Cause::Host(HostError::MissingProgram { program, .. }) => Some(program),
            _ => None,
        }
    }

    /// Whether the error only says that a stop was requested.
    pub fn is_stopped(&self) -> bool {
        match &self.cause {
            Cause::Stopped(_) | Cause::Host(HostError::Stopped) => true,
            Cause::Copy(error) => error.kind == BlockErrorKind::Stopped,
            Cause::Repo(RepoError::Pack(error)) => matches!(error.class(), PackErrorClass::Stopped(_)),
            _ => false,
        }
    }

    /// Whether the error is a timeout of a call that may still take effect.
    pub fn is_unanswered(&self) -> bool {
        matches!(self.cause, Cause::Host(HostError::NoAnswer { .. }))
    }

    /// Returns a hint on what the user can do, if there is one.
    pub fn hint(&self) -> Option<String> {
        let hint = match &self.cause {
            cause if cause.lacks_files() => LACKS_FILES,
            Cause::Host(HostError::MissingProgram { package, .. }) => {
                return Some(format!("install the package {package}"));
            }
            Cause::Host(HostError::ImageInUse { .. }) => {
                "libvirt reports the domain as shut off. If another program is using the image, wait until that program has finished, then try again. \
                 If the process is a QEMU of this domain, libvirtd has lost it, for example because libvirtd was killed: \
                 end the QEMU process with `kill` and its process id, so that it closes its images, and start the domain again"
            }
            Cause::Host(HostError::NoLibvirt) => {
                "install libvirt0 (Debian) or libvirt-libs (Fedora), and a vmsnap that was built with libvirt"
            }
            Cause::Host(HostError::NoSuchDomain { .. }) => "`virsh list --all` shows the domains",
            Cause::Host(HostError::Connect { why, .. }) => why.hint(),
            Cause::Host(HostError::NoAnswer { .. }) => {
                "the domain may have been stopped, or QEMU hangs; if the domain cannot be started now, restart libvirtd (or virtqemud)"
            }
            Cause::Host(HostError::Libvirt {
                operation, message, ..
            }) if operation == "start the domain" && message.contains("Permission denied") => {
                "QEMU's user needs access to the folder of --scratch-dir; if AppArmor or SELinux denies access to the socket there, \
                 add the rule that docs/reference.md shows (section Boot)"
            }
            Cause::Host(HostError::Libvirt {
                operation, message, ..
            }) if operation == "start the domain" && message.contains("'user'") => {
                "this QEMU lacks user-mode networking, which network cards without a link need: choose a network with --network"
            }
            Cause::Host(HostError::Appliance { .. }) => APPLIANCE,
            Cause::Files(fault) => return fault.hint().map(str::to_owned),
            Cause::Mount(error) => return error.hint(),
            Cause::Repo(RepoError::Pack(error)) => return error.hint().map(str::to_owned),
            Cause::Repo(RepoError::ReadOnly { .. }) => {
                "use `vmsnap copy --from` with this location to copy its restore points to a repository that vmsnap can write to"
            }
            Cause::Repo(RepoError::Locked { .. }) => {
                "wait for that run to end, or use --wait SECONDS; a killed run leaves no lock"
            }
            Cause::Repo(error) if error.is_no_space() => NO_SPACE,
            Cause::Repo(RepoError::Unusable { source, .. } | RepoError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "run as root, or as a user with read and write access"
            }
            Cause::Repo(RepoError::Unusable { source, .. })
                if source.kind() == io::ErrorKind::NotADirectory =>
            {
                "give the path of a folder"
            }
            Cause::Repo(RepoError::Unusable { .. }) => {
                "check the path; mount its file system, or create the folder for a first backup"
            }
            Cause::Copy(error) if error.kind == BlockErrorKind::NoSpace => NO_SPACE,
            Cause::Copy(error) if error.kind == BlockErrorKind::Damaged => {
                "restore points that need the damaged data cannot be restored; `vmsnap verify --all` shows which restore points are sound"
            }
            Cause::NotWhole { .. } => "`vmsnap list` shows which restore points are whole",
            Cause::OtherGrouping { existing, wanted, .. } => {
                return Some(format!(
                    "--group-by {existing} continues those backups; --force makes a backup grouped by {wanted}, \
                     which starts a second chain unless --full is never; \
                     --prune deletes only periods of the grouping given in the same command"
                ));
            }
            Cause::NothingToBackUp => {
                "a note gives the reason for each disk that was left out; --raw includes raw disks, --store-decrypted includes encrypted disks"
            }
            Cause::Listen(ListenError::InUse(_)) => {
                "another `vmsnap serve` may be running; choose another path with --socket"
            }
            Cause::Listen(ListenError::NotASocket(_) | ListenError::NotPrivate(_)) => {
                "choose another path with --socket"
            }
            Cause::Busy { .. } => {
                "wait for that job to end (`virsh domjobinfo` shows it), or end it with `virsh domjobabort`"
            }
            Cause::TpmStateExists(_) => {
                "the state belongs to a domain that is no longer defined: move the folder away, then restore again"
            }
            Cause::InUse { users, .. } => return Some(hint_for_users(users)),
            Cause::TakenMeanwhile { .. } => {
                "do not rely on the content of the device: stop whatever uses it, then restore again"
            }
            Cause::TooSmall { .. } => {
                "restore to a device that is at least as large as the disk, or to a file"
            }
            Cause::VolumeExists { pool, name, .. } => {
                return Some(format!(
                    "choose another name with --define --name, or another pool; `virsh vol-delete {} --pool {}` deletes the \
                     volume",
                    shell_word(name),
                    shell_word(pool)
                ));
            }
            Cause::PoolFull { .. } => "free space in the pool, or choose another one",
            Cause::InPlaceRefusal(refused) => return refused.hint().map(str::to_owned),
            Cause::InBetween(_) => {
                let domain = shell_word(&self.domain);
                return Some(format!(
                    "finish it with `vmsnap restore {domain} --in-place`, to this or another restore point (--at); if the disks \
                     were repaired in another way, remove the mark with `vmsnap restore {domain} --in-place --abandon`"
                ));
            }
            Cause::NotAsWritten => "check the storage of the disk's image, then run the restore again",
            Cause::GuestPaused(_) => {
                "if the scratch space was full, use --scratch-dir to choose a folder with more space; \
                 otherwise check the storage of the disk's image"
            }
            Cause::NoSuchRestorePoint(_) | Cause::NoRestorePoints => {
                "`vmsnap list` shows the restore points, with --json also their disks"
            }
            Cause::OtherRepository { .. } => {
                "to remove it anyway, run without --output and without VMSNAP_REPOSITORY"
            }
            Cause::NotThere { .. } => {
                "`vmsnap status` shows the domain's checkpoints and bitmaps, except bitmaps without a checkpoint that were created since the domain started"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// The largest number of users of a device that a message names.
const MOST_USERS: usize = 5;

fn listed(users: &[Usage]) -> String {
    let named: Vec<String> = users.iter().take(MOST_USERS).map(Usage::to_string).collect();
    let more = match users.len().saturating_sub(MOST_USERS) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    named.join("; ") + &more
}

fn hint_for_users(users: &[Usage]) -> String {
    let domain = users.iter().find_map(|usage| match &usage.user {
        User::Domain { name, is_active, .. } => Some((shown(name), *is_active)),
        _ => None,
    });
    let is_mounted = users.iter().any(|usage| matches!(usage.user, User::Mount { .. }));
    match domain {
        Some((_, true)) => {
            "restore to another place, or first detach the device or file from the domain".to_owned()
        }
        Some((name, false)) => format!(
            "restore to another place; if the domain is to be replaced, undefine it first \
             (`virsh undefine '{name}' --checkpoints-metadata --keep-nvram`)"
        ),
        None if is_mounted => "unmount the device first, or restore to another place".to_owned(),
        None => "first stop whatever uses the device, or restore to another place".to_owned(),
    }
}

const LACKS_FILES: &str = "raise the hard limit of open files (`ulimit -Hn`, LimitNOFILE= of \
    systemd), or fs.file-max if the whole system has reached its limit: each image of a chain needs \
    one open file";

const APPLIANCE: &str = "run `libguestfs-test-tool` as the same user to find the cause; libguestfs builds the machine from a kernel in /boot, \
    which this user must be able to read (Debian: package linux-image-amd64 or linux-image-cloud-amd64)";

const NO_SPACE: &str = "free space on that file system, then run again; earlier restore points are intact";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.domain.is_empty() {
            write!(f, "domain '{}'", shown(&self.domain))?;
            if let Some(disk) = &self.disk {
                write!(f, ", disk {disk}")?;
            }
            write!(f, ": ")?;
        }
        write!(f, "{}", self.cause)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.source()
    }
}
