//! The files of a mounted restore point: a raw file per disk, and the small files. Knows nothing of
//! FUSE.

use std::sync::{Arc, Mutex, PoisonError};

use crate::model::block::{BlockError, BlockErrorKind, CLUSTER};
use crate::repo::{DiskReader, Stored};

/// Requests for one window of a disk are answered one after another, so that the first one decodes
/// what the others need.
const WINDOW: u64 = 1 << 20;

/// The number of locks for all windows of a disk.
const LOCKS: usize = 16;

/// The files of a mounted restore point. They never change.
#[derive(Debug, Default)]
pub struct MountedFiles {
    files: Vec<MountedFile>,
}

impl MountedFiles {
    /// Adds a file. Two files with the same name are an error.
    ///
    /// # Errors
    /// The file, which was not added.
    pub(super) fn add(&mut self, file: MountedFile) -> Result<(), MountedFile> {
        match self.find(&file.name) {
            Some(_) => Err(file),
            None => {
                self.files.push(file);
                Ok(())
            }
        }
    }

    /// All files; disks come first.
    pub fn all(&self) -> &[MountedFile] {
        &self.files
    }

    /// The file with this name, and its place in [`MountedFiles::all`].
    pub fn find(&self, name: &str) -> Option<(usize, &MountedFile)> {
        let mut files = self.files.iter().enumerate();
        files.find(|(_, file)| file.name == name)
    }
}

/// A file of a mounted restore point.
#[derive(Debug)]
pub struct MountedFile {
    name: String,
    size: u64,
    allocated: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Disk {
        reader: Arc<dyn DiskReader>,
        locks: [Mutex<()>; LOCKS],
    },
    Bytes(Vec<u8>),
    /// Damage hides all of it. The text names the damage.
    Damaged(String),
}

impl MountedFile {
    /// The raw file of a disk that stores about `data` bytes of data.
    pub(super) fn disk(name: String, reader: Arc<dyn DiskReader>, data: u64) -> MountedFile {
        let size = reader.size();
        MountedFile {
            name,
            size,
            // Programs take a file without any allocated space for one that holds only zeroes.
            allocated: data.clamp(1, size.max(1)),
            content: Content::Disk {
                reader,
                locks: Default::default(),
            },
        }
    }

    /// A small file.
    pub(super) fn small(name: &str, bytes: Vec<u8>) -> MountedFile {
        MountedFile {
            name: name.to_owned(),
            size: bytes.len() as u64,
            allocated: bytes.len() as u64,
            content: Content::Bytes(bytes),
        }
    }

    /// A file that cannot be read because of the named damage. A file of unknown size has one byte,
    /// because a program that reads an empty file gets no error.
    pub(super) fn damaged(name: String, size: u64, what: String) -> MountedFile {
        let size = size.max(1);
        MountedFile {
            name,
            size,
            allocated: size,
            content: Content::Damaged(what),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Roughly the number of its bytes that are not in holes; 0 only for an empty file.
    pub fn allocated(&self) -> u64 {
        match self.size {
            0 => 0,
            _ => self.allocated,
        }
    }

    /// Whether the whole file cannot be read because of damage.
    pub fn is_damaged(&self) -> bool {
        matches!(self.content, Content::Damaged(_))
    }

    /// Its bytes from `offset` on, at most `length`. Fewer bytes are returned only at its end.
    ///
    /// # Errors
    /// The errors of [`DiskReader::read_at`].
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, BlockError> {
        let rest = self.size.saturating_sub(offset);
        let length = usize::try_from(rest).map_or(length, |rest| rest.min(length));
        match &self.content {
            Content::Bytes(bytes) => {
                let start = usize::try_from(offset).map_or(bytes.len(), |start| start.min(bytes.len()));
                Ok(bytes[start..start + length].to_vec())
            }
            Content::Disk { reader, locks } => {
                let mut out = vec![0; length];
                let mut filled = 0;
                while filled < length {
                    let here = offset + filled as u64;
                    let in_window = (WINDOW - here % WINDOW) as usize;
                    let end = length.min(filled + in_window);
                    let lock = &locks[(here / WINDOW % LOCKS as u64) as usize];
                    let _one = lock.lock().unwrap_or_else(PoisonError::into_inner);
                    reader.read_at(&mut out[filled..end], here)?;
                    filled = end;
                }
                Ok(out)
            }
            Content::Damaged(what) => Err(self.damage(what)),
        }
    }

    /// The offset of the first byte of data from `offset` on; `None` if only zeroes follow.
    ///
    /// # Errors
    /// The errors of [`DiskReader::verified_extent_at`].
    pub fn data_from(&self, offset: u64) -> Result<Option<u64>, BlockError> {
        self.first(offset, true)
    }

    /// The offset of the first hole from `offset` on, which is the end of the file if no other one
    /// follows; `None` beyond the end.
    ///
    /// # Errors
    /// The errors of [`DiskReader::verified_extent_at`].
    pub fn hole_from(&self, offset: u64) -> Result<Option<u64>, BlockError> {
        match offset < self.size {
            true => Ok(Some(self.first(offset, false)?.unwrap_or(self.size))),
            false => Ok(None),
        }
    }

    /// The first offset from `offset` on with, or without, data.
    fn first(&self, offset: u64, is_data: bool) -> Result<Option<u64>, BlockError> {
        let reader = match &self.content {
            Content::Bytes(_) => return Ok(Some(offset).filter(|_| is_data && offset < self.size)),
            Content::Damaged(what) => return Err(self.damage(what)),
            Content::Disk { reader, .. } => reader,
        };
        let mut at = offset;
        while let Some(extent) = reader.verified_extent_at(at)? {
            if (extent.stored != Stored::Zero) == is_data {
                return Ok(Some(at));
            }
            at = at.saturating_add(extent.length.max(1));
        }
        Ok(None)
    }

    fn damage(&self, what: &str) -> BlockError {
        BlockError::new(BlockErrorKind::Damaged, what)
    }
}

/// Estimates how many bytes of a disk of `size` bytes are not in holes. `data` is the number of
/// bytes that its chain stores; `None` gives almost `size`, because programs look for holes only in
/// files that seem to have some.
pub(super) fn allocated(size: u64, data: Option<u64>) -> u64 {
    match data {
        Some(data) if data <= size => data,
        _ => size.saturating_sub(CLUSTER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::StoredExtent;

    const SIZE: u64 = 3 * WINDOW + 777;

    /// A disk of counted bytes with two holes, one at the end, and a damaged window.
    #[derive(Debug)]
    struct Counted;

    const HOLE: std::ops::Range<u64> = WINDOW / 2..WINDOW;
    const LAST: u64 = 3 * WINDOW;
    const DAMAGED: std::ops::Range<u64> = 2 * WINDOW..2 * WINDOW + CLUSTER;

    fn byte_at(offset: u64) -> u8 {
        match HOLE.contains(&offset) || offset >= LAST {
            true => 0,
            false => (offset % 251) as u8,
        }
    }

    impl DiskReader for Counted {
        fn size(&self) -> u64 {
            SIZE
        }

        fn extent_at(&self, _offset: u64) -> Result<Option<StoredExtent>, BlockError> {
            panic!("extents are taken from checked tables only");
        }

        fn verified_extent_at(&self, offset: u64) -> Result<Option<StoredExtent>, BlockError> {
            let ends = [HOLE.start, HOLE.end, LAST, SIZE];
            let Some(end) = ends.into_iter().find(|end| offset < *end) else {
                return Ok(None);
            };
            let stored = match HOLE.contains(&offset) || offset >= LAST {
                true => Stored::Zero,
                false => Stored::Data { depth: 0 },
            };
            // Extents are reported in small parts.
            let length = (end - offset).min(CLUSTER);
            Ok(Some(StoredExtent {
                offset,
                length,
                stored,
            }))
        }

        fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), BlockError> {
            let end = offset + out.len() as u64;
            if offset < DAMAGED.end && end > DAMAGED.start {
                return Err(BlockError::new(BlockErrorKind::Damaged, "a piece has changed"));
            }
            for (at, byte) in (offset..).zip(out) {
                *byte = byte_at(at);
            }
            Ok(())
        }

        fn holds(&self, _bytes: &[u8], _offset: u64) -> Result<bool, BlockError> {
            panic!("nothing is compared");
        }
    }

    fn disk() -> MountedFile {
        MountedFile::disk("vda.raw".into(), Arc::new(Counted), WINDOW)
    }

    #[test]
    fn reads_end_at_the_end_and_cross_windows() {
        let file = disk();
        let reads = [
            (0, 10),
            (WINDOW - 3, 7),
            (WINDOW / 2 - 1, 2 + WINDOW as usize),
            (SIZE - 5, 100),
            (SIZE, 1),
            (SIZE + 9, 10),
            (u64::MAX, 10),
        ];
        for (offset, length) in reads {
            let there = length.min(SIZE.saturating_sub(offset) as usize);
            let expected: Vec<u8> = (offset..).take(there).map(byte_at).collect();
            assert!(
                file.read_at(offset, length).expect("it reads") == expected,
                "{offset}"
            );
        }
        let small = MountedFile::small("domain.xml", b"<domain/>".to_vec());
        assert_eq!(small.read_at(3, 100).expect("it reads"), b"main/>");
        assert!(small.read_at(u64::MAX, 5).expect("it reads").is_empty());
    }

    #[test]
    fn damage_fails_the_reads_that_touch_it_only() {
        let file = disk();
        for (offset, length) in [(DAMAGED.end - 1, 1), (0, SIZE as usize), (DAMAGED.start - 1, 2)] {
            let error = file.read_at(offset, length).expect_err("it is damaged");
            assert_eq!(error.kind, BlockErrorKind::Damaged);
        }
        file.read_at(DAMAGED.end, 100).expect("it is sound");
        let hidden = MountedFile::damaged("vdb.raw".into(), SIZE, "its map is lost".into());
        assert!(hidden.is_damaged() && hidden.size() == SIZE);
        let unknown = MountedFile::damaged("vdb.raw".into(), 0, "its header is lost".into());
        assert_eq!(unknown.size(), 1);
        unknown.read_at(0, 1).expect_err("it is damaged");
        for error in [
            hidden.read_at(5, 1).expect_err("it is damaged"),
            hidden.data_from(0).expect_err("it is damaged"),
            hidden.hole_from(0).expect_err("it is damaged"),
        ] {
            assert_eq!(error.to_string(), "its map is lost");
        }
    }

    #[test]
    fn holes_and_data_are_found_from_any_offset() {
        let file = disk();
        let data = |offset| file.data_from(offset).expect("it is known");
        let hole = |offset| file.hole_from(offset).expect("it is known");
        assert_eq!((data(0), hole(0)), (Some(0), Some(HOLE.start)));
        assert_eq!(data(HOLE.start + 5), Some(HOLE.end));
        assert_eq!(hole(HOLE.start + 5), Some(HOLE.start + 5));
        assert_eq!(hole(HOLE.end), Some(LAST));
        assert_eq!((data(LAST), hole(LAST)), (None, Some(LAST)));
        assert_eq!((data(SIZE), hole(SIZE)), (None, None));
        let small = MountedFile::small("domain.xml", vec![0; 9]);
        let found = |found: Result<Option<u64>, BlockError>| found.expect("it is known");
        assert_eq!(found(small.data_from(4)), Some(4));
        assert_eq!(found(small.hole_from(4)), Some(9));
        assert_eq!(
            (found(small.data_from(9)), found(small.hole_from(9))),
            (None, None)
        );
    }

    #[test]
    fn only_an_empty_file_takes_no_space() {
        assert_eq!(allocated(10 * CLUSTER, Some(3 * CLUSTER)), 3 * CLUSTER);
        assert_eq!(allocated(10 * CLUSTER, Some(11 * CLUSTER)), 9 * CLUSTER);
        assert_eq!(allocated(10 * CLUSTER, None), 9 * CLUSTER);
        let file = |data| MountedFile::disk("vda.raw".into(), Arc::new(Counted), data);
        assert_eq!((file(0).allocated(), file(u64::MAX).allocated()), (1, SIZE));
        assert_eq!(MountedFile::small("nvram.fd", Vec::new()).allocated(), 0);
    }

    #[test]
    fn a_name_is_given_once() {
        let mut files = MountedFiles::default();
        files.add(disk()).expect("it is new");
        files
            .add(MountedFile::small("domain.xml", Vec::new()))
            .expect("it is new");
        assert!(files.add(disk()).is_err());
        assert_eq!(files.find("domain.xml").map(|(place, _)| place), Some(1));
        assert!(files.find("vdb.raw").is_none());
    }
}
