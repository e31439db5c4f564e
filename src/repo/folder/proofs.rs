//! The records of verifications and comparisons, in `.verified/` of the domain's folder.
//!
//! Each verification writes a small file, beside the periods. The next backup relies on these
//! records, so an unreadable one counts as the worst that its name allows: a proof of soundness
//! counts for nothing, and a record of damage or of missed writes counts for the whole restore
//! point.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::look::read_bounded;
use crate::model::chain::{Concern, MissedWrite, SuspectedDamage};
use crate::model::finding::Finding;
use crate::model::restore_point::id_of;
use crate::repo::manifest::Manifest;
use crate::repo::proof::{BootProof, MissedWriteRecord, Proof};
use crate::repo::seal::holds;

mod keep;

pub(super) use keep::{forget_removed, keep, keep_boot, keep_missed_writes};

/// The folder of the records within a domain's folder.
const FOLDER: &str = ".verified";

/// The ending of a record of missed writes.
const MISSED: &str = ".missed.json";

/// The ending of a record of damage.
const DAMAGED: &str = ".damaged.json";

/// The ending of a record of a boot proof.
const BOOTED: &str = ".boot.json";

/// The ending of any other record. Older versions also used it for records of damage.
const SOUND: &str = ".json";

/// The largest record that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The records of a domain's restore points.
pub(super) struct Proofs {
    /// The verifications, oldest first.
    proofs: Vec<Proof>,
    /// The missed writes, oldest first.
    missed: Vec<MissedWriteRecord>,
    booted: Vec<BootProof>,
    unreadable: Vec<Unreadable>,
    /// The names of all records of verifications, including unreadable ones and those that were not
    /// written completely.
    names: Vec<String>,
}

/// One of vmsnap's records that cannot be read or has changed.
struct Unreadable {
    path: PathBuf,
    name: RecordName,
    why: String,
}

/// The facts in the name of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RecordName {
    /// The restore point's id.
    id: String,
    /// The time of the record in the form of [`id_of`], whose texts sort in the order of time.
    time: String,
    kind: &'static str,
}

impl RecordName {
    /// `ID.TIME.json`, or the same with `.damaged`, `.missed` or `.boot` before the ending; `None`
    /// for every other name.
    fn parse(name: &str) -> Option<RecordName> {
        let with = |kind: &'static str| Some((name.strip_suffix(kind)?, kind));
        let (stem, kind) = [MISSED, DAMAGED, BOOTED, SOUND].into_iter().find_map(with)?;
        let (id, time) = stem.rsplit_once('.')?;
        let is_time = time.len() == "2026-11-01T02-00-03Z".len()
            && time
                .bytes()
                .all(|byte| byte.is_ascii_digit() || b"-TZ".contains(&byte));
        (is_time && !id.is_empty()).then(|| RecordName {
            id: id.to_owned(),
            time: time.to_owned(),
            kind,
        })
    }

    fn of_proof(proof: &Proof) -> RecordName {
        RecordName {
            id: proof.id.clone(),
            time: id_of(proof.time),
            kind: if proof.is_sound() { SOUND } else { DAMAGED },
        }
    }

    fn of_missed(missed: &MissedWriteRecord) -> RecordName {
        RecordName {
            id: missed.id.clone(),
            time: id_of(missed.time),
            kind: MISSED,
        }
    }

    fn of_boot(proof: &BootProof) -> RecordName {
        RecordName {
            id: proof.id.clone(),
            time: id_of(proof.time),
            kind: BOOTED,
        }
    }

    /// Whether it is the record of a verification.
    fn is_proof(&self) -> bool {
        [SOUND, DAMAGED].contains(&self.kind)
    }

    /// The time of the record.
    fn time(&self) -> Option<Timestamp> {
        let (day, clock) = self.time.split_once('T')?;
        format!("{day}T{}", clock.replace('-', ":")).parse().ok()
    }

    fn file_name(&self) -> String {
        format!("{}.{}{}", self.id, self.time, self.kind)
    }

    fn is_of(&self, id: &str, time: Timestamp) -> bool {
        self.id == id && self.time == id_of(time)
    }
}

/// A record with the digest of its text. The first versions did not write the digest.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    #[serde(default)]
    digest: Option<String>,
    #[serde(flatten)]
    content: T,
}

fn unseal<T: Content>(text: &[u8]) -> Result<T, String> {
    let sealed: Sealed<T> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match sealed.digest {
        Some(digest) if !holds(text, &digest) => Err("its digest does not match its text".to_owned()),
        None if T::ALWAYS_SEALED => Err("it has no digest".to_owned()),
        _ => Ok(sealed.content),
    }
}

/// What a record holds.
trait Content: for<'a> Deserialize<'a> {
    /// Whether every version wrote the digest.
    const ALWAYS_SEALED: bool;
}

impl Content for Proof {
    const ALWAYS_SEALED: bool = false;
}

impl Content for MissedWriteRecord {
    const ALWAYS_SEALED: bool = false;
}

impl Content for BootProof {
    const ALWAYS_SEALED: bool = true;
}

impl Proofs {
    /// Reads all records.
    pub(super) fn read(domain_dir: &Path) -> crate::repo::Result<Proofs> {
        let mut found = Proofs {
            proofs: Vec::new(),
            missed: Vec::new(),
            booted: Vec::new(),
            unreadable: Vec::new(),
            names: Vec::new(),
        };
        let dir = domain_dir.join(FOLDER);
        for name in keep::names_in(&dir)? {
            if RecordName::parse(keep::whole(&name)).is_some_and(|record| record.is_proof()) {
                found.names.push(name.clone());
            }
            let path = dir.join(&name);
            if let Some(name) = RecordName::parse(&name)
                && let Err(why) = found.take(&path, &name)
            {
                found.unreadable.push(Unreadable { path, name, why });
            }
        }
        found.proofs.sort_by_key(|proof| proof.time);
        found.missed.sort_by_key(|missed| missed.time);
        Ok(found)
    }

    fn take(&mut self, path: &Path, name: &RecordName) -> Result<(), String> {
        let text = match read_bounded(path, MAX_BYTES) {
            // A concurrent verification has just replaced it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            read => read.map_err(|error| error.to_string())?,
        };
        match name.kind {
            MISSED => {
                let missed: MissedWriteRecord = unseal(&text)?;
                own_name(name.is_of(&missed.id, missed.time))?;
                self.missed.push(missed);
            }
            BOOTED => {
                let booted: BootProof = unseal(&text)?;
                own_name(name.is_of(&booted.id, booted.time))?;
                self.booted.push(booted);
            }
            _ => {
                let proof: Proof = unseal(&text)?;
                own_name(name.is_of(&proof.id, proof.time))?;
                self.proofs.push(proof);
            }
        }
        Ok(())
    }

    /// The proof that counts for the restore point with this manifest: damage that was not
    /// disproved by a later verification that knew of it; otherwise the newest proof.
    ///
    /// The newest proof alone is not enough: a verification that started later may have read the
    /// data earlier.
    pub(super) fn of(&self, manifest: &Manifest) -> Option<Proof> {
        let of_manifest = |proof: &&Proof| proof.id == manifest.point.id && proof.manifest == manifest.digest;
        let newest_first = || self.proofs.iter().rev().filter(of_manifest);
        let damaged = newest_first().find(|proof| !proof.is_sound());
        damaged.or_else(|| newest_first().next()).cloned()
    }

    /// The newest boot proof of the restore point with this manifest.
    pub(super) fn booted(&self, manifest: &Manifest) -> Option<BootProof> {
        BootProof::newest_of(&self.booted, manifest)
    }

    /// The names of all records of verifications of the restore point with this id.
    pub(super) fn records(&self, id: &str) -> Vec<String> {
        let of_id =
            |name: &&String| RecordName::parse(keep::whole(name)).is_some_and(|record| record.id == id);
        self.names.iter().filter(of_id).cloned().collect()
    }

    /// The damage that verifications found, or may have found, in the restore point with this
    /// manifest, and that no later one has disproved.
    pub(super) fn suspected_damage(&self, manifest: &Manifest) -> Vec<SuspectedDamage> {
        let proof = self.of(manifest);
        let lost = self.lost(manifest, DAMAGED).map(|lost| SuspectedDamage {
            what: format!(
                "{} records damage but cannot be read ({})",
                lost.path.display(),
                lost.why
            ),
            concerns: Concern::All,
        });
        let known = proof.iter().flat_map(Proof::suspected_damage);
        known.chain(lost).collect()
    }

    /// The disks whose bitmaps have missed a write, as a comparison with this restore point found
    /// or may have found.
    pub(super) fn missed_writes(&self, manifest: &Manifest) -> Vec<MissedWrite> {
        let lost = self.lost(manifest, MISSED);
        let lost = lost.flat_map(|lost| {
            let found = lost.name.time().unwrap_or(manifest.point.time);
            let disks = manifest.point.disks.iter();
            disks.map(move |disk| MissedWrite {
                disk: disk.target.clone(),
                found,
            })
        });
        let of_manifest = |missed: &&MissedWriteRecord| {
            let point = &manifest.point;
            // A merge changes the manifest, but not what the bitmaps missed.
            missed.id == point.id && point.has_or_had_manifest(&manifest.digest, &missed.manifest)
        };
        let of_disks = |missed: &MissedWriteRecord| {
            let found = missed.time;
            let disks = missed.disks.clone().into_iter();
            disks.map(move |disk| MissedWrite { disk, found })
        };
        let known = self.missed.iter().filter(of_manifest).flat_map(of_disks);
        known.chain(lost).collect()
    }

    fn lost<'a>(&'a self, manifest: &'a Manifest, kind: &'a str) -> impl Iterator<Item = &'a Unreadable> {
        let of_point = move |lost: &&Unreadable| lost.name.id == manifest.point.id && lost.name.kind == kind;
        self.unreadable.iter().filter(of_point)
    }

    /// The findings about unreadable records of existing restore points.
    pub(super) fn findings(&self, is_there: impl Fn(&str) -> bool) -> impl Iterator<Item = Finding> {
        let of_those = self.unreadable.iter().filter(move |lost| is_there(&lost.name.id));
        of_those.map(|lost| {
            let consequence = match lost.name.kind {
                MISSED => "all disks of the restore point count as if their bitmaps had missed writes",
                DAMAGED => "the whole restore point counts as damaged until it is verified again",
                BOOTED => "this record does not count as a boot proof",
                _ => "this record does not count as a verification",
            };
            let what = format!(
                "{}, a record about restore point {}, cannot be used ({}): {consequence}",
                lost.path.display(),
                lost.name.id,
                lost.why
            );
            Finding::new("record-unreadable", what)
        })
    }
}

fn own_name(is_own: bool) -> Result<(), String> {
    match is_own {
        true => Ok(()),
        false => Err("its content and its name belong to different records".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_an_id() {
        for name in [
            "2026-11-01T02-00-03Z.2026-11-02T02-00-03Z.json",
            "2026-11-01T02-00-03Z.2026-11-02T02-00-03Z.damaged.json",
            "2026-11-01T02-00-03Z-2.2026-11-02T02-00-03Z.missed.json",
            "2026-11-01T02-00-03Z.2026-11-02T02-00-03Z.boot.json",
        ] {
            let read = RecordName::parse(name).expect("it is one of ours");
            assert!(read.id.starts_with("2026-11-01T02-00-03Z"), "{name}");
            assert_eq!(read.time, "2026-11-02T02-00-03Z", "{name}");
            assert_eq!(read.file_name(), name);
            assert_eq!(read.time().map(id_of), Some(read.time));
        }
        for name in [
            "notes.json",
            "a.b.json",
            "precious",
            ".2026-11-02T02-00-03Z.json",
            "x.missed.json",
            "x.damaged.json",
            "x.boot.json",
        ] {
            assert_eq!(RecordName::parse(name), None, "{name}");
        }
    }
}
