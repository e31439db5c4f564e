//! Disks in memory, cluster by cluster, each cluster with its digest.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Point;
use crate::model::block::{Block, BlockError, BlockErrorKind, BlockSource, CLUSTER, Content, Written};
use crate::model::buffer::Buffer;
use crate::model::stop::Stop;
use crate::repo::{DiskReader, Stored, StoredExtent};

/// The part of a disk that a restore point stores.
#[derive(Clone, Debug, Default)]
pub(super) struct StoredDisk {
    pub(super) size: u64,
    pub(super) clusters: BTreeMap<u64, Cluster>,
}

/// A cluster that a restore point stores.
#[derive(Clone, Debug)]
pub(super) enum Cluster {
    Data { bytes: Vec<u8>, digest: blake3::Hash },
    Zero,
}

impl StoredDisk {
    /// Stores a block, cluster by cluster.
    pub(super) fn take(&mut self, block: &Block) {
        let length = block.length();
        for start in (0..length).step_by(CLUSTER as usize) {
            let end = (start + CLUSTER).min(length);
            let cluster = match &block.content {
                Content::Data(bytes) => Cluster::of(&bytes[start as usize..end as usize]),
                Content::Zero(_) => Cluster::Zero,
            };
            self.clusters.insert((block.offset + start) / CLUSTER, cluster);
        }
    }

    /// All bytes of data.
    pub(super) fn data(&self) -> impl Iterator<Item = &[u8]> {
        self.clusters.values().filter_map(|cluster| match cluster {
            Cluster::Data { bytes, .. } => Some(bytes.as_slice()),
            Cluster::Zero => None,
        })
    }

    /// The totals of a sink that has written it.
    pub(super) fn written(&self) -> Written {
        let mut hasher = blake3::Hasher::new();
        let mut written = Written::default();
        for bytes in self.data() {
            hasher.update(bytes);
            written.data_bytes += bytes.len() as u64;
        }
        for (number, cluster) in &self.clusters {
            if matches!(cluster, Cluster::Zero) {
                written.zero_bytes += CLUSTER.min(self.size.saturating_sub(number * CLUSTER));
            }
        }
        written.file_bytes = written.data_bytes;
        written.blake3 = Some(hasher.finalize().to_hex().to_string());
        written
    }

    pub(super) fn damage(&mut self) {
        let data = self.clusters.values_mut().find_map(|cluster| match cluster {
            Cluster::Data { bytes, .. } => Some(bytes),
            Cluster::Zero => None,
        });
        data.expect("it holds data")[0] ^= 1;
    }

    /// The offsets of the clusters that do not match their digests.
    pub(super) fn damaged(&self) -> impl Iterator<Item = u64> {
        let is_damaged = |(_, cluster): &(&u64, &Cluster)| !cluster.is_sound();
        self.clusters
            .iter()
            .filter(is_damaged)
            .map(|(number, _)| number * CLUSTER)
    }
}

impl Cluster {
    fn of(bytes: &[u8]) -> Cluster {
        match bytes.iter().all(|byte| *byte == 0) {
            true => Cluster::Zero,
            false => Cluster::Data {
                bytes: bytes.to_vec(),
                digest: blake3::hash(bytes),
            },
        }
    }

    fn is_sound(&self) -> bool {
        match self {
            Cluster::Data { bytes, digest } => blake3::hash(bytes) == *digest,
            Cluster::Zero => true,
        }
    }
}

/// A disk at a restore point: the clusters of that restore point and of those that it depends on.
#[derive(Debug)]
pub(super) struct MemoryDisk {
    /// Newest first.
    pub(super) points: Vec<Arc<Point>>,
    pub(super) target: String,
    pub(super) stop: Stop,
}

impl MemoryDisk {
    fn layers(&self) -> impl Iterator<Item = &StoredDisk> {
        self.points.iter().map(|point| &point.disks[&self.target])
    }

    fn damaged(&self, offset: u64) -> BlockError {
        let what = format!(
            "disk {} does not match its digest at offset {offset}",
            self.target
        );
        BlockError::new(BlockErrorKind::Damaged, what)
    }

    fn check_stop(&self) -> Result<(), BlockError> {
        match self.stop.requested() {
            true => Err(BlockError::stopped()),
            false => Ok(()),
        }
    }

    /// Finds the newest copy of a cluster. Returns how many restore points back it is, the cluster,
    /// and how many of its bytes are valid.
    fn find(&self, number: u64) -> Option<(usize, &Cluster, u64)> {
        let mut valid = CLUSTER;
        for (depth, layer) in self.layers().enumerate() {
            // Past the end of a smaller disk it is zero, whatever the older ones hold.
            valid = valid.min(layer.size.saturating_sub(number * CLUSTER));
            if valid == 0 {
                return None;
            }
            if let Some(cluster) = layer.clusters.get(&number) {
                return Some((depth, cluster, valid));
            }
        }
        None
    }

    /// What the newest `layers` restore points store together.
    pub(super) fn merged(mut self, layers: usize) -> Result<StoredDisk, BlockError> {
        self.check_stop()?;
        self.points.truncate(layers);
        let mut merged = StoredDisk {
            size: self.size(),
            ..StoredDisk::default()
        };
        for number in self.layers().flat_map(|layer| layer.clusters.keys()) {
            let cluster = match self.find(*number) {
                Some((_, cluster, _)) if !cluster.is_sound() => return Err(self.damaged(number * CLUSTER)),
                Some((_, Cluster::Data { bytes, .. }, valid)) => {
                    Cluster::of(&bytes[..bytes.len().min(valid as usize)])
                }
                _ => Cluster::Zero,
            };
            if number * CLUSTER < merged.size {
                merged.clusters.insert(*number, cluster);
            }
        }
        Ok(merged)
    }

    fn read(&self, out: &mut [u8], offset: u64, is_checked: bool) -> Result<(), BlockError> {
        self.check_stop()?;
        let mut filled = 0;
        while filled < out.len() {
            let here = offset + filled as u64;
            let within = (here % CLUSTER) as usize;
            let count = (CLUSTER as usize - within).min(out.len() - filled);
            let part = &mut out[filled..filled + count];
            part.fill(0);
            if let Some((_, cluster @ Cluster::Data { bytes, .. }, valid)) = self.find(here / CLUSTER) {
                if is_checked && !cluster.is_sound() {
                    return Err(self.damaged(here - within as u64));
                }
                let there = &bytes[..bytes.len().min(valid as usize)];
                let there = there.get(within..).unwrap_or_default();
                let count = there.len().min(part.len());
                part[..count].copy_from_slice(&there[..count]);
            }
            filled += count;
        }
        Ok(())
    }
}

impl DiskReader for MemoryDisk {
    fn size(&self) -> u64 {
        self.layers().next().map_or(0, |newest| newest.size)
    }

    fn extent_at(&self, offset: u64) -> Result<Option<StoredExtent>, BlockError> {
        self.check_stop()?;
        if offset >= self.size() {
            return Ok(None);
        }
        let stored = match self.find(offset / CLUSTER) {
            Some((depth, Cluster::Data { .. }, _)) => Stored::Data { depth },
            _ => Stored::Zero,
        };
        let length = (CLUSTER - offset % CLUSTER).min(self.size() - offset);
        Ok(Some(StoredExtent {
            offset,
            length,
            stored,
        }))
    }

    fn verified_extent_at(&self, offset: u64) -> Result<Option<StoredExtent>, BlockError> {
        self.extent_at(offset)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), BlockError> {
        self.read(out, offset, true)
    }

    fn holds(&self, bytes: &[u8], offset: u64) -> Result<bool, BlockError> {
        let mut kept = vec![0; bytes.len()];
        self.read(&mut kept, offset, false)?;
        Ok(kept == bytes)
    }
}

/// A [`MemoryDisk`] that is read from front to back.
pub(super) struct MemorySource {
    pub(super) disk: MemoryDisk,
    /// Whether places that none of the restore points stores are skipped.
    pub(super) is_part: bool,
    pub(super) position: u64,
}

impl BlockSource for MemorySource {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn next_block(&mut self) -> Result<Option<Block>, BlockError> {
        while self.is_part
            && self.position < self.disk.size()
            && self.disk.find(self.position / CLUSTER).is_none()
        {
            self.position += CLUSTER;
        }
        let offset = self.position;
        let Some(extent) = self.disk.extent_at(offset)? else {
            let mut damaged = self.disk.layers().flat_map(StoredDisk::damaged);
            return match damaged.next() {
                Some(offset) => Err(self.disk.damaged(offset)),
                None => Ok(None),
            };
        };
        self.position += extent.length;
        let content = match extent.stored {
            Stored::Zero => Content::Zero(extent.length),
            Stored::Data { .. } => {
                let length = extent.length as usize;
                let mut buffer = Buffer::alone(length);
                buffer.set_len(length);
                self.disk.read(&mut buffer[..], offset, false)?;
                Content::Data(buffer)
            }
        };
        Ok(Some(Block { offset, content }))
    }
}
