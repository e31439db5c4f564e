//! Lists the files beneath a qcow2 image, from the image headers of its backing chain.
//!
//! Headers are not trusted, because a guest may have written them. Only headers of qcow2 images are
//! read. The names in them are only compared with the device that a restore would overwrite, so a
//! false name can only cause a refusal.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::model::qcow2::{self, EXTENSION_BACKING_FORMAT, EXTENSION_DATA_FILE};

/// The largest number of images of one chain that are read; libvirt follows 200.
const MOST_LAYERS: usize = 256;
/// How many bytes of an image are read: its first cluster contains the names. Clusters have 64 KiB
/// by default and at most 2 MiB.
const HEAD: u64 = 2 << 20;

/// The files that a header names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Named {
    backing: Option<PathBuf>,
    /// Whether the header says that the backing file is qcow2 itself.
    backing_is_qcow2: bool,
    data: Option<PathBuf>,
}

/// Lists the files beneath an image, topmost first. Stops at an image that cannot be read.
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

/// Reads the beginning of a file or block device; opening a FIFO could block.
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
    let Some(head) = qcow2::Head::new(head) else {
        return named;
    };
    let path = |name: &[u8]| path_of(name, image);
    named.backing = head.backing_name().ok().flatten().and_then(path);
    for (kind, content) in head.extensions().map_while(Result::ok) {
        match kind {
            EXTENSION_BACKING_FORMAT => named.backing_is_qcow2 = content == b"qcow2",
            EXTENSION_DATA_FILE => named.data = path(content),
            _ => {}
        }
    }
    named
}

/// Converts a file name in QEMU's syntax to a path on this machine; `None` for other storage.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::qcow2::samples::{header, overwritten};

    #[test]
    fn backing_and_data_files_are_read() {
        let read = |head: &[u8]| read(head, Path::new("/images/top.qcow2"));
        let named = read(&header(
            3,
            Some(("base.qcow2", Some("qcow2"))),
            Some("/dev/vg/data"),
        ));
        assert_eq!(named.backing, Some("/images/base.qcow2".into()));
        assert!(named.backing_is_qcow2);
        assert_eq!(named.data, Some("/dev/vg/data".into()));
        let backing = |name: &str| read(&header(2, Some((name, Some("raw"))), None)).backing;
        assert_eq!(backing("file:/a"), Some("/a".into()));
        let json = r#"json:{"driver":"raw","file":{"driver":"host_device","filename":"/dev/sdb"}}"#;
        assert_eq!(backing(json), Some("/dev/sdb".into()));
        assert_eq!(backing(r#"json:{"file.filename":"/b"}"#), Some("/b".into()));
        for elsewhere in ["nbd://host/x", "rbd:pool/x", "json:{", "json:[]", "a\0b"] {
            assert_eq!(backing(elsewhere), None);
        }
    }

    #[test]
    fn a_chain_is_followed_where_it_is_qcow2_and_ends_in_a_loop() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, head: Vec<u8>| std::fs::write(path(name), head).expect("written");
        write("top", header(3, Some(("middle", Some("qcow2"))), None));
        write("middle", header(3, Some(("top", Some("qcow2"))), None));
        assert_eq!(beneath(&path("top")), [path("middle"), path("top")]);
        // A raw file has no header: the guest controls all of its bytes.
        write("top", header(3, Some(("middle", Some("raw"))), None));
        assert_eq!(beneath(&path("top")), [path("middle")]);
        assert_eq!(beneath(&path("missing")), Vec::<PathBuf>::new());
        assert_eq!(beneath(folder.path()), Vec::<PathBuf>::new());
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            at in 4usize..200,
        ) {
            let image = Path::new("/x");
            read(&[&qcow2::MAGIC[..], &noise].concat(), image);
            read(&overwritten(header(3, Some(("b", Some("qcow2"))), Some("d")), at, &noise), image);
        }
    }
}
