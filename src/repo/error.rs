//! What can go wrong with a repository.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use crate::model::block::BlockError;

/// Result of everything in this room.
pub type Result<T> = std::result::Result<T, RepoError>;

/// What can go wrong in the repository. Locations are texts for people: only the repository knows
/// what they mean.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepoError {
    /// A file or folder could not be used.
    #[error("cannot {operation} {location}")]
    Io {
        /// What was being done, as a verb.
        operation: &'static str,
        /// To what.
        location: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The repository is not there, or is none.
    #[error("the repository {location} cannot be used")]
    Unusable {
        /// Where it was expected.
        location: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A domain's name gives a folder name that is too long.
    #[error("the name of domain '{name}' makes a folder name of more than 255 bytes")]
    NameTooLong {
        /// The domain's name.
        name: String,
    },
    /// Another run writes to the domain's part of the repository.
    #[error("{location} is locked by another run ({holder}){}", after(*waited))]
    Locked {
        /// Where the lock is.
        location: String,
        /// The process that holds it, as it wrote itself down.
        holder: String,
        /// How long the caller has waited for it.
        waited: Duration,
    },
    /// A manifest could not be made.
    #[error("cannot write down the manifest of {id}")]
    Manifest {
        /// Id of the restore point.
        id: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A restore point cannot be given back.
    #[error("restore point {id} cannot be given back whole: {fault}")]
    NotWhole {
        /// Its id.
        id: String,
        /// The first thing that is wrong with it.
        fault: String,
    },
    /// A restore point that another one depends on is not removed.
    #[error("restore point {id} is not removed: {by} depends on it")]
    Needed {
        /// Its id.
        id: String,
        /// The id of the other one.
        by: String,
    },
    /// A small file in which something is remembered is not what was written, and stays as it is.
    #[error("{location} cannot be read: {why}")]
    NoNote {
        /// Where it lies.
        location: String,
        /// Why not.
        why: String,
    },
    /// What holds a disk could not be opened.
    #[error("cannot open {location}")]
    Open {
        /// Where it lies.
        location: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Blocks of a disk could not be read or written, or are not what was written.
    #[error(transparent)]
    Blocks(#[from] BlockError),
}

/// The end of a sentence about a lock.
fn after(waited: Duration) -> String {
    match waited {
        Duration::ZERO => String::new(),
        waited => format!(", still after waiting {} s", waited.as_secs()),
    }
}

impl RepoError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RepoError {
        let location = path.display().to_string();
        move |source| RepoError::Io {
            operation,
            location,
            source,
        }
    }

    /// Whether the target is full.
    pub fn is_no_space(&self) -> bool {
        let (RepoError::Io { source, .. } | RepoError::Unusable { source, .. }) = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Whether this process, or the whole machine, may have no more files open. That says nothing about
/// what is stored.
pub fn lacks_files(error: &(dyn StdError + 'static)) -> bool {
    errnos(error).any(|errno| matches!(errno, Errno::MFILE | Errno::NFILE))
}

/// Whether something could not be read for a reason that says nothing of what is stored: a right,
/// memory or open files that are missing, or a server of files that is away.
pub fn is_no_verdict(error: &(dyn StdError + 'static)) -> bool {
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
    lacks_files(error) || errnos(error).any(|errno| of_reader.contains(&errno))
}

/// What the kernel said, in this error and all beneath it.
fn errnos<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = Errno> + 'a {
    let mut next = Some(error);
    let errors = std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    });
    errors.filter_map(|error| error.downcast_ref().and_then(Errno::from_io_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_gives_no_verdict_but_missing_does() {
        let error = |errno: Errno| BlockError::io("cannot open x", errno.into());
        for errno in [
            Errno::ACCESS,
            Errno::PERM,
            Errno::STALE,
            Errno::NOMEM,
            Errno::MFILE,
        ] {
            assert!(is_no_verdict(&error(errno)), "{errno}");
        }
        for errno in [Errno::NOENT, Errno::IO, Errno::LOOP, Errno::NOTDIR] {
            assert!(!is_no_verdict(&error(errno)), "{errno}");
        }
        assert!(lacks_files(&error(Errno::MFILE)) && !lacks_files(&error(Errno::ACCESS)));
    }
}
