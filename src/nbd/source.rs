//! Reads an export as blocks in the disk's order, ahead of the consumer, with many requests in
//! flight.
//!
//! The planner turns the status of a range into extents. Each extent is cut into requests with one
//! buffer of the pool each, which take slots in a queue in the disk's order. Answers fill their
//! slots as they arrive, and the front of the queue is handed out. The next status is
//! requested while the reads of the previous one are in flight.

mod ask;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::error::{Error, Result};
use super::open_request::{Answer, Body};
use super::transmit::Connection;
use super::wire;
use crate::model::block::{Beneath, Block, BlockError, BlockErrorKind, BlockSource, CLUSTER, Content};
use crate::model::buffer::{Buffer, BufferPool};
use crate::model::clusters::{ClusterSet, WANTED};
use crate::model::extents::{ExtentPlanner, Run, Runs};
use crate::model::stop::{Stop, WaitLimit};

/// The longest range of one status request, in bytes: it fits a signed 32-bit number.
const LONGEST_STATUS: u64 = (2 << 30) - CLUSTER;
/// The shortest read for which QEMU's C library may map new memory, in bytes (`M_MMAP_THRESHOLD` in
/// mallopt(3)).
const SHORTEST_MAPPED: u64 = 128 * 1024;
/// The cookie of a status request. The cookies of reads are the numbers of their slots.
const STATUS_COOKIE: u64 = u64::MAX >> 1;
/// How long to wait for a buffer before checking [`Stop`].
const BUFFER_WAIT: Duration = Duration::from_millis(100);

/// The part of an export to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The whole disk.
    Full,
    /// The clusters that a dirty bitmap marks.
    Changes {
        /// The bitmap's context (`qemu:dirty-bitmap:NAME`).
        bitmap_context: String,
    },
    /// These clusters, regardless of what the server reports about them.
    Only(Arc<ClusterSet>),
}

/// Options for reading an export.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// The part of the export to read.
    pub mode: Mode,
    /// The cluster at this offset, in bytes, and all later ones count as changed. They are read in
    /// every mode.
    pub all_from: Option<u64>,
    /// The memory to read into. Each read takes one buffer, which must hold at least one
    /// [`CLUSTER`], and fills at most 1 MiB of it. The first read of a long extent gets a
    /// buffer of its own with up to 2 MiB, so one block may be longer than a buffer of the pool.
    pub pool: BufferPool,
    /// Length of the first range whose status is requested, in bytes; later ones double up to
    /// almost 2 GiB. A short one lets the first read start early.
    pub first_status: u64,
    /// How long the server may be silent while the source waits for it.
    pub deadline: Duration,
    /// The parent of the incremental image, if the source has to check the bitmap. The source then
    /// looks up in the parent each range that reads as zero and is not marked as changed. If the
    /// parent may hold something else in such a range, the source fails with
    /// [`Error::Distrusted`].
    pub beneath: Option<Arc<dyn Beneath>>,
    /// Ends the source with an error when a stop is requested.
    pub stop: Stop,
}

impl SourceOptions {
    /// The usual options: the first status covers 64 MiB.
    pub fn new(mode: Mode, pool: BufferPool, deadline: Duration, stop: Stop) -> Self {
        SourceOptions {
            mode,
            all_from: None,
            pool,
            first_status: 64 << 20,
            deadline,
            beneath: None,
            stop,
        }
    }
}

/// An export as a source of blocks.
///
/// In [`Mode::Full`] the blocks cover the whole disk; ranges known to read as zero come as
/// [`Content::Zero`]. In [`Mode::Changes`] they cover only the changed clusters, which are always
/// whole. In [`Mode::Only`] they cover only the clusters of the set, and those from
/// [`SourceOptions::all_from`] on, always as data.
#[derive(Debug)]
pub struct ExportSource {
    name: String,
    size: u64,
    connection: Connection,
    planner: ExtentPlanner,
    status: Status,
    slots: VecDeque<Slot>,
    /// The number of the slot at the queue's front.
    first_slot: u64,
    pool: BufferPool,
    /// A buffer from the pool that the source had to wait for; the next read takes it.
    spare: Option<Buffer>,
    beneath: Option<Arc<dyn Beneath>>,
    /// Length of the longest reads, except the one longer read, in bytes: whole clusters.
    longest_read: u64,
    /// Length of the one read that is longer than all others, in bytes: whole clusters. `None` if
    /// there is no such length, or the read was sent.
    longer_read: Option<u64>,
    stop: Stop,
    /// Bytes that were requested and have not arrived.
    in_flight: u64,
    failed: bool,
}

/// The state of the status requests.
#[derive(Debug)]
struct Status {
    /// Index of the negotiated context that reports dirty ranges.
    dirty: Option<usize>,
    /// Index of the negotiated context that reports zeroes.
    zero: Option<usize>,
    /// Length of the next range, in bytes.
    length: u64,
    /// Ranges start on multiples of this, in bytes.
    alignment: u64,
    in_flight: bool,
}

/// A slot in the queue of blocks.
#[derive(Debug)]
enum Slot {
    Waiting,
    Ready(Block),
}

impl ExportSource {
    /// Connects to a unix socket and begins to read `export`.
    ///
    /// # Errors
    /// [`Error::ContextMissing`] in [`Mode::Changes`] if the server does not grant the bitmap,
    /// [`Error::BadRequest`] if a buffer of the pool is smaller than a cluster; others as for
    /// [`Client::connect_unix`].
    pub fn open(path: &Path, export: &str, options: SourceOptions) -> Result<Self> {
        let limit = WaitLimit {
            deadline: options.deadline,
            stop: options.stop.clone(),
        };
        let wanted = match &options.mode {
            Mode::Full => vec![wire::BASE_ALLOCATION],
            Mode::Changes { bitmap_context } => vec![wire::BASE_ALLOCATION, bitmap_context],
            Mode::Only(_) => vec![],
        };
        let client = Client::connect_unix(path, export, &wanted, &limit)?;
        Self::from_client(client, options)
    }

    /// Reads through an existing connection to the export.
    pub(super) fn from_client(client: Client, options: SourceOptions) -> Result<Self> {
        let export = client.export.clone();
        let alignment = u64::from(export.block_sizes.minimum);
        if !export.size.is_multiple_of(alignment) {
            return Err(Error::Unsupported {
                what: format!(
                    "its export has {} bytes, which is not a multiple of the block size ({alignment} bytes)",
                    export.size
                ),
            });
        }
        let capacity = options.pool.buffer_capacity() as u64;
        let longest_allowed = u64::from(client.longest_read());
        let longest_read = capacity.min(longest_allowed).min(ask::LONGEST_READ) / CLUSTER * CLUSTER;
        let longer = (2 * longest_read).min(longest_allowed / CLUSTER * CLUSTER);
        let longer_read = (longest_read >= SHORTEST_MAPPED && longer > longest_read).then_some(longer);
        if longest_read == 0 {
            return Err(Error::BadRequest {
                offset: 0,
                length: capacity,
                what: format!("a buffer must hold a cluster of {CLUSTER} bytes"),
            });
        }
        let context = |name: &str| export.contexts.iter().position(|context| context.name == name);
        let dirty = match &options.mode {
            Mode::Full | Mode::Only(_) => None,
            Mode::Changes { bitmap_context } => {
                Some(context(bitmap_context).ok_or_else(|| Error::ContextMissing {
                    export: export.name.clone(),
                    context: bitmap_context.clone(),
                })?)
            }
        };
        let status = Status {
            dirty,
            zero: context(wire::BASE_ALLOCATION),
            length: options.first_status.clamp(CLUSTER, LONGEST_STATUS) / CLUSTER * CLUSTER,
            alignment,
            in_flight: false,
        };
        let mut planner = ExtentPlanner::new(export.size, options.all_from, options.beneath.is_some());
        if let Mode::Only(clusters) = &options.mode {
            let runs = clusters.runs();
            let wanted = Runs {
                runs: &runs,
                flag: WANTED,
            };
            planner.add_status(Some(wanted), None, export.size);
            // Clusters after the last run of the set are not wanted.
            let rest = [Run {
                length: u64::MAX,
                flags: 0,
            }];
            let rest = Runs {
                runs: &rest,
                flag: WANTED,
            };
            planner.add_status(Some(rest), None, export.size);
        } else if status.dirty.is_none() && status.zero.is_none() {
            planner.add_status(None, None, export.size);
        }
        Ok(ExportSource {
            name: export.name,
            size: export.size,
            connection: client.connection,
            planner,
            status,
            slots: VecDeque::new(),
            first_slot: 0,
            pool: options.pool,
            spare: None,
            beneath: options.beneath,
            longest_read,
            longer_read,
            stop: options.stop,
            in_flight: 0,
            failed: false,
        })
    }

    fn advance(&mut self) -> Result<Option<Block>> {
        loop {
            if self.stop.requested() {
                return Err(Error::Stopped);
            }
            self.ask()?;
            if let Some(block) = self.take_ready() {
                return Ok(Some(block));
            }
            if self.slots.is_empty() && self.planner.complete() && self.planner.planned() == 0 {
                return Ok(None);
            }
            self.wait()?;
        }
    }

    fn take_ready(&mut self) -> Option<Block> {
        match self.slots.pop_front()? {
            Slot::Ready(block) => {
                self.first_slot += 1;
                Some(block)
            }
            waiting @ Slot::Waiting => {
                self.slots.push_front(waiting);
                None
            }
        }
    }

    /// Receives the bytes that have arrived, or waits for some. With nothing in flight it waits for
    /// a buffer; the consumer returns buffers, and has no deadline.
    fn wait(&mut self) -> Result<()> {
        if self.connection.in_flight() == 0 {
            self.spare = self.pool.take_within(BUFFER_WAIT);
            return Ok(());
        }
        if self.connection.receive_long()? || self.connection.receive_now()? {
            while let Some(answer) = self.connection.answer() {
                self.take_answer(answer)?;
            }
            return Ok(());
        }
        self.connection.wait_readable()
    }

    fn take_answer(&mut self, answer: Answer) -> Result<()> {
        let (cookie, offset, length) = (answer.cookie, answer.offset, answer.length);
        match answer.into_body()? {
            Body::Status(contexts) => {
                self.status.in_flight = false;
                self.take_status(&contexts, offset + u64::from(length))
            }
            // This client asks for no change.
            Body::Done(_) => Ok(()),
            Body::Read(mut buffer) => {
                self.in_flight -= u64::from(length);
                buffer.set_len(length as usize);
                let content = Content::Data(buffer);
                if let Some(slot) = self.slots.get_mut((cookie - self.first_slot) as usize) {
                    *slot = Slot::Ready(Block { offset, content });
                }
                Ok(())
            }
        }
    }

    /// Plans the range that all contexts cover; the rest is requested again.
    fn take_status(&mut self, contexts: &[Vec<Run>], asked_to: u64) -> Result<()> {
        let runs = |context: Option<usize>, flag| {
            context.map(|index| Runs {
                runs: &contexts[index],
                flag,
            })
        };
        let dirty = runs(self.status.dirty, wire::STATE_DIRTY);
        let zero = runs(self.status.zero, wire::STATE_ZERO);
        let length = |runs: &Option<Runs<'_>>| {
            runs.as_ref()
                .map_or(u64::MAX, |length| length.runs.iter().map(|run| run.length).sum())
        };
        let position = self.planner.position();
        let end = position
            .saturating_add(length(&dirty).min(length(&zero)))
            .min(asked_to);
        // A server with large blocks rejects a request that starts within a block.
        let end = if end == self.size {
            end
        } else {
            end - end % self.status.alignment
        };
        if end <= position {
            return Err(Error::protocol(format!(
                "the status at offset {position} covers less than the minimum block size"
            )));
        }
        self.planner.add_status(dirty, zero, end);
        Ok(())
    }
}

impl BlockSource for ExportSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_block(&mut self) -> std::result::Result<Option<Block>, BlockError> {
        if self.failed {
            let what = format!("reading export '{}' failed earlier", self.name);
            return Err(BlockError::new(BlockErrorKind::Lost, what));
        }
        self.advance().map_err(|error| {
            self.failed = true;
            error.into_block_error(format!("cannot read export '{}'", self.name))
        })
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "source_properties.rs"]
mod properties;
