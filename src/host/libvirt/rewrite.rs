//! Writes to the disks of a shut-off domain: `qemu-nbd` opens its images, and the domain is not
//! started. QEMU loads the bitmaps in the images, so they record what is written.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use virt::domain::Domain as Handle;

use super::link::Link;
use super::{HostError, Places, Refusal, Result, image_bitmaps, images, inspect, places};
use crate::host::export::Export;
use crate::host::qemu::{Offer, Reader};
use crate::host::{DiskRequest, JobHealth, ReadOptions, RewriteJob, RewriteRequest};
use crate::model::block::{BlockSink, BlockSource};
use crate::model::clusters::DiskMap;
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::stop::Stop;

/// Opens the disks.
pub(crate) fn begin(link: &Link, handle: &Handle, request: &RewriteRequest) -> Result<Box<dyn RewriteJob>> {
    if !link.location().is_local {
        return Err(inspect::not_here("its disks"));
    }
    if inspect::is_active(handle)? {
        return Err(Refusal::StartedMeanwhile.into());
    }
    let domain = inspect::domain_of(link, handle)?;
    let [folder] = request.places.own_dirs.as_slice() else {
        return Err(Refusal::NoReaderFolder.into());
    };
    let mut job = OfflineRewrite {
        places: request.places.clone(),
        writers: Mutex::new(Vec::new()),
        disks: Vec::new(),
        is_ended: false,
    };
    // From here on, an early return drops the job, which closes what is open.
    places::make_for_readers(&request.places)?;
    for wanted in &request.disks {
        let socket = places::reader_socket(folder, &wanted.target);
        places::check_socket(&socket)?;
        let witness = request.witness.as_deref();
        let (writer, is_witnessed) = open(link, &domain, wanted, witness, &socket, &request.stop)?;
        let writers = job.writers.get_mut().unwrap_or_else(PoisonError::into_inner);
        writers.push((wanted.target.clone(), writer));
        job.disks.push(OpenDisk {
            target: wanted.target.clone(),
            bitmap: wanted.since.clone(),
            witness: request.witness.clone().filter(|_| is_witnessed),
            socket,
        });
    }
    // From now on the locks of QEMU keep it from starting.
    if inspect::is_active(handle)? {
        return Err(Refusal::StartedMeanwhile.into());
    }
    Ok(Box::new(job))
}

/// Opens a disk. Also returns whether it has a usable bitmap of the witness.
fn open(
    link: &Link,
    domain: &Domain,
    wanted: &DiskRequest,
    witness: Option<&str>,
    socket: &std::path::Path,
    stop: &Stop,
) -> Result<(Reader, bool)> {
    let target = &wanted.target;
    let disk = domain.disk(target);
    let disk = disk.ok_or_else(|| Refusal::no_such_disk(target))?;
    if let Some(why) = &disk.unreadable {
        return Err(Refusal::UnreadableDisk {
            disk: target.clone(),
            why: why.clone(),
        }
        .into());
    }
    let image = images::to_read(link, disk, stop).map_err(HostError::of_disk(target))?;
    if let Some(since) = &wanted.since
        && !image_bitmaps::has_usable_bitmap(disk, since, stop)?
    {
        return Err(Refusal::BitmapUnusable {
            name: since.clone(),
            disk: target.clone(),
        }
        .into());
    }
    let is_witnessed = match witness {
        Some(witness) => image_bitmaps::has_usable_bitmap(disk, witness, stop)?,
        None => false,
    };
    let also = witness.filter(|witness| is_witnessed && Some(*witness) != wanted.since.as_deref());
    let offer = Offer {
        image: &image,
        export: target,
        bitmaps: wanted.since.as_deref().into_iter().chain(also).collect(),
        socket,
        writable: true,
    };
    let writer = Reader::start_writer(&offer, stop).map_err(HostError::of_disk(target))?;
    Ok((writer, is_witnessed))
}

/// A disk that is open.
struct OpenDisk {
    target: String,
    bitmap: Option<String>,
    witness: Option<String>,
    socket: PathBuf,
}

struct OfflineRewrite {
    places: Places,
    writers: Mutex<Vec<(String, Reader)>>,
    disks: Vec<OpenDisk>,
    is_ended: bool,
}

impl OfflineRewrite {
    fn disk(&self, target: &str) -> Result<&OpenDisk> {
        let disk = self.disks.iter().find(|disk| disk.target == target);
        Ok(disk.ok_or_else(|| Refusal::NotInJob {
            disk: target.to_owned(),
        })?)
    }

    fn export(&self, target: &str) -> Result<Export<'_>> {
        let disk = self.disk(target)?;
        Ok(Export {
            socket: &disk.socket,
            name: &disk.target,
            bitmap: disk.bitmap.clone(),
        })
    }

    fn take_writers(&mut self) -> Vec<(String, Reader)> {
        let writers = self.writers.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(writers)
    }
}

impl RewriteJob for OfflineRewrite {
    fn disk_size(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<u64> {
        self.export(target)?.size(deadline, stop)
    }

    fn map(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<DiskMap> {
        self.export(target)?.map(deadline, stop)
    }

    fn is_changed(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<Option<bool>> {
        let bitmap = self.disk(target)?.witness.clone();
        if bitmap.is_none() {
            return Ok(None);
        }
        let export = Export {
            bitmap,
            ..self.export(target)?
        };
        Ok(Some(export.map(deadline, stop)?.changed.count() > 0))
    }

    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>> {
        self.export(target)?.open(options)
    }

    fn sink(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<Box<dyn BlockSink>> {
        self.export(target)?.sink(deadline, stop)
    }

    fn health(&self) -> Result<JobHealth> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = writers
            .iter_mut()
            .find_map(|(target, writer)| Some((target, writer.ended()?)));
        Ok(match ended {
            None => JobHealth::Good,
            Some((target, how)) => JobHealth::Gone(format!("qemu-nbd for disk {target} has ended: {how}")),
        })
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Finding>> {
        self.is_ended = true;
        let mut closed = Ok(());
        for (target, writer) in self.take_writers() {
            // The others are closed after a failure, too.
            closed = closed.and(writer.close().map_err(HostError::of_disk(&target)));
        }
        let findings = places::clear_finding(&self.places);
        closed.map(|()| findings)
    }
}

impl Drop for OfflineRewrite {
    fn drop(&mut self) {
        if !self.is_ended {
            self.take_writers().clear();
            // What stays is found by the next run.
            let _ = places::clear(&self.places);
        }
    }
}
