//! A simulated hypervisor: domains and checkpoints like libvirt's, disks in memory, failures on demand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disk::MemDisk;
use crate::host::{
    ActiveJob, BackupJob, BackupRequest, Capabilities, DiskSizes, Host, HostError, JobHealth, NewCheckpoint,
    PlaceWishes, Places, ReadOptions, Result,
};
use crate::model::block::{Block, BlockError, BlockErrorKind, BlockSource, CLUSTER, Content};
use crate::model::checkpoint::{Bitmap, Checkpoint, CheckpointDisk, CheckpointId};
use crate::model::clusters::{ClusterSet, DiskMap};
use crate::model::domain::{Agent, Device, Disk, DiskFormat, Domain, DomainState, Source};
use crate::model::finding::Finding;
use crate::model::restore_point::{Consistency, FileId};
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
    fail_removal_of: Option<String>,
    no_incremental: Option<String>,
    fail_end: bool,
    stop_in_begin: Option<Stop>,
    is_elsewhere: bool,
    files: BTreeMap<PathBuf, FileId>,
}

struct SimDomain {
    domain: Domain,
    disks: BTreeMap<String, MemDisk>,
    checkpoints: Vec<SimCheckpoint>,
    /// Per disk the bitmaps that were there when the domain was last shut off.
    stored: BTreeMap<String, Vec<String>>,
    job: Option<ActiveJob>,
    nvram: Option<Vec<u8>>,
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
            stored: BTreeMap::new(),
            job: None,
            nvram: None,
        };
        state.domains.insert(name.to_owned(), domain);
    }

    /// The domain goes away, with its disks and its job: undefined, or migrated to another machine.
    pub fn remove_domain(&self, name: &str) {
        self.state().domains.remove(name);
    }

    /// Gives the domain UEFI variables.
    pub fn set_nvram(&self, name: &str, content: &[u8]) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.nvram = Some(content.to_vec());
        }
    }

    /// Changes what the domain is: its state, its drives, its UUID. Shutting it off stores its bitmaps in its images.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Domain)) {
        if let Some(found) = self.state().domains.get_mut(name) {
            change(&mut found.domain);
            if !found.domain.state.is_active() {
                let names = |(target, disk): (&String, &MemDisk)| (target.clone(), disk.bitmap_names());
                found.stored = found.disks.iter().map(names).collect();
            }
        }
    }

    /// Somebody else makes a checkpoint on all disks.
    pub fn make_foreign_checkpoint(&self, domain: &str, name: &str) {
        let mut state = self.state();
        state.clock += 1;
        let created = state.clock;
        if let Some(found) = state.domains.get_mut(domain) {
            found.add_checkpoint(name, created, "not ours");
        }
    }

    /// The removal of bitmaps of this name fails; `None` ends it.
    pub fn fail_removal_of(&self, name: Option<&str>) {
        self.state().fail_removal_of = name.map(str::to_owned);
    }

    fn refuse_removal(&self, name: &str) -> Result<()> {
        if self.state().fail_removal_of.as_deref() == Some(name) {
            return Err(HostError::Libvirt {
                operation: format!("remove {name}"),
                code: 1,
                message: "simulated".to_owned(),
            });
        }
        Ok(())
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

    /// Says which file the image of every disk of this target is; without that nobody knows.
    pub fn set_file(&self, target: &str, file: FileId) {
        self.state().files.insert(sim_path(target), file);
    }

    /// Whether beginning a job fails.
    pub fn fail_begin(&self, fail: bool) {
        self.state().fail_begin = fail;
    }

    /// Somebody else begins a job.
    pub fn begin_foreign_job(&self, name: &str) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.job = Some(backup_job("/run/somebody/else.sock".into()));
        }
    }

    /// Somebody begins to migrate the domain.
    pub fn begin_migration(&self, name: &str) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.job = Some(ActiveJob {
                operation: "outgoing migration".to_owned(),
                socket: None,
            });
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
        found.job = Some(backup_job(socket.into()));
        found.add_checkpoint(checkpoint, created, mark);
    }

    /// Whether the daemon goes away as soon as a job has begun, so that nothing can be ended.
    pub fn fail_end(&self, fail: bool) {
        self.state().fail_end = fail;
    }

    /// The user asks to stop while the next job is being begun.
    pub fn stop_in_begin(&self, stop: &Stop) {
        self.state().stop_in_begin = Some(stop.clone());
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

fn sim_path(target: &str) -> PathBuf {
    format!("/images/{target}.qcow2").into()
}

fn backup_job(socket: PathBuf) -> ActiveJob {
    ActiveJob {
        operation: "backup".to_owned(),
        socket: Some(socket),
    }
}

fn sim_disk(target: &str) -> Disk {
    Disk {
        target: target.to_owned(),
        device: Device::Disk,
        source: Source::File(sim_path(target)),
        format: DiskFormat::Qcow2,
        readonly: false,
        shareable: false,
        transient: false,
        beneath: vec![],
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
        if self.state().is_elsewhere && !domain.state.is_active() {
            return Err(HostError::NotHere {
                what: "its images".to_owned(),
            });
        }
        self.with(&domain.name, |found| {
            let disk = found.disks.get(target);
            let mut names = disk.map(MemDisk::bitmap_names).unwrap_or_default();
            if found.domain.state.is_active() {
                // As with libvirt: nobody lists those that no checkpoint owns.
                let is_owned = |name: &String| found.checkpoints.iter().any(|one| one.id.name == *name);
                names.retain(is_owned);
            }
            Ok(names)
        })
    }

    fn stored_bitmap_names(&self, domain: &Domain, target: &str) -> Result<Vec<String>> {
        self.with(&domain.name, |found| {
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

    fn remove_bitmaps(&self, domain: &Domain, name: &str) -> Result<Vec<String>> {
        self.refuse_removal(name)?;
        self.with(&domain.name, |found| {
            let disks = found.disks.iter_mut();
            let removed = disks.filter_map(|(target, disk)| disk.remove_bitmap(name).then(|| target.clone()));
            Ok(removed.collect())
        })
    }

    fn delete_checkpoint(&self, domain: &Domain, name: &str) -> Result<()> {
        self.refuse_removal(name)?;
        self.with(&domain.name, |found| {
            let targets = found.forget(name)?;
            // As with libvirt: of an active domain the bitmaps that the checkpoint covers, of a shut-off one all.
            let goes = |target: &String| !found.domain.state.is_active() || targets.contains(target);
            for (_, disk) in found.disks.iter_mut().filter(|(target, _)| goes(target)) {
                disk.remove_bitmap(name);
            }
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

    fn thaw(&self, _domain: &Domain) -> Result<()> {
        Ok(())
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
        self.with(&domain.name, |found| Ok(found.job.clone()))
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
        if let Some(stop) = state.stop_in_begin.take() {
            stop.request(2);
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

    fn nvram(&self, domain: &Domain) -> Result<Option<Vec<u8>>> {
        self.with(&domain.name, |found| Ok(found.nvram.clone()))
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
    fn add_checkpoint(&mut self, name: &str, created: i64, mark: &str) {
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

    /// Removes the record of a checkpoint; returns the disks that it covered.
    fn forget(&mut self, name: &str) -> Result<Vec<String>> {
        let place = self
            .checkpoints
            .iter()
            .position(|checkpoint| checkpoint.id.name == name);
        let place = place.ok_or_else(|| HostError::NoSuchCheckpoint {
            name: name.to_owned(),
        })?;
        Ok(self.checkpoints.remove(place).targets)
    }

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

    fn map(&self, target: &str, _deadline: Duration, _stop: &Stop) -> Result<DiskMap> {
        let disk = self.frozen(target)?;
        let size = disk.bytes().len() as u64;
        let mut map = DiskMap {
            changed: ClusterSet::new(size),
            data: ClusterSet::new(size),
        };
        let since = self.request.disks.iter().find(|disk| disk.target == target);
        let dirty = since.and_then(|since| disk.dirty(since.since.as_deref()?));
        for (index, bytes) in disk.bytes().chunks(CLUSTER as usize).enumerate() {
            let offset = index as u64 * CLUSTER;
            if bytes.iter().any(|byte| *byte != 0) {
                map.data.add(offset, CLUSTER);
            }
            if dirty.is_some_and(|dirty| dirty[index]) {
                map.changed.add(offset, CLUSTER);
            }
        }
        Ok(map)
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
        if let Some(only) = &options.only {
            wanted.fill(false);
            only.offsets()
                .for_each(|offset| wanted[(offset / CLUSTER) as usize] = true);
        }
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

    fn finish(mut self: Box<Self>) -> Result<Vec<Finding>> {
        let fails = self.host.state().fail_end;
        if fails {
            return Err(HostError::Libvirt {
                operation: "end the job".to_owned(),
                code: 38,
                message: "simulated".to_owned(),
            });
        }
        // As with libvirt: who is gone cannot be asked.
        self.host.active_job(&self.domain)?;
        self.end(true);
        Ok(Vec::new())
    }

    fn abort(mut self: Box<Self>) -> Vec<Finding> {
        if self.host.state().fail_end {
            self.ended = true;
            return vec![Finding::new("job-not-ended", "simulated")];
        }
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

impl SimSource {
    /// As the real source: clean clusters of zero have to be zero beneath.
    fn look_beneath(&self, first: usize, end: usize) -> std::result::Result<(), BlockError> {
        let Some(beneath) = &self.options.beneath else {
            return Ok(());
        };
        for cluster in first..end {
            let start = cluster * CLUSTER as usize;
            let bytes = &self.bytes[start..self.bytes.len().min(start + CLUSTER as usize)];
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            if is_zero
                && beneath
                    .other_than_zero(start as u64, bytes.len() as u64)
                    .is_some()
            {
                return Err(BlockError::new(
                    BlockErrorKind::Distrusted,
                    "the simulated bitmap is wrong",
                ));
            }
        }
        Ok(())
    }
}

impl BlockSource for SimSource {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn next_block(&mut self) -> std::result::Result<Option<Block>, BlockError> {
        let Some(ahead) = self.wanted[self.next..].iter().position(|wanted| *wanted) else {
            self.look_beneath(self.next, self.wanted.len())?;
            return Ok(None);
        };
        self.look_beneath(self.next, self.next + ahead)?;
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
