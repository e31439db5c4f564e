//! The parsers of stored bytes, without a store, for the fuzz targets. Each accepts any bytes. What
//! is accepted has to be what would be written: there is one form of everything.

use super::condemned;
use super::id::BlockId;
use super::leaf::Leaf;
use super::page::{
    BRANCH_LEAVES, LARGEST_PAGE, LEAF_CLUSTERS, encode_branch, encode_root, parse_branch, parse_root,
};
use super::sealer::Sealer;
use super::session;
use super::table::{encode_index, encode_table, encode_trailer, parse_index, parse_table, parse_trailer};
use crate::repo::pack::description::Cipher;
use crate::repo::pack::keys::MasterKey;
use crate::repo::pack::objects::ObjectName;

/// The clusters of the largest block.
const BLOCK_CLUSTERS: u64 = 16;

/// Parses the bytes as a root, a branch and a leaf of a disk's map.
pub(crate) fn pages(bytes: &[u8]) {
    if let Ok((size, ids)) = parse_root(bytes) {
        assert_eq!(encode_root(size, &ids), bytes);
    }
    if let Ok(ids) = parse_branch(bytes, BRANCH_LEAVES) {
        assert_eq!(encode_branch(&ids), bytes);
    }
    if let Ok(leaf) = Leaf::parse(bytes, LEAF_CLUSTERS, BLOCK_CLUSTERS) {
        assert_eq!(leaf.encode(), bytes);
        for run in &leaf.runs {
            assert!(u64::from(run.end()) <= LEAF_CLUSTERS && usize::from(run.block) < leaf.ids.len());
            assert!(u64::from(run.offset) + u64::from(run.count) <= BLOCK_CLUSTERS);
        }
    }
}

/// Parses the bytes as the table and the trailer of a pack, and as an index object.
pub(crate) fn tables(bytes: &[u8]) {
    if let Ok(entries) = parse_table(bytes, LARGEST_PAGE) {
        assert_eq!(encode_table(&entries), bytes);
    }
    if let Ok(trailer) = parse_trailer(bytes) {
        let digest = blake3::Hash::from_bytes(trailer.digest);
        assert_eq!(encode_trailer(trailer.table_length, &digest)[..], *bytes);
    }
    if let Ok(packs) = parse_index(bytes, LARGEST_PAGE) {
        assert_eq!(encode_index(&packs), bytes);
        for pack in &packs {
            let ends = pack
                .located()
                .map(|(offset, entry)| u64::from(offset) + u64::from(entry.stored));
            assert!(ends.max().unwrap_or(0) < pack.size);
        }
    }
}

/// Parses the bytes as a record of condemned packs, and as a record of a session.
pub(crate) fn sessions(bytes: &[u8]) {
    if let Ok((marked, packs)) = condemned::parse(bytes) {
        assert_eq!(condemned::encode(marked, &packs), bytes);
    }
    session::parse_for_fuzzing(bytes);
}

/// Parses the bytes as the stored form of a block, and of a record, without encryption. The first
/// byte gives the expected length.
pub(crate) fn sealed(bytes: &[u8]) {
    let [length, stored @ ..] = bytes else { return };
    let (Some(key), Some(name)) = (MasterKey::from_hex(&"07".repeat(32)), ObjectName::new("index/0")) else {
        return;
    };
    let sealer = Sealer::new(&key, Cipher::None);
    let length = 1 + usize::from(*length) * 16;
    // The id of no bytes: what is opened is compared with it at last.
    let id = BlockId::new([7; 32]);
    assert!(sealer.open_block(&id, stored.to_vec(), length).is_err());
    if let Ok(record) = sealer.open_record(&name, stored.to_vec(), length) {
        assert!(record.len() <= length);
    }
    sealer.open_forged_record(&name, stored, length);
    let sealer = Sealer::new(&key, Cipher::XChaCha20Poly1305);
    assert!(sealer.open_block(&id, stored.to_vec(), length).is_err());
    assert!(sealer.open_record(&name, stored.to_vec(), length).is_err());
}

/// Bytes that the parsers accept, which the fuzzer changes.
#[cfg(test)]
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    use super::id::PackId;
    use super::leaf::LeafDraft;
    use super::table::{Entry, PackEntry};
    let id = |number: u8| BlockId::new([number; 32]);
    let mut draft = LeafDraft::new(None);
    draft.set(0, 3, id(1), 0);
    draft.set(5, 1, id(2), 4);
    draft.set(2047, 1, id(1), 3);
    let entry = |number, stored, plain| Entry {
        id: id(number),
        stored,
        plain,
    };
    let entries = vec![entry(1, 100, 90), entry(2, 7, 65536)];
    let pack = |number| PackEntry {
        id: PackId::from_bytes([number; 16]),
        size: 1000,
        entries: entries.clone(),
    };
    let packs = [PackId::from_bytes([1; 16]), PackId::from_bytes([2; 16])];
    vec![
        encode_root(1 << 36, &vec![Some(id(1)), None, Some(id(3))]),
        encode_branch(&vec![None, Some(id(2)), Some(id(3))]),
        draft.finish().map_or_else(Vec::new, |leaf| leaf.encode()),
        encode_table(&entries),
        encode_index(&[pack(1), pack(2)]),
        encode_trailer(77, &blake3::hash(b"x")).to_vec(),
        condemned::encode(jiff::Timestamp::UNIX_EPOCH, &packs),
        br#"{"format":1,"host":"kvm1","process":77}"#.to_vec(),
        // A block of 17 zeroes, plain.
        [&[1, 0][..], &[0; 17]].concat(),
    ]
}
