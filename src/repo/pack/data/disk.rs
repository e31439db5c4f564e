//! Reads a disk with random access.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::block_error;
use super::blocks::{BlockCache, Plain};
use super::id::BlockId;
use super::leaf::{Leaf, Run};
use super::page::{LEAF_CLUSTERS, LEAF_SPAN};
use super::tree::Tree;
use crate::image::is_zero;
use crate::model::block::{BlockError, BlockErrorKind, CLUSTER};
use crate::repo::disk::{DiskReader, Stored, StoredExtent};
use crate::repo::pack_error::Result;

/// Memory for blocks, in bytes.
const BLOCKS: usize = 16 << 20;

/// How long a thread waits for a block that another one reads before it checks for a stop request
/// again.
const GLANCE: Duration = Duration::from_millis(100);

/// A disk of a pack repository, with random access.
#[derive(Debug)]
pub(super) struct PackDisk {
    tree: Arc<Tree>,
    cache: Arc<BlockCache>,
    turns: Turns,
}

/// The blocks that threads read now. Adjacent reads often need the same block, which is read once.
#[derive(Debug, Default)]
struct Turns {
    busy: Mutex<HashSet<BlockId>>,
    changed: Condvar,
}

/// The right to read a block, until it is dropped.
struct Turn<'a>(&'a Turns, BlockId);

impl Turns {
    /// Takes the right to read a block. If another thread has it, waits a moment and returns
    /// `None`.
    fn take(&self, id: BlockId) -> Option<Turn<'_>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if busy.insert(id) {
            return Some(Turn(self, id));
        }
        drop(self.changed.wait_timeout(busy, GLANCE));
        None
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut busy = self.0.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.remove(&self.1);
        self.0.changed.notify_all();
    }
}

/// A range of the disk that lies in one block, or reads as zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) data: Option<InBlock>,
}

/// A place in a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct InBlock {
    pub(super) id: BlockId,
    /// Its start in the plain bytes.
    pub(super) at: u64,
    /// The least number of plain bytes that the block must have.
    pub(super) least: u64,
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.length
    }
}

impl PackDisk {
    pub(super) fn new(tree: Arc<Tree>) -> PackDisk {
        PackDisk {
            tree,
            cache: Arc::new(BlockCache::new(BLOCKS)),
            turns: Turns::default(),
        }
    }

    pub(super) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// The piece at an offset on the disk. It ends at the end of its leaf at the latest, unless the
    /// whole leaf reads as zero.
    ///
    /// # Errors
    /// A page is damaged or missing, or the store fails.
    pub(super) fn piece_at(&self, offset: u64) -> Result<Piece> {
        let size = self.tree.size();
        let number = offset / LEAF_SPAN;
        let zero_until = |end: u64| Piece {
            offset,
            length: end.min(size) - offset,
            data: None,
        };
        let next = self.tree.skip_zero_branches(number);
        if next > number {
            return Ok(zero_until(next * LEAF_SPAN));
        }
        let Some(leaf) = self.tree.leaf(number)? else {
            return Ok(zero_until((number + 1) * LEAF_SPAN));
        };
        Ok(piece_of(&leaf, offset, size))
    }

    /// Counts the runs (clusters that lie one after another in a block) that store `count` clusters
    /// of the disk from `first` on. They must lie in one leaf. Clusters in no run read as zero.
    ///
    /// # Errors
    /// The errors of [`PackDisk::piece_at`].
    pub(super) fn count_runs(&self, first: u64, count: u64) -> Result<usize> {
        let number = first / LEAF_CLUSTERS;
        if first * CLUSTER >= self.tree.size() {
            return Ok(0);
        }
        let leaf = self.tree.leaf(number)?;
        let first = first % LEAF_CLUSTERS;
        let runs = leaf.iter().flat_map(|leaf| &leaf.runs);
        let inside = runs.filter(|run| u64::from(run.first) < first + count && u64::from(run.end()) > first);
        Ok(inside.count())
    }

    /// Fills `out` with the disk's bytes from `offset` on. Bytes beyond the disk's end are zero.
    ///
    /// # Errors
    /// A page or a block is damaged or missing, or the store fails.
    pub(super) fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let rest = &mut out[done..];
            if at >= self.tree.size() {
                rest.fill(0);
                return Ok(());
            }
            let piece = self.piece_at(at)?;
            let length = piece.length.min(rest.len() as u64) as usize;
            match &piece.data {
                None => rest[..length].fill(0),
                Some(place) => copy(&self.block(place)?, place.at, &mut rest[..length]),
            }
            done += length;
        }
        Ok(())
    }

    fn block(&self, place: &InBlock) -> Result<Plain> {
        let _turn = loop {
            if let Some(block) = self.cache.get(&place.id) {
                return self.checked(place, block);
            }
            let turn = self.turns.take(place.id);
            // The read notices the stop.
            if turn.is_some() || self.tree.stop().requested() {
                break turn;
            }
        };
        // Another thread may have read it just before.
        if let Some(block) = self.cache.get(&place.id) {
            return self.checked(place, block);
        }
        let block = Arc::new(self.tree.blocks().read(&place.id, self.tree.stop())?);
        self.cache.put(place.id, &block);
        self.checked(place, block)
    }

    fn checked(&self, place: &InBlock, block: Plain) -> Result<Plain> {
        match block.len() as u64 >= place.least {
            true => Ok(block),
            false => Err(self.tree.too_short(&place.id)),
        }
    }

    /// Whether a range of the disk within one piece holds these bytes.
    fn piece_holds(&self, piece: &Piece, bytes: &[u8]) -> Result<bool> {
        let Some(place) = &piece.data else {
            return Ok(is_zero(bytes));
        };
        // Bytes of a whole block need not be read: its id says what they are.
        let plain = u64::from(self.tree.blocks().locate(&place.id, self.tree.stop())?.plain);
        if place.at == 0 && plain == bytes.len() as u64 {
            return Ok(self.tree.blocks().is_block(&place.id, bytes));
        }
        let mut found = vec![0; bytes.len()];
        copy(&self.block(place)?, place.at, &mut found);
        Ok(found == bytes)
    }

    fn check_stop(&self) -> std::result::Result<(), BlockError> {
        match self.tree.stop().requested() {
            true => Err(BlockError::stopped()),
            false => Ok(()),
        }
    }
}

/// The piece of a leaf at an offset on the disk.
pub(super) fn piece_of(leaf: &Leaf, offset: u64, size: u64) -> Piece {
    let base = offset - offset % LEAF_SPAN;
    let cluster = (offset - base) / CLUSTER;
    let next = leaf.runs.partition_point(|run| u64::from(run.end()) <= cluster);
    let run = leaf.runs.get(next);
    let start_of = |run: &Run| base + u64::from(run.first) * CLUSTER;
    match run.filter(|run| u64::from(run.first) <= cluster) {
        Some(run) => {
            let end = (base + u64::from(run.end()) * CLUSTER).min(size);
            let within = offset - start_of(run);
            Piece {
                offset,
                length: end - offset,
                data: leaf.ids.get(usize::from(run.block)).map(|id| InBlock {
                    id: *id,
                    at: u64::from(run.offset) * CLUSTER + within,
                    least: run.least_plain(),
                }),
            }
        }
        None => {
            let end = run.map_or(base + LEAF_SPAN, start_of).min(size);
            Piece {
                offset,
                length: end - offset,
                data: None,
            }
        }
    }
}

/// Copies bytes of a block. Bytes after its end are zero, because the last cluster of a disk may be
/// short.
pub(super) fn copy(block: &[u8], at: u64, out: &mut [u8]) {
    let rest = block.get(at as usize..).unwrap_or(&[]);
    let length = rest.len().min(out.len());
    out[..length].copy_from_slice(&rest[..length]);
    out[length..].fill(0);
}

impl DiskReader for PackDisk {
    fn size(&self) -> u64 {
        self.tree.size()
    }

    fn extent_at(&self, offset: u64) -> std::result::Result<Option<StoredExtent>, BlockError> {
        self.check_stop()?;
        if offset >= self.size() {
            return Ok(None);
        }
        let first = self.piece_at(offset).map_err(block_error)?;
        let mut end = first.end();
        // Pieces of the same leaf are at hand.
        while end < self.size() && end / LEAF_SPAN == offset / LEAF_SPAN {
            let next = self.piece_at(end).map_err(block_error)?;
            if next.data.is_some() != first.data.is_some() {
                break;
            }
            end = next.end();
        }
        let stored = match first.data {
            Some(_) => Stored::Data { depth: 0 },
            None => Stored::Zero,
        };
        Ok(Some(StoredExtent {
            offset,
            length: end - offset,
            stored,
        }))
    }

    fn verified_extent_at(&self, offset: u64) -> std::result::Result<Option<StoredExtent>, BlockError> {
        // The pages of the map are found by their digests.
        self.extent_at(offset)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> std::result::Result<(), BlockError> {
        self.check_stop()?;
        self.read(out, offset).map_err(block_error)
    }

    fn holds(&self, bytes: &[u8], offset: u64) -> std::result::Result<bool, BlockError> {
        self.check_stop()?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let rest = &bytes[done..];
            if at >= self.size() {
                return Ok(is_zero(rest));
            }
            let piece = self.piece_at(at).map_err(block_error)?;
            let length = piece.length.min(rest.len() as u64) as usize;
            match self.piece_holds(&piece, &rest[..length]).map_err(block_error) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) if error.kind == BlockErrorKind::Damaged => return Ok(false),
                Err(error) => return Err(error),
            }
            done += length;
        }
        Ok(true)
    }
}
