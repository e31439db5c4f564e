//! A hypervisor whose client dies.
//!
//! Read-only calls are not steps, because dying at one is the same as dying before the next step.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fuse::{Fuse, died};
use super::rewrite::CrashRewrite;
use crate::host::trial::Trials;
use crate::host::{
    ActiveJob, BackupJob, BackupRequest, Capabilities, DiskSizes, DomainFiles, Host, JobHealth,
    NewCheckpoint, NewVolume, PlaceWishes, Places, Pool, ReadOptions, Result, RewriteJob, RewriteRequest,
};
use crate::model::block::BlockSource;
use crate::model::checkpoint::Checkpoint;
use crate::model::clusters::DiskMap;
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::guest::GuestFacts;
use crate::model::restore_point::{Consistency, FileId};
use crate::model::stop::Stop;
use crate::model::tpm_state::TpmState;

/// A hypervisor whose client is controlled by a [`Fuse`]. The hypervisor survives its client, and
/// so do the jobs that the client has begun.
pub struct CrashHost<H> {
    host: H,
    fuse: Fuse,
}

impl<H: Host> CrashHost<H> {
    /// Creates the client's access to `host`.
    pub fn new(host: H, fuse: &Fuse) -> Self {
        CrashHost {
            host,
            fuse: fuse.clone(),
        }
    }

    pub(super) fn fuse(&self) -> &Fuse {
        &self.fuse
    }

    pub(super) fn ask<T>(&self, question: impl FnOnce(&H) -> Result<T>) -> Result<T> {
        if self.fuse.is_dead() {
            return Err(died());
        }
        question(&self.host)
    }

    pub(super) fn step<T>(&self, name: &str, work: impl FnOnce(&H) -> Result<T>) -> Result<T> {
        let done = self.fuse.step(|| name.to_owned(), || work(&self.host));
        done.unwrap_or_else(|_| Err(died()))
    }
}

impl<H: Host> Host for CrashHost<H> {
    fn capabilities(&self) -> Result<Capabilities> {
        self.ask(|host| host.capabilities())
    }

    fn domain_names(&self) -> Result<Vec<String>> {
        self.ask(|host| host.domain_names())
    }

    fn uri(&self) -> &str {
        self.host.uri()
    }

    fn domain(&self, name: &str) -> Result<Domain> {
        self.ask(|host| host.domain(name))
    }

    fn disk_sizes(&self, domain: &Domain, target: &str) -> Result<DiskSizes> {
        self.ask(|host| host.disk_sizes(domain, target))
    }

    fn file_id(&self, path: &Path) -> Option<FileId> {
        self.host.file_id(path)
    }

    fn checkpoints(&self, domain: &Domain) -> Result<Vec<Checkpoint>> {
        self.ask(|host| host.checkpoints(domain))
    }

    fn bitmap_names(&self, domain: &Domain, target: &str) -> Result<Vec<String>> {
        self.ask(|host| host.bitmap_names(domain, target))
    }

    fn active_job(&self, domain: &Domain) -> Result<Option<ActiveJob>> {
        self.ask(|host| host.active_job(domain))
    }

    fn nvram(&self, domain: &Domain) -> Result<Option<Vec<u8>>> {
        self.ask(|host| host.nvram(domain))
    }

    fn tpm_state(&self, domain: &Domain) -> Result<Option<TpmState>> {
        self.ask(|host| host.tpm_state(domain))
    }

    fn tpm_folder(&self) -> Option<PathBuf> {
        self.host.tpm_folder()
    }

    fn is_defined(&self, name: &str, uuid: &str) -> Result<(bool, bool)> {
        self.ask(|host| host.is_defined(name, uuid))
    }

    fn delete_checkpoint(&self, domain: &Domain, name: &str) -> Result<()> {
        self.step("delete the checkpoint", |host| {
            host.delete_checkpoint(domain, name)
        })
    }

    fn thaw(&self, domain: &Domain) -> Result<()> {
        self.step("thaw", |host| host.thaw(domain))
    }

    fn guest_facts(&self, domain: &Domain, limit: Duration) -> Result<Option<GuestFacts>> {
        self.ask(|host| host.guest_facts(domain, limit))
    }

    fn forget_checkpoint(&self, domain: &Domain, name: &str) -> Result<()> {
        self.step("forget the checkpoint", |host| {
            host.forget_checkpoint(domain, name)
        })
    }

    fn internal_snapshots(&self, domain: &Domain) -> Result<Vec<String>> {
        self.ask(|host| host.internal_snapshots(domain))
    }

    fn register_checkpoint(&self, domain: &Domain, checkpoint: &Checkpoint) -> Result<bool> {
        self.step("make the checkpoint known again", |host| {
            host.register_checkpoint(domain, checkpoint)
        })
    }

    fn remove_bitmaps(&self, domain: &Domain, name: &str) -> Result<Vec<String>> {
        self.step("remove the bitmaps", |host| host.remove_bitmaps(domain, name))
    }

    fn abort_job(&self, domain: &Domain) -> Result<()> {
        self.step("abort the job", |host| host.abort_job(domain))
    }

    fn places(&self, domain: &Domain, targets: &[String], wishes: &PlaceWishes, run: &str) -> Result<Places> {
        self.step("choose the places", |host| {
            host.places(domain, targets, wishes, run)
        })
    }

    fn clear_places(&self, places: &Places) -> Result<()> {
        self.step("clear the places", |host| host.clear_places(places))
    }

    fn begin_backup(&self, domain: &Domain, request: &BackupRequest) -> Result<Box<dyn BackupJob>> {
        let begun = self.fuse.step(
            || "begin the job".to_owned(),
            || self.host.begin_backup(domain, request),
        );
        match begun {
            Ok(job) => Ok(Box::new(CrashJob {
                job: Some(job?),
                fuse: self.fuse.clone(),
            })),
            Err(lost) => {
                // No caller has received the job, so no caller ends it.
                if let Some(Ok(job)) = lost {
                    self.fuse.bury(job);
                }
                Err(died())
            }
        }
    }

    fn has_saved_memory(&self, domain: &Domain) -> Result<bool> {
        self.ask(|host| host.has_saved_memory(domain))
    }

    fn begin_rewrite(&self, domain: &Domain, request: &RewriteRequest) -> Result<Box<dyn RewriteJob>> {
        let begun = self.fuse.step(
            || "open the disks".to_owned(),
            || self.host.begin_rewrite(domain, request),
        );
        match begun {
            Ok(job) => Ok(Box::new(CrashRewrite {
                job: Some(job?),
                fuse: self.fuse.clone(),
            })),
            Err(lost) => {
                if let Some(Ok(job)) = lost {
                    self.fuse.bury(job);
                }
                Err(died())
            }
        }
    }

    fn domain_files(&self) -> Result<DomainFiles> {
        self.ask(|host| host.domain_files())
    }

    fn pool(&self, name: &str) -> Result<Pool> {
        self.ask(|host| host.pool(name))
    }

    fn has_volume(&self, pool: &str, name: &str) -> Result<bool> {
        self.ask(|host| host.has_volume(pool, name))
    }

    fn create_volume(&self, volume: &NewVolume) -> Result<PathBuf> {
        self.step("create the volume", |host| host.create_volume(volume))
    }

    fn delete_volume(&self, pool: &str, name: &str) -> Result<()> {
        self.step("delete the volume", |host| host.delete_volume(pool, name))
    }

    fn refresh_pool(&self, pool: &str) -> Result<()> {
        self.step("refresh the pool", |host| host.refresh_pool(pool))
    }

    fn nvram_folder(&self) -> Option<PathBuf> {
        self.host.nvram_folder()
    }

    fn define(&self, xml: &str) -> Result<()> {
        self.step("define the domain", |host| host.define(xml))
    }

    fn trials(&self) -> &dyn Trials {
        self
    }
}

struct CrashJob {
    /// `None` after it has ended.
    job: Option<Box<dyn BackupJob>>,
    fuse: Fuse,
}

impl CrashJob {
    fn ask<T>(&self, question: impl FnOnce(&dyn BackupJob) -> Result<T>) -> Result<T> {
        match &self.job {
            Some(job) if !self.fuse.is_dead() => question(job.as_ref()),
            _ => Err(died()),
        }
    }

    /// Ends the job in one step. Returns `None` if the step failed.
    fn end<T>(&mut self, name: &str, end: impl FnOnce(Box<dyn BackupJob>) -> T) -> Option<T> {
        let job = &mut self.job;
        let done = self.fuse.step(|| name.to_owned(), || job.take().map(end));
        done.ok().flatten()
    }
}

impl BackupJob for CrashJob {
    fn checkpoint(&self) -> Option<&NewCheckpoint> {
        self.job.as_ref().and_then(|job| job.checkpoint())
    }

    fn consistency(&self) -> Consistency {
        self.job
            .as_ref()
            .map_or(Consistency::Crash, |job| job.consistency())
    }

    fn findings(&self) -> Vec<Finding> {
        self.job.as_ref().map_or_else(Vec::new, |job| job.findings())
    }

    fn disk_size(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<u64> {
        self.ask(|job| job.disk_size(target, deadline, stop))
    }

    fn map(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<DiskMap> {
        self.ask(|job| job.map(target, deadline, stop))
    }

    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>> {
        self.ask(|job| job.open(target, options))
    }

    fn health(&self) -> Result<JobHealth> {
        self.ask(|job| job.health())
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Finding>> {
        self.end("finish the job", |job| job.finish())
            .unwrap_or_else(|| Err(died()))
    }

    fn abort(mut self: Box<Self>) -> Vec<Finding> {
        self.end("abort the job", |job| job.abort())
            .unwrap_or_else(|| vec![Finding::new("job-not-ended", "simulated")])
    }
}

impl Drop for CrashJob {
    fn drop(&mut self) {
        if self.job.is_some() {
            self.end("drop the job", drop);
        }
        if let Some(job) = self.job.take() {
            self.fuse.bury(job);
        }
    }
}
