//! Sets of clusters of a disk.

use super::block::{CLUSTER, Extent};
use super::extents::Run;
use super::random::Random;

/// A set of clusters of one disk, with one bit for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSet {
    size: u64,
    words: Vec<u64>,
}

/// The map of a disk, as its export reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskMap {
    /// The clusters with at least one byte that the bitmap marks as changed; empty without a
    /// bitmap.
    pub changed: ClusterSet,
    /// The clusters that are not known to read as zero.
    pub data: ClusterSet,
}

/// The flag of the runs in [`ClusterSet::runs`] that belong to the set.
pub(crate) const WANTED: u32 = 1;

impl ClusterSet {
    /// The largest disk for which a set can be made, in bytes: its bits take 128 MiB.
    pub(crate) const LARGEST_DISK: u64 = 64 << 40;

    /// An empty set for a disk of `size` bytes. If the disk is larger than [`Self::LARGEST_DISK`],
    /// clusters beyond that limit are left out.
    pub fn new(size: u64) -> Self {
        let size = size.min(Self::LARGEST_DISK);
        let words = size.div_ceil(CLUSTER).div_ceil(64);
        ClusterSet {
            size,
            words: vec![0; usize::try_from(words).unwrap_or(0)],
        }
    }

    /// The disk's size in bytes, or [`Self::LARGEST_DISK`] if that is less.
    pub fn disk_size(&self) -> u64 {
        self.size
    }

    /// Adds every cluster that overlaps this range, given in bytes. Bytes beyond the end of the
    /// disk are ignored.
    pub fn add(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length).min(self.size).div_ceil(CLUSTER);
        let mut index = offset / CLUSTER;
        while index < end {
            let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
            let bit = index % 64;
            let count = (64 - bit).min(end - index);
            let mask = if count == 64 {
                u64::MAX
            } else {
                ((1 << count) - 1) << bit
            };
            if let Some(word) = self.words.get_mut(word) {
                *word |= mask;
            }
            index += count;
        }
    }

    /// Adds all clusters of another set.
    pub(crate) fn add_all(&mut self, other: &ClusterSet) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    /// Removes all clusters of another set.
    pub(crate) fn remove_all(&mut self, other: &ClusterSet) {
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= !other;
        }
    }

    /// The number of clusters in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The offsets of its clusters on the disk in bytes, in order.
    pub fn offsets(&self) -> impl Iterator<Item = u64> {
        self.words.iter().enumerate().flat_map(|(place, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                (left != 0).then(|| {
                    left &= left - 1;
                    (place as u64 * 64 + u64::from(bit)) * CLUSTER
                })
            })
        })
    }

    /// The ranges of adjacent clusters, as offset and length in bytes. The last range may end with
    /// the disk, within a cluster.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut offsets = self.offsets().peekable();
        std::iter::from_fn(move || {
            let start = offsets.next()?;
            let mut end = start + CLUSTER;
            while offsets.next_if_eq(&end).is_some() {
                end += CLUSTER;
            }
            Some((start, end.min(self.size) - start))
        })
    }

    /// The set as runs over the whole disk. The runs in the set have the flag [`WANTED`].
    pub fn runs(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut at = 0;
        let mut push = |length, flags| {
            if length > 0 {
                runs.push(Run { length, flags });
            }
        };
        for (offset, length) in self.ranges() {
            push(offset - at, 0);
            push(length, WANTED);
            at = offset + length;
        }
        push(self.size - at, 0);
        runs
    }

    /// Picks `count` of its clusters at random, or all of them if there are no more. The same seed
    /// picks the same clusters.
    pub fn sample(&self, count: u64, seed: u64) -> ClusterSet {
        let all = self.count();
        if count >= all {
            return self.clone();
        }
        // A single pass takes each cluster with the probability that is left to it (Knuth, The Art
        // of Computer Programming, 3.4.2, algorithm S).
        let mut random = Random::new(seed);
        let mut chosen = ClusterSet::new(self.size);
        let (mut left, mut wanted) = (all, count);
        for offset in self.offsets() {
            if random.below(left) < wanted {
                chosen.add(offset, CLUSTER);
                wanted -= 1;
            }
            left -= 1;
        }
        chosen
    }
}

impl Extend<Extent> for ClusterSet {
    fn extend<I: IntoIterator<Item = Extent>>(&mut self, extents: I) {
        extents
            .into_iter()
            .for_each(|extent| self.add(extent.offset, extent.length));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const CLUSTERS: u64 = 300;
    const SIZE: u64 = CLUSTERS * CLUSTER - 777;

    fn naive(ranges: &[(u64, u64)]) -> BTreeSet<u64> {
        let clusters = |&(offset, length): &(u64, u64)| {
            let end = (offset + length).min(SIZE);
            (0..CLUSTERS)
                .filter(move |index| length > 0 && index * CLUSTER < end && (index + 1) * CLUSTER > offset)
        };
        ranges
            .iter()
            .flat_map(clusters)
            .map(|index| index * CLUSTER)
            .collect()
    }

    fn set(ranges: &[(u64, u64)]) -> ClusterSet {
        let mut set = ClusterSet::new(SIZE);
        ranges
            .iter()
            .for_each(|&(offset, length)| set.add(offset, length));
        set
    }

    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0..SIZE, 1..90 * CLUSTER), 0..6)
    }

    proptest! {
        #[test]
        fn it_holds_what_a_naive_set_holds(a in ranges(), b in ranges()) {
            let (mut one, other) = (set(&a), set(&b));
            let mut model = naive(&a);
            prop_assert_eq!(one.offsets().collect::<BTreeSet<_>>(), model.clone());
            one.add_all(&other);
            model.extend(naive(&b));
            prop_assert_eq!(one.count(), model.len() as u64);
            let runs = one.runs();
            prop_assert_eq!(runs.iter().map(|run| run.length).sum::<u64>(), SIZE);
            prop_assert!(runs.windows(2).all(|pair| pair[0].flags != pair[1].flags));
            let mut again = ClusterSet::new(SIZE);
            let mut at = 0;
            for run in runs {
                if run.flags == WANTED {
                    again.add(at, run.length);
                }
                at += run.length;
            }
            prop_assert_eq!(&again, &one);
            one.remove_all(&other);
            model.retain(|offset| !naive(&b).contains(offset));
            prop_assert_eq!(one.offsets().collect::<BTreeSet<_>>(), model);
        }

        #[test]
        fn a_sample_is_a_part_of_the_asked_size(a in ranges(), count in 0..400u64, seed: u64) {
            let all = set(&a);
            let chosen = all.sample(count, seed);
            prop_assert_eq!(chosen.count(), count.min(all.count()));
            let mut rest = chosen.clone();
            rest.remove_all(&all);
            prop_assert_eq!(rest.count(), 0);
            prop_assert_eq!(chosen, all.sample(count, seed));
        }
    }

    #[test]
    fn every_cluster_is_chosen_about_as_often_as_any_other() {
        let mut all = ClusterSet::new(SIZE);
        all.add(0, SIZE);
        let mut chosen = vec![0u32; CLUSTERS as usize];
        for seed in 0..2000 {
            for offset in all.sample(30, seed).offsets() {
                chosen[(offset / CLUSTER) as usize] += 1;
            }
        }
        // The mean is 200, the standard deviation 13.
        assert!(
            chosen.iter().all(|times| (120..280).contains(times)),
            "{chosen:?}"
        );
    }
}
