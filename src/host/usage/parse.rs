//! Parses the kernel's text files about mounts, swap and block devices.
//!
//! All functions are pure. The formats are described in proc_pid_mountinfo(5), proc_swaps(5) and
//! the kernel's `Documentation/ABI/testing/sysfs-block`. Invalid lines are skipped.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::Number;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountLine {
    /// The device number of the file system's files (`st_dev`).
    pub device: Number,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The mounted device or file, if its name is an absolute path.
    pub source: Option<PathBuf>,
}

/// Reads `/proc/PID/mountinfo`.
pub fn mounts(text: &[u8]) -> Vec<MountLine> {
    text.split(|&byte| byte == b'\n').filter_map(mount).collect()
}

fn mount(line: &[u8]) -> Option<MountLine> {
    let mut words = line.split(|&byte| byte == b' ');
    let device = number(words.nth(2)?)?;
    let point = path(words.nth(1)?);
    // A single hyphen ends the optional fields. The file system's type and the mounted device
    // follow.
    let source = words.skip_while(|word| *word != b"-").nth(2);
    let source = source.filter(|source| source.starts_with(b"/")).map(path);
    Some(MountLine {
        device,
        point,
        source,
    })
}

/// Reads `/proc/swaps`, the files and devices that are used as swap.
pub fn swaps(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|&byte| byte == b'\n').skip(1);
    let names = lines.filter_map(|line| line.split(u8::is_ascii_whitespace).next());
    let absolute = names.filter(|name| name.starts_with(b"/"));
    absolute.map(path).collect()
}

/// Reads a device number as sysfs and mountinfo write it: `253:0`.
pub fn number(text: &[u8]) -> Option<Number> {
    let text = std::str::from_utf8(text).ok()?.trim_end();
    let (major, minor) = text.split_once(':')?;
    Some(Number {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

/// Reads `/sys/block/loopN/loop/backing_file`; `None` if no path or a deleted file is in it.
pub fn backing_file(text: &[u8]) -> Option<PathBuf> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let is_path = text.starts_with(b"/") && !text.ends_with(b" (deleted)");
    is_path.then(|| OsString::from_vec(text.to_vec()).into())
}

/// Decodes a path in which blanks and backslashes are written as a backslash and three octal
/// digits.
fn path(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        match (first, octal(after)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

fn octal(text: &[u8]) -> Option<u8> {
    let digits = text.get(..3)?;
    let is_octal = digits.iter().all(|digit| (b'0'..=b'7').contains(digit));
    let text = std::str::from_utf8(digits).ok().filter(|_| is_octal)?;
    u8::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(major: u32, minor: u32) -> Number {
        Number { major, minor }
    }

    #[test]
    fn mounts_are_read_with_their_sources() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/ro\\134ot rw\n\
                     22 28 0:5 / /dev rw - devtmpfs devtmpfs rw\n\
                     40 28 0:41 /@home /home rw - btrfs /dev/sdb1 rw\n";
        let read = mounts(text);
        assert_eq!(
            read[0],
            MountLine {
                device: of(98, 0),
                point: "/mnt 2".into(),
                source: Some("/dev/ro\\ot".into()),
            }
        );
        assert_eq!(read[1].source, None);
        assert_eq!(read[2].source, Some("/dev/sdb1".into()));
        assert_eq!(read.len(), 3);
    }

    #[test]
    fn swaps_are_read_without_their_headline() {
        let text = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                     /dev/vda2                               partition\t999420\t0\t-2\n\
                     /swap\\040file                          file\t1\t0\t-3\n";
        assert_eq!(swaps(text), [PathBuf::from("/dev/vda2"), "/swap file".into()]);
        assert_eq!(swaps(b"Filename Type\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn device_numbers_and_backing_files_are_read() {
        assert_eq!(number(b"253:17\n"), Some(of(253, 17)));
        for bad in ["", ":", "7", "7:", "a:b", "-1:0", "4294967296:0", "7:0:1"] {
            assert_eq!(number(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(backing_file(b"/a b.img\n"), Some("/a b.img".into()));
        assert_eq!(backing_file(b"/a.img (deleted)\n"), None);
        assert_eq!(backing_file(b"\n"), None);
    }

    proptest! {
        #[test]
        fn hostile_texts_never_panic(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            mounts(&text);
            swaps(&text);
            number(&text);
            backing_file(&text);
        }

        #[test]
        fn hostile_mount_lines_never_panic(text in "[0-9: /\\\\\n-]{0,200}") {
            mounts(text.as_bytes());
            swaps(text.as_bytes());
        }
    }
}
