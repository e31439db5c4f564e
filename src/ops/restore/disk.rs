//! Restores one disk: reads its chain, and writes a file or a block device.

use super::in_use::{self, Claim};
use super::unfinished::Unfinished;
use super::volume::{self, MarkedSink};
use super::{Format, Means, RestoredDisk, io_cause};
use crate::host::Host;
use crate::image::qcow2::{Qcow2Options, Qcow2Writer};
use crate::image::raw::RawWriter;
use crate::io::Store;
use crate::model::block::{BlockError, BlockSink, BlockSource, ImageFile, Written};
use crate::model::stop::Stop;
use crate::ops::copy::{self, Progress};
use crate::ops::monitor::Event;
use crate::ops::{Cause, Error, Result};
use crate::repo::{DomainRepository, History, SourceOptions};

/// Restores one disk, onto its device or into a file under a temporary name. Such a file is
/// returned too.
pub(super) fn restore_disk<'a>(
    domain: &str,
    disk: &RestoredDisk,
    origin: &Origin<'_>,
    means: &Means<'a>,
) -> Result<(Written, Option<Unfinished<'a>>)> {
    let Means {
        store,
        host,
        monitor,
        stop,
        ..
    } = *means;
    let target = disk.target.as_str();
    let own_stop = stop.child();
    let failed = |cause: Cause| match (stop.reason(), &cause) {
        (Some(reason), Cause::Copy(error)) if copy::is_stop(error) => {
            Error::of(domain, Cause::Stopped(reason))
        }
        _ => Error::of_disk(domain, target, cause),
    };
    monitor.event(Event::DiskBegins {
        domain,
        disk: target,
        level: None,
        reason: "",
        size: disk.size,
    });
    let is_new = disk.volume.is_some();
    let claim = match disk.device {
        true if is_new => Some(in_use::claim_new(disk).map_err(&failed)?),
        true => Some(in_use::claim(disk, host).map_err(&failed)?),
        false => None,
    };
    if let Some(claim) = claim.as_ref().filter(|_| !is_new) {
        // The first write destroys what is on the device, so all images are read first to check
        // them.
        let mut rehearsal = origin.open(disk, &own_stop).map_err(&failed)?;
        while rehearsal
            .next_block()
            .map_err(|error| failed(error.into()))?
            .is_some()
        {}
        // Reading may have taken hours, so check again.
        claim.check().map_err(&failed)?;
    }
    let mut source = origin.open(disk, &own_stop).map_err(&failed)?;
    let (mut sink, unfinished) =
        open_sink(disk, claim.as_ref(), (store, host), &own_stop).map_err(&failed)?;
    let mut progress = |at: Progress| {
        monitor.event(Event::DiskAt {
            domain,
            disk: target,
            position: at.position,
            copied: at.copied,
        });
    };
    let written = copy::copy_chain(source.as_mut(), sink.as_mut(), &own_stop, &mut progress)
        .map_err(|error| failed(error.into()))?;
    if let Some(claim) = claim.as_ref().filter(|_| !is_new) {
        claim.check_written().map_err(&failed)?;
    }
    monitor.event(Event::DiskEnds {
        domain,
        disk: target,
        copied: written.data_bytes,
    });
    Ok((written, unfinished))
}

/// The restore point from which disks are restored.
pub(super) struct Origin<'a> {
    pub(super) repository: &'a dyn DomainRepository,
    pub(super) history: &'a History,
    /// The id of the restore point.
    pub(super) id: &'a str,
}

impl Origin<'_> {
    fn open(&self, disk: &RestoredDisk, stop: &Stop) -> std::result::Result<Box<dyn BlockSource>, Cause> {
        let options = SourceOptions {
            above: None,
            pool: copy::pool(),
            stop: stop.clone(),
            past_caches: false,
        };
        let opened = self
            .repository
            .open_source(self.history, self.id, &disk.target, &options);
        Ok(opened?)
    }
}

type Sink<'a> = (Box<dyn BlockSink>, Option<Unfinished<'a>>);

fn open_sink<'a>(
    disk: &RestoredDisk,
    claim: Option<&Claim<'_>>,
    (store, host): (&'a dyn Store, Option<&dyn Host>),
    stop: &Stop,
) -> std::result::Result<Sink<'a>, Cause> {
    if let Some(claim) = claim {
        return Ok((begin_device(disk, claim, stop)?, None));
    }
    let (unfinished, file) = match (&disk.volume, host) {
        (Some(volume), Some(host)) => volume::create_file(store, host, disk, volume)?,
        _ => Unfinished::create(store, &disk.to)?,
    };
    let sink = begin_file(disk, file, stop).map_err(BlockError::from)?;
    Ok((sink, Some(unfinished)))
}

fn begin_file(
    disk: &RestoredDisk,
    file: Box<dyn ImageFile>,
    stop: &Stop,
) -> crate::image::Result<Box<dyn BlockSink>> {
    // Messages show the final name of the file.
    let path = disk.to.clone();
    Ok(match disk.format {
        Format::Qcow2 => {
            let options = Qcow2Options {
                path,
                size: disk.size,
                backing: None,
                detect_zeroes: true,
                stop: stop.clone(),
            };
            Box::new(Qcow2Writer::new(file, options)?)
        }
        Format::Raw => Box::new(RawWriter::into_file(file, path, disk.size, stop.clone())?),
    })
}

fn begin_device(
    disk: &RestoredDisk,
    claim: &Claim<'_>,
    stop: &Stop,
) -> std::result::Result<Box<dyn BlockSink>, Cause> {
    let device = || {
        let device = claim.device().file();
        device.map_err(|source| io_cause("use", &disk.to, source))
    };
    let sink =
        RawWriter::onto_device(device()?, &disk.to, disk.size, stop.clone()).map_err(BlockError::from)?;
    match disk.volume {
        None => Ok(Box::new(sink)),
        Some(_) => {
            // What is after the disk on a new device is from deleted volumes.
            let sink = Box::new(sink.clearing_the_rest());
            Ok(Box::new(MarkedSink::begin(device()?, sink, disk)?))
        }
    }
}
