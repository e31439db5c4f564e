//! The pump: one thread reads blocks, one writes them, a bounded pool of buffers between them.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use crate::model::block::{
    Block, BlockError, BlockErrorKind, BlockSink, BlockSource, CLUSTER, Content, Written,
};
use crate::model::buffer::BufferPool;
use crate::model::stop::Stop;

/// Bytes of one read request: as many whole clusters as are less than 2 MiB. QEMU takes the memory for a request of 2 MiB from the kernel and gives it
/// back each time, a page fault for each 4 KiB, which doubles its processor time. Half of it is as kind to QEMU, but takes more of ours.
pub const REQUEST: usize = (2 << 20) - CLUSTER as usize;

/// Buffers per disk: what is in flight, what waits for the writer, and what is being written.
pub const BUFFERS: usize = 16;

/// How long the other side may keep silent before it is given up.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The signal that a copy asks its own reader to stop with, when the writer has failed.
const WRITER_FAILED: i32 = i32::MAX;

/// The memory for one disk.
pub fn pool() -> BufferPool {
    BufferPool::new(BUFFERS, REQUEST)
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Everything before this offset of the disk is done, in bytes.
    pub position: u64,
    /// Bytes of data copied so far.
    pub copied: u64,
}

/// Copies everything that the source has, and finishes the sink.
///
/// `stop` must be the one that the source looks at too: it is asked for when the writer fails, so that a waiting reader ends. Whoever else
/// shares it (the other disks of a job) ends as well.
pub fn copy(
    source: &mut dyn BlockSource,
    sink: &mut dyn BlockSink,
    stop: &Stop,
    progress: &mut dyn FnMut(Progress),
) -> Result<Written, BlockError> {
    // The pool of buffers is the real bound; zero blocks need none, so the channel has one of its own.
    let (sender, receiver) = sync_channel(2 * BUFFERS);
    thread::scope(|scope| {
        let reader = scope.spawn(move || -> Result<(), BlockError> {
            while let Some(block) = source.next_block()? {
                if sender.send(block).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let written = write_blocks(&receiver, sink, stop, progress);
        if written.is_err() {
            stop.request(WRITER_FAILED);
        }
        drop(receiver);
        let read = match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        written?;
        read?;
        if stop.requested() {
            return Err(BlockError::stopped());
        }
        sink.finish()
    })
}

fn write_blocks(
    receiver: &Receiver<Block>,
    sink: &mut dyn BlockSink,
    stop: &Stop,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), BlockError> {
    let mut copied = 0;
    for block in receiver {
        if stop.requested() {
            return Err(BlockError::stopped());
        }
        let position = block.offset + block.length();
        if let Content::Data(bytes) = &block.content {
            copied += bytes.len() as u64;
        }
        sink.write(block)?;
        progress(Progress { position, copied });
    }
    Ok(())
}

/// Whether an error only tells that somebody asked to stop: another one is the reason then.
pub fn is_stop(error: &BlockError) -> bool {
    error.kind == BlockErrorKind::Stopped
}
