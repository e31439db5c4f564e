//! The writer and its reader: images in qcow2 and raw.
//!
//! Blocks become an image in [`qcow2::Qcow2Writer`] or a plain disk in [`raw::RawWriter`]; a chain of images becomes
//! blocks again in [`chain::ChainSource`], which checks every byte of every image on the way.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::model::block::{BlockError, BlockErrorKind};

pub mod chain;
pub mod digest;
pub mod qcow2;
pub mod raw;

mod behind;
mod cache;
mod order;
mod pieces;
mod sequential;
mod whole;
mod zero;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod samples;

pub use digest::{damaged_ranges, file_digest};
pub use whole::verify_file;

/// Result of everything in this room.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user asked to stop.
    #[error("stopped on request")]
    Stopped,
    /// A file could not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {operation} {} at offset {offset}", path.display())]
    Io {
        /// What was being done, as a verb.
        operation: &'static str,
        /// To which path.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file ends before its content does.
    #[error("{} ends before offset {offset}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Up to where bytes were expected.
        offset: u64,
    },
    /// The bytes are not those of an image that can be read.
    #[error("{} cannot be read as a qcow2 image: fault at offset {offset}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in the file the fault lies, in bytes.
        offset: u64,
        /// What is wrong.
        #[source]
        source: qcow2::layout::Fault,
    },
    /// A file has not the length that was recorded.
    #[error("{} is {actual} bytes long, recorded were {expected}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        actual: u64,
        /// The recorded length in bytes.
        expected: u64,
    },
    /// A file has not the digest that was recorded.
    #[error("{} is not what was written: its digest is {actual:.16}…, recorded was {expected:.16}…", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// BLAKE3 of what was read, in hexadecimal.
        actual: String,
        /// The recorded digest.
        expected: String,
    },
    /// A piece of a file has not the digest that was recorded.
    #[error("{}: it differs somewhere in the {length} bytes from offset {offset} on", path.display())]
    Piece {
        /// The file.
        path: PathBuf,
        /// Where the piece begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: u64,
    },
    /// The target has not room for the disk.
    #[error("{} has {actual} bytes, the disk needs {needed}", path.display())]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Its size in bytes.
        actual: u64,
        /// The disk's size in bytes.
        needed: u64,
    },
    /// A disk of this size cannot be written as such an image.
    #[error("cannot make an image for a disk of {size} bytes: {why}")]
    Size {
        /// The disk's size in bytes.
        size: u64,
        /// What stands in the way.
        why: &'static str,
    },
    /// The name of a backing image does not fit into a header.
    #[error("the backing name is {length} bytes long, the limit is {limit} and it may not be empty")]
    BackingName {
        /// Its length in bytes.
        length: usize,
        /// The most bytes it may have.
        limit: usize,
    },
    /// A block that does not follow the one before, or does not fit the disk.
    #[error("block of {length} bytes at offset {offset} is out of place: {why}")]
    Block {
        /// Where it starts on the disk.
        offset: u64,
        /// How long it is.
        length: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A sink was used after its end, or after a failure.
    #[error("{} is written no further: it was finished or has failed", path.display())]
    Closed {
        /// The target.
        path: PathBuf,
    },
    /// A chain of no images at all.
    #[error("a chain needs at least one image")]
    EmptyChain,
}

impl Error {
    /// What kind of trouble it is at the end of the pump.
    pub fn kind(&self) -> BlockErrorKind {
        match self {
            Error::Stopped => BlockErrorKind::Stopped,
            Error::Open { source, .. } | Error::Io { source, .. } => {
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
            Error::Closed { .. } => BlockErrorKind::Io,
        }
    }

    /// An I/O error with its place.
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
        // The message is taken over, so what lies beneath is handed on and not the error itself: nothing is said twice.
        match error {
            Error::Open { source, .. } | Error::Io { source, .. } => {
                BlockError::from_source(kind, what, source)
            }
            Error::Format { source, .. } => BlockError::from_source(kind, what, source),
            _ => BlockError::new(kind, what),
        }
    }
}

/// Fills all of `out` from `offset` of the file.
fn read_exact_at(file: &File, path: &Path, out: &mut [u8], offset: u64) -> Result<()> {
    match file.read_exact_at(out, offset) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::Truncated {
            path: path.to_owned(),
            offset: offset.saturating_add(out.len() as u64),
        }),
        Err(error) => Err(Error::io("read", path, offset, error)),
    }
}
