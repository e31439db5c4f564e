//! A job that reads and writes the disks of a shut-off domain.

use std::time::Duration;

use super::{DiskRequest, JobHealth, Places, ReadOptions, Result};
use crate::model::block::{BlockSink, BlockSource};
use crate::model::clusters::DiskMap;
use crate::model::finding::Finding;
use crate::model::stop::Stop;

/// A request to open disks of a shut-off domain for reading and writing.
#[derive(Clone, Debug)]
pub struct RewriteRequest {
    /// The disks. Their `checkpointed` is ignored, because no checkpoint is made.
    pub disks: Vec<DiskRequest>,
    /// The checkpoint that was made with the backup of the present state, if there is one. Its
    /// bitmaps show whether a disk was written to since then ([`RewriteJob::is_changed`]).
    pub witness: Option<String>,
    /// The paths of the sockets and their folder.
    pub places: Places,
    /// Ends the work when the user asks to stop (Ctrl-C, SIGTERM or SIGHUP).
    pub stop: Stop,
}

/// Disks of a shut-off domain that are open for reading and writing.
///
/// Dropping an unfinished job closes the disks; what was written stays.
pub trait RewriteJob: Send + Sync {
    /// Returns the size of a disk of the job in bytes.
    fn disk_size(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<u64>;

    /// Returns the map of data and changes of a disk of the job, without reading the disk.
    ///
    /// The map of a disk that was requested without a checkpoint has no changes.
    fn map(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<DiskMap>;

    /// Whether a disk of the job was written to since the witness was made, by the guest or by the
    /// job. `None` if the disk has no usable bitmap of the witness.
    fn is_changed(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<Option<bool>>;

    /// Opens a disk of the job for reading.
    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>>;

    /// Opens a disk of the job for writing. Ranges that are not written stay as they are. Finishing
    /// the sink makes the writes durable.
    fn sink(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<Box<dyn BlockSink>>;

    /// Checks whether the job is still usable.
    fn health(&self) -> Result<JobHealth>;

    /// Closes the disks. Returns findings, for example about a file that could not be removed.
    ///
    /// # Errors
    /// A disk could not be closed, so the last writes may be lost.
    fn finish(self: Box<Self>) -> Result<Vec<Finding>>;
}
