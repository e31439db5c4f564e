//! The file of an image that is being written, as an append-only log.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::header::Header;
use crate::image::behind::{Piece, WriteBehind};
use crate::image::digest::{FileDigest, TailDigest};
use crate::image::recorded::Recorded;
use crate::image::{Error, Result};
use crate::model::block::{CLUSTER, ImageFile, Pieces};
use crate::model::buffer::{Buffer, BufferPool};
use crate::model::stop::Stop;

const CLUSTER_BYTES: usize = CLUSTER as usize;
/// Parts of at least this length are written from their own buffer; shorter ones are staged. In
/// bytes; whole clusters.
const DIRECT: usize = 256 * 1024;
/// Length of a staging buffer in bytes: short parts are combined into writes of this length. Whole
/// clusters.
const STAGING: usize = 1024 * 1024;
/// The largest number of staging buffers on their way to the file.
const STAGING_BUFFERS: usize = 4;

/// The file after its first cluster, as an append-only log that hashes its bytes.
///
/// Short parts (single clusters, tables) are copied while they are in the processor's cache.
/// Sending each one to the writer thread would wake that thread each time, and would occupy a
/// buffer for as long as it waits for the disk.
#[derive(Debug)]
pub(super) struct Log {
    /// `None` once the log is finished.
    file: Option<WriteBehind>,
    path: PathBuf,
    stop: Stop,
    digest: Hashed,
    pool: BufferPool,
    /// The buffer that collects short parts.
    staging: Option<Buffer>,
    /// The filled length of the staging buffer.
    staged: usize,
    /// Where the staging buffer begins in the file.
    staged_at: u64,
}

/// The digest of what was appended.
#[derive(Debug)]
enum Hashed {
    /// The digest of a new file, except its first cluster.
    New(FileDigest),
    /// The digest of the bytes that were appended to an existing file.
    Tail(TailDigest),
}

impl Hashed {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hashed::New(digest) => digest.update(bytes),
            Hashed::Tail(digest) => digest.update(bytes),
        }
    }
}

impl Log {
    /// Starts after the first cluster of a new file.
    pub(super) fn start(file: Box<dyn ImageFile>, path: &Path, stop: &Stop) -> Result<Self> {
        Log::start_at(file, path, stop, CLUSTER, Hashed::New(FileDigest::new()))
    }

    /// Starts at the end of an existing file.
    pub(super) fn start_after(
        file: Box<dyn ImageFile>,
        path: &Path,
        stop: &Stop,
        old: &Recorded,
    ) -> Result<Self> {
        let digest = Hashed::Tail(TailDigest::after(old));
        Log::start_at(file, path, stop, old.bytes, digest)
    }

    fn start_at(
        file: Box<dyn ImageFile>,
        path: &Path,
        stop: &Stop,
        offset: u64,
        digest: Hashed,
    ) -> Result<Self> {
        Ok(Log {
            file: Some(WriteBehind::start(file, path)?),
            path: path.to_owned(),
            stop: stop.clone(),
            digest,
            pool: BufferPool::new(STAGING_BUFFERS, STAGING),
            staging: None,
            staged: 0,
            staged_at: offset,
        })
    }

    /// The offset of the next byte in the file.
    pub(super) fn end(&self) -> u64 {
        self.staged_at + self.staged as u64
    }

    /// Appends part of a buffer. A long part is written from the buffer itself, which is kept until
    /// then.
    pub(super) fn append_part(&mut self, buffer: &Arc<Buffer>, part: Range<usize>) -> Result<()> {
        // Parts that are written from their own buffer begin and end on a cluster.
        let is_direct = part.len() >= DIRECT && self.end().is_multiple_of(CLUSTER);
        let direct = match is_direct {
            true => part.start..part.end - part.len() % CLUSTER_BYTES,
            false => part.start..part.start,
        };
        let rest = direct.end..part.end;
        if !direct.is_empty() {
            self.flush()?;
            self.digest.update(&buffer[direct.clone()]);
            let offset = self.staged_at;
            self.staged_at += direct.len() as u64;
            self.send(Piece {
                buffer: Arc::clone(buffer),
                range: direct,
                offset,
            })?;
        }
        self.append(&buffer[rest])
    }

    /// Appends a copy of these bytes.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        while !bytes.is_empty() {
            let staged = self.staged;
            let staging = self.staging()?;
            let (now, later) = bytes.split_at(bytes.len().min(STAGING - staged));
            staging[staged..staged + now.len()].copy_from_slice(now);
            self.staged += now.len();
            if self.staged == STAGING {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Pads the last cluster with zeroes.
    pub(super) fn pad_cluster(&mut self) -> Result<()> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut missing = self.end().next_multiple_of(CLUSTER) - self.end();
        while missing > 0 {
            let now = missing.min(ZEROES.len() as u64);
            self.append(&ZEROES[..now as usize])?;
            missing -= now;
        }
        Ok(())
    }

    /// Returns the staging buffer, and waits for one while all are on their way to the file.
    fn staging(&mut self) -> Result<&mut Buffer> {
        let mut taken = self.staging.take();
        let buffer = loop {
            if let Some(buffer) = taken {
                break buffer;
            }
            if self.stop.requested() {
                return Err(Error::Stopped);
            }
            taken = self.pool.take_within(Duration::from_millis(100));
        };
        Ok(self.staging.insert(buffer))
    }

    /// Sends the staged bytes.
    fn flush(&mut self) -> Result<()> {
        if self.staged == 0 {
            return Ok(());
        }
        let Some(buffer) = self.staging.take() else {
            return Ok(());
        };
        let piece = Piece {
            buffer: Arc::new(buffer),
            range: 0..self.staged,
            offset: self.staged_at,
        };
        self.staged_at += self.staged as u64;
        self.staged = 0;
        self.send(piece)
    }

    fn send(&mut self, piece: Piece) -> Result<()> {
        if self.stop.requested() {
            return Err(Error::Stopped);
        }
        let path = &self.path;
        let file = self
            .file
            .as_mut()
            .ok_or_else(|| Error::Closed { path: path.clone() })?;
        file.send(piece)
    }

    pub(super) fn check_open(&self) -> Result<()> {
        match self.file {
            Some(_) => Ok(()),
            None => Err(self.closed()),
        }
    }

    /// Writes the header and waits until all is on stable storage. Returns the file's digest in
    /// hexadecimal, and the digests of its pieces.
    pub(super) fn finish(&mut self, header: &Header) -> Result<(String, Option<Pieces>)> {
        self.flush()?;
        let mut first = Buffer::alone(CLUSTER_BYTES);
        let header = header.encode();
        first[..header.len()].copy_from_slice(&header);
        let mut cluster = [0; CLUSTER_BYTES];
        cluster.copy_from_slice(&first);
        let Hashed::New(digest) = self.take_digest() else {
            return Err(self.closed());
        };
        let (digest, pieces) = digest.finish(&cluster);
        self.send(Piece {
            buffer: Arc::new(first),
            range: 0..CLUSTER_BYTES,
            offset: 0,
        })?;
        if let Some(file) = self.file.take() {
            file.finish()?;
        }
        Ok((digest.to_hex().to_string(), pieces))
    }

    /// Waits until all is on stable storage. Returns the digest of what was appended to the file
    /// that existed.
    pub(super) fn finish_tail(&mut self) -> Result<TailDigest> {
        self.flush()?;
        let Hashed::Tail(digest) = self.take_digest() else {
            return Err(self.closed());
        };
        if let Some(file) = self.file.take() {
            file.finish()?;
        }
        Ok(digest)
    }

    fn take_digest(&mut self) -> Hashed {
        std::mem::replace(&mut self.digest, Hashed::New(FileDigest::new()))
    }

    fn closed(&self) -> Error {
        Error::Closed {
            path: self.path.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::Mutex;

    /// Offset and length of each write.
    type Writes = Arc<Mutex<Vec<(u64, usize)>>>;

    struct Recorder(Writes);

    impl ImageFile for Recorder {
        fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
            let mut writes = self.0.lock().expect("no test panics with it");
            writes.push((offset, bytes.len()));
            Ok(())
        }

        fn set_len(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The writes for parts of these lengths, without the first cluster, which comes last.
    fn writes_of(lengths: &[usize]) -> Vec<(u64, usize)> {
        let writes = Writes::default();
        let file = Box::new(Recorder(Arc::clone(&writes)));
        let mut log = Log::start(file, Path::new("x.qcow2"), &Stop::default()).expect("it starts");
        let buffer = Arc::new(Buffer::alone(2 * STAGING));
        for &length in lengths {
            log.append_part(&buffer, 0..length).expect("it writes");
        }
        log.flush().expect("it writes");
        let end = log.end();
        let file = log.file.take().expect("it is open");
        file.finish().expect("it finishes");
        let writes = writes.lock().expect("no test panics with it").clone();
        let written: usize = writes.iter().map(|&(_, length)| length).sum();
        assert_eq!(CLUSTER + written as u64, end);
        writes
    }

    #[test]
    fn short_parts_are_combined_and_long_parts_written_in_place() {
        let half = CLUSTER_BYTES / 2;
        // A cluster, the halves of one, a long part with half a cluster at its end, and the other
        // half.
        let written = writes_of(&[CLUSTER_BYTES, half, half, DIRECT + half, half]);
        let direct_at = 3 * CLUSTER;
        let expected = [
            (CLUSTER, 2 * CLUSTER_BYTES),
            (direct_at, DIRECT),
            (direct_at + DIRECT as u64, CLUSTER_BYTES),
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn a_long_part_that_begins_within_a_cluster_is_staged() {
        let written = writes_of(&[100, DIRECT]);
        assert_eq!(written, [(CLUSTER, DIRECT + 100)]);
    }

    #[test]
    fn what_is_staged_is_bounded() {
        let clusters = 2 * STAGING / CLUSTER_BYTES + 8;
        let written = writes_of(&vec![CLUSTER_BYTES; clusters]);
        let second = CLUSTER + STAGING as u64;
        let expected = [
            (CLUSTER, STAGING),
            (second, STAGING),
            (second + STAGING as u64, 8 * CLUSTER_BYTES),
        ];
        assert_eq!(written, expected);
    }
}
