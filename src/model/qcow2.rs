//! Parses the header of a qcow2 image: "Header" and "Header extensions" in QEMU's
//! `docs/interop/qcow2.txt`.
//!
//! Numbers are big-endian. The parser accepts any bytes. It locates fields, names and extensions;
//! its callers decide which values they accept.

/// The first four bytes of an image.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of a version 2 header, in bytes.
pub(crate) const LENGTH_V2: usize = 72;
/// Length of a version 3 header without optional fields, in bytes.
pub(crate) const LENGTH_V3: usize = 104;
/// The greatest length of a backing file's name, in bytes (`backing_file_size`).
pub(crate) const MAX_BACKING_NAME: usize = 1023;

/// Incompatible feature: an external data file holds the guest's bytes.
pub(crate) const EXTERNAL_DATA: u64 = 1 << 2;

/// The extension that ends the list.
pub(crate) const EXTENSION_END: u32 = 0;
/// The extension with the name of the backing file's format.
pub(crate) const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// The extension that locates the bitmaps.
pub(crate) const EXTENSION_BITMAPS: u32 = 0x2385_2875;
/// The extension with the name of the external data file.
pub(crate) const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// Part of a header reaches beyond the available bytes, or beyond its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBounds;

/// The beginning of a qcow2 image.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a>(&'a [u8]);

impl<'a> Head<'a> {
    /// The beginning of an image, if it starts with the magic number of qcow2 (any version).
    pub fn new(bytes: &'a [u8]) -> Option<Head<'a>> {
        bytes.starts_with(&MAGIC).then_some(Head(bytes))
    }

    /// The 4-byte field at an offset.
    pub fn u32(self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at.checked_add(4)?)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// The 8-byte field at an offset.
    pub fn u64(self, at: usize) -> Option<u64> {
        let bytes = self.0.get(at..at.checked_add(8)?)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }

    /// The version of the format.
    pub fn version(self) -> Option<u32> {
        self.u32(4)
    }

    /// Length of the header, in bytes. A version 2 header has a fixed length.
    pub fn length(self) -> Option<usize> {
        match self.version()? {
            2 => Some(LENGTH_V2),
            _ => usize::try_from(self.u32(100)?).ok(),
        }
    }

    /// The incompatible features; 0 for version 2, which has none.
    pub(crate) fn incompatible_features(self) -> Option<u64> {
        match self.version()? {
            2 => Some(0),
            _ => self.u64(72),
        }
    }

    /// The method of encryption; 0 if the image is not encrypted.
    pub fn encryption(self) -> Option<u32> {
        self.u32(32)
    }

    /// The backing file's name, if the header names one.
    ///
    /// # Errors
    /// The name is too long, or the bytes do not hold it.
    pub(crate) fn backing_name(self) -> Result<Option<&'a [u8]>, OutOfBounds> {
        let offset = self.u64(8).ok_or(OutOfBounds)?;
        let length = self.u32(16).ok_or(OutOfBounds)? as usize;
        if offset == 0 || length == 0 {
            return Ok(None);
        }
        let start = usize::try_from(offset).map_err(|_| OutOfBounds)?;
        let end = start.checked_add(length).filter(|_| length <= MAX_BACKING_NAME);
        let name = end.and_then(|end| self.0.get(start..end));
        name.map(Some).ok_or(OutOfBounds)
    }

    /// The header's extensions in their order: kind and content.
    ///
    /// They end with [`EXTENSION_END`], where the backing file's name begins, or with the bytes.
    /// Nothing follows after an error.
    pub fn extensions(self) -> Extensions<'a> {
        let name = self.u64(8).filter(|offset| *offset != 0).unwrap_or(u64::MAX);
        let end = usize::try_from(name).unwrap_or(usize::MAX).min(self.0.len());
        Extensions {
            head: Head(&self.0[..end]),
            next: self.length(),
        }
    }
}

/// The extensions of a header.
#[derive(Clone, Debug)]
pub struct Extensions<'a> {
    head: Head<'a>,
    next: Option<usize>,
}

impl<'a> Iterator for Extensions<'a> {
    type Item = Result<(u32, &'a [u8]), OutOfBounds>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.next.take()?;
        let kind = self.head.u32(at)?;
        let length = self.head.u32(at.checked_add(4)?)? as usize;
        if kind == EXTENSION_END {
            return None;
        }
        let start = at + 8;
        let end = start.checked_add(length);
        let Some(content) = end.and_then(|end| self.head.0.get(start..end)) else {
            return Some(Err(OutOfBounds));
        };
        self.next = start.checked_add(length.next_multiple_of(8));
        Some(Ok((kind, content)))
    }
}

#[cfg(test)]
pub mod samples {
    //! Headers as `qemu-img create` writes them.

    use super::*;

    /// A header of this version with these names: the backing file with its format, and the data
    /// file.
    pub fn header(version: u32, backing: Option<(&str, Option<&str>)>, data_file: Option<&str>) -> Vec<u8> {
        let mut bytes = vec![0; if version == 2 { LENGTH_V2 } else { LENGTH_V3 }];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        let mut extension = |kind: u32, text: &str| {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((text.len() as u32).to_be_bytes());
            bytes.extend(text.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        if let Some((_, Some(format))) = backing {
            extension(EXTENSION_BACKING_FORMAT, format);
        }
        if let Some(name) = data_file {
            extension(EXTENSION_DATA_FILE, name);
        }
        bytes.extend([0; 8]);
        if let Some((name, _)) = backing {
            let at = bytes.len() as u64;
            bytes[8..16].copy_from_slice(&at.to_be_bytes());
            bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            bytes.extend(name.as_bytes());
        }
        if version == 3 {
            let features = if data_file.is_some() { EXTERNAL_DATA } else { 0 };
            bytes[72..80].copy_from_slice(&features.to_be_bytes());
            bytes[100..104].copy_from_slice(&(LENGTH_V3 as u32).to_be_bytes());
        }
        bytes.resize(65536, 0);
        bytes
    }

    /// The header with a piece overwritten, cut to 400 bytes: the kind of bytes that a hostile
    /// guest may write.
    pub fn overwritten(mut header: Vec<u8>, at: usize, noise: &[u8]) -> Vec<u8> {
        header.truncate(400);
        for (offset, byte) in noise.iter().enumerate() {
            if let Some(place) = header.get_mut(at + offset) {
                *place = *byte;
            }
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::samples::{header, overwritten};
    use super::*;

    fn extensions(bytes: &[u8]) -> Vec<Result<(u32, &[u8]), OutOfBounds>> {
        Head::new(bytes).expect("the magic").extensions().collect()
    }

    #[test]
    fn both_versions_have_names_and_extensions() {
        for version in [2, 3] {
            let bytes = header(version, Some(("base.img", Some("raw"))), Some("/data"));
            let head = Head::new(&bytes).expect("the magic");
            assert_eq!(head.version(), Some(version));
            assert_eq!(head.backing_name(), Ok(Some(&b"base.img"[..])));
            let expected = [
                Ok((EXTENSION_BACKING_FORMAT, &b"raw"[..])),
                Ok((EXTENSION_DATA_FILE, b"/data")),
            ];
            assert_eq!(extensions(&bytes), expected);
            let features = if version == 2 { 0 } else { EXTERNAL_DATA };
            assert_eq!(head.incompatible_features(), Some(features));
        }
        assert_eq!(Head::new(b"QFI").map(|_| ()), None);
        let bytes = header(3, None, None);
        assert_eq!(Head::new(&bytes).expect("the magic").backing_name(), Ok(None));
        assert_eq!(extensions(&bytes), []);
    }

    #[test]
    fn a_backing_name_lies_within_the_bytes_and_the_limit() {
        let name = "n".repeat(MAX_BACKING_NAME);
        let whole = header(3, Some((&name, None)), None);
        let found = |bytes: &[u8]| {
            Head::new(bytes)
                .expect("the magic")
                .backing_name()
                .map(Option::unwrap_or_default)
                .map(<[u8]>::len)
        };
        assert_eq!(found(&whole), Ok(MAX_BACKING_NAME));
        let with = |at: usize, field: &[u8]| {
            let mut bytes = whole.clone();
            bytes[at..at + field.len()].copy_from_slice(field);
            found(&bytes)
        };
        assert_eq!(with(16, &1024u32.to_be_bytes()), Err(OutOfBounds));
        assert_eq!(with(8, &65535u64.to_be_bytes()), Err(OutOfBounds));
        assert_eq!(with(8, &u64::MAX.to_be_bytes()), Err(OutOfBounds));
        assert_eq!(with(16, &[0; 4]), Ok(0), "an empty name counts as no name");
        assert_eq!(found(&whole[..18]), Err(OutOfBounds), "cut in the field");
    }

    #[test]
    fn an_extension_beyond_its_room_is_an_error_and_the_last() {
        let mut bytes = header(3, Some(("base", Some("qcow2"))), Some("d"));
        bytes[108..112].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(extensions(&bytes), [Err(OutOfBounds)]);
        // The extensions end where the name begins.
        let mut bytes = header(3, Some(("base", Some("qcow2"))), Some("d"));
        bytes[8..16].copy_from_slice(&120u64.to_be_bytes());
        assert_eq!(extensions(&bytes).len(), 1);
        bytes[100..104].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(extensions(&bytes), [], "a header longer than its bytes");
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..400),
            version in 0u32..5,
            at in 4usize..300,
            cut in 4usize..500,
        ) {
            let whole = header(version, Some(("base", Some("raw"))), Some("d"));
            let mut bytes = overwritten(whole, at, &noise);
            bytes.truncate(cut);
            let head = Head::new(&bytes).expect("the magic stays");
            let _ = (head.length(), head.incompatible_features(), head.encryption());
            if let Ok(Some(name)) = head.backing_name() {
                prop_assert!((1..=MAX_BACKING_NAME).contains(&name.len()));
            }
            // Each extension takes at least 8 bytes.
            prop_assert!(head.extensions().count() <= bytes.len() / 8);
            let mut pure = MAGIC.to_vec();
            pure.extend(noise);
            let _ = Head::new(&pure).map(|head| head.extensions().count());
        }
    }
}
