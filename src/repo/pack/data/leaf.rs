//! Leaves of a disk's map: where the clusters of 128 MiB are stored.

use std::collections::HashMap;

use super::id::BlockId;
use super::page::{FORMAT, LEAF_CLUSTERS, LONG, SHORT, head, parse_ids};
use crate::model::block::CLUSTER;

/// The kind of page that a leaf is.
const LEAF: u8 = 1;

/// Clusters that lie one after another in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first cluster, counted in the leaf.
    pub(super) first: u16,
    /// The number of clusters.
    pub(super) count: u16,
    /// The place of the block's id in the leaf.
    pub(super) block: u16,
    /// The first cluster in the block.
    pub(super) offset: u16,
}

impl Run {
    pub(super) fn end(&self) -> u16 {
        self.first + self.count
    }

    /// The least number of plain bytes that its block must have; the last cluster may be shorter.
    pub(super) fn least_plain(&self) -> u64 {
        (u64::from(self.offset) + u64::from(self.count) - 1) * CLUSTER + 1
    }
}

/// A leaf: where the clusters of a range of the disk are stored. Clusters in no run read as zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) ids: Vec<BlockId>,
    /// In order and without overlap.
    pub(super) runs: Vec<Run>,
}

impl Leaf {
    /// Encodes a leaf that is not empty.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT, LEAF];
        bytes.extend((self.ids.len() as u16).to_le_bytes());
        bytes.extend((self.runs.len() as u16).to_le_bytes());
        for id in &self.ids {
            bytes.extend(id.bytes());
        }
        for run in &self.runs {
            for field in [run.first, run.count, run.block, run.offset] {
                bytes.extend(field.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads a leaf of `clusters` clusters, whose blocks have at most `block_clusters`.
    ///
    /// # Errors
    /// The reason why it is invalid.
    pub(super) fn parse(bytes: &[u8], clusters: u64, block_clusters: u64) -> Result<Leaf, &'static str> {
        let mut bytes = head(bytes, LEAF)?;
        let (ids, runs) = bytes.u16().zip(bytes.u16()).ok_or(SHORT)?;
        if u64::from(ids) > LEAF_CLUSTERS || u64::from(runs) > LEAF_CLUSTERS || runs == 0 {
            return Err("it has an impossible number of entries");
        }
        let ids = parse_ids(&mut bytes, ids.into())?;
        let ids: Option<Vec<BlockId>> = ids.into_iter().collect();
        let mut leaf = Leaf {
            ids: ids.ok_or("it names a block of zeroes")?,
            runs: Vec::with_capacity(runs.into()),
        };
        let mut end = 0;
        let mut used = 0;
        for _ in 0..runs {
            let mut field = || bytes.u16().ok_or(SHORT);
            let run = Run {
                first: field()?,
                count: field()?,
                block: field()?,
                offset: field()?,
            };
            let run_end = u64::from(run.first) + u64::from(run.count);
            let block_end = u64::from(run.offset) + u64::from(run.count);
            match () {
                () if run.count == 0 => return Err("it has an empty run"),
                () if u64::from(run.first) < end => return Err("its runs overlap or are out of order"),
                () if run_end > clusters => return Err("a run ends after its range of the disk"),
                () if block_end > block_clusters => return Err("a run ends after its block"),
                // Blocks are numbered in the order of their first use.
                () if run.block > used || usize::from(run.block) >= leaf.ids.len() => {
                    return Err("a run names an impossible block");
                }
                () => {}
            }
            used = used.max(run.block + 1);
            end = run_end;
            leaf.runs.push(run);
        }
        match bytes.left() {
            _ if usize::from(used) != leaf.ids.len() => Err("it names an unused block"),
            0 => Ok(leaf),
            _ => Err(LONG),
        }
    }
}

/// A leaf while it is changed: the place of each cluster.
pub(super) struct LeafDraft {
    ids: Vec<BlockId>,
    numbers: HashMap<BlockId, u16>,
    /// For each cluster, the number of its block and the cluster in it.
    slots: Vec<Option<(u16, u16)>>,
}

impl LeafDraft {
    /// A draft of an existing leaf, or of an empty one.
    pub(super) fn new(leaf: Option<&Leaf>) -> LeafDraft {
        let mut draft = LeafDraft {
            ids: Vec::new(),
            numbers: HashMap::new(),
            slots: vec![None; LEAF_CLUSTERS as usize],
        };
        for run in leaf.iter().flat_map(|leaf| &leaf.runs) {
            let id = leaf.and_then(|leaf| leaf.ids.get(usize::from(run.block)));
            if let Some(id) = id {
                draft.set(run.first.into(), run.count, *id, run.offset);
            }
        }
        draft
    }

    /// Records that clusters of the leaf are stored in a block.
    pub(super) fn set(&mut self, first: usize, count: u16, id: BlockId, offset: u16) {
        let next = self.ids.len() as u16;
        let number = *self.numbers.entry(id).or_insert_with(|| {
            self.ids.push(id);
            next
        });
        let slots = self.slots.iter_mut().skip(first).take(count.into());
        for (slot, offset) in slots.zip(offset..) {
            *slot = Some((number, offset));
        }
    }

    /// Records that clusters of the leaf read as zero.
    pub(super) fn clear(&mut self, first: usize, count: usize) {
        let slots = self.slots.iter_mut().skip(first).take(count);
        slots.for_each(|slot| *slot = None);
    }

    /// The leaf, or `None` if all of it reads as zero.
    pub(super) fn finish(&self) -> Option<Leaf> {
        let mut leaf = Leaf::default();
        let mut numbers: HashMap<u16, u16> = HashMap::new();
        for (cluster, slot) in (0u16..).zip(&self.slots) {
            let Some((old, offset)) = slot else { continue };
            let id = self.ids[usize::from(*old)];
            let block = *numbers.entry(*old).or_insert_with(|| {
                leaf.ids.push(id);
                leaf.ids.len() as u16 - 1
            });
            let continued = leaf.runs.last_mut().filter(|run| {
                run.end() == cluster && run.block == block && run.offset + run.count == *offset
            });
            match continued {
                Some(run) => run.count += 1,
                None => leaf.runs.push(Run {
                    first: cluster,
                    count: 1,
                    block,
                    offset: *offset,
                }),
            }
        }
        (!leaf.runs.is_empty()).then_some(leaf)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::repo::pack::data::page::LARGEST_PAGE;

    fn id(number: u8) -> BlockId {
        BlockId::new([number + 1; 32])
    }

    fn parsed(leaf: &Leaf) -> Result<Leaf, &'static str> {
        Leaf::parse(&leaf.encode(), LEAF_CLUSTERS, 16)
    }

    fn run(first: u16, count: u16, block: u16, offset: u16) -> Run {
        Run {
            first,
            count,
            block,
            offset,
        }
    }

    proptest! {
        /// Changes in any order give the leaf of a naive model, and it comes back.
        #[test]
        fn drafts_agree_with_a_model(
            changes in proptest::collection::vec(
                (0..200usize, 1..16u16, proptest::option::of(0..9u8), 0..3u16),
                0..40,
            ),
        ) {
            let mut draft = LeafDraft::new(None);
            let mut model = vec![None; LEAF_CLUSTERS as usize];
            for (first, count, block, offset) in changes {
                for (place, number) in (first..).zip(0..count) {
                    model[place] = block.map(|block| (id(block), offset.min(16 - count) + number));
                }
                match block {
                    Some(block) => draft.set(first, count, id(block), offset.min(16 - count)),
                    None => draft.clear(first, count.into()),
                }
            }
            let Some(leaf) = draft.finish() else {
                prop_assert!(model.iter().all(Option::is_none));
                return Ok(());
            };
            let leaf = parsed(&leaf).expect("valid");
            let mut found = vec![None; LEAF_CLUSTERS as usize];
            for run in &leaf.runs {
                for number in 0..run.count {
                    let id = leaf.ids[usize::from(run.block)];
                    found[usize::from(run.first + number)] = Some((id, run.offset + number));
                }
            }
            prop_assert!(found == model);
            prop_assert_eq!(LeafDraft::new(Some(&leaf)).finish(), Some(leaf));
        }

        #[test]
        fn random_leaves_never_panic(rest in proptest::collection::vec(any::<u8>(), 0..400)) {
            let bytes = [&[FORMAT, LEAF][..], &rest].concat();
            let _ = Leaf::parse(&bytes, LEAF_CLUSTERS, 16);
        }
    }

    #[test]
    fn hostile_leaves_are_refused() {
        let good = Leaf {
            ids: vec![id(0), id(1)],
            runs: vec![run(0, 2, 0, 0), run(2, 3, 1, 4), run(9, 1, 0, 15)],
        };
        assert_eq!(parsed(&good), Ok(good.clone()));
        let changed = |change: fn(&mut Leaf)| {
            let mut leaf = good.clone();
            change(&mut leaf);
            parsed(&leaf).is_err()
        };
        let changes: [fn(&mut Leaf); 12] = [
            |leaf| leaf.runs[1].first = 1,
            |leaf| leaf.runs.swap(0, 2),
            |leaf| leaf.runs[0].count = 0,
            |leaf| leaf.runs[2].first = 2048,
            |leaf| leaf.runs[2].count = u16::MAX,
            |leaf| leaf.runs[2].offset = 16,
            |leaf| leaf.runs[2].offset = u16::MAX,
            |leaf| leaf.runs[2].block = 2,
            |leaf| leaf.runs[0].block = 1,
            |leaf| leaf.ids.push(id(5)),
            |leaf| leaf.ids[0] = BlockId::new([0; 32]),
            |leaf| leaf.runs.clear(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(changed(change), "change {number}");
        }
        let bytes = good.encode();
        for length in 0..bytes.len() {
            assert!(
                Leaf::parse(&bytes[..length], LEAF_CLUSTERS, 16).is_err(),
                "{length}"
            );
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Leaf::parse(&longer, LEAF_CLUSTERS, 16).is_err());
        // Beyond the end of the disk.
        assert!(Leaf::parse(&bytes, 9, 16).is_err() && Leaf::parse(&bytes, 10, 16).is_ok());
    }

    #[test]
    fn the_largest_leaf_fits_into_a_block() {
        let mut draft = LeafDraft::new(None);
        for cluster in 0..LEAF_CLUSTERS {
            let id = BlockId::new(*blake3::hash(&cluster.to_le_bytes()).as_bytes());
            draft.set(cluster as usize, 1, id, 0);
        }
        let leaf = draft.finish().expect("not empty");
        assert!(leaf.encode().len() <= LARGEST_PAGE);
        assert_eq!(parsed(&leaf), Ok(leaf));
    }
}
