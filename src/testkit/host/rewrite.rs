//! A job of the simulated hypervisor that writes to the disks of a shut-off domain.

use std::collections::BTreeMap;
use std::time::Duration;

use super::job::{SimJob, job_on};
use super::{SimHost, backup_job, simulated};
use crate::host::{
    BackupJob, BackupRequest, Host, HostError, JobHealth, ReadOptions, Refusal, Result, RewriteJob,
    RewriteRequest,
};
use crate::model::block::{Block, BlockError, BlockSink, BlockSource, Content, Written};
use crate::model::clusters::DiskMap;
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::stop::Stop;
use crate::testkit::disk::MemDisk;

/// Begins a job, as long as nothing has the images open.
pub(super) fn begin(
    host: &SimHost,
    domain: &Domain,
    request: &RewriteRequest,
) -> Result<Box<dyn RewriteJob>> {
    host.with(&domain.name, |found| {
        if found.domain.state.is_active() {
            return Err(Refusal::StartedMeanwhile.into());
        }
        if found.job.is_some() {
            return Err(simulated("open the images", "a process has them open"));
        }
        for wanted in &request.disks {
            let disk = found.disks.get(&wanted.target);
            let disk = disk.ok_or_else(|| Refusal::NoSuchDisk {
                disk: wanted.target.clone(),
            })?;
            let lacks = |name: &String| disk.dirty(name).is_none();
            if let Some(name) = wanted.since.clone().filter(|name| lacks(name)) {
                let disk = wanted.target.clone();
                return Err(Refusal::BitmapUnusable { name, disk }.into());
            }
        }
        found.job = request.places.sockets.first().cloned().map(backup_job);
        found.is_rewritten = true;
        Ok(())
    })?;
    Ok(Box::new(SimRewrite {
        host: host.clone(),
        domain: domain.clone(),
        request: request.clone(),
    }))
}

/// A job of [`SimHost`]. Dropping it closes the disks.
struct SimRewrite {
    host: SimHost,
    domain: Domain,
    request: RewriteRequest,
}

impl SimRewrite {
    /// A job that reads the disks as they are now.
    fn reading(&self) -> SimJob {
        let disks = self.request.disks.iter().map(|disk| disk.target.clone());
        let frozen: BTreeMap<String, MemDisk> = disks
            .map(|target| {
                let disk = self.host.disk(&self.domain.name, &target, |disk| disk.clone());
                (target, disk)
            })
            .collect();
        let request = BackupRequest {
            checkpoint: None,
            disks: self.request.disks.clone(),
            places: self.request.places.clone(),
            freeze: None,
            now: 0,
            stop: self.request.stop.clone(),
        };
        job_on(&self.host, &self.domain, request, frozen)
    }
}

impl RewriteJob for SimRewrite {
    fn disk_size(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<u64> {
        self.reading().disk_size(target, deadline, stop)
    }

    fn map(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<DiskMap> {
        self.reading().map(target, deadline, stop)
    }

    fn is_changed(&self, target: &str, _deadline: Duration, _stop: &Stop) -> Result<Option<bool>> {
        let Some(witness) = &self.request.witness else {
            return Ok(None);
        };
        Ok(self.host.disk(&self.domain.name, target, |disk| {
            disk.dirty(witness).map(|bits| bits.contains(&true))
        }))
    }

    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>> {
        self.reading().open(target, options)
    }

    fn sink(&self, target: &str, _deadline: Duration, stop: &Stop) -> Result<Box<dyn BlockSink>> {
        Ok(Box::new(SimSink {
            host: self.host.clone(),
            domain: self.domain.name.clone(),
            target: target.to_owned(),
            stop: stop.clone(),
            written: Written::default(),
        }))
    }

    fn health(&self) -> Result<JobHealth> {
        Ok(match self.host.has_job(&self.domain.name) {
            true => JobHealth::Good,
            false => JobHealth::Gone("it was ended".to_owned()),
        })
    }

    fn finish(self: Box<Self>) -> Result<Vec<Finding>> {
        match self.host.fails_to_end() {
            true => Err(HostError::Program {
                program: "qemu-nbd".to_owned(),
                operation: "close the image".to_owned(),
                message: "simulated".to_owned(),
            }),
            false => Ok(Vec::new()),
        }
    }
}

impl Drop for SimRewrite {
    fn drop(&mut self) {
        let _ = self.host.clear_places(&self.request.places);
    }
}

/// Writes to a disk in memory, as QEMU does for a guest.
struct SimSink {
    host: SimHost,
    domain: String,
    target: String,
    stop: Stop,
    written: Written,
}

impl BlockSink for SimSink {
    fn write(&mut self, block: Block) -> std::result::Result<(), BlockError> {
        if self.stop.requested() {
            return Err(BlockError::stopped());
        }
        let at = usize::try_from(block.offset).unwrap_or(usize::MAX);
        self.host
            .disk(&self.domain, &self.target, |disk| match &block.content {
                Content::Data(bytes) => disk.write(at, bytes),
                Content::Zero(length) => disk.zero(at, usize::try_from(*length).unwrap_or(usize::MAX)),
            });
        match block.content {
            Content::Data(bytes) => self.written.data_bytes += bytes.len() as u64,
            Content::Zero(length) => self.written.zero_bytes += length,
        }
        Ok(())
    }

    fn finish(&mut self) -> std::result::Result<Written, BlockError> {
        Ok(self.written.clone())
    }
}
