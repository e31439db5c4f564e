//! The object of a restore point: a sealed record with its manifest, and the blocks of its small
//! files. Its creation is the commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::data::{BlockId, Needed, Subject};
use super::keys::MasterKey;
use super::names::{DomainNames, is_hex, is_point};
use crate::model::period::holds_restore_points;
use crate::repo::manifest::{self, Manifest, ManifestError};

/// The version of the format of these records.
const FORMAT: u64 = 1;

/// The largest record, in bytes before it is sealed, and also the largest object.
pub(super) const LARGEST: u64 = manifest::MAX_BYTES + (8 << 20);

/// The largest number of blocks of one small file.
const MOST_BLOCKS: usize = 4096;

/// The length of the id of a run, in hexadecimal digits.
pub(super) const RUN: usize = 32;

/// The restore point before another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Predecessor {
    /// The last segment of its object's name.
    pub(super) name: String,
    /// Its id, if its object could be read.
    pub(super) id: Option<String>,
}

/// The content of the object.
#[derive(Clone, Debug)]
pub(super) struct PointRecord {
    /// The random id of the run that made it, by which that run's journal entry is found.
    pub(super) run: String,
    /// The restore point that was committed last before it, including removed ones.
    pub(super) previous: Option<Predecessor>,
    /// Its manifest.
    pub(super) manifest: Manifest,
    /// The blocks of each small file, and of the checkpoint's XML.
    pub(super) blocks: BTreeMap<String, Vec<BlockId>>,
}

/// The form of the text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u64,
    run: String,
    previous: Option<Predecessor>,
    manifest: String,
    blocks: BTreeMap<String, Vec<String>>,
}

/// The part that a reader of any version can parse.
#[derive(Deserialize)]
struct Head {
    format: u64,
}

/// Why a record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The reason, without the object's name.
    pub(super) why: String,
    /// Whether a newer program wrote it.
    pub(super) is_newer: bool,
}

impl Unreadable {
    pub(super) fn damaged(why: impl Into<String>) -> Unreadable {
        Unreadable {
            why: why.into(),
            is_newer: false,
        }
    }
}

impl PointRecord {
    /// The text of the record.
    pub(super) fn to_text(&self) -> serde_json::Result<String> {
        let hex = |ids: &Vec<BlockId>| ids.iter().map(|id| id.to_hex()).collect();
        let blocks = self.blocks.iter();
        serde_json::to_string(&Written {
            format: FORMAT,
            run: self.run.clone(),
            previous: self.previous.clone(),
            manifest: self.manifest.to_text()?,
            blocks: blocks.map(|(name, ids)| (name.clone(), hex(ids))).collect(),
        })
    }

    /// Reads a record of a domain with these names.
    pub(super) fn parse(
        text: &[u8],
        key: &Arc<MasterKey>,
        names: &DomainNames,
    ) -> Result<PointRecord, Unreadable> {
        let not = |error: serde_json::Error| Unreadable::damaged(format!("it is invalid: {error}"));
        let head: Head = serde_json::from_slice(text).map_err(not)?;
        if head.format > FORMAT {
            return Err(Unreadable {
                why: format!("it has format {} and was written by a newer vmsnap", head.format),
                is_newer: true,
            });
        }
        let written: Written = serde_json::from_slice(text).map_err(not)?;
        let manifest = Manifest::parse(written.manifest.as_bytes()).map_err(|error| Unreadable {
            is_newer: matches!(error, ManifestError::TooNew(_)),
            why: format!("its manifest cannot be used: {error}"),
        })?;
        let ids = |(name, hex): (String, Vec<String>)| {
            let ids: Option<Vec<BlockId>> = hex.iter().map(|id| BlockId::from_hex(id)).collect();
            Some((name, ids.filter(|ids| ids.len() <= MOST_BLOCKS)?))
        };
        let blocks: Option<BTreeMap<_, _>> = written.blocks.into_iter().map(ids).collect();
        let record = PointRecord {
            run: written.run,
            previous: written.previous,
            manifest,
            blocks: blocks.ok_or_else(|| Unreadable::damaged("an id of a block is invalid"))?,
        };
        let domain = &record.manifest.point.domain;
        if DomainNames::of(key, domain).hash() != names.hash() {
            return Err(Unreadable::damaged("it belongs to another domain"));
        }
        record.check().map_err(Unreadable::damaged)?;
        Ok(record)
    }

    fn check(&self) -> Result<(), &'static str> {
        let point = &self.manifest.point;
        let is_image = |name: &String| point.disks.iter().any(|disk| disk.image == *name);
        let small = self.manifest.files.iter().filter(|file| !is_image(&file.name));
        let mut small = small.chain(&self.manifest.checkpoint_file);
        let mut roots = point.disks.iter().map(|disk| self.root(&disk.target));
        let previous = self.previous.as_ref();
        match () {
            () if !is_hex(&self.run, RUN) => Err("the id of its run is invalid"),
            () if previous.is_some_and(|previous| !is_point(&previous.name)) => {
                Err("the name of its predecessor is invalid")
            }
            () if !holds_restore_points(&point.period) => Err("its period is invalid"),
            () if !small.all(|file| self.blocks.contains_key(&file.name)) => {
                Err("the blocks of a file are missing")
            }
            () if roots.any(|root| root.is_none()) => Err("the id of a disk's map is invalid"),
            () => Ok(()),
        }
    }

    /// The data that the restore point needs; `None` if the id of a disk's map is invalid.
    pub(super) fn needed(&self) -> Option<Needed> {
        let disks = self.manifest.point.disks.iter();
        let disks = disks.map(|disk| Some((self.root(&disk.target)?, disk.virtual_size)));
        Some(Needed {
            disks: disks.collect::<Option<_>>()?,
            blocks: self.blocks.values().flatten().copied().collect(),
        })
    }

    /// The data that the restore point needs, with the names of its disks and files.
    pub(super) fn subject(&self) -> Option<Subject> {
        let point = &self.manifest.point;
        let disks = point.disks.iter();
        let disks =
            disks.map(|disk| Some((disk.target.clone(), self.root(&disk.target)?, disk.virtual_size)));
        Some(Subject {
            domain: point.domain.clone(),
            id: point.id.clone(),
            disks: disks.collect::<Option<_>>()?,
            files: self.blocks.clone().into_iter().collect(),
        })
    }

    /// The id of the root page of a disk's map.
    pub(super) fn root(&self, target: &str) -> Option<BlockId> {
        root(&self.manifest, target)
    }
}

/// The id of the root page of a disk's map.
pub(super) fn root(manifest: &Manifest, target: &str) -> Option<BlockId> {
    let disk = manifest.point.disk(target)?;
    BlockId::from_hex(&manifest.file(&disk.image)?.blake3)
}

/// The name of a disk's map in the manifest.
pub(super) fn map_name(target: &str) -> String {
    format!("{target}.map")
}

/// A valid record, which the fuzzer changes.
#[cfg(test)]
pub(super) fn sample_for_fuzzing() -> Vec<u8> {
    tests::record().to_text().expect("it serialises").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (Arc<MasterKey>, DomainNames) {
        let key = Arc::new(MasterKey::from_hex(&"01".repeat(32)).expect("valid"));
        let names = DomainNames::of(&key, "vm1");
        (key, names)
    }

    pub(super) fn record() -> PointRecord {
        let id = "ab".repeat(32);
        let point = serde_json::json!({
            "id": "2026-11-01T02-00-03Z", "sequence": 1, "domain": "vm1", "uuid": "u",
            "time": "2026-11-01T02:00:03Z", "period": "vmsnap-backup-monthly-2026-11",
            "level": "full", "parent": null, "checkpoint": null, "consistency": "crash",
            "findings": [], "disks": [{
                "target": "vda", "level": "full", "reason": "", "parent": null,
                "checkpointed": false, "virtualSize": 1, "source": "/x", "sourceFormat": "qcow2",
                "image": "vda.map", "dataBytes": 0, "zeroBytes": 0,
            }],
        });
        let entry = |name: &str| crate::repo::FileEntry {
            name: name.to_owned(),
            size: 1,
            blake3: id.clone(),
            pieces: None,
            unused: None,
        };
        let files = vec![entry("vda.map"), entry("domain.xml")];
        let block = BlockId::from_hex(&id).expect("valid");
        PointRecord {
            run: "0123456789abcdef".repeat(2),
            previous: Some(Predecessor {
                name: names().1.stem_after(None),
                id: None,
            }),
            manifest: Manifest::new("", serde_json::from_value(point).expect("a point"), files, None),
            blocks: BTreeMap::from([("domain.xml".to_owned(), vec![block])]),
        }
    }

    fn parsed(text: &str) -> Result<PointRecord, Unreadable> {
        let (key, names) = names();
        PointRecord::parse(text.as_bytes(), &key, &names)
    }

    #[test]
    fn a_record_comes_back() {
        let record = record();
        let read = parsed(&record.to_text().expect("it serialises")).expect("valid");
        assert_eq!(
            (read.run, read.previous, read.blocks),
            (record.run, record.previous, record.blocks)
        );
        assert_eq!(read.manifest.point, record.manifest.point);
        assert!(root(&read.manifest, "vda").is_some() && root(&read.manifest, "vdb").is_none());
    }

    #[test]
    fn hostile_records_are_refused() {
        let text = record().to_text().expect("it serialises");
        let other = DomainNames::of(&names().0, "vm2");
        let of_other = PointRecord::parse(text.as_bytes(), &names().0, &other).expect_err("refused");
        assert!(of_other.why.contains("another domain"), "{of_other:?}");
        for (old, new) in [
            ("\"format\":1", "\"format\":\"1\""),
            ("\"run\":\"0123", "\"run\":\"x123"),
            ("\"name\":\"", "\"name\":\"../"),
            ("[\"abab", "[\"zbab"),
            ("\"blocks\":{\"domain.xml\"", "\"blocks\":{\"x\""),
            ("sequence", "Sequence"),
            ("\"run\"", "\"more\":1,\"run\""),
        ] {
            assert!(text.contains(old), "{old}");
            assert!(parsed(&text.replacen(old, new, 1)).is_err(), "{new}");
        }
        for length in (0..text.len()).step_by(7) {
            assert!(parsed(&text[..length]).is_err(), "{length}");
        }
        let newer = parsed("{\"format\": 9}").expect_err("refused");
        assert!(newer.is_newer);
    }
}
