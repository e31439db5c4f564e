//! Looks at folders and reads small files that other programs may have changed.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::model::text;
use crate::repo::{RepoError, Result};

/// The kind of an entry of a folder.
#[derive(Debug)]
pub(super) enum Entry {
    /// A folder, or a link to one: users spread large domains over disks.
    Folder,
    /// A link that leads nowhere or in a circle.
    LinkToNowhere,
    /// Anything else.
    NoFolder,
    /// Its kind could not be determined.
    Unknown(io::Error),
}

/// The entries of a folder by name, without names that are not UTF-8, because vmsnap writes none. A
/// missing folder is empty; a dangling link is an error.
pub(super) fn entries(dir: &Path) -> Result<Vec<(String, Entry)>> {
    let read = match fs::read_dir(dir) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.is_symlink() => return Ok(Vec::new()),
        Err(error) => return Err(RepoError::io("read the folder", dir)(error)),
    };
    let mut found = Vec::new();
    for entry in read {
        let entry = entry.map_err(RepoError::io("read the folder", dir))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        match fs::metadata(entry.path()) {
            Ok(behind) if behind.is_dir() => found.push((name, Entry::Folder)),
            Ok(_) => found.push((name, Entry::NoFolder)),
            Err(error) if is_circle(&error) => found.push((name, Entry::LinkToNowhere)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // If it is not a link, it was removed after its name was read.
                if entry.path().is_symlink() {
                    found.push((name, Entry::LinkToNowhere));
                }
            }
            Err(error) => found.push((name, Entry::Unknown(error))),
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

/// The names of the folders in a folder, sorted, without links that lead nowhere.
pub(super) fn folder_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (name, entry) in entries(dir)? {
        match entry {
            Entry::Folder => names.push(name),
            Entry::LinkToNowhere | Entry::NoFolder => {}
            Entry::Unknown(error) => return Err(RepoError::io("examine", &dir.join(name))(error)),
        }
    }
    Ok(names)
}

/// Whether the path leads to something that can never be a file of vmsnap, so that a retry is
/// useless.
pub(super) fn is_of_another_kind(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::IsADirectory,
        io::ErrorKind::InvalidInput,
        io::ErrorKind::FileTooLarge,
    ];
    kinds.contains(&error.kind())
}

/// Reads one of vmsnap's files, which has at most `limit` bytes. Does not follow a link, because a
/// link leads out of the repository.
pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what);
    // Opening a pipe would block until another process writes to it.
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let file = match opened {
        Err(error) if is_circle(&error) && path.is_symlink() => {
            return Err(refused("it is a link, not a file"));
        }
        opened => opened?,
    };
    let found = file.metadata()?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        return Err(refused("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!(
                "it is larger than {}, the limit for such a file",
                text::bytes(limit)
            ),
        ));
    }
    Ok(bytes)
}

/// Whether a path has too many links, or is itself a link that must not be followed.
fn is_circle(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}
