//! A restore point being written. It has its own type and its own name on disk until it is committed.
//!
//! Order of a commit: the files, each synced as it is finished; the manifest, synced; the folder, synced; the folder renamed to its
//! final name; its parent synced. What a crash leaves before the rename is a `.partial` folder, which counts for nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::committed;
use super::layout;
use super::look::{entries, folder_names};
use super::remove;
use crate::io::Store;
use crate::model::block::ImageFile;
use crate::model::restore_point::id_of;
use crate::repo::{FileEntry, Manifest, RepoError, Result};

/// A restore point being written. Dropped uncommitted it is removed as far as that goes; the next run removes the rest.
pub struct Pending {
    store: Arc<dyn Store>,
    id: String,
    period_dir: PathBuf,
    dir: PathBuf,
    kept: bool,
}

impl Pending {
    pub(super) fn create(
        store: Arc<dyn Store>,
        domain_dir: &Path,
        period: &str,
        time: Timestamp,
    ) -> Result<Pending> {
        let period_dir = domain_dir.join(period);
        ensure_dir(store.as_ref(), &period_dir)?;
        store
            .sync_dir(domain_dir)
            .map_err(RepoError::io("sync", domain_dir))?;
        let id = free_id(domain_dir, time)?;
        let dir = period_dir.join(format!("{id}{}", layout::PARTIAL));
        store
            .create_dir(&dir)
            .map_err(RepoError::io("create the folder", &dir))?;
        Ok(Pending {
            store,
            id,
            period_dir,
            dir,
            kept: false,
        })
    }

    /// Id of the restore point that this becomes.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The folder while it is being written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes down what is about to be begun outside the repository, so that the next run can end it if this one cannot.
    pub fn write_intent(&self, intent: &[u8]) -> Result<()> {
        let path = self.dir.join(layout::INTENT);
        self.store
            .create_file(&path, intent)
            .map_err(RepoError::io("write", &path))?;
        self.store
            .sync_dir(&self.dir)
            .map_err(RepoError::io("sync", &self.dir))?;
        self.store
            .sync_dir(&self.period_dir)
            .map_err(RepoError::io("sync", &self.period_dir))
    }

    /// Creates the file of an image.
    pub fn create_image(&self, name: &str) -> Result<Box<dyn ImageFile>> {
        let path = self.dir.join(name);
        self.store
            .create_image(&path)
            .map_err(RepoError::io("create", &path))
    }

    /// Removes the file of an image that is to be made anew, if there is one yet.
    pub fn remove_image(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        match self.store.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RepoError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes a small file.
    pub fn add_file(&self, name: &str, content: &[u8]) -> Result<FileEntry> {
        self.write(&self.dir.join(name), name, content)
    }

    /// Writes the checkpoint's XML into the period's `checkpoints` folder.
    pub fn add_checkpoint(&self, checkpoint: &str, xml: &str) -> Result<FileEntry> {
        let name = format!("{checkpoint}.xml");
        let dir = self.period_dir.join(layout::CHECKPOINTS);
        ensure_dir(self.store.as_ref(), &dir)?;
        let path = dir.join(&name);
        // A run that failed after this step may have left one; no manifest names it, or the number would not be used again.
        match self.store.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RepoError::io("replace", &path)(error));
            }
            _ => {}
        }
        let entry = self.write(&path, &name, xml.as_bytes())?;
        self.store.sync_dir(&dir).map_err(RepoError::io("sync", &dir))?;
        Ok(entry)
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
        })
    }

    /// Makes it a restore point. After this it exists, whole; before it, nothing does.
    ///
    /// After an error it may be there nevertheless, when only its survival of a crash is uncertain.
    pub fn commit(&self, manifest: &Manifest) -> Result<PathBuf> {
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
        // Only now: until the commit it tells the next run what there is to end. In a finished restore point it means nothing.
        let _ = self.store.remove_file(&dir.join(layout::INTENT));
        Ok(dir)
    }

    /// It is committed: nothing of it is to be removed.
    pub fn done(mut self) {
        self.kept = true;
    }

    /// Leaves the folder with its intent as it is, for the next run to end what was begun. Gives the folder.
    pub fn leave(mut self) -> PathBuf {
        self.kept = true;
        self.dir.clone()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: what stays is a `.partial`, which the next run removes.
            let _ = remove_partial(self.store.as_ref(), &self.dir);
        }
    }
}

/// Removes the folder of an unfinished run, and its period's folder where that run had only just created it.
pub(super) fn remove_partial(store: &dyn Store, dir: &Path) -> Result<()> {
    // The intent goes last: as long as something of the run is left, so is the note of what it began.
    remove::tree(store, dir, is_intent)?;
    if let Some(period_dir) = dir.parent() {
        // These fail, as they should, as soon as anything is in the folders.
        let _ = store.remove_dir(&period_dir.join(layout::CHECKPOINTS));
        let _ = store.remove_dir(period_dir);
    }
    Ok(())
}

fn is_intent(path: &Path) -> bool {
    path.ends_with(layout::INTENT)
}

fn ensure_dir(store: &dyn Store, dir: &Path) -> Result<()> {
    match store.create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(RepoError::io("create the folder", dir)(error))
        }
        _ => Ok(()),
    }
}

/// An id that no restore point of the domain has or had: two restore points within one second get a suffix.
pub(super) fn free_id(domain_dir: &Path, time: Timestamp) -> Result<String> {
    let stem = id_of(time);
    let mut taken = Vec::new();
    for period in folder_names(domain_dir)? {
        let period_dir = domain_dir.join(period);
        taken.extend(entries(&period_dir)?.into_iter().map(|(name, _)| name));
        // One that has gone keeps its id.
        taken.extend(committed::read(&period_dir)?);
    }
    let is_free = |id: &String| {
        let own = format!("{id}.");
        !taken.iter().any(|folder| folder.starts_with(&own))
    };
    let numbered = (2u32..).map(|count| format!("{stem}-{count}"));
    let mut candidates = std::iter::once(stem.clone()).chain(numbered);
    // The numbers do not end before the folders do.
    Ok(candidates.find(is_free).unwrap_or(stem))
}
