//! A simulated domain: its checkpoints, and the bitmaps that belong to them.

use std::collections::BTreeMap;

use super::{simulated, step};
use crate::host::{ActiveJob, BackupRequest, HostError, NewCheckpoint, Result};
use crate::model::block::CLUSTER;
use crate::model::checkpoint::{Bitmap, Checkpoint, CheckpointDisk, CheckpointId};
use crate::model::domain::Domain;
use crate::model::tpm_state::TpmState;
use crate::testkit::crash::Fuse;
use crate::testkit::disk::MemDisk;

/// A domain with its disks, its checkpoints and its job.
#[derive(Clone)]
pub(super) struct SimDomain {
    pub(super) domain: Domain,
    pub(super) nvram: Option<Vec<u8>>,
    /// The state of its TPM, or the reason why it cannot be read.
    pub(super) tpm: std::result::Result<Option<TpmState>, String>,
    pub(super) disks: BTreeMap<String, MemDisk>,
    pub(super) checkpoints: Vec<SimCheckpoint>,
    /// For each disk, the bitmaps that it had when the domain was last shut off.
    pub(super) stored: BTreeMap<String, Vec<String>>,
    pub(super) job: Option<ActiveJob>,
    /// Whether the job writes to the disks of the shut-off domain.
    pub(super) is_rewritten: bool,
}

/// The record of a checkpoint; its bitmaps are in the disks.
#[derive(Clone)]
pub(super) struct SimCheckpoint {
    pub(super) id: CheckpointId,
    pub(super) mark: String,
    pub(super) targets: Vec<String>,
}

impl SimDomain {
    pub(super) fn add_checkpoint(&mut self, name: &str, created: i64, mark: &str) {
        for disk in self.disks.values_mut() {
            let _ = disk.add_bitmap(name);
        }
        self.checkpoints.push(SimCheckpoint {
            id: CheckpointId {
                name: name.to_owned(),
                created,
            },
            mark: mark.to_owned(),
            targets: self.disks.keys().cloned().collect(),
        });
    }

    /// Removes the record of a checkpoint and returns the disks that it covered.
    pub(super) fn forget(&mut self, name: &str) -> Result<Vec<String>> {
        let place = self
            .checkpoints
            .iter()
            .position(|checkpoint| checkpoint.id.name == name);
        let place = place.ok_or_else(|| HostError::NoSuchCheckpoint {
            name: name.to_owned(),
        })?;
        Ok(self.checkpoints.remove(place).targets)
    }

    /// Registers a checkpoint again whose record was lost, on the disks that have its bitmap.
    /// Returns whether there are any.
    pub(super) fn register(&mut self, checkpoint: &Checkpoint) -> bool {
        let has_bitmap = |target: &&String| {
            let disk = self.disks.get(*target);
            disk.is_some_and(|disk| disk.dirty(&checkpoint.name).is_some())
        };
        let covered = checkpoint.disks.iter().map(|disk| &disk.target);
        let targets: Vec<String> = covered.filter(has_bitmap).cloned().collect();
        if targets.is_empty() {
            return false;
        }
        self.checkpoints.push(SimCheckpoint {
            id: CheckpointId {
                name: checkpoint.name.clone(),
                created: checkpoint.created,
            },
            mark: checkpoint.mark.clone().unwrap_or_default(),
            targets,
        });
        true
    }

    pub(super) fn describe(&self, checkpoint: &SimCheckpoint) -> Checkpoint {
        let disks = checkpoint.targets.iter().map(|target| {
            let name = &checkpoint.id.name;
            let dirty = self.disks.get(target).and_then(|disk| disk.dirty(name));
            CheckpointDisk {
                target: target.clone(),
                bitmap: if dirty.is_some() {
                    Bitmap::Sound
                } else {
                    Bitmap::Broken
                },
                dirty_bytes: dirty.map(|bits| bits.iter().filter(|bit| **bit).count() as u64 * CLUSTER),
            }
        });
        Checkpoint {
            name: checkpoint.id.name.clone(),
            created: checkpoint.id.created,
            mark: Some(checkpoint.mark.clone()),
            disks: disks.collect(),
        }
    }

    /// Removes a bitmap from the images of a shut-off domain, one by one, as the client does.
    /// Returns the disks that had it.
    pub(super) fn remove_stored_bitmaps(&mut self, name: &str, fuse: &Option<Fuse>) -> Result<Vec<String>> {
        if self.job.is_some() {
            return Err(simulated("remove the bitmap", "a reader holds the image"));
        }
        let mut removed = Vec::new();
        for (target, disk) in &mut self.disks {
            let had_one = step(fuse, "remove the bitmap from an image", || {
                disk.remove_bitmap(name)
            })?;
            removed.extend(had_one.then(|| target.clone()));
        }
        Ok(removed)
    }

    /// Adds the bitmaps. Those of a shut-off domain go into its images one by one, as the client
    /// does it.
    fn add_bitmaps(&mut self, name: &str, covered: &[String], fuse: &Option<Fuse>) -> Result<()> {
        let fuse = fuse.as_ref().filter(|_| !self.domain.state.is_active()).cloned();
        for target in covered {
            if let Some(disk) = self.disks.get_mut(target) {
                let _ = step(&fuse, "add the bitmap to an image", || disk.add_bitmap(name))?;
            }
        }
        step(&fuse, "make the checkpoint known", || ())
    }

    pub(super) fn make_checkpoint(
        &mut self,
        request: &BackupRequest,
        clock: i64,
        fuse: &Option<Fuse>,
    ) -> Result<Option<NewCheckpoint>> {
        let Some(wanted) = &request.checkpoint else {
            return Ok(None);
        };
        let name = &wanted.name;
        let covered: Vec<String> = request
            .disks
            .iter()
            .filter(|disk| disk.checkpointed)
            .map(|disk| disk.target.clone())
            .collect();
        if covered.iter().any(|target| {
            self.disks
                .get(target)
                .is_some_and(|disk| disk.dirty(name).is_some())
        }) {
            return Err(HostError::BitmapExists { name: name.clone() });
        }
        if let Err(error) = self.add_bitmaps(name, &covered, fuse) {
            // A client that is still alive undoes it.
            self.remove_stored_bitmaps(name, fuse)?;
            return Err(error);
        }
        let id = CheckpointId {
            name: name.clone(),
            created: clock,
        };
        self.checkpoints.push(SimCheckpoint {
            id: id.clone(),
            mark: wanted.mark.clone(),
            targets: covered,
        });
        let xml = format!("<domaincheckpoint><name>{name}</name></domaincheckpoint>\n");
        Ok(Some(NewCheckpoint { id, xml }))
    }
}
