//! Files on their way to a place outside the repository: under a name of their own until all of them are whole.
//!
//! Whoever is killed leaves such a file. The next restore into the same folder removes it: its name says that it is one of ours, and its
//! claim, a lock of the kernel's, that its owner is dead.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::io_cause;
use crate::io::{Claim, Store};
use crate::model::block::ImageFile;
use crate::model::finding::Finding;
use crate::ops::{Cause, Error, Result};

/// What the name of such a file ends with.
const PARTIAL: &str = ".partial";

/// What the name of a file begins with that is being restored; a word of its own and [`PARTIAL`] follow.
const RESTORING: &str = ".vmsnap-restore-";

/// How often another name is tried when somebody takes the file for a dead one's in the moment between its creation and its claim.
const MOST_TRIES: usize = 10;

/// A file that has no name yet. Dropped before it is placed it is removed.
pub(super) struct Unfinished<'a> {
    store: &'a dyn Store,
    path: PathBuf,
    to: PathBuf,
    is_placed: bool,
    /// Gone last: until then nobody else takes the file for abandoned.
    _claim: Claim,
}

impl<'a> Unfinished<'a> {
    /// Begins a file that is to become `to`.
    pub(super) fn create(
        store: &'a dyn Store,
        to: &Path,
    ) -> std::result::Result<(Unfinished<'a>, Box<dyn ImageFile>), Cause> {
        let mut tries = 1..=MOST_TRIES;
        loop {
            let path = to.with_file_name(restoring(uuid::Uuid::new_v4()));
            match store.create_claimed(&path) {
                Ok((file, claim)) => {
                    let unfinished = Unfinished {
                        store,
                        path,
                        to: to.to_owned(),
                        is_placed: false,
                        _claim: claim,
                    };
                    return Ok((unfinished, file));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries.next().is_some() => {}
                Err(source) => return Err(io_cause("create", &path, source)),
            }
        }
    }

    /// Writes a small file that is to become `to`, and syncs it.
    pub(super) fn write(
        store: &'a dyn Store,
        to: &Path,
        content: &[u8],
    ) -> std::result::Result<Unfinished<'a>, Cause> {
        let (unfinished, mut file) = Unfinished::create(store, to)?;
        file.write_at(content, 0)
            .and_then(|()| file.sync())
            .map_err(|source| io_cause("write", to, source))?;
        Ok(unfinished)
    }

    /// Gives it its name. What has that name already stays.
    fn place(&mut self) -> std::result::Result<(), Cause> {
        self.store
            .rename(&self.path, &self.to)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => Cause::Exists(self.to.clone()),
                _ => io_cause("create", &self.to, source),
            })?;
        self.is_placed = true;
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = self.store.remove_file(&self.path);
        }
    }
}

/// Gives files that are whole and synced their names, and makes the names survive a crash, that of the folder made for them included.
pub(super) fn place_all(
    store: &dyn Store,
    files: Vec<Unfinished<'_>>,
    new_dir: Option<&Path>,
) -> std::result::Result<(), Cause> {
    let mut folders = BTreeSet::new();
    for mut file in files {
        file.place()?;
        folders.extend(file.to.parent().map(Path::to_owned));
    }
    folders.extend(new_dir.and_then(Path::parent).map(Path::to_owned));
    for folder in folders {
        store
            .sync_dir(&folder)
            .map_err(|source| io_cause("sync", &folder, source))?;
    }
    Ok(())
}

/// Removes what restores into this folder left that are dead. What cannot be looked at stays, and stops nothing.
pub(super) fn sweep(store: &dyn Store, dir: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return findings;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(is_restoring);
        if is_ours && matches!(store.remove_unclaimed(&entry.path()), Ok(true)) {
            let what = format!(
                "removed {}, left by a restore that did not finish",
                entry.path().display()
            );
            findings.push(Finding::new("healed-restore", what));
        }
    }
    findings
}

/// A folder made for this restore; it goes again if nothing comes to lie in it.
pub(super) struct NewDir<'a> {
    store: &'a dyn Store,
    path: PathBuf,
}

impl<'a> NewDir<'a> {
    pub(super) fn create(domain: &str, store: &'a dyn Store, path: PathBuf) -> Result<NewDir<'a>> {
        store
            .create_open_dir(&path)
            .map_err(|source| Error::of(domain, io_cause("create the folder", &path, source)))?;
        Ok(NewDir { store, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for NewDir<'_> {
    fn drop(&mut self) {
        // Fails, as it should, as soon as something is in the folder.
        let _ = self.store.remove_dir(&self.path);
    }
}

/// The name of a file that is being restored: it says whose it is, and is short whatever the file's final name.
fn restoring(run: uuid::Uuid) -> String {
    format!("{RESTORING}{}{PARTIAL}", run.simple())
}

/// Whether [`restoring`] made this name.
fn is_restoring(name: &str) -> bool {
    name.strip_prefix(RESTORING)
        .and_then(|rest| rest.strip_suffix(PARTIAL))
        .is_some_and(|word| {
            word.len() == 32 && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::file_name::is_plain_name;

    #[test]
    fn a_file_that_is_being_restored_is_known_by_its_name() {
        let name = restoring(uuid::Uuid::from_u128(7));
        assert!(is_restoring(&name) && is_plain_name(&name), "{name}");
        for other in [
            ".vmsnap-restore-.partial",
            ".vmsnap-restore-7.partial",
            "vda.qcow2",
            &name[1..],
            &name.to_uppercase(),
        ] {
            assert!(!is_restoring(other), "{other}");
        }
    }
}
