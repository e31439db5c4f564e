//! Reads the LZ4 frames of compressed streams.
//!
//! virtnbdbackup compresses each data frame, or each 32 MiB of a long one, to an LZ4 frame with a
//! checksum of each block and of the content.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use lz4_flex::frame::FrameDecoder;

use super::reader::Reader;
use crate::model::block::BlockError;

/// The first bytes of an LZ4 frame.
const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// The shortest LZ4 frame header, in bytes: magic number, two bytes of flags, checksum.
const SHORTEST: u64 = 7;

/// How many bytes are decompressed at a time when their content is not wanted.
const SCRATCH: usize = 64 << 10;

/// Flags of an LZ4 frame: version 1, and a checksum of every block.
const VERSION_MASK: u8 = 0b1100_0000;
const VERSION: u8 = 0b0100_0000;
const BLOCK_CHECKSUM: u8 = 0b0001_0000;
const CONTENT_SIZE: u8 = 0b0000_1000;

/// The beginning of an LZ4 frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PieceHead {
    /// The size of its content in bytes, if it is recorded.
    pub(super) size: Option<u64>,
}

/// Reads the beginning of the LZ4 frame at this offset of the file, which has `stored` bytes.
///
/// # Errors
/// There is no LZ4 frame, or it has no checksums.
pub(super) fn head_at(reader: &Reader, at: u64, stored: u64) -> Result<PieceHead, BlockError> {
    let mut bytes = [0; 14];
    let length = usize::try_from(stored).map_or(bytes.len(), |stored| stored.min(bytes.len()));
    if stored < SHORTEST {
        return Err(reader.damaged_at(at, "there is no LZ4 frame"));
    }
    reader.read_past_digest(&mut bytes[..length], at)?;
    let flags = bytes[4];
    if bytes[..4] != MAGIC || flags & VERSION_MASK != VERSION {
        return Err(reader.damaged_at(at, "there is no LZ4 frame"));
    }
    // Only bytes with a checksum are handed out.
    if flags & BLOCK_CHECKSUM == 0 {
        return Err(reader.damaged_at(at, "the LZ4 frame has no checksums"));
    }
    let size = match flags & CONTENT_SIZE {
        0 => None,
        _ => bytes[6..].first_chunk().map(|size| u64::from_le_bytes(*size)),
    };
    Ok(PieceHead { size })
}

/// The bytes of an LZ4 frame, decompressed from front to back.
pub(super) struct Piece {
    decoder: FrameDecoder<Stored>,
    at: u64,
    length: u64,
    /// How many bytes have been decompressed.
    done: u64,
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Piece({} of {} at {})", self.done, self.length, self.at)
    }
}

impl Piece {
    /// The LZ4 frame in this range of the file, whose content has `length` bytes.
    ///
    /// # Errors
    /// The errors of [`head_at`].
    pub(super) fn open(
        reader: &Arc<Mutex<Reader>>,
        at: u64,
        stored: u64,
        length: u64,
    ) -> Result<Piece, BlockError> {
        {
            let locked = reader.lock().unwrap_or_else(PoisonError::into_inner);
            let head = head_at(&locked, at, stored)?;
            if head.size.is_some_and(|size| size != length) {
                return Err(locked.damaged_at(at, "the LZ4 frame has another size than its data frame"));
            }
        }
        let stored = Stored {
            reader: Arc::clone(reader),
            at,
            end: at + stored,
        };
        Ok(Piece {
            decoder: FrameDecoder::new(stored),
            at,
            length,
            done: 0,
        })
    }

    /// Whether this is the LZ4 frame at offset `at` of the file, and was not read beyond offset
    /// `from` of its content.
    pub(super) fn can_read(&self, at: u64, from: u64) -> bool {
        self.at == at && self.done <= from
    }

    /// Fills `out` with the content from this offset on, which must not lie before the end of the
    /// last read.
    ///
    /// # Errors
    /// The LZ4 frame is damaged or cannot be read, or a stop was requested.
    pub(super) fn read(&mut self, out: &mut [u8], from: u64) -> Result<(), BlockError> {
        self.skip_to(from)?;
        self.decode(out)
    }

    /// Decompresses the rest, and checks the checksum of the content and the end of the LZ4 frame.
    ///
    /// # Errors
    /// The errors of [`Piece::read`].
    pub(super) fn finish(&mut self) -> Result<(), BlockError> {
        self.skip_to(self.length)?;
        let mut more = [0];
        let count = self.decoder.read(&mut more).map_err(|error| self.failed(error))?;
        let is_read = self.decoder.get_ref().at == self.decoder.get_ref().end;
        match count == 0 && is_read {
            true => Ok(()),
            false => Err(self.failed(io::Error::other("it has more content than its data frame"))),
        }
    }

    fn skip_to(&mut self, from: u64) -> Result<(), BlockError> {
        let mut scratch = Vec::new();
        while self.done < from {
            let length = (from - self.done).min(SCRATCH as u64);
            scratch.resize(usize::try_from(length).unwrap_or(SCRATCH), 0);
            self.decode(&mut scratch)?;
        }
        Ok(())
    }

    fn decode(&mut self, out: &mut [u8]) -> Result<(), BlockError> {
        self.decoder.read_exact(out).map_err(|error| self.failed(error))?;
        self.done += out.len() as u64;
        Ok(())
    }

    fn failed(&self, error: io::Error) -> BlockError {
        // An error of the reader keeps its kind.
        let error = match error.downcast::<BlockError>() {
            Ok(of_reader) => return of_reader,
            Err(error) => error,
        };
        let locked = self.decoder.get_ref().reader.lock();
        let locked = locked.unwrap_or_else(PoisonError::into_inner);
        locked.damaged_at(
            self.at,
            &format!("the LZ4 frame cannot be decompressed ({error})"),
        )
    }
}

/// The bytes of an LZ4 frame in the file.
struct Stored {
    reader: Arc<Mutex<Reader>>,
    at: u64,
    end: u64,
}

impl Read for Stored {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = (self.end - self.at).min(out.len() as u64);
        let length = usize::try_from(length).unwrap_or(0);
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader
            .read(&mut out[..length], self.at)
            .map_err(io::Error::other)?;
        self.at += length as u64;
        Ok(length)
    }
}
