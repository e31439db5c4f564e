//! One domain's restore points in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;

use super::disk::{MemoryDisk, MemorySource};
use super::pending::{MemoryPending, sealed};
use super::{Domain, MemoryRepository, Point};
use crate::model::block::{BlockError, BlockSource};
use crate::model::chain::{Chains, KeptPoint, MissedWrite};
use crate::model::period::{COPY_PREFIX, FOLDER_PREFIX};
use crate::model::pin::Pin;
use crate::model::stop::Stop;
use crate::repo::merge;
use crate::repo::{
    BootProof, DiskReader, DomainRepository, DomainWriter, FileDamage, FileEntry, FileWatch, History,
    Identity, Kept, Leftover, Manifest, Merge, Merged, MissedWriteRecord, Note, PendingPoint, PeriodUsage,
    Proof, RepoError, Repository, Result, SmallFile, SourceOptions,
};

/// One domain's part of a [`MemoryRepository`].
#[derive(Clone)]
pub(super) struct MemoryDomain {
    pub(super) repository: MemoryRepository,
    pub(super) name: String,
}

impl MemoryDomain {
    fn with<T>(&self, what: impl FnOnce(&mut Domain) -> T) -> T {
        self.repository.with(&self.name, what)
    }

    fn place(&self, key: &str) -> String {
        format!("memory/{}/{key}", self.name)
    }

    fn open(&self, history: &History, id: &str, target: &str, stop: &Stop) -> Result<MemoryDisk> {
        let not_whole = |fault: String| RepoError::NotWhole {
            id: id.to_owned(),
            fault,
        };
        let line = history.chains.lineage(id, target).map_err(not_whole)?;
        let points = line.iter().map(|step| {
            let found = self.with(|kept| kept.point(&step.point.id).cloned());
            found.ok_or_else(|| not_whole(format!("restore point {} is missing", step.point.id)))
        });
        Ok(MemoryDisk {
            points: points.collect::<Result<_>>()?,
            target: target.to_owned(),
            stop: stop.clone(),
        })
    }
}

/// Returns the verification of a restore point that counts: the newest one that found damage, or
/// else the newest one.
fn proof_of(kept: &Domain, manifest: &Manifest) -> Option<Proof> {
    let of_manifest = |proof: &&Proof| proof.id == manifest.point.id && proof.manifest == manifest.digest;
    let newest_first = || {
        kept.proofs
            .iter()
            .rev()
            .map(|(_, proof)| proof)
            .filter(of_manifest)
    };
    let damaged = newest_first().find(|proof| !proof.is_sound());
    damaged.or_else(|| newest_first().next()).cloned()
}

fn missed_of(kept: &Domain, manifest: &Manifest) -> Vec<MissedWrite> {
    let of_manifest = |missed: &&MissedWriteRecord| {
        let point = &manifest.point;
        missed.id == point.id && point.has_or_had_manifest(&manifest.digest, &missed.manifest)
    };
    let missed = kept.missed.iter().filter(of_manifest);
    let writes = missed.flat_map(|missed| {
        missed.disks.iter().map(|disk| MissedWrite {
            disk: disk.clone(),
            found: missed.time,
        })
    });
    writes.collect()
}

impl DomainRepository for MemoryDomain {
    fn name(&self) -> &str {
        &self.name
    }

    fn location(&self) -> String {
        format!("memory/{}", self.name)
    }

    fn exists(&self) -> bool {
        self.with(|kept| !kept.ids.is_empty())
    }

    fn identity(&self) -> Identity {
        self.repository.identity()
    }

    fn history(&self) -> Result<History> {
        Ok(self.with(|domain| {
            let points = domain.points.iter().map(|point| {
                let manifest = &point.manifest;
                KeptPoint {
                    point: manifest.point.clone(),
                    manifest: manifest.digest.clone(),
                    faults: Vec::new(),
                    suspected_damage: proof_of(domain, manifest)
                        .iter()
                        .flat_map(Proof::suspected_damage)
                        .collect(),
                    missed_writes: missed_of(domain, manifest),
                    pin: domain.pins.get(&manifest.point.id).cloned(),
                    needs_parents: true,
                }
            });
            let chains = Chains::new(points.collect()).with_removed(domain.removed.clone());
            let kept = chains.points().iter().filter_map(|kept| {
                let manifest = domain.point(&kept.point.id)?.manifest.clone();
                let of_point = |(_, proof): &&(String, Proof)| proof.id == manifest.point.id;
                Some(Kept {
                    location: self.place(&format!("{}/{}", kept.point.period, kept.point.id)),
                    proof: proof_of(domain, &manifest),
                    boot_proof: BootProof::newest_of(&domain.booted, &manifest),
                    records: domain
                        .proofs
                        .iter()
                        .filter(of_point)
                        .map(|(name, _)| name.clone())
                        .collect(),
                    has_checkpoint_file: true,
                    manifest,
                })
            });
            History {
                can_continue: false,
                kept: kept.collect(),
                findings: Vec::new(),
                _guard: None,
                leftovers: domain
                    .pending
                    .keys()
                    .map(|key| Leftover {
                        key: key.clone(),
                        location: self.place(key),
                        is_merge: false,
                    })
                    .collect(),
                chains,
            }
        }))
    }

    fn used_periods(&self) -> Result<Vec<String>> {
        let mut used = self.with(|kept| {
            let periods = kept
                .points
                .iter()
                .map(|point| point.manifest.point.period.clone());
            periods
                .filter(|period| period.starts_with(FOLDER_PREFIX))
                .collect::<Vec<_>>()
        });
        used.sort();
        used.dedup();
        Ok(used)
    }

    fn period_usage(&self, period: &str) -> PeriodUsage {
        self.with(|kept| {
            let points = || {
                kept.points
                    .iter()
                    .filter(|point| point.manifest.point.period == period)
            };
            let files = || points().flat_map(|point| &point.manifest.files);
            PeriodUsage {
                exists: points().next().is_some(),
                location: self.place(period),
                files: files().count() as u64,
                bytes: files().map(|file| file.size).sum(),
            }
        })
    }

    fn copy_period(&self, time: Timestamp) -> Result<String> {
        Ok(format!("{COPY_PREFIX}{}", self.with(|kept| kept.free_id(time))))
    }

    fn interrupted_removals(&self) -> Result<Vec<Leftover>> {
        Ok(Vec::new())
    }

    fn has_leftover(&self, leftover: &Leftover) -> bool {
        self.with(|kept| kept.pending.contains_key(&leftover.key))
    }

    fn note(&self, leftover: &Leftover) -> Result<Note> {
        let note = self.with(|kept| kept.pending.get(&leftover.key).cloned());
        Ok(note.flatten().map_or(Note::None, Note::Text))
    }

    fn restore_mark(&self) -> Result<Note> {
        let mark = self.with(|kept| kept.restore_mark.clone());
        Ok(mark.map_or(Note::None, Note::Text))
    }

    fn restore_mark_location(&self) -> String {
        self.place("restoring")
    }

    fn writer(&self) -> Option<String> {
        self.with(|kept| kept.writer.clone())
    }

    fn try_lock(&self) -> Result<Box<dyn DomainWriter>> {
        let holder = self.with(|kept| {
            let own = format!("process {}", std::process::id());
            match &kept.writer {
                Some(holder) => Some(holder.clone()),
                None => {
                    kept.writer = Some(own);
                    None
                }
            }
        });
        match holder {
            None => Ok(Box::new(MemoryWriter(self.clone()))),
            Some(holder) => Err(RepoError::Locked {
                location: self.place(".lock"),
                holder,
                waited: Duration::ZERO,
            }),
        }
    }

    fn open_disk(
        &self,
        history: &History,
        id: &str,
        target: &str,
        stop: &Stop,
    ) -> Result<Arc<dyn DiskReader>> {
        Ok(Arc::new(self.open(history, id, target, stop)?))
    }

    fn open_source(
        &self,
        history: &History,
        id: &str,
        target: &str,
        options: &SourceOptions,
    ) -> Result<Box<dyn BlockSource>> {
        let mut disk = self.open(history, id, target, &options.stop)?;
        let above = |point: &Arc<Point>| Some(&point.manifest.point.id) == options.above.as_ref();
        let base = disk.points.iter().position(above);
        disk.points.truncate(base.unwrap_or(disk.points.len()));
        Ok(Box::new(MemorySource {
            disk,
            is_part: base.is_some(),
            position: 0,
        }))
    }

    fn read_file(&self, kept: &Kept, file: SmallFile) -> std::result::Result<Vec<u8>, String> {
        let place = format!("{}/{}", kept.location, file.name());
        let Some(entry) = file.entry(&kept.manifest) else {
            return Err(format!("its manifest names no {place}"));
        };
        let id = &kept.manifest.point.id;
        let content = self.with(|kept| kept.point(id)?.files.get(file.name()).cloned());
        let content = content.ok_or_else(|| format!("{place} is missing"))?;
        match blake3::hash(&content).to_hex().as_str() == entry.blake3 {
            true => Ok(content),
            false => Err(format!("{place} is damaged: its digest is not the recorded one")),
        }
    }

    fn check_files(
        &self,
        _history: &History,
        kept: &Kept,
        watch: &mut dyn FileWatch,
        stop: &Stop,
        damage: &mut Vec<FileDamage>,
    ) -> Result<()> {
        let id = &kept.manifest.point.id;
        let Some(point) = self.with(|kept| kept.point(id).cloned()) else {
            return Ok(());
        };
        for (target, disk) in &point.disks {
            if stop.requested() {
                return Err(BlockError::stopped().into());
            }
            let location = format!("{}/{target}", kept.location);
            watch.begins(&location, disk.size);
            damage.extend(disk.damaged().map(|offset| FileDamage {
                location: Some(location.clone()),
                offset: Some(offset),
                disk: Some(target.clone()),
                what: format!("{location} does not match its digest at offset {offset}"),
            }));
            watch.at(&location, disk.size);
            watch.ends(&location);
        }
        Ok(())
    }

    fn is_removed(&self, kept: &Kept) -> Result<bool> {
        Ok(self.with(|domain| domain.point(&kept.manifest.point.id).is_none()))
    }

    fn keep_proof(&self, proof: &Proof, known: &[String]) -> Result<()> {
        self.with(|kept| {
            kept.proofs.retain(|(name, _)| !known.contains(name));
            kept.proofs
                .push((format!("{}.{}", proof.id, uuid::Uuid::new_v4()), proof.clone()));
        });
        Ok(())
    }

    fn keep_missed_writes(&self, missed: &MissedWriteRecord) -> Result<()> {
        self.with(|kept| kept.missed.push(missed.clone()));
        Ok(())
    }

    fn keep_boot_proof(&self, proof: &BootProof) -> Result<()> {
        self.with(|kept| {
            kept.booted.retain(|known| known.id != proof.id);
            kept.booted.push(proof.clone());
        });
        Ok(())
    }

    fn forget_removed(&self) -> Result<()> {
        self.with(|kept| {
            let ids: Vec<String> = kept
                .points
                .iter()
                .map(|point| point.manifest.point.id.clone())
                .collect();
            kept.proofs.retain(|(_, proof)| ids.contains(&proof.id));
            kept.missed.retain(|missed| ids.contains(&missed.id));
            kept.booted.retain(|proof| ids.contains(&proof.id));
        });
        Ok(())
    }
}

/// The right to write to a domain, until it is dropped.
struct MemoryWriter(MemoryDomain);

impl Drop for MemoryWriter {
    fn drop(&mut self) {
        self.0.with(|kept| kept.writer = None);
    }
}

impl MemoryWriter {
    fn start(&self, period: &str, id: String) -> Box<dyn PendingPoint> {
        let key = format!("{period}/{id}");
        self.0.with(|kept| {
            kept.ids.insert(id.clone());
            kept.pending.insert(key.clone(), None);
        });
        Box::new(MemoryPending {
            repository: self.0.repository.clone(),
            domain: self.0.name.clone(),
            key,
            id,
            disks: Arc::default(),
            files: Mutex::new(BTreeMap::new()),
            is_kept: false,
        })
    }
}

impl DomainWriter for MemoryWriter {
    fn history(&self) -> Result<History> {
        self.0.history()
    }

    fn begin(&self, period: &str, time: Timestamp) -> Result<Box<dyn PendingPoint>> {
        let id = self.0.with(|kept| kept.free_id(time));
        Ok(self.start(period, id))
    }

    fn begin_with_id(&self, period: &str, id: &str) -> Result<Box<dyn PendingPoint>> {
        let is_pending = |key: &String| key.rsplit('/').next() == Some(id);
        let is_taken = self
            .0
            .with(|kept| kept.point(id).is_some() || kept.pending.keys().any(is_pending));
        let id = id.to_owned();
        match is_taken {
            true => Err(RepoError::IdTaken { id }),
            false => Ok(self.start(period, id)),
        }
    }

    /// Does nothing: restore points in memory are never lost.
    fn remember_committed(&self, _history: &History) -> Result<()> {
        Ok(())
    }

    fn remove_period(&self, period: &str, _now: Timestamp) -> Result<()> {
        let is_of = |point: &Arc<Point>| point.manifest.point.period == period;
        let removed = self.0.with(|kept| {
            let before = kept.points.len();
            kept.points.retain(|point| !is_of(point));
            before - kept.points.len()
        });
        match removed {
            0 => Err(RepoError::Io {
                operation: "remove",
                location: self.0.place(period),
                source: io::ErrorKind::NotFound.into(),
            }),
            _ => Ok(()),
        }
    }

    fn remove_point(&self, history: &History, id: &str, now: Timestamp) -> Result<()> {
        let is_there = |id: &str| self.0.with(|domain| domain.point(id).is_some());
        let needed_by = history
            .children(id)
            .map(|child| &child.manifest.point.id)
            .find(|child| is_there(child));
        if let Some(by) = needed_by {
            let (id, by) = (id.to_owned(), by.clone());
            return Err(RepoError::Needed { id, by });
        }
        self.0.with(|domain| {
            let Some(place) = domain.place_of(id) else {
                return Err(RepoError::NotWhole {
                    id: id.to_owned(),
                    fault: format!("restore point {id} is missing"),
                });
            };
            let point = Arc::clone(&domain.points[place]);
            domain.forget(&point.manifest.point, now);
            Ok(())
        })
    }

    fn pin(&self, kept: &Kept, pin: &Pin) -> Result<()> {
        let id = kept.manifest.point.id.clone();
        self.0.with(|domain| domain.pins.insert(id, pin.clone()));
        Ok(())
    }

    fn unpin(&self, kept: &Kept) -> Result<bool> {
        let id = &kept.manifest.point.id;
        Ok(self.0.with(|domain| domain.pins.remove(id).is_some()))
    }

    fn merge_points(&self, history: &History, merge: &Merge<'_>) -> Result<Merged> {
        let plan = merge::plan(history, merge)?;
        let mut images = Vec::new();
        let mut disks = BTreeMap::new();
        for image in &plan.images {
            let target = &image.disk.target;
            let chain = self.0.open(history, merge.into, target, merge.stop)?;
            let disk = chain.merged(image.layers)?;
            images.push((image, disk.written()));
            disks.insert(target.clone(), disk);
        }
        let entries: Vec<FileEntry> = images
            .iter()
            .map(|(image, written)| FileEntry {
                name: image.disk.image.clone(),
                size: written.file_bytes,
                blake3: written.blake3.clone().unwrap_or_default(),
                pieces: None,
                unused: None,
            })
            .collect();
        let manifest = sealed(&merge::manifest(&plan, &images, &entries))?;
        self.0.with(|domain| {
            for gone in &plan.run {
                domain.forget(&gone.manifest.point, merge.now);
            }
            if let Some(place) = domain.place_of(merge.into) {
                let before = Arc::clone(&domain.points[place]);
                let mut all = before.disks.clone();
                all.extend(disks);
                domain.points[place] = Arc::new(Point {
                    manifest,
                    disks: all,
                    files: before.files.clone(),
                });
            }
        });
        Ok(Merged::Completely)
    }

    fn finish_removal(&self, _removal: &Leftover) -> Result<bool> {
        Ok(true)
    }

    fn write_restore_mark(&self, mark: &[u8]) -> Result<()> {
        self.0.with(|kept| kept.restore_mark = Some(mark.to_vec()));
        Ok(())
    }

    fn remove_restore_mark(&self) -> Result<()> {
        self.0.with(|kept| kept.restore_mark = None);
        Ok(())
    }

    fn remove_leftover(&self, leftover: &Leftover) -> Result<()> {
        self.0.with(|kept| kept.pending.remove(&leftover.key));
        Ok(())
    }
}
