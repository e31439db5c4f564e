//! Reads a file of a set, and computes its Adler-32 checksum on the way.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use adler2::Adler32;
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::io::Errno;

use crate::model::block::{BlockError, BlockErrorKind};
use crate::model::stop::Stop;

/// The largest number of bytes read before the reader checks for a stop request.
const PIECE: usize = 256 << 10;

/// Opens a file of a set for reading. It must be a regular file, because a link may lead out of the
/// set.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // Opening a pipe would block until another process writes to it.
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => io::Error::new(io::ErrorKind::InvalidInput, "it is a link, not a file"),
        _ => error,
    })?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")),
    }
}

/// A file of a set. With a recorded checksum all of its bytes are read once, from front to back.
#[derive(Debug)]
pub(super) struct Reader {
    file: Arc<File>,
    path: PathBuf,
    length: u64,
    digest: Option<Digest>,
    stop: Stop,
}

/// A checksum that is being computed.
struct Digest {
    adler: Adler32,
    expected: u32,
    /// All bytes before this offset are in the checksum.
    cursor: u64,
    window: Vec<u8>,
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Digest(at {})", self.cursor)
    }
}

impl Reader {
    /// A reader of this file, whose recorded checksum is `expected`, if there is one.
    pub(super) fn new(file: File, path: &Path, expected: Option<u32>, stop: Stop) -> io::Result<Reader> {
        let length = file.metadata()?.len();
        let digest = expected.map(|expected| Digest {
            adler: Adler32::new(),
            expected,
            cursor: 0,
            window: Vec::new(),
        });
        Ok(Reader {
            file: Arc::new(file),
            path: path.to_owned(),
            length,
            digest,
            stop,
        })
    }

    /// A reader of the same file that computes no checksum.
    pub(super) fn without_digest(&self) -> Reader {
        Reader {
            file: Arc::clone(&self.file),
            path: self.path.clone(),
            length: self.length,
            digest: None,
            stop: self.stop.clone(),
        }
    }

    /// The length of the file when it was opened, in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Drops the cached pages of the file, so that the next reads come from the storage device.
    pub(super) fn forget_cached(&self) {
        // Advice only: if the file system ignores it, the read is correct all the same.
        let _ = fadvise(&*self.file, 0, None, Advice::DontNeed);
    }

    /// Fails if a stop was requested.
    pub(super) fn check_stop(&self) -> Result<(), BlockError> {
        match self.stop.requested() {
            true => Err(BlockError::stopped()),
            false => Ok(()),
        }
    }

    /// Fills `out` from this offset of the file. With a checksum, the bytes that were skipped since
    /// the last read are read too.
    ///
    /// # Errors
    /// The file ends too early or cannot be read, or a stop was requested.
    pub(super) fn read(&mut self, out: &mut [u8], offset: u64) -> Result<(), BlockError> {
        self.check_stop()?;
        self.pass_until(offset)?;
        self.read_past_digest(out, offset)?;
        if let Some(digest) = &mut self.digest {
            // Bytes before the cursor were read before.
            let known = usize::try_from(digest.cursor - offset).unwrap_or(usize::MAX);
            if let Some(new) = out.get(known..) {
                digest.adler.write_slice(new);
                digest.cursor += new.len() as u64;
            }
        }
        Ok(())
    }

    /// Fills `out` from this offset of the file, without a checksum.
    ///
    /// # Errors
    /// The file ends too early or cannot be read.
    pub(super) fn read_past_digest(&self, out: &mut [u8], offset: u64) -> Result<(), BlockError> {
        self.file
            .read_exact_at(out, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.damaged_at(self.length, "it ends too early"),
                _ => BlockError::io(
                    format!("cannot read {} at offset {offset}", self.path.display()),
                    error,
                ),
            })
    }

    /// Reads the rest of the file, and compares the checksum with the recorded one.
    ///
    /// # Errors
    /// The checksums differ, the file cannot be read, or a stop was requested.
    pub(super) fn finish(&mut self) -> Result<(), BlockError> {
        self.pass_until(self.length)?;
        match &self.digest {
            Some(digest) if digest.adler.checksum() != digest.expected => {
                let what = format!(
                    "{} does not match its recorded checksum: expected {}, found {}",
                    self.path.display(),
                    digest.expected,
                    digest.adler.checksum()
                );
                Err(BlockError::new(BlockErrorKind::Damaged, what))
            }
            _ => Ok(()),
        }
    }

    /// Adds the bytes before this offset to the checksum.
    fn pass_until(&mut self, offset: u64) -> Result<(), BlockError> {
        let Some(mut digest) = self.digest.take() else {
            return Ok(());
        };
        let passed = self.pass(&mut digest, offset);
        self.digest = Some(digest);
        passed
    }

    fn pass(&self, digest: &mut Digest, offset: u64) -> Result<(), BlockError> {
        while digest.cursor < offset {
            self.check_stop()?;
            let length = (offset - digest.cursor).min(PIECE as u64);
            digest.window.resize(usize::try_from(length).unwrap_or(PIECE), 0);
            self.read_past_digest(&mut digest.window, digest.cursor)?;
            digest.adler.write_slice(&digest.window);
            digest.cursor += length;
        }
        Ok(())
    }

    /// The error that the file is damaged at this offset.
    pub(super) fn damaged_at(&self, offset: u64, why: &str) -> BlockError {
        let what = format!("{} is damaged at offset {offset}: {why}", self.path.display());
        BlockError::new(BlockErrorKind::Damaged, what)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    /// A reader of a temporary file with these bytes.
    pub(in crate::repo::sets) fn reader_of(bytes: &[u8]) -> Reader {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("it can be written");
        Reader::new(file, Path::new("x"), None, Stop::default()).expect("it has a length")
    }

    fn with_sum(bytes: &[u8], expected: u32) -> Reader {
        let reader = reader_of(bytes);
        let digest = Digest {
            adler: Adler32::new(),
            expected,
            cursor: 0,
            window: Vec::new(),
        };
        Reader {
            digest: Some(digest),
            ..reader
        }
    }

    /// Python's `zlib.adler32(b"Wikipedia")` is 0x11E60398.
    #[test]
    fn checksum_is_computed_in_any_order_of_rising_reads() {
        let text = b"Wikipedia";
        for reads in [&[][..], &[(0, 9)], &[(3, 2)], &[(0, 4), (2, 4)], &[(8, 1)]] {
            let mut reader = with_sum(text, 0x11E6_0398);
            for (offset, length) in reads {
                let mut out = vec![0; *length];
                reader.read(&mut out, *offset as u64).expect("it can be read");
                assert_eq!(out, text[*offset..offset + length]);
            }
            reader.finish().expect("it matches");
        }
    }

    #[test]
    fn changed_byte_and_early_end_are_damage() {
        let mut reader = with_sum(b"Wikipedja", 0x11E6_0398);
        let error = reader.finish().expect_err("it differs");
        assert_eq!(error.kind, BlockErrorKind::Damaged);
        let error = reader_of(b"ab").read(&mut [0; 3], 0).expect_err("it ends");
        assert_eq!(error.kind, BlockErrorKind::Damaged);
        assert!(
            error.what.contains("offset 2: it ends too early"),
            "{}",
            error.what
        );
    }

    #[test]
    fn stop_request_ends_a_read() {
        let mut reader = with_sum(&[7; 100], 1);
        reader.stop.request(crate::model::stop::StopReason::Interrupted);
        let error = reader.finish().expect_err("stopped");
        assert_eq!(error.kind, BlockErrorKind::Stopped);
    }
}
