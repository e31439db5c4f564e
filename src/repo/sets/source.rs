//! Reads a disk of a set from front to back, and verifies the files on the way.

use std::time::Duration;

use super::stack::{Origin, Stack};
use crate::model::block::{Block, BlockError, BlockSource, CLUSTER, Content};
use crate::model::buffer::{Buffer, BufferPool};
use crate::model::stop::Stop;

/// How long the source waits for a buffer before it checks for a stop request.
const WAIT: Duration = Duration::from_millis(100);

/// The blocks of a disk.
pub(super) struct SetSource {
    stack: Stack,
    /// How many of the newest layers decide which clusters are handed out.
    upper: usize,
    /// The number of layers.
    all: usize,
    at: u64,
    pool: BufferPool,
    stop: Stop,
    is_finished: bool,
}

impl SetSource {
    /// The blocks that the newest `upper` layers of a disk store. If `upper` is the number of all
    /// layers, the blocks are the whole disk.
    pub(super) fn new(mut stack: Stack, upper: usize, pool: BufferPool, stop: Stop) -> SetSource {
        let all = stack.layers_mut().len();
        SetSource {
            upper: upper.min(all),
            all,
            stack,
            at: 0,
            pool,
            stop,
            is_finished: false,
        }
    }

    /// The end of the clusters that lie completely before `end`.
    fn whole_until(&self, end: u64) -> u64 {
        match end == self.stack.size() {
            true => end,
            false => end - end % CLUSTER,
        }
    }

    fn take_buffer(&self) -> Result<Buffer, BlockError> {
        loop {
            if self.stop.requested() {
                return Err(BlockError::stopped());
            }
            if let Some(buffer) = self.pool.take_within(WAIT) {
                return Ok(buffer);
            }
        }
    }

    /// A block of data that begins here. It ends before the first cluster that needs no bytes.
    fn data(&mut self) -> Result<Block, BlockError> {
        let start = self.at;
        let mut buffer = self.take_buffer()?;
        let room = buffer.capacity() as u64;
        let most = (self.stack.size() - start).min(room - room % CLUSTER);
        let mut at = start;
        while at < start + most {
            let segment = self.stack.segment(at, self.upper)?;
            let is_needless = segment.origin.is_zero() || matches!(segment.origin, Origin::Beneath);
            let is_border = at > start && at.is_multiple_of(CLUSTER);
            if is_needless && is_border && self.whole_until(segment.end) > at {
                break;
            }
            let mut end = segment.end.min(start + most);
            if is_needless {
                // Only the rest of this cluster belongs to the block for certain.
                end = end.min(at - at % CLUSTER + CLUSTER);
            }
            let within = |at: u64| usize::try_from(at - start).unwrap_or(usize::MAX);
            let range = within(at)..within(end);
            buffer.set_len(range.end);
            self.stack.fill(&mut buffer[range], at)?;
            at = end;
        }
        self.at = at;
        Ok(Block {
            offset: start,
            content: Content::Data(buffer),
        })
    }

    /// Checks the ends of the files whose content was handed out.
    fn finish(&mut self) -> Result<(), BlockError> {
        let is_whole = self.upper == self.all;
        let upper = self.upper;
        for (place, layer) in self.stack.layers_mut().iter_mut().enumerate() {
            if is_whole || place < upper || layer.is_used() {
                layer.finish()?;
            }
        }
        Ok(())
    }
}

impl BlockSource for SetSource {
    fn size(&self) -> u64 {
        self.stack.size()
    }

    fn next_block(&mut self) -> Result<Option<Block>, BlockError> {
        let size = self.stack.size();
        while self.at < size {
            if self.stop.requested() {
                return Err(BlockError::stopped());
            }
            let segment = self.stack.segment(self.at, self.upper)?;
            let whole = self.whole_until(segment.end);
            if whole <= self.at {
                return self.data().map(Some);
            }
            match segment.origin {
                Origin::Beneath => self.at = whole,
                origin if origin.is_zero() => {
                    let block = Block {
                        offset: self.at,
                        content: Content::Zero(whole - self.at),
                    };
                    self.at = whole;
                    return Ok(Some(block));
                }
                _ => return self.data().map(Some),
            }
        }
        if !self.is_finished {
            self.finish()?;
            self.is_finished = true;
        }
        Ok(None)
    }
}
