//! Reads the references to other files from an image's header, as far as libvirt reads them.

use crate::model::qcow2::{
    self, EXTENSION_BACKING_FORMAT, EXTENSION_BITMAPS, EXTENSION_DATA_FILE, EXTERNAL_DATA, OutOfBounds,
};

/// How many bytes of an image are read: the same number as in libvirt (`VIR_STORAGE_MAX_HEADER`).
pub const HEAD: usize = 0x8200;

/// The properties that a qcow2 header records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The backing file's name and, where it is recorded, its format.
    pub backing: Option<(String, Option<String>)>,
    /// Whether the guest's bytes are in another file.
    pub has_data_file: bool,
    /// The name of the data file, if the header records one.
    pub data_file: Option<String>,
    /// The method of encryption; 0 if the image is not encrypted.
    pub encryption: u32,
    /// Whether the image may contain bitmaps, as its header shows.
    pub has_bitmaps: bool,
}

/// The probable format of an image, from its first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looks {
    /// A qcow2 image.
    Qcow2(Header),
    /// An image of another format, by name.
    Other(&'static str),
    /// No known format.
    Raw,
}

/// Formats and their magic bytes at an offset, as in libvirt (`fileTypeInfo` in its
/// `storage_file_probe.c`).
const MAGICS: [(&str, usize, &[u8]); 14] = [
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
    ("cowd", 0, b"COWD"),
    ("iso", 32769, b"CD001"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("ploop", 0, b"WithouFreSpacExt"),
    ("qcow", 0, b"QFI\xfb"),
    ("qed", 0, b"QED\0"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("vhdx", 0, b"vhdxfile"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vpc", 0, b"conectix"),
];

/// Guesses the format of an image from its first bytes.
///
/// # Errors
/// The image begins like qcow2 but has an invalid header.
pub fn probe(head: &[u8]) -> Result<Looks, String> {
    let version = qcow2::Head::new(head).and_then(qcow2::Head::version);
    if matches!(version, Some(2 | 3)) {
        return parse(head).map(Looks::Qcow2);
    }
    let has =
        |(_, at, magic): &&(&str, usize, &[u8])| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    Ok(MAGICS
        .iter()
        .find(has)
        .map_or(Looks::Raw, |(name, ..)| Looks::Other(name)))
}

/// Reads the header of a qcow2 image of version 2 or 3 from the first [`HEAD`] bytes of its file.
///
/// # Errors
/// The bytes are not a qcow2 header, or one of its fields, names or extensions is invalid.
pub fn parse(head: &[u8]) -> Result<Header, String> {
    let short = || "its header is truncated".to_owned();
    let head = qcow2::Head::new(head).ok_or_else(|| "it is not a qcow2 image".to_owned())?;
    match head.version().ok_or_else(short)? {
        2 | 3 => {}
        other => return Err(format!("it is a qcow2 image of the unknown version {other}")),
    }
    // Checked because without its length field the header would seem to have no extensions.
    head.length().ok_or_else(short)?;
    let features = head.incompatible_features().ok_or_else(short)?;
    let name = head.backing_name().ok().and_then(|name| match name {
        None => Some(None),
        Some(name) => text(name).map(Some),
    });
    let name = name.ok_or_else(|| "the name of its backing file is invalid".to_owned())?;
    let mut header = Header {
        encryption: head.encryption().ok_or_else(short)?,
        has_data_file: features & EXTERNAL_DATA != 0,
        backing: name.map(|name| (name, None)),
        ..Header::default()
    };
    for extension in head.extensions() {
        let (kind, content) =
            extension.map_err(|OutOfBounds| "an extension of its header is truncated".to_owned())?;
        let text = || text(content).ok_or_else(|| "a name in its header is invalid".to_owned());
        match kind {
            EXTENSION_BACKING_FORMAT => {
                if let Some((_, format)) = &mut header.backing {
                    *format = Some(text()?);
                }
            }
            EXTENSION_DATA_FILE => header.data_file = Some(text()?),
            EXTENSION_BITMAPS => header.has_bitmaps = true,
            _ => {}
        }
    }
    Ok(header)
}

/// Decodes a name in a header.
///
/// A name with a NUL byte is invalid: QEMU would read only the part before it.
fn text(name: &[u8]) -> Option<String> {
    let name = String::from_utf8(name.to_vec()).ok()?;
    (!name.contains('\0')).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::qcow2::samples::{header, overwritten};

    #[test]
    fn both_versions_name_their_backing_file() {
        for version in [2, 3] {
            let read = parse(&header(version, Some(("base.img", Some("raw"))), None)).expect("a header");
            assert_eq!(read.backing, Some(("base.img".into(), Some("raw".into()))));
            let read = parse(&header(version, Some(("base.img", None)), None)).expect("a header");
            assert_eq!(read.backing, Some(("base.img".into(), None)));
        }
        let read = parse(&header(3, None, Some("/d"))).expect("a header");
        assert!(read.has_data_file && read.backing.is_none());
        assert_eq!(read.data_file.as_deref(), Some("/d"));
    }

    #[test]
    fn formats_are_recognised_by_their_magic() {
        assert_eq!(probe(b"plain text"), Ok(Looks::Raw));
        assert_eq!(probe(b"KDMV\0"), Ok(Looks::Other("vmdk")));
        assert_eq!(probe(b"LUKS\xba\xbe\0\x01"), Ok(Looks::Other("luks")));
        assert_eq!(probe(b"QFI\xfb\0\0\0\x01"), Ok(Looks::Other("qcow")));
        assert!(matches!(probe(&header(3, None, None)), Ok(Looks::Qcow2(_))));
        probe(b"QFI\xfb\0\0\0\x03").expect_err("it is truncated");
    }

    #[test]
    fn names_outside_of_the_header_are_refused() {
        let mut bytes = header(3, Some(("base", None)), None);
        bytes[8..16].copy_from_slice(&u64::MAX.to_be_bytes());
        parse(&bytes).expect_err("beyond the end");
        let mut bytes = header(3, Some(("base", None)), None);
        bytes[16..20].copy_from_slice(&5000u32.to_be_bytes());
        parse(&bytes).expect_err("too long");
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..400),
            version in 0u32..4,
            at in 0usize..300,
        ) {
            let bytes = overwritten(header(version, Some(("base", Some("raw"))), Some("d")), at, &noise);
            let _ = parse(&bytes);
            let _ = probe(&bytes);
            let _ = probe(&noise);
        }
    }
}
