//! A repository that always reads whole disks, however much of them was read before.

use std::sync::Arc;

use jiff::Timestamp;
use vmsnap::model::block::BlockSource;
use vmsnap::model::stop::Stop;
use vmsnap::repo::{
    BootProof, DiskReader, DomainRepository, DomainWriter, FileDamage, FileWatch, History, Identity, Kept,
    Leftover, MissedWriteRecord, Note, PeriodUsage, Proof, Repository, Result, SmallFile, SourceOptions,
};

/// A view of a repository that opens each disk with all images of its chain.
pub struct Alone<'a>(pub &'a dyn Repository);

struct AloneDomain(Box<dyn DomainRepository>);

impl Repository for Alone<'_> {
    fn location(&self) -> String {
        self.0.location()
    }

    fn exists(&self) -> bool {
        self.0.exists()
    }

    fn identity(&self) -> Identity {
        self.0.identity()
    }

    fn ensure_identity(&self) -> Result<Identity> {
        self.0.ensure_identity()
    }

    fn domains(&self) -> Result<Vec<String>> {
        self.0.domains()
    }

    fn restore_marks(&self) -> Result<Vec<Vec<u8>>> {
        self.0.restore_marks()
    }

    fn domain(&self, name: &str) -> Result<Box<dyn DomainRepository>> {
        Ok(Box::new(AloneDomain(self.0.domain(name)?)))
    }
}

impl DomainRepository for AloneDomain {
    fn open_source(
        &self,
        history: &History,
        id: &str,
        target: &str,
        options: &SourceOptions,
    ) -> Result<Box<dyn BlockSource>> {
        let options = SourceOptions {
            above: None,
            ..options.clone()
        };
        self.0.open_source(history, id, target, &options)
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn location(&self) -> String {
        self.0.location()
    }

    fn exists(&self) -> bool {
        self.0.exists()
    }

    fn identity(&self) -> Identity {
        self.0.identity()
    }

    fn history(&self) -> Result<History> {
        self.0.history()
    }

    fn used_periods(&self) -> Result<Vec<String>> {
        self.0.used_periods()
    }

    fn period_usage(&self, period: &str) -> PeriodUsage {
        self.0.period_usage(period)
    }

    fn copy_period(&self, time: Timestamp) -> Result<String> {
        self.0.copy_period(time)
    }

    fn interrupted_removals(&self) -> Result<Vec<Leftover>> {
        self.0.interrupted_removals()
    }

    fn has_leftover(&self, leftover: &Leftover) -> bool {
        self.0.has_leftover(leftover)
    }

    fn note(&self, leftover: &Leftover) -> Result<Note> {
        self.0.note(leftover)
    }

    fn restore_mark(&self) -> Result<Note> {
        self.0.restore_mark()
    }

    fn restore_mark_location(&self) -> String {
        self.0.restore_mark_location()
    }

    fn writer(&self) -> Option<String> {
        self.0.writer()
    }

    fn try_lock(&self) -> Result<Box<dyn DomainWriter>> {
        self.0.try_lock()
    }

    fn open_disk(
        &self,
        history: &History,
        id: &str,
        target: &str,
        stop: &Stop,
    ) -> Result<Arc<dyn DiskReader>> {
        self.0.open_disk(history, id, target, stop)
    }

    fn read_file(&self, kept: &Kept, file: SmallFile) -> std::result::Result<Vec<u8>, String> {
        self.0.read_file(kept, file)
    }

    fn check_files(
        &self,
        history: &History,
        kept: &Kept,
        watch: &mut dyn FileWatch,
        stop: &Stop,
        damage: &mut Vec<FileDamage>,
    ) -> Result<()> {
        self.0.check_files(history, kept, watch, stop, damage)
    }

    fn is_removed(&self, kept: &Kept) -> Result<bool> {
        self.0.is_removed(kept)
    }

    fn keep_proof(&self, proof: &Proof, known: &[String]) -> Result<()> {
        self.0.keep_proof(proof, known)
    }

    fn keep_missed_writes(&self, missed: &MissedWriteRecord) -> Result<()> {
        self.0.keep_missed_writes(missed)
    }

    fn keep_boot_proof(&self, proof: &BootProof) -> Result<()> {
        self.0.keep_boot_proof(proof)
    }

    fn forget_removed(&self) -> Result<()> {
        self.0.forget_removed()
    }
}
