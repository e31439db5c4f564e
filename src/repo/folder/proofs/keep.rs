//! Writes and removes the records of verifications and comparisons.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::{BootProof, FOLDER, MissedWriteRecord, Proof, RecordName, Sealed};
use crate::io::Store;
use crate::repo::folder::note;
use crate::repo::seal::{NO_DIGEST, seal};
use crate::repo::{RepoError, Result};

/// How often a record is written if other runs remove it before it is complete.
const ATTEMPTS: usize = 4;

/// Writes a proof, with at most a few damage notes for each disk and for the files of no disk. Then
/// removes the older records of the same restore point.
///
/// `known` has the file names of the records that existed when the verification started, even if a
/// wrong clock gave them a later time. What other runs have recorded since then stays. A record
/// that cannot be removed is no error.
pub(in crate::repo::folder) fn keep(
    store: &dyn Store,
    domain_dir: &Path,
    proof: &Proof,
    known: &[String],
) -> Result<()> {
    let proof = proof.shortened();
    let name = RecordName::of_proof(&proof);
    let dir = write(store, domain_dir, &name, &proof)?;
    remove_known(store, &dir, known, &name);
    Ok(())
}

/// Writes a boot proof. Then removes those of the same restore point that existed before.
pub(in crate::repo::folder) fn keep_boot(
    store: &dyn Store,
    domain_dir: &Path,
    proof: &BootProof,
) -> Result<()> {
    let name = RecordName::of_boot(proof);
    let is_older = |known: &String| {
        let record = RecordName::parse(whole(known));
        record.is_some_and(|record| (&record.id, record.kind) == (&name.id, name.kind))
    };
    let mut known = names_in(&domain_dir.join(FOLDER))?;
    known.retain(is_older);
    let dir = write(store, domain_dir, &name, proof)?;
    remove_known(store, &dir, &known, &name);
    Ok(())
}

/// Removes these records, except the one that was just written.
fn remove_known(store: &dyn Store, dir: &Path, known: &[String], written: &RecordName) {
    let own = written.file_name();
    for old in known.iter().filter(|known| **known != own) {
        // Best effort: a superfluous old proof does no harm.
        let _ = store.remove_file(&dir.join(old));
    }
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
    // Two records may have the same second: the later one counts.
    put(store, &path, text.as_bytes()).map_err(RepoError::io("write", &path))?;
    Ok(dir)
}

/// Writes a record completely or not at all. Verifications hold no lock, so two of them may write
/// the same record at the same time: each writes a temporary file of its own. Another run may take
/// this file for that of a killed run and remove it; then the file is written again.
fn put(store: &dyn Store, path: &Path, text: &[u8]) -> io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let put = || {
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let mut new = path.as_os_str().to_owned();
        new.push(format!(".{}-{number}{}", std::process::id(), note::NEW));
        note::put_as(store, Path::new(&new), path, text)
    };
    for _ in 1..ATTEMPTS {
        match put() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    put()
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

/// The name of a record without the ending of an incomplete file. Older versions used an ending
/// without numbers.
pub(super) fn whole(name: &str) -> &str {
    let Some(new) = name.strip_suffix(note::NEW) else {
        return name;
    };
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    match new.rsplit_once('.') {
        Some((record, writer)) if is_number(writer) => record,
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use jiff::Timestamp;

    use super::*;
    use crate::io::DiskStore;

    /// Two verifications of a restore point that end in the same second.
    #[test]
    fn records_of_the_same_second_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let proof = Proof {
            id: "2026-11-01T02-00-03Z".to_owned(),
            manifest: "0".repeat(64),
            time: Timestamp::UNIX_EPOCH,
            deep: true,
            deep_time: None,
            damage: Vec::new(),
        };
        let record = || keep(&DiskStore, folder.path(), &proof, &[]).expect("it is recorded");
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| record()));
            }
        });
        let names = names_in(&folder.path().join(FOLDER)).expect("it can be read");
        assert_eq!(names, [RecordName::of_proof(&proof).file_name()]);
    }

    #[test]
    fn an_incomplete_record_has_the_name_of_its_record() {
        let record = "2026-11-01T02-00-03Z.2026-11-02T02-00-03Z.json";
        for name in [record, &format!("{record}.new"), &format!("{record}.123-4.new")] {
            assert_eq!(whole(name), record);
        }
    }
}
