//! A restore point that is being written. It has its own type and its own name on disk until it is
//! committed.
//!
//! Order of a commit: the files, each synced when it is finished; the manifest, synced; the folder,
//! synced; the folder renamed to its final name; its parent synced. A crash before the rename
//! leaves a `.partial` folder, which readers ignore and the next run removes.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::committed;
use super::images;
use super::layout;
use super::look::{entries, folder_names};
use super::remove;
use super::removed;
use crate::image::qcow2::Qcow2Options;
use crate::io::Store;
use crate::model::block::{BlockSink, ImageFile, Written};
use crate::model::restore_point::id_of;
use crate::repo::{FileEntry, Manifest, NewDisk, PendingPoint, RepoError, Result, SmallFile};

/// A restore point that is being written into a folder. If it is dropped before the commit, it is
/// removed as far as possible; the next run removes the rest.
pub(super) struct FolderPending {
    store: Arc<dyn Store>,
    id: String,
    period: String,
    period_dir: PathBuf,
    dir: PathBuf,
    /// The images that were started.
    begun: Mutex<BTreeSet<String>>,
    kept: bool,
}

/// The id that a new restore point gets.
#[derive(Clone, Copy, Debug)]
pub(super) enum NewId<'a> {
    /// A free id for this moment.
    Of(Timestamp),
    /// This id, if it is free.
    Given(&'a str),
}

impl FolderPending {
    pub(super) fn create(
        store: Arc<dyn Store>,
        domain_dir: &Path,
        period: &str,
        new: NewId<'_>,
    ) -> Result<FolderPending> {
        let id = match new {
            NewId::Of(time) => free_id(domain_dir, time)?,
            NewId::Given(id) => given_id(domain_dir, id)?,
        };
        let period_dir = domain_dir.join(period);
        ensure_dir(store.as_ref(), &period_dir)?;
        store
            .sync_dir(domain_dir)
            .map_err(RepoError::io("sync", domain_dir))?;
        let dir = period_dir.join(format!("{id}{}", layout::PARTIAL));
        store
            .create_dir(&dir)
            .map_err(RepoError::io("create the folder", &dir))?;
        Ok(FolderPending {
            store,
            id,
            period: period.to_owned(),
            period_dir,
            dir,
            begun: Mutex::default(),
            kept: false,
        })
    }

    /// Creates the file of an image, in place of an earlier attempt.
    fn create_image(&self, name: &str) -> Result<Box<dyn ImageFile>> {
        let path = self.dir.join(name);
        let is_new = self
            .begun
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned());
        if !is_new {
            remove_if_there(self.store.as_ref(), &path, "remove")?;
        }
        self.store
            .create_image(&path)
            .map_err(RepoError::io("create", &path))
    }

    fn write(&self, path: &Path, name: &str, content: &[u8]) -> Result<FileEntry> {
        self.store
            .create_file(path, content)
            .map_err(RepoError::io("write", path))?;
        Ok(FileEntry {
            name: name.to_owned(),
            size: content.len() as u64,
            blake3: blake3::hash(content).to_hex().to_string(),
            pieces: None,
            unused: None,
        })
    }
}

impl PendingPoint for FolderPending {
    fn id(&self) -> &str {
        &self.id
    }

    fn write_note(&self, note: &[u8]) -> Result<()> {
        let path = self.dir.join(layout::INTENT);
        self.store
            .create_file(&path, note)
            .map_err(RepoError::io("write", &path))?;
        self.store
            .sync_dir(&self.dir)
            .map_err(RepoError::io("sync", &self.dir))?;
        self.store
            .sync_dir(&self.period_dir)
            .map_err(RepoError::io("sync", &self.period_dir))
    }

    fn sink(&self, disk: &NewDisk<'_>) -> Result<Box<dyn BlockSink>> {
        let image = layout::image(disk.target);
        let file = self.create_image(&image)?;
        let options = Qcow2Options {
            path: self.dir.join(image),
            size: disk.size,
            backing: disk
                .parent
                .and_then(|parent| layout::backing(&parent.manifest.point, disk.target, &self.period)),
            detect_zeroes: true,
            stop: disk.stop.clone(),
        };
        images::writer(file, options, disk.compression)
    }

    fn entry(&self, target: &str, written: &Written) -> FileEntry {
        images::entry(&layout::image(target), written)
    }

    fn put(&self, file: SmallFile, content: &[u8]) -> Result<FileEntry> {
        self.write(&self.dir.join(file.name()), file.name(), content)
    }

    fn put_checkpoint(&self, checkpoint: &str, xml: &str) -> Result<FileEntry> {
        let name = format!("{checkpoint}.xml");
        let dir = self.period_dir.join(layout::CHECKPOINTS);
        ensure_dir(self.store.as_ref(), &dir)?;
        let path = dir.join(&name);
        // A run that failed after this step may have left one. No manifest names it, because
        // otherwise this name would not be used again.
        remove_if_there(self.store.as_ref(), &path, "replace")?;
        let entry = self.write(&path, &name, xml.as_bytes())?;
        // The folder may be new: its name in the period's folder has to survive as well.
        for dir in [&dir, &self.period_dir] {
            self.store.sync_dir(dir).map_err(RepoError::io("sync", dir))?;
        }
        Ok(entry)
    }

    fn commit(&mut self, manifest: &Manifest) -> Result<String> {
        let id = &self.id;
        let text = manifest.to_text().map_err(|source| RepoError::Manifest {
            id: id.clone(),
            source,
        })?;
        let path = self.dir.join(layout::MANIFEST);
        self.store
            .create_file(&path, text.as_bytes())
            .map_err(RepoError::io("write", &path))?;
        self.store
            .sync_dir(&self.dir)
            .map_err(RepoError::io("sync", &self.dir))?;
        let dir = self.period_dir.join(manifest.point.folder());
        self.store
            .rename(&self.dir, &dir)
            .map_err(RepoError::io("commit", &dir))?;
        self.store
            .sync_dir(&self.period_dir)
            .map_err(RepoError::io("sync", &self.period_dir))?;
        self.kept = true;
        // Only now, because before the commit the next run needs the journal entry. In a finished
        // restore point it has no meaning.
        let _ = self.store.remove_file(&dir.join(layout::INTENT));
        Ok(dir.display().to_string())
    }

    fn leave(mut self: Box<Self>) -> String {
        self.kept = true;
        self.dir.display().to_string()
    }
}

impl Drop for FolderPending {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: the rest is a `.partial` folder, which the next run removes.
            let _ = remove_partial(self.store.as_ref(), &self.dir);
        }
    }
}

/// Removes the folder of an unfinished run, and also its period's folder if it is then empty.
pub(super) fn remove_partial(store: &dyn Store, dir: &Path) -> Result<()> {
    // The journal entry goes last, so that it exists until the rest of the run is gone.
    remove::tree(store, dir, is_intent)?;
    if let Some(period_dir) = dir.parent() {
        // These calls fail, as intended, if the folders are not empty.
        let _ = store.remove_dir(&period_dir.join(layout::CHECKPOINTS));
        let _ = store.remove_dir(period_dir);
    }
    Ok(())
}

fn is_intent(path: &Path) -> bool {
    path.ends_with(layout::INTENT)
}

pub(super) fn remove_if_there(store: &dyn Store, path: &Path, operation: &'static str) -> Result<()> {
    match store.remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RepoError::io(operation, path)(error)),
        _ => Ok(()),
    }
}

fn ensure_dir(store: &dyn Store, dir: &Path) -> Result<()> {
    match store.create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(RepoError::io("create the folder", dir)(error))
        }
        _ => Ok(()),
    }
}

/// An id that no restore point of the domain has, including missing ones and removed ones on
/// record. A second restore point within one second gets a suffix.
pub(super) fn free_id(domain_dir: &Path, time: Timestamp) -> Result<String> {
    let stem = id_of(time);
    // The ids of recorded removed restore points are not used again.
    let (removed, _) = removed::read(domain_dir)?;
    let mut taken: Vec<String> = removed
        .into_iter()
        .map(|point| format!("{}.", point.id))
        .collect();
    for period_dir in periods(domain_dir)? {
        taken.extend(entries(&period_dir)?.into_iter().map(|(name, _)| name));
        // A missing restore point keeps its id.
        taken.extend(committed::read(&period_dir)?);
    }
    let is_free = |id: &String| !has(&taken, id);
    let numbered = (2u32..).map(|count| format!("{stem}-{count}"));
    let mut candidates = std::iter::once(stem.clone()).chain(numbered);
    // There are more numbers than folders.
    Ok(candidates.find(is_free).unwrap_or(stem))
}

/// The id, unless a folder of the domain has it. The copy of a missing restore point replaces it.
fn given_id(domain_dir: &Path, id: &str) -> Result<String> {
    let id = id.to_owned();
    for period_dir in periods(domain_dir)? {
        let names = entries(&period_dir)?.into_iter().map(|(name, _)| name);
        if has(&names.collect::<Vec<_>>(), &id) {
            return Err(RepoError::IdTaken { id });
        }
    }
    Ok(id)
}

/// Whether the folder of a restore point, finished or not, has this id.
fn has(taken: &[String], id: &str) -> bool {
    let own = format!("{id}.");
    taken.iter().any(|folder| folder.starts_with(&own))
}

/// The folders of the domain's periods.
fn periods(domain_dir: &Path) -> Result<Vec<PathBuf>> {
    let names = folder_names(domain_dir)?.into_iter();
    Ok(names.map(|name| domain_dir.join(name)).collect())
}
