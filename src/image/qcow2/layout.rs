//! Limits and table entries of the qcow2 format.
//!
//! Source: QEMU's `docs/interop/qcow2.txt` (section names in quotes below). The limits on table
//! sizes are QEMU's own (`block/qcow2.h`). Numbers are big-endian.

use crate::model::block::BlockErrorKind;

/// The version of the format that is written and read.
pub(crate) const VERSION: u32 = 3;
/// The longest L1 table, in bytes (`QCOW_MAX_L1_SIZE`).
pub(crate) const MAX_L1_BYTES: u64 = 32 * 1024 * 1024;
/// The size of an entry of an L1 table, an L2 table or the refcount table, in bytes.
pub(crate) const ENTRY_BYTES: u64 = 8;
/// The smallest and the largest `cluster_bits` (`MIN_CLUSTER_BITS`, `MAX_CLUSTER_BITS`).
pub(crate) const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Set in an L1 or L2 entry whose cluster has a refcount of exactly one.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZERO: u64 = 1;
/// The length of compressed clusters is counted in sectors of this many bytes.
pub(super) const SECTOR: u64 = 512;
/// Cluster size of the images that are written, as a power of two.
const OWN_CLUSTER_BITS: u32 = crate::model::block::CLUSTER.trailing_zeros();
/// Bits 9 to 55: where the cluster lies in the file.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// The fault of an entry whose offset is not that of a cluster.
const UNALIGNED: &str = "points to an offset that is not aligned to a cluster";

/// Why an image cannot be read: its content is invalid, or uses a feature that this reader does not
/// support.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file is not a qcow2 image, or its writer did not finish it.
    #[error("the first bytes are not those of a qcow2 image")]
    Magic,
    /// Another version of the format.
    #[error("qcow2 version {0} is not supported, only version 3 is")]
    Version(u32),
    /// A cluster size that the format does not allow.
    #[error("cluster_bits is {0}, but must be 9 to 21")]
    ClusterBits(u32),
    /// The file is shorter than its header.
    #[error("the header is cut off at byte {0}")]
    ShortHeader(usize),
    /// An invalid header length.
    #[error("invalid header_length {0}")]
    HeaderLength(u32),
    /// An invalid refcount width.
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
    /// Unknown features.
    #[error("unknown incompatible features {0:#x}")]
    Features(u64),
    /// A header extension that extends past the header's cluster.
    #[error("a header extension reaches past the header's cluster")]
    Extension,
    /// A backing name that is too long, or lies outside the image's first cluster.
    #[error(
        "the name of the backing image ({length} bytes at offset {offset}) is longer than 1023 bytes or lies outside the first cluster"
    )]
    BackingName {
        /// Its start, as stored.
        offset: u64,
        /// Its length, as stored.
        length: u32,
    },
    /// An L1 table that is too large, too small for the disk, not aligned to a cluster, or not
    /// within the file.
    #[error(
        "invalid L1 table ({entries} entries at offset {offset}): wrong size for a disk of {size} bytes, not aligned to a cluster, or outside the file"
    )]
    L1 {
        /// Number of its entries.
        entries: u32,
        /// Its start, as stored.
        offset: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// An entry with reserved bits, a flag that it must not have, an unaligned offset, or an offset
    /// outside the file.
    #[error("{table} entry {entry:#018x} {why}")]
    Entry {
        /// "L1" or "L2".
        table: &'static str,
        /// The entry, as stored.
        entry: u64,
        /// The fault, as the end of the sentence.
        why: &'static str,
    },
    /// Refcount tables that do not fit the file, or a refcount of 0 for a cluster in use.
    #[error("the refcount tables do not fit the file, or a cluster in use has the refcount 0")]
    Refcount,
    /// Compression other than zstd, or zstd without the feature bit for it.
    #[error("{}", compression_words(*.0))]
    CompressionType(u8),
    /// A compressed cluster whose bytes do not decompress to exactly one cluster.
    #[error("a compressed cluster is damaged: {0}")]
    Decompression(String),
}

impl Fault {
    /// Whether the image may be sound and only uses unsupported features.
    pub(crate) fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Fault::Version(_)
                | Fault::Encrypted(_)
                | Fault::ExternalData
                | Fault::ExtendedL2
                | Fault::Features(_)
                | Fault::CompressionType(_)
        )
    }

    /// The kind of this fault, for callers that copy blocks.
    pub fn kind(&self) -> BlockErrorKind {
        if self.is_unsupported() {
            BlockErrorKind::Invalid
        } else {
            BlockErrorKind::Damaged
        }
    }
}

/// Encodes an entry of the L1 table ("L1 table entry"), for an L2 table whose refcount is one.
pub(crate) fn l1_entry(table_offset: u64) -> u64 {
    COPIED | table_offset
}

/// Returns the offset of the L2 table of an L1 entry, if there is one.
///
/// # Errors
/// If reserved bits are set, or the offset is not that of a cluster.
pub(crate) fn parse_l1_entry(entry: u64, cluster_size: u64) -> Result<Option<u64>, Fault> {
    if entry & !(COPIED | OFFSET_MASK) != 0 {
        return Err(fault("L1", entry, "has reserved bits set"));
    }
    match entry & OFFSET_MASK {
        0 => Ok(None),
        offset if offset.is_multiple_of(cluster_size) => Ok(Some(offset)),
        _ => Err(fault("L1", entry, UNALIGNED)),
    }
}

/// An entry of an L2 table: the content of a cluster of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum L2Entry {
    /// Not mapped: the backing image's content, or zero without one.
    Unallocated,
    /// Zero.
    Zero,
    /// The cluster of the file at this offset.
    Data(u64),
    /// These bytes of the file, decompressed.
    Compressed(CompressedCluster),
}

/// Where the bytes of a compressed cluster lie in the file ("Compressed Clusters Descriptor").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedCluster {
    /// The first byte.
    pub start: u64,
    /// The end of the last sector of 512 bytes that belongs to it. Bytes of another cluster may
    /// follow in that sector.
    pub end: u64,
}

impl CompressedCluster {
    /// A cluster whose compressed form has `length` bytes, at least 1, from `start` on.
    pub fn new(start: u64, length: u64) -> CompressedCluster {
        let end = (start + length).next_multiple_of(SECTOR);
        CompressedCluster { start, end }
    }

    /// The number of bytes from its first byte to the end of its last sector; at most two clusters.
    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// `cluster_bits` is at least 9: the offset takes `62 - (cluster_bits - 8)` bits, the number of
    /// further sectors the ones above.
    fn parse(entry: u64, cluster_bits: u32) -> CompressedCluster {
        let offset_bits = 70 - cluster_bits;
        let start = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> offset_bits;
        let end = (start / SECTOR + sectors + 1) * SECTOR;
        CompressedCluster { start, end }
    }

    /// For a cluster of our size.
    fn encode(self) -> u64 {
        let sectors = (self.end - 1) / SECTOR - self.start / SECTOR;
        COMPRESSED | sectors << (70 - OWN_CLUSTER_BITS) | self.start
    }
}

fn compression_words(number: u8) -> String {
    let name = match number {
        0 => "zlib".to_owned(),
        1 => return "the compression type is zstd, but its feature bit is not set".to_owned(),
        other => format!("method {other}"),
    };
    format!("clusters compressed with {name} are not supported, only zstd is")
}

impl L2Entry {
    /// Encodes the entry. A cluster of [`L2Entry::Data`] must have the refcount 1.
    pub(crate) fn encode(self) -> u64 {
        match self {
            L2Entry::Unallocated => 0,
            L2Entry::Zero => READS_AS_ZERO,
            L2Entry::Data(offset) => COPIED | offset,
            // Never with the copied flag: its host cluster may hold other clusters.
            L2Entry::Compressed(cluster) => cluster.encode(),
        }
    }

    /// Parses an entry.
    ///
    /// # Errors
    /// If reserved bits are set, the offset is not that of a cluster, or the entry of a compressed
    /// cluster has the copied flag.
    pub fn parse(entry: u64, cluster_size: u64) -> Result<L2Entry, Fault> {
        if entry & COMPRESSED != 0 {
            if entry & COPIED != 0 {
                return Err(fault("L2", entry, "of a compressed cluster has the copied flag"));
            }
            let cluster = CompressedCluster::parse(entry, cluster_size.trailing_zeros());
            return Ok(L2Entry::Compressed(cluster));
        }
        if entry & !(COPIED | OFFSET_MASK | READS_AS_ZERO) != 0 {
            return Err(fault("L2", entry, "has reserved bits set"));
        }
        let offset = entry & OFFSET_MASK;
        if !offset.is_multiple_of(cluster_size) {
            return Err(fault("L2", entry, UNALIGNED));
        }
        // A zero cluster may keep its place in the file for later writes; it reads as zero all the
        // same.
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

    #[test]
    fn entries_are_read_back_and_odd_ones_refused() {
        for entry in [L2Entry::Unallocated, L2Entry::Zero, L2Entry::Data(3 << 16)] {
            assert_eq!(L2Entry::parse(entry.encode(), 65536), Ok(entry));
        }
        assert_eq!(
            L2Entry::parse(COPIED | 3 << 16 | READS_AS_ZERO, 65536),
            Ok(L2Entry::Zero)
        );
        assert!(L2Entry::parse(COPIED | COMPRESSED | 3 << 16, 65536).is_err());
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

    #[test]
    fn compressed_descriptors_are_read_back() {
        let places = [
            (65536, 1),
            (65536, 512),
            (65537, 512),
            (65537, 511),
            (1 << 40 | 77, 65535),
        ];
        for (start, length) in places {
            let cluster = CompressedCluster::new(start, length);
            assert!(cluster.end >= start + length && cluster.end < start + length + SECTOR);
            let entry = L2Entry::Compressed(cluster);
            assert_eq!(L2Entry::parse(entry.encode(), 65536), Ok(entry));
        }
        // The widest fields: no size of a cluster lets the arithmetic overflow.
        for bits in CLUSTER_BITS {
            let widest = L2Entry::parse(!COPIED, 1 << bits);
            let Ok(L2Entry::Compressed(cluster)) = widest else {
                panic!("it is a compressed cluster: {widest:?}");
            };
            assert!(cluster.length() <= 2 << bits);
        }
    }
}
