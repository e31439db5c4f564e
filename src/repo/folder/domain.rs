//! One domain's folder, for reading and writing.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::images::{self, FolderDisk};
use super::look::{is_of_another_kind, read_bounded};
use super::pending::{self, FolderPending, NewId};
use super::{
    FolderRepository, check, committed, continued, history, layout, merge, pins, point, proofs, readers,
    remove, removed, sync_name, usage,
};
use crate::image::chain::{ChainDisk, ChainImage, ChainSource};
use crate::io::Store;
use crate::model::block::{BlockError, BlockSource};
use crate::model::chain::RemovedPoint;
use crate::model::period::COPY_PREFIX;
use crate::model::pin::Pin;
use crate::model::stop::Stop;
use crate::repo::lock;
use crate::repo::restore_mark;
use crate::repo::sets;
use crate::repo::{
    BootProof, DiskReader, DomainRepository, DomainWriter, FileDamage, FileWatch, History, Identity, Kept,
    Leftover, Merge, Merged, MissedWriteRecord, Note, PendingPoint, PeriodUsage, Proof, RepoError,
    Repository, Result, SmallFile, SourceOptions, manifest,
};

/// The largest file that is read into memory as a whole, in bytes. UEFI variables and XML are far
/// smaller.
const MAX_SMALL_FILE: u64 = 256 << 20;

/// One domain's folder. Processes can read it while another one writes to it.
#[derive(Clone)]
pub(super) struct FolderDomain {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) repository: FolderRepository,
}

impl FolderDomain {
    fn store(&self) -> &Arc<dyn Store> {
        &self.repository.store
    }

    /// The folder of a restore point. A manifest is only accepted from the folder that it names.
    fn point_dir(&self, kept: &Kept) -> PathBuf {
        let point = &kept.manifest.point;
        self.dir.join(&point.period).join(point.folder())
    }

    fn images(
        &self,
        history: &History,
        id: &str,
        target: &str,
        above: Option<&str>,
    ) -> Result<Vec<ChainImage>> {
        images::open(history, id, target, above, |kept| self.point_dir(kept))
    }
}

impl DomainRepository for FolderDomain {
    fn name(&self) -> &str {
        &self.name
    }

    fn location(&self) -> String {
        self.dir.display().to_string()
    }

    fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    fn identity(&self) -> Identity {
        self.repository.identity()
    }

    fn history(&self) -> Result<History> {
        let guard = readers::share(&self.dir)?;
        Ok(History {
            _guard: Some(Box::new(guard)),
            can_continue: continued::can_continue(&self.dir),
            ..history::read(&self.dir, &self.name)?
        })
    }

    fn used_periods(&self) -> Result<Vec<String>> {
        history::used_periods(&self.dir)
    }

    fn period_usage(&self, period: &str) -> PeriodUsage {
        usage::of(&self.dir.join(period))
    }

    fn copy_period(&self, time: Timestamp) -> Result<String> {
        pending::free_id(&self.dir, time).map(|id| format!("{COPY_PREFIX}{id}"))
    }

    fn sets_location(&self) -> Option<String> {
        sets::are_in_folder(&self.dir).then(|| sets::location_of(self.repository.root()))
    }

    fn interrupted_removals(&self) -> Result<Vec<Leftover>> {
        let removals = remove::interrupted(&self.dir)?.into_iter();
        let removals = removals.map(|key| Leftover {
            location: self.dir.join(&key).display().to_string(),
            key,
            is_merge: false,
        });
        // The folder of a merge is that of the restore point that stays, so its note is named.
        let merges = merge::interrupted(&self.dir)?.into_iter();
        let merges = merges.map(|key| Leftover {
            location: self.dir.join(&key).join(layout::MERGING).display().to_string(),
            key,
            is_merge: true,
        });
        Ok(removals.chain(merges).collect())
    }

    fn has_leftover(&self, leftover: &Leftover) -> bool {
        self.dir.join(&leftover.key).exists()
    }

    fn note(&self, leftover: &Leftover) -> Result<Note> {
        let path = self.dir.join(&leftover.key).join(layout::INTENT);
        match read_bounded(&path, manifest::MAX_BYTES) {
            Ok(bytes) => Ok(Note::Text(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Note::None),
            Err(error) if is_of_another_kind(&error) => Ok(Note::Unusable(format!(
                "{} is not a journal entry: {error}",
                path.display()
            ))),
            Err(error) => Err(RepoError::io("read", &path)(error)),
        }
    }

    fn restore_mark(&self) -> Result<Note> {
        restore_mark::read(&self.dir.join(layout::RESTORING))
    }

    fn restore_mark_location(&self) -> String {
        self.dir.join(layout::RESTORING).display().to_string()
    }

    fn writer(&self) -> Option<String> {
        lock::holder(&self.dir.join(layout::LOCK))
    }

    fn try_lock(&self) -> Result<Box<dyn DomainWriter>> {
        self.repository.check_still_there()?;
        let store = self.store();
        match store.create_dir(&self.dir) {
            Ok(()) => sync_name(store.as_ref(), &self.dir)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(RepoError::io("create the folder", &self.dir)(error)),
        }
        let path = self.dir.join(layout::LOCK);
        match lock::acquire(&path) {
            Ok(lock) => Ok(Box::new(FolderWriter {
                domain: self.clone(),
                _lock: lock,
            })),
            Err(lock::LockError::Held(holder)) => Err(RepoError::Locked {
                location: path.display().to_string(),
                holder,
                waited: Duration::ZERO,
            }),
            Err(lock::LockError::Io(path, source)) => Err(RepoError::io("lock", &path)(source)),
        }
    }

    fn open_disk(
        &self,
        history: &History,
        id: &str,
        target: &str,
        stop: &Stop,
    ) -> Result<Arc<dyn DiskReader>> {
        let images = self.images(history, id, target, None)?;
        let disk = ChainDisk::open(images, stop.clone()).map_err(BlockError::from)?;
        Ok(Arc::new(FolderDisk(disk)))
    }

    fn open_source(
        &self,
        history: &History,
        id: &str,
        target: &str,
        options: &SourceOptions,
    ) -> Result<Box<dyn BlockSource>> {
        let images = self.images(history, id, target, options.above.as_deref())?;
        if options.past_caches {
            images.iter().for_each(ChainImage::forget_cached);
        }
        let open = match options.above {
            Some(_) => ChainSource::open_part,
            None => ChainSource::open,
        };
        let source = open(images, options.pool.clone(), options.stop.clone());
        Ok(Box::new(source.map_err(BlockError::from)?))
    }

    fn read_file(&self, kept: &Kept, file: SmallFile) -> std::result::Result<Vec<u8>, String> {
        let path = self.point_dir(kept).join(file.name());
        let Some(entry) = file.entry(&kept.manifest) else {
            return Err(format!("{} is not in the manifest", path.display()));
        };
        if let Some(fault) = point::fault_of(&path, entry) {
            return Err(fault);
        }
        let bytes = read_bounded(&path, MAX_SMALL_FILE)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        let digest = blake3::hash(&bytes).to_hex();
        if !digest.as_str().eq_ignore_ascii_case(&entry.blake3) {
            return Err(format!(
                "{} is damaged: its digest does not match the manifest",
                path.display()
            ));
        }
        Ok(bytes)
    }

    fn check_files(
        &self,
        history: &History,
        kept: &Kept,
        watch: &mut dyn FileWatch,
        stop: &Stop,
        damage: &mut Vec<FileDamage>,
    ) -> Result<()> {
        let point_dir = self.point_dir(kept);
        check::Check {
            domain_dir: &self.dir,
            history,
            watch,
            stop,
            damage,
        }
        .run(&point_dir, kept)
    }

    fn is_removed(&self, kept: &Kept) -> Result<bool> {
        // A removal renames the period or restore point before it deletes files.
        let period = self.dir.join(&kept.manifest.point.period);
        if !history::is_gone(&period) {
            let id = &kept.manifest.point.id;
            let is_it = |point: &RemovedPoint| point.id == *id;
            return Ok(
                history::is_gone(&self.point_dir(kept)) && removed::read(&self.dir)?.0.iter().any(is_it)
            );
        }
        // Files that disappear together with the domain's whole folder, as after an unmount, were
        // not removed on purpose.
        match self.dir.metadata() {
            Ok(_) => Ok(true),
            Err(error) => Err(RepoError::io("examine", &self.dir)(error)),
        }
    }

    fn keep_proof(&self, proof: &Proof, known: &[String]) -> Result<()> {
        proofs::keep(self.store().as_ref(), &self.dir, proof, known)
    }

    fn keep_missed_writes(&self, missed: &MissedWriteRecord) -> Result<()> {
        proofs::keep_missed_writes(self.store().as_ref(), &self.dir, missed)
    }

    fn keep_boot_proof(&self, proof: &BootProof) -> Result<()> {
        proofs::keep_boot(self.store().as_ref(), &self.dir, proof)
    }

    fn forget_removed(&self) -> Result<()> {
        let ids_there = || history::ids_that_may_be_there(&self.dir);
        proofs::forget_removed(self.store().as_ref(), &self.dir, ids_there)
    }
}

/// One domain's folder, with the right to write to it.
struct FolderWriter {
    domain: FolderDomain,
    _lock: lock::DomainLock,
}

impl DomainWriter for FolderWriter {
    /// Without a guard, because only the holder of this lock merges.
    fn history(&self) -> Result<History> {
        Ok(History {
            can_continue: continued::can_continue(&self.domain.dir),
            ..history::read(&self.domain.dir, &self.domain.name)?
        })
    }

    fn begin(&self, period: &str, time: Timestamp) -> Result<Box<dyn PendingPoint>> {
        self.create(period, NewId::Of(time))
    }

    fn begin_with_id(&self, period: &str, id: &str) -> Result<Box<dyn PendingPoint>> {
        self.create(period, NewId::Given(id))
    }

    fn remember_committed(&self, history: &History) -> Result<()> {
        let store = self.domain.store().as_ref();
        let points = || history.kept.iter().map(|kept| &kept.manifest.point);
        let periods: BTreeSet<&str> = points().map(|point| point.period.as_str()).collect();
        for period in periods {
            let folders: Vec<String> = points()
                .filter(|point| point.period == period)
                .map(|point| point.folder())
                .collect();
            let names = folders.iter().map(String::as_str);
            committed::remember(store, &self.domain.dir.join(period), names)?;
        }
        Ok(())
    }

    fn remove_period(&self, period: &str, _now: Timestamp) -> Result<()> {
        remove::period(self.domain.store().as_ref(), &self.domain.dir, period)
    }

    fn remove_point(&self, history: &History, id: &str, now: Timestamp) -> Result<()> {
        let Some(kept) = history.get(id) else {
            return Err(RepoError::NotWhole {
                id: id.to_owned(),
                fault: "it is missing".to_owned(),
            });
        };
        let is_there = |child: &&Kept| !history::is_gone(&self.domain.point_dir(child));
        if let Some(child) = history.children(id).find(is_there) {
            return Err(RepoError::Needed {
                id: id.to_owned(),
                by: child.manifest.point.id.clone(),
            });
        }
        let (store, dir) = (self.domain.store().as_ref(), &self.domain.dir);
        let point = &kept.manifest.point;
        let removed = RemovedPoint {
            id: id.to_owned(),
            uuid: point.uuid.clone(),
            checkpoint: point.checkpoint.clone(),
            removed: now,
        };
        removed::remember(store, dir, &removed)?;
        remove::restore_point(store, &dir.join(&point.period), &point.folder())
    }

    fn pin(&self, kept: &Kept, pin: &Pin) -> Result<()> {
        pins::write(self.domain.store().as_ref(), &self.domain.point_dir(kept), pin)
    }

    fn unpin(&self, kept: &Kept) -> Result<bool> {
        pins::remove(self.domain.store().as_ref(), &self.domain.point_dir(kept))
    }

    fn merge_points(&self, history: &History, merge: &Merge<'_>) -> Result<Merged> {
        let place = merge::Place {
            store: self.domain.store().as_ref(),
            domain_dir: &self.domain.dir,
            dir_of: &|kept| self.domain.point_dir(kept),
            open: &|id, target| self.domain.images(history, id, target, None),
        };
        merge::merge(&place, history, merge)
    }

    fn finish_removal(&self, removal: &Leftover) -> Result<bool> {
        let (store, path) = (self.domain.store().as_ref(), self.path_of(removal));
        match merge::is_of_merge(&removal.key) {
            true => merge::finish(store, &self.domain.dir, &path),
            false => remove::finish(store, &path).map(|()| true),
        }
    }

    fn write_restore_mark(&self, mark: &[u8]) -> Result<()> {
        let path = self.domain.dir.join(layout::RESTORING);
        restore_mark::write(self.domain.store().as_ref(), &path, mark)
    }

    fn remove_restore_mark(&self) -> Result<()> {
        let path = self.domain.dir.join(layout::RESTORING);
        restore_mark::remove(self.domain.store().as_ref(), &path)
    }

    fn remove_leftover(&self, leftover: &Leftover) -> Result<()> {
        pending::remove_partial(self.domain.store().as_ref(), &self.path_of(leftover))
    }
}

impl FolderWriter {
    fn create(&self, period: &str, id: NewId<'_>) -> Result<Box<dyn PendingPoint>> {
        let store = Arc::clone(self.domain.store());
        let pending = FolderPending::create(store, &self.domain.dir, period, id)?;
        Ok(Box::new(pending))
    }

    fn path_of(&self, leftover: &Leftover) -> PathBuf {
        let key: &Path = leftover.key.as_ref();
        self.domain.dir.join(key)
    }
}
