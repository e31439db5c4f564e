//! Remembers when each restore point was last verified, and with what result.
//!
//! A small file per verification, beside the periods and not in them: a proof is no part of what it proves. A file that cannot be read
//! counts as none: the worst that follows is one more verification.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::history::{self, read_bounded};
use super::layout;
use super::manifest::Manifest;
use super::store::Store;
use super::{RepoError, Result};
use crate::model::chain::MissedWrite;

/// The folder of a domain's proofs, in the domain's folder.
const FOLDER: &str = ".verified";

/// What the name of a file ends with that tells of missed writes.
const MISSED: &str = ".missed.json";

/// The largest proof that is read, in bytes, and the most damage that is written into one.
const MAX_BYTES: u64 = 64 << 10;
const MOST_DAMAGE: usize = 20;

/// The result of one verification of one restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// The restore point's id.
    pub id: String,
    /// The digest in its manifest: a restore point made anew under the same id is not proved by this.
    pub manifest: String,
    /// When it was verified.
    pub time: Timestamp,
    /// Whether every disk was read from end to end as a restore would, besides the files of the restore point itself.
    pub deep: bool,
    /// What was damaged; empty when all was sound.
    pub damage: Vec<String>,
}

/// What a comparison of a restore point with its domain found: disks of which a bitmap had missed a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Missed {
    /// The restore point's id.
    pub id: String,
    /// The digest in its manifest.
    pub manifest: String,
    /// When they were compared.
    pub time: Timestamp,
    /// The disks' targets.
    pub disks: Vec<String>,
}

impl Proof {
    /// Whether all was sound.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }

    /// The first thing that was damaged, with the time it was found.
    pub fn doubt(&self) -> Option<String> {
        let first = self.damage.first()?;
        Some(format!("{first} (found by the verification of {})", self.time))
    }
}

/// What is remembered of the restore points of a domain.
pub(super) struct Proofs {
    /// Oldest first.
    proofs: Vec<Proof>,
    /// Oldest first.
    missed: Vec<Missed>,
}

impl Proofs {
    /// Reads what there is.
    pub(super) fn read(domain_dir: &Path) -> Proofs {
        let mut found = Proofs {
            proofs: Vec::new(),
            missed: Vec::new(),
        };
        let entries = fs::read_dir(domain_dir.join(FOLDER))
            .into_iter()
            .flatten()
            .flatten();
        for text in entries.filter_map(|entry| read_bounded(&entry.path(), MAX_BYTES).ok()) {
            if let Ok(proof) = serde_json::from_slice(&text) {
                found.proofs.push(proof);
            } else if let Ok(missed) = serde_json::from_slice(&text) {
                found.missed.push(missed);
            }
        }
        found.proofs.sort_by_key(|proof| proof.time);
        found.missed.sort_by_key(|missed| missed.time);
        found
    }

    /// The newest proof of the restore point with this manifest.
    pub(super) fn of(&self, manifest: &Manifest) -> Option<Proof> {
        let of_manifest = |proof: &&Proof| proof.id == manifest.point.id && proof.manifest == manifest.digest;
        self.proofs.iter().rev().find(of_manifest).cloned()
    }

    /// The disks of which a bitmap was found to have missed a write when they were compared with this restore point.
    pub(super) fn missed(&self, manifest: &Manifest) -> Vec<MissedWrite> {
        let of_manifest =
            |missed: &&Missed| missed.id == manifest.point.id && missed.manifest == manifest.digest;
        let of_disks = |missed: &Missed| {
            let found = missed.time;
            let disks = missed.disks.clone().into_iter();
            disks.map(move |disk| MissedWrite { disk, found })
        };
        self.missed
            .iter()
            .filter(of_manifest)
            .flat_map(of_disks)
            .collect()
    }
}

/// Remembers a proof, and forgets the older ones of the same restore point, and `known`: the newest when the verification began, whatever
/// time a clock that was wrong has given it. What somebody else has found since stays.
pub(super) fn keep(store: &dyn Store, domain_dir: &Path, proof: &Proof, known: Option<&Proof>) -> Result<()> {
    let mut proof = proof.clone();
    proof.damage.truncate(MOST_DAMAGE);
    let name = name_of(&proof);
    let dir = write(store, domain_dir, &name, &proof.id, &proof)?;
    // The names of one restore point's proofs are in the order of their times.
    let newest = known.map_or_else(|| name.clone(), |known| name_of(known).max(name.clone()));
    let is_replaced = |other: &str| other <= newest.as_str() && other != name && !other.ends_with(MISSED);
    forget(store, names_in(&dir), &dir, |other, id| {
        id == proof.id && is_replaced(other)
    });
    Ok(())
}

fn name_of(proof: &Proof) -> String {
    format!("{}.{}.json", proof.id, layout::id_of(proof.time))
}

/// Forgets what is remembered of restore points that are not there any more.
pub(super) fn forget_removed(store: &dyn Store, domain_dir: &Path) -> Result<()> {
    let dir = domain_dir.join(FOLDER);
    // In this order: a restore point is there before anything is remembered of it, so one that is made meanwhile keeps what was found of it.
    let names = names_in(&dir);
    let there = history::finished_ids(domain_dir)?;
    forget(store, names, &dir, |_, id| !there.contains(id));
    Ok(())
}

/// Remembers what a comparison found. It is forgotten with the restore point only.
pub(super) fn keep_missed(store: &dyn Store, domain_dir: &Path, missed: &Missed) -> Result<()> {
    let name = format!("{}.{}{MISSED}", missed.id, layout::id_of(missed.time));
    let dir = write(store, domain_dir, &name, &missed.id, missed)?;
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
    name: &str,
    id: &str,
    content: &impl Serialize,
) -> Result<PathBuf> {
    let dir = domain_dir.join(FOLDER);
    match store.create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(RepoError::io("create the folder", &dir)(error));
        }
        _ => {}
    }
    let text = serde_json::to_vec_pretty(content).map_err(|source| RepoError::Manifest {
        id: id.to_owned(),
        source,
    })?;
    let path = dir.join(name);
    let written = match store.create_file(&path, &text) {
        // Two within one second: the later one counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let removed = store.remove_file(&path);
            removed.and_then(|()| store.create_file(&path, &text))
        }
        written => written,
    };
    written.map_err(RepoError::io("write", &path))?;
    Ok(dir)
}

/// The names of the files in the folder of proofs. There are none behind a link that somebody has put there.
fn names_in(dir: &Path) -> Vec<String> {
    if !dir.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Vec::new();
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.collect()
}

/// Best effort: an old proof too many does no harm. Only files of ours go: those that `is_stale`, by name and restore point.
fn forget(store: &dyn Store, names: Vec<String>, dir: &Path, is_stale: impl Fn(&str, &str) -> bool) {
    for name in names {
        if id_in(&name).is_some_and(|id| is_stale(&name, id)) {
            let _ = store.remove_file(&dir.join(&name));
        }
    }
}

/// The restore point's id in the name of a file of ours: `ID.TIME.json` or `ID.TIME.missed.json`.
fn id_in(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(MISSED).or_else(|| name.strip_suffix(".json"))?;
    let (id, time) = stem.rsplit_once('.')?;
    let is_time = time.len() == "2026-11-01T02-00-03Z".len()
        && time
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"-TZ".contains(&byte));
    (is_time && !id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_an_id() {
        let of = [
            (
                "2026-11-01T02-00-03Z.2026-11-02T02-00-03Z.json",
                "2026-11-01T02-00-03Z",
            ),
            (
                "2026-11-01T02-00-03Z-2.2026-11-02T02-00-03Z.missed.json",
                "2026-11-01T02-00-03Z-2",
            ),
        ];
        for (name, id) in of {
            assert_eq!(id_in(name), Some(id), "{name}");
        }
        for name in [
            "notes.json",
            "a.b.json",
            "precious",
            ".2026-11-02T02-00-03Z.json",
            "x.missed.json",
        ] {
            assert_eq!(id_in(name), None, "{name}");
        }
    }
}
