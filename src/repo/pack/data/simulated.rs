//! A repository whose map and index describe blocks that do not exist, to measure how much memory
//! and how many bytes a run needs beside a very large disk.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::id::PackId;
use super::packer::Shelf;
use super::sink::Draft;
use super::table::{Entry, PACKS_OF_RECORD, PackEntry, TRAILER};
use super::{BlockId, Data, DataFacts, PackError, Result, sealer};
use crate::io::DiskStore;
use crate::model::block::{Block, CLUSTER, Content};
use crate::model::buffer::Buffer;
use crate::model::compression::Compression;
use crate::model::stop::Stop;
use crate::repo::pack::description::{Cipher, Sizes};
use crate::repo::pack::keys::MasterKey;
use crate::repo::pack::objects::{FolderObjects, ObjectStore};

/// The length of a block, and of the stored form that the index claims.
const BLOCK: u32 = 1 << 20;

/// The number of blocks in a pack.
const OF_PACK: u64 = 16;

/// A simulated repository in a folder, with its cache in another folder.
#[derive(Clone, Copy, Debug)]
pub struct SimulatedMap<'a> {
    /// The folder of the repository.
    pub repository: &'a Path,
    /// The folder of the cache.
    pub cache: &'a Path,
    /// The number of blocks of 1 MiB, which is also the size of the disk in MiB. A multiple of 16.
    pub blocks: u64,
}

impl SimulatedMap<'_> {
    /// Makes the map and the index, and sparse files for packs. Returns the id of the map's root.
    ///
    /// # Errors
    /// Something cannot be written.
    pub fn create(&self) -> Result<String> {
        let stop = Stop::default();
        let data = self.open()?;
        let mut packs = Vec::new();
        for first in (0..self.blocks).step_by(OF_PACK as usize) {
            packs.push(self.pack(first)?);
            if packs.len() == PACKS_OF_RECORD {
                data.shared.index.publish(std::mem::take(&mut packs), &stop)?;
            }
        }
        if !packs.is_empty() {
            data.shared.index.publish(packs, &stop)?;
        }
        let mut zstd = sealer::compressor(Compression::default()).map_err(PackError::Seal)?;
        let mut store = |page: Vec<u8>| {
            let id = data.shared.sealer.id(&page);
            let sealed = data.shared.sealer.seal_block(&id, &page, zstd.as_mut());
            let sealed = sealed.map_err(PackError::Seal)?.bytes;
            let packer = &data.shared.packer;
            packer.add(Shelf::Pages, id, &sealed, page.len(), &stop)?;
            Ok(id)
        };
        let mut draft = Draft::new(self.size(), None);
        let clusters = u64::from(BLOCK) / CLUSTER;
        for block in 0..self.blocks {
            draft.set(block * clusters, clusters as u16, id_of(block), 0, &mut store)?;
        }
        let root = draft.finish(&mut store)?;
        data.flush(&stop)?;
        Ok(root.to_hex())
    }

    /// Writes one cluster to each of `count` blocks, which are scattered over the disk.
    ///
    /// # Errors
    /// The map cannot be read, or something cannot be written.
    pub fn change(&self, root: &str, count: u64) -> Result<()> {
        let stop = Stop::default();
        let data = self.open()?;
        let root = BlockId::from_hex(root);
        let root = root.ok_or_else(|| PackError::Seal(std::io::Error::other("no root")))?;
        let parent = Some((root, self.size()));
        let mut sink = data.sink(self.size(), parent, Compression::default(), stop.clone())?;
        let failed = |error| PackError::Seal(std::io::Error::other(error));
        for number in 0..count {
            let block = number * (self.blocks / count);
            let mut buffer = Buffer::alone(CLUSTER as usize);
            buffer.set_len(CLUSTER as usize);
            let mut hasher = blake3::Hasher::new();
            hasher
                .update(&number.to_le_bytes())
                .finalize_xof()
                .fill(&mut buffer);
            let written = sink.write(Block {
                offset: block * u64::from(BLOCK),
                content: Content::Data(buffer),
            });
            written.map_err(failed)?;
        }
        sink.finish().map_err(failed)?;
        data.flush(&stop)
    }

    fn size(&self) -> u64 {
        self.blocks * u64::from(BLOCK)
    }

    fn open(&self) -> Result<Data> {
        let objects: Arc<dyn ObjectStore> =
            Arc::new(FolderObjects::new(self.repository, Arc::new(DiskStore)));
        let facts = DataFacts {
            id: "6f9619ff-8b86-4011-b42d-00c04fc964ff",
            sizes: Sizes::NEW,
            cipher: Cipher::XChaCha20Poly1305,
        };
        let key = MasterKey::from_hex(&"07".repeat(32));
        let key = key.ok_or_else(|| PackError::Seal(std::io::Error::other("no key")))?;
        let data = Data::open(objects, &facts, &key, Some(self.cache), &Stop::default())?;
        data.refresh(&Stop::default())?;
        Ok(data)
    }

    /// The pack with this block and the following ones.
    fn pack(&self, first: u64) -> Result<PackEntry> {
        let id = PackId::random().map_err(PackError::Seal)?;
        let name = id.name().map_err(PackError::Seal)?;
        let path = self.repository.join(name.as_str());
        let size = OF_PACK * u64::from(BLOCK) + TRAILER as u64;
        let create = || {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::File::create(&path)?.set_len(size)
        };
        create().map_err(PackError::Seal)?;
        let entries = (first..first + OF_PACK).map(|block| Entry {
            id: id_of(block),
            stored: BLOCK,
            plain: BLOCK,
        });
        Ok(PackEntry {
            id,
            size,
            entries: entries.collect(),
        })
    }
}

fn id_of(block: u64) -> BlockId {
    BlockId::new(*blake3::hash(&block.to_le_bytes()).as_bytes())
}
