//! Reads and hashes a file once, front to back, and hands out requested parts on the way.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};

use super::{Error, Result, StoredFile, cache, read_exact_at};
use crate::model::stop::Stop;

/// How much is read before its pages are dropped, in bytes.
const STRETCH: u64 = 8 * 1024 * 1024;
/// The largest number of bytes read before the reader checks for a stop request.
const PIECE: usize = 1024 * 1024;

/// A file that is read once, front to back.
///
/// In an image that vmsnap wrote, data lies nearly in the disk's order, unless a merge has
/// continued the image. So a reader of the disk mostly requests rising offsets, and almost
/// everything is read once. Earlier offsets can be requested too, and are read again.
pub(super) struct Sequential {
    file: Arc<StoredFile>,
    path: PathBuf,
    length: u64,
    expected: String,
    hasher: blake3::Hasher,
    /// All bytes before this offset have been hashed.
    cursor: u64,
    /// The last bytes before the cursor; may be empty.
    window: Vec<u8>,
    window_size: usize,
    /// The pages before this offset have been dropped.
    released: u64,
    stop: Stop,
}

impl Sequential {
    /// Prepares a file of `length` bytes whose BLAKE3 digest should be `expected` (hexadecimal). It
    /// takes `window_size` bytes of memory, at most 1 MiB.
    pub(super) fn new(
        file: Arc<StoredFile>,
        path: PathBuf,
        length: u64,
        expected: String,
        window_size: usize,
        stop: Stop,
    ) -> Self {
        // Advice only: a file system that ignores it reads all the same.
        let _ = fadvise(file.file(), 0, None, Advice::Sequential);
        Sequential {
            file,
            path,
            length,
            expected,
            hasher: blake3::Hasher::new(),
            cursor: 0,
            window: Vec::new(),
            window_size: window_size.clamp(1, PIECE),
            released: 0,
            stop,
        }
    }

    /// Fills `out` with the file's bytes from `offset` on.
    pub(super) fn read_at(&mut self, mut out: &mut [u8], mut offset: u64) -> Result<()> {
        while !out.is_empty() {
            let window_start = self.cursor - self.window.len() as u64;
            let done = if offset < window_start {
                let count = out
                    .len()
                    .min(usize::try_from(window_start - offset).unwrap_or(usize::MAX));
                read_exact_at(&self.file, &self.path, &mut out[..count], offset)?;
                count
            } else if offset < self.cursor {
                let from = usize::try_from(offset - window_start).unwrap_or(usize::MAX);
                let count = out.len().min(self.window.len() - from);
                out[..count].copy_from_slice(&self.window[from..from + count]);
                count
            } else if offset == self.cursor && self.is_long(out.len()) {
                let count = out.len().min(PIECE);
                self.pass_into(&mut out[..count])?;
                count
            } else {
                let wanted_later = self.is_long(out.len()) && offset > self.cursor;
                let limit = if wanted_later {
                    offset - self.cursor
                } else {
                    u64::MAX
                };
                self.pass_some(limit, offset)?;
                0
            };
            offset += done as u64;
            out = &mut out[done..];
        }
        Ok(())
    }

    /// Reads the rest of the file and compares the digest.
    pub(super) fn finish(&mut self) -> Result<()> {
        while self.cursor < self.length {
            self.pass_some(u64::MAX, self.length)?;
        }
        let actual = self.hasher.finalize().to_hex();
        if !actual.eq_ignore_ascii_case(&self.expected) {
            return Err(Error::Digest {
                path: self.path.clone(),
                actual: actual.to_string(),
                expected: self.expected.clone(),
            });
        }
        Ok(())
    }

    /// Reads the next bytes and returns how many have been read so far; the same number again at
    /// the end of the file.
    pub(super) fn pass_piece(&mut self) -> Result<u64> {
        if self.cursor < self.length {
            self.pass_some(u64::MAX, self.length)?;
        }
        Ok(self.cursor)
    }

    /// For an early abort: waits for read-ahead to arrive, so that its pages can be dropped. Takes
    /// at most as long as reading 32 MiB.
    pub(super) fn break_off(&mut self) {
        if self.cursor > 0 && self.cursor < self.length {
            cache::await_read_ahead(self.file.file(), self.cursor);
        }
    }

    /// Whether this many bytes are worth a read of their own, without a copy.
    fn is_long(&self, bytes: usize) -> bool {
        bytes >= self.window_size.div_ceil(4)
    }

    /// Moves the window over the next bytes: as many as it holds, at most `limit`. `wanted` is the
    /// offset for an error message.
    fn pass_some(&mut self, limit: u64, wanted: u64) -> Result<()> {
        let left = (self.length - self.cursor)
            .min(limit)
            .min(self.window_size as u64);
        if left == 0 {
            return Err(Error::Truncated {
                path: self.path.clone(),
                offset: wanted,
            });
        }
        let mut window = std::mem::take(&mut self.window);
        window.resize(usize::try_from(left).unwrap_or(0), 0);
        self.pass_into(&mut window)?;
        self.window = window;
        Ok(())
    }

    /// Reads and hashes the next bytes. The window is empty afterwards.
    fn pass_into(&mut self, out: &mut [u8]) -> Result<()> {
        if self.stop.requested() {
            return Err(Error::Stopped);
        }
        self.window.clear();
        read_exact_at(&self.file, &self.path, out, self.cursor)?;
        self.hasher.update(out);
        self.cursor += out.len() as u64;
        if self.cursor - self.released >= STRETCH {
            self.release();
        }
        Ok(())
    }

    fn release(&mut self) {
        cache::forget_until(self.file.file(), self.released, self.cursor);
        self.released = self.cursor;
    }
}

impl Drop for Sequential {
    /// After success or failure, drops the pages that were read ahead or read again.
    fn drop(&mut self) {
        cache::forget(self.file.file());
    }
}

impl std::fmt::Debug for Sequential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sequential({} of {} bytes)", self.cursor, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::stop::StopReason;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    fn sample(length: usize) -> (Vec<u8>, Arc<StoredFile>) {
        let mut bytes = vec![0; length];
        blake3::Hasher::new()
            .update(b"sample")
            .finalize_xof()
            .fill(&mut bytes);
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&bytes, 0).expect("it can be written");
        (bytes, Arc::new(file.into()))
    }

    fn reader(bytes: &[u8], file: &Arc<StoredFile>, window: usize) -> Sequential {
        let digest = blake3::hash(bytes).to_hex().to_string();
        Sequential::new(
            Arc::clone(file),
            "x".into(),
            bytes.len() as u64,
            digest,
            window,
            Stop::default(),
        )
    }

    proptest! {
        #[test]
        fn any_requests_get_the_files_bytes_and_the_digest_holds(
            requests in proptest::collection::vec((0..300_000usize, 1..90_000usize), 0..20),
            window in 1000..100_000usize,
            sorted: bool,
        ) {
            let (bytes, file) = sample(300_000);
            let mut requests = requests;
            if sorted {
                requests.sort_unstable();
            }
            let mut reader = reader(&bytes, &file, window);
            for (start, length) in requests {
                let end = (start + length).min(bytes.len());
                let mut out = vec![0; end - start];
                reader.read_at(&mut out, start as u64).expect("it lies within the file");
                prop_assert!(out == bytes[start..end]);
            }
            prop_assert!(reader.finish().is_ok());
        }
    }

    #[test]
    fn single_changed_bit_is_reported() {
        let (mut bytes, file) = sample(200_000);
        bytes[150_000] ^= 1;
        let mut reader = reader(&bytes, &file, 65536);
        assert!(matches!(reader.finish(), Err(Error::Digest { .. })));
    }

    #[test]
    fn bytes_beyond_the_end_are_an_error() {
        let (bytes, file) = sample(100_000);
        for length in [100, 100_000] {
            let mut out = vec![0; length];
            let result = reader(&bytes, &file, 65536).read_at(&mut out, 99_950);
            assert!(
                matches!(result, Err(Error::Truncated { .. })),
                "{length} bytes: {result:?}"
            );
        }
    }

    #[test]
    fn a_wish_to_stop_ends_it() {
        let (bytes, file) = sample(100_000);
        let mut reader = reader(&bytes, &file, 4096);
        reader.stop.request(StopReason::Interrupted);
        assert!(matches!(reader.finish(), Err(Error::Stopped)));
    }
}
