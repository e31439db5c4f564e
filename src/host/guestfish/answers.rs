//! Parses what `guestfish` prints: lines like `/dev/sda1: ext4`, and numbers.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// A file system in the disks, or other content of a device, such as swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// The device, such as `/dev/sda1` or `/dev/vg/root`, or a subvolume:
    /// `btrfsvol:/dev/sda1/home`.
    pub device: String,
    /// Its type, as `blkid` names it, such as `ext4`, `swap`, `crypto_LUKS` or `unknown`.
    pub kind: String,
}

/// A place at which an operating system mounts a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// The absolute path in the guest.
    pub path: OsString,
    /// The device.
    pub device: String,
}

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// Anything else.
    Unknown,
}

/// Facts about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Its kind.
    pub kind: FileKind,
    /// Its permissions, with the bits for set-user-ID and the like: 12 bits.
    pub mode: u32,
    /// The number of its owner in the guest.
    pub user: u32,
    /// The number of its group in the guest.
    pub group: u32,
    /// Its size, in bytes.
    pub size: u64,
    /// When its content was last modified, in seconds since 1970.
    pub modified: i64,
}

/// How lines begin with which libguestfs explains how to debug it.
const ADVICE: [&str; 10] = [
    "This usually means",
    "To see full error messages",
    "Do:",
    "and/or",
    "and run the command again",
    "export LIBGUESTFS_",
    "http://libguestfs.org/",
    "https://libguestfs.org/",
    "You can also run",
    "into a bug report",
];

/// The length of the text before its last line, if `line` is the last line.
pub(super) fn before_line(text: &[u8], line: &[u8]) -> Option<usize> {
    let rest = text.strip_suffix(b"\n")?.strip_suffix(line)?;
    (rest.is_empty() || rest.ends_with(b"\n")).then_some(rest.len())
}

/// The error output of `guestfish`, without the positions of commands and without advice about
/// debugging.
pub(super) fn said(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(|line| {
        let rest = match line.strip_prefix("*stdin*:") {
            Some(rest) => rest.split_once(": ").map_or(rest, |(_, rest)| rest),
            None => line,
        };
        rest.strip_prefix("libguestfs: error: ").unwrap_or(rest)
    });
    let is_advice = |line: &str| ADVICE.iter().any(|begin| line.trim_start().starts_with(begin));
    let lines: Vec<&str> = lines.filter(|line| !is_advice(line)).collect();
    lines.join("\n").into_bytes()
}

impl FileSystem {
    /// Reads the answer of `list-filesystems`: a line `DEVICE: TYPE` each.
    pub fn list(answer: &[u8]) -> Vec<FileSystem> {
        let text = String::from_utf8_lossy(answer);
        let parts = text.lines().filter_map(|line| line.rsplit_once(": "));
        let systems = parts.map(|(device, kind)| FileSystem {
            device: device.to_owned(),
            kind: kind.to_owned(),
        });
        systems.collect()
    }

    /// The kind of encryption; `None` if the file system is not encrypted.
    pub fn encryption(&self) -> Option<&'static str> {
        match self.kind.as_str() {
            "crypto_LUKS" => Some("LUKS"),
            "BitLocker" => Some("BitLocker"),
            _ => None,
        }
    }

    /// Whether it may hold files that can be read. Encrypted file systems do not, because they are
    /// not opened.
    pub fn may_hold_files(&self) -> bool {
        let others = ["swap", "unknown", "LVM2_member", "linux_raid_member", ""];
        self.encryption().is_none() && !others.contains(&self.kind.as_str())
    }
}

impl MountPoint {
    /// Reads an answer with a line `PATH: DEVICE` each (`inspect-get-mountpoints`), or
    /// `DEVICE: PATH` if `is_device_first` (`mountpoints`). Lines of another form are left out. The
    /// shortest paths come first.
    pub fn list(answer: &[u8], is_device_first: bool) -> Vec<MountPoint> {
        let mut found: Vec<MountPoint> = answer
            .split(|byte| *byte == b'\n')
            .filter_map(|line| {
                let at = match is_device_first {
                    true => line.windows(2).position(|pair| pair == b": ")?,
                    false => line.windows(2).rposition(|pair| pair == b": ")?,
                };
                let (first, second) = (&line[..at], &line[at + 2..]);
                let (path, device) = match is_device_first {
                    true => (second, first),
                    false => (first, second),
                };
                Some(MountPoint {
                    path: OsString::from_vec(path.strip_prefix(b"/").map(|_| path.to_vec())?),
                    device: String::from_utf8(device.to_vec()).ok()?,
                })
            })
            .collect();
        found.sort_by(|a, b| (a.path.len(), &a.path).cmp(&(b.path.len(), &b.path)));
        found
    }
}

impl FileFacts {
    /// Reads an answer of `lstatns`, or several one after another: lines like `st_mode: 33188`.
    /// `None` if it has another form.
    pub fn list(answer: &[u8]) -> Option<Vec<FileFacts>> {
        let text = std::str::from_utf8(answer).ok()?;
        let mut found = Vec::new();
        let mut values: Vec<(&str, i64)> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ")?;
            // Each answer has all fields, and begins with the same one.
            if values.first().is_some_and(|(first, _)| *first == name) {
                found.push(FileFacts::of(&values)?);
                values.clear();
            }
            values.push((name, value.trim().parse().ok()?));
        }
        if !values.is_empty() {
            found.push(FileFacts::of(&values)?);
        }
        Some(found)
    }

    fn of(values: &[(&str, i64)]) -> Option<FileFacts> {
        let value = |wanted: &str| {
            let mut named = values.iter().filter(|(name, _)| *name == wanted);
            named.next().map(|(_, value)| *value)
        };
        let mode = u32::try_from(value("st_mode")?).ok()?;
        Some(FileFacts {
            kind: FileKind::of(mode),
            mode: mode & 0o7777,
            user: u32::try_from(value("st_uid")?).ok()?,
            group: u32::try_from(value("st_gid")?).ok()?,
            size: u64::try_from(value("st_size")?).ok()?,
            modified: value("st_mtime_sec")?,
        })
    }
}

impl FileKind {
    /// The kind in a mode (inode(7)).
    fn of(mode: u32) -> FileKind {
        match mode & 0o170_000 {
            0o100_000 => FileKind::File,
            0o040_000 => FileKind::Folder,
            0o120_000 => FileKind::Link,
            0o060_000 => FileKind::BlockDevice,
            0o020_000 => FileKind::CharacterDevice,
            0o010_000 => FileKind::Pipe,
            0o140_000 => FileKind::Socket,
            _ => FileKind::Unknown,
        }
    }

    /// The word for this kind in documents.
    pub fn word(self) -> &'static str {
        match self {
            FileKind::File => "file",
            FileKind::Folder => "folder",
            FileKind::Link => "link",
            FileKind::BlockDevice => "block-device",
            FileKind::CharacterDevice => "character-device",
            FileKind::Pipe => "pipe",
            FileKind::Socket => "socket",
            FileKind::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_a_line_of_its_own() {
        assert_eq!(before_line(b"a\nEND\n", b"END"), Some(2));
        assert_eq!(before_line(b"END\n", b"END"), Some(0));
        for other in [&b"a END\n"[..], b"END", b"a\nEND\nb\n", b"", b"a\nEN\n"] {
            assert_eq!(before_line(other, b"END"), None, "{other:?}");
        }
    }

    #[test]
    fn the_error_output_is_reduced_to_its_facts() {
        let text = b"*stdin*:7: libguestfs: error: download: /x: No such file or directory\n";
        assert_eq!(said(text), b"download: /x: No such file or directory");
        let text = b"supermin: failed to find a suitable kernel\n\
            *stdin*:1: libguestfs: error: /usr/bin/supermin exited with error status 1.\n\
            To see full error messages you may need to enable debugging.\nDo:\n  export LIBGUESTFS_DEBUG=1\n";
        let expected =
            "supermin: failed to find a suitable kernel\n/usr/bin/supermin exited with error status 1.";
        assert_eq!(String::from_utf8_lossy(&said(text)), expected);
    }

    #[test]
    fn file_systems_are_listed_with_their_types() {
        let answer = b"/dev/sda1: ext4\n/dev/vg/a: b: crypto_LUKS\nbtrfsvol:/dev/sdb/@home: btrfs\nodd\n";
        let found = FileSystem::list(answer);
        let pairs: Vec<(&str, &str)> = found
            .iter()
            .map(|found| (found.device.as_str(), found.kind.as_str()))
            .collect();
        let expected = [
            ("/dev/sda1", "ext4"),
            ("/dev/vg/a: b", "crypto_LUKS"),
            ("btrfsvol:/dev/sdb/@home", "btrfs"),
        ];
        assert_eq!(pairs, expected);
        assert_eq!(found[1].encryption(), Some("LUKS"));
        let files: Vec<bool> = found.iter().map(FileSystem::may_hold_files).collect();
        assert_eq!(files, [true, false, true]);
    }

    #[test]
    fn mount_points_have_absolute_paths_shortest_first() {
        let found = MountPoint::list(
            b"/var/a: b: /dev/sda3\n/: /dev/sda1\nswap: /dev/sda2\n/caf\xe9: /dev/sdb",
            false,
        );
        let devices: Vec<&str> = found.iter().map(|found| found.device.as_str()).collect();
        assert_eq!(devices, ["/dev/sda1", "/dev/sdb", "/dev/sda3"]);
        assert_eq!(found[2].path, "/var/a: b");
        let found = MountPoint::list(b"/dev/sda3: /var/a: b\n", true);
        assert_eq!(
            (found[0].device.as_str(), found[0].path.to_str()),
            ("/dev/sda3", Some("/var/a: b"))
        );
    }

    #[test]
    fn facts_of_files_are_read_one_after_another() {
        let one = |mode: u32, size: i64| {
            format!("st_dev: 1\nst_mode: {mode}\nst_uid: 7\nst_gid: 8\nst_size: {size}\nst_mtime_sec: -5\n")
        };
        let text = one(0o104_755, 12) + "\n" + &one(0o120_777, 3);
        let found = FileFacts::list(text.as_bytes()).expect("its form is right");
        let first = FileFacts {
            kind: FileKind::File,
            mode: 0o4755,
            user: 7,
            group: 8,
            size: 12,
            modified: -5,
        };
        assert_eq!(found[0], first);
        assert_eq!((found[1].kind, found.len()), (FileKind::Link, 2));
        for invalid in [
            one(1, -1),
            "st_mode: x".to_owned(),
            "st_mode: 1".to_owned(),
            "a".to_owned(),
        ] {
            assert!(FileFacts::list(invalid.as_bytes()).is_none(), "{invalid}");
        }
        assert_eq!(FileFacts::list(b""), Some(Vec::new()));
    }
}
