//! The calls to the simulated hypervisor, answered as libvirt answers them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::domain::SimDomain;
use super::job::SimJob;
use super::{SimHost, backup_job, rewrite, simulated, step};
use crate::host::trial::Trials;
use crate::host::xml::read_domain;
use crate::host::{
    ActiveJob, BackupJob, BackupRequest, Capabilities, DiskSizes, DomainFile, DomainFiles, Host, HostError,
    NewVolume, PlaceWishes, Places, Pool, Refusal, Result, RewriteJob, RewriteRequest,
};
use crate::model::checkpoint::{Bitmap, Checkpoint};
use crate::model::domain::{Agent, Domain, DomainState};
use crate::model::firmware::Nvram;
use crate::model::guest::GuestFacts;
use crate::model::restore_point::FileId;
use crate::model::stop::StopReason;
use crate::model::tpm_state::TpmState;
use crate::testkit::disk::MemDisk;

impl Host for SimHost {
    fn capabilities(&self) -> Result<Capabilities> {
        Ok(Capabilities {
            incremental: self.state().no_incremental.clone().map_or(Ok(()), Err),
            versions: "simulated".to_owned(),
        })
    }

    fn domain_names(&self) -> Result<Vec<String>> {
        Ok(self.state().domains.keys().cloned().collect())
    }

    fn uri(&self) -> &str {
        "simulated:///"
    }

    fn domain(&self, name: &str) -> Result<Domain> {
        self.with(name, |found| Ok(found.domain.clone()))
    }

    fn disk_sizes(&self, domain: &Domain, target: &str) -> Result<DiskSizes> {
        self.check_reachable(domain, target)?;
        let size = self.disk(&domain.name, target, |disk| disk.bytes().len() as u64);
        Ok(DiskSizes {
            virtual_size: size,
            actual_size: size,
        })
    }

    fn file_id(&self, path: &Path) -> Option<FileId> {
        self.state().files.get(path).copied()
    }

    fn checkpoints(&self, domain: &Domain) -> Result<Vec<Checkpoint>> {
        let is_hidden = self.state().is_elsewhere && !domain.state.is_active();
        self.with(&domain.name, |found| {
            let mut checkpoints: Vec<Checkpoint> = found
                .checkpoints
                .iter()
                .map(|checkpoint| found.describe(checkpoint))
                .collect();
            if is_hidden {
                let disks = checkpoints
                    .iter_mut()
                    .flat_map(|checkpoint| &mut checkpoint.disks);
                disks.for_each(|disk| (disk.bitmap, disk.dirty_bytes) = (Bitmap::Unknown, None));
            }
            Ok(checkpoints)
        })
    }

    fn bitmap_names(&self, domain: &Domain, target: &str) -> Result<Vec<String>> {
        self.check_reachable(domain, target)?;
        if self.state().is_elsewhere && !domain.state.is_active() {
            return Err(HostError::NotHere {
                what: "its images".to_owned(),
            });
        }
        self.with(&domain.name, |found| {
            if !found.domain.state.is_active() {
                return Ok(found
                    .disks
                    .get(target)
                    .map(MemDisk::bitmap_names)
                    .unwrap_or_default());
            }
            // As with libvirt, bitmaps that exist only in QEMU's memory are not listed.
            let is_there = |name: &&String| {
                let disk = found.disks.get(target);
                disk.is_some_and(|disk| disk.dirty(name).is_some())
            };
            let stored = found.stored.get(target).into_iter().flatten();
            Ok(stored.filter(is_there).cloned().collect())
        })
    }

    fn forget_checkpoint(&self, domain: &Domain, name: &str) -> Result<()> {
        self.refuse_removal(name)?;
        self.with(&domain.name, |found| found.forget(name).map(drop))
    }

    fn internal_snapshots(&self, domain: &Domain) -> Result<Vec<String>> {
        let snapshots = self.state().snapshots.get(&domain.name).cloned();
        Ok(snapshots.unwrap_or_default())
    }

    fn register_checkpoint(&self, domain: &Domain, checkpoint: &Checkpoint) -> Result<bool> {
        self.with(&domain.name, |found| Ok(found.register(checkpoint)))
    }

    fn remove_bitmaps(&self, domain: &Domain, name: &str) -> Result<Vec<String>> {
        self.refuse_removal(name)?;
        let fuse = self.fuse();
        self.with(&domain.name, |found| {
            if !found.domain.state.is_active() {
                return found.remove_stored_bitmaps(name, &fuse);
            }
            let disks = found.disks.iter_mut();
            let removed = disks.filter_map(|(target, disk)| disk.remove_bitmap(name).then(|| target.clone()));
            Ok(removed.collect())
        })
    }

    fn delete_checkpoint(&self, domain: &Domain, name: &str) -> Result<()> {
        self.refuse_removal(name)?;
        let fuse = self.fuse();
        self.with(&domain.name, |found| {
            if !found.domain.state.is_active() {
                // As with libvirt: first the bitmaps of all disks, then the record.
                let removed = found.remove_stored_bitmaps(name, &fuse)?;
                let forgotten = step(&fuse, "forget the checkpoint", || found.forget(name))?;
                return match forgotten {
                    Err(HostError::NoSuchCheckpoint { .. }) if !removed.is_empty() => Ok(()),
                    forgotten => forgotten.map(drop),
                };
            }
            for target in found.forget(name)? {
                if let Some(disk) = found.disks.get_mut(&target) {
                    disk.remove_bitmap(name);
                }
            }
            Ok(())
        })
    }

    fn thaw(&self, _domain: &Domain) -> Result<()> {
        Ok(())
    }

    fn guest_facts(&self, domain: &Domain, _limit: Duration) -> Result<Option<GuestFacts>> {
        let answers = domain.agent == Agent::Connected && domain.state == DomainState::Running;
        Ok(self.state().guests.get(&domain.name).cloned().filter(|_| answers))
    }

    fn active_job(&self, domain: &Domain) -> Result<Option<ActiveJob>> {
        let fails = self.state().fail_end;
        if fails && self.has_job(&domain.name) {
            return Err(HostError::Libvirt {
                operation: "look for jobs".to_owned(),
                code: 38,
                message: "simulated".to_owned(),
            });
        }
        self.with(&domain.name, |found| {
            // The readers of a shut-off domain are not jobs of libvirt.
            Ok(found.job.clone().filter(|_| found.domain.state.is_active()))
        })
    }

    fn abort_job(&self, domain: &Domain) -> Result<()> {
        self.with(&domain.name, |found| {
            found.job = None;
            Ok(())
        })
    }

    fn places(
        &self,
        domain: &Domain,
        targets: &[String],
        _wishes: &PlaceWishes,
        run: &str,
    ) -> Result<Places> {
        let scratch = |target: &String| (target.clone(), format!("/scratch/{run}.{target}").into());
        Ok(Places {
            sockets: vec![format!("/run/{run}.sock").into()],
            scratch: match domain.state.is_active() {
                true => targets.iter().map(scratch).collect(),
                false => Vec::new(),
            },
            ..Places::default()
        })
    }

    fn clear_places(&self, places: &Places) -> Result<()> {
        // The readers of a shut-off domain end when their sockets are removed.
        for found in self.state().domains.values_mut() {
            let is_meant = found
                .job
                .as_ref()
                .and_then(|job| job.socket.as_ref())
                .is_some_and(|socket| places.sockets.contains(socket));
            if is_meant && !found.domain.state.is_active() {
                found.job = None;
                found.is_rewritten = false;
            }
        }
        Ok(())
    }

    fn begin_backup(&self, domain: &Domain, request: &BackupRequest) -> Result<Box<dyn BackupJob>> {
        let mut state = self.state();
        if state.fail_begin {
            return Err(HostError::Libvirt {
                operation: "begin the backup".to_owned(),
                code: 1,
                message: "simulated".to_owned(),
            });
        }
        if std::mem::take(&mut state.begin_late) {
            state.late = Some((domain.name.clone(), request.clone()));
            return Err(HostError::NoAnswer {
                operation: "begin the backup".to_owned(),
            });
        }
        if let Some(stop) = state.stop_in_begin.take() {
            stop.request(StopReason::Interrupted);
        }
        state.clock += 1;
        let clock = state.clock;
        let fail_reads_after = state.fail_reads_after;
        let fuse = state.fuse.clone();
        let dies = std::mem::take(&mut state.begin_half);
        let found = state.domains.get_mut(&domain.name);
        let found = found.ok_or_else(|| HostError::NoSuchDomain {
            name: domain.name.clone(),
        })?;
        if found.job.is_some() {
            return Err(simulated("begin the backup", "another job is active"));
        }
        let frozen = found.disks.clone();
        let checkpoint = found.make_checkpoint(request, clock, &fuse)?;
        if dies && !found.domain.state.is_active() {
            return Err(HostError::of_disk("vda")(HostError::Program {
                program: "qemu-nbd".to_owned(),
                operation: "offer the image".to_owned(),
                message: "simulated".to_owned(),
            }));
        }
        if dies {
            found.checkpoints.pop();
            return Err(simulated("begin the backup", "the connection was closed"));
        }
        found.job = request.places.sockets.first().cloned().map(backup_job);
        Ok(Box::new(SimJob {
            host: self.clone(),
            domain: domain.clone(),
            request: request.clone(),
            frozen,
            checkpoint,
            fail_reads_after,
            ended: false,
        }))
    }

    fn has_saved_memory(&self, domain: &Domain) -> Result<bool> {
        Ok(self.state().saved_memory.contains(&domain.name))
    }

    fn begin_rewrite(&self, domain: &Domain, request: &RewriteRequest) -> Result<Box<dyn RewriteJob>> {
        rewrite::begin(self, domain, request)
    }

    fn nvram(&self, domain: &Domain) -> Result<Option<Vec<u8>>> {
        let elsewhere = match &domain.nvram {
            Some(Nvram::Elsewhere(what)) => Some(what.clone()),
            Some(Nvram::Loader(path)) => Some(path.display().to_string()),
            Some(Nvram::File { .. }) | None => None,
        };
        match elsewhere {
            Some(what) => Err(Refusal::NvramElsewhere { what }.into()),
            None => self.with(&domain.name, |found| Ok(found.nvram.clone())),
        }
    }

    fn tpm_state(&self, domain: &Domain) -> Result<Option<TpmState>> {
        self.with(&domain.name, |found| match &found.tpm {
            Err(why) => Err(Refusal::TpmState { why: why.clone() }.into()),
            Ok(state) => Ok(state.clone().filter(|_| domain.tpm.is_some())),
        })
    }

    fn tpm_folder(&self) -> Option<PathBuf> {
        self.state().tpm_folder.clone()
    }

    fn is_defined(&self, name: &str, uuid: &str) -> Result<(bool, bool)> {
        let state = self.state();
        let by_uuid = state.domains.values().any(|found| found.domain.uuid == uuid);
        Ok((state.domains.contains_key(name), by_uuid))
    }

    fn domain_files(&self) -> Result<DomainFiles> {
        let file = |domain: &Domain, role: &str, path: &Path| DomainFile {
            domain: domain.name.clone(),
            is_active: domain.state.is_active(),
            role: role.to_owned(),
            path: path.to_owned(),
            is_qcow2: false,
        };
        let mut files = Vec::new();
        for SimDomain { domain, .. } in self.state().domains.values() {
            for disk in &domain.disks {
                let role = format!("disk {}", disk.target);
                files.extend(disk.source.path().map(|path| file(domain, &role, path)));
                let role = format!("the backing file of {role}");
                let beneath = disk.beneath().filter_map(|layer| layer.source.path());
                files.extend(beneath.map(|path| file(domain, &role, path)));
            }
            files.extend(
                domain
                    .nvram
                    .iter()
                    .filter_map(Nvram::file)
                    .map(|path| file(domain, "UEFI variables", path)),
            );
        }
        Ok(DomainFiles {
            files,
            findings: Vec::new(),
        })
    }

    fn pool(&self, name: &str) -> Result<Pool> {
        self.describe_pool(name)
    }

    fn has_volume(&self, pool: &str, name: &str) -> Result<bool> {
        self.knows_volume(pool, name)
    }

    fn create_volume(&self, volume: &NewVolume) -> Result<PathBuf> {
        self.make_volume(volume)
    }

    fn delete_volume(&self, pool: &str, name: &str) -> Result<()> {
        self.drop_volume(pool, name)
    }

    fn refresh_pool(&self, pool: &str) -> Result<()> {
        self.look_at_pool(pool)
    }

    fn nvram_folder(&self) -> Option<PathBuf> {
        self.state().nvram_folder.clone()
    }

    fn define(&self, xml: &str) -> Result<()> {
        let described = read_domain(xml)?;
        let (name, uuid) = self.is_defined(&described.name, &described.uuid)?;
        if name || uuid {
            return Err(simulated("define the domain", "it is defined"));
        }
        let domain = Domain {
            name: described.name.clone(),
            uuid: described.uuid,
            state: DomainState::ShutOff,
            persistent: true,
            id: None,
            disks: described.disks,
            nvram: described.nvram,
            excluded: described.excluded,
            tpm: described.tpm,
            agent: Agent::None,
            inactive_xml: xml.to_owned(),
        };
        let found = SimDomain {
            domain,
            nvram: None,
            tpm: Ok(None),
            disks: BTreeMap::new(),
            checkpoints: Vec::new(),
            stored: BTreeMap::new(),
            job: None,
            is_rewritten: false,
        };
        self.state().domains.insert(described.name, found);
        Ok(())
    }

    fn trials(&self) -> &dyn Trials {
        self
    }
}

impl SimHost {
    fn check_reachable(&self, domain: &Domain, target: &str) -> Result<()> {
        let disk = (domain.name.clone(), target.to_owned());
        match self.state().unreachable.contains(&disk) {
            false => Ok(()),
            true => Err(HostError::Libvirt {
                operation: format!("report the size of disk {target}"),
                code: 38,
                message: "cannot stat file: No such file or directory".to_owned(),
            }),
        }
    }
}
