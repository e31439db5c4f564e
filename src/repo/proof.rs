//! The records of verifications and comparisons.
//!
//! A proof is not part of the restore point that it proves, so it is kept beside the restore
//! points.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use crate::model::chain::{Concern, SuspectedDamage};
use crate::model::guest::BootLevel;

/// The largest number of damage notes that are recorded for one disk, and for the files that belong
/// to no disk.
const MOST_DAMAGE: usize = 4;

/// The result of one verification of one restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// The restore point's id.
    pub id: String,
    /// The digest in its manifest. The proof does not apply to another restore point with the same
    /// id, nor after a merge into the restore point.
    pub manifest: String,
    /// When it was verified.
    pub time: Timestamp,
    /// Whether every disk was read from end to end, as in a restore, besides the restore point's
    /// own files. If damage was found, some disks may not have been read.
    pub deep: bool,
    /// When a deep verification last found everything sound. Recorded only if this verification was
    /// not deep and found no damage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deep_time: Option<Timestamp>,
    /// The damage that was found; empty if everything was sound.
    pub damage: Vec<DamageNote>,
}

/// Damage that a verification found in a restore point, as its proof records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenNote", into = "WrittenNote")]
pub struct DamageNote {
    /// A description that names the file or the disk.
    pub what: String,
    /// The part of the restore point that it affects.
    pub concerns: Concern,
}

/// A note in the form of the file. The first versions wrote only a text.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenNote {
    Words(String),
    Note { what: String, disk: Option<String> },
}

impl From<WrittenNote> for DamageNote {
    fn from(written: WrittenNote) -> DamageNote {
        let (what, concerns) = match written {
            WrittenNote::Words(what) => (what, Concern::All),
            WrittenNote::Note { what, disk } => (what, disk.map_or(Concern::Files, Concern::Disk)),
        };
        DamageNote { what, concerns }
    }
}

impl From<DamageNote> for WrittenNote {
    fn from(note: DamageNote) -> WrittenNote {
        let what = note.what;
        match note.concerns {
            Concern::All => WrittenNote::Words(what),
            Concern::Files => WrittenNote::Note { what, disk: None },
            Concern::Disk(disk) => WrittenNote::Note {
                what,
                disk: Some(disk),
            },
        }
    }
}

/// The result of a comparison of a restore point with its domain: the disks whose bitmaps missed a
/// write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MissedWriteRecord {
    /// The restore point's id.
    pub id: String,
    /// The digest in its manifest.
    pub manifest: String,
    /// When the restore point and the domain were compared.
    pub time: Timestamp,
    /// The disks' targets.
    pub disks: Vec<String>,
}

/// The result of one boot proof of one restore point: how far a guest came that was started from
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootProof {
    /// The restore point's id.
    pub id: String,
    /// The digest in its manifest.
    pub manifest: String,
    /// When the guest was started.
    pub time: Timestamp,
    /// How far it came.
    pub reached: BootLevel,
    /// How far it should have come.
    pub wanted: BootLevel,
    /// The pattern that the user wanted to see on its console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// The user's command in it, word by word; empty for none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Why the restore point is not proven, as a sentence; `None` if it is.
    pub shortfall: Option<String>,
    /// How long it took, in seconds.
    pub seconds: u64,
}

impl BootProof {
    /// The newest of these boot proofs that counts for the restore point with this manifest. A
    /// merge does not change what a guest reads.
    pub(crate) fn newest_of<'a>(
        proofs: impl IntoIterator<Item = &'a BootProof>,
        manifest: &Manifest,
    ) -> Option<BootProof> {
        let point = &manifest.point;
        let counts = |proof: &&BootProof| {
            proof.id == point.id && point.has_or_had_manifest(&manifest.digest, &proof.manifest)
        };
        let newest = proofs.into_iter().filter(counts).max_by_key(|proof| proof.time);
        newest.cloned()
    }

    /// Whether the guest came as far as it should.
    pub fn is_proven(&self) -> bool {
        self.shortfall.is_none()
    }
}

impl Proof {
    /// Whether everything was sound.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }

    /// When every disk was last read from end to end and found sound, as far as this proof records
    /// it.
    pub fn last_deep(&self) -> Option<Timestamp> {
        if self.deep && self.is_sound() {
            Some(self.time)
        } else {
            self.deep_time
        }
    }

    /// The same with only the first few damage notes of each disk, and of the files that belong to
    /// no disk.
    pub(crate) fn shortened(&self) -> Proof {
        let mut counted: Vec<(&Concern, usize)> = Vec::new();
        let mut proof_of_few = Proof {
            damage: Vec::new(),
            ..self.clone()
        };
        for note in &self.damage {
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

    /// The damage that it found, for decisions about what can be relied on.
    pub fn suspected_damage(&self) -> impl Iterator<Item = SuspectedDamage> {
        self.damage.iter().map(|note| SuspectedDamage {
            what: format!("{} (found by the verification of {:.0})", note.what, self.time),
            concerns: note.concerns.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_first_versions_concern_everything() {
        let read: Vec<DamageNote> =
            serde_json::from_str(r#"["a", {"what": "b", "disk": "vda"}, {"what": "c", "disk": null}]"#)
                .expect("it can be read");
        let concerns: Vec<&Concern> = read.iter().map(|note| &note.concerns).collect();
        let vda = Concern::Disk("vda".to_owned());
        assert_eq!(concerns, [&Concern::All, &vda, &Concern::Files]);
        let text = serde_json::to_string(&read).expect("it can be written");
        let again: Vec<DamageNote> = serde_json::from_str(&text).expect("it can be read");
        assert_eq!(again, read);
    }
}
