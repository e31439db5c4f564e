//! A disk at a restore point, read anywhere.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use crate::model::block::{Beneath, BlockError, BlockErrorKind, CLUSTER};
use crate::model::clusters::ClusterSet;

/// What a range of a stored disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Bytes, kept by the restore point so many steps back: 0 is the restore point itself.
    Data {
        /// The number of steps.
        depth: usize,
    },
    /// It reads as zero.
    Zero,
}

/// A range of a stored disk and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredExtent {
    /// Where it starts on the disk, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; never 0.
    pub length: u64,
    /// What it holds.
    pub stored: Stored,
}

/// A disk at a restore point, read anywhere and by several threads at once. It looks at the wish to
/// stop with which it was opened.
///
/// [`DiskReader::extent_at`] and [`DiskReader::holds`] check no digest. A digest can cover gigabytes of
/// a large disk, and their callers do not need it: a caller that compares already has the right bytes.
pub trait DiskReader: Send + Sync + Debug {
    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// What the disk holds from `offset` on; `None` at its end and beyond. Neighbouring extents may
    /// hold the same.
    ///
    /// # Errors
    /// When that cannot be read, or the wish to stop came.
    fn extent_at(&self, offset: u64) -> Result<Option<StoredExtent>, BlockError>;

    /// Fills `out` with what the disk holds from `offset` on; what lies beyond its end is zero.
    /// Only bytes whose digest was found right are given.
    ///
    /// # Errors
    /// [`crate::model::block::BlockErrorKind::Damaged`] when they are not what was written; others
    /// when they cannot be read, or the wish to stop came.
    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), BlockError>;

    /// Whether the disk holds these bytes from `offset` on; what lies beyond its end is zero. A
    /// stored byte that is damaged shows as a difference.
    ///
    /// # Errors
    /// When it cannot be read, or the wish to stop came.
    fn holds(&self, bytes: &[u8], offset: u64) -> Result<bool, BlockError>;
}

impl dyn DiskReader + '_ {
    /// What a range holds, extent by extent. The iterator ends with the disk, or after an error.
    pub fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Result<StoredExtent, BlockError>> {
        let mut at = Some(range.start);
        std::iter::from_fn(move || {
            let start = at.filter(|start| *start < range.end)?;
            let found = self.extent_at(start).transpose()?;
            at = found
                .as_ref()
                .ok()
                .map(|extent| start.saturating_add(extent.length));
            Some(found.map(|extent| StoredExtent {
                length: extent.length.min(range.end - start),
                ..extent
            }))
        })
    }

    /// The clusters that hold data.
    ///
    /// # Errors
    /// As [`DiskReader::extent_at`].
    pub fn data_clusters(&self) -> Result<ClusterSet, BlockError> {
        let mut data = ClusterSet::new(self.size());
        for extent in self.extents(0..self.size()) {
            let extent = extent?;
            if extent.stored != Stored::Zero {
                data.add(extent.offset, extent.length);
            }
        }
        Ok(data)
    }

    /// The first cluster from that of `offset` on that holds data, by its offset in bytes.
    ///
    /// # Errors
    /// As [`DiskReader::extent_at`].
    pub fn data_from(&self, offset: u64) -> Result<Option<u64>, BlockError> {
        for extent in self.extents(offset - offset % CLUSTER..self.size()) {
            let extent = extent?;
            if extent.stored != Stored::Zero {
                return Ok(Some(extent.offset - extent.offset % CLUSTER));
            }
        }
        Ok(None)
    }
}

/// A stored disk that is the parent of an incremental one.
#[derive(Clone, Debug)]
pub struct ParentDisk(pub Arc<dyn DiskReader>);

impl Beneath for ParentDisk {
    fn other_than_zero(&self, offset: u64, length: u64) -> Option<u64> {
        let end = offset.saturating_add(length).min(self.0.size());
        let mut at = offset;
        while at < end {
            match self.0.extent_at(at) {
                Ok(Some(extent)) if extent.stored == Stored::Zero => at = at.saturating_add(extent.length),
                Ok(None) => return None,
                // The copy checks the same request, and nothing is committed.
                Err(error) if error.kind == BlockErrorKind::Stopped => return None,
                // What cannot be read hides what lies there.
                Ok(Some(_)) | Err(_) => return Some(at),
            }
        }
        None
    }
}
