//! What is kept: restore points, and what is known of them, whatever kind of repository holds them.
//!
//! The verbs see a repository through [`Repository`], [`DomainRepository`], [`DomainWriter`] and
//! [`PendingPoint`], and a stored disk through [`DiskReader`] or a [`BlockSource`]. Where something
//! lies is a text for people: only the repository itself finds it again.
//!
//! * `folder`: the repository in a folder, a chain of qcow2 images per disk.
//! * `disk`: a disk at a restore point, read anywhere.
//! * `files`: the files of a restore point, as a check of them reports.
//! * `history`: what a repository holds of a domain, and what is wrong with it.
//! * `identity`: the repository's own id.
//! * `manifest`: the commit record.
//! * `proof`: what is remembered of verifications and comparisons.
//! * `seal`: texts that carry their own digest.
//! * `error`: what can go wrong.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use crate::io::DiskStore;
use crate::model::block::{BlockSink, BlockSource, Written};
use crate::model::buffer::BufferPool;
use crate::model::compression::Compression;
use crate::model::stop::Stop;

mod disk;
pub mod error;
mod files;
pub mod folder;
pub mod history;
mod identity;
pub mod manifest;
pub mod proof;
mod seal;

pub use disk::{DiskReader, ParentDisk, Stored, StoredExtent};
pub use error::{RepoError, Result};
pub use files::{FileDamage, FileWatch, SmallFile};
pub use folder::FolderRepository;
pub use history::{History, Kept, Leftover, Note};
pub use identity::Identity;
pub use manifest::{FileEntry, Manifest, PieceEntry};
pub use proof::{DamageNote, MissedWriteRecord, Proof};

/// Restore points of domains, in one place.
pub trait Repository: Send + Sync {
    /// Where it is, for people.
    fn location(&self) -> String;

    /// Whether it exists. A repository that was not created yet is empty.
    fn exists(&self) -> bool;

    /// Its id, by which its checkpoints are told from those of other repositories, as far as it is
    /// known.
    fn identity(&self) -> Identity;

    /// Gives it an id unless it has one. A damaged one stays as it is.
    ///
    /// # Errors
    /// The id cannot be written.
    fn ensure_identity(&self) -> Result<Identity>;

    /// The names of the domains that have or had restore points here. It includes domains whose part
    /// cannot be read: opening that part reports why.
    fn domains(&self) -> Result<Vec<String>>;

    /// One domain's part of the repository. It need not be there yet.
    fn domain(&self, name: &str) -> Result<Box<dyn DomainRepository>>;
}

/// One domain's part of a repository: readable by everybody at any time.
pub trait DomainRepository: Send + Sync {
    /// The domain's name.
    fn name(&self) -> &str;

    /// Where it is, for people.
    fn location(&self) -> String;

    /// Whether it is there.
    fn exists(&self) -> bool;

    /// The id of the repository that it is part of.
    fn identity(&self) -> Identity;

    /// Reads what is there and what is wrong with it. It never waits: a run in progress is invisible
    /// until it commits.
    fn history(&self) -> Result<History>;

    /// The periods that hold backups, also those of other programs or with restore points that
    /// cannot be read.
    fn used_periods(&self) -> Result<Vec<String>>;

    /// The size and place of a period. A missing period has no files.
    fn period_usage(&self, period: &str) -> PeriodUsage;

    /// The name of the period for a standalone copy made at this moment. No other copy has it, not even
    /// one of the same second.
    fn copy_period(&self, time: Timestamp) -> Result<String>;

    /// Periods whose removal was started and not finished.
    fn interrupted_removals(&self) -> Result<Vec<Leftover>>;

    /// Whether what an unfinished run left is still there.
    fn has_leftover(&self, leftover: &Leftover) -> bool;

    /// What an unfinished run wrote down before it started. A note that cannot be read now is an error:
    /// its content must not be lost.
    fn note(&self, leftover: &Leftover) -> Result<Note>;

    /// The run that writes here now, as it recorded itself; `None` if there is none. It never waits and
    /// never delays a writer.
    fn writer(&self) -> Option<String>;

    /// Takes the right to write, or returns at once with its holder ([`RepoError::Locked`]). Creates the
    /// domain's part if it is missing.
    fn try_lock(&self) -> Result<Box<dyn DomainWriter>>;

    /// Opens a disk at a restore point of this history, to be read anywhere.
    ///
    /// # Errors
    /// [`RepoError::NotWhole`] when something is wrong with what it is made of; others when that
    /// cannot be opened or read.
    fn open_disk(
        &self,
        history: &History,
        id: &str,
        target: &str,
        stop: &Stop,
    ) -> Result<Arc<dyn DiskReader>>;

    /// Opens a disk at a restore point of this history, to be read once from front to back. Only a
    /// source that has ended without an error vouches for its blocks.
    ///
    /// # Errors
    /// As [`DomainRepository::open_disk`].
    fn open_source(
        &self,
        history: &History,
        id: &str,
        target: &str,
        options: &SourceOptions,
    ) -> Result<Box<dyn BlockSource>>;

    /// The content of a small file of a restore point, if it is what the manifest says; otherwise a
    /// sentence that names it.
    fn read_file(&self, kept: &Kept, file: SmallFile) -> std::result::Result<Vec<u8>, String>;

    /// Adds everything to `damage` that is not what was written of a restore point's own files.
    /// Whatever was found before an error is in `damage` all the same.
    ///
    /// # Errors
    /// When the user asked to stop, or something could not be read for a reason that is no verdict
    /// on the restore point.
    fn check_files(
        &self,
        history: &History,
        kept: &Kept,
        watch: &mut dyn FileWatch,
        stop: &Stop,
        damage: &mut Vec<FileDamage>,
    ) -> Result<()>;

    /// Whether a restore point that was there has been removed on purpose, with its whole period.
    ///
    /// # Errors
    /// When the domain's part is missing too: its file system may have been unmounted.
    fn is_removed(&self, kept: &Kept) -> Result<bool>;

    /// Records the result of a verification, and removes the `known` results of the same restore point:
    /// those that existed when it started ([`Kept::records`]).
    fn keep_proof(&self, proof: &Proof, known: &[String]) -> Result<()>;

    /// Records that bitmaps missed writes, so that no later backup relies on them.
    fn keep_missed_writes(&self, missed: &MissedWriteRecord) -> Result<()>;

    /// Removes the records of restore points that are not there any more.
    fn forget_removed(&self) -> Result<()>;
}

/// How a disk is to be read from front to back.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Its buffers bound the blocks.
    pub pool: BufferPool,
    /// The wish to stop.
    pub stop: Stop,
    /// Whether what is read has to come from the storage, and not from what a cache remembers of
    /// it.
    pub past_caches: bool,
}

/// What a period takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeriodUsage {
    /// Whether it is there.
    pub exists: bool,
    /// Where it is or would be, for people.
    pub location: String,
    /// How many files it has.
    pub files: u64,
    /// Bytes of those files.
    pub bytes: u64,
}

/// One domain's part of a repository, with the right to write to it until it is dropped.
pub trait DomainWriter: Send {
    /// Reads what is there. Nobody else can change it meanwhile.
    fn history(&self) -> Result<History>;

    /// Begins a restore point of this moment in a period.
    fn begin(&self, period: &str, time: Timestamp) -> Result<Box<dyn PendingPoint>>;

    /// Records that these restore points were committed. From then on it is noticed if one is missing.
    fn remember_committed(&self, history: &History) -> Result<()>;

    /// Removes a period with everything in it. After the first step nothing in it counts, however much
    /// of it is left.
    fn remove_period(&self, period: &str) -> Result<()>;

    /// Finishes the removal of a period that an earlier run started: one of
    /// [`DomainRepository::interrupted_removals`].
    fn finish_removal(&self, removal: &Leftover) -> Result<()>;

    /// Removes what an unfinished run left: one of [`History::leftovers`].
    fn remove_leftover(&self, leftover: &Leftover) -> Result<()>;
}

/// A restore point that is being written. If it is dropped before the commit, it is removed as far as
/// possible; the next run removes the rest.
pub trait PendingPoint: Send + Sync {
    /// Id of the restore point that this becomes.
    fn id(&self) -> &str;

    /// Writes down what is about to be started outside the repository, so that the next run can undo it
    /// if this run cannot.
    fn write_note(&self, note: &[u8]) -> Result<()>;

    /// Starts a disk. It replaces an earlier attempt at the same disk.
    fn sink(&self, disk: &NewDisk<'_>) -> Result<Box<dyn BlockSink>>;

    /// The manifest's entry for a disk that its sink has finished.
    fn entry(&self, target: &str, written: &Written) -> FileEntry;

    /// Writes a small file.
    fn put(&self, file: SmallFile, content: &[u8]) -> Result<FileEntry>;

    /// Writes the XML of the checkpoint that was made with the restore point.
    fn put_checkpoint(&self, checkpoint: &str, xml: &str) -> Result<FileEntry>;

    /// Makes it a restore point and returns its location. It exists completely after this, and not at all
    /// before.
    ///
    /// After an error it may exist nevertheless, if only its survival of a crash is uncertain.
    fn commit(&mut self, manifest: &Manifest) -> Result<String>;

    /// Leaves it and its note in place, for the next run to undo what was started. Returns its location.
    fn leave(self: Box<Self>) -> String;
}

/// A disk of a restore point being written.
#[derive(Clone, Debug)]
pub struct NewDisk<'a> {
    /// Its target.
    pub target: &'a str,
    /// Its size in bytes.
    pub size: u64,
    /// The restore point upon which it is to stand; `None` for a full.
    pub parent: Option<&'a Kept>,
    /// How its data may be compressed.
    pub compression: Compression,
    /// The wish to stop.
    pub stop: Stop,
}

/// Opens a repository that must be there.
pub fn open(location: &Path) -> Result<Box<dyn Repository>> {
    Ok(Box::new(FolderRepository::open(location, Arc::new(DiskStore))?))
}

/// Opens a repository to write to; its last folder is created if its parent is there.
pub fn open_or_create(location: &Path) -> Result<Box<dyn Repository>> {
    Ok(Box::new(FolderRepository::open_or_create(
        location,
        Arc::new(DiskStore),
    )?))
}

/// Opens a repository to look at. One that nobody has made yet holds nothing.
pub fn open_or_empty(location: &Path) -> Result<Box<dyn Repository>> {
    Ok(Box::new(FolderRepository::open_or_empty(
        location,
        Arc::new(DiskStore),
    )?))
}
