//! What a scrub finds of a domain.

use super::DiskBitmap;
use crate::model::checkpoint::Checkpoint;

/// The checkpoints and bitmaps of a domain, as far as they can be known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its checkpoints, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// The bitmaps that are known to be there, in the order of the disks.
    pub bitmaps: Vec<DiskBitmap>,
    /// Names that further bitmaps may have, of which nobody lists them: what restore points and unfinished runs recorded.
    pub recorded: Vec<String>,
    /// Whether all images have told their bitmaps. If so, a checkpoint has no others than the known ones.
    pub images_told: bool,
}
