//! Reads one image: maps offsets on the disk to offsets in the file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::header::Header;
use super::layout::{CompressedCluster, ENTRY_BYTES, Fault, L2Entry, SECTOR, parse_l1_entry};
use crate::image::pieces::PieceChecks;
use crate::image::{Error, Result, StoredFile, cache, read_exact_at};

/// How much of an L2 table [`Image::open`] keeps in memory, in bytes.
const TABLE_WINDOW: usize = 64 * 1024;
/// How much of the L1 table is kept in memory, in bytes: enough for 256 GiB of disk.
const L1_WINDOW: usize = 4096;

/// What one image holds at an offset of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The bytes lie in the file, from this offset on.
    Data {
        /// The offset in the file, in bytes.
        host_offset: u64,
    },
    /// These bytes of the file decompress to a cluster, in which the disk's bytes begin at
    /// `within`.
    Compressed {
        /// Where the compressed bytes lie in the file.
        cluster: CompressedCluster,
        /// The offset in the decompressed cluster, in bytes.
        within: u64,
    },
    /// Reads as zero.
    Zero,
    /// Not mapped: the backing image's content, or zero without one.
    Unallocated,
}

/// A range of the disk with one mapping. If it is data, it is contiguous in the file, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRun {
    /// The mapping.
    pub mapping: Mapping,
    /// Its length in bytes; never 0.
    pub length: u64,
}

/// An open image. Its backing image is not opened; the caller does that if needed.
///
/// Tables are read in parts, so the memory is bounded, whatever the image contains.
#[derive(Debug)]
pub struct Image {
    file: Arc<StoredFile>,
    path: PathBuf,
    file_length: u64,
    header: Header,
    /// The first bytes of the file when it was opened.
    first: Vec<u8>,
    l1: Window,
    l2: Window,
    /// Verifies bytes before they are used.
    guard: Option<Arc<PieceChecks>>,
}

impl Image {
    /// Reads the header of an image. `path` is for messages only.
    ///
    /// # Errors
    /// If the file cannot be read, is not a valid qcow2 image of version 3, or uses unsupported
    /// features.
    pub fn open(file: impl Into<StoredFile>, path: impl Into<PathBuf>) -> Result<Image> {
        let file = file.into();
        cache::expect_no_order(file.file());
        Image::open_with(file, path, TABLE_WINDOW)
    }

    /// Opens an image with `table_window` bytes of memory for L2 tables, for very long chains. The
    /// size is rounded up to whole entries. Less than 4096 bytes make reading slow.
    ///
    /// # Errors
    /// The errors of [`Image::open`].
    pub(crate) fn open_with(
        file: StoredFile,
        path: impl Into<PathBuf>,
        table_window: usize,
    ) -> Result<Image> {
        Image::open_guarded(Arc::new(file), path.into(), table_window, None)
    }

    /// Opens an image in a shared file. With a guard, bytes of the header and tables are used only
    /// after the guard has verified their piece.
    ///
    /// # Errors
    /// The errors of [`Image::open`] and of the guard.
    pub(in crate::image) fn open_guarded(
        file: Arc<StoredFile>,
        path: PathBuf,
        table_window: usize,
        guard: Option<Arc<PieceChecks>>,
    ) -> Result<Image> {
        let file_length = file
            .length()
            .map_err(|error| Error::of_file("examine", &path, error))?;
        let header = read_header(&file, &path, file_length, guard.as_deref())?;
        let first = first_bytes(&file, &path, file_length)?;
        Ok(Image {
            guard,
            file,
            path,
            file_length,
            header,
            first,
            l1: Window::new(L1_WINDOW),
            l2: Window::new(table_window),
        })
    }

    /// Checks that nobody has replaced the header since the image was opened.
    ///
    /// # Errors
    /// [`Error::Changed`] if the header was replaced; others if the file cannot be read.
    pub(in crate::image) fn check_unchanged(&self) -> Result<()> {
        match first_bytes(&self.file, &self.path, self.file_length)? == self.first {
            true => Ok(()),
            false => Err(Error::Changed {
                path: self.path.clone(),
            }),
        }
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.header.size
    }

    /// The fields of the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The backing image's name, as stored in the header.
    pub(crate) fn backing_name(&self) -> Option<&str> {
        self.header.backing_name.as_deref()
    }

    /// Length of the file in bytes.
    pub(crate) fn file_length(&self) -> u64 {
        self.file_length
    }

    /// The path given when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself.
    pub(in crate::image) fn file(&self) -> &Arc<StoredFile> {
        &self.file
    }

    /// Drops the cached pages of the file before `end`.
    pub(in crate::image) fn forget_until(&self, end: u64) {
        cache::forget_until(self.file.file(), 0, end);
    }

    /// Fills `out` with bytes of the file from `host_offset` on, such as those of a
    /// [`Mapping::Data`].
    ///
    /// # Errors
    /// If the file cannot be read there, or ends too early.
    pub fn read_at(&self, out: &mut [u8], host_offset: u64) -> Result<()> {
        read_exact_at(&self.file, &self.path, out, host_offset)
    }

    /// The number of bytes that the file holds of a compressed cluster.
    pub(in crate::image) fn stored_length(&self, cluster: CompressedCluster) -> usize {
        let end = cluster.end.min(self.file_length);
        usize::try_from(end.saturating_sub(cluster.start)).unwrap_or(0)
    }

    /// Returns the mapping of the disk from `offset` on; `None` at the end of the disk and beyond.
    ///
    /// A run may end earlier than its mapping does, so the next run may have the same mapping.
    ///
    /// # Errors
    /// If a table cannot be read, does not match its digest, or has an invalid entry.
    pub fn run_at(&mut self, offset: u64) -> Result<Option<MappedRun>> {
        let left = match self.size().checked_sub(offset) {
            None | Some(0) => return Ok(None),
            Some(left) => left,
        };
        let span = self.header.table_span();
        let mut index = offset / span;
        if let Some(table) = self.table(index)? {
            return self.run_in_table(table, offset, left).map(Some);
        }
        // No table: the whole span is unallocated, and so are the following spans without a table.
        let tables = self.size().div_ceil(span);
        index += 1;
        while index < tables && self.table(index)?.is_none() {
            index += 1;
        }
        let end = index.saturating_mul(span).min(self.size());
        Ok(Some(MappedRun {
            mapping: Mapping::Unallocated,
            length: end - offset,
        }))
    }

    /// Returns the offset of the L2 table with this index, if there is one.
    fn table(&mut self, index: u64) -> Result<Option<u64>> {
        let start = self.header.l1_offset;
        let bytes = u64::from(self.header.l1_entries) * ENTRY_BYTES;
        let at = index * ENTRY_BYTES;
        let guard = self.guard.as_deref();
        let entry = self.l1.entry(&self.file, &self.path, guard, start, bytes, at)?;
        let cluster = self.header.cluster_size();
        match parse_l1_entry(entry, cluster) {
            Ok(Some(table))
                if table
                    .checked_add(cluster)
                    .is_none_or(|end| end > self.file_length) =>
            {
                Err(self.fault(start + at, "L1", entry, "points outside the file"))
            }
            Ok(table) => Ok(table),
            Err(source) => Err(self.format(start + at, source)),
        }
    }

    /// Returns the run from `offset` on, as far as this L2 table reaches. `left` is the rest of the
    /// disk.
    fn run_in_table(&mut self, table: u64, offset: u64, left: u64) -> Result<MappedRun> {
        let cluster = self.header.cluster_size();
        let entries = self.header.table_entries();
        let within = offset % cluster;
        let mut index = (offset / cluster) % entries;
        let mut cluster_start = offset - within;
        let first = self.l2_entry(table, index, cluster_start)?;
        let mapping = match first {
            L2Entry::Unallocated => Mapping::Unallocated,
            L2Entry::Zero => Mapping::Zero,
            L2Entry::Data(host) => Mapping::Data {
                host_offset: host + within,
            },
            L2Entry::Compressed(cluster) => Mapping::Compressed { cluster, within },
        };
        let mut length = cluster - within;
        let mut expected = first;
        let is_single = matches!(first, L2Entry::Compressed(_));
        while !is_single && length < left && index + 1 < entries {
            index += 1;
            cluster_start += cluster;
            expected = match expected {
                L2Entry::Data(host) => L2Entry::Data(host + cluster),
                same => same,
            };
            if self.l2_entry(table, index, cluster_start)? != expected {
                break;
            }
            length += cluster;
        }
        Ok(MappedRun {
            mapping,
            length: length.min(left),
        })
    }

    /// Returns the entry of the cluster that starts at `cluster_start` on the disk.
    fn l2_entry(&mut self, table: u64, index: u64, cluster_start: u64) -> Result<L2Entry> {
        let cluster = self.header.cluster_size();
        let at = index * ENTRY_BYTES;
        let guard = self.guard.as_deref();
        let entry = self.l2.entry(&self.file, &self.path, guard, table, cluster, at)?;
        match L2Entry::parse(entry, cluster) {
            // QEMU may leave out the part of the last cluster past the disk's end.
            Ok(L2Entry::Data(host))
                if host
                    .checked_add(cluster.min(self.size() - cluster_start))
                    .is_none_or(|end| end > self.file_length) =>
            {
                Err(self.fault(table + at, "L2", entry, "points outside the file"))
            }
            Ok(L2Entry::Compressed(_)) if !self.header.zstd => {
                Err(self.format(table + at, Fault::CompressionType(0)))
            }
            // The file may end within the last sector.
            Ok(L2Entry::Compressed(stored))
                if stored.start >= self.file_length
                    || stored.end > self.file_length.next_multiple_of(SECTOR) =>
            {
                Err(self.fault(table + at, "L2", entry, "points outside the file"))
            }
            Ok(parsed) => Ok(parsed),
            Err(source) => Err(self.format(table + at, source)),
        }
    }

    fn format(&self, offset: u64, source: Fault) -> Error {
        Error::Format {
            path: self.path.clone(),
            offset,
            source,
        }
    }

    fn fault(&self, offset: u64, table: &'static str, entry: u64, why: &'static str) -> Error {
        self.format(offset, Fault::Entry { table, entry, why })
    }
}

impl MappedRun {
    /// The rest of the run after its first `passed` bytes. The run must have more bytes than that.
    pub(in crate::image) fn after(self, passed: u64) -> MappedRun {
        let mapping = match self.mapping {
            Mapping::Data { host_offset } => Mapping::Data {
                host_offset: host_offset + passed,
            },
            Mapping::Compressed { cluster, within } => Mapping::Compressed {
                cluster,
                within: within + passed,
            },
            same => same,
        };
        MappedRun {
            mapping,
            length: self.length - passed,
        }
    }
}

impl Drop for Image {
    /// Drops the cached tables, which are read only once.
    fn drop(&mut self) {
        cache::forget(self.file.file());
    }
}

/// The part of a file that holds the fields of a header.
fn first_bytes(file: &StoredFile, path: &Path, file_length: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file_length.min(512)).unwrap_or(0)];
    read_exact_at(file, path, &mut bytes, 0).map(|()| bytes)
}

fn read_header(
    file: &StoredFile,
    path: &Path,
    file_length: u64,
    guard: Option<&PieceChecks>,
) -> Result<Header> {
    let refuse = |source| Error::Format {
        path: path.to_owned(),
        offset: 0,
        source,
    };
    let read = |length: u64| {
        let mut bytes = vec![0; usize::try_from(length.min(file_length)).unwrap_or(0)];
        check(guard, 0, bytes.len())?;
        read_exact_at(file, path, &mut bytes, 0).map(|()| bytes)
    };
    // A cluster has at most 2 MiB; its size must be known before it is read.
    let cluster_size = Header::probe_cluster_size(&read(512)?).map_err(refuse)?;
    Header::parse(&read(cluster_size)?, file_length).map_err(refuse)
}

/// Lets the guard, if there is one, verify `bytes` bytes of the file from `start` on.
fn check(guard: Option<&PieceChecks>, start: u64, bytes: usize) -> Result<()> {
    guard.map_or(Ok(()), |guard| {
        guard.check(start..start.saturating_add(bytes as u64))
    })
}

/// A part of a table, as stored in the file.
struct Window {
    start: u64,
    bytes: Vec<u8>,
    capacity: u64,
}

impl Window {
    fn new(capacity: usize) -> Self {
        Window {
            start: 0,
            bytes: Vec::new(),
            capacity: (capacity as u64).next_multiple_of(ENTRY_BYTES).max(ENTRY_BYTES),
        }
    }

    /// Returns the entry `at` bytes into a table that has `length` bytes and starts at `table`. The
    /// whole table lies within the file.
    fn entry(
        &mut self,
        file: &StoredFile,
        path: &Path,
        guard: Option<&PieceChecks>,
        table: u64,
        length: u64,
        at: u64,
    ) -> Result<u64> {
        let place = table + at;
        if place < self.start || place + ENTRY_BYTES > self.start + self.bytes.len() as u64 {
            let from = at - at % self.capacity;
            let count = self.capacity.min(length - from);
            self.bytes.resize(usize::try_from(count).unwrap_or(0), 0);
            self.start = table + from;
            let checked = check(guard, self.start, self.bytes.len());
            let read = checked.and_then(|()| read_exact_at(file, path, &mut self.bytes, self.start));
            if let Err(error) = read {
                self.bytes.clear();
                return Err(error);
            }
        }
        let index = usize::try_from(place - self.start).unwrap_or(usize::MAX);
        let mut entry = [0; ENTRY_BYTES as usize];
        entry.copy_from_slice(&self.bytes[index..index + ENTRY_BYTES as usize]);
        Ok(u64::from_be_bytes(entry))
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Window({} bytes at {})", self.bytes.len(), self.start)
    }
}
