//! The digests of a file that was continued, from those of the old file: only pieces that have
//! changed are read.

use std::path::Path;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

use super::{MOST_PIECES, SHORTEST_PIECE, halves, subtree_at, subtree_of};
use crate::image::recorded::Recorded;
use crate::image::stored::apply;
use crate::image::{Error, Result, StoredFile, read_exact_at};
use crate::model::block::{CLUSTER, Patch, Pieces};
use crate::model::stop::Stop;

/// Clusters are the leaves of the trees here. A continued file has whole clusters only.
const LEAF: usize = CLUSTER as usize;
/// Leaves that are kept because the file may turn out to be a single piece.
const KEPT_LEAVES: usize = (SHORTEST_PIECE / CLUSTER) as usize;

/// Complete subtrees of BLAKE3's tree that follow each other in a file. Siblings are merged as soon
/// as both are complete, except beyond the length of a piece.
#[derive(Debug)]
struct Forest {
    /// The trees that are not merged further, in order.
    trees: Vec<Tree>,
    /// The first leaves.
    leaves: Vec<ChainingValue>,
    /// The number in the file of the leaf that comes next.
    next: u64,
    /// The level of the tree of a whole piece.
    piece_level: u32,
}

/// A complete subtree of two to the power of `level` leaves.
#[derive(Clone, Copy, Debug)]
struct Tree {
    start: u64,
    level: u32,
    value: ChainingValue,
}

impl Forest {
    /// Starts with the leaf at this offset of the file.
    fn at(offset: u64, piece: u64) -> Forest {
        Forest {
            trees: Vec::new(),
            leaves: Vec::new(),
            next: offset / CLUSTER,
            piece_level: (piece / CLUSTER).trailing_zeros(),
        }
    }

    fn push_leaf(&mut self, value: ChainingValue) {
        if self.leaves.len() < KEPT_LEAVES {
            self.leaves.push(value);
        }
        self.push(0, value);
    }

    /// Adds the next tree.
    fn push(&mut self, level: u32, value: ChainingValue) {
        let mut tree = Tree {
            start: self.next,
            level,
            value,
        };
        self.next += 1 << level;
        // The tree to the left has the same level only if it is the sibling.
        while tree.level < self.piece_level
            && tree.start >> tree.level & 1 == 1
            && let Some(left) = self.trees.pop_if(|left| left.level == tree.level)
        {
            tree = Tree {
                start: left.start,
                level: left.level + 1,
                value: merge_subtrees_non_root(&left.value, &tree.value, Mode::Hash),
            };
        }
        self.trees.push(tree);
    }

    /// The value of the tree over all of them, which begins with a piece.
    fn value(&self) -> Option<ChainingValue> {
        let mut trees = self.trees.iter().rev();
        let last = trees.next()?.value;
        Some(trees.fold(last, |right, left| {
            merge_subtrees_non_root(&left.value, &right, Mode::Hash)
        }))
    }
}

/// Hashes what is appended to a file.
#[derive(Debug)]
pub(in crate::image) struct TailDigest {
    forest: Forest,
    leaf: Hasher,
    position: u64,
    piece: u64,
}

impl TailDigest {
    /// Expects the first byte after the old file.
    pub(in crate::image) fn after(old: &Recorded) -> TailDigest {
        let piece = piece_of(old);
        TailDigest {
            forest: Forest::at(old.bytes, piece),
            leaf: subtree_at(old.bytes),
            position: old.bytes,
            piece,
        }
    }

    /// Adds the next bytes of the file.
    pub(in crate::image) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = LEAF - (self.position % CLUSTER) as usize;
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.leaf.update(now);
            self.position += now.len() as u64;
            if self.position.is_multiple_of(CLUSTER) {
                self.forest.push_leaf(self.leaf.finalize_non_root());
                self.leaf = subtree_at(self.position);
            }
            bytes = later;
        }
    }

    /// Returns the digest of the whole file with the changes of `patch`, and the digests of its
    /// pieces if there are several. Reads the pieces of the old file that change, and verifies them
    /// before the change.
    ///
    /// # Errors
    /// [`Error::Piece`] or [`Error::Digest`] if such a piece of the old file is damaged; others if
    /// it cannot be read, or a stop was requested.
    pub(in crate::image) fn finish(
        self,
        file: &StoredFile,
        path: &Path,
        old: &Recorded,
        patch: &Patch,
        stop: &Stop,
    ) -> Result<(Hash, Option<Pieces>)> {
        let mut values = Vec::new();
        let mut appended = self.forest.trees.iter().peekable();
        let mut leaves = Vec::new();
        let mut at = 0;
        while at < self.position {
            let end = at + self.piece;
            let mut now = Forest::at(at, self.piece);
            let is_within_old = end <= old.bytes;
            let index = values.len();
            let kept = old.pieces.as_ref().and_then(|old| old.digests.get(index));
            match kept.filter(|_| is_within_old && !changes(patch, at, end)) {
                Some(kept) => values.push(*kept),
                None => {
                    let piece = Piece {
                        file,
                        path,
                        old,
                        start: at,
                        index,
                    };
                    piece.read(self.piece, patch, &mut now, stop)?;
                    leaves.append(&mut now.leaves);
                    while let Some(tree) = appended.next_if(|tree| tree.start * CLUSTER < end) {
                        now.push(tree.level, tree.value);
                    }
                    values.extend(now.value());
                }
            }
            at = end;
        }
        if let [_] = values[..] {
            leaves.extend(&self.forest.leaves);
            return Ok((root_of(&leaves), None));
        }
        let mut size = self.piece;
        while values.len() >= MOST_PIECES {
            values = values.chunks(2).map(subtree_of).collect();
            size *= 2;
        }
        let hash = root_of(&values);
        let digests = values;
        Ok((hash, Some(Pieces { size, digests })))
    }
}

/// The length of the pieces of a file.
fn piece_of(old: &Recorded) -> u64 {
    old.pieces.as_ref().map_or(SHORTEST_PIECE, |pieces| pieces.size)
}

/// Whether a [`TailDigest`] can follow this file. The file must have more than one cluster, only
/// whole clusters, and digests of its pieces unless it is short.
pub(in crate::image) fn can_continue(old: &Recorded) -> bool {
    let piece = piece_of(old);
    let has_pieces = old.pieces.is_some() || old.bytes <= SHORTEST_PIECE;
    has_pieces && piece.is_multiple_of(CLUSTER) && old.bytes.is_multiple_of(CLUSTER) && old.bytes > CLUSTER
}

fn changes(patch: &Patch, start: u64, end: u64) -> bool {
    let first = patch.freed.partition_point(|range| range.end <= start);
    let is_freed = patch.freed.get(first).is_some_and(|range| range.start < end);
    is_freed || start < patch.header.len() as u64
}

/// A piece of the old file that has to be read.
struct Piece<'a> {
    file: &'a StoredFile,
    path: &'a Path,
    old: &'a Recorded,
    start: u64,
    index: usize,
}

impl Piece<'_> {
    /// Reads and verifies what the old file has of the piece, and adds it to `now` as it is after
    /// the change.
    fn read(&self, length: u64, patch: &Patch, now: &mut Forest, stop: &Stop) -> Result<()> {
        let end = self.old.bytes.min(self.start + length);
        if self.start >= end {
            return Ok(());
        }
        let mut before = Forest::at(self.start, length);
        let mut bytes = vec![0; LEAF];
        let mut at = self.start;
        while at < end {
            if stop.requested() {
                return Err(Error::Stopped);
            }
            read_exact_at(self.file, self.path, &mut bytes, at)?;
            let value = leaf_value(&bytes, at);
            before.push_leaf(value);
            let is_changed = changes(patch, at, at + CLUSTER);
            if is_changed {
                apply(patch, &mut bytes, at);
            }
            now.push_leaf(if is_changed { leaf_value(&bytes, at) } else { value });
            at += CLUSTER;
        }
        self.compare(&before, end)
    }

    fn compare(&self, before: &Forest, end: u64) -> Result<()> {
        let Some(pieces) = &self.old.pieces else {
            let actual = root_of(&before.leaves).to_hex().to_string();
            return match actual.eq_ignore_ascii_case(&self.old.blake3) {
                true => Ok(()),
                false => Err(Error::Digest {
                    path: self.path.to_owned(),
                    actual,
                    expected: self.old.blake3.clone(),
                }),
            };
        };
        match before.value().as_ref() == pieces.digests.get(self.index) {
            true => Ok(()),
            false => Err(Error::Piece {
                path: self.path.to_owned(),
                offset: self.start,
                length: end - self.start,
            }),
        }
    }
}

/// The digest of a file that consists of these subtrees of equal length; the last may be shorter.
/// There are at least two.
fn root_of(values: &[ChainingValue]) -> Hash {
    let (left, right) = halves(values);
    merge_subtrees_root(&subtree_of(left), &subtree_of(right), Mode::Hash)
}

fn leaf_value(bytes: &[u8], offset: u64) -> ChainingValue {
    subtree_at(offset).update(bytes).finalize_non_root()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::samples::{memory_file, pieces_of};
    use proptest::prelude::*;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut hasher = Hasher::new();
        hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// The record of a file, as its writer makes it with pieces of this length.
    fn recorded(bytes: &[u8], piece: u64) -> Recorded {
        let length = bytes.len() as u64;
        Recorded {
            bytes: length,
            blake3: blake3::hash(bytes).to_hex().to_string(),
            pieces: (length > piece).then(|| pieces_of(&memory_file(bytes), piece)),
        }
    }

    fn continued(old: &[u8], tail: &[u8], piece: u64, patch: &Patch) -> Result<(Hash, Option<Pieces>)> {
        let recorded = recorded(old, piece);
        assert!(can_continue(&recorded));
        let mut digest = TailDigest::after(&recorded);
        tail.chunks(100_000).for_each(|bytes| digest.update(bytes));
        let file = StoredFile::from(memory_file(&[old, tail].concat()));
        digest.finish(&file, Path::new("x"), &recorded, patch, &Stop::default())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_digests_are_those_of_the_changed_file(
            old in 2..70usize,
            tail in 0..70usize,
            piece in 0..5u32,
            freed in proptest::collection::btree_set(1..70u64, 0..6),
        ) {
            // A file of one piece has pieces of the shortest length.
            let piece = if old <= 1 << piece { SHORTEST_PIECE } else { CLUSTER << piece };
            prop_assume!(piece < SHORTEST_PIECE || old <= KEPT_LEAVES);
            let (before, tail) = (noise(1, old * LEAF), noise(2, tail * LEAF));
            let freed: Vec<_> = freed.into_iter().filter(|cluster| *cluster < old as u64).collect();
            let patch = Patch {
                header: noise(3, LEAF),
                freed: freed.iter().map(|cluster| cluster * CLUSTER..(cluster + 1) * CLUSTER).collect(),
            };
            let mut after = [&before[..], &tail].concat();
            apply(&patch, &mut after, 0);
            let (hash, pieces) = continued(&before, &tail, piece, &patch).expect("the file is sound");
            prop_assert_eq!(hash, blake3::hash(&after));
            prop_assert_eq!(pieces, recorded(&after, piece).pieces);
        }

        #[test]
        fn damage_in_a_piece_that_changes_is_found(old in 20..60usize, freed in 1..60u64, place: prop::sample::Index) {
            prop_assume!(freed < old as u64);
            let piece = 4 * CLUSTER;
            let patch = Patch { header: noise(3, LEAF), freed: std::iter::once(freed * CLUSTER..(freed + 1) * CLUSTER).collect() };
            let sound = noise(1, old * LEAF);
            let recorded = recorded(&sound, piece);
            let mut damaged = sound.clone();
            let place = place.index(sound.len());
            damaged[place] ^= 4;
            let tail = noise(2, 3 * LEAF);
            let mut digest = TailDigest::after(&recorded);
            digest.update(&tail);
            let file = StoredFile::from(memory_file(&[damaged, tail.clone()].concat()));
            let found = digest.finish(&file, Path::new("x"), &recorded, &patch, &Stop::default());
            let place = place as u64;
            let last = recorded.bytes / piece;
            let is_read = [0, freed * CLUSTER / piece, last].contains(&(place / piece));
            match found {
                Err(Error::Piece { offset, length, .. }) => {
                    prop_assert!(is_read && (offset..offset + length).contains(&place));
                }
                // What is not read keeps its digest, which does not match.
                Ok((hash, _)) => {
                    let mut after = [&sound[..], &tail].concat();
                    apply(&patch, &mut after, 0);
                    prop_assert!(!is_read && hash == blake3::hash(&after));
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn many_pieces_are_merged_in_pairs() {
        let (before, tail) = (noise(1, 1000 * LEAF), noise(2, 200 * LEAF));
        let patch = Patch {
            header: noise(3, LEAF),
            freed: Vec::new(),
        };
        let (hash, pieces) = continued(&before, &tail, CLUSTER, &patch).expect("the file is sound");
        let mut after = [&before[..], &tail].concat();
        apply(&patch, &mut after, 0);
        assert_eq!(hash, blake3::hash(&after));
        assert_eq!(pieces, recorded(&after, 2 * CLUSTER).pieces);
    }
}
