//! Removes what a trial domain leaves: at its end, or in the next run after its process died.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::record::{Dead, Record, Records};
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
            Dead::Known { record, home, _lock } => clear_one(host, &records, &record, home.as_deref()),
        };
        findings.push(finding);
    }
    findings
}

fn clear_one(host: &dyn Host, records: &Records<'_>, record: &Record, home: Option<&str>) -> Finding {
    let done = match home {
        Some(xml) => keep(host, record, xml).and_then(|()| remove_folder(records.store, record)),
        None => remove_all(host, records.store, record),
    };
    if let Err(cause) = done.and_then(|()| records.remove(&record.uuid)) {
        return not_removed(record, &cause);
    }
    let name = shown(&record.name);
    let what = match home {
        Some(_) => format!("completed domain '{name}', whose disks a killed run had pulled"),
        None => format!("removed trial domain '{name}', left by a run that was killed"),
    };
    Finding::new("healed-trial", what)
}

/// Makes the domain persistent, if it is not.
fn keep(host: &dyn Host, record: &Record, xml: &str) -> Result<(), Cause> {
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

/// Ends the domain, and removes its files.
pub(super) fn remove_all(host: &dyn Host, store: &dyn Store, record: &Record) -> Result<(), Cause> {
    if let Some(trial) = host.trials().find(&record.uuid)? {
        trial.end()?;
    }
    for file in &record.files {
        remove_file(store, file)?;
    }
    if let Some(tpm) = &record.tpm {
        remove_tpm(store, tpm, &record.uuid)?;
    }
    if let Some(dir) = &record.new_dir {
        remove_if_empty(store, dir)?;
    }
    remove_folder(store, record)
}

/// Removes the folder for the socket and the temporary files.
pub(super) fn remove_folder(store: &dyn Store, record: &Record) -> Result<(), Cause> {
    let folder = &record.folder;
    let name = folder.file_name().and_then(|name| name.to_str());
    if !name.is_some_and(|name| name.starts_with(FOLDER)) {
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

/// Removes the state of the domain's TPM, if libvirt has not. Nobody else uses the new UUID.
fn remove_tpm(store: &dyn Store, tpm: &Path, uuid: &str) -> Result<(), Cause> {
    let is_file = fs::symlink_metadata(tpm).is_ok_and(|found| found.is_file());
    if is_file {
        return remove_file(store, tpm);
    }
    let of_domain = tpm.parent().filter(|parent| parent.ends_with(uuid));
    let files = files_in(tpm).map_err(|source| io_cause("list", tpm, source))?;
    for file in files {
        remove_file(store, &file)?;
    }
    remove_if_empty(store, tpm)?;
    of_domain.map_or(Ok(()), |folder| remove_if_empty(store, folder))
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
