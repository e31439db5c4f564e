//! Remembers which restore points were committed, so that one that goes missing as a whole is missed.
//!
//! An empty file per restore point, in the period's folder: it goes with its period, in the same step, and single restore points are never
//! removed. It is written behind the commit and never before, so whatever it names was there. Runs that ended in between, and earlier
//! versions, have left none; the next backup makes up for it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layout::{COMMITTED, split_finished};
use crate::io::Store;
use crate::repo::{RepoError, Result};

/// The names of the folders of a period's restore points, as far as it is known that they were committed. To be read before the period
/// itself: then whatever is named here, and not there, has gone.
///
/// # Errors
/// When that cannot be read: whatever has gone would not be missed.
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

/// Where it is remembered that this folder was committed.
pub(super) fn record(period_dir: &Path, folder: &str) -> PathBuf {
    period_dir.join(COMMITTED).join(folder)
}

/// Remembers that the restore points in these folders were committed.
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
