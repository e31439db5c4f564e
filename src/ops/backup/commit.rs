//! Turns copied disks into a restore point, and then removes what it supersedes.

use super::attempt::{Attempt, Copied};
use super::{Outcome, current_periods};
use crate::host::NewCheckpoint;
use crate::model::finding::Finding;
use crate::model::guest::GuestFacts;
use crate::model::restore_point::{Consistency, DiskPoint, Level, RestorePoint};
use crate::model::text::with_sources;
use crate::ops::heal;
use crate::ops::job::JobPlan;
use crate::ops::plan::BackupPlan;
use crate::ops::reconcile::{self, Retired};
use crate::ops::{Cause, Error, Result};
use crate::repo::{History, Manifest, PendingPoint, RepoError, SmallFile};

/// The code of the finding that superseded checkpoints or bitmaps could not be removed.
pub(super) const NOT_RETIRED: &str = "checkpoints-not-retired";

impl Attempt<'_> {
    /// Commits the restore point; if that fails, removes its checkpoint.
    pub(super) fn commit(
        &self,
        plan: &BackupPlan,
        job: &JobPlan<'_>,
        mut pending: Box<dyn PendingPoint>,
        copied: Copied,
    ) -> Result<Outcome> {
        let checkpoint = copied
            .checkpoint
            .as_ref()
            .map(|checkpoint| checkpoint.id.name.clone());
        let manifest = self.fill(plan, pending.as_ref(), copied);
        let committed = manifest.and_then(|(manifest, findings)| {
            let file_bytes = manifest.files.iter().map(|file| file.size).sum();
            let location = pending.commit(&manifest).map_err(|error| self.failed(error))?;
            Ok(Outcome {
                point: manifest.point,
                location,
                file_bytes,
                prune: None,
                retention: None,
                findings,
            })
        });
        if committed.is_err()
            && let Some(name) = &checkpoint
            && let Err(error) = self.host().delete_checkpoint(self.domain, name)
        {
            job.leave(pending, &with_sources(&error));
        }
        committed
    }

    /// Writes everything except the manifest, and returns the manifest.
    fn fill(
        &self,
        plan: &BackupPlan,
        pending: &dyn PendingPoint,
        copied: Copied,
    ) -> Result<(Manifest, Vec<Finding>)> {
        let failed = |error: RepoError| Error::of(&self.domain.name, error);
        let mut findings = plan.findings.clone();
        findings.extend(copied.findings);
        let mut files = Vec::new();
        let mut disks = Vec::new();
        for disk in copied.disks {
            files.push(disk.file);
            findings.extend(disk.finding);
            disks.push(disk.point);
        }
        let is_all = plan.disks.len() == disks.len();
        if !is_all {
            let what = format!("only {} of {} disks were copied", disks.len(), plan.disks.len());
            return Err(self.failed(Cause::JobLost(what)));
        }
        let xml = self.domain.inactive_xml.as_bytes();
        files.push(pending.put(SmallFile::Definition, xml).map_err(failed)?);
        files.extend(copied.firmware.put(&self.domain.name, pending)?);
        findings.extend(copied.firmware.findings);
        let checkpoint = copied.checkpoint.as_ref();
        let checkpoint_file = checkpoint
            .map(|checkpoint| pending.put_checkpoint(&checkpoint.id.name, &checkpoint.xml))
            .transpose()
            .map_err(failed)?;
        let versions = self
            .host()
            .capabilities()
            .map_or_else(|_| String::new(), |found| found.versions);
        let point = self.point(
            plan,
            pending.id(),
            disks,
            checkpoint,
            copied.consistency,
            (findings.clone(), copied.guest),
        );
        Ok((Manifest::new(&versions, point, files, checkpoint_file), findings))
    }

    fn point(
        &self,
        plan: &BackupPlan,
        id: &str,
        disks: Vec<DiskPoint>,
        checkpoint: Option<&NewCheckpoint>,
        consistency: Consistency,
        (findings, guest): (Vec<Finding>, Option<GuestFacts>),
    ) -> RestorePoint {
        let sequence = |id: &str| self.history.chains.get(id).map(|kept| kept.point.sequence);
        let parents = disks.iter().filter_map(|disk| disk.parent.clone());
        let parent = parents.max_by_key(|parent| sequence(parent));
        RestorePoint {
            id: id.to_owned(),
            sequence: self.history.chains.next_sequence(self.context.now.timestamp()),
            domain: self.domain.name.clone(),
            uuid: self.domain.uuid.clone(),
            time: self.context.now.timestamp(),
            period: plan.period.clone(),
            level: match parent {
                Some(_) => Level::Incremental,
                None => Level::Full,
            },
            parent,
            checkpoint: checkpoint.map(|checkpoint| checkpoint.id.clone()),
            consistency,
            disks,
            findings,
            left_out: plan.left_out.clone(),
            merged: None,
            copied_from: None,
            guest,
        }
    }

    /// Removes the checkpoints and bitmaps that the committed restore point supersedes.
    ///
    /// Superseded checkpoints are determined again now, because the level of a disk may have
    /// changed while it was copied. A failure is reported, but does not fail the backup.
    pub(super) fn retire(&self, planned: &[Retired], mut outcome: Outcome) -> Outcome {
        let trouble = |what: String| {
            let what = format!("superseded checkpoints or bitmaps could not be removed: {what}");
            Finding::new(NOT_RETIRED, what)
        };
        let retired = self
            .locked
            .history()
            .map_err(|error| trouble(with_sources(&error)))
            .and_then(|history| {
                self.remember(&history, &mut outcome);
                let superseded = self.superseded(&history);
                for name in superseded.map_err(|error| trouble(with_sources(&error.cause)))? {
                    self.host()
                        .delete_checkpoint(self.domain, &name)
                        .map_err(|error| trouble(format!("checkpoint {name}: {}", with_sources(&error))))?;
                }
                let bitmaps = planned.iter().filter_map(|retired| match retired {
                    Retired::Bitmaps(name) => Some(name),
                    Retired::Checkpoint(_) => None,
                });
                for name in bitmaps {
                    heal::remove_orphaned_bitmaps(self.host(), self.domain, name)
                        .map_err(|error| trouble(format!("bitmap {name}: {}", with_sources(&error))))?;
                }
                Ok(())
            });
        if let Err(finding) = retired {
            self.report(&finding);
            outcome.findings.push(finding);
        }
        outcome
    }

    /// Records the committed copy. No checkpoint is retired, because a copy supersedes none.
    pub(super) fn record_copy(&self, mut outcome: Outcome) -> Outcome {
        match self.locked.history() {
            Ok(history) => self.remember(&history, &mut outcome),
            Err(error) => self.report_unrecorded(&error, &mut outcome),
        }
        outcome
    }

    /// Records the committed restore points, so that a missing one is noticed later. If this fails,
    /// the next backup tries again.
    fn remember(&self, history: &History, outcome: &mut Outcome) {
        if let Err(error) = self.locked.remember_committed(history) {
            self.report_unrecorded(&error, outcome);
        }
    }

    fn report_unrecorded(&self, error: &RepoError, outcome: &mut Outcome) {
        let what = format!(
            "was saved, but its commit could not be recorded ({}): if the restore point goes missing before the next backup, vmsnap will not notice",
            with_sources(error)
        );
        let what = format!("restore point {} {what}", outcome.point.id);
        let finding = Finding::new("commit-not-remembered", what);
        self.report(&finding);
        outcome.findings.push(finding);
    }

    /// Returns the checkpoints that are superseded now.
    fn superseded(&self, history: &History) -> Result<Vec<String>> {
        let checkpoints = self.host().checkpoints(self.domain);
        let checkpoints = checkpoints.map_err(|error| self.failed(error))?;
        let current = current_periods(self.context);
        let keep = self.options.keep_checkpoints;
        let uuid = &self.domain.uuid;
        Ok(reconcile::superseded(
            &history.chains,
            uuid,
            &checkpoints,
            &current,
            keep,
            None,
        ))
    }
}
