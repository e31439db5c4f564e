//! What the header of an image says of other files: "Header" and "Header extensions" in QEMU's
//! `docs/interop/qcow2.txt`, read as far as libvirt reads it.
//!
//! The room `image` has a parser for images of ours, which refuses most of what a domain's own image may be.

/// How much of an image's beginning is looked at, in bytes: as much as libvirt looks at (`VIR_STORAGE_MAX_HEADER`).
pub const HEAD: usize = 0x8200;

const MAGIC: &[u8] = b"QFI\xfb";
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTERNAL_DATA: u64 = 1 << 2;
const V2_LENGTH: usize = 72;

/// What a qcow2 header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The backing file's name and, where it is recorded, its format.
    pub backing: Option<(String, Option<String>)>,
    /// Whether the guest's bytes lie in another file.
    pub has_data_file: bool,
    /// That file's name.
    pub data_file: Option<String>,
    /// The method of encryption; 0 is none.
    pub encryption: u32,
    /// Whether the image may carry bitmaps.
    pub has_bitmaps: bool,
}

/// What the first bytes of an image look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looks {
    /// A qcow2 image.
    Qcow2(Header),
    /// An image of another format, by name.
    Other(&'static str),
    /// Nothing in particular.
    Raw,
}

/// Formats by the bytes at an offset, as libvirt tells them (`fileTypeInfo` in its `storage_file_probe.c`).
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

/// Tells what the first bytes of an image look like.
///
/// # Errors
/// When it begins like a qcow2 image whose header is broken.
pub fn probe(head: &[u8]) -> Result<Looks, String> {
    let is_qcow2 = head.starts_with(MAGIC) && matches!(number(head, 4), Some(2 | 3));
    if is_qcow2 {
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
/// When it is none, or says something that cannot be.
pub fn parse(head: &[u8]) -> Result<Header, String> {
    let short = || "its header is cut short".to_owned();
    if !head.starts_with(MAGIC) {
        return Err("it is not a qcow2 image".to_owned());
    }
    let version = number(head, 4).ok_or_else(short)?;
    let encryption = number(head, 32).ok_or_else(short)?;
    let (incompatible, extensions) = match version {
        2 => (0, V2_LENGTH),
        3 => (
            long(head, 72).ok_or_else(short)?,
            number(head, 100).ok_or_else(short)? as usize,
        ),
        other => return Err(format!("it is a qcow2 image of the unknown version {other}")),
    };
    let mut header = Header {
        encryption,
        has_data_file: incompatible & EXTERNAL_DATA != 0,
        ..Header::default()
    };
    let name_at = long(head, 8).ok_or_else(short)?;
    let name_length = number(head, 16).ok_or_else(short)? as usize;
    let has_backing = name_at != 0 && name_length != 0;
    let mut end = head.len();
    if has_backing {
        let at = usize::try_from(name_at).unwrap_or(usize::MAX);
        let name = at.checked_add(name_length).and_then(|end| head.get(at..end));
        let name = name.filter(|_| name_length <= 1023).map(<[u8]>::to_vec);
        let name = name.and_then(|name| String::from_utf8(name).ok());
        let name = name.filter(|name| !name.contains('\0'));
        let name = name.ok_or_else(|| "the name of its backing file is invalid".to_owned())?;
        header.backing = Some((name, None));
        end = end.min(at);
    }
    read_extensions(&head[..end], extensions, &mut header)?;
    Ok(header)
}

fn read_extensions(head: &[u8], mut at: usize, header: &mut Header) -> Result<(), String> {
    while let (Some(kind), Some(length)) = (number(head, at), number(head, at.saturating_add(4))) {
        if kind == EXTENSION_END {
            return Ok(());
        }
        let start = at + 8;
        let data = start
            .checked_add(length as usize)
            .and_then(|end| head.get(start..end));
        let data = data.ok_or_else(|| "an extension of its header is cut short".to_owned())?;
        let text = || {
            let text = String::from_utf8(data.to_vec())
                .ok()
                .filter(|text| !text.contains('\0'));
            text.ok_or_else(|| "a name in its header is invalid".to_owned())
        };
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
        at = start + (length as usize).next_multiple_of(8);
    }
    Ok(())
}

fn number(head: &[u8], at: usize) -> Option<u32> {
    let bytes = head.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn long(head: &[u8], at: usize) -> Option<u64> {
    let bytes = head.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
pub mod samples {
    //! Headers as `qemu-img create` writes them.

    /// A header of the given version with these names in it.
    pub fn header(version: u32, backing: Option<(&str, Option<&str>)>, data_file: Option<&str>) -> Vec<u8> {
        let start: usize = if version == 2 { 72 } else { 104 };
        let mut bytes = vec![0; start];
        bytes[..4].copy_from_slice(super::MAGIC);
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        let mut extension = |kind: u32, text: &str| {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((text.len() as u32).to_be_bytes());
            bytes.extend(text.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        if let Some((_, Some(format))) = backing {
            extension(super::EXTENSION_BACKING_FORMAT, format);
        }
        if let Some(name) = data_file {
            extension(super::EXTENSION_DATA_FILE, name);
        }
        bytes.extend([0; 8]);
        if let Some((name, _)) = backing {
            let at = bytes.len() as u64;
            bytes[8..16].copy_from_slice(&at.to_be_bytes());
            bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            bytes.extend(name.as_bytes());
        }
        if version == 3 {
            let features = if data_file.is_some() {
                super::EXTERNAL_DATA
            } else {
                0
            };
            bytes[72..80].copy_from_slice(&features.to_be_bytes());
            bytes[100..104].copy_from_slice(&104u32.to_be_bytes());
        }
        bytes.resize(65536, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::header;
    use super::*;

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
    fn formats_are_told_by_their_magic() {
        assert_eq!(probe(b"plain text"), Ok(Looks::Raw));
        assert_eq!(probe(b"KDMV\0"), Ok(Looks::Other("vmdk")));
        assert_eq!(probe(b"LUKS\xba\xbe\0\x01"), Ok(Looks::Other("luks")));
        assert_eq!(probe(b"QFI\xfb\0\0\0\x01"), Ok(Looks::Other("qcow")));
        assert!(matches!(probe(&header(3, None, None)), Ok(Looks::Qcow2(_))));
        probe(b"QFI\xfb\0\0\0\x03").expect_err("it is cut short");
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
            let mut bytes = header(version.max(2), Some(("base", Some("raw"))), Some("d"));
            bytes.truncate(400);
            for (offset, byte) in noise.iter().enumerate() {
                if let Some(place) = bytes.get_mut(at + offset) {
                    *place = *byte;
                }
            }
            let _ = parse(&bytes);
            let _ = probe(&bytes);
            let _ = probe(&noise);
        }
    }
}
