//! How often the clusters of a file are used.

use std::ops::Range;

use super::layout::{CompressedCluster, SECTOR};

/// Marks a cluster that may have one use only.
const ALONE: u16 = 1 << 15;

/// How often each of a range of clusters is used. Clusters outside the range are not counted.
///
/// Memory: 2 bytes per cluster.
pub(super) struct Uses {
    range: Range<u64>,
    counts: Vec<u16>,
}

impl Uses {
    pub(super) fn new(range: Range<u64>) -> Uses {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
        Uses {
            range,
            counts: vec![0; length],
        }
    }

    /// The clusters that are counted.
    pub(super) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    fn place(&mut self, index: u64) -> Option<&mut u16> {
        let place = index.checked_sub(self.range.start)?;
        self.counts.get_mut(usize::try_from(place).ok()?)
    }

    /// Uses a cluster alone. Returns whether it was free.
    pub(super) fn take_alone(&mut self, index: u64) -> bool {
        let Some(count) = self.place(index) else {
            return true;
        };
        let is_free = *count == 0;
        *count = ALONE | 1;
        is_free
    }

    /// Uses a cluster for compressed data, which may share it with other compressed data. Returns
    /// whether nothing else uses it.
    pub(super) fn take_shared(&mut self, index: u64) -> bool {
        let Some(count) = self.place(index) else {
            return true;
        };
        // More uses than this do not fit into a cluster: the shortest zstd frame has 9 bytes.
        let is_free = *count < ALONE - 1;
        if is_free {
            *count += 1;
        }
        is_free
    }

    /// How often a cluster of the range is used.
    pub(super) fn count(&self, index: u64) -> u64 {
        let place = usize::try_from(index - self.range.start).unwrap_or(usize::MAX);
        u64::from(self.counts.get(place).map_or(0, |count| count & !ALONE))
    }
}

/// The first place in the file where two of these compressed clusters surely overlap. Two clusters
/// may share a sector: of each, only the sector with the last byte is known. Sorts the
/// clusters.
pub(super) fn first_overlap(clusters: &mut [CompressedCluster]) -> Option<u64> {
    clusters.sort_unstable_by_key(|cluster| cluster.start);
    let pairs = clusters.windows(2);
    let mut overlapping = pairs.filter(|pair| {
        // At least one byte lies in the last sector.
        let least_end = (pair[0].end - SECTOR).max(pair[0].start) + 1;
        pair[1].start < least_end
    });
    overlapping.next().map(|pair| pair[1].start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_compressed_data_share_a_cluster() {
        let mut uses = Uses::new(10..12);
        assert!(uses.take_shared(10) && uses.take_shared(10));
        assert!(!uses.take_alone(10));
        assert!(uses.take_alone(11));
        assert!(!uses.take_shared(11) && !uses.take_alone(11));
        assert_eq!((uses.count(10), uses.count(11)), (1, 1));
        assert!(
            uses.take_alone(9) && uses.take_alone(9),
            "outside nothing is counted"
        );
    }

    #[test]
    fn overlaps_are_found_except_within_a_sector() {
        let at = CompressedCluster::new;
        assert_eq!(
            first_overlap(&mut [at(1600, 10), at(1000, 600), at(1610, 700)]),
            None
        );
        assert_eq!(first_overlap(&mut [at(1000, 600), at(1500, 10)]), Some(1500));
        assert_eq!(first_overlap(&mut [at(1000, 10), at(1000, 10)]), Some(1000));
    }
}
