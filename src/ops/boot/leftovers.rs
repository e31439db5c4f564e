//! Removes what a trial domain leaves: at its end, or in the next run after its process died.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::record::{Dead, MadeFile, Record, Records};
use crate::host::Host;
use crate::io::Store;
use crate::model::finding::Finding;
use crate::model::text::{shown, with_sources};
use crate::ops::Cause;

/// The prefix of the folders of trial domains.
const FOLDER: &str = "vmsnap-boot-";

/// Ends the trial domains whose processes are dead, and removes their files. A domain whose disks
/// have been pulled stays, and becomes persistent if it is not yet. Returns a finding for each.
pub fn clear(host: &dyn Host, store: &dyn Store, state: &Path) -> Vec<Finding> {
    let records = Records { store, state };
    let mut findings = Vec::new();
    let dead = match records.dead() {
        Ok(dead) => dead,
        Err(cause) => {
            let what = format!(
                "cannot look for trial domains of killed runs: {}",
                with_sources(&cause)
            );
            findings.push(Finding::new("trial-record-unreadable", what));
            return findings;
        }
    };
    for one in dead {
        let finding = match one {
            Dead::Unknown { path, why } => {
                let what = format!(
                    "the record of a trial domain, {}, cannot be read ({why}); nothing of that domain was removed",
                    path.display()
                );
                Finding::new("trial-record-unreadable", what)
            }
            // Another hypervisor's domains cannot be seen from here.
            Dead::Known { record, .. } if record.uri != host.uri() => {
                let what = format!(
                    "trial domain '{}' of a killed run is left on {}; `vmsnap boot` with that --connect removes it",
                    shown(&record.name),
                    shown(&record.uri)
                );
                Finding::new("trial-left", what)
            }
            Dead::Known {
                record,
                made,
                home,
                _lock,
            } => clear_one(host, &records, &record, &made, home.as_deref()),
        };
        findings.push(finding);
    }
    findings
}

fn clear_one(
    host: &dyn Host,
    records: &Records<'_>,
    record: &Record,
    made: &[MadeFile],
    home: Option<&str>,
) -> Finding {
    let name = shown(&record.name);
    let store = records.store;
    if let Some(xml) = home {
        let done = keep(host, record, xml).and_then(|()| remove_folder(store, record));
        return match done.and_then(|()| records.remove(&record.uuid)) {
            Ok(()) => {
                let what = format!("completed domain '{name}', whose disks a killed run had copied");
                Finding::new("healed-trial", what)
            }
            Err(cause) => {
                let what = format!(
                    "domain '{name}' could not be completed: {}; its disks are whole, and the next `vmsnap boot` tries again",
                    with_sources(&cause)
                );
                Finding::new("trial-not-removed", what)
            }
        };
    }
    let left = match remove_all(host, store, record, made) {
        Ok(left) => left,
        Err(cause) => return not_removed(record, &cause),
    };
    if let Err(cause) = records.remove(&record.uuid) {
        return not_removed(record, &cause);
    }
    let mut what = format!("removed trial domain '{name}', left by a run that was killed");
    for path in left {
        what.push_str(&format!(
            "; {} was not removed, because another program has made it",
            path.display()
        ));
    }
    Finding::new("healed-trial", what)
}

/// Makes the domain persistent, if it is not.
pub(super) fn keep(host: &dyn Host, record: &Record, xml: &str) -> Result<(), Cause> {
    match host.trials().find(&record.uuid)? {
        Some(trial) => Ok(trial.keep(xml)?),
        None => match host.is_defined(&record.name, &record.uuid)? {
            (_, true) => Ok(()),
            (_, false) => Ok(host.define(xml)?),
        },
    }
}

/// The finding that something could not be removed.
pub(super) fn not_removed(record: &Record, cause: &Cause) -> Finding {
    let what = format!(
        "trial domain '{}' could not be removed completely: {}; the next `vmsnap boot` tries again",
        shown(&record.name),
        with_sources(cause)
    );
    Finding::new("trial-not-removed", what)
}

/// Ends the domain, and removes the files that were made for it. Returns the files under the same
/// names that were not.
pub(super) fn remove_all(
    host: &dyn Host,
    store: &dyn Store,
    record: &Record,
    made: &[MadeFile],
) -> Result<Vec<PathBuf>, Cause> {
    if let Some(trial) = host.trials().find(&record.uuid)? {
        trial.end()?;
    }
    for (_, temporary) in record.temporary() {
        remove_file(store, &temporary)?;
    }
    remove_folder(store, record)?;
    let mut left = Vec::new();
    let others = made.iter().map(|file| &file.path);
    for path in record.files.iter().chain(others) {
        let Some(found) = MadeFile::at(path) else {
            continue;
        };
        match made.contains(&found) {
            true => remove_file(store, path)?,
            false if !left.contains(path) => left.push(path.clone()),
            false => {}
        }
    }
    if let Some(tpm) = &record.tpm {
        remove_tpm(store, tpm, &record.uuid)?;
    }
    if let Some(dir) = &record.new_dir {
        remove_if_empty(store, dir)?;
    }
    Ok(left)
}

/// Removes the folder for the socket and the temporary files.
pub(super) fn remove_folder(store: &dyn Store, record: &Record) -> Result<(), Cause> {
    let folder = &record.folder;
    let name = folder.file_name().and_then(|name| name.to_str());
    let own = rustix::process::geteuid().as_raw();
    // A link, or a folder of somebody else, may have taken its place.
    let is_ours = folder
        .symlink_metadata()
        .is_ok_and(|found| found.is_dir() && found.uid() == own);
    if !is_ours || !name.is_some_and(|name| name.starts_with(FOLDER)) {
        return Ok(());
    }
    let files = files_in(folder).map_err(|source| io_cause("list", folder, source))?;
    for file in files {
        remove_file(store, &file)?;
    }
    match store.remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_cause("remove the folder", folder, error))
        }
        _ => Ok(()),
    }
}

/// Removes what is left of the state of the domain's TPM in libvirt's folder, if libvirt has not.
/// Nobody else uses the new UUID.
fn remove_tpm(store: &dyn Store, tpm: &Path, uuid: &str) -> Result<(), Cause> {
    let Some(of_domain) = tpm.parent().filter(|parent| parent.ends_with(uuid)) else {
        // A place of its own: its files were removed with the others.
        return match tpm.is_dir() {
            true => remove_if_empty(store, tpm),
            false => Ok(()),
        };
    };
    let files = files_in(tpm).map_err(|source| io_cause("list", tpm, source))?;
    for file in files {
        remove_file(store, &file)?;
    }
    remove_if_empty(store, tpm)?;
    remove_if_empty(store, of_domain)
}

fn remove_file(store: &dyn Store, path: &Path) -> Result<(), Cause> {
    match store.remove_file(path) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(io_cause("remove", path, error))
        }
        _ => Ok(()),
    }
}

fn remove_if_empty(store: &dyn Store, path: &Path) -> Result<(), Cause> {
    match store.remove_dir(path) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(io_cause("remove the folder", path, error))
        }
        _ => Ok(()),
    }
}

pub(super) fn io_cause(operation: &'static str, path: &Path, source: io::Error) -> Cause {
    Cause::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// The regular files and sockets in a folder.
fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            files.push(entry.path());
        }
    }
    Ok(files)
}
