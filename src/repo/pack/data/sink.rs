//! Writes a disk: blocks in the disk's order become blocks of the repository and a map.
//!
//! The caller's thread collects windows of the disk. Worker threads decide how a window is stored,
//! hash it, look it up, compress it and encrypt it. One more thread takes the windows in the disk's
//! order, adds their blocks to packs and writes the map.
//!
//! * `window`: one window, and how it is stored.
//! * `draft`: the map that is being written.
//! * `worker`: the threads that do the work on windows and blocks.
//! * `assembler`: the thread that puts everything in order.

mod assembler;
mod draft;
mod window;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle, available_parallelism};

use super::block_error;
use super::blocks::{Blocks, Reuse};
use super::disk::PackDisk;
use super::packer::Packer;
use super::sealer::Sealer;
use super::spare::Spare;
use crate::image::Order;
use crate::model::block::{Block, BlockError, BlockErrorKind, BlockSink, CLUSTER, Content, Written};
use crate::model::compression::Compression;
use crate::model::stop::Stop;
use crate::repo::pack_error::{PackError, Result};

use assembler::Assembler;
pub(super) use draft::Draft;
use window::{Touched, Window};
use worker::{Job, Planned, Workers};

/// The most workers of one disk.
const MOST_WORKERS: usize = 8;

/// Windows that may wait in addition to one for each worker.
const WAITING: usize = 4;

/// The number of spare buffers of a sink: for all windows that can wait, and their sealed forms.
pub(super) const SPARE: usize = 2 * (MOST_WORKERS + WAITING);

/// The parts of a repository that a sink needs.
pub(super) struct SinkContext {
    pub(super) sealer: Arc<Sealer>,
    pub(super) packer: Arc<Packer>,
    pub(super) blocks: Arc<Blocks>,
    pub(super) block_bytes: u64,
    pub(super) compression: Compression,
    pub(super) reuse: Reuse,
    pub(super) stop: Stop,
    /// Buffers for windows, and for blocks in their sealed form.
    pub(super) spare: Spare,
}

/// The next part of the disk, for the assembling thread.
enum Part {
    /// A range that reads as zero, in clusters.
    Zero {
        first: u64,
        end: u64,
    },
    /// A window that a worker plans.
    Window(Receiver<Result<Planned>>),
    End,
}

/// Writes one disk.
pub(super) struct DiskSink {
    order: Order,
    size: u64,
    parent: Option<Arc<PackDisk>>,
    context: Arc<SinkContext>,
    block_bytes: u64,
    window: Option<Window>,
    parts: Option<SyncSender<Part>>,
    jobs: Option<Sender<Job>>,
    cancelled: Arc<AtomicBool>,
    assembler: Option<JoinHandle<Result<Option<Written>>>>,
    workers: Vec<JoinHandle<()>>,
    stop: Stop,
}

impl DiskSink {
    /// Begins a disk of `size` bytes. With a parent, everything that is not written stays as in the
    /// parent.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn new(context: SinkContext, size: u64, parent: Option<Arc<PackDisk>>) -> Result<DiskSink> {
        let count = available_parallelism().map_or(1, usize::from).min(MOST_WORKERS);
        let (parts, parts_in_order) = sync_channel(count + WAITING);
        let (jobs, waiting_jobs) = channel();
        let cancelled: Arc<AtomicBool> = Arc::default();
        let context = Arc::new(context);
        let mut sink = DiskSink {
            context: Arc::clone(&context),
            order: Order::new(size),
            size,
            parent: parent.clone(),
            block_bytes: context.block_bytes,
            window: None,
            parts: Some(parts),
            jobs: Some(jobs.clone()),
            cancelled: Arc::clone(&cancelled),
            assembler: None,
            workers: Vec::new(),
            stop: context.stop.clone(),
        };
        let draft = Draft::new(size, parent.as_ref().map(|parent| Arc::clone(parent.tree())));
        let assembler = Assembler::new(&context, draft, size, jobs)?;
        let thread = Builder::new().name("pack-assembler".into());
        let thread = thread.spawn(move || assembler.run(&parts_in_order));
        sink.assembler = Some(thread.map_err(PackError::Seal)?);
        let workers = Workers::new(&context, parent, waiting_jobs, cancelled);
        for _ in 0..count {
            let worker = workers.worker()?;
            let thread = Builder::new().name("pack-worker".into());
            let thread = thread.spawn(move || worker.run());
            sink.workers.push(thread.map_err(PackError::Seal)?);
        }
        Ok(sink)
    }

    fn take(&mut self, block: Block) -> std::result::Result<(), BlockError> {
        if self.stop.requested() {
            return Err(BlockError::stopped());
        }
        let (offset, length) = (block.offset, block.length());
        self.order.accept(offset, length)?;
        match &block.content {
            Content::Zero(_) => self.take_zeroes(offset, offset + length),
            Content::Data(buffer) => {
                let mut at = offset;
                while at < offset + length {
                    let end = (offset + length).min(self.window_end(at));
                    let bytes = &buffer[(at - offset) as usize..(end - offset) as usize];
                    self.window_at(at)?.write(at, bytes);
                    at = end;
                }
                Ok(())
            }
        }
    }

    /// Notes zeroes. Whole windows of them need no worker.
    fn take_zeroes(&mut self, start: u64, end: u64) -> std::result::Result<(), BlockError> {
        let mut at = start;
        while at < end {
            let is_start = at.is_multiple_of(self.block_bytes);
            let whole = match end == self.size {
                true => end,
                false => end - end % self.block_bytes,
            };
            if is_start && whole > at {
                self.send_window()?;
                let part = Part::Zero {
                    first: at / CLUSTER,
                    end: whole.div_ceil(CLUSTER),
                };
                self.send(part)?;
                at = whole;
                continue;
            }
            let part_end = end.min(self.window_end(at));
            self.window_at(at)?.clear(at, part_end);
            at = part_end;
        }
        Ok(())
    }

    fn window_end(&self, at: u64) -> u64 {
        (at / self.block_bytes + 1) * self.block_bytes
    }

    /// The window with this offset. The one before it goes to the workers.
    fn window_at(&mut self, at: u64) -> std::result::Result<&mut Window, BlockError> {
        let start = at - at % self.block_bytes;
        if self.window.as_ref().is_none_or(|window| window.start() != start) {
            self.send_window()?;
        }
        let length = self.block_bytes.min(self.size - start);
        let context = &self.context;
        let new = || Window::new(start, length, context.spare.take());
        Ok(self.window.get_or_insert_with(new))
    }

    fn send_window(&mut self) -> std::result::Result<(), BlockError> {
        let Some(window) = self.window.take() else {
            return Ok(());
        };
        let (sender, done) = sync_channel(1);
        // The place among the parts bounds the jobs.
        self.send(Part::Window(done))?;
        if let Some(jobs) = &self.jobs {
            // Workers end only after this end of the channel. If one panicked, its part says so.
            let _ = jobs.send(Job::Plan { window, done: sender });
        }
        Ok(())
    }

    /// Sends a part. Waits while the workers are busy, and reports a failure of an earlier part.
    fn send(&mut self, part: Part) -> std::result::Result<(), BlockError> {
        let parts = self.parts.as_ref();
        if parts.is_some_and(|parts| parts.send(part).is_ok()) {
            return Ok(());
        }
        self.end().map_err(block_error)?;
        Err(closed())
    }

    /// Waits for all threads, and returns what was written if the disk is complete.
    fn end(&mut self) -> Result<Option<Written>> {
        self.parts = None;
        self.jobs = None;
        let assembled = self.assembler.take().map(JoinHandle::join);
        for worker in self.workers.drain(..) {
            // The assembler has reported a panic of a worker.
            let _ = worker.join();
        }
        match assembled {
            None => Ok(None),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(panicked()),
        }
    }

    /// If the disk has shrunk to a size within a cluster, the parent's bytes after the new end must
    /// not appear again when it grows: the last cluster is stored anew.
    fn cut_last_cluster(&mut self) -> std::result::Result<(), BlockError> {
        let part = self.size % CLUSTER;
        let start = self.size - part;
        let parent = self.parent.clone();
        let Some(parent) = parent.filter(|parent| part > 0 && parent.tree().size() > self.size) else {
            return Ok(());
        };
        let window = self.window.as_ref();
        let is_written = self.order.position() > start
            || window.is_some_and(|window| window.touched(start) != Touched::No);
        if is_written {
            return Ok(());
        }
        let mut bytes = vec![0; part as usize];
        parent.read(&mut bytes, start).map_err(block_error)?;
        self.window_at(start)?.write(start, &bytes);
        Ok(())
    }
}

impl BlockSink for DiskSink {
    fn write(&mut self, block: Block) -> std::result::Result<(), BlockError> {
        self.take(block)
    }

    fn finish(&mut self) -> std::result::Result<Written, BlockError> {
        if self.stop.requested() {
            return Err(BlockError::stopped());
        }
        self.cut_last_cluster()?;
        self.send_window()?;
        self.send(Part::End)?;
        let written = self.end().map_err(block_error)?;
        written.ok_or_else(closed)
    }
}

impl Drop for DiskSink {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::SeqCst);
        let _ = self.end();
    }
}

fn closed() -> BlockError {
    BlockError::new(BlockErrorKind::Invalid, "this disk has failed or is finished")
}

/// The error after a thread has panicked.
fn panicked() -> PackError {
    PackError::Seal(std::io::Error::other("a thread that writes blocks panicked"))
}
