//! Remembers when each restore point was last verified, and with what result.
//!
//! A small file per verification, beside the periods and not in them: a proof is no part of what it proves. A file that cannot be read
//! counts as none: the worst that follows is one more verification.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::history::read_bounded;
use super::layout;
use super::manifest::Manifest;
use super::store::Store;
use super::{RepoError, Result};

/// The folder of a domain's proofs, in the domain's folder.
const FOLDER: &str = ".verified";

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

/// The newest proof of each restore point of a domain.
pub(super) struct Proofs(Vec<Proof>);

impl Proofs {
    /// Reads what there is.
    pub(super) fn read(domain_dir: &Path) -> Proofs {
        let entries = fs::read_dir(domain_dir.join(FOLDER))
            .into_iter()
            .flatten()
            .flatten();
        let mut proofs: Vec<Proof> = entries
            .filter_map(|entry| read_bounded(&entry.path(), MAX_BYTES).ok())
            .filter_map(|text| serde_json::from_slice(&text).ok())
            .collect();
        proofs.sort_by_key(|proof| proof.time);
        Proofs(proofs)
    }

    /// The newest proof of the restore point with this manifest.
    pub(super) fn of(&self, manifest: &Manifest) -> Option<Proof> {
        let of_manifest = |proof: &&Proof| proof.id == manifest.point.id && proof.manifest == manifest.digest;
        self.0.iter().rev().find(of_manifest).cloned()
    }
}

/// Remembers a proof, and forgets the older ones of the same restore point, and those of restore points that are not among `there`.
pub(super) fn keep(store: &dyn Store, domain_dir: &Path, proof: &Proof, there: &[String]) -> Result<()> {
    let dir = domain_dir.join(FOLDER);
    match store.create_dir(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(RepoError::io("create the folder", &dir)(error));
        }
        _ => {}
    }
    let mut proof = proof.clone();
    proof.damage.truncate(MOST_DAMAGE);
    let text = serde_json::to_vec_pretty(&proof).map_err(|source| RepoError::Manifest {
        id: proof.id.clone(),
        source,
    })?;
    let name = format!("{}.{}.json", proof.id, layout::id_of(proof.time));
    let path = dir.join(&name);
    let written = match store.create_file(&path, &text) {
        // Two verifications within one second: the later one counts.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let removed = store.remove_file(&path);
            removed.and_then(|()| store.create_file(&path, &text))
        }
        written => written,
    };
    written.map_err(RepoError::io("write", &path))?;
    forget_others(store, &dir, &proof.id, &name, there);
    Ok(())
}

/// Best effort: an old proof too many does no harm.
fn forget_others(store: &dyn Store, dir: &Path, id: &str, kept: &str, there: &[String]) {
    let is_of = |name: &str, id: &str| name.strip_prefix(id).is_some_and(|rest| rest.starts_with('.'));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_stale = name.to_str().is_some_and(|name| {
            name != kept && (is_of(name, id) || !there.iter().any(|there| is_of(name, there)))
        });
        if is_stale {
            let _ = store.remove_file(&entry.path());
        }
    }
}
