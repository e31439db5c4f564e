//! The errors of a repository.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::pack_error::{PackError, PackErrorClass};
use crate::model::block::{BlockError, BlockErrorKind};

/// Result of a function of the repository.
pub type Result<T> = std::result::Result<T, RepoError>;

/// An error of a repository. Locations are texts for messages; only the repository can interpret
/// them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepoError {
    /// A file or folder could not be used.
    #[error("cannot {operation} {location}")]
    Io {
        /// The operation that failed, as a verb.
        operation: &'static str,
        /// Its file or folder.
        location: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The repository cannot be opened or created, or its path now leads to another folder.
    #[error("the repository {location} cannot be used")]
    Unusable {
        /// Its expected location.
        location: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The folder name for a domain's name would be too long.
    #[error("the folder name for domain '{name}' would be longer than 255 bytes")]
    NameTooLong {
        /// The domain's name.
        name: String,
    },
    /// Another run writes to the domain's part of the repository.
    #[error("{}", locked(location, holder, *waited))]
    Locked {
        /// The location of the lock.
        location: String,
        /// The description of the run that holds it.
        holder: String,
        /// The time that the caller has waited for it.
        waited: Duration,
    },
    /// A manifest, or a record about a restore point, could not be serialised.
    #[error("cannot serialise a record of restore point {id}")]
    Manifest {
        /// Id of the restore point.
        id: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// A restore point is missing, or a chain that it needs cannot be used.
    #[error("restore point {id} is not whole: {fault}")]
    NotWhole {
        /// Its id.
        id: String,
        /// The first fault that was found.
        fault: String,
    },
    /// A restore point was not removed because another one depends on it.
    #[error("cannot remove restore point {id}: {by} depends on it")]
    Needed {
        /// Its id.
        id: String,
        /// The id of the restore point that depends on it.
        by: String,
    },
    /// A restore point cannot get an id, because another one has it.
    #[error("another restore point already has the id {id}")]
    IdTaken {
        /// The id.
        id: String,
    },
    /// A bookkeeping file is damaged or otherwise unusable. It is not overwritten.
    #[error("cannot read {location}: {why}")]
    NoNote {
        /// The path of the file.
        location: String,
        /// The reason.
        why: String,
    },
    /// A file of a disk could not be opened.
    #[error("cannot open {location}")]
    Open {
        /// Its location.
        location: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Blocks of a disk could not be read or written, or differ from what was written.
    #[error(transparent)]
    Blocks(#[from] BlockError),
    /// A write to backups of virtnbdbackup was refused.
    #[error("{location} holds backups of virtnbdbackup, which vmsnap can only read")]
    ReadOnly {
        /// The location of the backups.
        location: String,
    },
    /// A pack repository failed, or does not support the request.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// The message about a lock.
fn locked(location: &str, holder: &str, waited: Duration) -> String {
    match waited {
        Duration::ZERO => format!("{location} is locked by another run ({holder})"),
        waited => {
            let seconds = waited.as_secs();
            format!("after {seconds} s, {location} is still locked by another run ({holder})")
        }
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

    /// Whether a file or folder could not be written because the target is full. Not for errors of
    /// blocks, which have a kind of their own for this.
    pub(crate) fn is_no_space(&self) -> bool {
        let (RepoError::Io { source, .. } | RepoError::Unusable { source, .. }) = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Whether this process or the whole machine has too many open files. Such an error does not mean
/// that stored data is damaged.
pub(crate) fn lacks_files(error: &(dyn StdError + 'static)) -> bool {
    errnos(error).any(|errno| matches!(errno, Errno::MFILE | Errno::NFILE))
}

/// Whether reading failed for a reason other than damage, such as a missing permission, too little
/// memory, too many open files, or an unreachable file server.
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
    lacks_files(error) || errnos(error).any(|errno| of_reader.contains(&errno)) || is_of_store(error)
}

/// Whether a pack repository could not be read for a reason other than damage, for example because
/// its server does not answer.
fn is_of_store(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    let mut errors = std::iter::from_fn(|| {
        let error = next?;
        next = error.source();
        Some(error)
    });
    errors.any(|error| {
        let of_repo = match error.downcast_ref() {
            Some(RepoError::Pack(error)) => Some(error),
            _ => None,
        };
        if let Some(BlockError {
            kind: BlockErrorKind::Lost,
            ..
        }) = error.downcast_ref()
        {
            return true;
        }
        let of_pack = of_repo.or_else(|| error.downcast_ref::<PackError>());
        of_pack.is_some_and(|error| !matches!(error.class(), PackErrorClass::Damaged | PackErrorClass::Usage))
    })
}

/// The kernel's error numbers in this error and its sources.
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
        let damaged = |why: &str| PackError::Damaged {
            location: "memory:".to_owned(),
            object: "packs/x".to_owned(),
            why: why.to_owned(),
        };
        let missing = PackError::Missing {
            location: "memory:".to_owned(),
            has_leftovers: false,
        };
        assert!(
            is_no_verdict(&RepoError::from(missing)) && !is_no_verdict(&RepoError::from(damaged("torn")))
        );
        let of_block = |kind| BlockError::new(kind, "cannot read x");
        assert!(!is_no_verdict(&of_block(BlockErrorKind::Damaged)));
        assert!(is_no_verdict(&of_block(BlockErrorKind::Lost)));
    }
}
