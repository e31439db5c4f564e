//! Writes and removes the records of verifications and comparisons.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{FOLDER, MissedWriteRecord, Proof, RecordName, Sealed};
use crate::io::Store;
use crate::model::chain::Concern;
use crate::repo::seal::{NO_DIGEST, seal};
use crate::repo::{RepoError, Result};

/// The largest number of damage notes that are recorded for one disk, and for the files that belong
/// to no disk.
const MOST_DAMAGE: usize = 4;

/// The additional ending of a record until it is written completely.
const NEW: &str = ".new";

/// Records a proof, and removes the `known` records of the same restore point: those that existed
/// when the verification started, even if a wrong clock gave them a later time. Records that other
/// runs have written since stay.
pub(in crate::repo::folder) fn keep(
    store: &dyn Store,
    domain_dir: &Path,
    proof: &Proof,
    known: &[String],
) -> Result<()> {
    let proof = shortened(proof);
    let name = RecordName::of_proof(&proof);
    let dir = write(store, domain_dir, &name, &proof)?;
    let own = name.file_name();
    for old in known.iter().filter(|known| **known != own) {
        // Best effort: a superfluous old proof does no harm.
        let _ = store.remove_file(&dir.join(old));
    }
    Ok(())
}

/// The proof with only the first few damage notes of each disk.
fn shortened(proof: &Proof) -> Proof {
    let mut counted: Vec<(&Concern, usize)> = Vec::new();
    let mut proof_of_few = Proof {
        damage: Vec::new(),
        ..proof.clone()
    };
    for note in &proof.damage {
        let place = counted.iter().position(|(concern, _)| **concern == note.concerns);
        let place = place.unwrap_or_else(|| {
            counted.push((&note.concerns, 0));
            counted.len() - 1
        });
        counted[place].1 += 1;
        if counted[place].1 <= MOST_DAMAGE {
            proof_of_few.damage.push(note.clone());
        }
    }
    proof_of_few
}

/// Removes the records of restore points that no longer exist. `ids_there` returns the ids of those
/// that may exist, if they can be known.
pub(in crate::repo::folder) fn forget_removed(
    store: &dyn Store,
    domain_dir: &Path,
    ids_there: impl FnOnce() -> Result<Option<BTreeSet<String>>>,
) -> Result<()> {
    let dir = domain_dir.join(FOLDER);
    // The order matters: a restore point exists before any record of it, so the records of one that
    // is made at the same time are kept.
    let names = names_in(&dir)?;
    let Some(there) = ids_there()? else {
        return Ok(());
    };
    for name in names {
        let record = RecordName::parse(whole(&name));
        if record.is_some_and(|record| !there.contains(&record.id)) {
            // Best effort, as above. Only vmsnap's own files are removed.
            let _ = store.remove_file(&dir.join(&name));
        }
    }
    Ok(())
}

/// Records the result of a comparison. The record is removed only with the restore point.
pub(in crate::repo::folder) fn keep_missed_writes(
    store: &dyn Store,
    domain_dir: &Path,
    missed: &MissedWriteRecord,
) -> Result<()> {
    let dir = write(store, domain_dir, &RecordName::of_missed(missed), missed)?;
    // Unlike a proof, it has to survive a crash, because the next backup relies on it.
    store.sync_dir(&dir).map_err(RepoError::io("sync", &dir))?;
    store
        .sync_dir(domain_dir)
        .map_err(RepoError::io("sync", domain_dir))
}

/// Writes a record, and returns the folder of the records.
fn write(
    store: &dyn Store,
    domain_dir: &Path,
    name: &RecordName,
    content: &impl Serialize,
) -> Result<PathBuf> {
    let dir = domain_dir.join(FOLDER);
    match store.create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(RepoError::io("create the folder", &dir)(error));
        }
        _ => {}
    }
    let text = serde_json::to_string_pretty(&Sealed {
        digest: Some(NO_DIGEST.to_owned()),
        content,
    });
    let text = text.map_err(|source| RepoError::Manifest {
        id: name.id.clone(),
        source,
    })?;
    let text = seal(&text);
    let path = dir.join(name.file_name());
    put(store, &path, text.as_bytes()).map_err(RepoError::io("write", &path))?;
    Ok(dir)
}

/// Writes a file completely or not at all. Half a record would count as the worst that its name
/// allows.
fn put(store: &dyn Store, path: &Path, text: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(NEW);
    let new = PathBuf::from(new);
    let written = match store.create_file(&new, text) {
        // A killed run has left it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let removed = store.remove_file(&new);
            removed.and_then(|()| store.create_file(&new, text))
        }
        written => written,
    };
    let named = written.and_then(|()| match store.rename(&new, path) {
        // Two records have the same second: the later one counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let removed = store.remove_file(path);
            removed.and_then(|()| store.rename(&new, path))
        }
        named => named,
    });
    if named.is_err() {
        let _ = store.remove_file(&new);
    }
    named
}

/// The names of the files in the folder of the records. A link in its place counts as empty.
pub(super) fn names_in(dir: &Path) -> Result<Vec<String>> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(Vec::new()),
        _ => Err(RepoError::io("read the folder", dir)(error)),
    };
    match dir.symlink_metadata() {
        Ok(found) if !found.is_dir() => return Ok(Vec::new()),
        Ok(_) => {}
        Err(error) => return failed(error),
    }
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    read().or_else(failed)
}

/// The name of a record without the ending of an incomplete file.
pub(super) fn whole(name: &str) -> &str {
    name.strip_suffix(NEW).unwrap_or(name)
}
