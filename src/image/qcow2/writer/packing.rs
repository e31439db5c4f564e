//! Where compressed clusters go in the file.
//!
//! They follow each other without gaps, several in one cluster of the file. A plain cluster must
//! begin with a cluster of the file. To leave few gaps, compressed clusters wait in memory while
//! plain ones are written. The wait is limited: a cluster stays near its neighbours on the disk.

use super::Qcow2Writer;
use crate::image::Result;
use crate::image::qcow2::layout::{CompressedCluster, L2Entry};
use crate::model::block::CLUSTER;

/// The most bytes of compressed clusters that wait in memory, and of plain clusters that are
/// written before them.
const LIMIT: usize = 1 << 20;

/// Compressed clusters that have no place in the file yet, or whose place has no end yet.
#[derive(Debug, Default)]
pub(super) struct Bin {
    /// The bytes to write next, at the file's end.
    bytes: Vec<u8>,
    /// The clusters without a place in the file: place on the disk, start in `bytes`, length.
    waiting: Vec<(u64, usize, usize)>,
    /// Whether the first of the bytes belong to a cluster that begins in the file already, so that
    /// nothing else may be written before them.
    is_continued: bool,
    /// Bytes of plain clusters that were written while the first byte waits.
    passed: usize,
}

impl Qcow2Writer {
    /// Stores a cluster in its compressed form, which is shorter than a cluster. `length` is the
    /// number of bytes of the cluster that lie within the disk.
    pub(super) fn store_compressed(&mut self, guest: u64, length: u64, bytes: &[u8]) -> Result<()> {
        self.turn_to_table_of(guest)?;
        self.written.is_compressed = true;
        self.written.data_bytes += length;
        let start = self.bin.bytes.len();
        self.bin.bytes.extend_from_slice(bytes);
        self.bin.waiting.push((guest, start, bytes.len()));
        if self.bin.bytes.len() >= LIMIT {
            self.write_whole_clusters()?;
        }
        Ok(())
    }

    /// Prepares the file's end for this many bytes of plain clusters.
    pub(super) fn before_plain(&mut self, length: usize) -> Result<()> {
        if self.bin.is_continued || self.bin.passed + length > LIMIT {
            self.settle()?;
        }
        if !self.bin.bytes.is_empty() {
            self.bin.passed += length;
        }
        Ok(())
    }

    /// Writes all waiting clusters, and fills up the last cluster of the file.
    pub(super) fn settle(&mut self) -> Result<()> {
        if !self.bin.bytes.is_empty() {
            self.place_waiting();
            let bytes = std::mem::take(&mut self.bin.bytes);
            self.log.append(&bytes)?;
            self.log.pad_cluster()?;
            self.bin.bytes = bytes;
            self.bin.bytes.clear();
        }
        self.bin.is_continued = false;
        self.bin.passed = 0;
        self.write_passed_counts()
    }

    /// Writes the bytes that wait, except a part of a cluster: more can follow without a gap.
    fn write_whole_clusters(&mut self) -> Result<()> {
        self.place_waiting();
        let whole = self.bin.bytes.len() - self.bin.bytes.len() % CLUSTER as usize;
        self.log.append(&self.bin.bytes[..whole])?;
        self.bin.bytes.drain(..whole);
        self.bin.is_continued = !self.bin.bytes.is_empty();
        self.bin.passed = 0;
        Ok(())
    }

    /// Gives each waiting cluster its place at the file's end.
    fn place_waiting(&mut self) {
        let end = self.log.end();
        let waiting = std::mem::take(&mut self.bin.waiting);
        for &(guest, start, length) in &waiting {
            let cluster = CompressedCluster::new(end + start as u64, length as u64);
            self.counts.count(cluster.start, cluster.end);
            // They all belong to the current table: it is written after them.
            self.set_entries(guest, CLUSTER, |_| L2Entry::Compressed(cluster));
        }
        self.bin.waiting = waiting;
        self.bin.waiting.clear();
    }

    /// Writes refcount blocks that are complete.
    pub(super) fn write_passed_counts(&mut self) -> Result<()> {
        while let Some(block) = self.counts.take_passed(self.log.end()) {
            self.counts.count(self.log.end(), self.log.end() + CLUSTER);
            self.log.append(&block)?;
        }
        Ok(())
    }
}
