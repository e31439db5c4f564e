//! The pages of a disk's map: what all have in common, branches, and the root.

use super::bytes::Bytes;
use super::id::BlockId;
use crate::model::block::CLUSTER;

/// The number of clusters of one leaf.
pub(super) const LEAF_CLUSTERS: u64 = 2048;

/// The range of the disk of one leaf, in bytes.
pub(super) const LEAF_SPAN: u64 = LEAF_CLUSTERS * CLUSTER;

/// The number of leaves of one branch.
pub(super) const BRANCH_LEAVES: u64 = 256;

/// The range of the disk of one branch, in bytes.
pub(super) const BRANCH_SPAN: u64 = BRANCH_LEAVES * LEAF_SPAN;

/// The largest page in bytes. It may be larger than the repository's largest block of data.
pub(super) const LARGEST_PAGE: usize = 128 << 10;

/// The largest number of branches of a root.
pub(super) const MOST_BRANCHES: usize = 4000;

/// The largest disk in bytes.
pub(super) const LARGEST_DISK: u64 = MOST_BRANCHES as u64 * BRANCH_SPAN;

/// The version of the pages.
pub(super) const FORMAT: u8 = 1;

const BRANCH: u8 = 2;
const ROOT: u8 = 3;

/// The id that stands for a range that reads as zero.
pub(super) const NONE: [u8; 32] = [0; 32];

pub(super) const SHORT: &str = "it is too short";
pub(super) const LONG: &str = "it is too long";

/// Ids of pages; `None` where the range reads as zero.
pub(super) type PageIds = Vec<Option<BlockId>>;

/// Encodes a branch: the ids of its leaves, without missing ones at the end.
pub(super) fn encode_branch(ids: &PageIds) -> Vec<u8> {
    let mut bytes = vec![FORMAT, BRANCH];
    let ids = trimmed(ids);
    bytes.extend((ids.len() as u16).to_le_bytes());
    push_ids(&mut bytes, ids);
    bytes
}

/// Reads a branch of at most `leaves` leaves.
///
/// # Errors
/// The reason why it is invalid.
pub(super) fn parse_branch(bytes: &[u8], leaves: u64) -> Result<PageIds, &'static str> {
    let mut bytes = head(bytes, BRANCH)?;
    let count = bytes.u16().ok_or(SHORT)?;
    if count == 0 || u64::from(count) > leaves {
        return Err("it has an impossible number of leaves");
    }
    let ids = parse_ids(&mut bytes, count.into())?;
    match (bytes.left(), ids.last()) {
        (0, Some(Some(_))) => Ok(ids),
        (0, _) => Err("it ends with an empty entry"),
        _ => Err(LONG),
    }
}

/// Encodes the root of a disk of `size` bytes: the ids of its branches.
pub(super) fn encode_root(size: u64, ids: &PageIds) -> Vec<u8> {
    let mut bytes = vec![FORMAT, ROOT];
    let ids = trimmed(ids);
    bytes.extend((ids.len() as u16).to_le_bytes());
    bytes.extend(size.to_le_bytes());
    push_ids(&mut bytes, ids);
    bytes
}

/// Reads a root: the disk's size, and the ids of its branches.
///
/// # Errors
/// The reason why it is invalid.
pub(super) fn parse_root(bytes: &[u8]) -> Result<(u64, PageIds), &'static str> {
    let mut bytes = head(bytes, ROOT)?;
    let (count, size) = bytes.u16().zip(bytes.u64()).ok_or(SHORT)?;
    if size > LARGEST_DISK || u64::from(count) > size.div_ceil(BRANCH_SPAN) {
        return Err("it has an impossible size");
    }
    let ids = parse_ids(&mut bytes, count.into())?;
    match (bytes.left(), ids.last()) {
        (0, None | Some(Some(_))) => Ok((size, ids)),
        (0, _) => Err("it ends with an empty entry"),
        _ => Err(LONG),
    }
}

/// The bytes of a page of this kind after its head.
pub(super) fn head(bytes: &[u8], kind: u8) -> Result<Bytes<'_>, &'static str> {
    let mut bytes = Bytes::new(bytes);
    match (bytes.u8(), bytes.u8()) {
        (Some(FORMAT), Some(found)) if found == kind => Ok(bytes),
        (Some(FORMAT), Some(_)) => Err("it is another kind of page"),
        (Some(_), Some(_)) => Err("this version of vmsnap does not know its format; a newer version may"),
        _ => Err(SHORT),
    }
}

fn trimmed(ids: &PageIds) -> &[Option<BlockId>] {
    let length = ids.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    &ids[..length]
}

fn push_ids(bytes: &mut Vec<u8>, ids: &[Option<BlockId>]) {
    for id in ids {
        bytes.extend(id.as_ref().map_or(&NONE, BlockId::bytes));
    }
}

/// Reads ids.
pub(super) fn parse_ids(bytes: &mut Bytes<'_>, count: usize) -> Result<PageIds, &'static str> {
    if bytes.left() < count * NONE.len() {
        return Err(SHORT);
    }
    let id = |_| {
        let id = bytes.array().ok_or(SHORT)?;
        Ok((id != NONE).then(|| BlockId::new(id)))
    };
    (0..count).map(id).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> BlockId {
        BlockId::new([number + 1; 32])
    }

    proptest! {
        #[test]
        fn random_pages_never_panic(
            kind in 0..5u8,
            rest in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut bytes = vec![FORMAT, kind];
            bytes.extend(rest);
            let _ = parse_branch(&bytes, BRANCH_LEAVES);
            let _ = parse_root(&bytes);
        }
    }

    #[test]
    fn hostile_branches_and_roots_are_refused() {
        let ids = vec![None, Some(id(1)), None];
        let branch = encode_branch(&ids);
        assert_eq!(parse_branch(&branch, 2), Ok(ids[..2].to_vec()));
        assert!(parse_branch(&branch, 1).is_err());
        let root = encode_root(BRANCH_SPAN + 1, &ids);
        assert_eq!(parse_root(&root), Ok((BRANCH_SPAN + 1, ids[..2].to_vec())));
        assert!(parse_root(&encode_root(BRANCH_SPAN, &ids)).is_err());
        assert!(parse_root(&encode_root(LARGEST_DISK + 1, &ids)).is_err());
        assert!(parse_branch(&root, 2).is_err() && parse_root(&branch).is_err());
        for (page, longer) in [(&branch, 64), (&root, 64)] {
            for length in 0..page.len() {
                assert!(parse_branch(&page[..length], 256).is_err());
                assert!(parse_root(&page[..length]).is_err());
            }
            let longer = [&page[..], &vec![0; longer]].concat();
            assert!(parse_branch(&longer, 256).is_err() && parse_root(&longer).is_err());
        }
        // Zeroes at the end would be a second form of the same page.
        let mut padded = encode_branch(&vec![Some(id(1)), Some(id(2))]);
        let end = padded.len();
        padded[end - 32..].fill(0);
        assert!(parse_branch(&padded, 256).is_err());
    }

    #[test]
    fn the_largest_root_fits_into_a_block() {
        let id = |number: u64| BlockId::new(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let branches = (0..MOST_BRANCHES as u64).map(id).map(Some).collect();
        assert!(encode_root(LARGEST_DISK, &branches).len() <= LARGEST_PAGE);
    }
}
