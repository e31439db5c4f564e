//! Records about restore points: pins, verifications, missed writes, boot proofs and removals. Each
//! is a sealed object of its own. A record never changes; a newer one names those that it replaces,
//! and then they are deleted.
//!
//! The next backup relies on these records, so an unreadable one counts as the worst that its name
//! allows: a pin pins, and a record of damage or of missed writes counts for the whole restore
//! point. An unreadable boot proof counts for nothing.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::names::{DomainNames, RANDOM, is_hex, is_tag, random};
use crate::model::chain::{Concern, MissedWrite, RemovedPoint, SuspectedDamage};
use crate::model::checkpoint::CheckpointId;
use crate::model::finding::Finding;
use crate::model::pin::Pin;
use crate::repo::history::REMOVALS_UNREADABLE;
use crate::repo::manifest::Manifest;
use crate::repo::proof::{BootProof, MissedWriteRecord, Proof};

/// The version of the format of these records.
const FORMAT: u64 = 1;

/// The largest record, in bytes before it is sealed, and also the largest object.
pub(super) const LARGEST: u64 = 8 << 20;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A pin.
    Pin,
    /// A verification that found everything sound.
    Sound,
    /// A verification that found damage.
    Damaged,
    /// Missed writes that a comparison found.
    Missed,
    /// A boot proof.
    Booted,
    /// Restore points that were removed on purpose.
    Removed,
}

impl Kind {
    pub(super) const ALL: [Kind; 6] = [
        Kind::Pin,
        Kind::Sound,
        Kind::Damaged,
        Kind::Missed,
        Kind::Booted,
        Kind::Removed,
    ];

    fn word(self) -> &'static str {
        match self {
            Kind::Pin => "pin",
            Kind::Sound => "sound",
            Kind::Damaged => "damaged",
            Kind::Missed => "missed",
            Kind::Booted => "booted",
            Kind::Removed => "removed",
        }
    }
}

/// The facts in the last segment of a record's name: `KIND-TAG-RANDOM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecordName {
    pub(super) kind: Kind,
    /// The part that depends on the restore point's id.
    pub(super) tag: String,
    /// The whole segment.
    pub(super) segment: String,
}

impl RecordName {
    /// A new name for a record about the restore point of this id.
    pub(super) fn new(kind: Kind, names: &DomainNames, id: &str) -> RecordName {
        let tag = names.tag(id);
        RecordName {
            segment: format!("{}-{tag}-{}", kind.word(), random()),
            kind,
            tag,
        }
    }

    /// Reads a segment; `None` for every other name.
    pub(super) fn parse(segment: &str) -> Option<RecordName> {
        let (word, rest) = segment.split_once('-')?;
        let (tag, end) = rest.split_once('-')?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.word() == word)?;
        (is_tag(tag) && is_hex(end, RANDOM)).then(|| RecordName {
            kind,
            tag: tag.to_owned(),
            segment: segment.to_owned(),
        })
    }
}

/// A pin as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct WrittenPin {
    /// The id of the restore point.
    pub(super) id: String,
    since: Timestamp,
    note: String,
}

impl WrittenPin {
    pub(super) fn new(id: &str, pin: &Pin) -> WrittenPin {
        WrittenPin {
            id: id.to_owned(),
            since: pin.since.unwrap_or_default(),
            note: pin.note.clone(),
        }
    }
}

/// A removed restore point as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WrittenRemoval {
    /// Its id.
    pub(super) id: String,
    /// The last segment of its object's name.
    pub(super) name: String,
    /// The id of the run that made it.
    pub(super) run: String,
    /// Its number in the order of commits.
    pub(super) sequence: u64,
    /// The UUID of its domain.
    pub(super) uuid: String,
    /// Its checkpoint.
    pub(super) checkpoint: Option<CheckpointId>,
    /// When it was removed.
    pub(super) removed: Timestamp,
}

impl WrittenRemoval {
    pub(super) fn point(&self) -> RemovedPoint {
        RemovedPoint {
            id: self.id.clone(),
            uuid: self.uuid.clone(),
            checkpoint: self.checkpoint.clone(),
            removed: self.removed,
        }
    }
}

/// The content of a record of removals.
#[derive(Serialize, Deserialize)]
pub(super) struct WrittenRemovals {
    pub(super) removals: Vec<WrittenRemoval>,
}

/// A record with what all of them have.
#[derive(Serialize, Deserialize)]
struct Written<T> {
    format: u64,
    /// The last segments of the names of the records that it replaces.
    #[serde(default)]
    replaces: Vec<String>,
    #[serde(flatten)]
    content: T,
}

/// The part that a reader of any version can parse.
#[derive(Deserialize)]
struct Head {
    format: u64,
}

/// The text of a record that replaces these.
pub(super) fn to_text(content: &impl Serialize, replaces: &[String]) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Written {
        format: FORMAT,
        replaces: replaces.to_vec(),
        content,
    })
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<(T, Vec<String>), String> {
    let not = |error: serde_json::Error| format!("it is invalid: {error}");
    let head: Head = serde_json::from_slice(text).map_err(not)?;
    if head.format > FORMAT {
        return Err("it was written by a newer vmsnap".to_owned());
    }
    let written: Written<T> = serde_json::from_slice(text).map_err(not)?;
    Ok((written.content, written.replaces))
}

/// The records of a domain.
#[derive(Debug, Default)]
pub(super) struct Records {
    pins: Vec<(RecordName, WrittenPin)>,
    /// The verifications.
    proofs: Vec<(RecordName, Proof)>,
    missed: Vec<(RecordName, MissedWriteRecord)>,
    booted: Vec<(RecordName, BootProof)>,
    removals: Vec<(RecordName, WrittenRemoval)>,
    unreadable: Vec<(RecordName, String)>,
    /// The names of all records, including unreadable and replaced ones.
    names: Vec<RecordName>,
    replaced: BTreeSet<String>,
}

impl Records {
    /// Adds a record, given its name and its text, or why it cannot be read.
    pub(super) fn take(&mut self, name: RecordName, text: Result<&[u8], String>) {
        self.names.push(name.clone());
        if let Err(why) = text.and_then(|text| self.parse(&name, text)) {
            self.unreadable.push((name, why));
        }
    }

    fn parse(&mut self, name: &RecordName, text: &[u8]) -> Result<(), String> {
        let replaces = match name.kind {
            Kind::Pin => {
                let (pin, replaces) = parse(text)?;
                self.pins.push((name.clone(), pin));
                replaces
            }
            Kind::Sound | Kind::Damaged => {
                let (proof, replaces): (Proof, _) = parse(text)?;
                if proof.is_sound() != (name.kind == Kind::Sound) {
                    return Err("its name contradicts its content".to_owned());
                }
                self.proofs.push((name.clone(), proof));
                replaces
            }
            Kind::Missed => {
                let (missed, replaces) = parse(text)?;
                self.missed.push((name.clone(), missed));
                replaces
            }
            Kind::Booted => {
                let (booted, replaces) = parse(text)?;
                self.booted.push((name.clone(), booted));
                replaces
            }
            Kind::Removed => {
                let (removed, replaces): (WrittenRemovals, _) = parse(text)?;
                let removals = removed.removals.into_iter();
                self.removals
                    .extend(removals.map(|removal| (name.clone(), removal)));
                replaces
            }
        };
        self.replaced.extend(replaces);
        Ok(())
    }

    /// Leaves out the records that others replace, and puts the rest in order.
    pub(super) fn settle(&mut self) {
        let replaced = std::mem::take(&mut self.replaced);
        let counts = |name: &RecordName| !replaced.contains(&name.segment);
        self.pins.retain(|(name, _)| counts(name));
        self.proofs.retain(|(name, _)| counts(name));
        self.missed.retain(|(name, _)| counts(name));
        self.booted.retain(|(name, _)| counts(name));
        self.removals.retain(|(name, _)| counts(name));
        self.unreadable.retain(|(name, _)| counts(name));
        self.pins
            .sort_by(|(a, one), (b, other)| (one.since, &a.segment).cmp(&(other.since, &b.segment)));
        self.proofs
            .sort_by(|(a, one), (b, other)| (one.time, &a.segment).cmp(&(other.time, &b.segment)));
        self.replaced = replaced;
    }

    /// The names of all records of these kinds, including unreadable and replaced ones.
    pub(super) fn names(&self, kinds: &[Kind]) -> Vec<&RecordName> {
        self.names
            .iter()
            .filter(|name| kinds.contains(&name.kind))
            .collect()
    }

    /// Whether a record can be read.
    pub(super) fn is_readable(&self, name: &RecordName) -> bool {
        !self.unreadable.iter().any(|(unreadable, _)| unreadable == name)
    }

    /// The names of all records of verifications of a restore point.
    pub(super) fn proof_names(&self, tag: &str) -> Vec<String> {
        self.names_of(&[Kind::Sound, Kind::Damaged], tag)
    }

    /// The names of all boot proofs of a restore point.
    pub(super) fn boot_names(&self, tag: &str) -> Vec<String> {
        self.names_of(&[Kind::Booted], tag)
    }

    /// The names of all pins of a restore point.
    pub(super) fn pin_names(&self, tag: &str) -> Vec<String> {
        self.names_of(&[Kind::Pin], tag)
    }

    fn names_of(&self, kinds: &[Kind], tag: &str) -> Vec<String> {
        let names = self.names(kinds).into_iter();
        let of_point = names.filter(|name| name.tag == tag);
        of_point.map(|name| name.segment.clone()).collect()
    }

    fn unreadable_of<'a>(
        &'a self,
        kind: Kind,
        tag: &'a str,
    ) -> impl Iterator<Item = (&'a RecordName, &'a str)> {
        let is_one = move |(name, _): &&(RecordName, String)| name.kind == kind && name.tag == tag;
        let found = self.unreadable.iter().filter(is_one);
        found.map(|(name, why)| (name, why.as_str()))
    }

    /// The pin of a restore point. An unreadable one pins it, too.
    pub(super) fn pin(&self, id: &str, tag: &str) -> Option<Pin> {
        let of_point = |(_, pin): &&(RecordName, WrittenPin)| pin.id == id;
        let pin = self.pins.iter().rev().find(of_point).map(|(_, pin)| Pin {
            since: Some(pin.since),
            note: pin.note.clone(),
        });
        match self.unreadable_of(Kind::Pin, tag).next() {
            Some(_) => Some(Pin::default()),
            None => pin,
        }
    }

    /// The name and reason of a pin of the restore point that cannot be read.
    pub(super) fn unreadable_pin<'a>(&'a self, tag: &'a str) -> Option<(&'a str, &'a str)> {
        let found = self.unreadable_of(Kind::Pin, tag).next();
        found.map(|(name, why)| (name.segment.as_str(), why))
    }

    /// The verification that counts for the restore point with this manifest: damage that no later
    /// verification which knew of it has disproved; otherwise the newest one.
    pub(super) fn proof(&self, manifest: &Manifest) -> Option<Proof> {
        let of_manifest = |proof: &&Proof| proof.id == manifest.point.id && proof.manifest == manifest.digest;
        let newest_first = || {
            self.proofs
                .iter()
                .rev()
                .map(|(_, proof)| proof)
                .filter(of_manifest)
        };
        let damaged = newest_first().find(|proof| !proof.is_sound());
        damaged.or_else(|| newest_first().next()).cloned()
    }

    /// The newest boot proof of the restore point with this manifest.
    pub(super) fn boot_proof(&self, manifest: &Manifest) -> Option<BootProof> {
        BootProof::newest_of(self.booted.iter().map(|(_, proof)| proof), manifest)
    }

    /// The damage that verifications found, or may have found, in a restore point.
    pub(super) fn suspected_damage(&self, manifest: &Manifest, tag: &str) -> Vec<SuspectedDamage> {
        let proof = self.proof(manifest);
        let known = proof.iter().flat_map(Proof::suspected_damage);
        let lost = self.unreadable_of(Kind::Damaged, tag);
        let lost = lost.map(|(name, why)| SuspectedDamage {
            what: format!("{} records damage but cannot be read ({why})", name.segment),
            concerns: Concern::All,
        });
        known.chain(lost).collect()
    }

    /// The disks whose bitmaps missed a write, or may have missed one.
    pub(super) fn missed_writes(&self, manifest: &Manifest, tag: &str) -> Vec<MissedWrite> {
        let point = &manifest.point;
        let of_point = |(_, missed): &&(RecordName, MissedWriteRecord)| {
            missed.id == point.id && missed.manifest == manifest.digest
        };
        let known = self.missed.iter().filter(of_point).flat_map(|(_, missed)| {
            let disks = missed.disks.iter();
            disks.map(|disk| MissedWrite {
                disk: disk.clone(),
                found: missed.time,
            })
        });
        let lost = self.unreadable_of(Kind::Missed, tag).flat_map(|_| {
            point.disks.iter().map(|disk| MissedWrite {
                disk: disk.target.clone(),
                found: point.time,
            })
        });
        known.chain(lost).collect()
    }

    /// The restore points that were removed, each once, in the order of their commits.
    pub(super) fn removals(&self) -> Vec<&WrittenRemoval> {
        let mut removals: Vec<&WrittenRemoval> = self.removals.iter().map(|(_, removal)| removal).collect();
        // If a removal was interrupted, the later one counts.
        let key =
            |removal: &WrittenRemoval| (removal.sequence, removal.name.clone(), Reverse(removal.removed));
        removals.sort_by_key(|removal| key(removal));
        removals.dedup_by(|a, b| a.name == b.name);
        removals
    }

    /// The findings about records that cannot be read. `id_of` finds a restore point by its tag,
    /// and `location` makes a location from a segment.
    pub(super) fn findings(
        &self,
        id_of: impl Fn(&str) -> Option<String>,
        location: impl Fn(&str) -> String,
    ) -> Vec<Finding> {
        let unreadable = self.unreadable.iter();
        let finding = |(name, why): &(RecordName, String)| {
            let place = location(&name.segment);
            match name.kind {
                Kind::Removed => Some(Finding::new(
                    REMOVALS_UNREADABLE,
                    format!(
                        "cannot read the record of removed restore points, {place}: {why}; no policy removes anything until this object is deleted"
                    ),
                )),
                Kind::Pin => id_of(&name.tag).map(|id| {
                    let what = format!(
                        "cannot read {place}: {why}; restore point {id} counts as pinned until `vmsnap unpin` removes the pin"
                    );
                    Finding::new("pin-unreadable", what)
                }),
                kind => id_of(&name.tag).map(|id| {
                    let what = format!(
                        "{place}, a record about restore point {id}, cannot be used ({why}): {}",
                        consequence(kind)
                    );
                    Finding::new("record-unreadable", what)
                }),
            }
        };
        unreadable.filter_map(finding).collect()
    }
}

/// How an unreadable record counts.
fn consequence(kind: Kind) -> &'static str {
    match kind {
        Kind::Missed => "all disks of its restore point count as if their bitmaps had missed writes",
        Kind::Damaged => "its whole restore point counts as damaged until it is verified again",
        Kind::Pin | Kind::Sound | Kind::Booted | Kind::Removed => "this record does not count",
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
