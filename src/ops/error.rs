//! What can go wrong in a verb: the facts, the class from which the exit code follows, and a hint what to do.

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::host::HostError;
use crate::host::usage::{Usage, User};
use crate::model::block::{BlockError, BlockErrorKind};
use crate::model::finding::Finding;
use crate::model::text::{bytes, shown};
use crate::repo::RepoError;

/// Result of every verb.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure it is; `cli` makes an exit code of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The domain or restore point asked for is not there.
    NotFound,
    /// The repository's folder cannot be used.
    Repository,
    /// Another run writes to the domain's folder.
    Locked,
    /// What is stored is damaged.
    Damaged,
    /// A program or library is missing.
    Missing,
    /// The user asked to stop, by this signal.
    Stopped(i32),
    /// What was asked makes no sense.
    Usage,
    /// Another grouping than that of the domain's backups.
    GroupBy,
    /// Anything else.
    Failed,
}

/// A failure of a verb.
#[derive(Debug)]
pub struct Error {
    /// The domain it concerns.
    pub domain: String,
    /// The disk it concerns, if it is one.
    pub disk: Option<String>,
    /// What happened.
    pub cause: Cause,
    /// What the verb had found before it failed, each finding once.
    pub findings: Vec<Finding>,
}

/// What happened.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// At the hypervisor.
    #[error(transparent)]
    Host(#[from] HostError),
    /// In the repository.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// While copying.
    #[error(transparent)]
    Copy(#[from] BlockError),
    /// The domain has no disk that could be backed up.
    #[error("there is nothing to back up: no disk of the domain is eligible")]
    NothingToBackUp,
    /// The domain's backups are grouped otherwise than asked for.
    #[error(
        "its backups are grouped by {existing} (the newest lies in {folder}): a backup by {wanted} would begin a second chain beside them"
    )]
    OtherGrouping {
        /// The grouping that there is.
        existing: &'static str,
        /// The grouping that was asked for.
        wanted: &'static str,
        /// The folder of the newest period.
        folder: String,
    },
    /// Somebody else's job holds the domain.
    #[error("another job ({operation}) is active on the domain")]
    Busy {
        /// libvirt's word for it.
        operation: String,
    },
    /// The job ended under our hands.
    #[error("the backup job is lost: {0}")]
    JobLost(String),
    /// The scratch space is full.
    #[error(
        "the scratch space of {0} is full, so the guest stood still; the job was aborted and the guest goes on"
    )]
    ScratchFull(String),
    /// The restore point asked for is not there.
    #[error("{0}")]
    NoSuchRestorePoint(String),
    /// The restore point cannot be given back.
    #[error("restore point {id} cannot be given back whole: {fault}")]
    NotWhole {
        /// Its id.
        id: String,
        /// The first thing that is wrong with it.
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
    /// The repository holds no restore point of the domain, and nothing that could be one.
    #[error("there are no restore points of this domain in the repository")]
    NoRestorePoints,
    /// A name that a scrub must not touch.
    #[error(
        "'{}' is not a name that vmsnap gives (virtnbdbackup. and a number); checkpoints and bitmaps of others are never touched",
        shown(name)
    )]
    NotOurs {
        /// The name asked for.
        name: String,
    },
    /// What a scrub was to remove is not there.
    #[error("there is no {what} named '{}'", shown(name))]
    NotThere {
        /// `checkpoint`, `bitmap` or both.
        what: &'static str,
        /// The name asked for.
        name: String,
    },
    /// What was removed without an error is there all the same.
    #[error("{0} is still there after its removal")]
    StillThere(String),
    /// A scrub has removed what it could see, and some disk could not be seen.
    #[error("not all bitmaps are known to be removed: {0}")]
    NotAllRemoved(String),
    /// Something is where we would write.
    #[error("{} exists already, and nothing is ever overwritten", .0.display())]
    Exists(std::path::PathBuf),
    /// Somebody uses what a restore was to overwrite. Nothing has been written.
    #[error("{} is in use, and nothing was written to it: {}", path.display(), listed(users))]
    InUse {
        /// The block device or file.
        path: std::path::PathBuf,
        /// The users, at least one.
        users: Vec<Usage>,
    },
    /// Somebody began to use a device while it was being written.
    #[error("{} was taken into use while it was written: {}", path.display(), listed(users))]
    TakenMeanwhile {
        /// The block device.
        path: std::path::PathBuf,
        /// The users, at least one.
        users: Vec<Usage>,
    },
    /// A block device is too small for the disk. Nothing has been written.
    #[error(
        "{} is too small: it has {device} bytes ({}), and the disk has {disk} bytes ({})",
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
    /// A file outside the repository could not be used.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        operation: &'static str,
        /// To which path.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What was asked makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The user asked to stop.
    #[error("stopped on request")]
    Stopped(i32),
}

impl Cause {
    /// Whether this process, or the whole machine, may have no more files open. That says nothing about what is stored.
    pub fn lacks_files(&self) -> bool {
        self.errnos()
            .any(|errno| matches!(errno, Errno::MFILE | Errno::NFILE))
    }

    /// Whether something could not be read for a reason that says nothing of what is stored: a right, memory or open files that are missing, or a
    /// server of files that is away.
    pub fn is_no_verdict(&self) -> bool {
        let of_reader = [
            Errno::ACCESS,
            Errno::PERM,
            Errno::NOMEM,
            Errno::INTR,
            Errno::STALE,
            Errno::TIMEDOUT,
            Errno::HOSTDOWN,
            Errno::HOSTUNREACH,
            Errno::NOTCONN,
        ];
        self.lacks_files() || self.errnos().any(|errno| of_reader.contains(&errno))
    }

    /// What the kernel said, in this error and all beneath it.
    fn errnos(&self) -> impl Iterator<Item = Errno> {
        let first: &(dyn std::error::Error + 'static) = self;
        let errors = std::iter::successors(Some(first), |error| error.source());
        errors.filter_map(|error| error.downcast_ref().and_then(Errno::from_io_error))
    }
}

impl Error {
    /// A failure that concerns a whole domain, unless the cause says which disk.
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

    /// A failure that concerns one disk.
    pub fn of_disk(domain: &str, disk: &str, cause: impl Into<Cause>) -> Error {
        Error {
            disk: Some(disk.to_owned()),
            ..Error::of(domain, cause)
        }
    }

    /// What kind of failure it is.
    pub fn class(&self) -> Class {
        match &self.cause {
            Cause::Host(HostError::NoSuchDomain { .. })
            | Cause::NoSuchRestorePoint(_)
            | Cause::NoRestorePoints => Class::NotFound,
            Cause::Host(HostError::MissingProgram { .. } | HostError::NoLibvirt) => Class::Missing,
            Cause::Repo(RepoError::Unusable { .. }) => Class::Repository,
            Cause::Repo(RepoError::Locked { .. }) => Class::Locked,
            Cause::Copy(error) if error.kind == BlockErrorKind::Damaged => Class::Damaged,
            Cause::NotWhole { .. } => Class::Damaged,
            Cause::Stopped(signal) => Class::Stopped(*signal),
            Cause::OtherGrouping { .. } => Class::GroupBy,
            Cause::Usage(_) => Class::Usage,
            _ => Class::Failed,
        }
    }

    /// The program that is not installed, if that is what happened.
    pub fn missing(&self) -> Option<&str> {
        match &self.cause {
            Cause::Host(HostError::MissingProgram { program, .. }) => Some(program),
            _ => None,
        }
    }

    /// Whether it only says that the user asked to stop.
    pub fn is_stopped(&self) -> bool {
        match &self.cause {
            Cause::Stopped(_) | Cause::Host(HostError::Stopped) => true,
            Cause::Copy(error) => error.kind == BlockErrorKind::Stopped,
            _ => false,
        }
    }

    /// Whether another run holds the domain's lock.
    pub fn is_locked(&self) -> bool {
        matches!(self.cause, Cause::Repo(RepoError::Locked { .. }))
    }

    /// Whether a call was given up that may still be carried out.
    pub fn is_unanswered(&self) -> bool {
        matches!(self.cause, Cause::Host(HostError::NoAnswer { .. }))
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match &self.cause {
            cause if cause.lacks_files() => LACKS_FILES,
            Cause::Host(HostError::MissingProgram { program, package }) => {
                return Some(format!("install {program}: {package}"));
            }
            Cause::Host(HostError::ImageInUse { .. }) => {
                "libvirt says that the domain is shut off. A program that works on the image ends by itself: try again then. \
                 A QEMU of this domain is one that libvirtd has lost, for example because it was killed: end it with `kill` \
                 and the process number, so that it closes its images, and start the domain again"
            }
            Cause::Host(HostError::NoLibvirt) => {
                "on Debian libvirt0, on Fedora libvirt-libs, and a vmsnap that was built with them"
            }
            Cause::Host(HostError::NoSuchDomain { .. }) => "`virsh list --all` shows the domains",
            Cause::Host(HostError::Connect { why, .. }) => why.hint(),
            Cause::Host(HostError::NoAnswer { .. }) => {
                "the domain was stopped meanwhile, or QEMU hangs; if the domain cannot be started now, restart libvirtd (or virtqemud)"
            }
            Cause::Repo(RepoError::Locked { .. }) => {
                "wait for that run to end, or let --wait SECONDS do it; a run that was killed holds no lock"
            }
            Cause::Repo(RepoError::Unusable { source, .. } | RepoError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "run as root, or as a user who may read and write there"
            }
            Cause::Repo(RepoError::Unusable { .. }) => {
                "create the folder, or mount the file system it belongs to"
            }
            Cause::Repo(error) if error.is_no_space() => NO_SPACE,
            Cause::Copy(error) if error.kind == BlockErrorKind::NoSpace => NO_SPACE,
            Cause::Copy(error) if error.kind == BlockErrorKind::Damaged => {
                "this restore point cannot be trusted; `vmsnap list` shows the others"
            }
            Cause::NotWhole { .. } => "`vmsnap list` shows which restore points are whole",
            Cause::OtherGrouping { existing, .. } => {
                return Some(format!(
                    "--group-by {existing} goes on with those backups; --force begins a second chain with a full backup, and the two live side by side: \
                     each is pruned by its own grouping only"
                ));
            }
            Cause::NothingToBackUp => {
                "the findings say why each disk was left out; --raw includes raw disks, --store-decrypted encrypted ones"
            }
            Cause::Busy { .. } => {
                "wait for it to end (`virsh domjobinfo` shows it), or end it with `virsh domjobabort`"
            }
            Cause::InUse { users, .. } => return Some(hint_for_users(users)),
            Cause::TakenMeanwhile { .. } => {
                "what is on the device now cannot be relied on: end that use, then restore again"
            }
            Cause::TooSmall { .. } => {
                "restore to a device that is at least as large as the disk, or to a file"
            }
            Cause::ScratchFull(_) => "give a folder with more room with --scratch-dir",
            Cause::NoSuchRestorePoint(_) | Cause::NoRestorePoints => "`vmsnap list` shows what there is",
            Cause::NotThere { .. } => "`vmsnap status` shows the checkpoints and bitmaps that can be listed",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// How many users of a device a message names.
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
        Some((_, true)) => "restore to another place, or detach the disk from the domain first".to_owned(),
        Some((name, false)) => format!(
            "restore to another place; if the domain is to be replaced, undefine it first (`virsh undefine '{name}'`)"
        ),
        None if is_mounted => "unmount it first, or restore to another place".to_owned(),
        None => "end that use first, or restore to another place".to_owned(),
    }
}

const LACKS_FILES: &str = "raise the hard limit of open files (`ulimit -Hn`, LimitNOFILE= of systemd): each image of a chain takes one";

const NO_SPACE: &str = "make room in the target and run again: nothing that was kept before is lost";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_gives_no_verdict_but_missing_does() {
        let cause = |errno: Errno| {
            let error = BlockError::io("cannot open x", errno.into());
            Cause::Copy(error)
        };
        for errno in [
            Errno::ACCESS,
            Errno::PERM,
            Errno::STALE,
            Errno::NOMEM,
            Errno::MFILE,
        ] {
            assert!(cause(errno).is_no_verdict(), "{errno}");
        }
        for errno in [Errno::NOENT, Errno::IO, Errno::LOOP, Errno::NOTDIR] {
            assert!(!cause(errno).is_no_verdict(), "{errno}");
        }
        assert!(cause(Errno::MFILE).lacks_files() && !cause(Errno::ACCESS).lacks_files());
    }
}
