//! A store that counts the bytes that are written, and decides whether files can be cloned.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmsnap::io::{Claim, DiskStore, Store};
use vmsnap::model::block::ImageFile;
use vmsnap::testkit::clone_by_copying;

/// What comes of a clone.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Clones {
    #[default]
    Unsupported,
    Whole,
    /// Only the beginning, although the file system reports success.
    Beginning,
    NoSpace,
}

/// A store that counts the bytes that are written, whatever the real file system is.
#[derive(Clone, Default)]
pub struct CountingStore {
    written: Arc<AtomicU64>,
    clones: Clones,
}

impl CountingStore {
    /// A store whose clones come out like this.
    pub fn with(clones: Clones) -> CountingStore {
        CountingStore {
            clones,
            ..CountingStore::default()
        }
    }

    fn count(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    /// The bytes that were written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    fn image(&self, file: Box<dyn ImageFile>) -> Box<dyn ImageFile> {
        Box::new(CountingImage(file, self.clone()))
    }
}

struct CountingImage(Box<dyn ImageFile>, CountingStore);

impl ImageFile for CountingImage {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.count(bytes.len());
        self.0.write_at(bytes, offset)
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }

    fn free(&mut self, range: Range<u64>) -> io::Result<()> {
        self.0.free(range)
    }
}

impl Store for CountingStore {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DiskStore.create_dir(path)
    }

    fn create_open_dir(&self, path: &Path) -> io::Result<()> {
        DiskStore.create_open_dir(path)
    }

    fn create_passage(&self, path: &Path) -> io::Result<()> {
        DiskStore.create_passage(path)
    }

    fn create_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        Ok(self.image(DiskStore.create_image(path)?))
    }

    fn continue_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        Ok(self.image(DiskStore.continue_image(path)?))
    }

    fn clone_image(&self, file: &Path, name: &Path) -> io::Result<Box<dyn ImageFile>> {
        match self.clones {
            Clones::Unsupported => return Err(io::ErrorKind::Unsupported.into()),
            Clones::NoSpace => return Err(io::ErrorKind::QuotaExceeded.into()),
            Clones::Whole | Clones::Beginning => drop(DiskStore.create_image(name)?),
        }
        let mut clone = clone_by_copying(file, name)?;
        if self.clones == Clones::Beginning {
            clone.set_len(file.metadata()?.len() / 2)?;
        }
        Ok(self.image(clone))
    }

    fn link(&self, file: &Path, name: &Path) -> io::Result<()> {
        DiskStore.link(file, name)
    }

    fn create_claimed(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)> {
        DiskStore.create_claimed(path)
    }

    fn claim_image(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)> {
        DiskStore.claim_image(path)
    }

    fn remove_unclaimed(&self, path: &Path) -> io::Result<bool> {
        DiskStore.remove_unclaimed(path)
    }

    fn create_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.count(content.len());
        DiskStore.create_file(path, content)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskStore.rename(from, to)
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskStore.replace(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        DiskStore.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        DiskStore.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        DiskStore.remove_dir(path)
    }
}
