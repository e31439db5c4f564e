//! Deletes folders. A period or a restore point loses its name first, in one step, then its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::look::{folder_names, read_bounded};
use super::{committed, layout, point};
use crate::io::Store;
use crate::model::period::holds_restore_points;
use crate::repo::manifest::{self, Manifest};
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

/// Deletes the folder of a restore point upon which no other stands. Its period's folder goes with
/// the last one.
pub(super) fn restore_point(store: &dyn Store, period_dir: &Path, folder: &str) -> Result<()> {
    let dir = period_dir.join(folder);
    refuse_link(period_dir)?;
    refuse_link(&dir)?;
    // First: what is named there and has no folder is missed.
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
    let doomed = period_dir.join(format!("{folder}{}", layout::REMOVING));
    store
        .rename(&dir, &doomed)
        .map_err(RepoError::io("remove", &dir))?;
    store
        .sync_dir(period_dir)
        .map_err(RepoError::io("sync", period_dir))?;
    finish(store, &doomed)
}

/// The folders that an interrupted run had begun to delete.
pub(super) fn interrupted(domain_dir: &Path) -> Result<Vec<Leftover>> {
    let mut doomed = Vec::new();
    for name in folder_names(domain_dir)? {
        if name.starts_with(DOOMED) {
            doomed.push(name);
        } else if holds_restore_points(&name) {
            let within = folder_names(&domain_dir.join(&name))?;
            let within = within.into_iter().filter(|folder| is_doomed_point(folder));
            doomed.extend(within.map(|folder| format!("{name}/{folder}")));
        }
    }
    let leftover = |key: String| Leftover {
        location: domain_dir.join(&key).display().to_string(),
        key,
    };
    Ok(doomed.into_iter().map(leftover).collect())
}

/// Whether this is the name of a restore point's folder that is being deleted.
fn is_doomed_point(folder: &str) -> bool {
    let name = folder.strip_suffix(layout::REMOVING);
    name.is_some_and(|name| layout::split_finished(name).is_some())
}

/// Deletes the rest of one of them.
pub(super) fn finish(store: &dyn Store, dir: &Path) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let Some(period_dir) = dir.parent().filter(|_| is_doomed_point(&name)) else {
        return tree(store, dir, |_| false);
    };
    remove_checkpoint_file(store, period_dir, dir)?;
    tree(store, dir, |path| path.ends_with(layout::MANIFEST))?;
    // These fail, as they should, as soon as anything is in the folders.
    let _ = store.remove_dir(&period_dir.join(layout::COMMITTED));
    let _ = store.remove_dir(&period_dir.join(layout::CHECKPOINTS));
    let _ = store.remove_dir(period_dir);
    Ok(())
}

/// Deletes the XML of the checkpoint of a restore point that is being deleted. Its manifest, which
/// alone names it, is still there then.
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
