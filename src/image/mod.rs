//! Images in qcow2 and raw format: writers and readers.
//!
//! [`qcow2::Qcow2Writer`] turns blocks into an image, and [`raw::RawWriter`] turns them into a
//! plain disk. [`chain::ChainSource`] turns a chain of images back into blocks, and verifies every
//! image that has a recorded digest.

use std::io;
use std::path::{Path, PathBuf};

use crate::model::block::{BlockError, BlockErrorKind};
use crate::model::text::bytes;

pub mod chain;
pub mod digest;
pub mod qcow2;
pub mod raw;

mod behind;
mod cache;
mod order;
mod pieces;
mod recorded;
mod sequential;
mod stored;
mod whole;
mod zero;

#[cfg(test)]
mod continuations;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod samples;

pub(crate) use digest::damaged_ranges;
pub use digest::file_digest;
pub(crate) use order::Order;
pub use stored::StoredFile;
pub(crate) use whole::verify_file;
pub(crate) use zero::is_zero;

/// The result of functions in this module.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of reading or writing images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A stop was requested.
    #[error("stopped on request")]
    Stopped,
    /// A file could not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An operation on a file as a whole failed.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// The operation, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file could not be read, written or zeroed at an offset.
    #[error("cannot {operation} {} at offset {offset}", path.display())]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The offset in the file, in bytes.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is shorter than its content requires.
    #[error("{} ends before offset {offset}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The offset up to which bytes were expected.
        offset: u64,
    },
    /// A file is not a readable qcow2 image.
    #[error("{} cannot be read as a qcow2 image: fault at offset {offset}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Offset of the faulty header, table, entry or cluster in the file, in bytes; 0 if it is
        /// not known.
        offset: u64,
        /// The fault.
        #[source]
        source: qcow2::layout::Fault,
    },
    /// The length of a file differs from the recorded one.
    #[error("{} is {actual} bytes long, expected {expected}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        actual: u64,
        /// The recorded length in bytes.
        expected: u64,
    },
    /// The digest of a file differs from the recorded one.
    #[error("{} does not match its recorded digest: expected {expected:.16}…, found {actual:.16}…", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// The digest of the bytes that were read: BLAKE3 in hexadecimal.
        actual: String,
        /// The recorded digest.
        expected: String,
    },
    /// The digest of a piece of a file differs from the recorded one.
    #[error("{} does not match its recorded digest somewhere in the {length} bytes starting at offset {offset}", path.display())]
    Piece {
        /// The file.
        path: PathBuf,
        /// Start of the piece, in bytes.
        offset: u64,
        /// Length of the piece, in bytes.
        length: u64,
    },
    /// An image was changed while it was read.
    #[error("{} was changed while it was read: run again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The target is too small for the disk.
    #[error(
        "{} is too small: it has {actual} bytes ({}), and the disk has {needed} bytes ({})",
        path.display(), bytes(*actual), bytes(*needed)
    )]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Its size in bytes.
        actual: u64,
        /// The disk's size in bytes.
        needed: u64,
    },
    /// A qcow2 image cannot hold a disk of this size.
    #[error("cannot make an image for a disk of {size} bytes: {why}")]
    Size {
        /// The disk's size in bytes.
        size: u64,
        /// The reason.
        why: &'static str,
    },
    /// The length of a backing image's name is not allowed.
    #[error("the name of the backing image has {length} bytes, but 1 to {limit} are allowed")]
    BackingName {
        /// Its length in bytes.
        length: usize,
        /// The longest allowed length, in bytes.
        limit: usize,
    },
    /// A block is out of order, not aligned, or outside the disk.
    #[error("block of {length} bytes at offset {offset} is out of place: {why}")]
    Block {
        /// Its start on the disk, in bytes.
        offset: u64,
        /// Its length, in bytes.
        length: u64,
        /// The reason.
        why: &'static str,
    },
    /// A sink was used after its end or after a failure.
    #[error("cannot write to {}: writing has ended or failed earlier", path.display())]
    Closed {
        /// The target.
        path: PathBuf,
    },
    /// A chain has no images.
    #[error("a chain needs at least one image")]
    EmptyChain,
}

impl Error {
    /// The kind of this error, for callers that copy blocks.
    pub fn kind(&self) -> BlockErrorKind {
        match self {
            Error::Stopped => BlockErrorKind::Stopped,
            Error::Open { source, .. } | Error::File { source, .. } | Error::Io { source, .. } => {
                BlockError::io("", io::Error::from(source.kind())).kind
            }
            Error::Format { source, .. } if source.is_unsupported() => BlockErrorKind::Invalid,
            Error::Format { .. }
            | Error::Truncated { .. }
            | Error::Length { .. }
            | Error::Digest { .. }
            | Error::Piece { .. } => BlockErrorKind::Damaged,
            Error::TooSmall { .. } => BlockErrorKind::NoSpace,
            Error::Size { .. } | Error::BackingName { .. } | Error::Block { .. } | Error::EmptyChain => {
                BlockErrorKind::Invalid
            }
            Error::Closed { .. } | Error::Changed { .. } => BlockErrorKind::Io,
        }
    }

    /// Creates the error of an operation on a file as a whole.
    pub fn of_file(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Error::File {
            operation,
            path: path.to_owned(),
            source,
        }
    }

    /// Creates the error of an operation at an offset.
    pub fn io(operation: &'static str, path: &Path, offset: u64, source: io::Error) -> Self {
        Error::Io {
            operation,
            path: path.to_owned(),
            offset,
            source,
        }
    }
}

impl From<Error> for BlockError {
    fn from(error: Error) -> Self {
        let kind = error.kind();
        let what = error.to_string();
        // The message is copied, so the cause is passed on without the error itself: nothing is
        // printed twice.
        match error {
            Error::Open { source, .. } | Error::File { source, .. } | Error::Io { source, .. } => {
                BlockError::from_source(kind, what, source)
            }
            Error::Format { source, .. } => BlockError::from_source(kind, what, source),
            _ => BlockError::new(kind, what),
        }
    }
}

/// Fills all of `out` from `offset` of the file.
fn read_exact_at(file: &StoredFile, path: &Path, out: &mut [u8], offset: u64) -> Result<()> {
    match file.read_exact_at(out, offset) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::Truncated {
            path: path.to_owned(),
            offset: offset.saturating_add(out.len() as u64),
        }),
        Err(error) => Err(Error::io("read", path, offset, error)),
    }
}
