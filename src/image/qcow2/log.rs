//! The file of an image that is being written, as something that only grows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::header::Header;
use crate::image::behind::{Piece, WriteBehind};
use crate::image::digest::FileDigest;
use crate::image::{Error, Result};
use crate::model::block::{CLUSTER, ImageFile, Pieces};
use crate::model::buffer::{Buffer, BufferPool};
use crate::model::stop::Stop;

const CLUSTER_BYTES: usize = CLUSTER as usize;
/// How many clusters of tables may be on their way to the file. In mid copy they are as many as the buffers of data there at the most, two for each.
const STAGING_BUFFERS: usize = 64;

/// The file behind its first cluster, as something that only grows: hashes what is appended.
#[derive(Debug)]
pub(super) struct Log {
    /// Gone after the end or a failure.
    file: Option<WriteBehind>,
    path: PathBuf,
    stop: Stop,
    digest: FileDigest,
    pool: BufferPool,
    /// The cluster that is being filled with what is no part of a buffer.
    staging: Option<Buffer>,
    /// How much of the staging buffer is filled.
    staged: usize,
    /// Where in the file the staging buffer begins.
    staged_at: u64,
}

impl Log {
    pub(super) fn start(file: Box<dyn ImageFile>, path: &Path, stop: &Stop) -> Result<Self> {
        Ok(Log {
            file: Some(WriteBehind::start(file, path)?),
            path: path.to_owned(),
            stop: stop.clone(),
            digest: FileDigest::new(),
            pool: BufferPool::new(STAGING_BUFFERS, CLUSTER_BYTES),
            staging: None,
            staged: 0,
            staged_at: CLUSTER,
        })
    }

    /// Where the next byte goes.
    pub(super) fn end(&self) -> u64 {
        self.staged_at + self.staged as u64
    }

    /// Appends part of a buffer, which stays where it is.
    pub(super) fn append_part(&mut self, buffer: &Arc<Buffer>, part: std::ops::Range<usize>) -> Result<()> {
        self.flush()?;
        self.digest.update(&buffer[part.clone()]);
        let offset = self.staged_at;
        self.staged_at += part.len() as u64;
        self.send(Piece {
            buffer: Arc::clone(buffer),
            range: part,
            offset,
        })
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let staged = self.staged;
            let staging = self.staging()?;
            let (now, later) = bytes.split_at(bytes.len().min(CLUSTER_BYTES - staged));
            staging[staged..staged + now.len()].copy_from_slice(now);
            self.staged += now.len();
            if self.staged == CLUSTER_BYTES {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Fills the last cluster up with zeroes.
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

    /// The staging buffer; waits for one while all are on their way to the file.
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

    /// Sends what is staged.
    fn flush(&mut self) -> Result<()> {
        if self.staged == 0 {
            return Ok(());
        }
        let Some(buffer) = self.staging.take() else {
            return Ok(());
        };
        self.digest.update(&buffer[..self.staged]);
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
            None => Err(Error::Closed {
                path: self.path.clone(),
            }),
        }
    }

    /// Writes the header, waits until all is on stable storage, and tells the file's digest in hexadecimal, and those of its pieces.
    pub(super) fn finish(&mut self, header: &Header) -> Result<(String, Option<Pieces>)> {
        self.flush()?;
        let mut first = Buffer::alone(CLUSTER_BYTES);
        let header = header.encode();
        first[..header.len()].copy_from_slice(&header);
        let mut cluster = [0; CLUSTER_BYTES];
        cluster.copy_from_slice(&first);
        let (digest, pieces) = std::mem::take(&mut self.digest).finish(&cluster);
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
}
