//! BLAKE3 of whole files: on the way while an image is written, and of a file that is there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

use crate::model::block::CLUSTER;

/// The digest of a file whose first cluster becomes known last.
///
/// BLAKE3 is a binary tree over chunks of 1 KiB in which every left subtree is complete and a power of two long
/// (section 2.1 of the BLAKE3 paper). Counted in clusters, the subtrees that hang on the left spine of that tree
/// therefore cover 1, 2–3, 4–7, 8–15 …: none of them needs the first cluster, and each is the right sibling of all
/// that stands before it. So the bytes are hashed as these subtrees while they pass by, and the spine is climbed at
/// the end. Only the last subtree may be incomplete, and only the last merge makes the root.
#[derive(Debug)]
pub struct FileDigest {
    /// The subtrees that are complete, from the smallest.
    siblings: Vec<ChainingValue>,
    /// The subtree that the bytes go into now.
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
    /// A digest that waits for the byte behind the first cluster.
    pub fn new() -> Self {
        FileDigest {
            siblings: Vec::new(),
            subtree: subtree_at(CLUSTER),
            position: CLUSTER,
            subtree_end: 2 * CLUSTER,
        }
    }

    /// Takes the next bytes of the file; the first call starts at offset [`CLUSTER`]. Any length will do; pieces of
    /// 128 KiB and more are the quickest.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.subtree_end - self.position;
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.subtree.update(now);
            self.position += now.len() as u64;
            if self.position == self.subtree_end {
                self.siblings.push(self.subtree.finalize_non_root());
                self.subtree = subtree_at(self.position);
                self.subtree_end *= 2;
            }
            bytes = later;
        }
    }

    /// The digest of the whole file, given its first cluster.
    pub fn finish(mut self, first: &[u8; CLUSTER as usize]) -> Hash {
        if self.subtree.count() > 0 {
            self.siblings.push(self.subtree.finalize_non_root());
        }
        let Some((last, inner)) = self.siblings.split_last() else {
            return blake3::hash(first);
        };
        let spine = Hasher::new().update(first).finalize_non_root();
        let left = inner.iter().fold(spine, |left, right| {
            merge_subtrees_non_root(&left, right, Mode::Hash)
        });
        merge_subtrees_root(&left, last, Mode::Hash)
    }
}

fn subtree_at(offset: u64) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher
}

/// Length in bytes and BLAKE3 digest in hexadecimal of a whole file, read in pieces from its start.
///
/// # Errors
/// Whatever reading the file meets.
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
        let mut digest = FileDigest::new();
        for bytes in file[FIRST..].chunks(piece) {
            digest.update(bytes);
        }
        digest.finish(file[..FIRST].try_into().expect("a whole cluster"))
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
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&bytes, 0).expect("it can be written");
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
