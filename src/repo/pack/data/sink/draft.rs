//! The map of a disk that is being written, from front to back.

use std::ops::Range;
use std::sync::Arc;

use crate::model::block::CLUSTER;
use crate::repo::pack::data::id::BlockId;
use crate::repo::pack::data::leaf::LeafDraft;
use crate::repo::pack::data::page::{
    BRANCH_LEAVES, BRANCH_SPAN, LEAF_CLUSTERS, LEAF_SPAN, PageIds, encode_branch, encode_root,
};
use crate::repo::pack::data::tree::Tree;
use crate::repo::pack_error::Result;

/// Stores a page, and returns its id.
pub(in crate::repo::pack::data) type Store<'a> = &'a mut dyn FnMut(Vec<u8>) -> Result<BlockId>;

/// The map of a disk of `size` bytes.
pub(in crate::repo::pack::data) struct Draft {
    size: u64,
    parent: Option<Arc<Tree>>,
    /// The branches that are complete, or those of the parent.
    branches: PageIds,
    branch: Option<(u64, PageIds)>,
    leaf: Option<(u64, LeafDraft)>,
}

impl Draft {
    pub(in crate::repo::pack::data) fn new(size: u64, parent: Option<Arc<Tree>>) -> Draft {
        let mut branches = parent
            .as_ref()
            .map_or_else(Vec::new, |parent| parent.branches().clone());
        branches.resize(index(size.div_ceil(BRANCH_SPAN)), None);
        Draft {
            size,
            parent,
            branches,
            branch: None,
            leaf: None,
        }
    }

    /// Records that clusters are stored in a block. They lie in the leaf that is being written, or
    /// after it.
    pub(in crate::repo::pack::data) fn set(
        &mut self,
        first: u64,
        count: u16,
        id: BlockId,
        offset: u16,
        store: Store<'_>,
    ) -> Result<()> {
        let leaf = self.leaf(first / LEAF_CLUSTERS, false, store)?;
        leaf.set(index(first % LEAF_CLUSTERS), count, id, offset);
        Ok(())
    }

    /// Records that clusters read as zero.
    pub(super) fn clear(&mut self, clusters: Range<u64>, store: Store<'_>) -> Result<()> {
        let mut at = clusters.start;
        while at < clusters.end {
            let number = at / LEAF_CLUSTERS;
            let leaf_end = (number + 1) * LEAF_CLUSTERS;
            let end = clusters.end.min(leaf_end);
            let reaches_end = end == leaf_end || end == self.size.div_ceil(CLUSTER);
            let is_whole = at.is_multiple_of(LEAF_CLUSTERS) && reaches_end;
            // Without a parent, everything that is not set reads as zero.
            if self.parent.is_some() {
                let leaf = self.leaf(number, is_whole, store)?;
                leaf.clear(index(at % LEAF_CLUSTERS), index(end - at));
            }
            at = end;
        }
        Ok(())
    }

    /// Turns to a leaf. The content of the parent's does not matter if it is `fresh`.
    fn leaf(&mut self, number: u64, fresh: bool, store: Store<'_>) -> Result<&mut LeafDraft> {
        if self.leaf.as_ref().is_none_or(|(open, _)| *open != number) {
            self.close_leaf(store)?;
            self.open_branch(number / BRANCH_LEAVES, store)?;
            let parent = self.parent.as_ref().filter(|parent| {
                let is_inside = number * LEAF_SPAN < parent.size();
                !fresh && is_inside
            });
            let before = match parent {
                Some(parent) => parent.leaf(number)?,
                None => None,
            };
            let mut draft = LeafDraft::new(before.as_deref());
            let clusters = self.size.div_ceil(CLUSTER) - number * LEAF_CLUSTERS;
            let clusters = clusters.min(LEAF_CLUSTERS);
            draft.clear(index(clusters), index(LEAF_CLUSTERS - clusters));
            self.leaf = Some((number, draft));
        }
        let (_, leaf) = self.leaf.get_or_insert_with(|| (number, LeafDraft::new(None)));
        Ok(leaf)
    }

    fn close_leaf(&mut self, store: Store<'_>) -> Result<()> {
        let Some((number, draft)) = self.leaf.take() else {
            return Ok(());
        };
        let id = match draft.finish() {
            Some(leaf) => Some(store(leaf.encode())?),
            None => None,
        };
        if let Some((_, ids)) = &mut self.branch {
            let place = index(number % BRANCH_LEAVES);
            if ids.len() <= place {
                ids.resize(place + 1, None);
            }
            ids[place] = id;
        }
        Ok(())
    }

    fn open_branch(&mut self, number: u64, store: Store<'_>) -> Result<()> {
        if self.branch.as_ref().is_some_and(|(open, _)| *open == number) {
            return Ok(());
        }
        self.close_branch(store)?;
        let parent = self
            .parent
            .as_ref()
            .filter(|parent| number * BRANCH_SPAN < parent.size());
        let before = match parent {
            Some(parent) => parent.branch(number)?,
            None => None,
        };
        let mut ids = before.map_or_else(Vec::new, |ids| ids.to_vec());
        let leaves = self.size.div_ceil(LEAF_SPAN) - number * BRANCH_LEAVES;
        ids.truncate(index(leaves));
        self.branch = Some((number, ids));
        Ok(())
    }

    fn close_branch(&mut self, store: Store<'_>) -> Result<()> {
        let Some((number, ids)) = self.branch.take() else {
            return Ok(());
        };
        let id = match ids.iter().any(Option::is_some) {
            true => Some(store(encode_branch(&ids))?),
            false => None,
        };
        if let Some(place) = self.branches.get_mut(index(number)) {
            *place = id;
        }
        Ok(())
    }

    /// Writes the last pages, and returns the id of the root.
    pub(in crate::repo::pack::data) fn finish(mut self, store: Store<'_>) -> Result<BlockId> {
        // A disk that has shrunk: its last leaf and branch lose what is after the new end.
        let clusters = self.size.div_ceil(CLUSTER);
        let has_shrunk = self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.size() > self.size);
        if has_shrunk && clusters > 0 {
            self.leaf((clusters - 1) / LEAF_CLUSTERS, false, store)?;
        }
        self.close_leaf(store)?;
        self.close_branch(store)?;
        store(encode_root(self.size, &self.branches))
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
