//! Records which restore points were committed, so that a missing restore point is noticed.
//!
//! The record is an empty file per restore point, in the period's folder. Removing a restore point
//! removes its record first; removing a period renames the folder with all its records. A record is
//! written after the commit, so every restore point that it names existed. Runs that ended in
//! between, and earlier versions, left no record; the next backup adds it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layout::{COMMITTED, split_finished};
use crate::io::Store;
use crate::repo::{RepoError, Result};

/// The folder names of a period's restore points that are known to have been committed.
///
/// Callers read these names before the period itself, so a folder that is recorded but not found in
/// the period was removed.
///
/// # Errors
/// The record cannot be read, so a missing restore point would not be noticed.
pub(super) fn read(period_dir: &Path) -> Result<BTreeSet<String>> {
    let dir = period_dir.join(COMMITTED);
    let read = || -> io::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&dir)? {
            names.extend(entry?.file_name().into_string());
        }
        names.retain(|name| split_finished(name).is_some());
        Ok(names)
    };
    match read() {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(BTreeSet::new())
        }
        read => read.map_err(RepoError::io("read the folder", &dir)),
    }
}

/// The path of the empty file that records the commit of the restore point in this folder.
pub(super) fn record(period_dir: &Path, folder: &str) -> PathBuf {
    period_dir.join(COMMITTED).join(folder)
}

/// Records that the restore points in these folders were committed.
pub(super) fn remember<'a>(
    store: &dyn Store,
    period_dir: &Path,
    folders: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    let known = read(period_dir)?;
    let new = folders.into_iter().filter(|folder| !known.contains(*folder));
    for folder in new {
        let path = record(period_dir, folder);
        let dir = period_dir.join(COMMITTED);
        match store.create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(RepoError::io("create the folder", &dir)(error));
            }
            _ => {}
        }
        store
            .create_file(&path, b"")
            .map_err(RepoError::io("write", &path))?;
    }
    Ok(())
}
