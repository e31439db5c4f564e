//! BLAKE3 digests of whole files and of their pieces: computed while an image is written, or from
//! an existing file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

use super::{Error, Result, StoredFile, cache};
use crate::model::block::{CLUSTER, Pieces};
use crate::model::stop::Stop;

mod continued;

pub(super) use continued::{TailDigest, can_continue};

/// Length of a piece, in bytes, unless the file is so long that pieces are merged.
const SHORTEST_PIECE: u64 = 1 << 20;
/// How much is read before its pages are dropped, in bytes.
const STRETCH: u64 = 8 << 20;
/// At this number of pieces, pairs of them are merged. An even number.
const MOST_PIECES: usize = 1024;

/// The digest of a file whose first cluster becomes known last, and the digests of its pieces.
///
/// BLAKE3 is a binary tree over chunks of 1 KiB. Every left subtree is complete, and its length is
/// a power of two (section 2.1 of the BLAKE3 paper). The pieces of the file are such subtrees of
/// one length; the last piece may be shorter. Within the first piece, the subtrees on its left
/// spine cover the clusters 1, 2–3, 4–7 and 8–15. None of them needs the first cluster, and each is
/// the right sibling of everything before it. So these subtrees and pieces are hashed as the bytes
/// arrive, and the tree is put together at the end. To bound the memory, pieces are merged in pairs
/// if there are many; the second piece then becomes a further sibling on the spine.
#[derive(Debug)]
pub struct FileDigest {
    /// The complete subtrees on the first piece's spine, smallest first.
    spine: Vec<ChainingValue>,
    /// The complete pieces after the first one.
    pieces: Vec<ChainingValue>,
    /// Length of a piece, in bytes.
    piece: u64,
    /// The subtree that is being hashed.
    subtree: Hasher,
    position: u64,
    subtree_end: u64,
}

impl Default for FileDigest {
    fn default() -> Self {
        FileDigest::new()
    }
}

impl FileDigest {
    /// Creates a digest that expects the byte after the first cluster.
    pub fn new() -> Self {
        FileDigest {
            spine: Vec::new(),
            pieces: Vec::new(),
            piece: SHORTEST_PIECE,
            subtree: subtree_at(CLUSTER),
            position: CLUSTER,
            subtree_end: 2 * CLUSTER,
        }
    }

    /// Adds the next bytes of the file; the first call starts at offset [`CLUSTER`]. Any length is
    /// valid; 128 KiB or more at a time are fastest.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.subtree_end - self.position;
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.subtree.update(now);
            self.position += now.len() as u64;
            if self.position == self.subtree_end {
                self.end_subtree();
                if self.pieces.len() + 1 == MOST_PIECES {
                    self.join_pairs();
                }
                self.subtree = subtree_at(self.position);
                self.subtree_end = match self.position < self.piece {
                    true => 2 * self.position,
                    false => self.position + self.piece,
                };
            }
            bytes = later;
        }
    }

    fn end_subtree(&mut self) {
        let value = self.subtree.finalize_non_root();
        match self.position <= self.piece {
            true => self.spine.push(value),
            false => self.pieces.push(value),
        }
    }

    fn join_pairs(&mut self) {
        let mut pieces = std::mem::take(&mut self.pieces).into_iter();
        self.spine.extend(pieces.next());
        while let (Some(left), Some(right)) = (pieces.next(), pieces.next()) {
            self.pieces
                .push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
        self.piece *= 2;
    }

    /// Returns the digest of the whole file, given its first cluster, and the digests of its pieces
    /// if there are several.
    pub fn finish(mut self, first: &[u8; CLUSTER as usize]) -> (Hash, Option<Pieces>) {
        if self.subtree.count() > 0 {
            self.end_subtree();
        }
        let head = Hasher::new().update(first).finalize_non_root();
        let join =
            |left: ChainingValue, right: &ChainingValue| merge_subtrees_non_root(&left, right, Mode::Hash);
        if self.pieces.is_empty() {
            let hash = match self.spine.split_last() {
                None => blake3::hash(first),
                Some((last, inner)) => merge_subtrees_root(&inner.iter().fold(head, join), last, Mode::Hash),
            };
            return (hash, None);
        }
        let mut digests = vec![self.spine.iter().fold(head, join)];
        digests.append(&mut self.pieces);
        let (left, right) = halves(&digests);
        let hash = merge_subtrees_root(&subtree_of(left), &subtree_of(right), Mode::Hash);
        let size = self.piece;
        (hash, Some(Pieces { size, digests }))
    }
}

/// Splits a tree over several pieces into its two subtrees. The left subtree has the largest
/// power-of-two number of pieces that leaves at least one for the right.
fn halves(pieces: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    pieces.split_at(pieces.len().next_power_of_two() / 2)
}

fn subtree_of(pieces: &[ChainingValue]) -> ChainingValue {
    if let [piece] = pieces {
        return *piece;
    }
    let (left, right) = halves(pieces);
    merge_subtrees_non_root(&subtree_of(left), &subtree_of(right), Mode::Hash)
}

fn subtree_at(offset: u64) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher
}

/// Finds the ranges of a file whose pieces do not match their digests. Returns at most `most`
/// ranges, which do not touch each other. Drops the pages that it has read from the page cache.
///
/// # Errors
/// If the file cannot be read, or a stop was requested.
pub(crate) fn damaged_ranges(
    file: &StoredFile,
    path: &Path,
    pieces: &Pieces,
    most: usize,
    stop: &Stop,
) -> Result<Vec<Range<u64>>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    for (number, expected) in (0..).zip(&pieces.digests) {
        let begin = number * pieces.size;
        let (end, digest) = read_piece(file, path, begin..begin + pieces.size, stop)?;
        // The check of the length reports missing bytes.
        let Some(digest) = digest else { break };
        if digest == *expected {
            continue;
        }
        if let Some(last) = found.last_mut().filter(|last| last.end == begin) {
            last.end = end;
        } else if found.len() < most {
            found.push(begin..end);
        } else {
            break;
        }
    }
    Ok(found)
}

/// Returns the end of a piece, which the file's end may cut short, and its digest: `None` if the
/// file has no byte of the piece.
fn read_piece(
    file: &StoredFile,
    path: &Path,
    piece: Range<u64>,
    stop: &Stop,
) -> Result<(u64, Option<ChainingValue>)> {
    let mut hasher = subtree_at(piece.start);
    let start = piece.start;
    let at = hash_range(file, path, piece, &mut hasher, stop)?;
    cache::forget_until(file.file(), start, at);
    let digest = (at > start).then(|| hasher.finalize_non_root());
    Ok((at, digest))
}

/// Computes the digest of a piece of a file, front to back. The pages of a short piece stay in the
/// page cache, because they are read next.
///
/// # Errors
/// If the file cannot be read, or a stop was requested.
pub(super) fn piece_digest(
    file: &StoredFile,
    path: &Path,
    piece: Range<u64>,
    stop: &Stop,
) -> Result<ChainingValue> {
    let mut hasher = subtree_at(piece.start);
    hash_range(file, path, piece, &mut hasher, stop)?;
    Ok(hasher.finalize_non_root())
}

/// Computes the digest of a whole file in hexadecimal. Only its last pages stay in the page cache.
///
/// # Errors
/// If the file cannot be read, or a stop was requested.
pub(super) fn whole_digest(file: &StoredFile, path: &Path, stop: &Stop) -> Result<String> {
    let mut hasher = Hasher::new();
    hash_range(file, path, 0..u64::MAX, &mut hasher, stop)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Hashes a range of a file, and returns its end, which the file's end may cut short. Only the last
/// pages of a long range stay in the page cache.
fn hash_range(
    file: &StoredFile,
    path: &Path,
    range: Range<u64>,
    hasher: &mut Hasher,
    stop: &Stop,
) -> Result<u64> {
    // A piece is read with one call: where nothing is read ahead, each call waits for the disk.
    let mut buffer = vec![0; 1024 * 1024];
    let (mut at, mut released) = (range.start, range.start);
    while at < range.end {
        if stop.requested() {
            cache::forget(file.file());
            return Err(Error::Stopped);
        }
        let room = (range.end - at).min(buffer.len() as u64);
        let part = &mut buffer[..usize::try_from(room).unwrap_or(0)];
        match file.read_at(part, at) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&part[..count]);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read", path, at, error)),
        }
        if at - released >= STRETCH {
            cache::forget_until(file.file(), released, at);
            released = at;
        }
    }
    Ok(at)
}

/// Returns the length in bytes and the BLAKE3 digest in hexadecimal of a whole file.
///
/// # Errors
/// If the file cannot be read.
pub fn file_digest(file: &File) -> io::Result<(u64, String)> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; 256 * 1024];
    let mut length = 0;
    loop {
        match file.read_at(&mut piece, length) {
            Ok(0) => return Ok((length, hasher.finalize().to_hex().to_string())),
            Ok(count) => {
                hasher.update(&piece[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: usize = CLUSTER as usize;

    fn sample(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Hasher::new().update(b"sample").finalize_xof().fill(&mut bytes);
        bytes
    }

    fn digest_in_pieces(file: &[u8], piece: usize) -> Hash {
        digest_from(FileDigest::new(), file, piece).0
    }

    fn digest_from(mut digest: FileDigest, file: &[u8], piece: usize) -> (Hash, Option<Pieces>) {
        for bytes in file[FIRST..].chunks(piece) {
            digest.update(bytes);
        }
        digest.finish(file[..FIRST].try_into().expect("a whole cluster"))
    }

    fn on_disk(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(bytes, 0).expect("it can be written");
        file
    }

    fn damaged(bytes: &[u8], pieces: &Pieces) -> Vec<Range<u64>> {
        damaged_ranges(
            &on_disk(bytes).into(),
            Path::new("x"),
            pieces,
            3,
            &Stop::default(),
        )
        .expect("it can be read")
    }

    #[test]
    fn merging_pieces_keeps_digests_right() {
        // A piece length of 64 KiB produces many pieces quickly. The spine is then just the first
        // cluster.
        for clusters in [2, 3, 1023, 1024, 1025, 1026, 1027, 2047, 2048, 2049, 4097] {
            let bytes = sample(clusters * FIRST - 100);
            let digest = FileDigest {
                piece: CLUSTER,
                ..FileDigest::new()
            };
            let (hash, pieces) = digest_from(digest, &bytes, 700_000);
            assert_eq!(hash, blake3::hash(&bytes), "{clusters} clusters");
            let pieces = pieces.expect("several");
            let length = bytes.len() as u64;
            assert_eq!(pieces.digests.len() as u64, length.div_ceil(pieces.size));
            assert!(pieces.digests.len() <= MOST_PIECES, "{clusters} clusters");
            assert_eq!(damaged(&bytes, &pieces), [], "{clusters} clusters");
        }
    }

    #[test]
    fn flipped_bit_is_located_to_its_piece() {
        const MIB: u64 = 1 << 20;
        let mut bytes = sample(5 * MIB as usize + 100);
        let (_, pieces) = digest_from(FileDigest::new(), &bytes, FIRST);
        let pieces = pieces.expect("several");
        assert_eq!(pieces.size, MIB);
        for at in [0, MIB + 7, 2 * MIB, 5 * MIB + 50] {
            bytes[at as usize] ^= 1;
        }
        let end = bytes.len() as u64;
        assert_eq!(damaged(&bytes, &pieces), [0..3 * MIB, 5 * MIB..end]);
        let alone: Vec<Range<u64>> = damaged_ranges(
            &on_disk(&bytes).into(),
            Path::new("x"),
            &pieces,
            1,
            &Stop::default(),
        )
        .expect("it can be read");
        assert_eq!(alone, std::slice::from_ref(&(0..3 * MIB)));
        bytes.truncate(3 * MIB as usize);
        assert_eq!(damaged(&bytes, &pieces), std::slice::from_ref(&(0..3 * MIB)));
    }

    #[test]
    fn every_number_of_clusters_has_the_digest_of_the_whole_file() {
        let file = sample(300 * FIRST);
        for clusters in (1..=40).chain([63, 64, 65, 127, 128, 129, 200, 255, 256, 257, 300]) {
            let whole = &file[..clusters * FIRST];
            assert_eq!(
                digest_in_pieces(whole, FIRST),
                blake3::hash(whole),
                "{clusters} clusters"
            );
            assert_eq!(
                digest_in_pieces(whole, 16 * FIRST),
                blake3::hash(whole),
                "{clusters} clusters, 1 MiB"
            );
        }
    }

    #[test]
    fn a_file_read_from_disk_has_the_same_digest() {
        let bytes = sample(1_000_001);
        let file = on_disk(&bytes);
        let (length, digest) = file_digest(&file).expect("it can be read");
        assert_eq!(
            (length, digest),
            (1_000_001, blake3::hash(&bytes).to_hex().to_string())
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_shape_of_the_pieces_does_not_matter(clusters in 1..20usize, rest in 0..FIRST, piece in 1024..400_000usize) {
            let file = sample(clusters * FIRST + rest);
            prop_assert_eq!(digest_in_pieces(&file, piece), blake3::hash(&file));
        }
    }
}
