//! The data of a pack repository: blocks in packs, the index that finds them, and the maps of
//! disks.
//!
//! A block has an id that depends on its bytes, so equal blocks are stored once. Sealed blocks lie
//! one after another in packs. Index objects list the packs with their blocks; a local cache holds
//! what they say. The map of a disk is a tree of pages, which are blocks themselves: the id of its
//! root stands for the whole disk.
//!
//! * `id`: ids of blocks and packs.
//! * `bytes`: reads numbers from bytes of unknown content.
//! * `spare`: buffers that are used again.
//! * `sealer`: compresses, encrypts and checks blocks and records.
//! * `table`: tables and trailers of packs, and index records.
//! * `retry`: repeats calls of the store.
//! * `cache`: the local cache of the index.
//! * `index`: where blocks are.
//! * `listing`: lists objects, and the packs that exist.
//! * `packer`: collects blocks in packs, and uploads them.
//! * `blocks`: reads blocks.
//! * `page`, `leaf`: the pages of a map.
//! * `tree`: reads a map.
//! * `disk`: reads a disk with random access.
//! * `source`: reads a disk from front to back.
//! * `sink`: writes a disk.
//! * `check`: checks a disk.
//! * `stored`: reads whole packs, and their tables, without the index.
//! * `walk`: walks the map of a disk.
//! * `session`, `condemned`: objects by which writers and collectors know of each other.
//! * `commit`: what a writer does for collectors.
//! * `fuzzing`: the parsers, for the fuzz targets.
//! * `simulated`: a very large map, to measure with.
//! * `collect`: deletes what no restore point needs.
//! * `inspect`: checks the repository as a whole.
//! * `rebuild`: lists packs in the index again.

mod blocks;
mod bytes;
mod cache;
mod check;
mod collect;
mod commit;
mod condemned;
mod disk;
pub(in crate::repo::pack) mod fuzzing;
mod id;
mod index;
mod inspect;
mod leaf;
mod listing;
mod packer;
mod page;
mod rebuild;
mod retry;
mod sealer;
mod session;
#[cfg(feature = "testkit")]
mod simulated;
mod sink;
mod source;
mod spare;
mod stored;
mod table;
mod tree;
mod walk;

#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::description::{Cipher, Sizes};
use super::error::{PackError, PackErrorClass, Result};
use super::keys::MasterKey;
use super::objects::{ObjectError, ObjectErrorKind, ObjectName, ObjectStore};
use crate::model::block::{BlockError, BlockErrorKind, BlockSink, BlockSource};
use crate::model::buffer::BufferPool;
use crate::model::compression::Compression;
use crate::model::stop::{Stop, StopReason};
use crate::repo::disk::DiskReader;

#[cfg(feature = "testkit")]
pub use simulated::SimulatedMap;

pub(crate) use blocks::Reuse;
pub(crate) use check::DiskFault;
pub(crate) use id::{BlockId, PACKS};
pub(crate) use listing::PackList;
pub(crate) use {
    collect::CollectOptions,
    commit::{Needed, Writing},
    inspect::Subject,
    rebuild::RebuildOptions,
};

pub use collect::{Amount, CollectReport, Waiting};
pub use inspect::{CondemnedNote, Cost, Damage, RepositoryCheck, SessionNote};
pub use rebuild::{DamagedIndex, IndexFault, RebuildReport};

use blocks::Blocks;
use disk::PackDisk;
use index::Index;
use packer::{Packer, Shelf};
use page::{LARGEST_DISK, LARGEST_PAGE};
use sealer::{LARGEST_RECORD, Sealer};
use sink::{DiskSink, SinkContext};
use source::DiskSource;
use spare::Spare;
use tree::{Tree, TreeContext};

/// Facts about a repository that its data needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataFacts<'a> {
    /// The id of the repository, a UUID.
    pub(crate) id: &'a str,
    /// The sizes that its writers use.
    pub(crate) sizes: Sizes,
    /// How it is encrypted.
    pub(crate) cipher: Cipher,
}

/// The data of a pack repository. Clones share all state.
///
/// Memory: 64 MiB for the cache of the index, and 104 MiB for packs while something is written.
/// Each sink and each source needs some more.
#[derive(Clone)]
pub(crate) struct Data {
    shared: Arc<Shared>,
    reuse: Reuse,
}

struct Shared {
    objects: Arc<dyn ObjectStore>,
    /// The folder of the cache.
    folder: Option<PathBuf>,
    sizes: Sizes,
    sealer: Arc<Sealer>,
    index: Arc<Index>,
    blocks: Arc<Blocks>,
    packer: Arc<Packer>,
}

impl Data {
    /// Opens the data of a repository. The caller must call [`Data::refresh`] next.
    ///
    /// The cache of the index is a file in `cache`. Without a usable folder, or while another
    /// process uses the file, the cache is a temporary file, which has to be filled from the store.
    /// `stop` ends all uploads.
    ///
    /// # Errors
    /// No cache can be created.
    pub(crate) fn open(
        objects: Arc<dyn ObjectStore>,
        facts: &DataFacts<'_>,
        key: &MasterKey,
        cache: Option<&Path>,
        stop: &Stop,
    ) -> Result<Data> {
        let sealer = Arc::new(Sealer::new(key, facts.cipher));
        Data::with_sealer(objects, facts, sealer, cache, stop)
    }

    fn with_sealer(
        objects: Arc<dyn ObjectStore>,
        facts: &DataFacts<'_>,
        sealer: Arc<Sealer>,
        cache: Option<&Path>,
        stop: &Stop,
    ) -> Result<Data> {
        let largest = largest_block(&facts.sizes);
        let index = Index::open(&objects, &sealer, facts.id, cache, largest)?;
        Ok(Data::with_index(objects, facts.sizes, sealer, index, cache, stop))
    }

    fn with_index(
        objects: Arc<dyn ObjectStore>,
        sizes: Sizes,
        sealer: Arc<Sealer>,
        index: Index,
        folder: Option<&Path>,
        stop: &Stop,
    ) -> Data {
        let index = Arc::new(index);
        let packer = Packer::new(&objects, &sealer, &index, sizes.pack_bytes, stop);
        let shared = Arc::new(Shared {
            sizes,
            blocks: Arc::new(Blocks::new(&objects, &sealer, &index)),
            packer: Arc::new(packer),
            folder: folder.map(Path::to_owned),
            objects,
            sealer,
            index,
        });
        Data {
            shared,
            reuse: Reuse::Known,
        }
    }

    /// The same data, for a writer that reuses only the stored blocks that `reuse` allows.
    #[must_use]
    pub(crate) fn reusing(self, reuse: Reuse) -> Data {
        Data { reuse, ..self }
    }

    /// The same repository with an index of its own, which only contains what the store says.
    fn with_private_cache(&self, stop: &Stop) -> Result<Data> {
        let Shared {
            objects,
            sealer,
            sizes,
            ..
        } = &*self.shared;
        let folder = self.shared.folder.as_deref();
        let index = Index::private(objects, sealer, folder, self.shared.largest_block())?;
        let (objects, sealer) = (Arc::clone(objects), Arc::clone(sealer));
        Ok(Data::with_index(objects, *sizes, sealer, index, folder, stop))
    }

    /// Brings the cache of the index up to date with the store. Must be called before anything is
    /// read or written. Damaged index objects are skipped ([`Data::damaged_index`]).
    ///
    /// # Errors
    /// The store fails, or the cache cannot be written.
    pub(crate) fn refresh(&self, stop: &Stop) -> Result<()> {
        self.shared.index.refresh(stop)
    }

    /// The names of index objects that were found to be damaged. All data can be read without them,
    /// because packs have tables of their own. They only make reading slower, and can be deleted.
    pub(crate) fn damaged_index(&self) -> Vec<String> {
        self.shared.index.damaged_objects()
    }

    /// Stores bytes as blocks. They can be read after the next [`Data::flush`].
    ///
    /// # Errors
    /// An upload has failed, or a stop was requested.
    pub(crate) fn put(&self, bytes: &[u8], stop: &Stop) -> Result<Vec<BlockId>> {
        let shared = &self.shared;
        let mut zstd = sealer::compressor(Compression::default()).map_err(PackError::Seal)?;
        let mut ids = Vec::new();
        for block in bytes.chunks(shared.sizes.block_bytes as usize) {
            let id = shared.sealer.id(block);
            if !shared.blocks.is_stored(&id, self.reuse, stop)? {
                let sealed = shared.sealer.seal_block(&id, block, zstd.as_mut());
                let sealed = sealed.map_err(PackError::Seal)?.bytes;
                shared.packer.add(Shelf::Data, id, &sealed, block.len(), stop)?;
            }
            ids.push(id);
        }
        Ok(ids)
    }

    /// Reads blocks of at most `most` bytes in total, and returns their bytes one after another.
    ///
    /// # Errors
    /// [`PackError::Damaged`] if a block is damaged or missing, or the blocks are larger; others if
    /// the store fails.
    pub(crate) fn get(&self, ids: &[BlockId], most: u64, stop: &Stop) -> Result<Vec<u8>> {
        let blocks = &self.shared.blocks;
        let mut total = 0;
        for id in ids {
            total += u64::from(blocks.locate(id, stop)?.plain);
            if total > most {
                return Err(PackError::Damaged {
                    location: self.shared.objects.location(),
                    object: format!("block {id}"),
                    why: format!("it is part of a file of more than {most} bytes"),
                });
            }
        }
        let mut bytes = Vec::new();
        for id in ids {
            bytes.extend(blocks.read(id, stop)?);
        }
        Ok(bytes)
    }

    /// Begins a disk of `size` bytes. With a parent, given by its root and its size, everything
    /// that is not written stays as in the parent. In [`crate::model::block::Written`], `blake3` is
    /// the id of the root, and `file_bytes` is the number of bytes that this disk added to packs.
    ///
    /// # Errors
    /// [`PackError::Damaged`] if a pack that the parent needs is missing or too short; others if
    /// the parent cannot be read, or no thread can be started.
    pub(crate) fn sink(
        &self,
        size: u64,
        parent: Option<(BlockId, u64)>,
        compression: Compression,
        stop: Stop,
    ) -> Result<Box<dyn BlockSink>> {
        if size > LARGEST_DISK {
            let why = format!("a disk has more than {LARGEST_DISK} bytes");
            return Err(PackError::Seal(std::io::Error::other(why)));
        }
        let parent = match parent {
            Some((root, size)) => {
                self.check_parent(root, size, &stop)?;
                Some(self.open_disk(root, size, stop.clone())?)
            }
            None => None,
        };
        let context = SinkContext {
            sealer: Arc::clone(&self.shared.sealer),
            packer: Arc::clone(&self.shared.packer),
            blocks: Arc::clone(&self.shared.blocks),
            block_bytes: self.shared.sizes.block_bytes,
            compression,
            reuse: self.reuse,
            stop,
            spare: Spare::new(sink::SPARE),
        };
        Ok(Box::new(DiskSink::new(context, size, parent)?))
    }

    /// Makes sure that everything a parent needs is there: what is not written stays as in the
    /// parent, so nobody would look at it. Looks at the map only if a pack is missing.
    fn check_parent(&self, root: BlockId, size: u64, stop: &Stop) -> Result<()> {
        if self.shared.blocks.has_all_packs(stop)? {
            return Ok(());
        }
        let mut fault = None;
        let packs = self.packs(stop)?;
        self.check_disk(root, size, &packs, false, stop, &mut |found| {
            fault.get_or_insert(found.what);
        })?;
        match fault {
            None => Ok(()),
            Some(why) => Err(PackError::Damaged {
                location: self.shared.objects.location(),
                object: "a disk of the parent".to_owned(),
                why,
            }),
        }
    }

    /// Opens a disk for random access.
    ///
    /// # Errors
    /// Its root is damaged or missing, or the store fails.
    pub(crate) fn disk(&self, root: BlockId, size: u64, stop: Stop) -> Result<Arc<dyn DiskReader>> {
        Ok(self.open_disk(root, size, stop)?)
    }

    fn open_disk(&self, root: BlockId, size: u64, stop: Stop) -> Result<Arc<PackDisk>> {
        Ok(Arc::new(PackDisk::new(self.open_tree(root, size, stop)?)))
    }

    fn open_tree(&self, root: BlockId, size: u64, stop: Stop) -> Result<Arc<Tree>> {
        Ok(Arc::new(Tree::open(&self.tree_context(), root, size, stop)?))
    }

    fn tree_context(&self) -> TreeContext {
        TreeContext {
            blocks: Arc::clone(&self.shared.blocks),
            location: self.shared.objects.location(),
            block_bytes: self.shared.sizes.block_bytes,
        }
    }

    /// Opens a disk for reading from front to back. The blocks cover all of it. Every block is
    /// checked before it is handed out.
    ///
    /// # Errors
    /// The errors of [`Data::disk`].
    pub(crate) fn source(
        &self,
        root: BlockId,
        size: u64,
        pool: BufferPool,
        stop: Stop,
    ) -> Result<Box<dyn BlockSource>> {
        let disk = self.open_disk(root, size, stop)?;
        Ok(Box::new(DiskSource::new(disk, pool)?))
    }

    /// The packs that exist, for [`Data::check_disk`].
    ///
    /// # Errors
    /// The store fails.
    pub(crate) fn packs(&self, stop: &Stop) -> Result<PackList> {
        PackList::read(self.shared.objects.as_ref(), stop)
    }

    /// Checks that all blocks of a disk exist, and with `deep` that they are unchanged. Reports at
    /// most [`check::MOST_FAULTS`] faults.
    ///
    /// # Errors
    /// The store fails, or a stop was requested.
    pub(crate) fn check_disk(
        &self,
        root: BlockId,
        size: u64,
        packs: &PackList,
        deep: bool,
        stop: &Stop,
        report: &mut dyn FnMut(DiskFault),
    ) -> Result<()> {
        let tree = match self.open_tree(root, size, stop.clone()) {
            Ok(tree) => tree,
            Err(error) => return check::report_damage(error, 0..size, report),
        };
        check::check(&tree, packs, deep, report)
    }

    /// Uploads all blocks that were stored so far, and lists them in the index. Afterwards a record
    /// may refer to the blocks. After an error, the blocks of this `Data` are lost, and the caller
    /// must open another one.
    ///
    /// # Errors
    /// An upload has failed, or a stop was requested.
    pub(crate) fn flush(&self, stop: &Stop) -> Result<()> {
        self.shared.packer.flush(stop)
    }

    /// Seals a record for the object with this name.
    ///
    /// # Errors
    /// The record has more than 64 MiB, or the system gives no random numbers.
    pub(crate) fn seal_record(&self, name: &ObjectName, bytes: &[u8]) -> Result<Vec<u8>> {
        let sealed = self.shared.sealer.seal_record(name, bytes);
        sealed.map_err(PackError::Seal)
    }

    /// Opens the record in the object with this name.
    ///
    /// # Errors
    /// [`PackError::Damaged`] if the record was changed, or belongs to another object or
    /// repository.
    pub(crate) fn open_record(&self, name: &ObjectName, object: &[u8]) -> Result<Vec<u8>> {
        let opened = self
            .shared
            .sealer
            .open_record(name, object.to_vec(), LARGEST_RECORD);
        opened.map_err(|why| PackError::Damaged {
            location: self.shared.objects.location(),
            object: name.to_string(),
            why: why.to_owned(),
        })
    }
}

impl Shared {
    fn largest_block(&self) -> usize {
        largest_block(&self.sizes)
    }
}

/// The most plain bytes of a block.
fn largest_block(sizes: &Sizes) -> usize {
    LARGEST_PAGE.max(sizes.block_bytes as usize)
}

/// The error after a stop was requested.
fn stopped(operation: &'static str, what: &str, reason: StopReason) -> PackError {
    ObjectError::new(operation, what.to_owned(), ObjectErrorKind::Stopped(reason)).into()
}

/// Converts an error of the repository into an error of a disk.
pub(crate) fn block_error(error: PackError) -> BlockError {
    let kind = match error.class() {
        PackErrorClass::Stopped(_) => return BlockError::stopped(),
        PackErrorClass::Damaged => BlockErrorKind::Damaged,
        _ => match object_kind(&error) {
            Some(ObjectErrorKind::NoSpace) => BlockErrorKind::NoSpace,
            // Nothing is known about what is stored.
            Some(_) => BlockErrorKind::Lost,
            None => BlockErrorKind::Io,
        },
    };
    BlockError {
        kind,
        what: error.to_string(),
        source: source_of(error),
    }
}

/// What an error was caused by. Its own message is already part of the error of the disk.
fn source_of(error: PackError) -> Option<Box<dyn StdError + Send + Sync>> {
    match error {
        PackError::Objects(error) => error.source,
        PackError::Cache { source, .. } => Some(source),
        PackError::Seal(source) => Some(Box::new(source)),
        PackError::Earlier(error) => source_of(Arc::into_inner(error)?),
        _ => None,
    }
}

fn object_kind(error: &PackError) -> Option<&ObjectErrorKind> {
    match error {
        PackError::Objects(error) => Some(&error.kind),
        PackError::Earlier(error) => object_kind(error),
        _ => None,
    }
}
