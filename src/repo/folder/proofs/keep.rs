//! Writes and forgets the records of verifications.

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

/// The most damage that is remembered of one disk, and of the files that belong to none.
const MOST_DAMAGE: usize = 4;

/// What the name of a record ends with, besides, until all of it is written.
const NEW: &str = ".new";

/// Remembers a proof, and forgets `known`: the records of the same restore point that were there
/// when the verification began, whatever time a clock that was wrong has given them. What somebody
/// else has found since stays.
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
        // Best effort: an old proof too many does no harm.
        let _ = store.remove_file(&dir.join(old));
    }
    Ok(())
}

/// The proof with the first few damages of each disk.
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

/// Forgets what is remembered of restore points that are not there any more. `ids_there` gives the
/// ids of those that may be there, if they can be known.
pub(in crate::repo::folder) fn forget_removed(
    store: &dyn Store,
    domain_dir: &Path,
    ids_there: impl FnOnce() -> Result<Option<BTreeSet<String>>>,
) -> Result<()> {
    let dir = domain_dir.join(FOLDER);
    // In this order: a restore point is there before anything is remembered of it, so one that is
    // made meanwhile keeps what was found of it.
    let names = names_in(&dir)?;
    let Some(there) = ids_there()? else {
        return Ok(());
    };
    for name in names {
        let record = RecordName::parse(whole(&name));
        if record.is_some_and(|record| !there.contains(&record.id)) {
            // Best effort, as above. Only files of ours go.
            let _ = store.remove_file(&dir.join(&name));
        }
    }
    Ok(())
}

/// Remembers what a comparison found. It is forgotten with the restore point only.
pub(in crate::repo::folder) fn keep_missed_writes(
    store: &dyn Store,
    domain_dir: &Path,
    missed: &MissedWriteRecord,
) -> Result<()> {
    let dir = write(store, domain_dir, &RecordName::of_missed(missed), missed)?;
    // Unlike a proof it has to outlive a crash: the next backup relies on it.
    store.sync_dir(&dir).map_err(RepoError::io("sync", &dir))?;
    store
        .sync_dir(domain_dir)
        .map_err(RepoError::io("sync", domain_dir))
}

/// Writes a file into the folder of proofs, which it returns.
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

/// Writes a file that is there in whole or not at all: half a record would count as the worst that
/// it may have told.
fn put(store: &dyn Store, path: &Path, text: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(NEW);
    let new = PathBuf::from(new);
    let written = match store.create_file(&new, text) {
        // A run that was killed has left it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let removed = store.remove_file(&new);
            removed.and_then(|()| store.create_file(&new, text))
        }
        written => written,
    };
    let named = written.and_then(|()| match store.rename(&new, path) {
        // Two within one second: the later one counts.
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

/// The names of the files in the folder of proofs. There are none behind a link that somebody has
/// put there.
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

/// The name that a file has or, if it was not written to its end, would have had.
pub(super) fn whole(name: &str) -> &str {
    name.strip_suffix(NEW).unwrap_or(name)
}
