//! Writes one image by appending only.
//!
//! The file in the order it is written: a hole for the header; data clusters in the disk's order
//! (compressed ones a little later), each L2 table right after the last data it maps, and a
//! refcount block after each 2 GiB; the L1 table; the other refcount blocks; the refcount table.
//! The header comes last, so an unfinished file is not a qcow2 image. The memory holds the L1
//! table, one L2 table, at most two refcount blocks and a few fixed buffers.
//!
//! An existing image can be continued. Then everything is appended to it, and the new header is not
//! written but returned, with the ranges that became free.

use std::path::PathBuf;
use std::sync::Arc;

use counts::{REFCOUNT_ORDER, RefCounts, refcount_clusters};
use packing::Bin;

use super::header::Header;
use super::layout::{ENTRY_BYTES, L2Entry, MAX_L1_BYTES, l1_entry};
use super::log::Log;
use crate::image::order::Order;
use crate::image::{Error, Result, zero};
use crate::model::block::{Block, BlockError, BlockSink, CLUSTER, Content, ImageFile, Patch, Written};
use crate::model::buffer::Buffer;
use crate::model::qcow2::MAX_BACKING_NAME;
use crate::model::stop::Stop;

mod compress;
mod continued;
mod counts;
mod packing;
mod shrink;

pub use compress::CompressingWriter;
pub use continued::Base;

const TABLE_ENTRIES: usize = (CLUSTER / ENTRY_BYTES) as usize;
/// Bytes of the disk that one L2 table maps: 512 MiB.
const TABLE_SPAN: u64 = CLUSTER * TABLE_ENTRIES as u64;

/// Options for writing an image.
#[derive(Clone, Debug)]
pub struct Qcow2Options {
    /// The file's path, for messages only.
    pub path: PathBuf,
    /// Size of the disk in bytes: a multiple of 512, at most 2 PiB.
    pub size: u64,
    /// Name of the backing image for the header, 1 to 1023 bytes. The backing image must be a qcow2
    /// image too, unless [`Qcow2Writer::over_raw`] is called.
    pub backing: Option<String>,
    /// Whether clusters of data that are all zero are stored like zero blocks.
    pub detect_zeroes: bool,
    /// Ends the writing with an error when a stop is requested.
    pub stop: Stop,
}

/// Writes blocks as a qcow2 image of version 3 with clusters of 64 KiB, and computes the file's
/// BLAKE3 digest on the way.
///
/// With a backing image, zero blocks become zero clusters, so that old content does not show
/// through; without one they take no space. A later call may report the error of an earlier write.
#[derive(Debug)]
pub struct Qcow2Writer {
    options: Qcow2Options,
    order: Order,
    log: Log,
    /// Entries as stored in the file.
    l1: Vec<[u8; 8]>,
    /// The L2 table that is being filled, and its index in the L1 table.
    table: Option<(usize, Vec<[u8; 8]>)>,
    counts: RefCounts,
    /// Compressed clusters on their way to the file.
    bin: Bin,
    written: Written,
    /// The image that is continued.
    base: Option<Base>,
    /// The format of the backing image.
    backing_format: &'static str,
}

impl Qcow2Writer {
    /// Begins an image in a new, empty file.
    ///
    /// # Errors
    /// If the size or the length of the backing name is not allowed, or no thread can be started.
    pub fn new(file: Box<dyn ImageFile>, options: Qcow2Options) -> Result<Self> {
        let l1 = empty_l1(&options)?;
        let mut counts = RefCounts::default();
        counts.count(0, CLUSTER);
        Ok(Qcow2Writer {
            counts,
            bin: Bin::default(),
            order: Order::new(options.size),
            log: Log::start(file, &options.path, &options.stop)?,
            l1,
            table: None,
            written: Written::default(),
            base: None,
            backing_format: "qcow2",
            options,
        })
    }

    /// Records that the backing image is raw: for example a disk that an NBD server offers.
    #[must_use]
    pub fn over_raw(mut self) -> Self {
        self.backing_format = "raw";
        self
    }

    fn take(&mut self, block: Block) -> Result<()> {
        self.log.check_open()?;
        self.order.accept(block.offset, block.length())?;
        match block.content {
            Content::Zero(length) => self.store_zero(block.offset, length),
            Content::Data(buffer) => self.store_data(block.offset, buffer),
        }
    }

    fn store_data(&mut self, offset: u64, buffer: Buffer) -> Result<()> {
        let buffer = Arc::new(buffer);
        if !self.options.detect_zeroes {
            return self.store_run(offset, &buffer, 0, buffer.len());
        }
        for (zero, start, end) in zero::runs(&buffer) {
            if zero {
                self.store_zero(offset + start as u64, (end - start) as u64)?;
            } else {
                self.store_run(offset, &buffer, start, end)?;
            }
        }
        Ok(())
    }

    /// Stores bytes `start..end` of a buffer whose first byte belongs to `offset` on the disk.
    fn store_run(&mut self, offset: u64, buffer: &Arc<Buffer>, mut start: usize, end: usize) -> Result<()> {
        while start < end {
            let guest = offset + start as u64;
            // Data goes no further than its L2 table, which must follow it in the file.
            let room = usize::try_from(TABLE_SPAN - guest % TABLE_SPAN).unwrap_or(usize::MAX);
            let part = start..start + (end - start).min(room);
            self.turn_to_table_of(guest)?;
            self.before_plain(part.len())?;
            let host = self.log.end();
            self.set_entries(guest, part.len() as u64, |n| L2Entry::Data(host + n * CLUSTER));
            self.written.data_bytes += part.len() as u64;
            start = part.end;
            self.log.append_part(buffer, part)?;
            self.log.pad_cluster()?;
            self.counts.count(host, self.log.end());
            self.write_passed_counts()?;
        }
        Ok(())
    }

    fn store_zero(&mut self, mut offset: u64, length: u64) -> Result<()> {
        let entry = match self.options.backing {
            Some(_) => L2Entry::Zero,
            None if self.base.is_some() => L2Entry::Unallocated,
            None => return Ok(()),
        };
        if entry == L2Entry::Zero {
            self.written.zero_bytes += length;
        }
        let end = offset + length;
        while offset < end {
            let part = (end - offset).min(TABLE_SPAN - offset % TABLE_SPAN);
            if entry == L2Entry::Zero || self.has_table_of(offset) {
                self.turn_to_table_of(offset)?;
                self.set_entries(offset, part, |_| entry);
            }
            offset += part;
        }
        Ok(())
    }

    /// Whether there is an L2 table that maps this place of the disk.
    fn has_table_of(&self, guest: u64) -> bool {
        let index = table_index(guest);
        self.table.as_ref().is_some_and(|(current, _)| *current == index) || self.l1[index] != [0; 8]
    }

    /// Begins the L2 table that maps this place of the disk, unless it is the current one. Another
    /// current table is appended to the file first.
    fn turn_to_table_of(&mut self, guest: u64) -> Result<()> {
        if let Some((index, _)) = &self.table
            && *index != table_index(guest)
        {
            self.append_table()?;
        }
        if self.table.is_none() {
            let index = table_index(guest);
            let entries = match &mut self.base {
                Some(base) => base.take_table(index, self.l1[index])?,
                None => vec![[0; 8]; TABLE_ENTRIES],
            };
            self.table = Some((index, entries));
        }
        Ok(())
    }

    /// Sets the entries for `length` bytes of the disk, all in one L2 table: the current one or a
    /// new one.
    fn set_entries(&mut self, guest: u64, length: u64, entry: impl Fn(u64) -> L2Entry) {
        let (_, entries) = self
            .table
            .get_or_insert_with(|| (table_index(guest), vec![[0; 8]; TABLE_ENTRIES]));
        let first = (guest % TABLE_SPAN / CLUSTER) as usize;
        let clusters = length.div_ceil(CLUSTER);
        for (place, n) in entries[first..].iter_mut().zip(0..clusters) {
            if let Some(base) = &mut self.base {
                base.release_entry(*place, guest + n * CLUSTER, &mut self.written);
            }
            *place = entry(n).encode().to_be_bytes();
        }
    }

    fn append_table(&mut self) -> Result<()> {
        self.settle()?;
        if let Some((index, entries)) = self.table.take() {
            if self.base.is_some() && entries.iter().all(|entry| *entry == [0; 8]) {
                self.l1[index] = [0; 8];
                return Ok(());
            }
            let place = self.log.end();
            self.l1[index] = l1_entry(place).to_be_bytes();
            self.counts.count(place, place + CLUSTER);
            self.log.append(entries.as_flattened())?;
            self.write_passed_counts()?;
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<Written> {
        self.log.check_open()?;
        self.append_table()?;
        let l1_offset = self.log.end();
        let l1 = std::mem::take(&mut self.l1);
        self.log.append(l1.as_flattened())?;
        self.log.pad_cluster()?;
        self.counts.count(l1_offset, self.log.end());
        let freed = self.release_base()?;
        let (refcount_table_offset, refcount_table_clusters) = self.append_refcounts()?;
        let header = Header {
            cluster_bits: CLUSTER.trailing_zeros(),
            size: self.options.size,
            l1_offset,
            l1_entries: l1.len() as u32,
            refcount_table_offset,
            refcount_table_clusters,
            refcount_order: REFCOUNT_ORDER,
            snapshots: 0,
            zstd: self.written.is_compressed,
            backing_name: self.options.backing.clone(),
            backing_format: self
                .options
                .backing
                .as_ref()
                .map(|_| self.backing_format.to_owned()),
        };
        self.written.file_bytes = self.log.end();
        let (digest, pieces) = match self.base.take() {
            None => self.log.finish(&header)?,
            Some(base) => {
                let patch = self.written.patch.insert(Patch {
                    header: header.in_cluster(),
                    freed,
                });
                let tail = self.log.finish_tail()?;
                base.digests(tail, patch, &self.options.stop)?
            }
        };
        self.written.blake3 = Some(digest);
        self.written.pieces = pieces;
        Ok(self.written.clone())
    }

    /// Appends refcount blocks and the refcount table. Returns the table's offset and its number of
    /// clusters.
    fn append_refcounts(&mut self) -> Result<(u64, u32)> {
        let before = self.log.end() / CLUSTER;
        let (blocks, table_clusters) = refcount_clusters(before, self.counts.taken());
        let start = self.log.end();
        let end = start + (blocks + table_clusters) * CLUSTER;
        self.counts.count(start, end);
        while let Some(block) = self.counts.take(self.log.end()) {
            self.log.append(&block)?;
        }
        let table_offset = self.log.end();
        self.log.append(&self.counts.table())?;
        self.log.pad_cluster()?;
        Ok((table_offset, table_clusters as u32))
    }
}

impl BlockSink for Qcow2Writer {
    fn write(&mut self, block: Block) -> std::result::Result<(), BlockError> {
        Ok(self.take(block)?)
    }

    fn finish(&mut self) -> std::result::Result<Written, BlockError> {
        Ok(self.complete()?)
    }
}

/// The L1 table of an image without content.
///
/// # Errors
/// If the size or the length of the backing name is not allowed.
fn empty_l1(options: &Qcow2Options) -> Result<Vec<[u8; 8]>> {
    let refuse = |why| Error::Size {
        size: options.size,
        why,
    };
    if !options.size.is_multiple_of(512) {
        return Err(refuse(
            "the size is not a multiple of 512 bytes, so QEMU would cut off the end of the disk",
        ));
    }
    let tables = options.size.div_ceil(TABLE_SPAN).max(1);
    if tables > MAX_L1_BYTES / ENTRY_BYTES {
        // The tables of 32 MiB that QEMU allows have 4 Mi entries, each for 512 MiB.
        return Err(refuse(
            "a qcow2 image with clusters of 64 KiB can hold at most 2 PiB (2251799813685248 bytes)",
        ));
    }
    if let Some(name) = &options.backing
        && !(1..=MAX_BACKING_NAME).contains(&name.len())
    {
        return Err(Error::BackingName {
            length: name.len(),
            limit: MAX_BACKING_NAME,
        });
    }
    Ok(vec![[0; 8]; tables as usize])
}

/// The index of the L2 table that maps this place of the disk.
fn table_index(guest: u64) -> usize {
    (guest / TABLE_SPAN) as usize
}

#[cfg(test)]
mod tests;
