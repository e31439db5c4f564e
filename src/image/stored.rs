//! The bytes of a stored file as its readers see them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::model::block::Patch;

/// A file as its readers see it: its bytes up to a limit, with the changes that a merge still has
/// to make in it.
#[derive(Debug)]
pub struct StoredFile {
    file: File,
    limit: u64,
    patch: Option<Patch>,
}

impl From<File> for StoredFile {
    fn from(file: File) -> StoredFile {
        StoredFile {
            file,
            limit: u64::MAX,
            patch: None,
        }
    }
}

impl StoredFile {
    /// The same file, which ends after this number of bytes even if a merge appends to it.
    #[must_use]
    pub fn limited_to(self, bytes: u64) -> StoredFile {
        StoredFile { limit: bytes, ..self }
    }

    /// The same file as it will be with these changes, if there are any.
    #[must_use]
    pub fn with_patch(self, patch: Option<Patch>) -> StoredFile {
        StoredFile { patch, ..self }
    }

    /// The file itself, for advice about its pages.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Its length in bytes.
    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().min(self.limit))
    }

    /// Reads some bytes from `offset` on, and returns how many; 0 at the end.
    pub(super) fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let room = self.limit.saturating_sub(offset).min(out.len() as u64);
        let out = &mut out[..usize::try_from(room).unwrap_or(0)];
        let count = self.file.read_at(out, offset)?;
        if let Some(patch) = &self.patch {
            apply(patch, &mut out[..count], offset);
        }
        Ok(count)
    }

    /// Fills all of `out` from `offset` on.
    pub(super) fn read_exact_at(&self, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !out.is_empty() {
            match self.read_at(out, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    out = &mut out[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Makes the changes in bytes that begin at `offset` of the file.
pub(super) fn apply(patch: &Patch, bytes: &mut [u8], offset: u64) {
    let end = offset.saturating_add(bytes.len() as u64);
    let part = |range: &Range<u64>| {
        let (start, end) = (range.start.max(offset), range.end.min(end));
        let within = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
        (start < end).then(|| within(start)..within(end))
    };
    let first = patch.freed.partition_point(|range| range.end <= offset);
    for range in &patch.freed[first..] {
        match part(range) {
            Some(range) => bytes[range].fill(0),
            None => break,
        }
    }
    if let Some(range) = part(&(0..patch.header.len() as u64)) {
        let from = usize::try_from(offset).unwrap_or(0);
        bytes[range.clone()].copy_from_slice(&patch.header[from..from + range.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::samples::memory_file;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_part_shows_the_changes_and_the_end(
            header in 0..50usize,
            gaps in proptest::collection::vec((1..40u64, 1..40u64), 0..6),
            limit in 0..400u64,
            reads in proptest::collection::vec((0..400u64, 0..200usize), 1..8),
        ) {
            let stored: Vec<u8> = (0..300u32).map(|n| (n % 251) as u8 | 1).collect();
            let mut freed: Vec<Range<u64>> = Vec::new();
            for (gap, length) in gaps {
                let start = freed.last().map_or(50, |last| last.end) + gap;
                freed.push(start..start + length);
            }
            let patch = Patch { header: vec![2; header], freed };
            let mut expected = stored.clone();
            expected[..header].fill(2);
            for range in &patch.freed {
                let within = |at: u64| (at as usize).min(stored.len());
                expected[within(range.start)..within(range.end)].fill(0);
            }
            expected.truncate(limit as usize);
            let file = StoredFile::from(memory_file(&stored)).limited_to(limit).with_patch(Some(patch));
            prop_assert_eq!(file.length().expect("it has one"), expected.len() as u64);
            for (offset, length) in reads {
                let mut out = vec![7; length];
                let count = file.read_at(&mut out, offset).expect("it can be read");
                let from = (offset as usize).min(expected.len());
                prop_assert_eq!(&out[..count], &expected[from..(from + length).min(expected.len())]);
                let exact = file.read_exact_at(&mut out, offset);
                prop_assert_eq!(exact.is_ok(), length == 0 || offset as usize + length <= expected.len());
            }
        }
    }
}
