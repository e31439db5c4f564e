//! Restore points from the runs of a set.
//!
//! A set has no manifests, so they are made here from the headers and names of its files. Nothing
//! in them depends on where the set is, so a copy recognises a restore point again.

use std::collections::BTreeSet;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::dates::{Dated, Providers, dated, lost, providers};
use super::folder::{Config, DataFile, Facts, SetContent};
use super::names::{Run, Whole, checkpoint_number};
use super::place::SetPlace;
use crate::model::chain::{FileFault, KeptPoint, LostPoint};
use crate::model::checkpoint::CheckpointId;
use crate::model::finding::Finding;
use crate::model::left_out::{Kind, LeftOut};
use crate::model::restore_point::{Consistency, DiskPoint, Level, RestorePoint};
use crate::model::text::shown;
use crate::repo::history::{CHECKSUM_MISSING, Kept, ZEROES_MISSING};
use crate::repo::manifest::{DOMAIN_XML, FileEntry, Manifest, NVRAM};

/// How much earlier than its parent a backup may be dated, in seconds: when summer time ends,
/// clocks are set back.
const CLOCK_CHANGE: i64 = 2 * 3600;

/// A restore point of a set.
#[derive(Debug)]
pub(super) struct SetPoint {
    pub(super) point: KeptPoint,
    pub(super) kept: Kept,
}

/// The restore points of a set, each after its parents, and the lost ones.
pub(super) fn points(
    place: &SetPlace,
    content: &SetContent,
    zone: &TimeZone,
) -> (Vec<SetPoint>, Vec<LostPoint>) {
    let providers = providers(content);
    let dated = dated(place, content, &providers, zone);
    let points = dated.iter().map(|run| {
        let making = Making {
            place,
            content,
            dated: &dated,
            providers: &providers,
            run,
        };
        making.point()
    });
    let points = points.collect();
    (points, lost(place, content, &dated, &providers))
}

/// Makes the restore point of a run.
struct Making<'a> {
    place: &'a SetPlace,
    content: &'a SetContent,
    dated: &'a [Dated<'a>],
    providers: &'a Providers,
    run: &'a Dated<'a>,
}

impl Making<'_> {
    fn point(&self) -> SetPoint {
        let group = self.run.group;
        let mut faults = Vec::new();
        let disks: Vec<DiskPoint> = group
            .files
            .iter()
            .map(|file| self.disk(file, &mut faults))
            .collect();
        let config = group.config.as_ref();
        if let Err(what) = config {
            faults.push(FileFault {
                file: DOMAIN_XML.to_owned(),
                what: what.clone(),
            });
        }
        let definition = config.ok().map(|config| &config.definition);
        let parents = disks.iter().filter_map(|disk| disk.parent.clone());
        let sequence = |id: &String| {
            self.dated
                .iter()
                .find(|run| run.id == *id)
                .map(|run| run.sequence)
        };
        let parent = parents.max_by_key(sequence);
        let is_incremental = disks.iter().any(|disk| disk.level == Level::Incremental);
        let point = RestorePoint {
            id: self.run.id.clone(),
            sequence: self.run.sequence,
            domain: self.place.domain.clone(),
            uuid: definition
                .map(|definition| definition.uuid.clone())
                .unwrap_or_default(),
            time: self.run.time,
            period: self.place.period.clone(),
            level: if is_incremental {
                Level::Incremental
            } else {
                Level::Full
            },
            parent,
            checkpoint: self.checkpoint(),
            consistency: Consistency::Crash,
            left_out: self.left_out(),
            findings: self.findings(&disks),
            disks,
            merged: None,
            copied_from: None,
            guest: None,
        };
        let manifest = self.manifest(point.clone());
        SetPoint {
            point: KeptPoint {
                point,
                manifest: manifest.digest.clone(),
                faults,
                suspected_damage: Vec::new(),
                missed_writes: Vec::new(),
                pin: None,
                needs_parents: true,
            },
            kept: Kept {
                location: self.place.dir.display().to_string(),
                manifest,
                proof: None,
                records: Vec::new(),
                boot_proof: None,
                has_checkpoint_file: true,
            },
        }
    }

    fn path(&self, file: &str) -> String {
        self.place.dir.join(file).display().to_string()
    }

    /// The description of a disk. What is wrong with its file goes to `faults`.
    fn disk(&self, file: &DataFile, faults: &mut Vec<FileFault>) -> DiskPoint {
        let mut fault = |what: String| {
            faults.push(FileFault {
                file: file.name.clone(),
                what,
            });
        };
        let config = self.run.group.config.as_ref().ok();
        let defined = config.and_then(|config| config.definition.disk(&file.target));
        let mut disk = DiskPoint {
            target: file.target.clone(),
            level: Level::Full,
            reason: reason(self.run.group.run, file),
            parent: None,
            parent_manifest: None,
            checkpointed: false,
            virtual_size: 0,
            source: defined.map(|disk| disk.source.clone()).unwrap_or_default(),
            source_file: None,
            source_format: defined.map(|disk| disk.format.clone()).unwrap_or_default(),
            decrypted: None,
            image: file.name.clone(),
            data_bytes: 0,
            zero_bytes: 0,
            compression: None,
        };
        match &file.facts {
            Err(what) => {
                fault(what.clone());
                if !matches!(self.run.group.run, Run::Base) {
                    disk.level = Level::Incremental;
                }
            }
            Ok(Facts::Raw) => {
                disk.virtual_size = file.size;
                disk.data_bytes = file.size;
            }
            Ok(Facts::Stream(header)) => {
                disk.virtual_size = header.size;
                disk.data_bytes = header.data_bytes;
                disk.source_format.clone_from(&header.disk_format);
                disk.compression = header.is_compressed.then(|| "lz4".to_owned());
                if header.is_incremental {
                    disk.level = Level::Incremental;
                    match self.parent(&header.parent, &file.target) {
                        Ok(parent) => disk.parent = Some(parent),
                        Err(why) => fault(format!("{} {why}", self.path(&file.name))),
                    }
                }
            }
        }
        disk
    }

    /// The id of the restore point that shows a disk at a checkpoint.
    fn parent(&self, checkpoint: &str, target: &str) -> Result<String, String> {
        let place = self.providers.get(&(checkpoint.to_owned(), target.to_owned()));
        let parent = place.map(|place| &self.dated[*place]);
        let parent = parent
            .filter(|parent| !std::ptr::eq(*parent, self.run))
            .ok_or_else(|| {
                format!(
                    "depends on checkpoint {}, but the set has no backup of disk {target} with this checkpoint",
                    shown(checkpoint)
                )
            })?;
        let seconds = |date: DateTime| {
            TimeZone::UTC
                .to_timestamp(date)
                .map_or(0, |time| time.as_second())
        };
        if let (Some(own), Some(of_parent)) = (self.run.date, parent.date)
            && seconds(of_parent) - seconds(own) > CLOCK_CHANGE
        {
            return Err(format!(
                "is older than {}, on which it depends: one of them belongs to another set",
                parent.id
            ));
        }
        Ok(parent.id.clone())
    }

    /// The checkpoint that the run made.
    fn checkpoint(&self) -> Option<CheckpointId> {
        let files = self.run.group.files.iter();
        let mut provided = files.filter_map(|file| {
            let header = file.header()?;
            let key = (header.checkpoint.clone(), file.target.clone());
            let provider = self.providers.get(&key)?;
            let is_own = std::ptr::eq(&self.dated[*provider], self.run);
            (is_own && checkpoint_number(&header.checkpoint).is_some()).then_some(&header.checkpoint)
        });
        let name = provided.next()?;
        Some(CheckpointId {
            name: name.clone(),
            created: self.content.created.get(name).copied().unwrap_or(0),
        })
    }

    /// The disks of the definition that the run did not save.
    fn left_out(&self) -> Vec<LeftOut> {
        let group = self.run.group;
        let Ok(config) = &group.config else {
            return Vec::new();
        };
        let is_saved = |target: &str| group.files.iter().any(|file| file.target == target);
        let disks = config.definition.disks.iter();
        let left = disks.filter(|disk| !is_saved(&disk.target)).map(|disk| {
            let (kind, reason) = match disk.format.as_str() {
                "raw" => (
                    Kind::Raw,
                    "it is raw, and virtnbdbackup saves raw disks only in full backups, on request",
                ),
                _ => (Kind::Skipped, "the set has no file of this disk for this backup"),
            };
            LeftOut {
                disk: disk.target.clone(),
                kind,
                reason: reason.to_owned(),
            }
        });
        left.collect()
    }

    /// What a reader of this restore point has to know.
    fn findings(&self, disks: &[DiskPoint]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let streams = disks.iter().filter(|disk| disk.level == Level::Incremental);
        let evidence = |disk: &DiskPoint| self.content.logs.of(&disk.image);
        let doubtful: Vec<&DiskPoint> = streams
            .filter(|disk| evidence(disk).is_none_or(|found| !found.has_zeroes))
            .collect();
        if !doubtful.is_empty() {
            let version = doubtful.iter().find_map(|disk| evidence(disk));
            let version = version.map_or("from 2.21 on".to_owned(), |found| shown(&found.version));
            findings.push(Finding::new(
                ZEROES_MISSING,
                format!(
                    "{} may lack ranges that became zero, which then show older bytes: virtnbdbackup {version} leaves such ranges out",
                    names(doubtful.iter().map(|disk| disk.image.as_str()))
                ),
            ));
        }
        let files = self.run.group.files.iter();
        let unchecked: Vec<&str> = files
            .filter(|file| file.checksum == Ok(None) && file.facts.is_ok())
            // The checksums of LZ4 cover the data. Only a full stream has no gaps, so only there a
            // wrong position is noticed.
            .filter(|file| {
                let header = file.header();
                !header.is_some_and(|header| header.is_compressed && !header.is_incremental)
            })
            .map(|file| file.name.as_str())
            .collect();
        if !unchecked.is_empty() {
            findings.push(Finding::new(
                CHECKSUM_MISSING,
                format!(
                    "the set has no checksum of {}: some changes in this file cannot be detected",
                    names(unchecked.into_iter())
                ),
            ));
        }
        findings
    }

    fn manifest(&self, point: RestorePoint) -> Manifest {
        let group = self.run.group;
        let mut files: Vec<FileEntry> = Vec::new();
        let entry = |name: &str, size: u64, blake3: &str| FileEntry {
            name: name.to_owned(),
            size,
            blake3: blake3.to_owned(),
            pieces: None,
            unused: None,
        };
        // A set has no digests of this kind.
        files.extend(group.files.iter().map(|file| entry(&file.name, file.size, "")));
        if let Ok(config) = &group.config {
            files.push(entry(DOMAIN_XML, config.size, &config.digest));
            if let Some((_, size)) = self.nvram(config) {
                files.push(entry(NVRAM, size, ""));
            }
        }
        let mut digest = blake3::Hasher::new();
        for file in &group.files {
            let header = file.header().map(|header| format!("{header:?}"));
            digest.update(format!("{:?}\n", (&file.name, file.size, &file.checksum, header)).as_bytes());
        }
        Manifest {
            digest: digest.finalize().to_hex().to_string(),
            tool: "virtnbdbackup".to_owned(),
            ..Manifest::new("unknown", point, files, None)
        }
    }

    /// The name and size of the file with the UEFI variables that the run saved.
    fn nvram(&self, config: &Config) -> Option<(String, u64)> {
        let name = nvram_name(config, &self.content.names)?;
        let found = std::fs::metadata(self.place.dir.join(&name)).ok()?;
        found.is_file().then_some((name, found.len()))
    }
}

/// The name of the file with the UEFI variables that belongs to a definition.
pub(super) fn nvram_name(config: &Config, names: &BTreeSet<String>) -> Option<String> {
    let base = config.definition.nvram.as_deref()?;
    let ident = config.name.strip_prefix("vmconfig.")?.strip_suffix(".xml")?;
    let name = match ident {
        "copy" => base.to_owned(),
        ident => format!("{base}.{ident}"),
    };
    names.contains(&name).then_some(name)
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// Why a disk is full or incremental, in a few words.
fn reason(run: Run, file: &DataFile) -> String {
    let reason = match (run, file.whole) {
        (Run::Base, Some(Whole::Copy)) => "virtnbdbackup's level copy",
        (Run::Base, _) => "virtnbdbackup's level full",
        (Run::Incremental(_), _) => match file.header() {
            Some(header) if !header.is_incremental => "virtnbdbackup could not use its checkpoint",
            _ => "virtnbdbackup's level inc",
        },
        (Run::Differential(_), _) => "virtnbdbackup's level diff",
    };
    reason.to_owned()
}
