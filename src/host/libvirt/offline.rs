//! The backup of a shut-off domain: `qemu-nbd` reads its images, and the domain is not started.
//!
//! The new bitmaps are added before the readers open the images, because a reader's lock excludes
//! all writers, including vmsnap. If the domain is started and stopped in between, this backup
//! holds its writes, and the new bitmap records them too. The next backup then saves them again, so
//! no write is lost.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use virt::domain::Domain as Handle;

use super::link::Link;
use super::{
    BackupJob, BackupRequest, HostError, Places, Refusal, Result, checkpoints, failed, ffi, image_bitmaps,
    images, inspect, job, places, records,
};
use crate::host::export::Export;
use crate::host::qemu::{self, Offer, Reader, Target};
use crate::host::xml::{KnownCheckpoint, write_known_checkpoint};
use crate::host::{CheckpointRequest, DiskRequest, JobHealth, NewCheckpoint, ReadOptions};
use crate::model::block::BlockSource;
use crate::model::clusters::DiskMap;
use crate::model::domain::{Disk, DiskFormat, Domain};
use crate::model::finding::Finding;
use crate::model::restore_point::Consistency;
use crate::model::stop::{Stop, WaitLimit};
use crate::model::text::with_sources;

/// Starts the backup job of a shut-off domain.
pub fn begin(link: &Arc<Link>, handle: &Handle, request: &BackupRequest) -> Result<Box<dyn BackupJob>> {
    if !link.location().is_local {
        return Err(inspect::not_here("its disks"));
    }
    let domain = inspect::domain_of(link, handle)?;
    let plans = plan(link, &domain, request)?;
    let (consistency, findings) = moment(handle)?;
    let mut job = OfflineJob {
        link: Arc::clone(link),
        domain: domain.clone(),
        places: request.places.clone(),
        readers: Mutex::new(Vec::new()),
        disks: Vec::new(),
        new_name: None,
        checkpoint: None,
        consistency,
        findings,
        ended: false,
    };
    // From here on, an early return drops the job, which undoes all steps so far.
    places::make_for_readers(&request.places)?;
    if let Some(wanted) = &request.checkpoint {
        refuse_taken_name(&plans, handle, &wanted.name)?;
        job.new_name = Some(wanted.name.clone());
        add_bitmaps(link, &plans, &wanted.name, &request.stop)?;
        job.checkpoint = Some(make_known(handle, &domain, request, wanted)?);
    }
    for plan in &plans {
        let reader = Reader::start(&plan.offer(), &request.stop);
        let reader = reader.map_err(HostError::of_disk(&plan.disk.target))?;
        job.readers
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .push((plan.disk.target.clone(), reader));
        job.disks.push((
            plan.disk.target.clone(),
            plan.request.since.clone(),
            plan.socket.clone(),
        ));
    }
    if inspect::is_active(handle)? {
        return Err(Refusal::StartedMeanwhile.into());
    }
    Ok(Box::new(job))
}

/// One disk to be read.
struct Plan<'a> {
    request: &'a DiskRequest,
    disk: &'a Disk,
    image: Target,
    socket: PathBuf,
}

impl Plan<'_> {
    fn offer(&self) -> Offer<'_> {
        Offer {
            image: &self.image,
            export: &self.disk.target,
            bitmaps: self.request.since.as_deref().into_iter().collect(),
            socket: &self.socket,
            writable: false,
        }
    }
}

fn plan<'a>(link: &Link, domain: &'a Domain, request: &'a BackupRequest) -> Result<Vec<Plan<'a>>> {
    let [folder] = request.places.own_dirs.as_slice() else {
        return Err(Refusal::NoReaderFolder.into());
    };
    let mut plans = Vec::with_capacity(request.disks.len());
    for wanted in &request.disks {
        let disk = domain.disk(&wanted.target);
        let disk = disk.ok_or_else(|| Refusal::no_such_disk(&wanted.target))?;
        if let Some(why) = &disk.unreadable {
            return Err(Refusal::UnreadableDisk {
                disk: disk.target.clone(),
                why: why.clone(),
            }
            .into());
        }
        let image = images::to_read(link, disk, &request.stop).map_err(HostError::of_disk(&disk.target))?;
        if let Some(since) = &wanted.since
            && !image_bitmaps::has_usable_bitmap(disk, since, &request.stop)?
        {
            return Err(Refusal::BitmapUnusable {
                name: since.clone(),
                disk: disk.target.clone(),
            }
            .into());
        }
        let socket = places::reader_socket(folder, &disk.target);
        places::check_socket(&socket)?;
        plans.push(Plan {
            request: wanted,
            disk,
            image,
            socket,
        });
    }
    Ok(plans)
}

/// Determines the consistency of the domain's disks.
///
/// With a saved memory image, they are in the state after a power cut.
fn moment(handle: &Handle) -> Result<(Consistency, Vec<Finding>)> {
    if !has_saved_memory(handle)? {
        return Ok((Consistency::Offline, Vec::new()));
    }
    let message = "the domain's saved memory (managed save) is not in the backup: \
                   the disks in the backup are crash-consistent, as after a power cut";
    Ok((Consistency::Crash, vec![Finding::new("managed-save", message)]))
}

/// Whether libvirt has saved the domain's memory.
pub(crate) fn has_saved_memory(handle: &Handle) -> Result<bool> {
    handle
        .has_managed_save(0)
        .map_err(failed("check for a saved memory image"))
}

/// Refuses a checkpoint name that is taken, before anything changes.
///
/// libvirt does the same for an active domain. Undoing the job then never removes another program's
/// bitmaps.
fn refuse_taken_name(plans: &[Plan], handle: &Handle, name: &str) -> Result<()> {
    if ffi::Checkpoint::lookup(handle, name).is_ok() {
        return Err(Refusal::CheckpointExists {
            name: name.to_owned(),
        }
        .into());
    }
    for plan in plans.iter().filter(|plan| plan.request.checkpointed) {
        let disk = plan.disk;
        if image_bitmaps::has_bitmap(disk, name).map_err(HostError::of_disk(&disk.target))? {
            return Err(HostError::BitmapExists {
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

fn add_bitmaps(link: &Link, plans: &[Plan], name: &str, stop: &Stop) -> Result<()> {
    // Never stopped midway: a program that is killed while it changes an image breaks all bitmaps
    // in it.
    let limit = WaitLimit {
        deadline: image_bitmaps::EDIT_DEADLINE,
        stop: Stop::default(),
    };
    for plan in plans.iter().filter(|plan| plan.request.checkpointed) {
        if stop.requested() {
            return Err(HostError::Stopped);
        }
        if plan.disk.format != DiskFormat::Qcow2 {
            return Err(Refusal::NoBitmapInFormat {
                disk: plan.disk.target.clone(),
            }
            .into());
        }
        let image = images::to_edit(link, plan.disk, stop).map_err(HostError::of_disk(&plan.disk.target))?;
        qemu::add_bitmap(&image, name, &limit).map_err(HostError::of_disk(&plan.disk.target))?;
    }
    Ok(())
}

/// Registers the checkpoint whose bitmaps are now in the images.
fn make_known(
    handle: &Handle,
    domain: &Domain,
    request: &BackupRequest,
    wanted: &CheckpointRequest,
) -> Result<NewCheckpoint> {
    let name = &wanted.name;
    let parent = records::newest(handle)?;
    let covered = |target: &str| {
        request
            .disks
            .iter()
            .any(|disk| disk.target == target && disk.checkpointed)
    };
    let disks: Vec<(&str, bool)> = domain
        .disks
        .iter()
        .map(|disk| (disk.target.as_str(), covered(&disk.target)))
        .collect();
    let xml = write_known_checkpoint(&KnownCheckpoint {
        name,
        created: request.now,
        description: Some(&wanted.mark),
        parent: parent.as_deref(),
        disks: &disks,
    })?;
    ffi::Checkpoint::redefine(handle, &xml).map_err(failed(format!("register the checkpoint {name}")))?;
    job::record(handle, name)
}

struct OfflineJob {
    link: Arc<Link>,
    domain: Domain,
    places: Places,
    readers: Mutex<Vec<(String, Reader)>>,
    /// The disks being read: target, bitmap, socket.
    disks: Vec<(String, Option<String>, PathBuf)>,
    /// The checkpoint's name, set before its first bitmap is added.
    new_name: Option<String>,
    checkpoint: Option<NewCheckpoint>,
    consistency: Consistency,
    findings: Vec<Finding>,
    ended: bool,
}

impl OfflineJob {
    fn export(&self, target: &str) -> Result<Export<'_>> {
        let disk = self.disks.iter().find(|(disk, ..)| disk == target);
        let (name, bitmap, socket) = disk.ok_or_else(|| Refusal::NotInJob {
            disk: target.to_owned(),
        })?;
        Ok(Export {
            socket,
            name,
            bitmap: bitmap.clone(),
        })
    }

    fn end_readers(&self) {
        self.readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn delete_checkpoint(&self) -> Result<()> {
        let Some(name) = &self.new_name else {
            return Ok(());
        };
        match checkpoints::delete(&self.link, &self.domain, name) {
            Err(HostError::NoSuchCheckpoint { .. }) => Ok(()),
            deleted => deleted,
        }
    }

    /// Undoes the job. Ends the readers first, because they lock the images.
    fn undo(&mut self) -> Vec<Finding> {
        self.ended = true;
        self.end_readers();
        let steps = [
            ("checkpoint-not-removed", self.delete_checkpoint()),
            ("files-not-removed", places::clear(&self.places)),
        ];
        let finding = |(code, step): (&str, Result<()>)| {
            step.err().map(|error| Finding::new(code, with_sources(&error)))
        };
        steps.into_iter().filter_map(finding).collect()
    }
}

impl BackupJob for OfflineJob {
    fn checkpoint(&self) -> Option<&NewCheckpoint> {
        self.checkpoint.as_ref()
    }

    fn consistency(&self) -> Consistency {
        self.consistency
    }

    fn findings(&self) -> Vec<Finding> {
        self.findings.clone()
    }

    fn disk_size(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<u64> {
        self.export(target)?.size(deadline, stop)
    }

    fn map(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<DiskMap> {
        self.export(target)?.map(deadline, stop)
    }

    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>> {
        self.export(target)?.open(options)
    }

    fn health(&self) -> Result<JobHealth> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = readers
            .iter_mut()
            .find_map(|(target, reader)| Some((target, reader.ended()?)));
        Ok(match ended {
            None => JobHealth::Good,
            Some((target, how)) => JobHealth::Gone(format!("qemu-nbd for disk {target} has ended: {how}")),
        })
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Finding>> {
        self.ended = true;
        self.end_readers();
        Ok(places::clear_finding(&self.places))
    }

    fn abort(mut self: Box<Self>) -> Vec<Finding> {
        self.undo()
    }
}

impl Drop for OfflineJob {
    fn drop(&mut self) {
        if !self.ended {
            self.undo();
        }
    }
}
