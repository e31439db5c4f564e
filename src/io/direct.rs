//! Files that are written past the page cache where the file system allows it.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate, fcntl_getfl, fcntl_setfl};

use crate::model::block::ImageFile;
use crate::model::buffer::ALIGNMENT;

/// How much is written through the page cache before its pages are dropped, in bytes.
const CACHED_STRETCH: u64 = 8 * 1024 * 1024;

/// A file that is written with `O_DIRECT`, or through the page cache where that is not supported.
///
/// A file system may reject the flag itself or only the first write with it (open(2), "EINVAL"). In
/// both cases all further writes go through the page cache, and their pages are dropped soon after,
/// so that the guests' pages stay cached.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    direct: bool,
    stretch_start: u64,
    stretch_end: u64,
}

impl DirectFile {
    /// Takes over a file that is open for reading and writing.
    pub fn new(file: File) -> Self {
        let direct = set_direct(&file, true).is_ok();
        DirectFile {
            file,
            direct,
            stretch_start: 0,
            stretch_end: 0,
        }
    }

    /// The file itself. While writes bypass the page cache, reads do so as well and must be
    /// aligned.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes all of `bytes` at `offset`. A write that is not aligned to [`ALIGNMENT`] goes through
    /// the page cache.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write_any(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !self.direct {
            return self.write_cached(bytes, offset);
        }
        let aligned = bytes.as_ptr().align_offset(ALIGNMENT) == 0
            && bytes.len().is_multiple_of(ALIGNMENT)
            && offset.is_multiple_of(ALIGNMENT as u64);
        if aligned {
            match self.file.write_all_at(bytes, offset) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    set_direct(&self.file, false)?;
                    self.direct = false;
                    return self.write_cached(bytes, offset);
                }
                done => return done,
            }
        }
        set_direct(&self.file, false)?;
        let written = self.file.write_all_at(bytes, offset);
        self.direct = set_direct(&self.file, true).is_ok();
        written
    }

    fn write_cached(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        let end = offset + bytes.len() as u64;
        if end.saturating_sub(self.stretch_end) >= CACHED_STRETCH {
            // Dirty pages are not dropped, but their write-out begins. The stretch before is clean
            // by now and is dropped.
            let length = NonZeroU64::new(end - self.stretch_start);
            let _ = fadvise(&self.file, self.stretch_start, length, Advice::DontNeed);
            self.stretch_start = self.stretch_end;
            self.stretch_end = end;
        }
        Ok(())
    }
}

impl ImageFile for DirectFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_any(bytes, offset)
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        if !self.direct {
            let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        }
        Ok(())
    }

    fn free(&mut self, range: Range<u64>) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(
            &self.file,
            flags,
            range.start,
            range.end - range.start,
        )?)
    }
}

impl Drop for DirectFile {
    fn drop(&mut self) {
        // The flag belongs to the open file, not to the descriptor: another handle to it would keep
        // the flag.
        if self.direct {
            let _ = set_direct(&self.file, false);
        }
    }
}

fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::buffer::Buffer;
    use std::path::Path;

    fn bytes_of(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().expect("it has a length").len() as usize];
        file.read_exact_at(&mut bytes, 0).expect("it can be read");
        bytes
    }

    fn file_in(dir: &Path) -> (File, File) {
        let file = tempfile::tempfile_in(dir).expect("a temporary file");
        (file.try_clone().expect("a second handle"), file)
    }

    /// A file that is written through the page cache.
    fn buffered(file: File) -> DirectFile {
        DirectFile {
            file,
            direct: false,
            stretch_start: 0,
            stretch_end: 0,
        }
    }

    #[test]
    fn aligned_and_odd_writes_both_arrive() {
        // One of the two probably is a file system without O_DIRECT; the result must be the same.
        for dir in [&std::env::temp_dir(), Path::new("/dev/shm")] {
            for take_over in [DirectFile::new, buffered] {
                let (handle, file) = file_in(dir);
                let mut file = take_over(file);
                let mut buffer = Buffer::alone(8192);
                buffer.fill(7);
                file.write_any(&buffer, 4096).expect("an aligned write");
                file.write_any(&buffer[1..600], 12288).expect("an odd write");
                file.write_any(&buffer, 16384)
                    .expect("an aligned write after an odd one");
                file.sync().expect("it can be synced");
                drop(file);
                let mut expected = vec![0; 24576];
                expected[4096..12887].fill(7);
                expected[16384..].fill(7);
                assert!(
                    bytes_of(&handle) == expected,
                    "the bytes differ in {}",
                    dir.display()
                );
            }
        }
    }

    #[test]
    fn other_handles_do_not_keep_the_flag() {
        let (handle, file) = file_in(&std::env::temp_dir());
        let direct = DirectFile::new(file);
        assert_eq!(
            fcntl_getfl(&handle).expect("its flags").contains(OFlags::DIRECT),
            direct.direct
        );
        drop(direct);
        assert!(!fcntl_getfl(&handle).expect("its flags").contains(OFlags::DIRECT));
    }

    #[test]
    fn a_long_buffered_write_gives_its_pages_back_and_loses_nothing() {
        let mut file = buffered(tempfile::tempfile().expect("a temporary file"));
        let mut buffer = Buffer::alone(1 << 20);
        for piece in 0..40u64 {
            buffer.fill(piece as u8);
            file.write_at(&buffer, piece << 20).expect("it can be written");
        }
        let mut found = vec![0; 1 << 20];
        for piece in 0..40u64 {
            file.file()
                .read_exact_at(&mut found, piece << 20)
                .expect("it can be read");
            assert!(found.iter().all(|&byte| byte == piece as u8), "piece {piece}");
        }
    }
}
