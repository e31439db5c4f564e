//! A backup job of the simulated hypervisor.

use std::collections::BTreeMap;
use std::time::Duration;

use super::SimHost;
use crate::host::{
    BackupJob, BackupRequest, Host, HostError, JobHealth, NewCheckpoint, ReadOptions, Refusal, Result,
};
use crate::model::block::{Block, BlockError, BlockErrorKind, BlockSource, CLUSTER, Content};
use crate::model::buffer::Buffer;
use crate::model::clusters::{ClusterSet, DiskMap};
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::restore_point::Consistency;
use crate::model::stop::Stop;
use crate::testkit::disk::MemDisk;

/// A job of [`SimHost`]: the disks as they were when it began. Dropping it unfinished aborts it.
pub(super) struct SimJob {
    pub(super) host: SimHost,
    pub(super) domain: Domain,
    pub(super) request: BackupRequest,
    pub(super) frozen: BTreeMap<String, MemDisk>,
    pub(super) checkpoint: Option<NewCheckpoint>,
    pub(super) fail_reads_after: Option<u64>,
    pub(super) ended: bool,
}

/// A job on these disks that is not registered with the domain, for reading only.
pub(super) fn job_on(
    host: &SimHost,
    domain: &Domain,
    request: BackupRequest,
    frozen: BTreeMap<String, MemDisk>,
) -> SimJob {
    SimJob {
        host: host.clone(),
        domain: domain.clone(),
        request,
        frozen,
        checkpoint: None,
        fail_reads_after: host.fails_reads_after(),
        ended: true,
    }
}

impl SimJob {
    fn end(&mut self, keep_checkpoint: bool) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let _ = self.host.abort_job(&self.domain);
        // The order of a real one: first the process that holds the images ends.
        if let (false, Some(checkpoint)) = (keep_checkpoint, &self.checkpoint) {
            let _ = self.host.delete_checkpoint(&self.domain, &checkpoint.id.name);
        }
    }

    fn frozen(&self, target: &str) -> Result<&MemDisk> {
        self.frozen.get(target).ok_or_else(|| {
            Refusal::NotInJob {
                disk: target.to_owned(),
            }
            .into()
        })
    }
}

impl BackupJob for SimJob {
    fn checkpoint(&self) -> Option<&NewCheckpoint> {
        self.checkpoint.as_ref()
    }

    fn consistency(&self) -> Consistency {
        Consistency::Crash
    }

    fn findings(&self) -> Vec<Finding> {
        Vec::new()
    }

    fn disk_size(&self, target: &str, _deadline: Duration, _stop: &Stop) -> Result<u64> {
        Ok(self.frozen(target)?.bytes().len() as u64)
    }

    fn map(&self, target: &str, _deadline: Duration, _stop: &Stop) -> Result<DiskMap> {
        let disk = self.frozen(target)?;
        let size = disk.bytes().len() as u64;
        let mut map = DiskMap {
            changed: ClusterSet::new(size),
            data: ClusterSet::new(size),
        };
        let since = self.request.disks.iter().find(|disk| disk.target == target);
        let dirty = since.and_then(|since| disk.dirty(since.since.as_deref()?));
        for (index, bytes) in disk.bytes().chunks(CLUSTER as usize).enumerate() {
            let offset = index as u64 * CLUSTER;
            if bytes.iter().any(|byte| *byte != 0) {
                map.data.add(offset, CLUSTER);
            }
            if dirty.is_some_and(|dirty| dirty[index]) {
                map.changed.add(offset, CLUSTER);
            }
        }
        Ok(map)
    }

    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>> {
        let disk = self.frozen(target)?;
        let since = self.request.disks.iter().find(|disk| disk.target == target);
        let since = since.and_then(|disk| disk.since.as_deref());
        let mut wanted = match (options.changes_only, since) {
            (true, Some(bitmap)) => disk.dirty(bitmap).unwrap_or_default().to_vec(),
            (true, None) => {
                return Err(Refusal::RequestedInFull {
                    disk: target.to_owned(),
                }
                .into());
            }
            (false, _) => vec![true; disk.bytes().len().div_ceil(CLUSTER as usize)],
        };
        if let Some(only) = &options.only {
            wanted.fill(false);
            only.offsets()
                .for_each(|offset| wanted[(offset / CLUSTER) as usize] = true);
        }
        if let Some(from) = options.all_from {
            let first = (from / CLUSTER) as usize;
            wanted[first..].fill(true);
        }
        Ok(Box::new(SimSource {
            bytes: disk.bytes().to_vec(),
            wanted,
            next: 0,
            options: options.clone(),
            fail_after: self.fail_reads_after,
        }))
    }

    fn health(&self) -> Result<JobHealth> {
        Ok(if self.host.has_job(&self.domain.name) {
            JobHealth::Good
        } else {
            JobHealth::Gone("it was aborted".to_owned())
        })
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Finding>> {
        let fails = self.host.fails_to_end();
        if fails {
            return Err(HostError::Libvirt {
                operation: "end the job".to_owned(),
                code: 38,
                message: "simulated".to_owned(),
            });
        }
        // As with libvirt: a domain that is gone cannot be asked.
        self.host.active_job(&self.domain)?;
        self.end(true);
        Ok(Vec::new())
    }

    fn abort(mut self: Box<Self>) -> Vec<Finding> {
        if self.host.fails_to_end() {
            self.ended = true;
            return vec![Finding::new("job-not-ended", "simulated")];
        }
        self.end(false);
        Vec::new()
    }
}

impl Drop for SimJob {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Reads the wanted clusters of a frozen disk, two neighbours at a time. Like the real source, it
/// returns blocks that are longer than a buffer of its pool.
struct SimSource {
    bytes: Vec<u8>,
    wanted: Vec<bool>,
    next: usize,
    options: ReadOptions,
    fail_after: Option<u64>,
}

impl SimSource {
    /// The bytes of a cluster; the last one may be short.
    fn cluster(&self, number: usize) -> &[u8] {
        let start = number * CLUSTER as usize;
        &self.bytes[start..self.bytes.len().min(start + CLUSTER as usize)]
    }

    fn is_past_failure(&self, cluster: usize) -> bool {
        let limit = self.fail_after;
        limit.is_some_and(|limit| cluster as u64 * CLUSTER >= limit)
    }

    /// Returns this cluster of data and the next one, if the next one is also wanted and data.
    fn pair(&self, first: usize) -> Option<Buffer> {
        let second = first + 1;
        let is_wanted = self.wanted.get(second) == Some(&true) && !self.is_past_failure(second);
        if !is_wanted || is_zero(self.cluster(second)) {
            return None;
        }
        let bytes = [self.cluster(first), self.cluster(second)].concat();
        let mut buffer = Buffer::alone(bytes.len());
        buffer.set_len(bytes.len());
        buffer.copy_from_slice(&bytes);
        Some(buffer)
    }

    /// Like the real source, checks that unchanged clusters of zero are zero beneath.
    fn check_beneath(&self, first: usize, end: usize) -> std::result::Result<(), BlockError> {
        let Some(beneath) = &self.options.beneath else {
            return Ok(());
        };
        for cluster in first..end {
            let bytes = self.cluster(cluster);
            let (start, length) = (cluster as u64 * CLUSTER, bytes.len() as u64);
            if is_zero(bytes) && beneath.other_than_zero(start, length).is_some() {
                return Err(BlockError::new(
                    BlockErrorKind::Distrusted,
                    "the simulated bitmap is wrong",
                ));
            }
        }
        Ok(())
    }
}

impl BlockSource for SimSource {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn next_block(&mut self) -> std::result::Result<Option<Block>, BlockError> {
        let Some(ahead) = self.wanted[self.next..].iter().position(|wanted| *wanted) else {
            self.check_beneath(self.next, self.wanted.len())?;
            return Ok(None);
        };
        self.check_beneath(self.next, self.next + ahead)?;
        let cluster = self.next + ahead;
        let offset = (cluster * CLUSTER as usize) as u64;
        if self.is_past_failure(cluster) {
            return Err(BlockError::new(
                BlockErrorKind::Lost,
                "the simulated export is gone",
            ));
        }
        let bytes = self.cluster(cluster);
        if is_zero(bytes) {
            let length = bytes.len() as u64;
            self.next = cluster + 1;
            return Ok(Some(Block {
                offset,
                content: Content::Zero(length),
            }));
        }
        if let Some(buffer) = self.pair(cluster) {
            self.next = cluster + 2;
            return Ok(Some(Block {
                offset,
                content: Content::Data(buffer),
            }));
        }
        self.next = cluster + 1;
        let mut buffer = loop {
            if self.options.stop.requested() {
                return Err(BlockError::stopped());
            }
            if let Some(buffer) = self.options.pool.take_within(Duration::from_millis(50)) {
                break buffer;
            }
        };
        let bytes = self.cluster(cluster);
        buffer.set_len(bytes.len());
        buffer.copy_from_slice(bytes);
        Ok(Some(Block {
            offset,
            content: Content::Data(buffer),
        }))
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
