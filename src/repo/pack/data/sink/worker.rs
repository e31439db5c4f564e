//! The threads that plan windows, and that hash, compress and encrypt blocks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use zstd::bulk::Compressor;

use super::window::{Stretch, Touched, Window};
use super::{PackDisk, SinkContext};
use crate::model::block::CLUSTER;
use crate::repo::pack::data::id::BlockId;
use crate::repo::pack::data::sealer::{Sealed, compressor};
use crate::repo::pack_error::{PackError, Result};

/// The most runs in the map of a window. A window that needs more is written whole.
const MOST_RUNS: usize = 8;

/// Work for a worker.
pub(super) enum Job {
    /// Decide how a window is stored, and seal its block.
    Plan {
        window: Window,
        done: SyncSender<Result<Planned>>,
    },
    /// Seal a block, unless it is already stored.
    Seal {
        id: BlockId,
        bytes: Vec<u8>,
        done: SyncSender<Result<Option<Sealed>>>,
    },
}

/// A window, ready for its place in the map.
pub(super) struct Planned {
    /// Its first cluster on the disk, and the number of clusters.
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) form: Form,
    /// The bytes of data that were written to it.
    pub(super) data_bytes: u64,
    /// The bytes of zeroes that were written to it.
    pub(super) zero_bytes: u64,
}

/// How a window is stored.
pub(super) enum Form {
    /// In a block of its own; `None` if all of it reads as zero.
    Whole(Option<ReadyBlock>, Vec<Piece>),
    /// Only what was written: zeroes, and data for a block that several windows share.
    Part {
        zeroes: Vec<Stretch>,
        data: Vec<Piece>,
        bytes: Vec<u8>,
    },
}

/// A block that has its id.
pub(super) struct ReadyBlock {
    pub(super) id: BlockId,
    pub(super) plain: usize,
    /// Its sealed form; `None` if the block is already stored.
    pub(super) sealed: Option<Sealed>,
}

/// Clusters of a window that lie one after another in a block.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// The first cluster in the window.
    pub(super) first: u64,
    pub(super) count: u16,
    /// The first cluster in the block.
    pub(super) offset: u16,
}

/// Makes workers.
pub(super) struct Workers {
    context: Arc<SinkContext>,
    parent: Option<Arc<PackDisk>>,
    jobs: Arc<Mutex<Receiver<Job>>>,
    cancelled: Arc<AtomicBool>,
}

/// One worker.
pub(super) struct Worker {
    context: Arc<SinkContext>,
    parent: Option<Arc<PackDisk>>,
    jobs: Arc<Mutex<Receiver<Job>>>,
    cancelled: Arc<AtomicBool>,
    zstd: Option<Compressor<'static>>,
}

impl Workers {
    pub(super) fn new(
        context: &Arc<SinkContext>,
        parent: Option<Arc<PackDisk>>,
        jobs: Receiver<Job>,
        cancelled: Arc<AtomicBool>,
    ) -> Workers {
        Workers {
            context: Arc::clone(context),
            parent,
            jobs: Arc::new(Mutex::new(jobs)),
            cancelled,
        }
    }

    pub(super) fn worker(&self) -> Result<Worker> {
        Ok(Worker {
            context: Arc::clone(&self.context),
            parent: self.parent.clone(),
            jobs: Arc::clone(&self.jobs),
            cancelled: Arc::clone(&self.cancelled),
            zstd: compressor(self.context.compression).map_err(PackError::Seal)?,
        })
    }
}

impl Worker {
    /// Works until there are no more jobs.
    pub(super) fn run(mut self) {
        loop {
            let next = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = next else { return };
            if self.cancelled.load(Ordering::SeqCst) {
                continue;
            }
            // After a failure the receivers are gone.
            match job {
                Job::Plan { window, done } => {
                    let _ = done.send(self.plan(window));
                }
                Job::Seal { id, bytes, done } => {
                    let _ = done.send(self.seal(&id, &bytes));
                    self.context.spare.give(bytes);
                }
            }
        }
    }

    fn plan(&mut self, mut window: Window) -> Result<Planned> {
        let stretches = window.stretches();
        let bytes_of = |kind| -> u64 {
            let stretches = stretches.iter().filter(|stretch| stretch.kind == kind);
            stretches.map(|stretch| window.length(stretch)).sum()
        };
        let (data_bytes, zero_bytes) = (bytes_of(Touched::Data), bytes_of(Touched::Zero));
        let (first, count) = (window.first_cluster(), window.clusters() as u64);
        let is_whole = match &self.parent {
            None => true,
            Some(parent) => needs_rewrite(parent, &window, &stretches)?,
        };
        let form = match (is_whole, &self.parent) {
            (false, _) => part(window, &stretches),
            (true, parent) => {
                if let Some(parent) = parent {
                    fill(parent, &mut window, &stretches)?;
                }
                self.whole(window)?
            }
        };
        Ok(Planned {
            first,
            count,
            form,
            data_bytes,
            zero_bytes,
        })
    }

    fn whole(&mut self, window: Window) -> Result<Form> {
        let pieces = data_pieces(&window.stretches());
        let bytes = window.into_data();
        if bytes.is_empty() {
            return Ok(Form::Whole(None, pieces));
        }
        let id = self.context.sealer.id(&bytes);
        let sealed = self.seal(&id, &bytes)?;
        let plain = bytes.len();
        self.context.spare.give(bytes);
        Ok(Form::Whole(Some(ReadyBlock { id, plain, sealed }), pieces))
    }

    /// Seals a block. `None` if it is stored already.
    fn seal(&mut self, id: &BlockId, bytes: &[u8]) -> Result<Option<Sealed>> {
        let context = &self.context;
        if context.blocks.is_stored(id, context.reuse, &context.stop)? {
            return Ok(None);
        }
        let buffer = context.spare.take();
        let sealed = context
            .sealer
            .seal_block_in(buffer, id, bytes, self.zstd.as_mut());
        sealed.map(Some).map_err(PackError::Seal)
    }
}

/// Whether a window is written whole: because half of it has changed, or its map would have too
/// many runs.
fn needs_rewrite(parent: &PackDisk, window: &Window, stretches: &[Stretch]) -> Result<bool> {
    let count_of = |is_counted: fn(Touched) -> bool| -> usize {
        let counted = stretches.iter().filter(|stretch| is_counted(stretch.kind));
        counted.map(|stretch| stretch.count).sum()
    };
    let touched = count_of(|kind| kind != Touched::No);
    let has_data = count_of(|kind| kind == Touched::Data) > 0;
    if has_data && 2 * touched >= window.clusters() {
        return Ok(true);
    }
    let mut runs = 0;
    for stretch in stretches {
        runs += match stretch.kind {
            Touched::Data => 1,
            Touched::Zero => 0,
            Touched::No => {
                let start = window.first_cluster() + stretch.first as u64;
                parent.count_runs(start, stretch.count as u64)?
            }
        };
    }
    Ok(runs > MOST_RUNS)
}

/// Fills what was not written with the parent's bytes.
fn fill(parent: &PackDisk, window: &mut Window, stretches: &[Stretch]) -> Result<()> {
    for stretch in stretches.iter().filter(|stretch| stretch.kind == Touched::No) {
        let mut bytes = vec![0; window.length(stretch) as usize];
        let at = window.start() + stretch.first as u64 * CLUSTER;
        parent.read(&mut bytes, at)?;
        window.write(at, &bytes);
    }
    Ok(())
}

fn part(window: Window, stretches: &[Stretch]) -> Form {
    let is_zero = |stretch: &&Stretch| stretch.kind == Touched::Zero;
    Form::Part {
        zeroes: stretches.iter().filter(is_zero).copied().collect(),
        data: data_pieces(stretches),
        bytes: window.into_data(),
    }
}

/// Where the data of a window lie if they are put one after another.
fn data_pieces(stretches: &[Stretch]) -> Vec<Piece> {
    let mut offset = 0;
    let data = stretches.iter().filter(|stretch| stretch.kind == Touched::Data);
    data.map(|stretch| {
        let count = stretch.count as u16;
        let piece = Piece {
            first: stretch.first as u64,
            count,
            offset,
        };
        offset += count;
        piece
    })
    .collect()
}
