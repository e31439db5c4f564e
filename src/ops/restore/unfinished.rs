//! Files that are being restored outside the repository: they have temporary names until all of
//! them are complete.
//!
//! A restore that is killed leaves such files. The next restore into the same folder removes them.
//! The name shows that vmsnap made the file. If nobody has a claim on the file (a lock of the
//! kernel), its owner is dead.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::io_cause;
use crate::host::{HostError, Refusal};
use crate::io::{Claim, Store};
use crate::model::block::ImageFile;
use crate::model::finding::Finding;
use crate::ops::{Cause, Error, Result};

/// The suffix of the name of a file that is being restored.
const PARTIAL: &str = ".partial";

/// The prefix of the name of a file that is being restored; a unique word and [`PARTIAL`] follow.
const RESTORING: &str = ".vmsnap-restore-";

/// How often another name is tried if another process takes the file for abandoned, between its
/// creation and its claim.
const MOST_TRIES: usize = 10;

/// A file under a temporary name. Dropping this value removes the file, unless the file has got its
/// final name.
pub(super) struct Unfinished<'a> {
    store: &'a dyn Store,
    path: PathBuf,
    to: PathBuf,
    is_placed: bool,
    /// Dropped last: until then nobody takes the file for abandoned.
    _claim: Claim,
}

impl<'a> Unfinished<'a> {
    /// Creates a file that will become `to`.
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

    /// Calls `create` to make a file with a temporary name beside `to`, and empties the file.
    /// `remove` is called if the file cannot be used.
    pub(super) fn of_another(
        store: &'a dyn Store,
        to: &Path,
        create: impl Fn(&str) -> std::result::Result<PathBuf, Cause>,
        remove: impl Fn(&str),
    ) -> std::result::Result<(Unfinished<'a>, Box<dyn ImageFile>), Cause> {
        let mut tries = 1..=MOST_TRIES;
        loop {
            let name = restoring(uuid::Uuid::new_v4());
            let path = create(&name)?;
            if path != to.with_file_name(&name) {
                remove(&name);
                return Err(HostError::from(Refusal::VolumeElsewhere { name, path }).into());
            }
            match store.claim_image(&path) {
                Ok((mut file, claim)) => {
                    let unfinished = Unfinished {
                        store,
                        path,
                        to: to.to_owned(),
                        is_placed: false,
                        _claim: claim,
                    };
                    file.set_len(0).map_err(|source| io_cause("empty", to, source))?;
                    return Ok((unfinished, file));
                }
                // Another restore took it for abandoned.
                Err(error) if is_taken(&error) && tries.next().is_some() => {}
                Err(source) => {
                    remove(&name);
                    return Err(io_cause("open", &path, source));
                }
            }
        }
    }

    /// Writes a small file that will become `to`, and syncs it.
    pub(super) fn write(
        store: &'a dyn Store,
        to: &Path,
        content: &[u8],
    ) -> std::result::Result<Unfinished<'a>, Cause> {
        Unfinished::write_as(store, to, content, None)
    }

    /// As [`Unfinished::write`]; if vmsnap runs as root, the file gets this user and group as its
    /// owners.
    pub(super) fn write_as(
        store: &'a dyn Store,
        to: &Path,
        content: &[u8],
        owner: Option<(u32, u32)>,
    ) -> std::result::Result<Unfinished<'a>, Cause> {
        let (unfinished, mut file) = Unfinished::create(store, to)?;
        if let Some((user, group)) = owner.filter(|_| rustix::process::geteuid().is_root()) {
            std::os::unix::fs::chown(&unfinished.path, Some(user), Some(group))
                .map_err(|source| io_cause("set the owner of", to, source))?;
        }
        file.write_at(content, 0)
            .and_then(|()| file.sync())
            .map_err(|source| io_cause("write", to, source))?;
        Ok(unfinished)
    }

    /// The path that the file will get.
    pub(super) fn to(&self) -> &Path {
        &self.to
    }

    /// Removes the file although it has its final name.
    pub(super) fn take_back(&mut self) {
        if self.is_placed {
            let _ = self.store.remove_file(&self.to);
        }
    }

    /// Gives the file its final name. Never replaces an existing file.
    pub(super) fn place(&mut self) -> std::result::Result<(), Cause> {
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

/// Gives complete and synced files their final names, and syncs their folders, so that the names
/// survive a crash.
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

/// Removes the files that dead restores left in this folder. A file that cannot be examined stays;
/// this is not an error.
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

/// A folder made for this restore. It is removed if it is empty at the end.
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

    /// A folder that has just been made.
    pub(super) fn made(store: &'a dyn Store, path: PathBuf) -> NewDir<'a> {
        NewDir { store, path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for NewDir<'_> {
    fn drop(&mut self) {
        // Fails, as intended, if there is something in the folder.
        let _ = self.store.remove_dir(&self.path);
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound)
}

/// Returns a temporary name. It shows that vmsnap made it, and is short whatever the final name is.
fn restoring(run: uuid::Uuid) -> String {
    format!("{RESTORING}{}{PARTIAL}", run.simple())
}

/// Whether this is a temporary name that [`restoring`] makes.
pub(super) fn is_restoring(name: &str) -> bool {
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
