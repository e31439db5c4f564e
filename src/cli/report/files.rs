//! The output of `vmsnap files`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use jiff::Timestamp;
use serde::Serialize;

use super::lines::{line, push_line, table};
use super::parts::{FindingPart, Text, findings};
use crate::cli::pretty;
use crate::model::text::shown;
use crate::ops::files::{
    CopiedFile, Done, FileEntry, FileFacts, FileKind, FileSystemFacts, FileSystems, Outcome,
};

/// The document of the devices and file systems.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileSystemsDocument<'a> {
    #[serde(flatten)]
    pub(super) head: HeadPart<'a>,
    pub(super) disks: Vec<DevicePart<'a>>,
    pub(super) file_systems: Vec<FileSystemPart<'a>>,
    pub(super) operating_systems: Vec<SystemPart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// The document of `ls`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FilesDocument<'a> {
    #[serde(flatten)]
    pub(super) head: HeadPart<'a>,
    pub(super) path: Text<'a>,
    pub(super) files: Vec<FilePart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// The document of `get`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopiesDocument<'a> {
    #[serde(flatten)]
    pub(super) head: HeadPart<'a>,
    pub(super) copies: Vec<CopyPart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// The restore point.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HeadPart<'a> {
    pub(super) schema: u32,
    pub(super) domain: Text<'a>,
    pub(super) restore_point: Text<'a>,
    pub(super) time: Text<'a>,
}

/// A disk.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DevicePart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) device: Text<'a>,
    pub(super) virtual_size: u64,
}

/// A file system.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileSystemPart<'a> {
    pub(super) device: Text<'a>,
    #[serde(rename = "type")]
    pub(super) kind: Text<'a>,
    pub(super) label: Option<Text<'a>>,
    pub(super) size: Option<u64>,
    pub(super) mount_points: Vec<Text<'a>>,
}

/// An operating system.
#[derive(Debug, Serialize)]
pub(crate) struct SystemPart<'a> {
    pub(super) root: Text<'a>,
    pub(super) name: Option<Text<'a>>,
}

/// A file in a folder.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FilePart<'a> {
    pub(super) name: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) raw_name: Option<Text<'a>>,
    pub(super) kind: &'static str,
    pub(super) mode: Text<'a>,
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) size: u64,
    pub(super) modified: Option<Text<'a>>,
    pub(super) link: Option<Text<'a>>,
}

/// A copied file or folder.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CopyPart<'a> {
    pub(super) path: Text<'a>,
    pub(super) to: Text<'a>,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) left_out: u64,
}

impl<'a> HeadPart<'a> {
    fn of(domain: &'a str, outcome: &'a Outcome) -> HeadPart<'a> {
        HeadPart {
            schema: 1,
            domain: Text::from(domain),
            restore_point: Text::from(&outcome.point.id),
            time: Text::of(&outcome.point.time),
        }
    }
}

/// The document of the entries of a folder.
pub fn files<'a>(
    domain: &'a str,
    path: &'a OsStr,
    outcome: &'a Outcome,
    entries: &'a [FileEntry],
) -> FilesDocument<'a> {
    FilesDocument {
        head: HeadPart::of(domain, outcome),
        path: lossy(path),
        files: entries.iter().map(FilePart::of).collect(),
        findings: findings(&outcome.findings),
    }
}

/// The document of copies.
pub fn copies<'a>(domain: &'a str, outcome: &'a Outcome, copies: &'a [CopiedFile]) -> CopiesDocument<'a> {
    CopiesDocument {
        head: HeadPart::of(domain, outcome),
        copies: copies.iter().map(CopyPart::of).collect(),
        findings: findings(&outcome.findings),
    }
}

/// The document of the devices and file systems.
pub fn file_systems<'a>(
    domain: &'a str,
    outcome: &'a Outcome,
    systems: &'a FileSystems,
) -> FileSystemsDocument<'a> {
    let disks = systems.disks.iter().map(|disk| DevicePart {
        disk: Text::from(&disk.target),
        device: Text::from(&disk.device),
        virtual_size: disk.size,
    });
    let found = systems.found.iter().map(|found| FileSystemPart {
        device: Text::from(&found.device),
        kind: Text::from(&found.kind),
        label: found.label.as_ref().map(Text::from),
        size: found.size,
        mount_points: found.mounted_on.iter().map(|path| lossy(path)).collect(),
    });
    let operating = systems.systems.iter().map(|(root, name)| SystemPart {
        root: Text::from(root),
        name: name.as_ref().map(Text::from),
    });
    FileSystemsDocument {
        head: HeadPart::of(domain, outcome),
        disks: disks.collect(),
        file_systems: found.collect(),
        operating_systems: operating.collect(),
        findings: findings(&outcome.findings),
    }
}

impl<'a> FilePart<'a> {
    fn of(entry: &'a FileEntry) -> FilePart<'a> {
        let facts = &entry.facts;
        let modified = Timestamp::from_second(facts.modified).ok();
        let is_text = entry.name.to_str().is_some();
        FilePart {
            name: lossy(&entry.name),
            raw_name: (!is_text).then(|| Text::from(hex(&entry.name))),
            kind: facts.kind.word(),
            mode: Text::from(format!("{:04o}", facts.mode)),
            user: facts.user,
            group: facts.group,
            size: facts.size,
            modified: modified.map(|time| Text::of(&time)),
            link: entry.link.as_ref().map(|link| lossy(link)),
        }
    }
}

impl<'a> CopyPart<'a> {
    fn of(copy: &'a CopiedFile) -> CopyPart<'a> {
        CopyPart {
            path: lossy(&copy.path),
            to: lossy(copy.to.as_os_str()),
            entries: copy.entries,
            bytes: copy.bytes,
            left_out: copy.left_out,
        }
    }
}

fn lossy(text: &OsStr) -> Text<'_> {
    Text::from(text.to_string_lossy().into_owned())
}

fn hex(text: &OsStr) -> String {
    text.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The lines about what was done. Content that was written to the output has none.
pub fn text(domain: &str, outcome: &Outcome) -> String {
    match &outcome.done {
        Done::Devices(systems) => devices_text(domain, outcome, systems),
        Done::Listed(entries) => list_text(entries),
        Done::Written => String::new(),
        Done::Copied(copies) => copies.iter().map(|copy| copied_line(domain, copy)).collect(),
    }
}

fn devices_text(domain: &str, outcome: &Outcome, systems: &FileSystems) -> String {
    let mut text = line(&format!("{}: restore point {}", shown(domain), outcome.point.id));
    let row = |device: &str, kind: &str, label: &str, size: Option<u64>, place: String| {
        let size = size.map_or_else(|| "-".to_owned(), pretty::bytes);
        vec![
            format!("  {device}"),
            kind.to_owned(),
            label.to_owned(),
            size,
            place,
        ]
    };
    let head = ["  DEVICE", "TYPE", "LABEL", "SIZE", "MOUNTED ON"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    let disks = systems.disks.iter();
    rows.extend(disks.map(|disk| {
        row(
            &disk.device,
            &format!("disk {}", disk.target),
            "",
            Some(disk.size),
            String::new(),
        )
    }));
    rows.extend(systems.found.iter().map(|found| file_system_row(found, row)));
    text.push_str(&table(&rows, &[3]));
    for (root, name) in &systems.systems {
        let name = name.as_deref().unwrap_or("an operating system");
        push_line(&mut text, &format!("{name} on {root}"));
    }
    text
}

fn file_system_row(
    found: &FileSystemFacts,
    row: impl Fn(&str, &str, &str, Option<u64>, String) -> Vec<String>,
) -> Vec<String> {
    let places: Vec<String> = found.mounted_on.iter().map(|path| name_text(path)).collect();
    let label = found.label.as_deref().unwrap_or_default();
    row(&found.device, &found.kind, label, found.size, places.join(", "))
}

fn list_text(entries: &[FileEntry]) -> String {
    let rows = entries.iter().map(|entry| {
        let facts = &entry.facts;
        let time = Timestamp::from_second(facts.modified).ok();
        let time = time.map(|time| time.strftime("%Y-%m-%d %H:%M").to_string());
        let link = entry.link.as_ref().map(|link| format!(" -> {}", name_text(link)));
        vec![
            mode_text(facts),
            facts.user.to_string(),
            facts.group.to_string(),
            facts.size.to_string(),
            time.unwrap_or_else(|| "-".to_owned()),
            name_text(&entry.name) + &link.unwrap_or_default(),
        ]
    });
    table(&rows.collect::<Vec<_>>(), &[1, 2, 3])
}

/// Kind and permissions as `ls -l` shows them: `drwxr-xr-x`.
fn mode_text(facts: &FileFacts) -> String {
    let kind = match facts.kind {
        FileKind::File => '-',
        FileKind::Folder => 'd',
        FileKind::Link => 'l',
        FileKind::BlockDevice => 'b',
        FileKind::CharacterDevice => 'c',
        FileKind::Pipe => 'p',
        FileKind::Socket => 's',
        FileKind::Unknown => '?',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = facts.mode >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (facts.mode & special == 0, bits & 1 == 0) {
            (true, true) => '-',
            (true, false) => 'x',
            (false, true) => letter.to_ascii_uppercase(),
            (false, false) => letter,
        });
    }
    text
}

/// A name for people. Bytes that are no text are shown as `\xff`.
fn name_text(name: &OsStr) -> String {
    let chunks = name.as_bytes().utf8_chunks();
    let texts = chunks.map(|chunk| {
        let invalid: String = chunk
            .invalid()
            .iter()
            .map(|byte| format!("\\x{byte:02x}"))
            .collect();
        shown(chunk.valid()) + &invalid
    });
    texts.collect()
}

fn copied_line(domain: &str, copy: &CopiedFile) -> String {
    let entries = match copy.entries {
        1 => "1 file".to_owned(),
        entries => format!("{entries} files"),
    };
    let path = |path: &OsString| name_text(path);
    line(&format!(
        "{}: copied {} to {}: {entries}, {}",
        shown(domain),
        path(&copy.path),
        name_text(copy.to.as_os_str()),
        pretty::bytes(copy.bytes)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn facts(kind: FileKind, mode: u32) -> FileFacts {
        FileFacts {
            kind,
            mode,
            user: 0,
            group: 1000,
            size: 12,
            modified: 1_793_498_403,
        }
    }

    #[test]
    fn files_are_listed_as_ls_does() {
        let entries = [
            FileEntry {
                name: OsString::from_vec(b"a\nb \xff".to_vec()),
                facts: facts(FileKind::File, 0o4644),
                link: None,
            },
            FileEntry {
                name: "tmp".into(),
                facts: facts(FileKind::Folder, 0o1777),
                link: None,
            },
            FileEntry {
                name: "link".into(),
                facts: facts(FileKind::Link, 0o777),
                link: Some("/etc".into()),
            },
        ];
        let expected = "-rwSr--r--  0  1000  12  2026-11-01 02:00  a\\nb \\xff\n";
        let text = list_text(&entries);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], expected.trim_end());
        assert!(lines[1].starts_with("drwxrwxrwt"), "{text}");
        assert!(lines[2].ends_with("  link -> /etc"), "{text}");
        let part = FilePart::of(&entries[0]);
        assert_eq!(part.raw_name, Some(Text::from("610a6220ff")));
        assert_eq!(FilePart::of(&entries[1]).raw_name, None);
    }
}
