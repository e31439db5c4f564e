//! The errors of a pack repository.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::object_error::{ObjectError, ObjectErrorKind};

/// Result of a function of a pack repository.
pub type Result<T> = std::result::Result<T, PackError>;

/// An error of a pack repository. No message contains a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A location is invalid.
    #[error("invalid location {location}: {why}")]
    Location {
        /// The location, without any part that could be a password.
        location: String,
        /// The reason.
        why: String,
    },
    /// The repository is encrypted, and no secret was given.
    #[error("{location} is encrypted, and no passphrase or identity was given")]
    NoSecret {
        /// The location.
        location: String,
    },
    /// Another run committed a restore point with the same predecessor.
    #[error(
        "another run has committed a restore point of this domain since this run began ({location}); the restore point of this run was not committed"
    )]
    Overtaken {
        /// The location of the other restore point, or of the one that this run wanted to make.
        location: String,
    },
    /// Restore points of a pack repository cannot be merged.
    #[error("restore point {id} cannot be merged: each restore point in {location} is complete by itself")]
    NoMerge {
        /// The location of the repository.
        location: String,
        /// The id of the restore point.
        id: String,
    },
    /// A command for pack repositories was given the path of a folder.
    #[error("{location} is not the location of a pack repository")]
    OtherKind {
        /// The given location.
        location: String,
    },
    /// The path of a folder with a pack repository was given instead of its location.
    #[error("{} holds a pack repository; its location is pack:{}", .0.display(), .0.display())]
    PackFolder(PathBuf),
    /// There is no repository at this location.
    #[error("there is no pack repository at {location}")]
    Missing {
        /// The location.
        location: String,
        /// Whether an interrupted `init` has left objects there.
        has_leftovers: bool,
    },
    /// A repository already exists at the location.
    #[error("there is already a pack repository at {location}; it was not changed")]
    Exists {
        /// The location.
        location: String,
    },
    /// A restore point is pinned, so it is not removed.
    #[error("restore point {id} of {location} is pinned; it was not removed")]
    Pinned {
        /// The location of the repository.
        location: String,
        /// The id of the restore point.
        id: String,
    },
    /// The location holds other objects.
    #[error("{location} is not empty: it holds {example}")]
    NotEmpty {
        /// The location.
        location: String,
        /// The name of one of the objects.
        example: String,
    },
    /// An object of the repository is damaged.
    #[error("{object} of {location} is damaged: {why}")]
    Damaged {
        /// The location.
        location: String,
        /// The object's name.
        object: String,
        /// The reason.
        why: String,
    },
    /// A newer version of vmsnap wrote the object.
    #[error("{object} of {location} has format {format}; this version of vmsnap reads format {known}")]
    NewerFormat {
        /// The location.
        location: String,
        /// The object's name.
        object: String,
        /// Its format.
        format: u64,
        /// The newest format that this version reads.
        known: u64,
    },
    /// No key slot opens with the given secret.
    #[error("the {secret} opens no key slot of {location} (slots tried: {tried})")]
    WrongKey {
        /// The location.
        location: String,
        /// The kind of secret that was given: `passphrase` or `identity`.
        secret: &'static str,
        /// The number of slots that were tried.
        tried: usize,
    },
    /// A key file, or a slot, holds the key of another repository.
    #[error("the key in {holder} does not belong to the repository {location}")]
    KeyOfOther {
        /// The file or object that holds the key.
        holder: String,
        /// The location.
        location: String,
    },
    /// The repository is not encrypted.
    #[error("{location} is not encrypted: it has no key slots")]
    NotEncrypted {
        /// The location.
        location: String,
    },
    /// There is no such slot.
    #[error("{location} has no key slot '{slot}'")]
    NoSuchSlot {
        /// The location.
        location: String,
        /// The requested slot.
        slot: String,
    },
    /// There are several key slots, and none was named.
    #[error("{location} has {number} complete key slots: name the one to export")]
    WhichSlot {
        /// The location.
        location: String,
        /// The number of complete slots.
        number: usize,
    },
    /// The key slot is the only one that is known to open the repository.
    #[error(
        "the key slot {slot} of {location} was not removed: no other slot is known to open the repository"
    )]
    LastSlot {
        /// The location.
        location: String,
        /// The slot's id.
        slot: String,
    },
    /// A text is not a public key.
    #[error("'{recipient}' is not a recipient: {why}")]
    Recipient {
        /// The text.
        recipient: String,
        /// The reason.
        why: &'static str,
    },
    /// A label is invalid.
    #[error("invalid label: {0}")]
    Label(&'static str),
    /// A file with a secret cannot be used. The reason does not repeat its content.
    #[error("cannot use {}: {why}", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// A passphrase is too short or too long.
    #[error("the passphrase is {0}")]
    Passphrase(&'static str),
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The system has no random numbers, or a key could not be encrypted.
    #[error("cannot create a key")]
    NoKey(#[source] io::Error),
    /// A block or record cannot be compressed or encrypted.
    #[error("cannot compress or encrypt a block or a record")]
    Seal(#[source] io::Error),
    /// The local cache of the index cannot be used.
    #[error("cannot use the local cache of the index, {}", path.display())]
    Cache {
        /// Its file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A failure that several parts of the same work share.
    #[error(transparent)]
    Earlier(Arc<PackError>),
    /// This program was built without support for object stores.
    #[error("cannot use {location}: this vmsnap was built without support for object stores")]
    #[cfg_attr(
        feature = "object-store",
        allow(dead_code, reason = "the other build's error")
    )]
    NoObjectStore {
        /// The location.
        location: String,
    },
    /// The session of this run has ended, so collectors may have deleted data that it relies on.
    #[error(
        "the session of this run in {location} has ended: it was not renewed for days, or was deleted; data that this run relies on may have been deleted"
    )]
    SessionLost {
        /// The location.
        location: String,
    },
    /// Like [`PackError::SessionLost`], but the restore point was already committed.
    #[error(
        "{point} was committed, but may lack data: the session of this run ended before the commit, because it was not renewed for days, or was deleted"
    )]
    CommittedAfterSession {
        /// The location of the restore point.
        point: String,
    },
    /// Something cannot be read, so it is unknown which data is needed.
    #[error("no data is collected in {location}, because {object} cannot be used: {why}")]
    Uncollectable {
        /// The location.
        location: String,
        /// The name of the object, or the block.
        object: String,
        /// Why it cannot be used.
        why: String,
    },
    /// A collection is running.
    #[error("nothing was changed in {location}, because a collection is running: {host}")]
    Collecting {
        /// The location.
        location: String,
        /// Its host and process.
        host: String,
    },
    /// The store does not report when objects were written.
    #[error(
        "the store of {location} does not report when objects were written, so vmsnap can neither protect nor delete data"
    )]
    NoTimes {
        /// The location.
        location: String,
    },
    /// The object store failed.
    #[error(transparent)]
    Objects(#[from] ObjectError),
}

/// The class of an error, from which the verbs derive the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackErrorClass {
    /// The repository cannot be used.
    Unusable,
    /// Stored data is damaged.
    Damaged,
    /// The request is invalid, or does not fit what exists.
    Usage,
    /// The work was stopped.
    Stopped(crate::model::stop::StopReason),
    /// Anything else.
    Failed,
}

impl PackError {
    /// The class of the error.
    pub fn class(&self) -> PackErrorClass {
        match self {
            PackError::Damaged { .. } | PackError::Uncollectable { .. } => PackErrorClass::Damaged,
            PackError::Location { .. }
            | PackError::OtherKind { .. }
            | PackError::Exists { .. }
            | PackError::NotEmpty { .. }
            | PackError::NotEncrypted { .. }
            | PackError::NoSuchSlot { .. }
            | PackError::WhichSlot { .. }
            | PackError::LastSlot { .. }
            | PackError::Recipient { .. }
            | PackError::Label(_)
            | PackError::Passphrase(_) => PackErrorClass::Usage,
            PackError::SecretFile { .. }
            | PackError::Write { .. }
            | PackError::NoKey(_)
            | PackError::Seal(_)
            | PackError::Cache { .. }
            | PackError::SessionLost { .. }
            | PackError::CommittedAfterSession { .. }
            | PackError::Overtaken { .. }
            | PackError::Collecting { .. }
            | PackError::Pinned { .. }
            | PackError::NoMerge { .. } => PackErrorClass::Failed,
            PackError::Earlier(error) => error.class(),
            PackError::Objects(error) => match error.kind {
                ObjectErrorKind::Stopped(reason) => PackErrorClass::Stopped(reason),
                _ => PackErrorClass::Unusable,
            },
            _ => PackErrorClass::Unusable,
        }
    }

    /// A hint on what the user can do, if there is one.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            PackError::NoSecret { .. } => "use --passphrase-file FILE or --identity-file FILE",
            PackError::Overtaken { .. } => {
                "run the command again: it continues from what the other run has committed"
            }
            PackError::OtherKind { .. } => {
                "use s3:https://HOST/BUCKET/PREFIX, s3://BUCKET/PREFIX or pack:/DIRECTORY; a repository in a plain folder needs no init and has no keys"
            }
            PackError::PackFolder(_) => "give the location pack:/DIRECTORY, or choose another folder",
            PackError::Missing {
                has_leftovers: true, ..
            } => "an init was interrupted there; nothing depends on what it left: run `vmsnap init` again",
            PackError::Missing { .. } => "`vmsnap init LOCATION` creates one; check the location",
            PackError::Collecting { .. } => {
                "run the command again after the collection has ended; a collection that was killed blocks others for three days"
            }
            PackError::Pinned { .. } => "run the command again, or unpin the restore point",
            PackError::Exists { .. } => "`vmsnap repository info LOCATION` shows the existing repository",
            PackError::NotEmpty { .. } => "choose an empty folder or prefix",
            PackError::Damaged { .. } => {
                "restore the object, for example from an earlier version in the bucket"
            }
            PackError::NewerFormat { .. } => "use a newer version of vmsnap",
            PackError::WrongKey { .. } => {
                "`vmsnap key list` shows the slots; with a recovery file, `vmsnap key add --recovery-file` adds a slot"
            }
            PackError::LastSlot { .. } => {
                "add another slot with `vmsnap key add`, and give its secret to `vmsnap key remove`"
            }
            PackError::NoSuchSlot { .. } | PackError::WhichSlot { .. } => "`vmsnap key list` shows the slots",
            PackError::Recipient { .. } => "a recipient is the public key that `age-keygen` prints: age1…",
            PackError::NoObjectStore { .. } => {
                "use a vmsnap with the feature object-store, or a pack:/DIRECTORY"
            }
            PackError::Cache { .. } => {
                "free space there, then run again; you can delete the cache, because vmsnap creates it again"
            }
            PackError::SessionLost { .. } => "run the command again",
            PackError::CommittedAfterSession { .. } => {
                "verify the restore point with `vmsnap verify --deep`, then run the command again"
            }
            PackError::Uncollectable { object, .. } => match object.split('/').next() {
                Some("points") => {
                    "use the newest version of vmsnap; if the object is damaged, restore it from an earlier version in the bucket, or delete it"
                }
                Some("index") => {
                    "run `vmsnap repository rebuild-index LOCATION --delete-damaged`, which deletes the object if it is damaged, and otherwise reports what to do"
                }
                Some("condemned") => {
                    "delete the object while no run uses the repository; a later collection condemns its packs again"
                }
                _ => {
                    "`vmsnap repository check` names the missing packs and the restore points that need them: restore the packs from a copy, or remove these restore points"
                }
            },
            PackError::Earlier(error) => return error.hint(),
            PackError::Objects(error) => return error.hint(),
            _ => return None,
        })
    }
}
