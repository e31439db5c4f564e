//! Restore points and the records about them, in any kind of repository.
//!
//! The verbs access a repository through [`Repository`], [`DomainRepository`], [`DomainWriter`] and
//! [`PendingPoint`], and a stored disk through [`DiskReader`] or a [`BlockSource`]. A location is a
//! text for people: only the repository itself can find the place again.
//!
//! * `folder`: the repository in a folder, a chain of qcow2 images per disk.
//! * `pack`: the repository of objects, in a bucket or a folder.
//! * `sets`: backups of virtnbdbackup in a folder, which are only read.
//! * `disk`: a disk at a restore point, with random access.
//! * `files`: the files of a restore point, and the reports of a check of them.
//! * `history`: the content of a repository for one domain, and its problems.
//! * `identity`: the repository's own id.
//! * `manifest`: the commit record.
//! * `merge`: the plan of a merge of restore points.
//! * `proof`: the records of verifications and comparisons.
//! * `lock`: one writer per domain.
//! * `restore_mark`: the mark of a domain whose disks are being restored in place.
//! * `small_file`: reads small files that other programs may have changed.
//! * `seal`: texts that carry their own digest.
//! * `error`: the errors of a repository.
//! * `pack_error`, `object_error`: the errors of a pack repository and of an object store.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use crate::io::DiskStore;
use crate::model::block::{BlockSink, BlockSource, Written};
use crate::model::buffer::BufferPool;
use crate::model::compression::Compression;
use crate::model::pin::Pin;
use crate::model::stop::Stop;

mod disk;
pub mod error;
mod files;
pub mod folder;
pub mod history;
mod identity;
mod lock;
pub mod manifest;
pub(crate) mod merge;
mod object_error;
pub(crate) mod pack;
mod pack_error;
pub mod proof;
mod restore_mark;
mod seal;
mod sets;
mod small_file;

pub(crate) use disk::ParentDisk;
pub use disk::{DiskReader, Stored, StoredExtent};
pub use error::{RepoError, Result};
pub use files::{FileDamage, FileWatch, SmallFile};
pub use folder::FolderRepository;
pub use history::{History, Kept, Leftover, Note};
pub use identity::Identity;
pub use manifest::{FileEntry, Manifest, PieceEntry};
pub use merge::{Merge, MergeWatch, Merged};
#[cfg(feature = "testkit")]
pub use pack::SimulatedMap;
#[doc(hidden)]
pub use pack::fuzzing;
pub use pack::{
    Amount, BucketLocation, Cipher, CollectReport, Collection, CondemnedNote, ConditionalPuts, Cost,
    Creation, Damage, DamagedIndex, HostFolders, IdentityFile, IndexFault, KeySlot, ListPage, ListedObject,
    NewPack, NewSlot, ObjectError, ObjectErrorKind, ObjectName, ObjectResult, ObjectStore, Opener, PackError,
    PackErrorClass, PackFacts, PackLocation, PackRepository, PackResult, Passphrase, Protection, PutResult,
    Rebuild, RebuildReport, Recipient, RecoveryFile, RepositoryCheck, Secret, SessionNote, Sizes, SlotKind,
    SlotOwner, SlotState, UnlockedHost, UnlockedPack, Waiting,
};
pub use proof::{BootProof, DamageNote, MissedWriteRecord, Proof};
pub use sets::SetsRepository;
#[cfg(feature = "testkit")]
pub use sets::WrittenStream;
#[doc(hidden)]
pub use sets::fuzzing as set_fuzzing;

/// Keeps the restore points of domains.
pub trait Repository: Send + Sync {
    /// Its location, for messages.
    fn location(&self) -> String;

    /// Whether the repository exists. A repository that was not created yet is empty.
    fn exists(&self) -> bool;

    /// The repository's id, if it is known. The id distinguishes its checkpoints from those of
    /// other repositories.
    fn identity(&self) -> Identity;

    /// Gives the repository an id, unless it has one. A damaged id stays as it is.
    ///
    /// # Errors
    /// The id cannot be written.
    fn ensure_identity(&self) -> Result<Identity>;

    /// The names of the domains that have periods or standalone copies here. Domains whose part
    /// cannot be read are included: opening that part reports the reason.
    fn domains(&self) -> Result<Vec<String>>;

    /// Deletes data that no restore point needs, and returns what was done. Returns `None` for a
    /// kind of repository in which removing a restore point frees its space at once.
    ///
    /// # Errors
    /// Something cannot be read, and nothing was deleted; or the store fails later, and the next
    /// collection does the rest.
    fn collect(&self, _how: &Collection, _stop: &Stop) -> Result<Option<CollectReport>> {
        Ok(None)
    }

    /// Checks the repository as a whole, and with `deep` reads all of its data. Nothing is changed.
    /// Returns `None` for a kind of repository in which restore points share no structure.
    ///
    /// # Errors
    /// Something cannot be read, for a reason other than damage. Damage is not an error.
    fn check(&self, _deep: bool, _stop: &Stop) -> Result<Option<RepositoryCheck>> {
        Ok(None)
    }

    /// Adds missing packs to the index, and deletes damaged parts of the index on request. Returns
    /// `None` for a repository without an index.
    ///
    /// # Errors
    /// The repository fails, or a collection is at work. A later call continues.
    fn rebuild_index(&self, _how: &Rebuild, _stop: &Stop) -> Result<Option<RebuildReport>> {
        Ok(None)
    }

    /// The marks of restores in place of all domains, as far as this host knows them. Marks that
    /// are unusable are left out.
    ///
    /// # Errors
    /// A mark cannot be read now.
    fn restore_marks(&self) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    /// One domain's part of the repository, which need not exist yet.
    fn domain(&self, name: &str) -> Result<Box<dyn DomainRepository>>;

    /// A location at which backups of virtnbdbackup in this repository's folder can be read; `None`
    /// if there are none.
    fn sets_location(&self) -> Option<String> {
        None
    }
}

/// One domain's part of a repository. Processes can read it while another one writes to it.
pub trait DomainRepository: Send + Sync {
    /// The domain's name.
    fn name(&self) -> &str;

    /// Its location, for messages.
    fn location(&self) -> String;

    /// Whether it exists.
    fn exists(&self) -> bool;

    /// The id of the repository to which it belongs.
    fn identity(&self) -> Identity;

    /// Reads the domain's restore points and finds their problems. A run in progress is invisible
    /// until it commits. While a merge replaces files, the call waits, and fails if that takes too
    /// long.
    fn history(&self) -> Result<History>;

    /// The periods that hold backups, including those of other programs and those with unreadable
    /// restore points.
    fn used_periods(&self) -> Result<Vec<String>>;

    /// The size and location of a period. A missing period has no files.
    fn period_usage(&self, period: &str) -> PeriodUsage;

    /// The period name for a standalone copy made at this moment. It differs from the names of the
    /// existing copies, even of one made in the same second.
    fn copy_period(&self, time: Timestamp) -> Result<String>;

    /// Periods and restore points whose removal was started but not finished, and restore points
    /// into which others were not completely merged.
    fn interrupted_removals(&self) -> Result<Vec<Leftover>>;

    /// Whether one of [`History::leftovers`] still exists.
    fn has_leftover(&self, leftover: &Leftover) -> bool;

    /// The journal entry of an unfinished run, which wrote it before it began anything outside the
    /// repository. An entry that cannot be read now is an error, because it must not be lost.
    fn note(&self, leftover: &Leftover) -> Result<Note>;

    /// The mark of an unfinished restore in place: the domain's disks may be only partly restored.
    /// A mark that cannot be read now is an error.
    fn restore_mark(&self) -> Result<Note>;

    /// Where the mark is kept, for messages.
    fn restore_mark_location(&self) -> String;

    /// The description of the run that has the right to write now; `None` if none is found. The
    /// call never waits.
    fn writer(&self) -> Option<String>;

    /// Takes the right to write. Creates the domain's part if it is missing.
    ///
    /// # Errors
    /// [`RepoError::Locked`] if another run keeps the right for more than a moment; others if the
    /// domain's part cannot be created or locked.
    fn try_lock(&self) -> Result<Box<dyn DomainWriter>>;

    /// Opens a disk at a restore point of this history for random access.
    ///
    /// # Errors
    /// [`RepoError::NotWhole`] if its chain has a fault; others if a file cannot be opened or read,
    /// or a stop was requested.
    fn open_disk(
        &self,
        history: &History,
        id: &str,
        target: &str,
        stop: &Stop,
    ) -> Result<Arc<dyn DiskReader>>;

    /// Opens a disk at a restore point of this history for reading from front to back. The blocks
    /// count as verified only if the source ends without an error. If [`SourceOptions::above`]
    /// names a restore point, its files and those of earlier ones are not opened.
    ///
    /// # Errors
    /// The errors of [`DomainRepository::open_disk`].
    fn open_source(
        &self,
        history: &History,
        id: &str,
        target: &str,
        options: &SourceOptions,
    ) -> Result<Box<dyn BlockSource>>;

    /// Reads a small file of a restore point and checks it against the manifest. The error is a
    /// sentence that names the file.
    fn read_file(&self, kept: &Kept, file: SmallFile) -> std::result::Result<Vec<u8>, String>;

    /// Checks a restore point's own files, and adds the damage that it finds to `damage`. Damage
    /// that was found before an error is in `damage` too.
    ///
    /// # Errors
    /// A stop was requested, or something could not be read for a reason other than damage.
    fn check_files(
        &self,
        history: &History,
        kept: &Kept,
        watch: &mut dyn FileWatch,
        stop: &Stop,
        damage: &mut Vec<FileDamage>,
    ) -> Result<()>;

    /// A location at which backups of virtnbdbackup beside these restore points can be read; `None`
    /// if there are none.
    fn sets_location(&self) -> Option<String> {
        None
    }

    /// A sentence about the changes that a verification of these restore points cannot detect;
    /// `None` if it detects every change.
    fn caution(&self) -> Option<&'static str> {
        None
    }

    /// Whether a restore point of an earlier history was removed on purpose, alone or with its
    /// whole period.
    ///
    /// # Errors
    /// The domain's part is missing too, so its file system may have been unmounted; or the part
    /// cannot be read.
    fn is_removed(&self, kept: &Kept) -> Result<bool>;

    /// Records the result of a verification, and removes the `known` records of the same restore
    /// point: those that existed when it started ([`Kept::records`]).
    fn keep_proof(&self, proof: &Proof, known: &[String]) -> Result<()>;

    /// Records that bitmaps missed writes, so that no later backup relies on them.
    fn keep_missed_writes(&self, missed: &MissedWriteRecord) -> Result<()>;

    /// Records the result of a boot proof. Removes those of the same restore point that exist when
    /// it is called.
    fn keep_boot_proof(&self, proof: &BootProof) -> Result<()>;

    /// Removes the proofs and the records of missed writes of restore points that no longer exist.
    /// Removes nothing if it is uncertain which restore points exist.
    fn forget_removed(&self) -> Result<()>;
}

/// Options for reading a disk from front to back.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// The id of an earlier restore point of the chain. Only the data and zeroes that later restore
    /// points store are read, and the blocks leave out all other places. `None` reads the whole
    /// disk.
    pub above: Option<String>,
    /// The buffers for the blocks, which limit the memory.
    pub pool: BufferPool,
    /// The stop to check.
    pub stop: Stop,
    /// Whether to drop cached pages of the files first, so that their bytes come from the storage
    /// device.
    pub past_caches: bool,
}

/// The size and location of a period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeriodUsage {
    /// Whether it exists.
    pub exists: bool,
    /// Its location, for messages, even if it does not exist.
    pub location: String,
    /// The number of its files. Pins and the records of commits do not count.
    pub files: u64,
    /// The number of bytes that these files store: their sizes without holes.
    pub bytes: u64,
}

/// One domain's part of a repository, with the right to write to it until it is dropped.
pub trait DomainWriter: Send {
    /// Reads the domain's restore points. No other run can add, merge or remove any until this
    /// writer is dropped.
    fn history(&self) -> Result<History>;

    /// Starts a restore point in a period; `time` is its moment.
    fn begin(&self, period: &str, time: Timestamp) -> Result<Box<dyn PendingPoint>>;

    /// Starts a restore point with this id in a period: the copy of a restore point of another
    /// repository. The id may be that of a removed or missing restore point.
    ///
    /// # Errors
    /// [`RepoError::IdTaken`] if a restore point has this id, even one that is unreadable or
    /// unfinished; others as for [`DomainWriter::begin`].
    fn begin_with_id(&self, period: &str, id: &str) -> Result<Box<dyn PendingPoint>>;

    /// Records that these restore points were committed, so that a missing one is noticed later.
    fn remember_committed(&self, history: &History) -> Result<()>;

    /// Removes a period with everything in it. After the first step, the rest counts as a leftover
    /// and no longer as restore points.
    fn remove_period(&self, period: &str, now: Timestamp) -> Result<()>;

    /// Removes a restore point of this history, and records that it was removed at this moment. Its
    /// children must be removed before it. If the removal is interrupted, the restore point is
    /// either still there, or the rest counts as a leftover.
    ///
    /// # Errors
    /// [`RepoError::Needed`] if a child exists; others if it was not removed, or only in part.
    fn remove_point(&self, history: &History, id: &str, now: Timestamp) -> Result<()>;

    /// Removes restore points of this history, after merging the data that their only child needs
    /// into it. Either all of them are removed or none. The removal is recorded.
    ///
    /// # Errors
    /// [`RepoError::Needed`] if any other restore point depends on them, [`RepoError::NotWhole`] if
    /// one is missing or a chain has a fault; others if a step failed. If only the last steps
    /// failed, the restore points are removed nevertheless, and a later run finishes the merge.
    fn merge_points(&self, history: &History, merge: &Merge<'_>) -> Result<Merged>;

    /// Pins a restore point of this history, and replaces an existing pin.
    ///
    /// # Errors
    /// The pin cannot be written. An existing pin that cannot be read is an error too, and stays.
    fn pin(&self, kept: &Kept, pin: &Pin) -> Result<()>;

    /// Unpins a restore point of this history, and returns whether it was pinned. Removes an
    /// unreadable pin too.
    fn unpin(&self, kept: &Kept) -> Result<bool>;

    /// Finishes one of [`DomainRepository::interrupted_removals`]; an interrupted merge is
    /// completed or undone. Returns false if this has to wait, for example until no process reads
    /// the files.
    fn finish_removal(&self, removal: &Leftover) -> Result<bool>;

    /// Marks the domain durably before a restore in place writes to its disks. Replaces an existing
    /// mark in one step.
    fn write_restore_mark(&self, mark: &[u8]) -> Result<()>;

    /// Removes the mark durably. A missing one is not an error.
    fn remove_restore_mark(&self) -> Result<()>;

    /// Removes a leftover of an unfinished run: one of [`History::leftovers`].
    fn remove_leftover(&self, leftover: &Leftover) -> Result<()>;
}

/// A restore point that is being written. If it is dropped before the commit, it is removed as far
/// as possible; the next run removes the rest.
pub trait PendingPoint: Send + Sync {
    /// The id that the restore point will have.
    fn id(&self) -> &str;

    /// Writes the journal entry before something is started outside the repository, so that the
    /// next run can undo it if this run cannot.
    fn write_note(&self, note: &[u8]) -> Result<()>;

    /// Starts the image of a disk, and returns the sink for its blocks. An earlier attempt at the
    /// same disk is replaced.
    fn sink(&self, disk: &NewDisk<'_>) -> Result<Box<dyn BlockSink>>;

    /// The manifest's entry for a disk whose sink has finished.
    fn entry(&self, target: &str, written: &Written) -> FileEntry;

    /// Writes a small file.
    fn put(&self, file: SmallFile, content: &[u8]) -> Result<FileEntry>;

    /// Writes the XML of the checkpoint that was made with the restore point.
    fn put_checkpoint(&self, checkpoint: &str, xml: &str) -> Result<FileEntry>;

    /// Commits the restore point and returns its location. Until then the restore point does not
    /// exist; from then on it is whole.
    ///
    /// After an error the restore point may exist nevertheless: if only the last sync failed, a
    /// crash could still undo the commit.
    fn commit(&mut self, manifest: &Manifest) -> Result<String>;

    /// Leaves the uncommitted restore point in place with its journal entry, so that the next run
    /// undoes what was started. Returns its location.
    fn leave(self: Box<Self>) -> String;
}

/// A disk of a restore point being written.
#[derive(Clone, Debug)]
pub struct NewDisk<'a> {
    /// Its target.
    pub target: &'a str,
    /// Its size in bytes.
    pub size: u64,
    /// The parent of its image; `None` for a full image.
    pub parent: Option<&'a Kept>,
    /// How its data is compressed.
    pub compression: Compression,
    /// The stop to check.
    pub stop: Stop,
}

/// Refuses the path of a folder that holds a pack repository.
fn check_kind(folder: &Path) -> Result<()> {
    match pack::is_in_folder(folder) {
        true => Err(PackError::PackFolder(folder.to_owned()).into()),
        false => Ok(()),
    }
}

/// Whether this is the location of a pack repository, and not the path of a folder.
///
/// # Errors
/// The text begins like the location of a pack repository, but is invalid.
pub(crate) fn is_pack(location: &Path) -> Result<bool> {
    Ok(PackLocation::parse(location.as_os_str())?.is_some())
}

/// Whether this is the location of sets of virtnbdbackup, and not the path of a folder.
pub(crate) fn is_sets(location: &Path) -> bool {
    sets::is_location(location)
}

/// Opens the sets of virtnbdbackup at this location.
///
/// # Errors
/// There are no sets, or they cannot be read.
pub(crate) fn open_sets(location: &Path) -> Result<Box<dyn Repository>> {
    let zone = jiff::tz::TimeZone::system();
    Ok(Box::new(SetsRepository::open(location, zone)?))
}

/// Opens a pack repository.
///
/// # Errors
/// There is no pack repository, or it cannot be used.
pub(crate) fn open_pack(location: &Path, stop: &Stop) -> PackResult<PackRepository> {
    PackRepository::open(&pack_location(location)?, stop)
}

/// Creates a pack repository.
///
/// # Errors
/// The errors of [`PackRepository::create`].
pub(crate) fn create_pack(location: &Path, creation: &Creation, stop: &Stop) -> PackResult<NewPack> {
    PackRepository::create(&pack_location(location)?, creation, stop)
}

fn pack_location(location: &Path) -> PackResult<PackLocation> {
    let found = PackLocation::parse(location.as_os_str())?;
    found.ok_or_else(|| PackError::OtherKind {
        location: location.display().to_string(),
    })
}

/// Opens an existing repository in a folder.
pub fn open(location: &Path) -> Result<Box<dyn Repository>> {
    check_kind(location)?;
    Ok(Box::new(FolderRepository::open(location, Arc::new(DiskStore))?))
}

/// Opens a repository in a folder for writing. Its last folder is created if the parent folder
/// exists.
pub fn open_or_create(location: &Path) -> Result<Box<dyn Repository>> {
    check_kind(location)?;
    Ok(Box::new(FolderRepository::open_or_create(
        location,
        Arc::new(DiskStore),
    )?))
}

/// Opens a repository in a folder for reading. A repository that does not exist yet is empty.
pub(crate) fn open_or_empty(location: &Path) -> Result<Box<dyn Repository>> {
    check_kind(location)?;
    Ok(Box::new(FolderRepository::open_or_empty(
        location,
        Arc::new(DiskStore),
    )?))
}
