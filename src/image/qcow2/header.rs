//! The header of an image: "Header" and "Header extensions" in QEMU's `docs/interop/qcow2.txt`.
//! Numbers are big-endian.

use super::layout::{CLUSTER_BITS, ENTRY_BYTES, Fault, MAX_L1_BYTES, VERSION};
use crate::model::block::CLUSTER;
use crate::model::qcow2::{EXTENSION_BACKING_FORMAT, EXTERNAL_DATA, Head, LENGTH_V3, MAGIC, OutOfBounds};

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// The compression type zstd.
const ZSTD: u8 = 1;
/// Length of a header with a compression type, in bytes.
const LENGTH_COMPRESSION: usize = LENGTH_V3 + 8;

/// The fields of a header. Offsets and sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Binary logarithm of the cluster size.
    pub cluster_bits: u32,
    /// Size of the disk.
    pub size: u64,
    /// Where the L1 table starts.
    pub l1_offset: u64,
    /// Number of entries of the L1 table.
    pub l1_entries: u32,
    /// Where the refcount table starts.
    pub refcount_table_offset: u64,
    /// Number of clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Binary logarithm of the width of a refcount in bits.
    pub refcount_order: u32,
    /// Number of internal snapshots. Their content is not read.
    pub snapshots: u32,
    /// Whether compressed clusters are zstd frames (compression type 1); otherwise they are zlib
    /// streams.
    pub zstd: bool,
    /// Name of the backing image. Bytes of the name that are not UTF-8 are replaced.
    pub backing_name: Option<String>,
    /// The backing image's format, if the header names it.
    pub backing_format: Option<String>,
}

impl Header {
    /// Size of a cluster, in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Number of entries in an L2 table.
    pub(crate) fn table_entries(&self) -> u64 {
        self.cluster_size() / ENTRY_BYTES
    }

    /// The number of bytes of the disk that one L2 table maps.
    pub(crate) fn table_span(&self) -> u64 {
        self.cluster_size() * self.table_entries()
    }

    /// Reads the cluster size, in bytes, from the fixed part of a header. [`Header::parse`] needs
    /// the image's first cluster.
    ///
    /// # Errors
    /// If it is not the header of a version 3 image, or its cluster size is invalid.
    pub(crate) fn probe_cluster_size(bytes: &[u8]) -> Result<u64, Fault> {
        let field = Fields::new(bytes)?;
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

    /// Parses the header from the image's first cluster, or the part of it that exists, for a file
    /// of `file_length` bytes.
    ///
    /// # Errors
    /// If a field is invalid, unsupported, or does not fit the file.
    pub fn parse(first_cluster: &[u8], file_length: u64) -> Result<Header, Fault> {
        let cluster_size = Header::probe_cluster_size(first_cluster)?;
        let visible = first_cluster
            .len()
            .min(usize::try_from(cluster_size).unwrap_or(usize::MAX));
        let field = Fields::new(&first_cluster[..visible])?;
        let header_length = field.u32(100)?;
        if header_length < LENGTH_V3 as u32
            || u64::from(header_length) > cluster_size
            || !header_length.is_multiple_of(8)
        {
            return Err(Fault::HeaderLength(header_length));
        }
        let features = field.u64(72)?;
        check_features(features)?;
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
            zstd: is_zstd(field, features, header_length)?,
            backing_name: backing_name(field)?,
            backing_format: backing_format(field)?,
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

    /// The first cluster of an image that vmsnap writes: [`Header::encode`] and zeroes.
    pub(crate) fn in_cluster(&self) -> Vec<u8> {
        let mut bytes = self.encode();
        bytes.resize(CLUSTER as usize, 0);
        bytes
    }

    /// Encodes the header with its extensions and the backing name, in less than a cluster of
    /// 64 KiB. The backing name must have at most
    /// [`MAX_BACKING_NAME`](crate::model::qcow2::MAX_BACKING_NAME) bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let name = self.backing_name.as_deref().unwrap_or_default().as_bytes();
        let length = if self.zstd { LENGTH_COMPRESSION } else { LENGTH_V3 };
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
            (length + extensions.len()) as u64
        };

        let mut bytes = Vec::with_capacity(length + extensions.len() + name.len());
        bytes.extend(MAGIC);
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
        // Offset of the snapshots; then incompatible, compatible and autoclear features.
        bytes.extend([0; 8]);
        bytes.extend(if self.zstd { COMPRESSION_TYPE } else { 0 }.to_be_bytes());
        bytes.extend([0; 2 * 8]);
        bytes.extend(self.refcount_order.to_be_bytes());
        bytes.extend((length as u32).to_be_bytes());
        if self.zstd {
            bytes.extend([ZSTD, 0, 0, 0, 0, 0, 0, 0]);
        }
        bytes.extend(extensions);
        bytes.extend(name);
        bytes
    }
}

fn check_features(incompatible: u64) -> Result<(), Fault> {
    // A dirty image has unreliable refcounts, which a reader does not use.
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

/// Reads the compression type. The field must be there if the feature bit is set, and zero (zlib)
/// otherwise.
fn is_zstd(field: Fields<'_>, features: u64, header_length: u32) -> Result<bool, Fault> {
    let is_there = header_length as usize >= LENGTH_COMPRESSION;
    let number = match is_there {
        true => (field.u32(LENGTH_V3)? >> 24) as u8,
        false => 0,
    };
    match (features & COMPRESSION_TYPE != 0, number) {
        (false, 0) => Ok(false),
        (true, ZSTD) => Ok(true),
        (true, 0) if !is_there => Err(Fault::HeaderLength(header_length)),
        (_, other) => Err(Fault::CompressionType(other)),
    }
}

fn backing_name(field: Fields<'_>) -> Result<Option<String>, Fault> {
    let (offset, length) = (field.u64(8)?, field.u32(16)?);
    let name = field.head.backing_name();
    let name = name.map_err(|OutOfBounds| Fault::BackingName { offset, length })?;
    Ok(name.map(|name| String::from_utf8_lossy(name).into_owned()))
}

fn backing_format(field: Fields<'_>) -> Result<Option<String>, Fault> {
    for extension in field.head.extensions() {
        let (kind, content) = extension.map_err(|OutOfBounds| Fault::Extension)?;
        if kind == EXTENSION_BACKING_FORMAT {
            return Ok(Some(String::from_utf8_lossy(content).into_owned()));
        }
    }
    Ok(None)
}

/// Reads the header's fields at given offsets.
#[derive(Clone, Copy)]
struct Fields<'a> {
    head: Head<'a>,
    length: usize,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Result<Fields<'a>, Fault> {
        let head = Head::new(bytes).ok_or(Fault::Magic)?;
        let length = bytes.len();
        Ok(Fields { head, length })
    }

    fn u32(self, at: usize) -> Result<u32, Fault> {
        self.head.u32(at).ok_or(Fault::ShortHeader(self.length))
    }

    fn u64(self, at: usize) -> Result<u64, Fault> {
        self.head.u64(at).ok_or(Fault::ShortHeader(self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::qcow2::MAX_BACKING_NAME;

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
            zstd: false,
            backing_name: Some("../2026-11-01T02-00-03Z.full/vda.qcow2".into()),
            backing_format: Some("qcow2".into()),
        }
    }

    /// Parses the sample's first cluster with some of its bytes replaced.
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
        let mut compressed = sample();
        compressed.zstd = true;
        assert_eq!(Header::parse(&compressed.encode(), FILE), Ok(compressed));
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
        assert_eq!(feature(3), Err(Fault::HeaderLength(104)), "no compression type");
        let mut unknown = sample();
        unknown.zstd = true;
        let mut bytes = unknown.encode();
        for number in [0, 2] {
            bytes[104] = number;
            assert_eq!(Header::parse(&bytes, FILE), Err(Fault::CompressionType(number)));
        }
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
        assert!(refused(40, &FILE.to_be_bytes()), "after the end of the file");
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
            parse_with(LENGTH_V3 + 4, &u32::MAX.to_be_bytes()),
            Err(Fault::Extension)
        );
    }
}
