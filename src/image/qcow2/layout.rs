//! Limits and table entries of the qcow2 format.
//!
//! Source: QEMU's `docs/interop/qcow2.txt` (section names in quotes below). The limits on table
//! sizes are QEMU's own (`block/qcow2.h`). Numbers are big-endian.

use crate::model::block::BlockErrorKind;

/// The version of the format that is written and read.
pub(crate) const VERSION: u32 = 3;
/// The longest L1 table, in bytes (`QCOW_MAX_L1_SIZE`).
pub(crate) const MAX_L1_BYTES: u64 = 32 * 1024 * 1024;
/// Bytes of one entry of an L1 table, an L2 table or the refcount table.
pub(crate) const ENTRY_BYTES: u64 = 8;
/// The smallest and the largest `cluster_bits` (`MIN_CLUSTER_BITS`, `MAX_CLUSTER_BITS`).
pub(crate) const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Set in an L1 or L2 entry whose cluster has a refcount of exactly one.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZERO: u64 = 1;
/// Bits 9 to 55: where the cluster lies in the file.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// A fault of an image, or a feature that this reader does not support.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The file is not a qcow2 image, or its writer did not finish it.
    #[error("the first bytes are not those of a qcow2 image")]
    Magic,
    /// Another version of the format.
    #[error("version {0} is not supported, only version 3 is")]
    Version(u32),
    /// A cluster size that the format does not allow.
    #[error("cluster_bits is {0}, it must be 9 to 21")]
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
    /// A backing name that lies outside the header's cluster, or is too long.
    #[error("a backing name of {length} bytes at offset {offset} is not allowed")]
    BackingName {
        /// Its start, as stored.
        offset: u64,
        /// Its length, as stored.
        length: u32,
    },
    /// An L1 table that is too large, too small for the disk, or not within the file.
    #[error(
        "an L1 table of {entries} entries at offset {offset} does not fit a disk of {size} bytes in this file"
    )]
    L1 {
        /// Number of its entries.
        entries: u32,
        /// Its start, as stored.
        offset: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// An entry with reserved bits, an unaligned offset, or an offset outside the file.
    #[error("{table} entry {entry:#018x} {why}")]
    Entry {
        /// "L1" or "L2".
        table: &'static str,
        /// The entry, as stored.
        entry: u64,
        /// The fault.
        why: &'static str,
    },
    /// A compressed cluster.
    #[error("compressed clusters are not supported")]
    Compressed,
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
                | Fault::Compressed
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
        _ => Err(fault("L1", entry, "is not aligned to a cluster")),
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
}

impl L2Entry {
    /// Encodes the entry ("Standard Cluster Descriptor"), for a cluster whose refcount is one.
    pub(crate) fn encode(self) -> u64 {
        match self {
            L2Entry::Unallocated => 0,
            L2Entry::Zero => READS_AS_ZERO,
            L2Entry::Data(offset) => COPIED | offset,
        }
    }

    /// Parses an entry.
    ///
    /// # Errors
    /// If the cluster is compressed, reserved bits are set, or the offset is not that of a cluster.
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
