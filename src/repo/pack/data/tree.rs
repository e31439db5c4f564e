//! Reads the map of a disk: its root, and branches and leaves as they are needed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::blocks::Blocks;
use super::id::BlockId;
use super::leaf::Leaf;
use super::page::{BRANCH_LEAVES, LEAF_CLUSTERS, LEAF_SPAN, PageIds, parse_branch, parse_root};
use crate::model::block::CLUSTER;
use crate::model::stop::Stop;
use crate::repo::pack_error::{PackError, Result};

/// The number of leaves that are kept in memory. One takes at most 80 KiB.
const LEAVES: usize = 64;

/// The number of branches that are kept in memory. One takes 8 KiB.
const BRANCHES: usize = 16;

/// The map of a disk.
pub(super) struct Tree {
    blocks: Arc<Blocks>,
    location: String,
    root: BlockId,
    size: u64,
    branches: PageIds,
    block_clusters: u64,
    leaves: Pages<Option<Arc<Leaf>>>,
    read_branches: Pages<Arc<PageIds>>,
    stop: Stop,
}

/// The parts of a repository that a tree needs.
#[derive(Clone)]
pub(super) struct TreeContext {
    pub(super) blocks: Arc<Blocks>,
    pub(super) location: String,
    pub(super) block_bytes: u64,
}

impl Tree {
    /// Opens the map of a disk of `size` bytes.
    ///
    /// # Errors
    /// The root is damaged or missing, or the store fails.
    pub(super) fn open(context: &TreeContext, root: BlockId, size: u64, stop: Stop) -> Result<Tree> {
        let mut tree = Tree {
            blocks: Arc::clone(&context.blocks),
            location: context.location.clone(),
            root,
            size,
            branches: Vec::new(),
            block_clusters: context.block_bytes / CLUSTER,
            leaves: Pages::new(LEAVES),
            read_branches: Pages::new(BRANCHES),
            stop,
        };
        let bytes = tree.blocks.read(&root, &tree.stop)?;
        let (found, branches) = parse_root(&bytes).map_err(|why| tree.damaged(&root, "the root", why))?;
        if found != size {
            return Err(tree.damaged(&root, "the root", "it belongs to a disk of another size"));
        }
        tree.branches = branches;
        Ok(tree)
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn stop(&self) -> &Stop {
        &self.stop
    }

    pub(super) fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    /// The ids of its branches.
    pub(super) fn branches(&self) -> &PageIds {
        &self.branches
    }

    /// The ids of the leaves of a branch; `None` if all of it reads as zero.
    ///
    /// # Errors
    /// The page is damaged or missing, or the store fails.
    pub(super) fn branch(&self, number: u64) -> Result<Option<Arc<PageIds>>> {
        let id = self.branches.get(index(number)).copied().flatten();
        let Some(id) = id else { return Ok(None) };
        if let Some(branch) = self.read_branches.get(number) {
            return Ok(Some(branch));
        }
        let bytes = self.blocks.read(&id, &self.stop)?;
        let leaves = self.size.div_ceil(LEAF_SPAN) - number * BRANCH_LEAVES;
        let branch = parse_branch(&bytes, leaves.min(BRANCH_LEAVES));
        let branch = Arc::new(branch.map_err(|why| self.damaged(&id, "a branch", why))?);
        self.read_branches.put(number, Arc::clone(&branch));
        Ok(Some(branch))
    }

    /// A leaf; `None` if all of it reads as zero.
    ///
    /// # Errors
    /// The errors of [`Tree::branch`].
    pub(super) fn leaf(&self, number: u64) -> Result<Option<Arc<Leaf>>> {
        if let Some(leaf) = self.leaves.get(number) {
            return Ok(leaf);
        }
        let branch = self.branch(number / BRANCH_LEAVES)?;
        let place = index(number % BRANCH_LEAVES);
        let id = branch.and_then(|branch| branch.get(place).copied().flatten());
        let leaf = match id {
            Some(id) => Some(Arc::new(self.read_leaf(number, &id)?)),
            None => None,
        };
        self.leaves.put(number, leaf.clone());
        Ok(leaf)
    }

    fn read_leaf(&self, number: u64, id: &BlockId) -> Result<Leaf> {
        let bytes = self.blocks.read(id, &self.stop)?;
        self.parse_leaf(number, id, &bytes)
    }

    fn parse_leaf(&self, number: u64, id: &BlockId, bytes: &[u8]) -> Result<Leaf> {
        let clusters = self.size.div_ceil(CLUSTER) - number * LEAF_CLUSTERS;
        let leaf = Leaf::parse(bytes, clusters.min(LEAF_CLUSTERS), self.block_clusters);
        leaf.map_err(|why| self.damaged(id, "a leaf", why))
    }

    /// Reads the leaf of an offset and those after it with few requests, unless it is in memory.
    ///
    /// # Errors
    /// The errors of [`Tree::branch`]. Damage of a leaf is reported when the leaf is used.
    pub(super) fn read_ahead(&self, offset: u64) -> Result<()> {
        let first = offset / LEAF_SPAN;
        if self.leaves.get(first).is_some() {
            return Ok(());
        }
        let Some(branch) = self.branch(first / BRANCH_LEAVES)? else {
            return Ok(());
        };
        let start = index(first % BRANCH_LEAVES);
        if branch.get(start).copied().flatten().is_none() {
            return Ok(());
        }
        let mut located = Vec::new();
        let mut numbers = Vec::new();
        for (number, id) in (first..).zip(branch.iter().skip(start).take(LEAVES / 2)) {
            let Some(id) = id else { continue };
            if let Some(place) = self.blocks.index.find(id)? {
                located.push((*id, place));
                numbers.push(number);
            }
        }
        let read = self.blocks.read_all(&located, &self.stop);
        for ((number, (id, _)), bytes) in numbers.iter().zip(&located).zip(read) {
            let leaf = bytes.and_then(|bytes| self.parse_leaf(*number, id, &bytes));
            if let Ok(leaf) = leaf {
                self.leaves.put(*number, Some(Arc::new(leaf)));
            }
        }
        Ok(())
    }

    /// The number of the first leaf, from `leaf` on, whose branch is not all zero; the number of
    /// leaves if there is none.
    pub(super) fn skip_zero_branches(&self, leaf: u64) -> u64 {
        let leaves = self.size.div_ceil(LEAF_SPAN);
        let is_zero = |number: u64| self.branches.get(index(number)).copied().flatten().is_none();
        let mut at = leaf;
        while at < leaves && is_zero(at / BRANCH_LEAVES) {
            at = (at / BRANCH_LEAVES + 1) * BRANCH_LEAVES;
        }
        at.min(leaves)
    }

    /// The error about a block that is shorter than the map says.
    pub(super) fn too_short(&self, id: &BlockId) -> PackError {
        PackError::Damaged {
            location: self.location.clone(),
            object: format!("block {id}"),
            why: "it is shorter than the disk's map says".to_owned(),
        }
    }

    /// The error about a page of the map.
    fn damaged(&self, id: &BlockId, what: &str, why: &str) -> PackError {
        PackError::Damaged {
            location: self.location.clone(),
            object: format!("block {id}"),
            why: format!("{what} of the disk's map is invalid: {why}"),
        }
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree({} of {} bytes)", self.root, self.size)
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The pages that were read last.
struct Pages<T> {
    most: usize,
    held: Mutex<VecDeque<(u64, T)>>,
}

impl<T: Clone> Pages<T> {
    fn new(most: usize) -> Pages<T> {
        Pages {
            most,
            held: Mutex::default(),
        }
    }

    fn get(&self, number: u64) -> Option<T> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let found = held.iter().rev().find(|(held, _)| *held == number);
        found.map(|(_, page)| page.clone())
    }

    fn put(&self, number: u64, page: T) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= self.most {
            held.pop_front();
        }
        held.push_back((number, page));
    }
}
