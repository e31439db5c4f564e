//! Reads a disk from front to back, and reads ahead on several threads.
//!
//! One thread walks the map and divides the disk into batches. Others read the blocks of a batch,
//! with few requests, and check them. The caller's thread hands out the bytes in order.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::block_error;
use super::blocks::{BlockCache, Located, Plain};
use super::disk::{InBlock, PackDisk, Piece, copy};
use super::id::BlockId;
use super::tree::Tree;
use crate::model::block::{Block, BlockError, BlockSource, CLUSTER, Content};
use crate::model::buffer::{Buffer, BufferPool};
use crate::model::stop::Stop;
use crate::repo::pack_error::{PackError, Result};

/// The number of threads that read batches.
const READERS: usize = 4;

/// The number of batches that are read or wait.
const AHEAD: usize = 5;

/// The most plain bytes of the blocks of a batch that has several blocks.
const BATCH: u64 = 8 << 20;

/// The most pieces of a batch: many of them may share a block, or read as zero.
const MOST_PIECES: usize = 4096;

/// Memory for blocks that several batches use, in bytes.
const SHARED: usize = 8 << 20;

/// How often a wait looks whether a stop was requested.
const STEP: Duration = Duration::from_millis(50);

/// The blocks of a disk.
pub(super) struct DiskSource {
    size: u64,
    tree: Arc<Tree>,
    pool: BufferPool,
    batches: Option<Receiver<Result<Planned>>>,
    /// The pieces that are handed out next, and their blocks.
    pieces: VecDeque<Piece>,
    blocks: HashMap<BlockId, Plain>,
    /// The end of the last piece that the planner has sent.
    planned_to: u64,
    has_ended: bool,
    cancelled: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A batch whose blocks are being read.
struct Planned {
    pieces: Vec<Piece>,
    blocks: Receiver<Result<HashMap<BlockId, Plain>>>,
}

/// The blocks of a batch that are to be read.
struct Job {
    wanted: Vec<Located>,
    done: SyncSender<Result<HashMap<BlockId, Plain>>>,
}

impl DiskSource {
    /// Begins to read.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn new(disk: Arc<PackDisk>, pool: BufferPool) -> Result<DiskSource> {
        let tree = Arc::clone(disk.tree());
        let (plans, batches) = sync_channel(AHEAD);
        let (jobs, waiting_jobs) = channel();
        let cancelled: Arc<AtomicBool> = Arc::default();
        let mut source = DiskSource {
            size: tree.size(),
            tree: Arc::clone(&tree),
            pool,
            batches: Some(batches),
            pieces: VecDeque::new(),
            blocks: HashMap::new(),
            planned_to: 0,
            has_ended: false,
            cancelled: Arc::clone(&cancelled),
            threads: Vec::new(),
        };
        let planner = Planner {
            disk,
            plans,
            jobs,
            batch: Batch::default(),
        };
        source.spawn("pack-planner", move || planner.run())?;
        let jobs = Arc::new(Mutex::new(waiting_jobs));
        let shared = Arc::new(BlockCache::new(SHARED));
        for _ in 0..READERS {
            let reader = Reader {
                tree: Arc::clone(&tree),
                jobs: Arc::clone(&jobs),
                shared: Arc::clone(&shared),
                cancelled: Arc::clone(&cancelled),
            };
            source.spawn("pack-reader", move || reader.run())?;
        }
        Ok(source)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = Builder::new().name(name.to_owned()).spawn(work);
        self.threads.push(thread.map_err(PackError::Seal)?);
        Ok(())
    }

    fn next(&mut self) -> std::result::Result<Option<Block>, BlockError> {
        while self.pieces.is_empty() {
            let planned = match &self.batches {
                Some(batches) => wait(batches, self.tree.stop())?,
                None => None,
            };
            let panicked = || PackError::Seal(std::io::Error::other("a reading thread panicked"));
            let Some(planned) = planned else {
                self.has_ended = true;
                return match self.planned_to == self.size {
                    true => Ok(None),
                    false => Err(block_error(panicked())),
                };
            };
            let planned = planned.map_err(block_error)?;
            let blocks = wait(&planned.blocks, self.tree.stop())?;
            self.planned_to = planned.pieces.last().map_or(self.planned_to, Piece::end);
            let blocks = blocks.unwrap_or_else(|| Err(panicked()));
            self.blocks = blocks.map_err(block_error)?;
            self.pieces = planned.pieces.into();
        }
        match self.pieces.front() {
            Some(piece) if piece.data.is_none() => Ok(self.zeroes()),
            _ => self.data().map(Some),
        }
    }

    fn zeroes(&mut self) -> Option<Block> {
        let first = self.pieces.pop_front()?;
        let mut end = first.end();
        while self.pieces.front().is_some_and(|next| next.data.is_none()) {
            end = self.pieces.pop_front()?.end();
        }
        Some(Block {
            offset: first.offset,
            content: Content::Zero(end - first.offset),
        })
    }

    /// Fills a buffer with the data that come next.
    fn data(&mut self) -> std::result::Result<Block, BlockError> {
        let mut buffer = self.buffer()?;
        let capacity = buffer.len() - buffer.len() % CLUSTER as usize;
        let offset = self.pieces.front().map_or(self.size, |piece| piece.offset);
        let mut filled = 0;
        while filled < capacity {
            let Some(piece) = self.pieces.front_mut() else {
                break;
            };
            let Some(data) = &mut piece.data else { break };
            let length = piece.length.min((capacity - filled) as u64);
            let block = self
                .blocks
                .get(&data.id)
                .filter(|block| block.len() as u64 >= data.least);
            let block = block.ok_or_else(|| block_error(self.tree.too_short(&data.id)))?;
            copy(block, data.at, &mut buffer[filled..filled + length as usize]);
            filled += length as usize;
            piece.offset += length;
            piece.length -= length;
            data.at += length;
            if piece.length == 0 {
                self.pieces.pop_front();
            }
        }
        buffer.set_len(filled);
        Ok(Block {
            offset,
            content: Content::Data(buffer),
        })
    }

    fn buffer(&self) -> std::result::Result<Buffer, BlockError> {
        loop {
            if self.tree.stop().requested() {
                return Err(BlockError::stopped());
            }
            if let Some(buffer) = self.pool.take_within(STEP) {
                return Ok(buffer);
            }
        }
    }
}

/// Waits for the next value of a channel. `None` if its sender is gone.
fn wait<T>(channel: &Receiver<T>, stop: &Stop) -> std::result::Result<Option<T>, BlockError> {
    loop {
        if stop.requested() {
            return Err(BlockError::stopped());
        }
        match channel.recv_timeout(STEP) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

impl BlockSource for DiskSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_block(&mut self) -> std::result::Result<Option<Block>, BlockError> {
        if self.has_ended {
            return Ok(None);
        }
        let next = self.next();
        self.has_ended |= next.is_err();
        next
    }
}

impl Drop for DiskSource {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.batches = None;
        for thread in self.threads.drain(..) {
            // The receiver has reported a panic.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for DiskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskSource({:?})", self.tree)
    }
}

/// Divides the disk into batches.
struct Planner {
    disk: Arc<PackDisk>,
    plans: SyncSender<Result<Planned>>,
    jobs: Sender<Job>,
    batch: Batch,
}

#[derive(Default)]
struct Batch {
    pieces: Vec<Piece>,
    wanted: HashMap<BlockId, Located>,
    bytes: u64,
}

impl Planner {
    fn run(mut self) {
        let plan = self.plan();
        if let Err(error) = plan {
            // The caller may have ended.
            let _ = self.plans.send(Err(error));
        }
    }

    /// Plans the whole disk. Ends early if nobody takes the batches.
    fn plan(&mut self) -> Result<()> {
        let size = self.disk.tree().size();
        let mut at = 0;
        while at < size {
            self.disk.tree().read_ahead(at)?;
            let piece = self.disk.piece_at(at)?;
            at = piece.end();
            if let Some(data) = piece.data
                && !self.add(&data)?
            {
                return Ok(());
            }
            self.batch.pieces.push(piece);
            if self.batch.pieces.len() >= MOST_PIECES && !self.send() {
                return Ok(());
            }
        }
        self.send();
        Ok(())
    }

    /// Adds the block of a piece to the batch, or to the next one. Returns false if nobody takes
    /// the batches.
    fn add(&mut self, data: &InBlock) -> Result<bool> {
        if self.batch.wanted.contains_key(&data.id) {
            return Ok(true);
        }
        let tree = self.disk.tree();
        let place = tree.blocks().locate(&data.id, tree.stop())?;
        let bytes = u64::from(place.plain);
        if self.batch.bytes + bytes > BATCH && !self.batch.wanted.is_empty() && !self.send() {
            return Ok(false);
        }
        self.batch.bytes += bytes;
        self.batch.wanted.insert(data.id, (data.id, place));
        Ok(true)
    }

    /// Hands the batch to the readers. Returns false if nobody takes it.
    fn send(&mut self) -> bool {
        let batch = std::mem::take(&mut self.batch);
        let (done, blocks) = sync_channel(1);
        let planned = Planned {
            pieces: batch.pieces,
            blocks,
        };
        let job = Job {
            wanted: batch.wanted.into_values().collect(),
            done,
        };
        self.plans.send(Ok(planned)).is_ok() && self.jobs.send(job).is_ok()
    }
}

/// Reads the blocks of batches.
struct Reader {
    tree: Arc<Tree>,
    jobs: Arc<Mutex<Receiver<Job>>>,
    shared: Arc<BlockCache>,
    cancelled: Arc<AtomicBool>,
}

impl Reader {
    fn run(self) {
        loop {
            let next = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = next else { return };
            if !self.cancelled.load(Ordering::SeqCst) {
                // The caller may have ended.
                let _ = job.done.send(self.read(&job.wanted));
            }
        }
    }

    fn read(&self, wanted: &[Located]) -> Result<HashMap<BlockId, Plain>> {
        let mut blocks = HashMap::new();
        let mut missing = Vec::new();
        for located in wanted {
            match self.shared.get(&located.0) {
                Some(block) => {
                    blocks.insert(located.0, block);
                }
                None => missing.push(*located),
            }
        }
        let read = self.tree.blocks().read_all(&missing, self.tree.stop());
        for ((id, _), block) in missing.iter().zip(read) {
            let block = block?;
            self.shared.put(*id, &block);
            blocks.insert(*id, block);
        }
        Ok(blocks)
    }
}
