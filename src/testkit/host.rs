//! A simulated hypervisor: domains and checkpoints like libvirt's, disks in memory, failures on demand.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disk::MemDisk;
use crate::host::{
    ActiveJob, BackupJob, BackupRequest, Capabilities, DiskSizes, Host, HostError, JobHealth, NewCheckpoint,
    PlaceWishes, Places, ReadOptions, Result,
};
use crate::model::block::{Block, BlockError, BlockErrorKind, BlockSource, CLUSTER, Content};
use crate::model::checkpoint::{Bitmap, Checkpoint, CheckpointDisk, CheckpointId};
use crate::model::domain::{Agent, Device, Disk, DiskFormat, Domain, DomainState, Source};
use crate::model::finding::Finding;
use crate::model::restore_point::Consistency;
use crate::model::stop::Stop;

/// A simulated hypervisor. Clones share one state.
#[derive(Clone, Default)]
pub struct SimHost(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    domains: BTreeMap<String, SimDomain>,
    clock: i64,
    fail_reads_after: Option<u64>,
    fail_begin: bool,
    no_incremental: Option<String>,
    is_elsewhere: bool,
}

struct SimDomain {
    domain: Domain,
    disks: BTreeMap<String, MemDisk>,
    checkpoints: Vec<SimCheckpoint>,
    job: Option<PathBuf>,
}

struct SimCheckpoint {
    id: CheckpointId,
    mark: String,
    targets: Vec<String>,
}

impl SimHost {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a running domain with disks of these targets and sizes in bytes.
    pub fn add_domain(&self, name: &str, disks: &[(&str, usize)]) {
        let mut state = self.state();
        let uuid = format!("00000000-0000-4000-8000-{:012}", state.domains.len() + 1);
        let domain = Domain {
            name: name.to_owned(),
            uuid,
            state: DomainState::Running,
            persistent: true,
            id: Some(1),
            disks: disks.iter().map(|(target, _)| sim_disk(target)).collect(),
            nvram: None,
            has_tpm_state: false,
            agent: Agent::None,
            inactive_xml: format!("<domain><name>{name}</name></domain>\n"),
        };
        let disks = disks
            .iter()
            .map(|(target, size)| ((*target).to_owned(), MemDisk::new(*size)));
        let domain = SimDomain {
            domain,
            disks: disks.collect(),
            checkpoints: Vec::new(),
            job: None,
        };
        state.domains.insert(name.to_owned(), domain);
    }

    /// Changes what the domain is: its state, its drives, its UUID.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Domain)) {
        if let Some(found) = self.state().domains.get_mut(name) {
            change(&mut found.domain);
        }
    }

    /// Adds a disk to a domain, as hot-plugging does.
    pub fn attach(&self, name: &str, target: &str, size: usize) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.domain.disks.push(sim_disk(target));
            found.disks.insert(target.to_owned(), MemDisk::new(size));
        }
    }

    /// Works on a disk as its guest does.
    ///
    /// # Panics
    /// When there is no such disk: a mistake of the test.
    pub fn disk<T>(&self, name: &str, target: &str, work: impl FnOnce(&mut MemDisk) -> T) -> T {
        let mut state = self.state();
        let disk = state
            .domains
            .get_mut(name)
            .and_then(|found| found.disks.get_mut(target));
        work(disk.expect("the test has made this disk"))
    }

    /// The next reads fail when so many bytes of a disk have been read; `None` ends it.
    pub fn fail_reads_after(&self, bytes: Option<u64>) {
        self.state().fail_reads_after = bytes;
    }

    /// Makes the hypervisor too old for checkpoints, for this reason.
    pub fn forget_checkpoints(&self, reason: &str) {
        self.state().no_incremental = Some(reason.to_owned());
    }

    /// Puts the hypervisor on another machine: the images of shut-off domains cannot be looked at.
    pub fn move_away(&self) {
        self.state().is_elsewhere = true;
    }

    /// Whether beginning a job fails.
    pub fn fail_begin(&self, fail: bool) {
        self.state().fail_begin = fail;
    }

    /// Somebody else begins a job.
    pub fn begin_foreign_job(&self, name: &str) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.job = Some("/run/somebody/else.sock".into());
        }
    }

    /// A run began a job and made a checkpoint, noted it down, and was killed.
    pub fn leave_job(&self, name: &str, socket: &str, checkpoint: &str, mark: &str) {
        let mut state = self.state();
        state.clock += 1;
        let created = state.clock;
        let Some(found) = state.domains.get_mut(name) else {
            return;
        };
        found.job = Some(socket.into());
        for disk in found.disks.values_mut() {
            let _ = disk.add_bitmap(checkpoint);
        }
        let targets = found.disks.keys().cloned().collect();
        found.checkpoints.push(SimCheckpoint {
            id: CheckpointId {
                name: checkpoint.to_owned(),
                created,
            },
            mark: mark.to_owned(),
            targets,
        });
    }

    /// Whether a domain has an active job.
    pub fn has_job(&self, name: &str) -> bool {
        self.state()
            .domains
            .get(name)
            .is_some_and(|found| found.job.is_some())
    }

    fn with<T>(&self, name: &str, work: impl FnOnce(&mut SimDomain) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        let found = state.domains.get_mut(name);
        work(found.ok_or_else(|| HostError::NoSuchDomain {
            name: name.to_owned(),
        })?)
    }
}

fn sim_disk(target: &str) -> Disk {
    Disk {
        target: target.to_owned(),
        device: Device::Disk,
        source: Source::File(format!("/images/{target}.qcow2").into()),
        format: DiskFormat::Qcow2,
        readonly: false,
        shareable: false,
        transient: false,
    }
}

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

    fn domain(&self, name: &str) -> Result<Domain> {
        self.with(name, |found| Ok(found.domain.clone()))
    }

    fn disk_sizes(&self, domain: &Domain, target: &str) -> Result<DiskSizes> {
        let size = self.disk(&domain.name, target, |disk| disk.bytes().len() as u64);
        Ok(DiskSizes {
            virtual_size: size,
            actual_size: size,
        })
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
        if self.state().is_elsewhere && !domain.state.is_active() {
            return Err(HostError::NotHere {
                what: "its images".to_owned(),
            });
        }
        Ok(self.disk(&domain.name, target, |disk| disk.bitmap_names()))
    }

    fn delete_checkpoint(&self, domain: &Domain, name: &str) -> Result<()> {
        self.with(&domain.name, |found| {
            let before = found.checkpoints.len();
            found.checkpoints.retain(|checkpoint| checkpoint.id.name != name);
            if found.checkpoints.len() == before {
                return Err(HostError::NoSuchCheckpoint {
                    name: name.to_owned(),
                });
            }
            found.disks.values_mut().for_each(|disk| {
                disk.remove_bitmap(name);
            });
            Ok(())
        })
    }

    fn delete_bitmap(&self, domain: &Domain, name: &str) -> Result<()> {
        self.with(&domain.name, |found| {
            found.disks.values_mut().for_each(|disk| {
                disk.remove_bitmap(name);
            });
            Ok(())
        })
    }

    fn active_job(&self, domain: &Domain) -> Result<Option<ActiveJob>> {
        self.with(&domain.name, |found| {
            Ok(found.job.clone().map(|socket| ActiveJob {
                operation: "backup".to_owned(),
                socket: Some(socket),
            }))
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
        _domain: &Domain,
        _targets: &[String],
        _wishes: &PlaceWishes,
        run: &str,
    ) -> Result<Places> {
        Ok(Places {
            sockets: vec![format!("/run/{run}.sock").into()],
            ..Places::default()
        })
    }

    fn clear_places(&self, _places: &Places) -> Result<()> {
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
        state.clock += 1;
        let clock = state.clock;
        let fail_reads_after = state.fail_reads_after;
        let found = state.domains.get_mut(&domain.name);
        let found = found.ok_or_else(|| HostError::NoSuchDomain {
            name: domain.name.clone(),
        })?;
        let frozen = found.disks.clone();
        let checkpoint = found.make_checkpoint(request, clock)?;
        found.job = request.places.sockets.first().cloned();
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

    fn nvram(&self, _domain: &Domain) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn is_defined(&self, name: &str, uuid: &str) -> Result<(bool, bool)> {
        let state = self.state();
        let by_uuid = state.domains.values().any(|found| found.domain.uuid == uuid);
        Ok((state.domains.contains_key(name), by_uuid))
    }

    fn define(&self, _xml: &str) -> Result<()> {
        Err(HostError::Unsupported {
            what: "the simulated hypervisor defines no domains".to_owned(),
        })
    }
}

impl SimDomain {
    fn describe(&self, checkpoint: &SimCheckpoint) -> Checkpoint {
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

    fn make_checkpoint(&mut self, request: &BackupRequest, clock: i64) -> Result<Option<NewCheckpoint>> {
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
        for target in &covered {
            if let Some(disk) = self.disks.get_mut(target) {
                let _ = disk.add_bitmap(name);
            }
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

struct SimJob {
    host: SimHost,
    domain: Domain,
    request: BackupRequest,
    frozen: BTreeMap<String, MemDisk>,
    checkpoint: Option<NewCheckpoint>,
    fail_reads_after: Option<u64>,
    ended: bool,
}

impl SimJob {
    fn end(&mut self, keep_checkpoint: bool) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let _ = self.host.abort_job(&self.domain);
        if let (false, Some(checkpoint)) = (keep_checkpoint, &self.checkpoint) {
            let _ = self.host.delete_checkpoint(&self.domain, &checkpoint.id.name);
        }
    }

    fn frozen(&self, target: &str) -> Result<&MemDisk> {
        self.frozen.get(target).ok_or_else(|| HostError::Unsupported {
            what: format!("the job has no disk {target}"),
        })
    }
}

impl BackupJob for SimJob {
    fn checkpoint(&self) -> Option<&NewCheckpoint> {
        self.checkpoint.as_ref()
    }

    fn consistency(&self) -> Consistency {
        Consistency::Crash
    }

    fn findings(&self) -> Vec<Finding> {
        Vec::new()
    }

    fn disk_size(&self, target: &str, _deadline: Duration, _stop: &Stop) -> Result<u64> {
        Ok(self.frozen(target)?.bytes().len() as u64)
    }

    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>> {
        let disk = self.frozen(target)?;
        let since = self.request.disks.iter().find(|disk| disk.target == target);
        let since = since.and_then(|disk| disk.since.as_deref());
        let mut wanted = match (options.changes_only, since) {
            (true, Some(bitmap)) => disk.dirty(bitmap).unwrap_or_default().to_vec(),
            (true, None) => {
                return Err(HostError::Unsupported {
                    what: format!("disk {target} was requested in full"),
                });
            }
            (false, _) => vec![true; disk.bytes().len().div_ceil(CLUSTER as usize)],
        };
        if let Some(from) = options.all_from {
            let first = (from / CLUSTER) as usize;
            wanted[first..].fill(true);
        }
        Ok(Box::new(SimSource {
            bytes: disk.bytes().to_vec(),
            wanted,
            next: 0,
            options: options.clone(),
            fail_after: self.fail_reads_after,
        }))
    }

    fn health(&self) -> Result<JobHealth> {
        Ok(if self.host.has_job(&self.domain.name) {
            JobHealth::Good
        } else {
            JobHealth::Gone("it was aborted".to_owned())
        })
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.end(true);
        Ok(())
    }

    fn abort(mut self: Box<Self>) -> Vec<Finding> {
        self.end(false);
        Vec::new()
    }
}

impl Drop for SimJob {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Reads the wanted clusters of a frozen disk one by one.
struct SimSource {
    bytes: Vec<u8>,
    wanted: Vec<bool>,
    next: usize,
    options: ReadOptions,
    fail_after: Option<u64>,
}

impl BlockSource for SimSource {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn next_block(&mut self) -> std::result::Result<Option<Block>, BlockError> {
        let Some(ahead) = self.wanted[self.next..].iter().position(|wanted| *wanted) else {
            return Ok(None);
        };
        let cluster = self.next + ahead;
        self.next = cluster + 1;
        let offset = cluster * CLUSTER as usize;
        if self.fail_after.is_some_and(|limit| offset as u64 >= limit) {
            return Err(BlockError::new(
                BlockErrorKind::Lost,
                "the simulated export is gone",
            ));
        }
        let end = self.bytes.len().min(offset + CLUSTER as usize);
        let bytes = &self.bytes[offset..end];
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Some(Block {
                offset: offset as u64,
                content: Content::Zero(bytes.len() as u64),
            }));
        }
        let mut buffer = loop {
            if self.options.stop.requested() {
                return Err(BlockError::stopped());
            }
            if let Some(buffer) = self.options.pool.take_within(Duration::from_millis(50)) {
                break buffer;
            }
        };
        buffer.set_len(bytes.len());
        buffer.copy_from_slice(bytes);
        Ok(Some(Block {
            offset: offset as u64,
            content: Content::Data(buffer),
        }))
    }
}
