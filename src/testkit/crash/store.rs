//! A store that dies with its process, and models what a power cut leaves of its files.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::CrashDisk;
use super::fuse::Fuse;
use crate::io::{Claim, DiskStore, Store};
use crate::model::block::ImageFile;

/// The real store, controlled by a [`Fuse`].
#[derive(Clone)]
pub struct CrashStore {
    fuse: Fuse,
    disk: Option<Arc<Mutex<CrashDisk>>>,
    clones: bool,
}

impl CrashStore {
    /// A store whose process can be killed.
    pub fn new(fuse: &Fuse) -> CrashStore {
        CrashStore {
            fuse: fuse.clone(),
            disk: None,
            clones: false,
        }
    }

    /// A store below `root` whose machine can lose its power. The files below `root` now count as
    /// durable. All paths that are given to the store must lie below it.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn with_power(fuse: &Fuse, root: &Path) -> io::Result<CrashStore> {
        Ok(CrashStore {
            fuse: fuse.clone(),
            disk: Some(Arc::new(Mutex::new(CrashDisk::read(root)?))),
            clones: false,
        })
    }

    /// The same store in the next process, which this fuse controls. Changes that earlier processes
    /// have not synced are still not durable.
    #[must_use]
    pub fn reopened(&self, fuse: &Fuse) -> CrashStore {
        CrashStore {
            fuse: fuse.clone(),
            disk: self.disk.clone(),
            clones: self.clones,
        }
    }

    /// The same store on a file system whose files can share their space. The real file system
    /// need not be one: a clone is copied.
    #[must_use]
    pub fn cloning(mut self) -> CrashStore {
        self.clones = true;
        self
    }

    /// Cuts the power: replaces the files by those that survive. Synced content survives. Of the
    /// rest, `seed` chooses nothing, everything or some.
    ///
    /// # Errors
    /// If the files cannot be written, or [`CrashStore::new`] made the store.
    pub fn cut_power(&self, seed: u64) -> io::Result<()> {
        match self.disk() {
            Some(disk) => disk.cut_power(seed),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn disk(&self) -> Option<MutexGuard<'_, CrashDisk>> {
        let disk = self.disk.as_ref()?;
        Some(disk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Performs a step on the real store and, if it succeeds, in the model of what survives.
    fn step<T>(
        &self,
        name: &str,
        path: &Path,
        real: impl FnOnce() -> io::Result<T>,
        model: impl FnOnce(&mut CrashDisk, &T),
    ) -> io::Result<T> {
        let done = self.fuse.step(
            || format!("{name} {}", path.display()),
            || {
                let mut disk = self.disk();
                let done = real()?;
                if let Some(disk) = &mut disk {
                    model(disk, &done);
                }
                Ok(done)
            },
        );
        done.unwrap_or_else(|_| Err(died()))
    }

    fn image(&self, file: Box<dyn ImageFile>, path: &Path) -> Box<dyn ImageFile> {
        let node = self.disk().map_or(0, |disk| disk.node(path));
        Box::new(CrashImage {
            store: self.clone(),
            file,
            node,
            path: path.to_owned(),
        })
    }
}

/// The piece of a file that is copied at once, in bytes.
const PIECE: usize = 64 << 10;

/// Fills a new file as a clone of another, on a file system that has no clones.
///
/// # Errors
/// Those of reading and writing.
pub fn clone_by_copying(file: &Path, name: &Path) -> io::Result<Box<dyn ImageFile>> {
    let content = std::fs::read(file)?;
    let mut clone = DiskStore.continue_image(name)?;
    clone.set_len(content.len() as u64)?;
    // Holes stay holes.
    for (number, piece) in content.chunks(PIECE).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            clone.write_at(piece, (number * PIECE) as u64)?;
        }
    }
    Ok(clone)
}

fn died() -> io::Error {
    io::Error::other("simulated: the step fails")
}

impl Store for CrashStore {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let real = || DiskStore.create_dir(path);
        self.step("create_dir", path, real, |disk, ()| disk.add_dir(path))
    }

    fn create_open_dir(&self, path: &Path) -> io::Result<()> {
        let real = || DiskStore.create_open_dir(path);
        self.step("create_open_dir", path, real, |disk, ()| disk.add_dir(path))
    }

    fn create_passage(&self, path: &Path) -> io::Result<()> {
        let real = || DiskStore.create_passage(path);
        self.step("create_passage", path, real, |disk, ()| disk.add_dir(path))
    }

    fn create_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        let real = || DiskStore.create_image(path);
        let file = self.step("create_image", path, real, |disk, _| disk.add_file(path, &[]))?;
        Ok(self.image(file, path))
    }

    fn continue_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        let real = || DiskStore.continue_image(path);
        let file = self.step("continue_image", path, real, |_, _| ())?;
        Ok(self.image(file, path))
    }

    fn clone_image(&self, file: &Path, name: &Path) -> io::Result<Box<dyn ImageFile>> {
        if !self.clones {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Two steps, as in reality: a kill in between leaves an empty file.
        let create = || DiskStore.create_image(name);
        self.step("create_clone", name, create, |disk, _| disk.add_file(name, &[]))?;
        let fill = || clone_by_copying(file, name);
        let clone = self.step("fill_clone", name, fill, |disk, _| disk.fill_clone(file, name))?;
        Ok(self.image(clone, name))
    }

    fn link(&self, file: &Path, name: &Path) -> io::Result<()> {
        let real = || DiskStore.link(file, name);
        self.step("link", name, real, |disk, ()| disk.link(file, name))
    }

    fn create_claimed(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)> {
        let real = || DiskStore.create_claimed(path);
        let (file, claim) = self.step("create_claimed", path, real, |disk, _| disk.add_file(path, &[]))?;
        Ok((self.image(file, path), claim))
    }

    fn claim_image(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)> {
        let real = || DiskStore.claim_image(path);
        // What another program has written is no part of the model.
        let (file, claim) = self.step("claim_image", path, real, |disk, _| disk.add_file(path, &[]))?;
        Ok((self.image(file, path), claim))
    }

    fn remove_unclaimed(&self, path: &Path) -> io::Result<bool> {
        let real = || DiskStore.remove_unclaimed(path);
        self.step("remove_unclaimed", path, real, |disk, removed| {
            if *removed {
                disk.remove(path);
            }
        })
    }

    fn create_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        // Three steps, as in reality: a kill in between leaves an empty or an unsynced file.
        self.step(
            "create",
            path,
            || DiskStore.create_file(path, &[]),
            |disk, ()| disk.add_file(path, &[]),
        )?;
        let node = self.disk().map_or(0, |disk| disk.node(path));
        self.step(
            "write",
            path,
            || std::fs::write(path, content),
            |disk, ()| disk.write(node, content, 0),
        )?;
        self.step("sync", path, || Ok(()), |disk, ()| disk.sync_file(node))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let real = || DiskStore.rename(from, to);
        self.step("rename", from, real, |disk, ()| disk.rename(from, to))
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        let real = || DiskStore.replace(from, to);
        self.step("replace", from, real, |disk, ()| disk.rename(from, to))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // The model stands for the disk. The real call could only report whether the folder exists.
        let real = || std::fs::metadata(path).map(drop);
        self.step("sync_dir", path, real, |disk, ()| disk.sync_dir(path))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let real = || DiskStore.remove_file(path);
        self.step("remove_file", path, real, |disk, ()| disk.remove(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let real = || DiskStore.remove_dir(path);
        self.step("remove_dir", path, real, |disk, ()| disk.remove(path))
    }
}

struct CrashImage {
    store: CrashStore,
    file: Box<dyn ImageFile>,
    node: usize,
    path: std::path::PathBuf,
}

impl ImageFile for CrashImage {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let real = || self.file.write_at(bytes, offset);
        let model = |disk: &mut CrashDisk, _: &()| disk.write(self.node, bytes, offset);
        self.store.step("write_at", &self.path, real, model)
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        let real = || self.file.set_len(length);
        let model = |disk: &mut CrashDisk, _: &()| disk.set_len(self.node, length);
        self.store.step("set_len", &self.path, real, model)
    }

    fn free(&mut self, range: Range<u64>) -> io::Result<()> {
        let real = || self.file.free(range.clone());
        let model = |disk: &mut CrashDisk, _: &()| disk.free(self.node, range.clone());
        self.store.step("free", &self.path, real, model)
    }

    fn sync(&mut self) -> io::Result<()> {
        // The model stands for the disk.
        let model = |disk: &mut CrashDisk, _: &()| disk.sync_file(self.node);
        self.store.step("sync", &self.path, || Ok(()), model)
    }
}
