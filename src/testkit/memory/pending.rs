//! A restore point in memory that is being written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::StoredDisk;
use super::{MemoryRepository, Point};
use crate::model::block::{Block, BlockError, BlockSink, Written};
use crate::model::stop::Stop;
use crate::repo::{FileEntry, Manifest, NewDisk, PendingPoint, RepoError, Result, SmallFile};

/// A restore point that is invisible until it is committed.
pub(super) struct MemoryPending {
    pub(super) repository: MemoryRepository,
    pub(super) domain: String,
    pub(super) id: String,
    /// `PERIOD/ID`.
    pub(super) key: String,
    pub(super) disks: Arc<Mutex<BTreeMap<String, StoredDisk>>>,
    pub(super) files: Mutex<BTreeMap<String, Vec<u8>>>,
    pub(super) is_kept: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryPending {
    fn keep(&self, name: String, content: &[u8]) -> FileEntry {
        let entry = FileEntry {
            name: name.clone(),
            size: content.len() as u64,
            blake3: blake3::hash(content).to_hex().to_string(),
            pieces: None,
            unused: None,
        };
        lock(&self.files).insert(name, content.to_vec());
        entry
    }
}

impl PendingPoint for MemoryPending {
    fn id(&self) -> &str {
        &self.id
    }

    fn write_note(&self, note: &[u8]) -> Result<()> {
        self.repository.with(&self.domain, |kept| {
            kept.pending.insert(self.key.clone(), Some(note.to_vec()));
        });
        Ok(())
    }

    fn sink(&self, disk: &NewDisk<'_>) -> Result<Box<dyn BlockSink>> {
        Ok(Box::new(MemorySink {
            target: disk.target.to_owned(),
            disk: StoredDisk {
                size: disk.size,
                ..StoredDisk::default()
            },
            disks: Arc::clone(&self.disks),
            stop: disk.stop.clone(),
        }))
    }

    fn entry(&self, target: &str, written: &Written) -> FileEntry {
        FileEntry {
            name: target.to_owned(),
            size: written.file_bytes,
            blake3: written.blake3.clone().unwrap_or_default(),
            pieces: None,
            unused: None,
        }
    }

    fn put(&self, file: SmallFile, content: &[u8]) -> Result<FileEntry> {
        Ok(self.keep(file.name().to_owned(), content))
    }

    fn put_checkpoint(&self, checkpoint: &str, xml: &str) -> Result<FileEntry> {
        Ok(self.keep(format!("{checkpoint}.xml"), xml.as_bytes()))
    }

    fn commit(&mut self, manifest: &Manifest) -> Result<String> {
        let manifest = sealed(manifest)?;
        let point = Point {
            manifest,
            disks: std::mem::take(&mut lock(&self.disks)),
            files: std::mem::take(&mut lock(&self.files)),
        };
        self.repository.with(&self.domain, |kept| {
            kept.pending.remove(&self.key);
            kept.points.push(Arc::new(point));
        });
        self.is_kept = true;
        Ok(format!("memory/{}/{}", self.domain, self.key))
    }

    fn leave(mut self: Box<Self>) -> String {
        self.is_kept = true;
        format!("memory/{}/{}", self.domain, self.key)
    }
}

impl Drop for MemoryPending {
    fn drop(&mut self) {
        if !self.is_kept {
            self.repository
                .with(&self.domain, |kept| kept.pending.remove(&self.key));
        }
    }
}

/// The manifest as it reads back, with its digest.
pub(super) fn sealed(manifest: &Manifest) -> Result<Manifest> {
    let text = manifest.to_text().map_err(|source| RepoError::Manifest {
        id: manifest.point.id.clone(),
        source,
    })?;
    Ok(Manifest::parse(text.as_bytes()).expect("it reads back as it was written"))
}

struct MemorySink {
    target: String,
    disk: StoredDisk,
    disks: Arc<Mutex<BTreeMap<String, StoredDisk>>>,
    stop: Stop,
}

impl BlockSink for MemorySink {
    fn write(&mut self, block: Block) -> std::result::Result<(), BlockError> {
        if self.stop.requested() {
            return Err(BlockError::stopped());
        }
        self.disk.take(&block);
        Ok(())
    }

    fn finish(&mut self) -> std::result::Result<Written, BlockError> {
        let disk = std::mem::take(&mut self.disk);
        let written = disk.written();
        lock(&self.disks).insert(self.target.clone(), disk);
        Ok(written)
    }
}
