//! A window: a range of the disk that would be one block, with what was written to it.

use crate::image::is_zero;
use crate::model::block::CLUSTER;

/// What was written to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    No,
    Zero,
    Data,
}

/// A window with its bytes.
pub(super) struct Window {
    start: u64,
    bytes: Vec<u8>,
    clusters: Vec<Touched>,
}

/// Clusters of a window that lie one after another and are of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The first cluster in the window.
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) kind: Touched,
}

impl Window {
    /// An untouched window, in a buffer with any content. `start` is a multiple of the window's
    /// largest length.
    pub(super) fn new(start: u64, length: u64, mut buffer: Vec<u8>) -> Window {
        buffer.clear();
        buffer.resize(length as usize, 0);
        Window {
            start,
            bytes: buffer,
            clusters: vec![Touched::No; length.div_ceil(CLUSTER) as usize],
        }
    }

    /// Its start on the disk, in bytes.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Its first cluster on the disk.
    pub(super) fn first_cluster(&self) -> u64 {
        self.start / CLUSTER
    }

    /// The number of its clusters.
    pub(super) fn clusters(&self) -> usize {
        self.clusters.len()
    }

    /// What was written to the cluster with this offset.
    pub(super) fn touched(&self, at: u64) -> Touched {
        let cluster = at.checked_sub(self.start).map(|within| within / CLUSTER);
        let cluster = cluster.and_then(|cluster| self.clusters.get(cluster as usize));
        cluster.copied().unwrap_or(Touched::No)
    }

    /// Records data that was written. Clusters of zeroes are recognised.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        let within = (at - self.start) as usize;
        self.bytes[within..within + bytes.len()].copy_from_slice(bytes);
        let first = within / CLUSTER as usize;
        for (number, cluster) in bytes.chunks(CLUSTER as usize).enumerate() {
            let kind = match is_zero(cluster) {
                true => Touched::Zero,
                false => Touched::Data,
            };
            self.clusters[first + number] = kind;
        }
    }

    /// Records zeroes that were written.
    pub(super) fn clear(&mut self, at: u64, end: u64) {
        let first = ((at - self.start) / CLUSTER) as usize;
        let end = (end - self.start).div_ceil(CLUSTER) as usize;
        self.clusters[first..end].fill(Touched::Zero);
    }

    /// The number of bytes of a stretch.
    pub(super) fn length(&self, stretch: &Stretch) -> u64 {
        let start = stretch.first * CLUSTER as usize;
        let end = self
            .bytes
            .len()
            .min((stretch.first + stretch.count) * CLUSTER as usize);
        (end - start) as u64
    }

    /// Its stretches in order.
    pub(super) fn stretches(&self) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        for (number, kind) in self.clusters.iter().enumerate() {
            match stretches.last_mut() {
                Some(last) if last.kind == *kind => last.count += 1,
                _ => stretches.push(Stretch {
                    first: number,
                    count: 1,
                    kind: *kind,
                }),
            }
        }
        stretches
    }

    /// The bytes of its data clusters, one after another.
    pub(super) fn into_data(mut self) -> Vec<u8> {
        let mut length = 0;
        for (number, kind) in self.clusters.iter().enumerate() {
            if *kind == Touched::Data {
                let start = number * CLUSTER as usize;
                let end = self.bytes.len().min(start + CLUSTER as usize);
                if start != length {
                    self.bytes.copy_within(start..end, length);
                }
                length += end - start;
            }
        }
        self.bytes.truncate(length);
        self.bytes
    }
}
