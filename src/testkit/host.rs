//! A simulated hypervisor: domains and checkpoints like libvirt's, disks in memory, failures on demand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::crash::Fuse;
use super::disk::MemDisk;
use super::job::SimJob;
use crate::host::xml::read_domain;
use crate::host::{
    ActiveJob, BackupJob, BackupRequest, Capabilities, DiskSizes, Host, HostError, NewCheckpoint,
    PlaceWishes, Places, Result,
};
use crate::model::block::CLUSTER;
use crate::model::checkpoint::{Bitmap, Checkpoint, CheckpointDisk, CheckpointId};
use crate::model::domain::{Agent, Device, Disk, DiskFormat, Domain, DomainState, Source};
use crate::model::restore_point::FileId;
use crate::model::stop::Stop;

/// A simulated hypervisor. Clones share one state.
#[derive(Clone, Default)]
pub struct SimHost(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    domains: BTreeMap<String, SimDomain>,
    clock: i64,
    fail_reads_after: Option<u64>,
    fail_begin: bool,
    /// The next job is begun when nobody waits for it any more.
    begin_late: bool,
    late: Option<(String, BackupRequest)>,
    fail_removal_of: Option<String>,
    no_incremental: Option<String>,
    fail_end: bool,
    stop_in_begin: Option<Stop>,
    is_elsewhere: bool,
    files: BTreeMap<PathBuf, FileId>,
    fuse: Option<Fuse>,
}

#[derive(Clone)]
struct SimDomain {
    domain: Domain,
    nvram: Option<Vec<u8>>,
    disks: BTreeMap<String, MemDisk>,
    checkpoints: Vec<SimCheckpoint>,
    /// Per disk the bitmaps that were there when the domain was last shut off.
    stored: BTreeMap<String, Vec<String>>,
    job: Option<ActiveJob>,
}

#[derive(Clone)]
struct SimCheckpoint {
    id: CheckpointId,
    mark: String,
    targets: Vec<String>,
}

impl SimHost {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another hypervisor in the same state, which goes its own way from now on.
    pub fn fork(&self) -> SimHost {
        SimHost(Arc::new(Mutex::new(State {
            fuse: None,
            ..self.state().clone()
        })))
    }

    /// What the client itself does in several steps (the bitmaps of a shut-off domain) can be interrupted between them; `None` ends it.
    pub fn die_with(&self, fuse: Option<&Fuse>) {
        self.state().fuse = fuse.cloned();
    }

    /// Gives a domain UEFI variables.
    pub fn set_nvram(&self, name: &str, bytes: &[u8]) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.nvram = Some(bytes.to_owned());
        }
    }

    /// The hypervisor's machine loses its power: no job survives, and every bitmap of an active domain is broken.
    pub fn lose_power(&self) {
        for found in self.state().domains.values_mut() {
            found.job = None;
            if found.domain.state.is_active() {
                for disk in found.disks.values_mut() {
                    for name in disk.bitmap_names() {
                        disk.remove_bitmap(&name);
                    }
                }
            }
        }
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
            inactive_xml: String::new(),
        };
        let domain = Domain {
            inactive_xml: sim_xml(&domain),
            ..domain
        };
        let disks = disks
            .iter()
            .map(|(target, size)| ((*target).to_owned(), MemDisk::new(*size)));
        let domain = SimDomain {
            domain,
            nvram: None,
            disks: disks.collect(),
            checkpoints: Vec::new(),
            stored: BTreeMap::new(),
            job: None,
        };
        state.domains.insert(name.to_owned(), domain);
    }

    /// The domain goes away, with its disks and its job: undefined, or migrated to another machine.
    pub fn remove_domain(&self, name: &str) {
        self.state().domains.remove(name);
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

    /// The next call that begins a job is not answered.
    pub fn begin_late(&self) {
        self.state().begin_late = true;
    }

    /// The job that nobody waits for any more begins.
    pub fn begin_now(&self) {
        let late = self.state().late.take();
        if let Some((name, request)) = late
            && let (Some(socket), Some(made)) = (request.places.sockets.first(), &request.checkpoint)
        {
            self.leave_job(&name, &socket.to_string_lossy(), &made.name, &made.mark);
        }
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

    /// Whether the daemon is away by the end of a job.
    pub(super) fn fails_to_end(&self) -> bool {
        self.state().fail_end
    }

    fn fuse(&self) -> Option<Fuse> {
        self.state().fuse.clone()
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

/// The definition of a domain, as far as a restore looks at it. It has UEFI variables, whether or not there is something in them.
fn sim_xml(domain: &Domain) -> String {
    let disk = |disk: &Disk| {
        format!(
            "    <disk type='file' device='disk'>\n      <driver name='qemu' type='qcow2'/>\n      \
             <source file='/images/{target}.qcow2'/>\n      <target dev='{target}' bus='virtio'/>\n    </disk>\n",
            target = disk.target
        )
    };
    let disks: String = domain.disks.iter().map(disk).collect();
    format!(
        "<domain type='kvm'>\n  <name>{}</name>\n  <uuid>{}</uuid>\n  <os>\n    <nvram>/nvram/VARS.fd</nvram>\n  </os>\n  \
         <devices>\n{disks}  </devices>\n</domain>\n",
        domain.name, domain.uuid
    )
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
        let fuse = self.fuse();
        self.with(&domain.name, |found| {
            if !found.domain.state.is_active() {
                // As with libvirt: the bitmaps of all disks, then the record.
                let removed = found.remove_stored_bitmaps(name, &fuse)?;
                let forgotten = step(&fuse, "forget the checkpoint", || found.forget(name))?;
                return match forgotten {
                    Err(HostError::NoSuchCheckpoint { .. }) if removed => Ok(()),
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

    fn delete_bitmap(&self, domain: &Domain, name: &str) -> Result<()> {
        let fuse = self.fuse();
        self.with(&domain.name, |found| {
            if !found.domain.state.is_active() {
                return found.remove_stored_bitmaps(name, &fuse).map(drop);
            }
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
        self.with(&domain.name, |found| {
            // The readers of a shut-off domain are none of libvirt's jobs.
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
        // The readers of a shut-off domain end with their sockets.
        for found in self.state().domains.values_mut() {
            let is_meant = found
                .job
                .as_ref()
                .and_then(|job| job.socket.as_ref())
                .is_some_and(|socket| places.sockets.contains(socket));
            if is_meant && !found.domain.state.is_active() {
                found.job = None;
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
            stop.request(2);
        }
        state.clock += 1;
        let clock = state.clock;
        let fail_reads_after = state.fail_reads_after;
        let fuse = state.fuse.clone();
        let found = state.domains.get_mut(&domain.name);
        let found = found.ok_or_else(|| HostError::NoSuchDomain {
            name: domain.name.clone(),
        })?;
        if found.job.is_some() {
            return Err(simulated("begin the backup", "another job is active"));
        }
        let frozen = found.disks.clone();
        let checkpoint = found.make_checkpoint(request, clock, &fuse)?;
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
            has_tpm_state: false,
            agent: Agent::None,
            inactive_xml: xml.to_owned(),
        };
        let found = SimDomain {
            domain,
            nvram: None,
            disks: BTreeMap::new(),
            checkpoints: Vec::new(),
            stored: BTreeMap::new(),
            job: None,
        };
        self.state().domains.insert(described.name, found);
        Ok(())
    }
}

fn simulated(operation: &str, message: &str) -> HostError {
    HostError::Libvirt {
        operation: operation.to_owned(),
        code: 1,
        message: message.to_owned(),
    }
}

/// A step of the client's own, at which it may die.
fn step<T>(fuse: &Option<Fuse>, name: &str, work: impl FnOnce() -> T) -> Result<T> {
    match fuse {
        None => Ok(work()),
        Some(fuse) => fuse
            .step(|| name.to_owned(), work)
            .map_err(|_| simulated(name, "simulated: this is where it ends")),
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

    /// Removes bitmaps from the images of a shut-off domain, one by one, as the client does; whether there were any.
    fn remove_stored_bitmaps(&mut self, name: &str, fuse: &Option<Fuse>) -> Result<bool> {
        if self.job.is_some() {
            return Err(simulated("remove the bitmap", "a reader holds the image"));
        }
        let mut removed = false;
        for disk in self.disks.values_mut() {
            removed |= step(fuse, "remove the bitmap from an image", || {
                disk.remove_bitmap(name)
            })?;
        }
        Ok(removed)
    }

    /// Adds the bitmaps: to the images of a shut-off domain one by one, as the client does.
    fn add_bitmaps(&mut self, name: &str, covered: &[String], fuse: &Option<Fuse>) -> Result<()> {
        let fuse = fuse.as_ref().filter(|_| !self.domain.state.is_active()).cloned();
        for target in covered {
            if let Some(disk) = self.disks.get_mut(target) {
                let _ = step(&fuse, "add the bitmap to an image", || disk.add_bitmap(name))?;
            }
        }
        step(&fuse, "make the checkpoint known", || ())
    }

    fn make_checkpoint(
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
            // Who lives undoes it.
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
