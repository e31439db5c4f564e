//! Ranges and blocks of a disk, and the traits for both ends of a copy.

use std::error::Error as StdError;
use std::io;
use std::ops::Range;

use super::buffer::Buffer;

/// Size of a cluster in vmsnap's images, in bytes. An [`Extent`] starts and ends on a multiple of
/// it, except that the last one may end at the disk's end.
pub const CLUSTER: u64 = 64 * 1024;

/// The kind of a range of a disk. A range in no extent is *clean*: unchanged since the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that have to be read.
    Data,
    /// Reads as zero, so it need not be read.
    Zero,
    /// Reads as zero, and the bitmap does not mark it as changed. The source compares it with the
    /// parent, because a disk that is shrunk and grown again loses both its bytes and their dirty
    /// bits.
    CleanZero,
}

/// A range of a disk with its kind, in bytes. `length` is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its start on the disk.
    pub offset: u64,
    /// Its length.
    pub length: u64,
    /// Its kind.
    pub kind: ExtentKind,
}

impl Extent {
    /// The first byte after it.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// The content of a block.
#[derive(Debug)]
pub enum Content {
    /// The bytes themselves.
    Data(Buffer),
    /// This number of zero bytes.
    Zero(u64),
}

/// A piece of a disk on its way from a source to a sink. It starts on a multiple of [`CLUSTER`] and
/// is a whole number of clusters long; only the last block of the disk may be shorter.
#[derive(Debug)]
pub struct Block {
    /// Its start on the disk, in bytes.
    pub offset: u64,
    /// Its content.
    pub content: Content,
}

impl Block {
    /// The number of bytes of the disk that it covers.
    pub fn length(&self) -> u64 {
        match &self.content {
            Content::Data(buffer) => buffer.len() as u64,
            Content::Zero(length) => *length,
        }
    }
}

/// A source of blocks: an NBD export or a chain of images.
pub trait BlockSource: Send {
    /// Size of the disk, in bytes.
    fn size(&self) -> u64;

    /// The next block, or `None` after the last one. Blocks come in the disk's order and never
    /// overlap. After an error, no more blocks come.
    fn next_block(&mut self) -> Result<Option<Block>, BlockError>;
}

/// The parent of an incremental image, as a source sees it.
pub trait Beneath: Send + Sync + std::fmt::Debug {
    /// The first offset in a range, in bytes, at which the parent may hold something other than
    /// zero. Content that cannot be read counts as other than zero. After a stop, the answer may be
    /// wrong.
    fn other_than_zero(&self, offset: u64, length: u64) -> Option<u64>;
}

/// A sink for blocks: an image, a raw file or a block device.
pub trait BlockSink: Send {
    /// Writes the next block. Blocks come in the disk's order and never overlap. A range that is
    /// never written reads from the backing image, or as zero if there is none.
    fn write(&mut self, block: Block) -> Result<(), BlockError>;

    /// Brings everything to stable storage and returns totals. The sink must not be used
    /// afterwards.
    fn finish(&mut self) -> Result<Written, BlockError>;
}

/// The totals of a finished sink.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Written {
    /// The number of bytes stored as data, before compression.
    pub data_bytes: u64,
    /// The number of bytes stored as explicit zeroes.
    pub zero_bytes: u64,
    /// Whether any of the data is stored compressed.
    pub is_compressed: bool,
    /// Length of the file in bytes; for a device, the device's size.
    pub file_bytes: u64,
    /// BLAKE3 digest of the file, in hexadecimal; `None` for raw files and devices.
    pub blake3: Option<String>,
    /// Digests of the file's pieces; `None` if the file has no digest or is a single piece.
    pub pieces: Option<Pieces>,
    /// The changes that turn the file into the new image, if an existing image was continued.
    /// Length and digests are those of the changed file.
    pub patch: Option<Patch>,
}

/// Changes in an image that turn it into its continuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The new first bytes of the file.
    pub header: Vec<u8>,
    /// Ranges of the file that are no longer used and become zero, in bytes: in order, after the
    /// header, and without overlap.
    pub freed: Vec<Range<u64>>,
}

impl Patch {
    /// The number of bytes that become free.
    pub fn freed_bytes(&self) -> u64 {
        self.freed.iter().map(|range| range.end - range.start).sum()
    }
}

/// Digests of the pieces of a file, which locate damage in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Length of each piece except the last, in bytes: a power of two, at least 1024.
    pub size: u64,
    /// BLAKE3 chaining value of each piece (section 2.1 of the BLAKE3 paper), for at least two
    /// pieces.
    pub digests: Vec<[u8; 32]>,
}

/// A file to which an image or a small file is written. The store decides how the bytes reach the
/// disk (past the page cache where it can).
pub trait ImageFile: Send {
    /// Writes all of `bytes` at `offset`. Only writes whose address, length and offset are
    /// multiples of [`super::buffer::ALIGNMENT`] can bypass the page cache.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Sets the length of the file in bytes. New space reads as zero and takes no storage.
    fn set_len(&mut self, length: u64) -> io::Result<()>;

    /// Brings everything written so far to stable storage.
    fn sync(&mut self) -> io::Result<()>;

    /// Frees the storage of a range, which then reads as zero. The length of the file does not
    /// change.
    ///
    /// # Errors
    /// `Unsupported` if the file system cannot do that.
    fn free(&mut self, range: Range<u64>) -> io::Result<()> {
        let _ = range;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The kind of a [`BlockError`]; the exit code and the hint follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockErrorKind {
    /// A stop was requested.
    Stopped,
    /// The NBD server or the object store cannot be reached, went away, refuses access, or did not
    /// answer before the deadline.
    Lost,
    /// A reply of the NBD server is invalid, an image needs an unsupported feature, or the request
    /// does not fit the image.
    Invalid,
    /// Stored data differs from what was written: a digest or a structure is wrong.
    Damaged,
    /// The bitmap or the parent has proved unreliable, so only a full backup can save the disk's
    /// content.
    Distrusted,
    /// The target is full or too small.
    NoSpace,
    /// Any other error while reading or writing.
    Io,
}

/// An error at either end of a copy.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct BlockError {
    /// The kind of error.
    pub kind: BlockErrorKind,
    /// What failed, with its facts (path, offset).
    pub what: String,
    /// The underlying error.
    #[source]
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl BlockError {
    /// An error without an underlying error.
    pub fn new(kind: BlockErrorKind, what: impl Into<String>) -> Self {
        BlockError {
            kind,
            what: what.into(),
            source: None,
        }
    }

    /// Wraps an error of another module.
    pub(crate) fn from_source(
        kind: BlockErrorKind,
        what: impl Into<String>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        BlockError {
            kind,
            what: what.into(),
            source: Some(Box::new(source)),
        }
    }

    /// Wraps an I/O error; the kind follows from it.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlockErrorKind::NoSpace,
            _ => BlockErrorKind::Io,
        };
        BlockError::from_source(kind, what, source)
    }

    /// The error after a request to stop.
    pub fn stopped() -> Self {
        BlockError::new(BlockErrorKind::Stopped, "stopped on request")
    }
}
