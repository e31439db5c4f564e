//! Deletes folders. A period or restore point is first renamed, in one step; then its files are
//! deleted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::look::{folder_names, read_bounded};
use super::{committed, layout, point};
use crate::io::Store;
use crate::model::period::holds_restore_points;
use crate::repo::manifest::{self, Manifest};
use crate::repo::{RepoError, Result};

/// The prefix of a folder that is being deleted. With it, no program takes the folder for a period.
const REMOVING: &str = ".removing-";

/// Deletes the folder of a period.
pub(super) fn period(store: &dyn Store, domain_dir: &Path, period: &str) -> Result<()> {
    let dir = domain_dir.join(period);
    refuse_link(&dir)?;
    let removing = domain_dir.join(format!("{REMOVING}{period}"));
    store
        .rename(&dir, &removing)
        .map_err(RepoError::io("remove", &dir))?;
    store
        .sync_dir(domain_dir)
        .map_err(RepoError::io("sync", domain_dir))?;
    tree(store, &removing, |_| false)
}

/// Deletes the folder of a restore point on which no other depends. The folder of its period is
/// deleted too if it is then empty.
pub(super) fn restore_point(store: &dyn Store, period_dir: &Path, folder: &str) -> Result<()> {
    let dir = period_dir.join(folder);
    refuse_link(period_dir)?;
    refuse_link(&dir)?;
    // The committed name goes first: a committed name without its folder counts as damage.
    let record = committed::record(period_dir, folder);
    match store.remove_file(&record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(RepoError::io("remove", &record)(error));
        }
        _ => {}
    }
    let records = period_dir.join(layout::COMMITTED);
    if records.is_dir() {
        store
            .sync_dir(&records)
            .map_err(RepoError::io("sync", &records))?;
    }
    let removing = period_dir.join(format!("{folder}{}", layout::REMOVING_SUFFIX));
    store
        .rename(&dir, &removing)
        .map_err(RepoError::io("remove", &dir))?;
    store
        .sync_dir(period_dir)
        .map_err(RepoError::io("sync", period_dir))?;
    finish(store, &removing)
}

/// The folders that an interrupted run started to delete, as paths within the domain's folder.
pub(super) fn interrupted(domain_dir: &Path) -> Result<Vec<String>> {
    let mut removing = Vec::new();
    for name in folder_names(domain_dir)? {
        if name.starts_with(REMOVING) {
            removing.push(name);
        } else if holds_restore_points(&name) {
            let within = folder_names(&domain_dir.join(&name))?;
            let within = within.into_iter().filter(|folder| is_removing_point(folder));
            removing.extend(within.map(|folder| format!("{name}/{folder}")));
        }
    }
    Ok(removing)
}

/// Whether this is the name of a restore point's folder that is being deleted.
fn is_removing_point(folder: &str) -> bool {
    let name = folder.strip_suffix(layout::REMOVING_SUFFIX);
    name.is_some_and(|name| layout::split_finished(name).is_some())
}

/// Deletes the rest of a folder that [`interrupted`] has found.
pub(super) fn finish(store: &dyn Store, dir: &Path) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let Some(period_dir) = dir.parent().filter(|_| is_removing_point(&name)) else {
        return tree(store, dir, |_| false);
    };
    remove_checkpoint_file(store, period_dir, dir)?;
    tree(store, dir, |path| path.ends_with(layout::MANIFEST))?;
    // Fails if the folders are not empty, as intended.
    let _ = store.remove_dir(&period_dir.join(layout::COMMITTED));
    let _ = store.remove_dir(&period_dir.join(layout::CHECKPOINTS));
    let _ = store.remove_dir(period_dir);
    Ok(())
}

/// Deletes the checkpoint XML of a restore point that is being deleted. Only its manifest names
/// that file, so the manifest is deleted last.
fn remove_checkpoint_file(store: &dyn Store, period_dir: &Path, dir: &Path) -> Result<()> {
    let text = read_bounded(&dir.join(layout::MANIFEST), manifest::MAX_BYTES);
    let manifest = text.ok().and_then(|text| Manifest::parse(&text).ok());
    let file = manifest
        .as_ref()
        .and_then(|manifest| point::checkpoint_file(period_dir, manifest));
    let Some((path, _)) = file else { return Ok(()) };
    match store.remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RepoError::io("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// Refuses a link: a user put it there by hand, and its target belongs to that user.
fn refuse_link(dir: &Path) -> Result<()> {
    let found = dir.symlink_metadata().map_err(RepoError::io("examine", dir))?;
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
            .map_err(RepoError::io("examine", &entry.path()))?;
        paths.push((entry.path(), kind.is_dir()));
    }
    paths.sort_by_key(|(path, _)| last(path));
    Ok(paths)
}
