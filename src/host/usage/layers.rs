//! The files beneath a qcow2 image, as its header and the headers beneath it name them.
//!
//! Headers are hostile: a guest may have written one. The names are only compared with a device that a restore would overwrite. Nothing but
//! the headers of qcow2 images is read, and an image that claims too much can only cause a refusal.
//!
//! The format is `docs/interop/qcow2.txt` of QEMU.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Images of one chain that are looked at at most; libvirt itself follows 200.
const MOST_LAYERS: usize = 256;
/// Bytes of an image that are read. The names lie within its first cluster, which is 64 KiB unless somebody chose otherwise.
const HEAD: u64 = 2 << 20;
/// The longest name (`backing_file_size`).
const LONGEST_NAME: u32 = 1023;

const MAGIC: &[u8] = b"QFI\xfb";
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const DATA_FILE: u32 = 0x4441_5441;
const END: u32 = 0;

/// What a header names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Named {
    backing: Option<PathBuf>,
    /// Whether the header says that the backing file is qcow2 itself.
    backing_is_qcow2: bool,
    data: Option<PathBuf>,
}

/// The files beneath an image, topmost first. What cannot be read names nothing.
pub(super) fn beneath(image: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut next = Some(image.to_owned());
    while let Some(image) = next.take() {
        if seen.len() >= MOST_LAYERS || !seen.insert(image.clone()) {
            break;
        }
        let named = head(&image).map(|head| read(&head, &image)).unwrap_or_default();
        found.extend(named.data);
        found.extend(named.backing.clone());
        next = named.backing.filter(|_| named.backing_is_qcow2);
    }
    found
}

/// The beginning of a file or block device; a pipe would keep us waiting.
fn head(image: &Path) -> Option<Vec<u8>> {
    let kind = image.metadata().ok()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    let mut bytes = Vec::new();
    let file = options.open(image).ok()?;
    file.take(HEAD).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn read(head: &[u8], image: &Path) -> Named {
    let mut named = Named::default();
    if !head.starts_with(MAGIC) {
        return named;
    }
    let path = |name: &[u8]| path_of(name, image);
    let (offset, length) = (long(head, 8), word(head, 16));
    if let (Some(offset @ 1..), Some(length @ 1..=LONGEST_NAME)) = (offset, length) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let name = head.get(start..start.saturating_add(length as usize));
        named.backing = name.and_then(path);
    }
    let mut at = match word(head, 4) {
        Some(2) => 72,
        _ => word(head, 100).unwrap_or(u32::MAX) as usize,
    };
    while let (Some(kind), Some(length)) = (word(head, at), word(head, at.saturating_add(4))) {
        let start = at.saturating_add(8);
        let end = start.saturating_add(length as usize);
        let Some(content) = head.get(start..end) else {
            break;
        };
        match kind {
            END => break,
            BACKING_FORMAT => named.backing_is_qcow2 = content == b"qcow2",
            DATA_FILE => named.data = path(content),
            _ => {}
        }
        at = end.next_multiple_of(8);
    }
    named
}

/// A path on this machine, from a name as QEMU takes it; `None` for one elsewhere.
fn path_of(name: &[u8], image: &Path) -> Option<PathBuf> {
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    if let Some(json) = name.strip_prefix(b"json:") {
        let value: serde_json::Value = serde_json::from_slice(json).ok()?;
        let inner = value.get("file").and_then(|file| file.get("filename"));
        let filename = value.get("file.filename").or(inner).or(value.get("filename"));
        return path_of(filename?.as_str()?.as_bytes(), image);
    }
    let name = name.strip_prefix(b"file:").unwrap_or(name);
    let protocol = name.iter().position(|&byte| byte == b':');
    let slash = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
    if protocol.is_some_and(|colon| colon < slash) || name.is_empty() || name.contains(&0) {
        return None;
    }
    let path = PathBuf::from(OsString::from_vec(name.to_vec()));
    // Relative names are relative to the image that names them.
    Some(image.parent().unwrap_or(Path::new("/")).join(path))
}

fn word(head: &[u8], at: usize) -> Option<u32> {
    let bytes = head.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn long(head: &[u8], at: usize) -> Option<u64> {
    let bytes = head.get(at..at.checked_add(8)?)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header of version 3 with these names.
    fn header(backing: &[u8], format: &[u8], data: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 104];
        head[..4].copy_from_slice(MAGIC);
        head[4..8].copy_from_slice(&3u32.to_be_bytes());
        head[100..104].copy_from_slice(&104u32.to_be_bytes());
        for (kind, content) in [(BACKING_FORMAT, format), (DATA_FILE, data), (END, b"")] {
            head.extend(kind.to_be_bytes());
            head.extend((content.len() as u32).to_be_bytes());
            head.extend(content);
            head.resize(head.len().next_multiple_of(8), 0);
        }
        let offset = head.len() as u64;
        if !backing.is_empty() {
            head[8..16].copy_from_slice(&offset.to_be_bytes());
            head[16..20].copy_from_slice(&(backing.len() as u32).to_be_bytes());
        }
        head.extend(backing);
        head
    }

    #[test]
    fn backing_and_data_files_are_read() {
        let read = |head: &[u8]| read(head, Path::new("/images/top.qcow2"));
        let named = read(&header(b"base.qcow2", b"qcow2", b"/dev/vg/data"));
        assert_eq!(named.backing, Some("/images/base.qcow2".into()));
        assert!(named.backing_is_qcow2);
        assert_eq!(named.data, Some("/dev/vg/data".into()));
        let backing = |name: &[u8]| read(&header(name, b"raw", b"")).backing;
        assert_eq!(backing(b"file:/a"), Some("/a".into()));
        let json = br#"json:{"driver":"raw","file":{"driver":"host_device","filename":"/dev/sdb"}}"#;
        assert_eq!(backing(json), Some("/dev/sdb".into()));
        assert_eq!(backing(br#"json:{"file.filename":"/b"}"#), Some("/b".into()));
        for elsewhere in [
            &b"nbd://host/x"[..],
            b"rbd:pool/x",
            b"json:{",
            b"json:[]",
            b"a\0b",
        ] {
            assert_eq!(backing(elsewhere), None);
        }
    }

    #[test]
    fn a_chain_is_followed_where_it_is_qcow2_and_ends_in_a_loop() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, head: Vec<u8>| std::fs::write(path(name), head).expect("written");
        write("top", header(b"middle", b"qcow2", b""));
        write("middle", header(b"top", b"qcow2", b""));
        assert_eq!(beneath(&path("top")), [path("middle"), path("top")]);
        // Whatever a raw file holds is the guest's.
        write("top", header(b"middle", b"raw", b""));
        assert_eq!(beneath(&path("top")), [path("middle")]);
        assert_eq!(beneath(&path("missing")), Vec::<PathBuf>::new());
        assert_eq!(beneath(folder.path()), Vec::<PathBuf>::new());
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(rest in proptest::collection::vec(any::<u8>(), 0..300)) {
            let image = Path::new("/x");
            read(&[MAGIC, &rest].concat(), image);
            read(&[&header(b"b", b"qcow2", b"d")[..100], &rest].concat(), image);
        }
    }
}
