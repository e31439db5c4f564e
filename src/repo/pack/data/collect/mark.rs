//! Finds out which blocks are needed: one bit for each block in the repository.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::plan::PackUse;
use super::{Needed, Seen, Stored};
use crate::model::stop::Stop;
use crate::repo::pack::data::cache::{Cache, CachedBlock, Place};
use crate::repo::pack::data::id::{BlockId, INDEX, PackId};
use crate::repo::pack::data::table::TRAILER;
use crate::repo::pack::data::walk::{Visitor, walk};
use crate::repo::pack::data::{Data, Result};

/// Numbers for all blocks: those of a pack follow one another, in the order of their offsets.
struct Numbers {
    /// For each number of a pack, the number of its first block; and the number of all.
    starts: Vec<usize>,
    offsets: Vec<u32>,
}

impl Numbers {
    fn read(cache: &Cache) -> Result<Numbers> {
        let most = cache
            .numbered_packs()?
            .last_key_value()
            .map_or(0, |(number, _)| *number as usize + 1);
        let mut counts = vec![0; most + 1];
        cache.each_block(&mut |block| {
            if let Some(count) = counts.get_mut(block.pack as usize) {
                *count += 1;
            }
        })?;
        let mut total = 0;
        for count in &mut counts {
            total += std::mem::replace(count, total);
        }
        let starts = counts;
        let mut next = starts.clone();
        let mut offsets = vec![0; total];
        cache.each_block(&mut |block| {
            let Some(next) = next.get_mut(block.pack as usize) else {
                return;
            };
            if let Some(place) = offsets.get_mut(*next) {
                *place = block.offset;
            }
            *next += 1;
        })?;
        for ends in starts.windows(2) {
            if let Some(part) = offsets.get_mut(ends[0]..ends[1]) {
                part.sort_unstable();
            }
        }
        Ok(Numbers { starts, offsets })
    }

    fn of(&self, pack: u32, offset: u32) -> Option<usize> {
        let pack = pack as usize;
        let (start, end) = (*self.starts.get(pack)?, *self.starts.get(pack + 1)?);
        let within = self.offsets.get(start..end)?.binary_search(&offset).ok()?;
        Some(start + within)
    }
}

/// A set of numbers.
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: usize) -> Bits {
        Bits(vec![0; count.div_ceil(64)])
    }

    /// Adds a number. Returns whether it is new.
    fn add(&mut self, number: usize) -> bool {
        let Some(word) = self.0.get_mut(number / 64) else {
            return false;
        };
        let before = *word;
        *word |= 1 << (number % 64);
        *word != before
    }

    fn has(&self, number: usize) -> bool {
        self.0
            .get(number / 64)
            .is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}

/// The needed blocks.
pub(super) struct Marks {
    numbers: Numbers,
    needed: Bits,
    /// Those of them that are pages.
    pages: Bits,
}

impl Marks {
    /// Marks everything that the restore points need. A page that several of them share is read
    /// once.
    ///
    /// # Errors
    /// [`PackError::Damaged`] if something that is needed is missing or damaged; others if the
    /// store fails.
    pub(super) fn read(
        data: &Data,
        stored: &Stored,
        condemned: &HashSet<PackId>,
        points: &[Needed],
        stop: &Stop,
    ) -> Result<Marks> {
        let cache = data.shared.index.cache();
        let numbers = Numbers::read(&cache)?;
        let count = numbers.offsets.len();
        let mut marker = Marker {
            data,
            cache: &cache,
            stored,
            condemned,
            marks: Marks {
                numbers,
                needed: Bits::new(count),
                pages: Bits::new(count),
            },
        };
        for point in points {
            for (root, size) in &point.disks {
                walk(&data.tree_context(), root, *size, &mut marker, stop)?;
            }
            for block in &point.blocks {
                marker.block(block)?;
            }
        }
        let marks = marker.marks;
        // The numbers are those of one cache. It is replaced only if something is missing.
        match Arc::ptr_eq(&cache, &data.shared.index.cache()) {
            true => Ok(marks),
            false => Err(data
                .shared
                .index
                .damage(INDEX, "it does not list a block that is needed")),
        }
    }

    /// Whether the block at this place is needed there.
    pub(super) fn is_needed(&self, pack: u32, offset: u32) -> bool {
        self.numbers
            .of(pack, offset)
            .is_some_and(|number| self.needed.has(number))
    }

    /// Whether the block at this place is a page.
    pub(super) fn is_page(&self, pack: u32, offset: u32) -> bool {
        self.numbers
            .of(pack, offset)
            .is_some_and(|number| self.pages.has(number))
    }

    /// All packs that are in the index or condemned, with the amount of needed data in each.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(super) fn packs(&self, data: &Data, seen: &Seen) -> Result<BTreeMap<PackId, PackUse>> {
        let new = |id: PackId, size| PackUse {
            id,
            size,
            blocks: 0,
            needed: 0,
            // A pack of unknown age is young.
            time: seen
                .stored
                .0
                .get(&id)
                .map(|object| object.modified.unwrap_or(Timestamp::MAX)),
            is_condemned: seen.condemned.contains(&id),
        };
        let mut packs = BTreeMap::new();
        for id in &seen.condemned {
            let size = seen.stored.0.get(id).map_or(0, |object| object.size);
            packs.insert(*id, new(*id, size));
        }
        let cache = data.shared.index.cache();
        let mut numbers: Vec<(u64, u64)> = Vec::new();
        let listed = cache.numbered_packs()?;
        numbers.resize(
            listed.last_key_value().map_or(0, |(last, _)| *last as usize + 1),
            (0, 0),
        );
        cache.each_block(&mut |block: CachedBlock| {
            if let Some((blocks, needed)) = numbers.get_mut(block.pack as usize) {
                *blocks += u64::from(block.stored);
                if self.is_needed(block.pack, block.offset) {
                    *needed += u64::from(block.stored);
                }
            }
        })?;
        for (number, pack) in listed {
            let (blocks, needed) = numbers.get(number as usize).copied().unwrap_or_default();
            let pack = packs.entry(pack.id).or_insert_with(|| new(pack.id, pack.size));
            // A pack in several index objects has its blocks once.
            pack.blocks = pack.blocks.max(blocks);
            pack.needed += needed;
        }
        Ok(packs)
    }
}

/// Marks what it visits.
struct Marker<'a> {
    data: &'a Data,
    cache: &'a Cache,
    stored: &'a Stored,
    condemned: &'a HashSet<PackId>,
    marks: Marks,
}

impl Marker<'_> {
    /// The number of a needed block: of several places always the same one, and if possible none in
    /// a condemned pack. The newest counts, because a block that was found to be damaged is stored
    /// again.
    fn number(&self, id: &BlockId) -> Result<usize> {
        let places = self.cache.places(id)?;
        let there = places.into_iter().filter(|(_, place)| self.is_there(place));
        let key = |(pack, place): &(u32, Place)| {
            let is_condemned = self.condemned.contains(&place.pack);
            (is_condemned, Reverse(self.written(place)), place.pack, *pack)
        };
        let best = there.min_by_key(key);
        let (pack, place) = best.ok_or_else(|| self.data.shared.blocks.nowhere(id))?;
        let number = self.marks.numbers.of(pack, place.offset);
        number.ok_or_else(|| self.data.shared.blocks.nowhere(id))
    }

    /// When the pack of a place was written.
    fn written(&self, place: &Place) -> Option<Timestamp> {
        self.stored.0.get(&place.pack)?.modified
    }

    fn is_there(&self, place: &Place) -> bool {
        let needed = u64::from(place.offset) + u64::from(place.stored) + TRAILER as u64;
        let found = self.stored.0.get(&place.pack);
        found.is_some_and(|object| object.size >= needed)
    }
}

impl Visitor for Marker<'_> {
    fn page(&mut self, id: &BlockId) -> Result<bool> {
        let number = self.number(id)?;
        self.marks.needed.add(number);
        Ok(self.marks.pages.add(number))
    }

    fn block(&mut self, id: &BlockId) -> Result<()> {
        let number = self.number(id)?;
        self.marks.needed.add(number);
        Ok(())
    }
}
