//! One domain's part of a pack repository, for reading.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;

use super::check::{self, Check};
use super::part::DomainPart;
use super::records::{Kind, RecordName};
use super::writer::PackWriter;
use crate::model::block::BlockSource;
use crate::model::period::{COPY_PREFIX, FOLDER_PREFIX};
use crate::model::stop::Stop;
use crate::repo::{
    BootProof, DiskReader, DomainRepository, DomainWriter, FileDamage, FileEntry, FileWatch, History,
    Identity, Kept, Leftover, MissedWriteRecord, Note, PeriodUsage, Proof, Result, SmallFile, SourceOptions,
};

impl DomainRepository for DomainPart {
    fn name(&self) -> &str {
        &self.name
    }

    fn location(&self) -> String {
        self.points_location()
    }

    fn exists(&self) -> bool {
        self.state.exists() || self.content().is_ok_and(|content| !content.is_empty())
    }

    fn identity(&self) -> Identity {
        Identity::Known(self.shared.place.description.id.clone())
    }

    fn history(&self) -> Result<History> {
        self.read().map(|(_, history)| history)
    }

    fn used_periods(&self) -> Result<Vec<String>> {
        let content = self.content()?;
        let points = content.points.iter().map(|stored| &stored.record.manifest.point);
        let periods = points.map(|point| point.period.clone());
        let used: BTreeSet<String> = periods
            .filter(|period| period.starts_with(FOLDER_PREFIX))
            .collect();
        Ok(used.into_iter().collect())
    }

    fn period_usage(&self, period: &str) -> PeriodUsage {
        let content = self.content();
        let points = content.iter().flat_map(|content| &content.points);
        let manifests = points.map(|stored| &stored.record.manifest);
        let of_period: Vec<_> = manifests
            .filter(|manifest| manifest.point.period == period)
            .collect();
        let files = || of_period.iter().flat_map(|manifest| &manifest.files);
        PeriodUsage {
            exists: !of_period.is_empty(),
            location: self.period_location(period),
            files: files().count() as u64,
            bytes: files().map(FileEntry::stored).sum(),
        }
    }

    fn copy_period(&self, time: Timestamp) -> Result<String> {
        let id = self.content()?.free_id(time, &self.state.ids()?);
        Ok(format!("{COPY_PREFIX}{id}"))
    }

    /// None: a removal is complete when the restore point's object is deleted.
    fn interrupted_removals(&self) -> Result<Vec<Leftover>> {
        Ok(Vec::new())
    }

    fn has_leftover(&self, leftover: &Leftover) -> bool {
        self.state.has(leftover)
    }

    fn note(&self, leftover: &Leftover) -> Result<Note> {
        self.state.note(leftover)
    }

    fn restore_mark(&self) -> Result<Note> {
        self.state.restore_mark()
    }

    fn restore_mark_location(&self) -> String {
        self.state.restore_mark_location()
    }

    fn writer(&self) -> Option<String> {
        self.state.writer()
    }

    fn try_lock(&self) -> Result<Box<dyn DomainWriter>> {
        Ok(Box::new(PackWriter {
            _lock: self.state.lock()?,
            domain: self.clone(),
            base: Mutex::default(),
        }))
    }

    fn open_disk(
        &self,
        history: &History,
        id: &str,
        target: &str,
        stop: &Stop,
    ) -> Result<Arc<dyn DiskReader>> {
        let (root, size) = check::root_of(history, id, target)?;
        Ok(self.shared.data()?.disk(root, size, stop.clone())?)
    }

    /// Reads the whole disk whatever [`SourceOptions::above`] is: a restore point depends on no
    /// other one here, so nobody has read a part of it.
    fn open_source(
        &self,
        history: &History,
        id: &str,
        target: &str,
        options: &SourceOptions,
    ) -> Result<Box<dyn BlockSource>> {
        let (root, size) = check::root_of(history, id, target)?;
        let data = self.shared.data()?;
        Ok(data.source(root, size, options.pool.clone(), options.stop.clone())?)
    }

    fn read_file(&self, kept: &Kept, file: SmallFile) -> std::result::Result<Vec<u8>, String> {
        check::read_small(self, kept, file.name(), &self.shared.place.stop)
    }

    fn check_files(
        &self,
        _history: &History,
        kept: &Kept,
        watch: &mut dyn FileWatch,
        stop: &Stop,
        damage: &mut Vec<FileDamage>,
    ) -> Result<()> {
        Check::new(self, watch, stop, damage).run(kept)
    }

    fn is_removed(&self, kept: &Kept) -> Result<bool> {
        let content = self.content()?;
        let point = &kept.manifest.point;
        let mut removals = content.records.removals().into_iter();
        Ok(content.point(&point.id).is_none() && removals.any(|removal| removal.id == point.id))
    }

    fn keep_proof(&self, proof: &Proof, known: &[String]) -> Result<()> {
        let kind = match proof.is_sound() {
            true => Kind::Sound,
            false => Kind::Damaged,
        };
        let proof = proof.shortened();
        self.keep_record(&RecordName::new(kind, &self.names, &proof.id), &proof, known)
    }

    fn keep_missed_writes(&self, missed: &MissedWriteRecord) -> Result<()> {
        self.keep_record(
            &RecordName::new(Kind::Missed, &self.names, &missed.id),
            missed,
            &[],
        )
    }

    fn keep_boot_proof(&self, proof: &BootProof) -> Result<()> {
        let known = self.content()?.records.boot_names(&self.names.tag(&proof.id));
        let name = RecordName::new(Kind::Booted, &self.names, &proof.id);
        self.keep_record(&name, proof, &known)
    }

    fn forget_removed(&self) -> Result<()> {
        // A restore point exists before any record about it. So records that were listed before the
        // restore points can be judged: those of one that is made at the same time stay.
        let before = self.content()?;
        let content = self.content()?;
        if !content.unreadable.is_empty() {
            return Ok(());
        }
        // A missing restore point may come back, and its records with it.
        let is_there = |id: &str| content.point(id).is_some();
        let removals = content.records.removals().into_iter();
        let removed = removals.filter(|removal| !is_there(&removal.id));
        let tags: BTreeSet<String> = removed.map(|removal| self.names.tag(&removal.id)).collect();
        // Records of damage stay: the damaged blocks are still there, and may be used again.
        let kinds = [Kind::Pin, Kind::Sound, Kind::Missed, Kind::Booted];
        for name in before.records.names(&kinds) {
            if tags.contains(&name.tag) {
                // Best effort: a record of a removed restore point does no harm.
                let _ = self.delete_record(&name.segment);
            }
        }
        self.collect_removals(&content)
    }
}
