//! The refcounts of a file that only grows.
//!
//! A refcount block covers 2 GiB of the file. It is kept while the file grows there, and handed out
//! when the file has passed it, so the memory does not grow with the file.

use std::collections::VecDeque;

use crate::image::qcow2::layout::ENTRY_BYTES;
use crate::model::block::CLUSTER;

/// Refcounts are 16 bits wide, as they are by default in QEMU's images.
pub(super) const REFCOUNT_ORDER: u32 = 4;
/// Clusters that one refcount block covers.
pub(super) const REFCOUNTS_PER_BLOCK: u64 = CLUSTER * 8 / (1 << REFCOUNT_ORDER);

/// How often each cluster of the file is used.
#[derive(Debug, Default)]
pub(super) struct RefCounts {
    /// The blocks that are not written yet, from the first one on.
    pending: VecDeque<Vec<u16>>,
    /// Where the blocks before them are in the file.
    written: Vec<u64>,
    /// Whether blocks stay in memory until the end, because their counts may still go down.
    is_kept: bool,
}

impl RefCounts {
    /// The counts of a file that is continued: the places of its blocks, and the content of the
    /// last one if the file ends within what it covers.
    pub(super) fn continued(written: Vec<u64>, last: Option<Vec<u16>>) -> RefCounts {
        RefCounts {
            pending: last.into_iter().collect(),
            written,
            is_kept: true,
        }
    }

    /// Where the block with this number is in the file, if it was written.
    pub(super) fn place(&self, block: u64) -> Option<u64> {
        self.written.get(usize::try_from(block).ok()?).copied()
    }

    /// Records the new place of a block that was written.
    pub(super) fn replace(&mut self, block: u64, place: u64) {
        let known = usize::try_from(block).ok();
        if let Some(known) = known.and_then(|block| self.written.get_mut(block)) {
            *known = place;
        }
    }

    /// The first block that was not written.
    pub(super) fn first_pending(&mut self) -> Option<&mut Vec<u16>> {
        self.pending.front_mut()
    }

    /// Counts one more use of each cluster from `start` to `end` of the file, in bytes. None of
    /// them may lie in a block that was taken.
    pub(super) fn count(&mut self, start: u64, end: u64) {
        let first = self.written.len() as u64 * REFCOUNTS_PER_BLOCK;
        for cluster in start / CLUSTER..end.div_ceil(CLUSTER) {
            let place = cluster.saturating_sub(first);
            let block = (place / REFCOUNTS_PER_BLOCK) as usize;
            while self.pending.len() <= block {
                self.pending.push_back(vec![0; REFCOUNTS_PER_BLOCK as usize]);
            }
            let count = &mut self.pending[block][(place % REFCOUNTS_PER_BLOCK) as usize];
            *count = count.saturating_add(1);
        }
    }

    /// The bytes of the next block, if the file's end has passed what it covers. It has to be
    /// written at the file's end, `end`, and counted.
    pub(super) fn take_passed(&mut self, end: u64) -> Option<Vec<u8>> {
        let covered = (self.written.len() as u64 + 1) * REFCOUNTS_PER_BLOCK * CLUSTER;
        if self.is_kept || end < covered {
            return None;
        }
        self.take(end)
    }

    /// The bytes of the next block, which has to be written at `place`.
    pub(super) fn take(&mut self, place: u64) -> Option<Vec<u8>> {
        let block = self.pending.pop_front()?;
        self.written.push(place);
        Some(encoded(&block))
    }

    /// How many blocks were taken.
    pub(super) fn taken(&self) -> u64 {
        self.written.len() as u64
    }

    /// The entries of the refcount table.
    pub(super) fn table(&self) -> Vec<u8> {
        self.written
            .iter()
            .flat_map(|place| place.to_be_bytes())
            .collect()
    }
}

/// The bytes of a refcount block.
pub(super) fn encoded(block: &[u16]) -> Vec<u8> {
    block.iter().flat_map(|count| count.to_be_bytes()).collect()
}

/// How many further refcount blocks, and how many clusters for the refcount table, a file needs.
///
/// `before` is the number of clusters of the file without these, and `taken` the number of refcount
/// blocks among them. The further clusters are counted, too.
pub(super) fn refcount_clusters(before: u64, taken: u64) -> (u64, u64) {
    let (mut blocks, mut table) = (0, 0);
    loop {
        let needed = (before + blocks + table).div_ceil(REFCOUNTS_PER_BLOCK);
        let needed_table = (needed * ENTRY_BYTES).div_ceil(CLUSTER);
        let needed = needed.saturating_sub(taken);
        if (needed, needed_table) == (blocks, table) {
            return (blocks, table);
        }
        (blocks, table) = (needed, needed_table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcount_clusters_count_themselves() {
        for before in (1..200_000).chain([1 << 28, (1 << 28) + 1, 1 << 40]) {
            let passed = before / REFCOUNTS_PER_BLOCK;
            for taken in [0, passed.saturating_sub(1), passed] {
                let (blocks, table) = refcount_clusters(before, taken);
                let covered = (taken + blocks) * REFCOUNTS_PER_BLOCK;
                assert!(
                    covered >= before + blocks + table,
                    "{before} clusters are covered"
                );
                assert!(
                    blocks == 0 || covered - REFCOUNTS_PER_BLOCK < before + blocks + table,
                    "{before}: no block too many"
                );
                assert_eq!(table, ((taken + blocks) * 8).div_ceil(CLUSTER));
            }
        }
    }

    #[test]
    fn a_block_is_handed_out_when_the_file_has_passed_it() {
        let mut counts = RefCounts::default();
        let covered = REFCOUNTS_PER_BLOCK * CLUSTER;
        counts.count(0, covered - CLUSTER);
        counts.count(100, 200);
        assert_eq!(counts.take_passed(covered - CLUSTER), None);
        counts.count(covered - CLUSTER, covered + CLUSTER);
        let place = covered + CLUSTER;
        let block = counts.take_passed(place).expect("it is passed");
        assert_eq!(block.len() as u64, CLUSTER);
        assert_eq!(&block[..6], [0, 2, 0, 1, 0, 1]);
        assert!(block[6..].chunks(2).all(|count| count == [0, 1]));
        assert_eq!(counts.table(), place.to_be_bytes());
        assert_eq!(counts.take_passed(place), None);
        counts.count(place, place + CLUSTER);
        let last = counts.take(place + CLUSTER).expect("it has begun");
        assert_eq!(&last[..6], [0, 1, 0, 1, 0, 0]);
        assert_eq!(counts.taken(), 2);
    }
}
