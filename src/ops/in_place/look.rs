//! Finds the clusters of a disk that may differ from a restore point.

use crate::model::block::BlockError;
use crate::model::clusters::{ClusterSet, DiskMap};
use crate::repo::{DiskReader, Stored};

/// The clusters in which two disks of one chain may differ. The older one is `steps` back in the
/// chain of the newer one. Only verified tables are used, because a damaged table could hide a
/// difference.
///
/// # Errors
/// The chain is damaged or cannot be read, or a stop was requested.
pub(super) fn between(
    newer: &dyn DiskReader,
    older: &dyn DiskReader,
    steps: usize,
) -> Result<ClusterSet, BlockError> {
    let size = newer.size().max(older.size());
    let mut found = ClusterSet::new(size);
    for extent in newer.verified_extents(0..newer.size()) {
        let extent = extent?;
        let range = extent.offset..extent.offset + extent.length;
        match extent.stored {
            Stored::Data { depth } if depth < steps => found.add(extent.offset, extent.length),
            // Stored in the older one or before: the newer ones have not changed it.
            Stored::Data { .. } => {}
            // It may have become zero in between.
            Stored::Zero => {
                for before in older.verified_extents(range) {
                    let before = before?;
                    if before.stored != Stored::Zero {
                        found.add(before.offset, before.length);
                    }
                }
            }
        }
    }
    // What only one of them has.
    let common = newer.size().min(older.size());
    if common < size {
        found.add(common, size - common);
    }
    Ok(found)
}

/// The clusters of a disk that have to be compared with the restore point. `map` is the map of the
/// disk now, `wanted` the clusters that hold data in the restore point.
///
/// `between` are the clusters in which the restore point may differ from the restore point since
/// which the bitmap has recorded writes. `None` selects the whole disk.
pub(super) fn to_compare(map: &DiskMap, wanted: &ClusterSet, between: Option<&ClusterSet>) -> ClusterSet {
    let Some(between) = between else {
        // Where neither has data, both read as zero.
        let mut all = map.data.clone();
        all.add_all(wanted);
        return all;
    };
    // Bitmaps do not record every range that becomes zero (docs/adr/0006-unrecorded-zeroes.md).
    let mut found = wanted.clone();
    found.remove_all(&map.data);
    found.add_all(&map.changed);
    found.add_all(between);
    found
}

/// Whether a bitmap shows all ranges that became zero since a restore point. `map` is the map of
/// the disk now.
///
/// # Errors
/// The errors of [`between`].
pub(super) fn is_complete(map: &DiskMap, since: &dyn DiskReader) -> Result<bool, BlockError> {
    let mut missed = since.verified_data_clusters()?;
    missed.remove_all(&map.data);
    missed.remove_all(&map.changed);
    Ok(missed.count() == 0)
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use proptest::prelude::*;

    use super::*;
    use crate::model::block::CLUSTER;
    use crate::repo::StoredExtent;

    const COUNT: usize = 12;

    /// The layers of a chain, oldest first. Each cluster of a layer is a byte, or `None` if the
    /// layer does not store it.
    type Layers = Vec<Vec<Option<u8>>>;

    /// A disk whose clusters hold one byte each.
    struct Model<'a>(&'a [Vec<Option<u8>>]);

    impl fmt::Debug for Model<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a model")
        }
    }

    impl Model<'_> {
        fn byte(&self, index: usize) -> (u8, usize) {
            let newest_first = self.0.iter().rev().enumerate();
            let mut stored = newest_first.filter_map(|(depth, layer)| Some((layer[index]?, depth)));
            stored.next().unwrap_or((0, 0))
        }

        fn data(&self) -> ClusterSet {
            let mut data = ClusterSet::new(COUNT as u64 * CLUSTER);
            for index in (0..COUNT).filter(|index| self.byte(*index).0 != 0) {
                data.add(index as u64 * CLUSTER, CLUSTER);
            }
            data
        }
    }

    impl DiskReader for Model<'_> {
        fn size(&self) -> u64 {
            COUNT as u64 * CLUSTER
        }

        fn extent_at(&self, offset: u64) -> Result<Option<StoredExtent>, BlockError> {
            let index = (offset / CLUSTER) as usize;
            Ok((index < COUNT).then(|| StoredExtent {
                offset,
                length: CLUSTER,
                stored: match self.byte(index) {
                    (0, _) => Stored::Zero,
                    (_, depth) => Stored::Data { depth },
                },
            }))
        }

        fn verified_extent_at(&self, offset: u64) -> Result<Option<StoredExtent>, BlockError> {
            self.extent_at(offset)
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> Result<(), BlockError> {
            Ok(())
        }

        fn holds(&self, _: &[u8], _: u64) -> Result<bool, BlockError> {
            Ok(true)
        }
    }

    fn layers() -> impl Strategy<Value = Layers> {
        let cluster = prop_oneof![4 => Just(None), 1 => Just(Some(0)), 3 => (1..4u8).prop_map(Some)];
        proptest::collection::vec(proptest::collection::vec(cluster, COUNT), 1..5)
    }

    proptest! {
        /// No cluster that differs is left out: between two restore points, and on the live disk,
        /// whatever was written since, even if the bitmap has missed that something became zero.
        #[test]
        fn every_difference_is_looked_at(
            layers in layers(),
            wanted in 0..5usize,
            since in 0..5usize,
            writes in proptest::collection::vec((0..COUNT, 0..4u8), 0..6),
            lost in proptest::collection::vec(0..COUNT, 0..3),
        ) {
            let (wanted, since) = (wanted % layers.len(), since % layers.len());
            let (low, high) = (wanted.min(since), wanted.max(since));
            let (older, newer) = (Model(&layers[..=low]), Model(&layers[..=high]));
            let between = between(&newer, &older, high - low).expect("it is read");
            for index in 0..COUNT {
                if newer.byte(index).0 != older.byte(index).0 {
                    prop_assert!(between.offsets().any(|at| at == index as u64 * CLUSTER));
                }
            }
            let (point, basis) = (Model(&layers[..=wanted]), Model(&layers[..=since]));
            let mut live: Vec<u8> = (0..COUNT).map(|index| basis.byte(index).0).collect();
            let size = COUNT as u64 * CLUSTER;
            let mut map = DiskMap { changed: ClusterSet::new(size), data: ClusterSet::new(size) };
            for (index, byte) in writes {
                live[index] = byte;
                map.changed.add(index as u64 * CLUSTER, CLUSTER);
            }
            for index in lost {
                live[index] = 0;
            }
            for index in (0..COUNT).filter(|index| live[*index] != 0) {
                map.data.add(index as u64 * CLUSTER, CLUSTER);
            }
            let differs = |index: &usize| live[*index] != point.byte(*index).0;
            for set in [to_compare(&map, &point.data(), Some(&between)), to_compare(&map, &point.data(), None)] {
                for index in (0..COUNT).filter(differs) {
                    prop_assert!(set.offsets().any(|at| at == index as u64 * CLUSTER), "{index}");
                }
            }
        }
    }

    #[test]
    fn without_writes_only_the_chain_counts() {
        let layers = vec![
            vec![Some(1); COUNT],
            [vec![None, Some(2), Some(0)], vec![None; COUNT - 3]].concat(),
        ];
        let (older, newer) = (Model(&layers[..1]), Model(&layers));
        let between = between(&newer, &older, 1).expect("it is read");
        let map = DiskMap {
            changed: ClusterSet::new(newer.size()),
            data: newer.data(),
        };
        let found = to_compare(&map, &older.data(), Some(&between));
        assert_eq!(found.offsets().collect::<Vec<_>>(), [CLUSTER, 2 * CLUSTER]);
        assert_eq!(to_compare(&map, &older.data(), None).count(), COUNT as u64);
    }
}
