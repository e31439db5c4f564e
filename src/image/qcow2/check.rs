//! Checks the structure of an image: every table lies in the file, only compressed clusters share a
//! cluster of the file, and the reference counts match the uses.
//!
//! Source: sections "Clusters", "Reference counts" and "Cluster mapping" of QEMU's
//! `docs/interop/qcow2.txt`. Only tables are read, because the file's digest covers the data.

use super::layout::{CompressedCluster, ENTRY_BYTES, L2Entry, parse_l1_entry};
use super::reader::Image;
use super::uses::{Uses, first_overlap};
use crate::image::{Error, Result};
use crate::model::stop::Stop;

/// The largest number of faults that are reported for one image.
pub(crate) const MOST_FAULTS: usize = 20;

/// How much of a table is read at once, in bytes.
const WINDOW: usize = 64 * 1024;

const REFCOUNT_OFFSET_MASK: u64 = !0x1ff;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const L2_OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// How many clusters of the file are counted in one pass over the tables.
const CLUSTERS_AT_ONCE: u64 = 8 << 20;

/// A fault in the structure of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StructureFault {
    /// Offset of the fault in the file, in bytes.
    pub offset: u64,
    /// A description of the fault.
    pub what: String,
}

/// Checks an image whose header could be read. Returns at most [`MOST_FAULTS`] faults; a sound
/// image has none.
///
/// Memory: mainly 2 bytes per cluster of the file, at most 16 MiB. With clusters of 64 KiB, the
/// tables of a file of more than 512 GiB are read several times, once for each 512 GiB, until a
/// fault is found.
///
/// # Errors
/// If the file cannot be read, or a stop was requested.
pub fn check(image: &Image, stop: &Stop) -> Result<Vec<StructureFault>> {
    let clusters = image.file_length().div_ceil(image.header().cluster_size());
    check_by(image, stop, clusters, CLUSTERS_AT_ONCE)
}

/// Checks a file of `clusters` clusters as [`check`] does, and counts `at_once` of them in each
/// pass.
pub(super) fn check_by(
    image: &Image,
    stop: &Stop,
    clusters: u64,
    at_once: u64,
) -> Result<Vec<StructureFault>> {
    let mut first = 0;
    loop {
        let mut check = Check {
            image,
            stop,
            cluster: image.header().cluster_size(),
            clusters,
            used: Uses::new(first..clusters.min(first + at_once)),
            faults: Vec::new(),
        };
        check.header();
        check.mapping()?;
        // Counts are compared after all uses are known, because the refcount tables use
        // clusters too.
        let blocks = check.refcount_table()?;
        check.refcounts(&blocks)?;
        first += at_once;
        if !check.faults.is_empty() || first >= clusters {
            return Ok(check.faults);
        }
    }
}

struct Check<'a> {
    image: &'a Image,
    stop: &'a Stop,
    cluster: u64,
    /// How many clusters the file has.
    clusters: u64,
    used: Uses,
    faults: Vec<StructureFault>,
}

impl Check<'_> {
    fn fault(&mut self, offset: u64, what: impl Into<String>) {
        if self.faults.len() < MOST_FAULTS {
            self.faults.push(StructureFault {
                offset,
                what: what.into(),
            });
        }
    }

    fn is_enough(&self) -> bool {
        self.faults.len() >= MOST_FAULTS
    }

    /// Marks the clusters from `start` on as used; `at` is the offset of the entry that names them.
    /// Returns whether the clusters lie in the file and were unused.
    fn take(&mut self, start: u64, bytes: u64, what: &str, at: u64) -> bool {
        let end = start.checked_add(bytes);
        if !start.is_multiple_of(self.cluster) {
            self.fault(
                at,
                format!(
                    "the reference to {what} points to offset {start}, which is not aligned to a cluster"
                ),
            );
            return false;
        }
        let file = self.image.file_length().next_multiple_of(self.cluster);
        if end.is_none_or(|end| end > file) {
            self.fault(
                at,
                format!(
                    "the reference to {what} points to offset {start}, partly or wholly outside the file"
                ),
            );
            return false;
        }
        for index in start / self.cluster..(start + bytes).div_ceil(self.cluster) {
            if !self.used.take_alone(index) {
                let place = index * self.cluster;
                self.fault(
                    at,
                    format!("the cluster at offset {place} is used twice, the second time for {what}"),
                );
                return false;
            }
        }
        true
    }

    fn header(&mut self) {
        let header = self.image.header();
        if header.snapshots != 0 {
            let what = format!(
                "the number of internal snapshots is {}, expected 0",
                header.snapshots
            );
            self.fault(60, what);
        }
        self.take(0, self.cluster, "the header", 0);
    }

    /// Checks the L1 table, the L2 tables, and the offsets of the data.
    fn mapping(&mut self) -> Result<()> {
        let header = self.image.header();
        let (start, entries) = (header.l1_offset, u64::from(header.l1_entries));
        let tables = header.size.div_ceil(header.table_span());
        if entries == 0 || !self.take(start, entries * ENTRY_BYTES, "the L1 table", 40) {
            return Ok(());
        }
        let mut window = Table::new(self.image, start, entries);
        for index in 0..entries {
            let at = start + index * ENTRY_BYTES;
            let entry = window.entry(index, self.stop)?;
            match parse_l1_entry(entry, self.cluster) {
                Ok(None) => continue,
                Ok(Some(_)) if entry & COPIED == 0 => {
                    self.fault(at, "an L1 entry lacks the copied flag (bit 63)");
                }
                Ok(Some(_)) if index >= tables => {
                    self.fault(at, "an L1 entry maps a range past the end of the disk");
                }
                Ok(Some(table)) => {
                    if self.take(table, self.cluster, "an L2 table", at) {
                        self.l2_table(table)?;
                    }
                }
                Err(fault) => self.fault(at, fault.to_string()),
            }
            if self.is_enough() {
                break;
            }
        }
        Ok(())
    }

    fn l2_table(&mut self, start: u64) -> Result<()> {
        let entries = self.image.header().table_entries();
        let mut window = Table::new(self.image, start, entries);
        let mut compressed = Vec::new();
        for index in 0..entries {
            let entry = window.entry(index, self.stop)?;
            let at = start + index * ENTRY_BYTES;
            if entry & COMPRESSED != 0 {
                compressed.extend(self.compressed(entry, at));
            } else if entry & !(COPIED | L2_OFFSET_MASK | 1) != 0 {
                self.fault(at, format!("L2 entry {entry:#018x} has reserved bits set"));
            } else if entry & L2_OFFSET_MASK != 0 {
                if entry & COPIED == 0 {
                    self.fault(at, "an L2 entry lacks the copied flag (bit 63)");
                }
                self.take(entry & L2_OFFSET_MASK, self.cluster, "data", at);
            }
            if self.is_enough() {
                break;
            }
        }
        if let Some(place) = first_overlap(&mut compressed) {
            self.fault(
                start,
                format!("two compressed clusters overlap at offset {place}"),
            );
        }
        Ok(())
    }

    /// Marks the clusters of the file that hold a compressed cluster as used; `at` is the offset of
    /// its L2 entry.
    fn compressed(&mut self, entry: u64, at: u64) -> Option<CompressedCluster> {
        let stored = match L2Entry::parse(entry, self.cluster) {
            Ok(L2Entry::Compressed(stored)) => stored,
            Ok(_) => return None,
            Err(fault) => {
                self.fault(at, fault.to_string());
                return None;
            }
        };
        if !self.image.header().zstd {
            self.fault(
                at,
                "a cluster is compressed with zlib, but vmsnap writes only zstd",
            );
            return None;
        }
        let file = self.image.file_length().next_multiple_of(self.cluster);
        if stored.end > file {
            let start = stored.start;
            self.fault(
                at,
                format!(
                    "the L2 entry points to a compressed cluster at offset {start}, which ends beyond the end of the file"
                ),
            );
            return None;
        }
        for index in stored.start / self.cluster..stored.end.div_ceil(self.cluster) {
            if !self.used.take_shared(index) {
                let place = index * self.cluster;
                let what = format!(
                    "the cluster at offset {place} is used twice, the second time for compressed data"
                );
                self.fault(at, what);
                return None;
            }
        }
        Some(stored)
    }

    /// Checks the refcount table and its blocks, and returns the offsets of the blocks.
    fn refcount_table(&mut self) -> Result<Vec<u64>> {
        let header = self.image.header();
        let start = header.refcount_table_offset;
        let Some(bytes) = u64::from(header.refcount_table_clusters).checked_mul(self.cluster) else {
            self.fault(56, "the refcount table is larger than any file");
            return Ok(Vec::new());
        };
        if !self.take(start, bytes, "the refcount table", 48) {
            return Ok(Vec::new());
        }
        // Only this many blocks can concern a file of this length. Later entries must be empty, and
        // are not kept.
        let needed = self.clusters.div_ceil(self.counts_per_block());
        let mut blocks = Vec::new();
        let entries = bytes / ENTRY_BYTES;
        let mut window = Table::new(self.image, start, entries);
        for index in 0..entries {
            let block = window.entry(index, self.stop)?;
            let at = start + index * ENTRY_BYTES;
            if block & !REFCOUNT_OFFSET_MASK != 0 {
                self.fault(
                    at,
                    format!("refcount table entry {block:#018x} has reserved bits set"),
                );
            } else if block != 0 && index >= needed {
                self.fault(
                    at,
                    "the refcount table has a block for clusters past the end of the file",
                );
            } else if block != 0 {
                self.take(block, self.cluster, "a refcount block", at);
            }
            if index < needed {
                blocks.push(block);
            }
            if self.is_enough() {
                break;
            }
        }
        Ok(blocks)
    }

    fn counts_per_block(&self) -> u64 {
        (self.cluster * 8) >> self.image.header().refcount_order
    }

    /// Checks that every cluster's count is the number of its uses.
    fn refcounts(&mut self, blocks: &[u64]) -> Result<()> {
        // A faulty table says nothing about the clusters.
        if !self.faults.is_empty() {
            return Ok(());
        }
        let per_block = self.counts_per_block();
        let order = self.image.header().refcount_order;
        let mut bytes = vec![0; WINDOW.min(usize::try_from(self.cluster).unwrap_or(WINDOW))];
        let range = self.used.range();
        let first = range.start;
        for index in range {
            let place = index % per_block;
            let block = blocks
                .get(usize::try_from(index / per_block).unwrap_or(usize::MAX))
                .copied()
                .unwrap_or(0);
            let bit = place << order;
            let within = usize::try_from(bit / 8 % bytes.len() as u64).unwrap_or(0);
            let at = block + bit / 8;
            if block != 0 && (index == first || within == 0 && bit.is_multiple_of(8)) {
                self.stopped()?;
                self.image.read_at(&mut bytes, at - within as u64)?;
            }
            let stored = match block {
                0 => 0,
                _ => count_at(&bytes, within, order, bit),
            };
            let expected = self.used.count(index);
            if stored != expected {
                let cluster = index * self.cluster;
                let what = format!(
                    "the cluster at offset {cluster} has the refcount {stored} instead of {expected}"
                );
                self.fault(if block == 0 { cluster } else { at }, what);
                if self.is_enough() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn stopped(&self) -> Result<()> {
        match self.stop.requested() {
            true => Err(Error::Stopped),
            false => Ok(()),
        }
    }
}

/// Reads a count of `1 << order` bits. Counts smaller than a byte are stored from the lowest bit
/// on.
fn count_at(bytes: &[u8], within: usize, order: u32, bit: u64) -> u64 {
    let width = 1usize << order;
    if width < 8 {
        let shift = bit % 8;
        return u64::from(bytes[within] >> shift) & ((1 << width) - 1);
    }
    bytes[within..within + width / 8]
        .iter()
        .fold(0, |count, byte| count << 8 | u64::from(*byte))
}

/// A table of the file, read through a small window.
struct Table<'a> {
    image: &'a Image,
    start: u64,
    entries: u64,
    bytes: Vec<u8>,
    first: u64,
}

impl<'a> Table<'a> {
    fn new(image: &'a Image, start: u64, entries: u64) -> Self {
        Table {
            image,
            start,
            entries,
            bytes: Vec::new(),
            first: 0,
        }
    }

    /// Returns the entry at an index, which must be below the number of entries.
    fn entry(&mut self, index: u64, stop: &Stop) -> Result<u64> {
        let per_window = (WINDOW as u64) / ENTRY_BYTES;
        let held = self.bytes.len() as u64 / ENTRY_BYTES;
        if index < self.first || index >= self.first + held {
            if stop.requested() {
                return Err(Error::Stopped);
            }
            self.first = index - index % per_window;
            let count = per_window.min(self.entries - self.first) * ENTRY_BYTES;
            self.bytes.resize(usize::try_from(count).unwrap_or(0), 0);
            self.image
                .read_at(&mut self.bytes, self.start + self.first * ENTRY_BYTES)?;
        }
        let at = usize::try_from((index - self.first) * ENTRY_BYTES).unwrap_or(usize::MAX);
        let mut entry = [0; ENTRY_BYTES as usize];
        entry.copy_from_slice(&self.bytes[at..at + ENTRY_BYTES as usize]);
        Ok(u64::from_be_bytes(entry))
    }
}
