//! What the bytes of a qcow2 image mean.
//!
//! All facts are those of QEMU's `docs/interop/qcow2.txt` (section names in quotes below); the limits on table sizes and
//! on the backing name are QEMU's own (`block/qcow2.h`). Numbers are big-endian.

use crate::model::block::BlockErrorKind;

/// "QFI\xfb", the first four bytes.
pub const MAGIC: u32 = 0x5146_49fb;
/// The version of the format that is written and read.
pub const VERSION: u32 = 3;
/// Length of the header without optional fields, in bytes ("Header").
pub const HEADER_LENGTH: usize = 104;
/// The most bytes a backing name may have.
pub const MAX_BACKING_NAME: usize = 1023;
/// The most bytes an L1 table may have (`QCOW_MAX_L1_SIZE`).
pub const MAX_L1_BYTES: u64 = 32 * 1024 * 1024;
/// Bytes of one entry of an L1 table, an L2 table or the refcount table.
pub const ENTRY_BYTES: u64 = 8;
/// The smallest and the largest `cluster_bits` (`MIN_CLUSTER_BITS`, `MAX_CLUSTER_BITS`).
pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Set in an L1 or L2 entry whose cluster has a refcount of exactly one.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZERO: u64 = 1;
/// Bits 9 to 55: where the cluster lies in the file.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// What is wrong with the bytes of an image, or what it uses that is not read here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is something else, or a writer did not finish it.
    #[error("the first bytes are not those of a qcow2 image")]
    Magic,
    /// Another version of the format.
    #[error("version {0} is not supported, only version 3 is")]
    Version(u32),
    /// Clusters of a size that the format does not know.
    #[error("cluster_bits is {0}, allowed are 9 to 21")]
    ClusterBits(u32),
    /// The file is shorter than its header.
    #[error("the header ends at byte {0}")]
    ShortHeader(usize),
    /// A length field of the header is impossible.
    #[error("header_length is {0}")]
    HeaderLength(u32),
    /// Refcounts of an impossible width.
    #[error("refcount_order is {0}, at most 6 is allowed")]
    RefcountOrder(u32),
    /// Encrypted content.
    #[error("encrypted images are not supported (crypt_method {0})")]
    Encrypted(u32),
    /// Content in another file.
    #[error("images with an external data file are not supported")]
    ExternalData,
    /// Clusters with subclusters.
    #[error("images with extended L2 entries are not supported")]
    ExtendedL2,
    /// QEMU has found the image corrupt and marked it.
    #[error("the image is marked corrupt")]
    Corrupt,
    /// Features whose meaning is not known.
    #[error("unknown incompatible features {0:#x}")]
    Features(u64),
    /// A header extension that reaches beyond its room.
    #[error("a header extension reaches beyond the header's cluster")]
    Extension,
    /// A backing name that lies elsewhere than in the header's cluster, or is too long.
    #[error("a backing name of {length} bytes at offset {offset} is not allowed")]
    BackingName {
        /// Where it is said to start.
        offset: u64,
        /// How long it is said to be.
        length: u32,
    },
    /// An L1 table that is too large, too small for the disk, or not within the file.
    #[error(
        "an L1 table of {entries} entries at offset {offset} does not fit a disk of {size} bytes in this file"
    )]
    L1 {
        /// How many entries.
        entries: u32,
        /// Where it is said to start.
        offset: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// An entry with reserved bits, an unaligned offset, or an offset outside the file.
    #[error("{table} entry {entry:#018x} {why}")]
    Entry {
        /// "L1" or "L2".
        table: &'static str,
        /// The entry as it stands in the table.
        entry: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A compressed cluster.
    #[error("compressed clusters are not supported")]
    Compressed,
}

impl Fault {
    /// Whether the image may be sound and only uses what is not read here.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Fault::Version(_)
                | Fault::Encrypted(_)
                | Fault::ExternalData
                | Fault::ExtendedL2
                | Fault::Features(_)
                | Fault::Compressed
        )
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> BlockErrorKind {
        if self.is_unsupported() {
            BlockErrorKind::Invalid
        } else {
            BlockErrorKind::Damaged
        }
    }
}

/// What a header says. Offsets and sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Binary logarithm of the cluster size.
    pub cluster_bits: u32,
    /// Size of the disk.
    pub size: u64,
    /// Where the L1 table starts.
    pub l1_offset: u64,
    /// How many entries it has.
    pub l1_entries: u32,
    /// Where the refcount table starts.
    pub refcount_table_offset: u64,
    /// How many clusters it has.
    pub refcount_table_clusters: u32,
    /// Binary logarithm of the width of a refcount in bits.
    pub refcount_order: u32,
    /// How many internal snapshots there are. Their content is not looked at.
    pub snapshots: u32,
    /// The backing image's name, as it stands there. It is never opened from here.
    pub backing_name: Option<String>,
    /// The backing image's format.
    pub backing_format: Option<String>,
}

impl Header {
    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table.
    pub fn table_entries(&self) -> u64 {
        self.cluster_size() / ENTRY_BYTES
    }

    /// Bytes of the disk that one L2 table maps.
    pub fn table_span(&self) -> u64 {
        self.cluster_size() * self.table_entries()
    }

    /// The size of a cluster by the fixed part of a header: so many bytes are to be given to [`Header::parse`].
    ///
    /// # Errors
    /// When it is no header of a version 3 image.
    pub fn probe_cluster_size(bytes: &[u8]) -> Result<u64, Fault> {
        let field = Fields(bytes);
        if field.u32(0).map_err(|_| Fault::Magic)? != MAGIC {
            return Err(Fault::Magic);
        }
        match field.u32(4)? {
            VERSION => {}
            other => return Err(Fault::Version(other)),
        }
        let cluster_bits = field.u32(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Fault::ClusterBits(cluster_bits));
        }
        Ok(1 << cluster_bits)
    }

    /// Reads the header from the image's first cluster (or what there is of it), for a file of `file_length` bytes.
    ///
    /// # Errors
    /// When something in it is not allowed, not supported, or does not fit the file.
    pub fn parse(first_cluster: &[u8], file_length: u64) -> Result<Header, Fault> {
        let cluster_size = Header::probe_cluster_size(first_cluster)?;
        let visible = first_cluster
            .len()
            .min(usize::try_from(cluster_size).unwrap_or(usize::MAX));
        let field = Fields(&first_cluster[..visible]);
        let header_length = field.u32(100)?;
        if header_length < HEADER_LENGTH as u32
            || u64::from(header_length) > cluster_size
            || !header_length.is_multiple_of(8)
        {
            return Err(Fault::HeaderLength(header_length));
        }
        check_features(field.u64(72)?)?;
        match field.u32(32)? {
            0 => {}
            method => return Err(Fault::Encrypted(method)),
        }
        let refcount_order = field.u32(96)?;
        if refcount_order > 6 {
            return Err(Fault::RefcountOrder(refcount_order));
        }
        let header = Header {
            cluster_bits: field.u32(20)?,
            size: field.u64(24)?,
            l1_offset: field.u64(40)?,
            l1_entries: field.u32(36)?,
            refcount_table_offset: field.u64(48)?,
            refcount_table_clusters: field.u32(56)?,
            refcount_order,
            snapshots: field.u32(60)?,
            backing_name: backing_name(field)?,
            backing_format: backing_format(field, header_length)?,
        };
        header.check_l1(file_length)?;
        Ok(header)
    }

    fn check_l1(&self, file_length: u64) -> Result<(), Fault> {
        let bytes = u64::from(self.l1_entries) * ENTRY_BYTES;
        let needed = self.size.div_ceil(self.table_span());
        let aligned = self.l1_offset.is_multiple_of(self.cluster_size());
        let outside = |end: Option<u64>| end.is_none_or(|end| end > file_length);
        if bytes > MAX_L1_BYTES
            || needed > u64::from(self.l1_entries)
            || !aligned
            || outside(self.l1_offset.checked_add(bytes))
        {
            return Err(Fault::L1 {
                entries: self.l1_entries,
                offset: self.l1_offset,
                size: self.size,
            });
        }
        Ok(())
    }

    /// The header's bytes with its extensions and the backing name, shorter than a cluster of 64 KiB.
    /// The backing name must have at most [`MAX_BACKING_NAME`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let name = self.backing_name.as_deref().unwrap_or_default().as_bytes();
        let mut extensions = Vec::new();
        if let Some(format) = &self.backing_format {
            extensions.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
            extensions.extend((format.len() as u32).to_be_bytes());
            extensions.extend(format.as_bytes());
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        }
        extensions.extend([0; 8]);
        let name_offset = if name.is_empty() {
            0
        } else {
            (HEADER_LENGTH + extensions.len()) as u64
        };

        let mut bytes = Vec::with_capacity(HEADER_LENGTH + extensions.len() + name.len());
        bytes.extend(MAGIC.to_be_bytes());
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend(name_offset.to_be_bytes());
        bytes.extend((name.len() as u32).to_be_bytes());
        bytes.extend(self.cluster_bits.to_be_bytes());
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(0u32.to_be_bytes());
        bytes.extend(self.l1_entries.to_be_bytes());
        bytes.extend(self.l1_offset.to_be_bytes());
        bytes.extend(self.refcount_table_offset.to_be_bytes());
        bytes.extend(self.refcount_table_clusters.to_be_bytes());
        bytes.extend(self.snapshots.to_be_bytes());
        // Offset of the snapshots; incompatible, compatible and autoclear features: none of them.
        bytes.extend([0; 4 * 8]);
        bytes.extend(self.refcount_order.to_be_bytes());
        bytes.extend((HEADER_LENGTH as u32).to_be_bytes());
        bytes.extend(extensions);
        bytes.extend(name);
        bytes
    }
}

fn check_features(incompatible: u64) -> Result<(), Fault> {
    // A dirty image has unreliable refcounts, which a reader does not use. The compression type
    // matters to compressed clusters only, and those are refused where they are met.
    let known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
    if incompatible & !known != 0 {
        return Err(Fault::Features(incompatible & !known));
    }
    if incompatible & EXTERNAL_DATA != 0 {
        return Err(Fault::ExternalData);
    }
    if incompatible & EXTENDED_L2 != 0 {
        return Err(Fault::ExtendedL2);
    }
    if incompatible & CORRUPT != 0 {
        return Err(Fault::Corrupt);
    }
    Ok(())
}

fn backing_name(field: Fields<'_>) -> Result<Option<String>, Fault> {
    let (offset, length) = (field.u64(8)?, field.u32(16)?);
    if offset == 0 {
        return Ok(None);
    }
    let bytes = (length as usize <= MAX_BACKING_NAME)
        .then(|| field.bytes(usize::try_from(offset).ok()?, length as usize).ok())
        .flatten()
        .ok_or(Fault::BackingName { offset, length })?;
    Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
}

/// Walks "Header extensions" for the name of the backing format. They end with one of type 0, or where the backing name
/// starts, or with the cluster.
fn backing_format(field: Fields<'_>, header_length: u32) -> Result<Option<String>, Fault> {
    let end = match field.u64(8)? {
        0 => field.0.len(),
        name => usize::try_from(name).unwrap_or(usize::MAX).min(field.0.len()),
    };
    let field = Fields(&field.0[..end]);
    let mut at = header_length as usize;
    while at.saturating_add(8) <= end {
        let (kind, length) = (field.u32(at)?, field.u32(at + 4)? as usize);
        if kind == EXTENSION_END {
            break;
        }
        let data = field.bytes(at + 8, length).map_err(|_| Fault::Extension)?;
        if kind == EXTENSION_BACKING_FORMAT {
            return Ok(Some(String::from_utf8_lossy(data).into_owned()));
        }
        at += 8 + length.next_multiple_of(8);
    }
    Ok(None)
}

/// Big-endian fields at given offsets.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(self, at: usize, length: usize) -> Result<&'a [u8], Fault> {
        let end = at.checked_add(length).ok_or(Fault::ShortHeader(self.0.len()))?;
        self.0.get(at..end).ok_or(Fault::ShortHeader(self.0.len()))
    }

    fn array<const N: usize>(self, at: usize) -> Result<[u8; N], Fault> {
        self.bytes(at, N)?
            .try_into()
            .map_err(|_| Fault::ShortHeader(self.0.len()))
    }

    fn u32(self, at: usize) -> Result<u32, Fault> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn u64(self, at: usize) -> Result<u64, Fault> {
        self.array(at).map(u64::from_be_bytes)
    }
}

/// An entry of the L1 table ("L1 table entry"), for a cluster whose refcount is one.
pub fn l1_entry(table_offset: u64) -> u64 {
    COPIED | table_offset
}

/// Where the L2 table of an L1 entry starts, if there is one.
///
/// # Errors
/// When reserved bits are set or the offset is not that of a cluster.
pub fn parse_l1_entry(entry: u64, cluster_size: u64) -> Result<Option<u64>, Fault> {
    if entry & !(COPIED | OFFSET_MASK) != 0 {
        return Err(fault("L1", entry, "has reserved bits set"));
    }
    match entry & OFFSET_MASK {
        0 => Ok(None),
        offset if offset.is_multiple_of(cluster_size) => Ok(Some(offset)),
        _ => Err(fault("L1", entry, "is not aligned to a cluster")),
    }
}

/// An entry of an L2 table: what a cluster of the disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Entry {
    /// Nothing is said: the backing image's content, or zero without one.
    Unallocated,
    /// Zero.
    Zero,
    /// The cluster of the file at this offset.
    Data(u64),
}

impl L2Entry {
    /// The entry's bits ("Standard Cluster Descriptor"), for a cluster whose refcount is one.
    pub fn encode(self) -> u64 {
        match self {
            L2Entry::Unallocated => 0,
            L2Entry::Zero => READS_AS_ZERO,
            L2Entry::Data(offset) => COPIED | offset,
        }
    }

    /// What an entry says.
    ///
    /// # Errors
    /// When the cluster is compressed, reserved bits are set, or the offset is not that of a cluster.
    pub fn parse(entry: u64, cluster_size: u64) -> Result<L2Entry, Fault> {
        if entry & COMPRESSED != 0 {
            return Err(Fault::Compressed);
        }
        if entry & !(COPIED | OFFSET_MASK | READS_AS_ZERO) != 0 {
            return Err(fault("L2", entry, "has reserved bits set"));
        }
        let offset = entry & OFFSET_MASK;
        if !offset.is_multiple_of(cluster_size) {
            return Err(fault("L2", entry, "is not aligned to a cluster"));
        }
        // A zero cluster may keep a place in the file for later writes; it reads as zero all the same.
        Ok(match (entry & READS_AS_ZERO, offset) {
            (READS_AS_ZERO, _) => L2Entry::Zero,
            (_, 0) => L2Entry::Unallocated,
            _ => L2Entry::Data(offset),
        })
    }
}

fn fault(table: &'static str, entry: u64, why: &'static str) -> Fault {
    Fault::Entry { table, entry, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 10 * 65536;

    fn sample() -> Header {
        Header {
            cluster_bits: 16,
            size: 3 << 30,
            l1_offset: 5 * 65536,
            l1_entries: 6,
            refcount_table_offset: 7 * 65536,
            refcount_table_clusters: 1,
            refcount_order: 4,
            snapshots: 0,
            backing_name: Some("../2026-11-01T02-00-03Z.full/vda.qcow2".into()),
            backing_format: Some("qcow2".into()),
        }
    }

    /// The sample's first cluster with some of its bytes replaced, parsed.
    fn parse_with(offset: usize, bytes: &[u8]) -> Result<Header, Fault> {
        let mut cluster = sample().encode();
        cluster.resize(65536, 0);
        cluster[offset..offset + bytes.len()].copy_from_slice(bytes);
        Header::parse(&cluster, FILE)
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        assert_eq!(parse_with(0, b"QFI"), Ok(sample()));
        let mut alone = sample();
        (alone.backing_name, alone.backing_format) = (None, None);
        assert_eq!(Header::parse(&alone.encode(), FILE), Ok(alone));
    }

    #[test]
    fn the_longest_backing_name_fits_and_is_read_back() {
        let mut header = sample();
        header.backing_name = Some("n".repeat(MAX_BACKING_NAME));
        assert_eq!(Header::parse(&header.encode(), FILE), Ok(header));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let feature = |bit: u32| parse_with(72, &(1u64 << bit).to_be_bytes());
        assert_eq!(parse_with(0, b"KDMV"), Err(Fault::Magic));
        assert_eq!(Header::parse(b"QF", FILE), Err(Fault::Magic));
        assert_eq!(parse_with(4, &2u32.to_be_bytes()), Err(Fault::Version(2)));
        assert_eq!(parse_with(20, &22u32.to_be_bytes()), Err(Fault::ClusterBits(22)));
        assert_eq!(parse_with(20, &8u32.to_be_bytes()), Err(Fault::ClusterBits(8)));
        assert_eq!(parse_with(32, &2u32.to_be_bytes()), Err(Fault::Encrypted(2)));
        assert_eq!(feature(1), Err(Fault::Corrupt));
        assert_eq!(feature(2), Err(Fault::ExternalData));
        assert_eq!(feature(4), Err(Fault::ExtendedL2));
        assert_eq!(feature(40), Err(Fault::Features(1 << 40)));
        assert!(feature(0).is_ok(), "refcounts may be stale, they are not used");
        assert_eq!(parse_with(96, &7u32.to_be_bytes()), Err(Fault::RefcountOrder(7)));
        for length in [0u32, 72, 103, 105, 65544] {
            assert_eq!(
                parse_with(100, &length.to_be_bytes()),
                Err(Fault::HeaderLength(length))
            );
        }
    }

    #[test]
    fn an_l1_table_has_to_fit_disk_and_file() {
        let refused = |offset, bytes: &[u8]| matches!(parse_with(offset, bytes), Err(Fault::L1 { .. }));
        assert!(refused(36, &5u32.to_be_bytes()), "too few entries for the disk");
        assert!(refused(36, &u32::MAX.to_be_bytes()), "more than 32 MiB");
        assert!(refused(40, &(5 * 65536u64 + 8).to_be_bytes()), "not aligned");
        assert!(refused(40, &FILE.to_be_bytes()), "behind the file");
        assert!(refused(40, &(u64::MAX << 16).to_be_bytes()), "the sum overflows");
        assert!(refused(24, &u64::MAX.to_be_bytes()), "a disk of 16 EiB");
    }

    #[test]
    fn a_backing_name_has_to_lie_in_the_first_cluster() {
        let refused =
            |offset, bytes: &[u8]| matches!(parse_with(offset, bytes), Err(Fault::BackingName { .. }));
        assert!(refused(16, &1024u32.to_be_bytes()));
        assert!(refused(8, &65535u64.to_be_bytes()));
        assert!(refused(8, &u64::MAX.to_be_bytes()));
    }

    #[test]
    fn an_extension_beyond_its_room_is_refused() {
        assert_eq!(
            parse_with(HEADER_LENGTH + 4, &u32::MAX.to_be_bytes()),
            Err(Fault::Extension)
        );
    }

    #[test]
    fn entries_are_read_back_and_odd_ones_refused() {
        for entry in [L2Entry::Unallocated, L2Entry::Zero, L2Entry::Data(3 << 16)] {
            assert_eq!(L2Entry::parse(entry.encode(), 65536), Ok(entry));
        }
        assert_eq!(
            L2Entry::parse(COPIED | 3 << 16 | READS_AS_ZERO, 65536),
            Ok(L2Entry::Zero)
        );
        assert_eq!(
            L2Entry::parse(COMPRESSED | 3 << 16, 65536),
            Err(Fault::Compressed)
        );
        for odd in [2, 1 << 56, 1 << 61, 1 << 15] {
            assert!(
                matches!(L2Entry::parse(odd, 65536), Err(Fault::Entry { .. })),
                "L2 {odd:#x}"
            );
        }
        assert_eq!(parse_l1_entry(l1_entry(4 << 16), 65536), Ok(Some(4 << 16)));
        assert_eq!(parse_l1_entry(0, 65536), Ok(None));
        for odd in [1, 1 << 62, 1 << 56, 1 << 15] {
            assert!(
                matches!(parse_l1_entry(odd, 65536), Err(Fault::Entry { .. })),
                "L1 {odd:#x}"
            );
        }
    }
}
