//! From copied disks to a restore point that exists; and what may go once it does.

use super::run::{Copied, Run};
use super::{Outcome, plan};
use crate::host::NewCheckpoint;
use crate::model::finding::Finding;
use crate::model::period::{GroupBy, Period};
use crate::model::restore_point::{Consistency, DiskPoint, Level, RestorePoint};
use crate::model::text::with_sources;
use crate::ops::plan::BackupPlan;
use crate::ops::{Cause, Error, Result};
use crate::repo::{Manifest, Pending, RepoError, layout};

/// The code of the finding that superfluous checkpoints are left.
pub(super) const NOT_RETIRED: &str = "checkpoints-not-retired";

impl Run<'_> {
    /// Makes the restore point exist, or takes the checkpoint back.
    pub(super) fn commit(&self, plan: &BackupPlan, pending: Pending, copied: Copied) -> Result<Outcome> {
        let checkpoint = copied
            .checkpoint
            .as_ref()
            .map(|checkpoint| checkpoint.id.name.clone());
        let manifest = self.fill(plan, &pending, copied);
        let committed = manifest.and_then(|(manifest, findings)| {
            let file_bytes = manifest.files.iter().map(|file| file.size).sum();
            let dir = pending.commit(&manifest).map_err(|error| self.failed(error))?;
            Ok(Outcome {
                point: manifest.point,
                dir,
                file_bytes,
                prune: None,
                findings,
            })
        });
        if committed.is_err() {
            if let Some(name) = checkpoint
                && let Err(error) = self.host().delete_checkpoint(self.domain, &name)
            {
                self.leave(pending, &error);
            }
        } else {
            pending.done();
        }
        committed
    }

    /// Writes everything but the manifest, which it gives.
    fn fill(&self, plan: &BackupPlan, pending: &Pending, copied: Copied) -> Result<(Manifest, Vec<Finding>)> {
        let failed = |error: RepoError| Error::of(&self.domain.name, error);
        let mut findings = plan.findings.clone();
        findings.extend(copied.findings);
        let mut files = Vec::new();
        let mut disks = Vec::new();
        for disk in copied.disks {
            files.push(disk.file);
            disks.push(disk.point);
        }
        let is_all = plan.disks.len() == disks.len();
        if !is_all {
            let what = format!("only {} of {} disks were copied", disks.len(), plan.disks.len());
            return Err(self.failed(Cause::JobLost(what)));
        }
        let xml = self.domain.inactive_xml.as_bytes();
        files.push(pending.add_file(layout::DOMAIN_XML, xml).map_err(failed)?);
        match self.host().nvram(self.domain) {
            Ok(None) => {}
            Ok(Some(bytes)) => files.push(pending.add_file(layout::NVRAM, &bytes).map_err(failed)?),
            Err(error) => {
                let what = format!("the UEFI variables could not be saved: {}", with_sources(&error));
                let finding = Finding::new("nvram-skipped", what);
                self.tell(&finding);
                findings.push(finding);
            }
        }
        let checkpoint = copied.checkpoint.as_ref();
        let checkpoint_file = checkpoint
            .map(|checkpoint| pending.add_checkpoint(&checkpoint.id.name, &checkpoint.xml))
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
            findings.clone(),
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
        findings: Vec<Finding>,
    ) -> RestorePoint {
        let points = self.history.chains.points();
        let sequence = |id: &str| self.history.chains.get(id).map(|kept| kept.point.sequence);
        let parents = disks.iter().filter_map(|disk| disk.parent.clone());
        let parent = parents.max_by_key(|parent| sequence(parent));
        RestorePoint {
            id: id.to_owned(),
            sequence: points.iter().map(|kept| kept.point.sequence).max().unwrap_or(0) + 1,
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
        }
    }

    /// The restore point exists: now the checkpoints before it may go. Trouble here is told, and costs nothing.
    pub(super) fn retire_checkpoints(&self, mut outcome: Outcome) -> Outcome {
        let trouble = |what: String| Finding::new(NOT_RETIRED, what);
        let retired = self
            .locked
            .history()
            .map_err(|error| trouble(error.to_string()))
            .and_then(|history| {
                let checkpoints = self
                    .host()
                    .checkpoints(self.domain)
                    .map_err(|error| trouble(error.to_string()))?;
                let today = self.context.now.date();
                let current = GroupBy::ALL.map(|by| Period::containing(by, today).folder());
                let keep = self.options.keep_checkpoints;
                let names =
                    plan::superfluous(&history.chains, &self.domain.uuid, &checkpoints, &current, keep);
                for name in names {
                    self.host()
                        .delete_checkpoint(self.domain, &name)
                        .map_err(|error| trouble(format!("checkpoint {name}: {error}")))?;
                }
                Ok(())
            });
        if let Err(finding) = retired {
            self.tell(&finding);
            outcome.findings.push(finding);
        }
        outcome
    }
}
