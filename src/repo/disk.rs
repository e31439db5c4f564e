//! A disk at a restore point, with random access.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use crate::model::block::{Beneath, BlockError, BlockErrorKind, CLUSTER};
use crate::model::clusters::ClusterSet;

/// How a range of a disk is stored at a restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Data, stored in the restore point itself or in one that it depends on.
    Data {
        /// The number of steps back in the chain; 0 is the restore point itself.
        depth: usize,
    },
    /// The range reads as zero.
    Zero,
}

/// A range of a stored disk, and how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredExtent {
    /// Its start on the disk, in bytes.
    pub offset: u64,
    /// Its length in bytes; never 0.
    pub length: u64,
    /// How it is stored.
    pub stored: Stored,
}

/// A disk at a restore point, with random access from several threads at once.
///
/// Reading fails after a request to stop. [`DiskReader::extent_at`] and [`DiskReader::holds`] check
/// no digest, because that could mean reading gigabytes. Bytes that [`DiskReader::holds`] finds
/// equal need no check, because the caller already has them. A caller that relies on extents of
/// zeroes must use [`DiskReader::verified_extent_at`].
pub trait DiskReader: Send + Sync + Debug {
    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// The extent at `offset`; `None` at the disk's end and beyond. Two adjacent extents may be
    /// stored in the same way.
    ///
    /// # Errors
    /// Reading failed, or a stop was requested.
    fn extent_at(&self, offset: u64) -> Result<Option<StoredExtent>, BlockError>;

    /// The same as [`DiskReader::extent_at`], but only from tables whose digests were verified. If
    /// a file has no digests of its pieces, the first call reads the whole file.
    ///
    /// # Errors
    /// The errors of [`DiskReader::read_at`].
    fn verified_extent_at(&self, offset: u64) -> Result<Option<StoredExtent>, BlockError>;

    /// Fills `out` with the disk's bytes from `offset` on. Bytes beyond the disk's end are zero.
    /// Only bytes with a correct digest are returned.
    ///
    /// # Errors
    /// [`crate::model::block::BlockErrorKind::Damaged`] if the stored bytes have changed; other
    /// kinds if reading failed or a stop was requested.
    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), BlockError>;

    /// Whether the disk holds these bytes from `offset` on. Bytes beyond the disk's end count as
    /// zero. Damaged content counts as a difference.
    ///
    /// # Errors
    /// Reading failed, damage hides where the content is stored, or a stop was requested.
    fn holds(&self, bytes: &[u8], offset: u64) -> Result<bool, BlockError>;
}

impl dyn DiskReader + '_ {
    /// The extents of a range, up to the disk's end. The iterator ends after an error.
    pub fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Result<StoredExtent, BlockError>> {
        extents(range, |offset| self.extent_at(offset))
    }

    /// The extents of a range, from tables whose digests were verified. The iterator ends after an
    /// error.
    pub(crate) fn verified_extents(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = Result<StoredExtent, BlockError>> {
        extents(range, |offset| self.verified_extent_at(offset))
    }

    /// The clusters that hold data.
    ///
    /// # Errors
    /// The errors of [`DiskReader::extent_at`].
    pub(crate) fn data_clusters(&self) -> Result<ClusterSet, BlockError> {
        with_data(self.size(), self.extents(0..self.size()))
    }

    /// The clusters that hold data, from tables whose digests were verified.
    ///
    /// # Errors
    /// The errors of [`DiskReader::verified_extent_at`].
    pub(crate) fn verified_data_clusters(&self) -> Result<ClusterSet, BlockError> {
        with_data(self.size(), self.verified_extents(0..self.size()))
    }

    /// The offset in bytes of the first cluster with data, starting with the cluster of `offset`.
    ///
    /// # Errors
    /// The errors of [`DiskReader::extent_at`].
    pub(crate) fn data_from(&self, offset: u64) -> Result<Option<u64>, BlockError> {
        for extent in self.extents(offset - offset % CLUSTER..self.size()) {
            let extent = extent?;
            if extent.stored != Stored::Zero {
                return Ok(Some(extent.offset - extent.offset % CLUSTER));
            }
        }
        Ok(None)
    }
}

/// The extents of a range, one after another, as `find` finds them. Ends after an error.
fn extents(
    range: Range<u64>,
    find: impl Fn(u64) -> Result<Option<StoredExtent>, BlockError>,
) -> impl Iterator<Item = Result<StoredExtent, BlockError>> {
    let mut at = Some(range.start);
    std::iter::from_fn(move || {
        let start = at.filter(|start| *start < range.end)?;
        let found = find(start).transpose()?;
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

/// The clusters of a disk of this size in which these extents hold data.
fn with_data(
    size: u64,
    extents: impl Iterator<Item = Result<StoredExtent, BlockError>>,
) -> Result<ClusterSet, BlockError> {
    let mut data = ClusterSet::new(size);
    for extent in extents {
        let extent = extent?;
        if extent.stored != Stored::Zero {
            data.add(extent.offset, extent.length);
        }
    }
    Ok(data)
}

/// A stored disk that is the parent of an incremental one.
#[derive(Clone, Debug)]
pub(crate) struct ParentDisk(pub Arc<dyn DiskReader>);

impl Beneath for ParentDisk {
    fn other_than_zero(&self, offset: u64, length: u64) -> Option<u64> {
        let end = offset.saturating_add(length).min(self.0.size());
        let mut at = offset;
        while at < end {
            match self.0.extent_at(at) {
                Ok(Some(extent)) if extent.stored == Stored::Zero => at = at.saturating_add(extent.length),
                Ok(None) => return None,
                // The copy checks the same stop, so nothing is committed.
                Err(error) if error.kind == BlockErrorKind::Stopped => return None,
                // Content that cannot be read may be other than zero.
                Ok(Some(_)) | Err(_) => return Some(at),
            }
        }
        None
    }
}
