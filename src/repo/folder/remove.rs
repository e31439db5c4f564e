//! Deletes folders. A period loses its name first, in one step, then its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::io::Store;
use crate::repo::{Leftover, RepoError, Result};

/// What the name of a folder begins with that is being deleted: nobody takes it for a period any
/// more.
const DOOMED: &str = ".removing-";

/// Deletes the folder of a period.
pub(super) fn period(store: &dyn Store, domain_dir: &Path, period: &str) -> Result<()> {
    let dir = domain_dir.join(period);
    refuse_link(&dir)?;
    let doomed = domain_dir.join(format!("{DOOMED}{period}"));
    store
        .rename(&dir, &doomed)
        .map_err(RepoError::io("remove", &dir))?;
    store
        .sync_dir(domain_dir)
        .map_err(RepoError::io("sync", domain_dir))?;
    tree(store, &doomed, |_| false)
}

/// The folders that an interrupted run had begun to delete.
pub(super) fn interrupted(domain_dir: &Path) -> Result<Vec<Leftover>> {
    let names = super::look::folder_names(domain_dir)?;
    let doomed = names.into_iter().filter(|name| name.starts_with(DOOMED));
    let leftover = |name: String| Leftover {
        location: domain_dir.join(&name).display().to_string(),
        key: name,
    };
    Ok(doomed.map(leftover).collect())
}

/// Deletes the rest of one of them.
pub(super) fn finish(store: &dyn Store, dir: &Path) -> Result<()> {
    tree(store, dir, |_| false)
}

/// What a link points to was put there by hand, and belongs to whoever did so.
fn refuse_link(dir: &Path) -> Result<()> {
    let found = dir.symlink_metadata().map_err(RepoError::io("look at", dir))?;
    if found.is_dir() {
        return Ok(());
    }
    Err(RepoError::io("remove", dir)(io::ErrorKind::NotADirectory.into()))
}

/// Deletes a folder with all below it: links themselves, never what they point to. Files for which
/// `last` says so go after the others.
pub(super) fn tree(store: &dyn Store, dir: &Path, last: fn(&Path) -> bool) -> Result<()> {
    for (path, is_dir) in content(dir, last)? {
        remove(store, &path, is_dir, last)?;
    }
    store.remove_dir(dir).map_err(RepoError::io("remove", dir))
}

fn remove(store: &dyn Store, path: &Path, is_dir: bool, last: fn(&Path) -> bool) -> Result<()> {
    match is_dir {
        true => tree(store, path, last),
        false => store.remove_file(path).map_err(RepoError::io("remove", path)),
    }
}

/// What lies in a folder, and whether that is a folder itself; those at the end for which `last`
/// says so.
fn content(dir: &Path, last: fn(&Path) -> bool) -> Result<Vec<(PathBuf, bool)>> {
    refuse_link(dir)?;
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(RepoError::io("read the folder", dir))? {
        let entry = entry.map_err(RepoError::io("read the folder", dir))?;
        let kind = entry
            .file_type()
            .map_err(RepoError::io("look at", &entry.path()))?;
        paths.push((entry.path(), kind.is_dir()));
    }
    paths.sort_by_key(|(path, _)| last(path));
    Ok(paths)
}
