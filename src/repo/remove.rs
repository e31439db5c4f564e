//! Deletes a period: first its name, in one step, then its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::store::Store;
use super::{RepoError, Result};

/// What the name of a folder begins with that is being deleted: nobody takes it for a period any more.
const DOOMED: &str = ".removing-";

/// Deletes the folder of a period, and those that an interrupted run had begun to delete.
pub(super) fn period(store: &dyn Store, domain_dir: &Path, period: &str) -> Result<()> {
    for doomed in doomed_dirs(domain_dir)? {
        tree(store, &doomed)?;
    }
    let dir = domain_dir.join(period);
    let found = dir.symlink_metadata().map_err(RepoError::io("look at", &dir))?;
    if !found.is_dir() {
        // What a link points to was put there by hand, and belongs to whoever did so.
        return Err(RepoError::io("remove", &dir)(io::ErrorKind::NotADirectory.into()));
    }
    let doomed = domain_dir.join(format!("{DOOMED}{period}"));
    store
        .rename(&dir, &doomed)
        .map_err(RepoError::io("remove", &dir))?;
    store
        .sync_dir(domain_dir)
        .map_err(RepoError::io("sync", domain_dir))?;
    tree(store, &doomed)
}

fn doomed_dirs(domain_dir: &Path) -> Result<Vec<PathBuf>> {
    let names = super::history::folder_names(domain_dir)?;
    let doomed = names.into_iter().filter(|name| name.starts_with(DOOMED));
    Ok(doomed.map(|name| domain_dir.join(name)).collect())
}

/// Deletes a folder with all below it, links themselves and never what they point to.
fn tree(store: &dyn Store, dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(RepoError::io("read the folder", dir))? {
        let entry = entry.map_err(RepoError::io("read the folder", dir))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(RepoError::io("look at", &path))?;
        if kind.is_dir() {
            tree(store, &path)?;
        } else {
            store.remove_file(&path).map_err(RepoError::io("remove", &path))?;
        }
    }
    store.remove_dir(dir).map_err(RepoError::io("remove", dir))
}
