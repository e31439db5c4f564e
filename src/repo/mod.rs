//! What is kept: restore points, and what is known of them.
//!
//! * `folder`: a repository in a folder.
//! * `history`: what a repository holds of a domain, and what is wrong with it.
//! * `manifest`: the commit record.
//! * `proof`: what is remembered of verifications and comparisons.
//! * `seal`: texts that carry their own digest.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub mod folder;
pub mod history;
pub mod manifest;
pub mod proof;
mod seal;

pub use folder::{DomainRepository, LockedDomain, Pending, Repository};
pub use history::{History, Leftover};
pub use manifest::{FileEntry, Manifest, PieceEntry};
pub use proof::{DamageNote, Missed, Proof};

/// Result of everything in this room.
pub type Result<T> = std::result::Result<T, RepoError>;

/// What can go wrong in the repository.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepoError {
    /// A file or folder could not be used.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        operation: &'static str,
        /// To which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The repository's folder is not there, or is none.
    #[error("the repository {} cannot be used", path.display())]
    Unusable {
        /// Its path.
        path: PathBuf,
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
    /// Another run writes to the domain's folder.
    #[error("{} is locked by another run ({holder}){}", path.display(), after(*waited))]
    Locked {
        /// The lock's path.
        path: PathBuf,
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
        let path = path.to_owned();
        move |source| RepoError::Io {
            operation,
            path,
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
