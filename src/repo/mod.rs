//! What is kept: restore points, and what is known of them, whatever kind of repository holds them.
//!
//! The verbs see a repository through [`Repository`], [`DomainRepository`], [`DomainWriter`] and [`PendingPoint`], and a stored disk through
//! [`DiskReader`] or a [`BlockSource`]. Where something lies is a text for people: only the repository itself finds it again.
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

    /// Whether it is there: one that nobody has made yet holds nothing.
    fn exists(&self) -> bool;

    /// Its id, by which its checkpoints are told from those of other repositories, as far as it is known.
    fn identity(&self) -> Identity;

    /// Gives it an id unless it has one. A damaged one stays as it is.
    ///
    /// # Errors
    /// The id cannot be written.
    fn ensure_identity(&self) -> Result<Identity>;

    /// The names of the domains that have restore points here, or had; also those whose part cannot be read, which its reader will hear.
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

    /// Reads what is there, and what is wrong with it. Waits for nobody: a run in progress is invisible until it commits.
    fn history(&self) -> Result<History>;

    /// The periods that hold backups, also those of other programs or with restore points that cannot be read.
    fn used_periods(&self) -> Result<Vec<String>>;

    /// What this period takes, and where it is. A period that is not there takes nothing.
    fn period_usage(&self, period: &str) -> PeriodUsage;

    /// The name of the period that a standalone copy of this moment gets. It is that of no other copy, also within one second.
    fn copy_period(&self, time: Timestamp) -> Result<String>;

    /// Periods whose removal was begun and not ended.
    fn interrupted_removals(&self) -> Result<Vec<Leftover>>;

    /// Whether what an unfinished run left is still there.
    fn has_leftover(&self, leftover: &Leftover) -> bool;

    /// What an unfinished run noted down before it began. A note that cannot be read now is an error: what it tells must not be lost.
    fn note(&self, leftover: &Leftover) -> Result<Note>;

    /// Who writes here now, as it wrote itself down; `None` when nobody does. Waits for nobody, and is in nobody's way.
    fn writer(&self) -> Option<String>;

    /// Takes the right to write, or says at once who has it ([`RepoError::Locked`]). Creates the domain's part if need be.
    fn try_lock(&self) -> Result<Box<dyn DomainWriter>>;

    /// Opens a disk at a restore point of this history, to be read anywhere.
    ///
    /// # Errors
    /// [`RepoError::NotWhole`] when something is wrong with what it is made of; others when that cannot be opened or read.
    fn open_disk(
        &self,
        history: &History,
        id: &str,
        target: &str,
        stop: &Stop,
    ) -> Result<Arc<dyn DiskReader>>;

    /// Opens a disk at a restore point of this history, to be read once from front to back. Only a source that has ended without an error vouches
    /// for its blocks.
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

    /// The content of a small file of a restore point, if it is what the manifest says; otherwise a sentence that names it.
    fn read_file(&self, kept: &Kept, file: SmallFile) -> std::result::Result<Vec<u8>, String>;

    /// Adds everything to `damage` that is not what was written of a restore point's own files. Whatever was found before an error is in `damage`
    /// all the same.
    ///
    /// # Errors
    /// When the user asked to stop, or something could not be read for a reason that is no verdict on the restore point.
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
    /// When the domain's part has gone with it: that may be a file system that was unmounted.
    fn is_removed(&self, kept: &Kept) -> Result<bool>;

    /// Remembers the result of a verification, and forgets those of the same restore point that were `known` when it began: [`Kept::records`].
    fn keep_proof(&self, proof: &Proof, known: &[String]) -> Result<()>;

    /// Remembers that bitmaps had missed writes, so that nothing new relies on them.
    fn keep_missed_writes(&self, missed: &MissedWriteRecord) -> Result<()>;

    /// Forgets what is remembered of restore points that are not there any more.
    fn forget_removed(&self) -> Result<()>;
}

/// How a disk is to be read from front to back.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Its buffers bound the blocks.
    pub pool: BufferPool,
    /// The wish to stop.
    pub stop: Stop,
    /// Whether what is read has to come from the storage, and not from what a cache remembers of it.
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

    /// Remembers of these restore points that they were committed: one of them that has gone is missed from then on.
    fn remember_committed(&self, history: &History) -> Result<()>;

    /// Removes a whole period with everything in it. From the first step on nothing in it counts, however much of it is left.
    fn remove_period(&self, period: &str) -> Result<()>;

    /// Ends the removal of a period that an earlier run had begun: one of [`DomainRepository::interrupted_removals`].
    fn finish_removal(&self, removal: &Leftover) -> Result<()>;

    /// Removes what a run left that did not finish: one of [`History::leftovers`].
    fn remove_leftover(&self, leftover: &Leftover) -> Result<()>;
}

/// A restore point being written. Dropped uncommitted it is removed as far as that goes; the next run removes the rest.
pub trait PendingPoint: Send + Sync {
    /// Id of the restore point that this becomes.
    fn id(&self) -> &str;

    /// Notes down what is about to be begun outside the repository, so that the next run can end it if this one cannot.
    fn write_note(&self, note: &[u8]) -> Result<()>;

    /// Begins a disk, in place of an earlier attempt at the same disk.
    fn sink(&self, disk: &NewDisk<'_>) -> Result<Box<dyn BlockSink>>;

    /// What the manifest has to say of a disk that its sink has finished.
    fn entry(&self, target: &str, written: &Written) -> FileEntry;

    /// Writes a small file.
    fn put(&self, file: SmallFile, content: &[u8]) -> Result<FileEntry>;

    /// Writes the XML of the checkpoint that was made with the restore point.
    fn put_checkpoint(&self, checkpoint: &str, xml: &str) -> Result<FileEntry>;

    /// Makes it a restore point, and tells where it is. After this it exists, whole; before it, nothing does.
    ///
    /// After an error it may be there nevertheless, when only its survival of a crash is uncertain.
    fn commit(&mut self, manifest: &Manifest) -> Result<String>;

    /// Leaves it with its note as it is, for the next run to end what was begun. Tells where it is.
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
