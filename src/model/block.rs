//! What travels from a disk to an image and back: extents, blocks, and the two ends of the pump.

use std::error::Error as StdError;
use std::io;

use super::buffer::Buffer;

/// Bytes of one cluster in every image of ours. Extents that a source hands out start and end on a multiple of it (the last one may end at the disk's end).
pub const CLUSTER: u64 = 64 * 1024;

/// What a range of a disk holds. A range that is in no extent is *clean*: unchanged since the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that have to be read.
    Data,
    /// Reads as zero; no need to read it.
    Zero,
    /// Reads as zero, and nobody says that it has changed. Worth a look at what lies beneath: a disk that was made smaller and larger
    /// again has lost both its bytes and the bits that would tell of it.
    CleanZero,
}

/// A range of a disk with its kind. `offset` and `length` are in bytes; `length` is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts on the disk.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

impl Extent {
    /// The first byte behind it.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// What a block holds.
#[derive(Debug)]
pub enum Content {
    /// The bytes themselves.
    Data(Buffer),
    /// So many bytes of zero.
    Zero(u64),
}

/// A piece of a disk on its way. It starts on a multiple of [`CLUSTER`] and is whole clusters long; only at the disk's end it may be shorter.
#[derive(Debug)]
pub struct Block {
    /// Where it belongs on the disk, in bytes.
    pub offset: u64,
    /// What it holds.
    pub content: Content,
}

impl Block {
    /// How many bytes of the disk it covers.
    pub fn length(&self) -> u64 {
        match &self.content {
            Content::Data(buffer) => buffer.len() as u64,
            Content::Zero(length) => *length,
        }
    }
}

/// Where blocks come from: an NBD export, or a chain of images.
pub trait BlockSource: Send {
    /// Size of the disk, in bytes.
    fn size(&self) -> u64;

    /// The next block, or `None` after the last one. Blocks come in the disk's order and never overlap.
    /// After an error the source is finished.
    fn next_block(&mut self) -> Result<Option<Block>, BlockError>;
}

/// What an incremental image will stand upon, as far as a source has to know it.
pub trait Beneath: Send + Sync + std::fmt::Debug {
    /// The first place of a range, in bytes, at which the disk beneath may hold something else than zero. What cannot be known counts as
    /// something else.
    fn other_than_zero(&self, offset: u64, length: u64) -> Option<u64>;
}

/// Where blocks go: an image, a raw file, a block device.
pub trait BlockSink: Send {
    /// Takes the next block. Blocks come in the disk's order and never overlap; what is never written
    /// reads from the backing image, and as zero where there is none.
    fn write(&mut self, block: Block) -> Result<(), BlockError>;

    /// Brings everything to stable storage and tells what was written. No call may follow.
    fn finish(&mut self) -> Result<Written, BlockError>;
}

/// What a finished sink has written.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Written {
    /// Bytes of data that were stored.
    pub data_bytes: u64,
    /// Bytes that were stored as explicit zeroes.
    pub zero_bytes: u64,
    /// Whether any of the data are stored compressed.
    pub is_compressed: bool,
    /// Length of the file, in bytes; the device's size for a device.
    pub file_bytes: u64,
    /// BLAKE3 digest of the file, in hexadecimal; `None` where a digest makes no sense (raw files and devices).
    pub blake3: Option<String>,
    /// Digests of the file's pieces; `None` where the file has no digest, or is one piece.
    pub pieces: Option<Pieces>,
}

/// Digests of the pieces of a file, to tell where it is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Length of each piece but the last, in bytes: a power of two, at least 1024.
    pub size: u64,
    /// Per piece its BLAKE3 chaining value (section 2.1 of the BLAKE3 paper), at least two.
    pub digests: Vec<[u8; 32]>,
}

/// A file that an image is being written to. The store decides how it reaches the disk (past the page cache where it can).
pub trait ImageFile: Send {
    /// Writes all of `bytes` at `offset`. Address, length and offset are multiples of [`super::buffer::ALIGNMENT`], but for the end of a raw
    /// disk.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the file so many bytes long; what is new reads as zero and takes no space.
    fn set_len(&mut self, length: u64) -> io::Result<()>;

    /// Brings everything written so far to stable storage.
    fn sync(&mut self) -> io::Result<()>;
}

/// What kind of trouble a [`BlockError`] is; the exit code and the hint follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockErrorKind {
    /// The user asked to stop.
    Stopped,
    /// The other side went away, or did not answer before its deadline.
    Lost,
    /// The other side said something that the protocol or the format does not allow.
    Invalid,
    /// What is stored is not what was stored: a digest or a structure is wrong.
    Damaged,
    /// What tells the changes is proved wrong: only a full read gives the disk.
    Distrusted,
    /// The target is full.
    NoSpace,
    /// Anything else that reading or writing came upon.
    Io,
}

/// Trouble at either end of the pump.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct BlockError {
    /// What kind of trouble it is.
    pub kind: BlockErrorKind,
    /// What was being done, with its facts (path, offset).
    pub what: String,
    /// What lies beneath.
    #[source]
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl BlockError {
    /// Trouble with nothing beneath it.
    pub fn new(kind: BlockErrorKind, what: impl Into<String>) -> Self {
        BlockError {
            kind,
            what: what.into(),
            source: None,
        }
    }

    /// Trouble of another room, wrapped.
    pub fn from_source(
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

    /// An I/O error; the kind follows from it.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlockErrorKind::NoSpace,
            _ => BlockErrorKind::Io,
        };
        BlockError::from_source(kind, what, source)
    }

    /// The user asked to stop.
    pub fn stopped() -> Self {
        BlockError::new(BlockErrorKind::Stopped, "stopped on request")
    }
}
