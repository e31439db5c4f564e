//! Looks at folders and small files that other programs may have changed.

use std::fs;
use std::io;
use std::path::Path;

use crate::repo::small_file::is_circle;
use crate::repo::{RepoError, Result};

pub(super) use crate::repo::small_file::{is_of_another_kind, read_bounded};

/// The kind of an entry of a folder.
#[derive(Debug)]
pub(super) enum Entry {
    /// A folder, or a link to one: users spread large domains over disks.
    Folder,
    /// A dangling or circular link.
    LinkToNowhere,
    /// Something else, such as a file.
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
