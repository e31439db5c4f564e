//! The checkpoints and bitmaps that a scrub finds in a domain.

use super::DiskBitmap;
use crate::model::checkpoint::Checkpoint;

/// The checkpoints and bitmaps of a domain, as far as they can be known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its checkpoints, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// The bitmaps that are known to be there, in the order of the disks.
    pub bitmaps: Vec<DiskBitmap>,
    /// Names of bitmaps that may exist although they cannot be listed. Restore points and
    /// unfinished runs recorded these names.
    pub recorded: Vec<String>,
    /// Whether the bitmaps of all images could be listed. If so, no checkpoint has unknown bitmaps.
    pub bitmaps_known: bool,
}
