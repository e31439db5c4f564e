//! Continues an existing image: the base. Clusters that are replaced become free.
//!
//! The base is not overwritten: a changed L2 table or refcount block is written again at the
//! end, and its old place becomes free as well. Until its header is replaced, the file is the base.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;

use super::counts::{REFCOUNT_ORDER, REFCOUNTS_PER_BLOCK, RefCounts, encoded};
use super::{Qcow2Options, Qcow2Writer, TABLE_ENTRIES, TABLE_SPAN, empty_l1};
use crate::image::digest::{TailDigest, can_continue};
use crate::image::order::Order;
use crate::image::qcow2::layout::{ENTRY_BYTES, Fault, L2Entry, parse_l1_entry};
use crate::image::qcow2::log::Log;
use crate::image::qcow2::{Image, Mapping};
use crate::image::recorded::Recorded;
use crate::image::{Error, Result, StoredFile};
use crate::model::block::{CLUSTER, ImageFile, Patch, Pieces, Written};
use crate::model::stop::Stop;

/// An image that is continued.
#[derive(Debug)]
pub struct Base {
    image: Image,
    recorded: Recorded,
    /// Bytes of the disk that it holds as data and as zeroes.
    data_bytes: u64,
    zero_bytes: u64,
    /// Size of the disk in bytes, also after it has grown.
    disk: u64,
    /// The numbers of clusters of the file, each once for every use of it that has ended.
    released: Vec<u64>,
    /// The offset of the L2 table that was taken last, in bytes.
    table: u64,
    /// The fault of an L2 entry that was replaced, if one was invalid.
    fault: Option<Error>,
}

impl Base {
    /// Opens an image to continue it. The numbers are the bytes of data and of zeroes that its
    /// writer reported. Returns `None` if its format, length or recorded digests do not allow this;
    /// the image can still be copied.
    ///
    /// # Errors
    /// If the file cannot be read as an image.
    pub fn open(
        file: StoredFile,
        path: PathBuf,
        recorded: Recorded,
        (data_bytes, zero_bytes): (u64, u64),
    ) -> Result<Option<Base>> {
        if !can_continue(&recorded) {
            return Ok(None);
        }
        let image = Image::open(file, path)?;
        let header = image.header();
        let is_ours = header.cluster_size() == CLUSTER
            && header.refcount_order == REFCOUNT_ORDER
            && header.snapshots == 0
            && image.file_length() == recorded.bytes;
        Ok(is_ours.then_some(Base {
            disk: image.size(),
            image,
            recorded,
            data_bytes,
            zero_bytes,
            released: Vec::new(),
            table: 0,
            fault: None,
        }))
    }

    /// Notes that the disk has this size now. The image's last cluster may hold more of it.
    fn grow_to(&mut self, size: u64) -> Result<()> {
        let end = self.image.size();
        let start = end - end % CLUSTER;
        self.disk = size;
        if start < end && end < size {
            let more = CLUSTER.min(size - start) - (end - start);
            match self.image.run_at(start)?.map(|run| run.mapping) {
                Some(Mapping::Data { .. } | Mapping::Compressed { .. }) => self.data_bytes += more,
                Some(Mapping::Zero) => self.zero_bytes += more,
                Some(Mapping::Unallocated) | None => {}
            }
        }
        Ok(())
    }

    /// Reads `bytes` bytes of a table.
    fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let mut found = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.image.read_at(&mut found, offset)?;
        Ok(found)
    }

    fn format(&self, offset: u64, source: Fault) -> Error {
        Error::Format {
            path: self.image.path().to_owned(),
            offset,
            source,
        }
    }

    /// Copies its L1 table to the beginning of a new one.
    fn copy_l1(&self, l1: &mut [[u8; 8]]) -> Result<()> {
        let header = self.image.header();
        let bytes = self.read(header.l1_offset, u64::from(header.l1_entries) * ENTRY_BYTES)?;
        for (entry, old) in l1.iter_mut().zip(bytes.as_chunks().0) {
            *entry = *old;
        }
        Ok(())
    }

    /// Returns the entries of the L2 table that belongs to the L1 entry with this index; without a
    /// table all are 0. The place of the table in the file becomes free.
    pub(super) fn take_table(&mut self, index: usize, entry: [u8; 8]) -> Result<Vec<[u8; 8]>> {
        let at = self.image.header().l1_offset + index as u64 * ENTRY_BYTES;
        let place = parse_l1_entry(u64::from_be_bytes(entry), CLUSTER);
        let Some(place) = place.map_err(|fault| self.format(at, fault))? else {
            return Ok(vec![[0; 8]; TABLE_ENTRIES]);
        };
        self.table = place;
        self.released.push(place / CLUSTER);
        Ok(self.read(place, CLUSTER)?.as_chunks().0.to_vec())
    }

    /// Releases the clusters that an entry of the current L2 table uses, because another entry
    /// replaces it. `guest` is the offset on the disk that the entry maps.
    pub(super) fn release_entry(&mut self, entry: [u8; 8], guest: u64, written: &mut Written) {
        let length = CLUSTER.min(self.disk.saturating_sub(guest));
        let at = self.table + guest % TABLE_SPAN / CLUSTER * ENTRY_BYTES;
        let clusters = match L2Entry::parse(u64::from_be_bytes(entry), CLUSTER) {
            Ok(L2Entry::Unallocated) => return,
            Ok(L2Entry::Zero) => {
                written.zero_bytes = written.zero_bytes.saturating_sub(length);
                return;
            }
            Ok(L2Entry::Data(host)) => host / CLUSTER..host / CLUSTER + 1,
            Ok(L2Entry::Compressed(cluster)) => cluster.start / CLUSTER..cluster.end.div_ceil(CLUSTER),
            Err(fault) => {
                self.fault = Some(self.format(at, fault));
                return;
            }
        };
        let file_clusters = self.recorded.bytes / CLUSTER;
        if clusters.start == 0 || clusters.end > file_clusters {
            let entry = u64::from_be_bytes(entry);
            let (table, why) = ("L2", "points outside the file");
            self.fault = Some(self.format(at, Fault::Entry { table, entry, why }));
            return;
        }
        written.data_bytes = written.data_bytes.saturating_sub(length);
        self.released.extend(clusters);
    }

    /// The places of the base's refcount blocks, and the content of the last block if the file ends
    /// within the clusters that this block counts.
    fn counts(&mut self) -> Result<RefCounts> {
        let header = self.image.header();
        let (offset, clusters) = (header.refcount_table_offset, header.refcount_table_clusters);
        let covered = self.recorded.bytes / CLUSTER;
        let blocks = covered.div_ceil(REFCOUNTS_PER_BLOCK);
        let table = self.read(offset, blocks * ENTRY_BYTES)?;
        let mut places: Vec<u64> = table
            .as_chunks()
            .0
            .iter()
            .copied()
            .map(u64::from_be_bytes)
            .collect();
        let end = self.recorded.bytes - CLUSTER;
        let is_invalid = |place: &u64| *place > end || !place.is_multiple_of(CLUSTER);
        if let Some(index) = places.iter().position(is_invalid) {
            return Err(self.format(offset + index as u64 * ENTRY_BYTES, Fault::Refcount));
        }
        let table_end = offset.saturating_add(u64::from(clusters) * CLUSTER);
        if !offset.is_multiple_of(CLUSTER) || table_end > self.recorded.bytes {
            return Err(self.format(offset, Fault::Refcount));
        }
        let first = offset / CLUSTER;
        self.released.extend(first..first + u64::from(clusters));
        let last = match covered.is_multiple_of(REFCOUNTS_PER_BLOCK) {
            true => None,
            false => places.pop(),
        };
        let last = last.map(|place| {
            self.released.extend((place > 0).then_some(place / CLUSTER));
            self.block(place)
        });
        Ok(RefCounts::continued(places, last.transpose()?))
    }

    /// The counts of the refcount block at this place: all are 0 without a block.
    fn block(&self, place: u64) -> Result<Vec<u16>> {
        if place == 0 {
            return Ok(vec![0; REFCOUNTS_PER_BLOCK as usize]);
        }
        let bytes = self.read(place, CLUSTER)?;
        Ok(bytes
            .as_chunks()
            .0
            .iter()
            .copied()
            .map(u16::from_be_bytes)
            .collect())
    }

    /// Takes one use of each of these clusters away, all covered by one block, and adds those that
    /// become free.
    fn decrement(&self, counts: &mut [u16], clusters: &[u64], freed: &mut Vec<Range<u64>>) -> Result<()> {
        for cluster in clusters {
            let start = cluster * CLUSTER;
            let count = usize::try_from(cluster % REFCOUNTS_PER_BLOCK).unwrap_or(usize::MAX);
            let count = counts.get_mut(count).filter(|count| **count > 0);
            let count = count.ok_or_else(|| self.format(start, Fault::Refcount))?;
            *count -= 1;
            if *count > 0 {
                continue;
            }
            match freed.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end += CLUSTER,
                None => freed.push(start..start + CLUSTER),
            }
        }
        Ok(())
    }

    /// The digests of the file with the changes.
    pub(super) fn digests(
        &self,
        tail: TailDigest,
        patch: &Patch,
        stop: &Stop,
    ) -> Result<(String, Option<Pieces>)> {
        let (file, path) = (self.image.file(), self.image.path());
        let (digest, pieces) = tail.finish(file, path, &self.recorded, patch, stop)?;
        Ok((digest.to_hex().to_string(), pieces))
    }
}

impl Qcow2Writer {
    /// Begins to continue an image: `file` is the file that `base` reads, open for writing. The
    /// blocks are those that differ from the base. Everything is appended to the file, and
    /// [`Written::patch`] has the changes that make it the new image.
    ///
    /// The memory also holds 8 to 24 bytes for each cluster that is replaced, and 64 KiB for each 2
    /// GiB that are appended.
    ///
    /// # Errors
    /// The errors of [`Qcow2Writer::new`]; also if tables of the base cannot be read or are
    /// invalid.
    pub fn continued(file: Box<dyn ImageFile>, options: Qcow2Options, mut base: Base) -> Result<Self> {
        let mut l1 = empty_l1(&options)?;
        base.grow_to(options.size)?;
        base.copy_l1(&mut l1)?;
        let counts = base.counts()?;
        Ok(Qcow2Writer {
            counts,
            bin: super::Bin::default(),
            order: Order::new(options.size),
            log: Log::start_after(file, &options.path, &options.stop, &base.recorded)?,
            l1,
            table: None,
            written: Written {
                data_bytes: base.data_bytes,
                zero_bytes: base.zero_bytes,
                is_compressed: base.image.header().zstd,
                ..Written::default()
            },
            base: Some(base),
            backing_format: "qcow2",
            options,
        })
    }

    /// Releases the old L1 table and refcounts of the base, and writes those refcount blocks again
    /// whose counts go down. Returns the ranges of the file that have become free.
    pub(super) fn release_base(&mut self) -> Result<Vec<Range<u64>>> {
        let Some(base) = &mut self.base else {
            return Ok(Vec::new());
        };
        if let Some(fault) = base.fault.take() {
            return Err(fault);
        }
        let header = base.image.header();
        let l1_end = header.l1_offset + u64::from(header.l1_entries) * ENTRY_BYTES;
        let l1 = header.l1_offset / CLUSTER..l1_end.div_ceil(CLUSTER);
        let mut released = std::mem::take(&mut base.released);
        released.extend(l1);
        // A block that is written again frees its old place, which another block counts.
        let (mut rewritten, mut at) = (BTreeSet::new(), 0);
        while let Some(cluster) = released.get(at) {
            let block = cluster / REFCOUNTS_PER_BLOCK;
            if let Some(place) = self.counts.place(block)
                && rewritten.insert(block)
            {
                released.push(place / CLUSTER);
            }
            at += 1;
        }
        released.sort_unstable();
        let mut freed = Vec::new();
        let is_counted_together = |a: &u64, b: &u64| a / REFCOUNTS_PER_BLOCK == b / REFCOUNTS_PER_BLOCK;
        for clusters in released.chunk_by(is_counted_together) {
            let block = clusters[0] / REFCOUNTS_PER_BLOCK;
            match self.counts.place(block) {
                Some(place) => {
                    let mut counts = base.block(place)?;
                    base.decrement(&mut counts, clusters, &mut freed)?;
                    let place = self.log.end();
                    self.counts.replace(block, place);
                    self.counts.count(place, place + CLUSTER);
                    self.log.append(&encoded(&counts))?;
                }
                None => {
                    let counts = self.counts.first_pending().map_or(&mut [][..], Vec::as_mut_slice);
                    base.decrement(counts, clusters, &mut freed)?;
                }
            }
        }
        Ok(freed)
    }
}
