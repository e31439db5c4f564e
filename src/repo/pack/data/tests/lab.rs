//! A repository for tests, and disks that are written to it.

use std::path::PathBuf;
use std::sync::Arc;

use super::store::Store;
use crate::model::block::{Block, BlockError, CLUSTER, Content, Written};
use crate::model::buffer::{Buffer, BufferPool};
use crate::model::compression::Compression;
use crate::model::stop::Stop;
use crate::repo::disk::{DiskReader, Stored};
use crate::repo::pack::data::{BlockId, Data, DataFacts, DiskFault};
use crate::repo::pack::description::{Cipher, Sizes};
use crate::repo::pack::keys::MasterKey;
use crate::repo::pack::objects::ObjectStore;
use crate::repo::pack_error::Result;

pub(super) const C: usize = CLUSTER as usize;

/// A repository.
pub(super) struct Lab {
    pub(super) store: Arc<Store>,
    pub(super) key: MasterKey,
    pub(super) sizes: Sizes,
    pub(super) cipher: Cipher,
    pub(super) cache: Option<PathBuf>,
}

/// A disk that was written: the id of its root, and its size.
pub(super) type Root = (BlockId, u64);

impl Lab {
    pub(super) fn new(block_bytes: usize, pack_bytes: usize) -> Lab {
        Lab {
            store: Arc::default(),
            key: MasterKey::from_hex(&"07".repeat(32)).expect("valid"),
            sizes: Sizes {
                block_bytes: block_bytes as u64,
                pack_bytes: pack_bytes as u64,
            },
            cipher: Cipher::XChaCha20Poly1305,
            cache: None,
        }
    }

    /// Opens the data, as a new process does.
    pub(super) fn open(&self) -> Result<Data> {
        let facts = DataFacts {
            id: "6f9619ff-8b86-4011-b42d-00c04fc964ff",
            sizes: self.sizes,
            cipher: self.cipher,
        };
        let objects: Arc<dyn ObjectStore> = self.store.clone();
        let data = Data::open(
            objects,
            &facts,
            &self.key,
            self.cache.as_deref(),
            &Stop::default(),
        )?;
        data.refresh(&Stop::default())?;
        Ok(data)
    }

    pub(super) fn data(&self) -> Data {
        self.open().expect("it opens")
    }

    /// The bytes of all packs.
    pub(super) fn pack_bytes(&self) -> usize {
        let state = self.store.state();
        let packs = state
            .objects
            .iter()
            .filter(|(name, _)| name.starts_with("packs/"));
        packs.map(|(_, content)| content.len()).sum()
    }
}

/// Bytes that cannot be compressed and differ for each seed.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub(super) fn data_block(offset: u64, bytes: &[u8]) -> Block {
    let mut buffer = Buffer::alone(bytes.len());
    buffer.set_len(bytes.len());
    buffer.copy_from_slice(bytes);
    Block {
        offset,
        content: Content::Data(buffer),
    }
}

pub(super) fn zero_block(offset: u64, length: u64) -> Block {
    Block {
        offset,
        content: Content::Zero(length),
    }
}

/// Writes a disk of `size` bytes, and flushes.
pub(super) fn try_write(
    data: &Data,
    size: u64,
    parent: Option<Root>,
    blocks: impl IntoIterator<Item = Block>,
) -> std::result::Result<(Root, Written), String> {
    let text = |error: BlockError| error.to_string();
    let stop = Stop::default();
    let sink = data.sink(size, parent, Compression::default(), stop.clone());
    let mut sink = sink.map_err(|error| error.to_string())?;
    for block in blocks {
        sink.write(block).map_err(text)?;
    }
    let written = sink.finish().map_err(text)?;
    data.flush(&stop).map_err(|error| error.to_string())?;
    let root = written.blake3.as_deref().and_then(BlockId::from_hex);
    Ok(((root.expect("an id"), size), written))
}

pub(super) fn write(
    data: &Data,
    size: u64,
    parent: Option<Root>,
    blocks: impl IntoIterator<Item = Block>,
) -> (Root, Written) {
    try_write(data, size, parent, blocks).expect("it is written")
}

/// Writes a whole disk in pieces of `piece` bytes.
pub(super) fn write_full(data: &Data, bytes: &[u8], piece: usize) -> (Root, Written) {
    let blocks = bytes.chunks(piece).enumerate();
    let blocks = blocks.map(|(number, part)| data_block((number * piece) as u64, part));
    write(data, bytes.len() as u64, None, blocks)
}

/// Reads a disk from front to back, from `origin` on. Everything before is zero.
pub(super) fn read(data: &Data, root: Root, origin: u64) -> std::result::Result<Vec<u8>, String> {
    let pool = BufferPool::new(2, 3 * C);
    let source = data.source(root.0, root.1, pool, Stop::default());
    let mut source = source.map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let mut end = 0;
    while let Some(block) = source.next_block().map_err(|error| error.to_string())? {
        assert_eq!(block.offset, end, "no gaps");
        end += block.length();
        assert!(end == root.1 || end.is_multiple_of(CLUSTER));
        match &block.content {
            Content::Zero(length) => {
                let inside = end.saturating_sub(origin).min(*length);
                bytes.resize(bytes.len() + inside as usize, 0);
            }
            Content::Data(buffer) => {
                assert!(block.offset >= origin, "data before the origin");
                bytes.extend_from_slice(buffer);
            }
        }
    }
    assert_eq!(end, root.1, "all of the disk");
    Ok(bytes)
}

/// Compares a disk with these bytes in every way. The disk is zero before `origin`.
pub(super) fn assert_disk(data: &Data, root: Root, origin: u64, bytes: &[u8]) {
    let size = root.1;
    assert_eq!(origin + bytes.len() as u64, size);
    assert!(read(data, root, origin).expect("it reads") == bytes, "the source");
    let disk = data.disk(root.0, size, Stop::default()).expect("it opens");
    let mut out = vec![1; bytes.len() + 10];
    disk.read_at(&mut out, origin).expect("it reads");
    assert!(
        out[..bytes.len()] == *bytes && out[bytes.len()..] == [0; 10],
        "the reader"
    );
    let start = bytes.len() / 3;
    let mut out = vec![1; bytes.len() / 2];
    disk.read_at(&mut out, origin + start as u64).expect("it reads");
    assert!(out == bytes[start..start + out.len()], "a part");
    assert!(disk.holds(bytes, origin).expect("it compares"));
    if !bytes.is_empty() {
        let mut changed = bytes.to_vec();
        changed[start] ^= 1;
        assert!(!disk.holds(&changed, origin).expect("it compares"));
    }
    assert_extents(disk.as_ref(), origin, bytes);
    assert_eq!(faults(data, root, true), []);
}

fn assert_extents(disk: &dyn DiskReader, origin: u64, bytes: &[u8]) {
    let mut at = 0;
    for extent in disk.extents(0..disk.size()) {
        let extent = extent.expect("it reads");
        assert_eq!(extent.offset, at);
        at += extent.length;
        if extent.stored == Stored::Zero && at > origin {
            let start = extent.offset.saturating_sub(origin) as usize;
            let zero = &bytes[start..(at - origin) as usize];
            assert!(zero.iter().all(|byte| *byte == 0), "an extent of zeroes");
        }
        if extent.stored != Stored::Zero {
            let start = (extent.offset - origin) as usize;
            let clusters = bytes[start..(at - origin) as usize].chunks(C);
            let mut clusters = clusters.map(|cluster| cluster.iter().any(|byte| *byte != 0));
            assert!(clusters.all(|has_data| has_data), "zeroes are never stored");
        }
    }
    assert_eq!(at, disk.size());
}

/// The faults of a disk.
pub(super) fn faults(data: &Data, root: Root, deep: bool) -> Vec<DiskFault> {
    let stop = Stop::default();
    let packs = data.packs(&stop).expect("it lists");
    let mut faults = Vec::new();
    let checked = data.check_disk(root.0, root.1, &packs, deep, &stop, &mut |fault| {
        faults.push(fault)
    });
    checked.expect("it checks");
    faults
}
