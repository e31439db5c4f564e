//! The recorded length and digests of a file.

use crate::model::block::Pieces;

/// The length and digests that were recorded for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Length of the file in bytes.
    pub bytes: u64,
    /// BLAKE3 of the whole file, in hexadecimal.
    pub blake3: String,
    /// The digests of its pieces, if any were recorded.
    pub pieces: Option<Pieces>,
}
