//! Reads blocks: from their packs, through a small cache, and checked.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::Place;
use super::id::{BlockId, PackId};
use super::index::Index;
use super::listing::PackList;
use super::retry::{limit, retry};
use super::sealer::Sealer;
use crate::model::stop::Stop;
use crate::repo::pack::objects::{ObjectErrorKind, ObjectStore};
use crate::repo::pack_error::{PackError, Result};

/// The longest range that is read with one request, in bytes.
const LONGEST_RANGE: u64 = 8 << 20;

/// The longest gap between two blocks that is read with them, in bytes.
const LONGEST_GAP: u64 = 64 << 10;

/// The plain bytes of a block.
pub(super) type Plain = Arc<Vec<u8>>;

/// Which stored blocks a writer uses instead of storing them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// All blocks that the index lists in packs that are not condemned.
    Known,
    /// Of these blocks, only those that can be read: for a writer that replaces damaged blocks.
    Sound,
}

/// Reads blocks.
pub(super) struct Blocks {
    objects: Arc<dyn ObjectStore>,
    sealer: Arc<Sealer>,
    pub(super) index: Arc<Index>,
    /// The packs that exist, as far as this process knows; `None` until a block is to be reused.
    packs: Mutex<Option<PackList>>,
    /// Packs that were missing when a block was read.
    missing: Mutex<HashSet<PackId>>,
}

/// A block with its place.
pub(super) type Located = (BlockId, Place);

impl Blocks {
    pub(super) fn new(objects: &Arc<dyn ObjectStore>, sealer: &Arc<Sealer>, index: &Arc<Index>) -> Blocks {
        Blocks {
            objects: Arc::clone(objects),
            sealer: Arc::clone(sealer),
            index: Arc::clone(index),
            packs: Mutex::default(),
            missing: Mutex::default(),
        }
    }

    /// Where a block is.
    ///
    /// # Errors
    /// [`PackError::Damaged`] if no pack contains it; others if the store fails.
    pub(super) fn locate(&self, id: &BlockId, stop: &Stop) -> Result<Place> {
        let found = self.index.find_needed(id, stop)?;
        found.ok_or_else(|| self.nowhere(id))
    }

    /// The error about a block that no pack has.
    pub(super) fn nowhere(&self, id: &BlockId) -> PackError {
        PackError::Damaged {
            location: self.objects.location(),
            object: format!("block {id}"),
            why: "no pack contains it".to_owned(),
        }
    }

    /// Whether these are the bytes of the block with this id.
    pub(super) fn is_block(&self, id: &BlockId, bytes: &[u8]) -> bool {
        self.sealer.id(bytes) == *id
    }

    /// Reads one block.
    ///
    /// # Errors
    /// [`PackError::Damaged`] if the block is damaged or missing; others if the store fails.
    pub(super) fn read(&self, id: &BlockId, stop: &Stop) -> Result<Vec<u8>> {
        let place = self.locate(id, stop)?;
        self.read_at(id, &place, stop)
    }

    /// Whether a block is stored and need not be stored again. Blocks that are only in condemned
    /// packs do not count.
    ///
    /// # Errors
    /// The cache cannot be read, or the store fails.
    pub(super) fn is_stored(&self, id: &BlockId, reuse: Reuse, stop: &Stop) -> Result<bool> {
        let Some(place) = self.index.find(id)? else {
            return Ok(false);
        };
        if self.index.is_condemned(&place.pack) {
            return Ok(false);
        }
        match reuse {
            // What this process has stored is still on its way.
            _ if self.index.is_noted(id) => Ok(true),
            // The index may list a pack that somebody has deleted.
            Reuse::Known => self.is_there(&place, stop),
            Reuse::Sound => self.is_sound_everywhere(id, stop),
        }
    }

    /// Whether a block can be read at each of its places. One damaged place is enough to store it
    /// again: a collector keeps only the newest place of a block, and does not read it.
    fn is_sound_everywhere(&self, id: &BlockId, stop: &Stop) -> Result<bool> {
        for place in self.index.find_all(id)? {
            if self.index.is_condemned(&place.pack) {
                continue;
            }
            match self.read_place(id, &place, stop) {
                Ok(_) => {}
                Err(PackError::Damaged { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether the pack at this place exists and is long enough.
    fn is_there(&self, place: &Place, stop: &Stop) -> Result<bool> {
        self.with_pack(place.pack, stop, |packs| packs.fault(place).is_none())
    }

    /// Whether every pack that the index lists exists in its full size.
    ///
    /// # Errors
    /// The cache cannot be read, or the store fails.
    pub(super) fn has_all_packs(&self, stop: &Stop) -> Result<bool> {
        for (pack, size) in self.index.packs()? {
            if !self.with_pack(pack, stop, |packs| packs.size(pack) >= size)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Asks the packs that exist about one of them, after its existence is known.
    fn with_pack<T>(&self, pack: PackId, stop: &Stop, ask: impl FnOnce(&PackList) -> T) -> Result<T> {
        let mut known = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        let packs = match &mut *known {
            Some(packs) => packs,
            None => known.insert(PackList::read(self.objects.as_ref(), stop)?),
        };
        // A pack may be newer than the list.
        if !packs.knows(pack) {
            let name = pack.name().map_err(PackError::Seal)?;
            let size = retry(stop, || self.objects.head(&name, &limit(0, stop)))?;
            packs.add(pack, size.unwrap_or(0));
        }
        Ok(ask(packs))
    }

    /// Reads a block from this place, or from another one if it is damaged or missing there: it may
    /// have been stored again since.
    fn read_at(&self, id: &BlockId, place: &Place, stop: &Stop) -> Result<Vec<u8>> {
        let error = match self.read_place(id, place, stop) {
            Err(error @ PackError::Damaged { .. }) => error,
            read => return read,
        };
        let others = self.index.find_all(id)?;
        for other in others.iter().filter(|other| *other != place) {
            match self.read_place(id, other, stop) {
                Err(PackError::Damaged { .. }) => {}
                // An error that says nothing about the block hides whether it is there.
                read => return read,
            }
        }
        Err(error)
    }

    /// Reads a block from this place only. If its pack is missing, the index is read again.
    fn read_place(&self, id: &BlockId, place: &Place, stop: &Stop) -> Result<Vec<u8>> {
        match self.fetch(place.pack, range(place), stop) {
            Ok(sealed) => self.open(id, place, sealed),
            Err(error) => {
                if matches!(&error, PackError::Objects(error) if error.is_not_found()) {
                    self.note_missing(place.pack, stop)?;
                }
                Err(self.named(error, id, place.pack))
            }
        }
    }

    /// Notes that a pack is missing: a collector may have deleted it, after it had stored the
    /// needed blocks in others. For each such pack the index is read again once.
    fn note_missing(&self, pack: PackId, stop: &Stop) -> Result<()> {
        let is_new = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            missing.insert(pack)
        };
        if is_new {
            self.index.condemn([pack]);
            self.index.refresh(stop)?;
        }
        Ok(())
    }

    /// Looks for another place of a block that was not found where the index had it.
    ///
    /// # Errors
    /// The index cannot be read again.
    pub(super) fn moved(&self, id: &BlockId, before: &Place, stop: &Stop) -> Result<Option<Place>> {
        self.note_missing(before.pack, stop)?;
        let found = self.index.find(id)?;
        Ok(found.filter(|place| place.pack != before.pack))
    }

    /// Whether the pack at a place exists now and is long enough.
    ///
    /// # Errors
    /// The store fails.
    pub(super) fn exists(&self, place: &Place, stop: &Stop) -> Result<bool> {
        let name = place.pack.name().map_err(PackError::Seal)?;
        let size = retry(stop, || self.objects.head(&name, &limit(0, stop)))?;
        Ok(size.is_some_and(|size| size >= range(place).end))
    }

    /// Reads a block from this place and no other.
    ///
    /// # Errors
    /// The errors of [`Blocks::read`].
    pub(super) fn read_at_only(&self, id: &BlockId, place: &Place, stop: &Stop) -> Result<Vec<u8>> {
        let sealed = self.fetch(place.pack, range(place), stop);
        let sealed = sealed.map_err(|error| self.named(error, id, place.pack))?;
        self.open(id, place, sealed)
    }

    /// Reads a block in its sealed form, and checks it.
    ///
    /// # Errors
    /// The errors of [`Blocks::read`].
    pub(super) fn read_sealed(&self, id: &BlockId, place: &Place, stop: &Stop) -> Result<Vec<u8>> {
        let sealed = self.fetch(place.pack, range(place), stop);
        let sealed = sealed.map_err(|error| self.named(error, id, place.pack))?;
        self.open(id, place, sealed.clone())?;
        Ok(sealed)
    }

    /// Reads blocks. Blocks that lie next to each other in a pack are read with one request. The
    /// answers have the order of the blocks.
    pub(super) fn read_all(&self, blocks: &[Located], stop: &Stop) -> Vec<Result<Plain>> {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|number| (blocks[*number].1.pack, blocks[*number].1.offset));
        let mut answers: Vec<Option<Result<Plain>>> = blocks.iter().map(|_| None).collect();
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            let first = &blocks[*first].1;
            let mut whole = range(first);
            let mut count = 1;
            for number in &rest[1..] {
                let next = &blocks[*number].1;
                let end = whole.end.max(range(next).end);
                let is_near = next.pack == first.pack && range(next).start <= whole.end + LONGEST_GAP;
                if !is_near || end - whole.start > LONGEST_RANGE {
                    break;
                }
                whole.end = end;
                count += 1;
            }
            let (group, others) = rest.split_at(count);
            self.read_group(blocks, group, whole, stop, &mut answers);
            rest = others;
        }
        let missing = || Err(self.missing_answer());
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(missing))
            .collect()
    }

    fn read_group(
        &self,
        blocks: &[Located],
        group: &[usize],
        whole: Range<u64>,
        stop: &Stop,
        answers: &mut [Option<Result<Plain>>],
    ) {
        let pack = blocks[group[0]].1.pack;
        let fetched = match group.len() {
            1 => None,
            // If it fails, each block is read alone, so that the error concerns the right ones.
            _ => self.fetch(pack, whole.clone(), stop).ok(),
        };
        for number in group {
            let (id, place) = &blocks[*number];
            let of_group = fetched.as_ref().and_then(|bytes| {
                let start = (range(place).start - whole.start) as usize;
                bytes.get(start..start + place.stored as usize)
            });
            let read = match of_group {
                Some(sealed) => match self.open(id, place, sealed.to_vec()) {
                    Ok(bytes) => Ok(bytes),
                    Err(_) => self.read_at(id, place, stop),
                },
                None => self.read_at(id, place, stop),
            };
            answers[*number] = Some(read.map(Arc::new));
        }
    }

    fn fetch(&self, pack: PackId, range: Range<u64>, stop: &Stop) -> Result<Vec<u8>> {
        let name = pack.name().map_err(PackError::Seal)?;
        let bytes = range.end - range.start;
        let read = retry(stop, || {
            self.objects.get_range(&name, range.clone(), &limit(bytes, stop))
        });
        Ok(read?)
    }

    fn open(&self, id: &BlockId, place: &Place, sealed: Vec<u8>) -> Result<Vec<u8>> {
        let opened = self.sealer.open_block(id, sealed, place.plain as usize);
        opened.map_err(|why| self.damaged(id, place.pack, why))
    }

    /// A missing or short pack is damage.
    fn named(&self, error: PackError, id: &BlockId, pack: PackId) -> PackError {
        match &error {
            PackError::Objects(of_store) => match of_store.kind {
                ObjectErrorKind::NotFound => self.damaged(id, pack, "the pack is missing"),
                ObjectErrorKind::TooShort => self.damaged(id, pack, "the pack is too short"),
                _ => error,
            },
            _ => error,
        }
    }

    /// The error about a block in a pack.
    pub(super) fn damaged(&self, id: &BlockId, pack: PackId, why: &str) -> PackError {
        PackError::Damaged {
            location: self.objects.location(),
            object: pack.text(),
            why: format!("block {id} cannot be read: {why}"),
        }
    }

    fn missing_answer(&self) -> PackError {
        PackError::Seal(std::io::Error::other("a block was not read"))
    }
}

/// The bytes of a block in its pack.
fn range(place: &Place) -> Range<u64> {
    let start = u64::from(place.offset);
    start..start + u64::from(place.stored)
}

/// A cache of the blocks that were read last, up to a limited size.
#[derive(Debug)]
pub(super) struct BlockCache {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    blocks: HashMap<BlockId, Plain>,
    order: VecDeque<BlockId>,
    bytes: usize,
}

impl BlockCache {
    /// A cache of at most this many bytes. It always holds the last block.
    pub(super) fn new(most: usize) -> BlockCache {
        BlockCache {
            most,
            held: Mutex::default(),
        }
    }

    pub(super) fn get(&self, id: &BlockId) -> Option<Plain> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.blocks.get(id).cloned()
    }

    pub(super) fn put(&self, id: BlockId, block: &Plain) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.blocks.insert(id, Arc::clone(block)).is_some() {
            return;
        }
        held.bytes += block.len();
        held.order.push_back(id);
        while held.bytes > self.most && held.order.len() > 1 {
            let Some(oldest) = held.order.pop_front() else {
                return;
            };
            let bytes = held.blocks.remove(&oldest).map_or(0, |block| block.len());
            held.bytes -= bytes;
        }
    }
}
