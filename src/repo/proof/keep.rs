//! Writes and forgets the records of verifications.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{FOLDER, MISSED, Missed, Proof, RecordName, Sealed};
use crate::model::chain::Concern;
use crate::repo::seal::{NO_DIGEST, seal};
use crate::repo::store::Store;
use crate::repo::{RepoError, Result, history};

/// The most damage that is remembered of one disk, and of the files that belong to none.
const MOST_DAMAGE: usize = 4;

/// Remembers a proof, and forgets the older ones of the same restore point, and `known`: the newest when the verification began, whatever
/// time a clock that was wrong has given it. What somebody else has found since stays.
pub(in crate::repo) fn keep(
    store: &dyn Store,
    domain_dir: &Path,
    proof: &Proof,
    known: Option<&Proof>,
) -> Result<()> {
    let proof = shortened(proof);
    let name = RecordName::of_proof(&proof);
    let dir = write(store, domain_dir, &name, &proof)?;
    // The times in names are in the order of the times themselves.
    let known = known.map(|known| RecordName::of_proof(known).time);
    let newest = known.map_or_else(|| name.time.clone(), |known| known.max(name.time.clone()));
    forget(store, names_in(&dir), &dir, |other| {
        other.id == name.id && other.time <= newest && *other != name && other.kind != MISSED
    });
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

/// Forgets what is remembered of restore points that are not there any more.
pub(in crate::repo) fn forget_removed(store: &dyn Store, domain_dir: &Path) -> Result<()> {
    let dir = domain_dir.join(FOLDER);
    // In this order: a restore point is there before anything is remembered of it, so one that is made meanwhile keeps what was found of it.
    let names = names_in(&dir);
    let there = history::finished_ids(domain_dir)?;
    forget(store, names, &dir, |name| !there.contains(&name.id));
    Ok(())
}

/// Remembers what a comparison found. It is forgotten with the restore point only.
pub(in crate::repo) fn keep_missed(store: &dyn Store, domain_dir: &Path, missed: &Missed) -> Result<()> {
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
    let written = match store.create_file(&path, text.as_bytes()) {
        // Two within one second: the later one counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let removed = store.remove_file(&path);
            removed.and_then(|()| store.create_file(&path, text.as_bytes()))
        }
        written => written,
    };
    written.map_err(RepoError::io("write", &path))?;
    Ok(dir)
}

/// The names of the files in the folder of proofs. There are none behind a link that somebody has put there.
pub(super) fn names_in(dir: &Path) -> Vec<String> {
    if !dir.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Vec::new();
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.collect()
}

/// Best effort: an old proof too many does no harm. Only files of ours go: those whose names are `is_stale`.
fn forget(store: &dyn Store, names: Vec<String>, dir: &Path, is_stale: impl Fn(&RecordName) -> bool) {
    for name in names {
        if RecordName::parse(&name).is_some_and(|name| is_stale(&name)) {
            let _ = store.remove_file(&dir.join(&name));
        }
    }
}
