//! Deletes folders. A period first loses its name, in one step, and then its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::io::Store;
use crate::repo::{Leftover, RepoError, Result};

/// The prefix of a folder that is being deleted. With it, no program takes the folder for a period.
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

/// The folders that an interrupted run started to delete.
pub(super) fn interrupted(domain_dir: &Path) -> Result<Vec<Leftover>> {
    let names = super::look::folder_names(domain_dir)?;
    let doomed = names.into_iter().filter(|name| name.starts_with(DOOMED));
    let leftover = |name: String| Leftover {
        location: domain_dir.join(&name).display().to_string(),
        key: name,
    };
    Ok(doomed.map(leftover).collect())
}

/// Deletes the rest of such a folder.
pub(super) fn finish(store: &dyn Store, dir: &Path) -> Result<()> {
    tree(store, dir, |_| false)
}

/// Refuses a link: a user put it there by hand, and its target belongs to that user.
fn refuse_link(dir: &Path) -> Result<()> {
    let found = dir.symlink_metadata().map_err(RepoError::io("look at", dir))?;
    if found.is_dir() {
        return Ok(());
    }
    Err(RepoError::io("remove", dir)(io::ErrorKind::NotADirectory.into()))
}

/// Deletes a folder with everything below it. Links are removed, never their targets. Files for
/// which `last` is true are deleted after the others.
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

/// The entries of a folder, and whether each is a folder itself. Those for which `last` is true are
/// at the end.
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
