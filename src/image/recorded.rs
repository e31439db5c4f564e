//! What was recorded of a file when it was made.

use crate::model::block::Pieces;

/// The length and digests that were recorded when a file was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Length of the file in bytes.
    pub bytes: u64,
    /// BLAKE3 of the whole file, in hexadecimal.
    pub blake3: String,
    /// The digests of its pieces, if it has several.
    pub pieces: Option<Pieces>,
}
