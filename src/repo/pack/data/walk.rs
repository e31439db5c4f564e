//! Walks the map of a disk: every page and every block that it needs.

use super::blocks::Located;
use super::id::BlockId;
use super::leaf::Leaf;
use super::page::{BRANCH_LEAVES, LEAF_CLUSTERS, parse_branch, parse_root};
use super::tree::TreeContext;
use crate::model::block::CLUSTER;
use crate::model::stop::Stop;
use crate::repo::pack_error::{PackError, Result};

/// The number of leaves that are read at a time.
const LEAVES: usize = 64;

/// Receives the pages and blocks that a disk needs.
pub(super) trait Visitor {
    /// A page, before it is read. If this returns false, the page and what is below it are skipped.
    ///
    /// # Errors
    /// The walk ends with the error.
    fn page(&mut self, id: &BlockId) -> Result<bool>;

    /// A page, after it was read and before what is below it.
    ///
    /// # Errors
    /// The walk ends with the error.
    fn page_was_read(&mut self, _id: &BlockId) -> Result<()> {
        Ok(())
    }

    /// A block with data.
    ///
    /// # Errors
    /// The walk ends with the error.
    fn block(&mut self, id: &BlockId) -> Result<()>;
}

/// Walks the map of a disk of `size` bytes.
///
/// # Errors
/// A page is damaged or missing, the store fails, a stop was requested, or the visitor fails.
pub(super) fn walk(
    context: &TreeContext,
    root: &BlockId,
    size: u64,
    visitor: &mut dyn Visitor,
    stop: &Stop,
) -> Result<()> {
    if !visitor.page(root)? {
        return Ok(());
    }
    let bytes = context.blocks.read(root, stop)?;
    let (found, branches) = parse_root(&bytes).map_err(|why| damaged(context, root, why))?;
    if found != size {
        return Err(damaged(context, root, "it belongs to a disk of another size"));
    }
    visitor.page_was_read(root)?;
    for branch in branches.iter().flatten() {
        if !visitor.page(branch)? {
            continue;
        }
        let bytes = context.blocks.read(branch, stop)?;
        let leaves = parse_branch(&bytes, BRANCH_LEAVES).map_err(|why| damaged(context, branch, why))?;
        visitor.page_was_read(branch)?;
        for some in leaves.chunks(LEAVES) {
            walk_leaves(context, some, visitor, stop)?;
        }
    }
    Ok(())
}

fn walk_leaves(
    context: &TreeContext,
    leaves: &[Option<BlockId>],
    visitor: &mut dyn Visitor,
    stop: &Stop,
) -> Result<()> {
    let mut located: Vec<Located> = Vec::new();
    for id in leaves.iter().flatten() {
        if visitor.page(id)? {
            located.push((*id, context.blocks.locate(id, stop)?));
        }
    }
    for ((id, _), bytes) in located.iter().zip(context.blocks.read_all(&located, stop)) {
        let leaf = Leaf::parse(&bytes?, LEAF_CLUSTERS, context.block_bytes / CLUSTER);
        let leaf = leaf.map_err(|why| damaged(context, id, why))?;
        visitor.page_was_read(id)?;
        for block in &leaf.ids {
            visitor.block(block)?;
        }
    }
    Ok(())
}

fn damaged(context: &TreeContext, id: &BlockId, why: &str) -> PackError {
    PackError::Damaged {
        location: context.location.clone(),
        object: format!("block {id}"),
        why: format!("this page of a disk's map is invalid: {why}"),
    }
}
