//! The changes that are still to be made in an image that a merge has continued, in a file of their
//! own.
//!
//! The file: 8 bytes that name the format; the number of ranges; the first cluster of the image;
//! start and end of each range that becomes free, in bytes; the BLAKE3 of everything before.
//! Numbers have 8 bytes, little-endian.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::layout;
use super::look::read_bounded;
use crate::model::block::{CLUSTER, Patch};
use crate::repo::FileEntry;

const MAGIC: &[u8; 8] = b"vmsnapP1";
const HEADER: usize = CLUSTER as usize;
const DIGEST: usize = blake3::OUT_LEN;
/// The longest file that is read, in bytes. A file of this length holds more ranges than a merge
/// may free.
pub(super) const MAX_BYTES: u64 = 128 << 20;

/// The content of the file.
pub(super) fn encode(patch: &Patch) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((patch.freed.len() as u64).to_le_bytes());
    bytes.extend(&patch.header);
    for range in &patch.freed {
        bytes.extend(range.start.to_le_bytes());
        bytes.extend(range.end.to_le_bytes());
    }
    let digest = blake3::hash(&bytes);
    bytes.extend(digest.as_bytes());
    bytes
}

/// Reads such content; `None` if it was not written by [`encode`].
pub(super) fn decode(bytes: &[u8]) -> Option<Patch> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
    if blake3::hash(content).as_bytes() != digest {
        return None;
    }
    let (count, rest) = content.strip_prefix(MAGIC)?.split_first_chunk()?;
    let (header, ranges) = rest.split_at_checked(HEADER)?;
    let numbers: Vec<u64> = ranges
        .as_chunks()
        .0
        .iter()
        .copied()
        .map(u64::from_le_bytes)
        .collect();
    let freed: Vec<Range<u64>> = numbers
        .as_chunks()
        .0
        .iter()
        .map(|[start, end]| *start..*end)
        .collect();
    let is_whole = ranges.len() == 16 * freed.len() && freed.len() as u64 == u64::from_le_bytes(*count);
    let is_after_header = freed.first().is_none_or(|first| first.start >= CLUSTER);
    let is_ordered = freed.windows(2).all(|pair| pair[0].end <= pair[1].start);
    let is_sound =
        is_whole && is_after_header && is_ordered && freed.iter().all(|range| range.start < range.end);
    let header = header.to_vec();
    is_sound.then_some(Patch { header, freed })
}

/// The path of the changes in the image at this path.
pub(super) fn path_of(image: &Path) -> PathBuf {
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    image.with_file_name(layout::patch(&name))
}

/// Whether changes are still to be made in the image at this path, because a merge has continued
/// the image, and the image still has its temporary name.
pub(super) fn is_due(image: &Path, entry: &FileEntry) -> bool {
    let name = image.file_name().and_then(|name| name.to_str());
    entry.unused.is_some() && name.is_some_and(|name| layout::merge_number(name).is_some())
}

/// Reads the changes that are still to be made in the image at this path; `None` if there are none.
///
/// # Errors
/// The file with the changes is missing, cannot be read or is damaged.
pub(super) fn read(image: &Path, entry: &FileEntry) -> io::Result<Option<Patch>> {
    if !is_due(image, entry) {
        return Ok(None);
    }
    let path = path_of(image);
    let named = |kind, what: &str| io::Error::new(kind, format!("{} {what}", path.display()));
    match read_bounded(&path, MAX_BYTES) {
        Ok(bytes) => match decode(&bytes) {
            Some(patch) => Ok(Some(patch)),
            None => Err(named(io::ErrorKind::InvalidData, "is damaged")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(named(io::ErrorKind::InvalidData, "is missing"))
        }
        Err(source) => Err(io::Error::new(source.kind(), Unreadable { path, source })),
    }
}

/// The file with the changes cannot be read. The message names its path, because the caller names
/// only that of the image.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
struct Unreadable {
    path: PathBuf,
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::text::with_sources;
    use crate::repo::error::is_no_verdict;
    use proptest::prelude::*;
    use rustix::io::Errno;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_was_written_is_read_and_nothing_else(
            lengths in proptest::collection::vec((1..9u64, 1..9u64), 0..8),
            place: prop::sample::Index,
            bit in 0..8u8,
        ) {
            let mut freed: Vec<Range<u64>> = Vec::new();
            for (gap, length) in lengths {
                let start = freed.last().map_or(CLUSTER, |last| last.end) + gap;
                freed.push(start..start + length);
            }
            let patch = Patch { header: vec![7; HEADER], freed };
            let mut bytes = encode(&patch);
            prop_assert_eq!(decode(&bytes), Some(patch));
            let place = place.index(bytes.len());
            prop_assert_eq!(decode(&bytes[..place]), None);
            bytes[place] ^= 1u8 << bit;
            prop_assert_eq!(decode(&bytes), None);
        }
    }

    #[test]
    fn unreadable_changes_are_named_with_the_systems_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let image = folder.path().join(layout::merged_image("vda.qcow2", 1));
        std::fs::create_dir(path_of(&image)).expect("made");
        let entry = FileEntry {
            name: "vda.qcow2".to_owned(),
            size: 0,
            blake3: String::new(),
            pieces: None,
            unused: Some(0),
        };
        let error = read(&image, &entry).expect_err("it is a folder");
        let expected = format!("cannot read {}: is a directory", path_of(&image).display());
        assert_eq!(with_sources(&error), expected);

        let source = io::Error::from(Errno::ACCESS);
        let error = Unreadable { path: image, source };
        assert!(is_no_verdict(&io::Error::other(error)), "the reason is not lost");
    }

    #[test]
    fn ranges_over_the_header_or_each_other_are_refused() {
        let header = vec![0; HEADER];
        let overlapping = vec![CLUSTER + 4..CLUSTER + 9, CLUSTER..CLUSTER + 2];
        let alone = |range| std::iter::once(range).collect();
        for freed in [alone(5..9), alone(CLUSTER..CLUSTER), overlapping] {
            let patch = Patch {
                header: header.clone(),
                freed,
            };
            assert_eq!(decode(&encode(&patch)), None, "{:?}", patch.freed);
        }
    }
}
