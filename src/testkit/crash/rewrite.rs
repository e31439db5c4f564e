//! A job that writes to disks in place, and whose client dies. What it wrote stays.

use std::time::Duration;

use super::fuse::{Fuse, died};
use crate::host::{JobHealth, ReadOptions, Result, RewriteJob};
use crate::model::block::{Block, BlockError, BlockErrorKind, BlockSink, BlockSource, Written};
use crate::model::clusters::DiskMap;
use crate::model::finding::Finding;
use crate::model::stop::Stop;

/// A job whose client is controlled by a [`Fuse`].
pub(super) struct CrashRewrite {
    /// `None` after it has ended.
    pub(super) job: Option<Box<dyn RewriteJob>>,
    pub(super) fuse: Fuse,
}

impl CrashRewrite {
    fn ask<T>(&self, question: impl FnOnce(&dyn RewriteJob) -> Result<T>) -> Result<T> {
        match &self.job {
            Some(job) if !self.fuse.is_dead() => question(job.as_ref()),
            _ => Err(died()),
        }
    }

    /// Ends the job in one step. Returns `None` if the step failed.
    fn end<T>(&mut self, name: &str, end: impl FnOnce(Box<dyn RewriteJob>) -> T) -> Option<T> {
        let job = &mut self.job;
        let done = self.fuse.step(|| name.to_owned(), || job.take().map(end));
        done.ok().flatten()
    }
}

impl RewriteJob for CrashRewrite {
    fn disk_size(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<u64> {
        self.ask(|job| job.disk_size(target, deadline, stop))
    }

    fn map(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<DiskMap> {
        self.ask(|job| job.map(target, deadline, stop))
    }

    fn is_changed(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<Option<bool>> {
        self.ask(|job| job.is_changed(target, deadline, stop))
    }

    fn open(&self, target: &str, options: &ReadOptions) -> Result<Box<dyn BlockSource>> {
        self.ask(|job| job.open(target, options))
    }

    fn sink(&self, target: &str, deadline: Duration, stop: &Stop) -> Result<Box<dyn BlockSink>> {
        let sink = self.ask(|job| job.sink(target, deadline, stop))?;
        let fuse = self.fuse.clone();
        Ok(Box::new(CrashSink { sink, fuse }))
    }

    fn health(&self) -> Result<JobHealth> {
        self.ask(|job| job.health())
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Finding>> {
        self.end("close the disks", |job| job.finish())
            .unwrap_or_else(|| Err(died()))
    }
}

impl Drop for CrashRewrite {
    fn drop(&mut self) {
        if self.job.is_some() {
            self.end("drop the disks", drop);
        }
        if let Some(job) = self.job.take() {
            self.fuse.bury(job);
        }
    }
}

struct CrashSink {
    sink: Box<dyn BlockSink>,
    fuse: Fuse,
}

fn lost() -> BlockError {
    BlockError::new(BlockErrorKind::Lost, "simulated: the step fails")
}

impl BlockSink for CrashSink {
    fn write(&mut self, block: Block) -> std::result::Result<(), BlockError> {
        let name = format!("write to a disk at {}", block.offset);
        let sink = &mut self.sink;
        let done = self.fuse.step(|| name, || sink.write(block));
        done.unwrap_or_else(|_| Err(lost()))
    }

    fn finish(&mut self) -> std::result::Result<Written, BlockError> {
        let sink = &mut self.sink;
        let done = self.fuse.step(|| "flush a disk".to_owned(), || sink.finish());
        done.unwrap_or_else(|_| Err(lost()))
    }
}
