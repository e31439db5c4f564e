//! Finds and compares the clusters that have to be the same on both sides.

use std::sync::Arc;

use super::DEADLINE;
use crate::host::{BackupJob, HostError, ReadOptions};
use crate::model::block::{CLUSTER, Content};
use crate::model::clusters::ClusterSet;
use crate::model::stop::Stop;
use crate::ops::{Cause, copy};
use crate::repo::DiskReader;

/// The clusters of a disk that have to be the same on both sides.
pub(super) struct Differences {
    /// The unchanged clusters that hold data on either side.
    pub(super) unchanged: ClusterSet,
    kept: Arc<dyn DiskReader>,
}

impl Differences {
    /// Finds the clusters to compare. `size_then` is the size of the disk in the restore point, in
    /// bytes; everything beyond it is new.
    pub(super) fn of(
        job: &dyn BackupJob,
        target: &str,
        kept: Arc<dyn DiskReader>,
        size_then: u64,
        stop: &Stop,
    ) -> std::result::Result<Differences, Cause> {
        let map = job.map(target, DEADLINE, stop).map_err(Cause::Host)?;
        let mut unchanged = map.data;
        unchanged.add_all(&kept.data_clusters().map_err(Cause::Copy)?);
        unchanged.remove_all(&map.changed);
        let mut grown = ClusterSet::new(unchanged.disk_size());
        if size_then < grown.disk_size() {
            grown.add(size_then, u64::MAX);
        }
        unchanged.remove_all(&grown);
        Ok(Differences { unchanged, kept })
    }

    /// Reads each cluster from both sides, and passes its offset to `report`, with whether both
    /// sides are the same. An error of `report` ends the comparison.
    pub(super) fn each(
        &self,
        job: &dyn BackupJob,
        target: &str,
        stop: &Stop,
        mut report: impl FnMut(u64, bool) -> std::result::Result<(), Cause>,
    ) -> std::result::Result<(), Cause> {
        let options = ReadOptions {
            changes_only: false,
            only: Some(Arc::new(self.unchanged.clone())),
            all_from: None,
            beneath: None,
            pool: copy::pool(),
            deadline: DEADLINE,
            stop: stop.clone(),
        };
        let mut live = job
            .open(target, &options)
            .map_err(|error: HostError| Cause::Host(error))?;
        let zeroes = vec![0; CLUSTER as usize];
        while let Some(block) = live.next_block().map_err(Cause::Copy)? {
            let length = usize::try_from(block.length()).unwrap_or(usize::MAX);
            for start in (0..length).step_by(CLUSTER as usize) {
                let count = (length - start).min(CLUSTER as usize);
                let now = match &block.content {
                    Content::Data(bytes) => &bytes[start..start + count],
                    Content::Zero(_) => &zeroes[..count],
                };
                let offset = block.offset + start as u64;
                let is_same = self.kept.holds(now, offset).map_err(Cause::Copy)?;
                report(offset, is_same)?;
            }
        }
        Ok(())
    }
}
