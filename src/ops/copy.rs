//! The pump: takes blocks from a source and puts them into a sink, with a bounded pool of buffers between them.

use std::sync::mpsc::sync_channel;
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

/// The signal that a copy asks readers to stop with, when the writer has failed.
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

/// Copies an export, and finishes the sink, both on this thread: the export reads ahead by itself, the image writes behind, and what has just been
/// received is hashed while it is in this processor's cache.
///
/// `stop` is asked for when the sink fails: whoever shares it (the other disks of a job) ends as well.
pub fn copy_export(
    source: &mut dyn BlockSource,
    sink: &mut dyn BlockSink,
    stop: &Stop,
    progress: &mut dyn FnMut(Progress),
) -> Result<Written, BlockError> {
    let mut pump = Pump::new(sink, stop, progress);
    while let Some(block) = source.next_block()? {
        pump.write(block)?;
    }
    pump.finish()
}

/// Copies a chain of images, and finishes the sink. The images are read and hashed on a thread of their own.
///
/// `stop` must be the one that the source looks at too: it is asked for when the sink fails, so that a waiting reader ends.
pub fn copy_chain(
    source: &mut dyn BlockSource,
    sink: &mut dyn BlockSink,
    stop: &Stop,
    progress: &mut dyn FnMut(Progress),
) -> Result<Written, BlockError> {
    let mut pump = Pump::new(sink, stop, progress);
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
        let written = receiver.iter().try_for_each(|block| pump.write(block));
        drop(receiver);
        let read = match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        written?;
        read
    })?;
    pump.finish()
}

/// What puts blocks into a sink, and tells how far it is.
struct Pump<'a> {
    sink: &'a mut dyn BlockSink,
    stop: &'a Stop,
    progress: &'a mut dyn FnMut(Progress),
    /// Bytes of data so far.
    copied: u64,
}

impl<'a> Pump<'a> {
    fn new(sink: &'a mut dyn BlockSink, stop: &'a Stop, progress: &'a mut dyn FnMut(Progress)) -> Self {
        Pump {
            sink,
            stop,
            progress,
            copied: 0,
        }
    }

    fn write(&mut self, block: Block) -> Result<(), BlockError> {
        if self.stop.requested() {
            return Err(BlockError::stopped());
        }
        let position = block.offset + block.length();
        if let Content::Data(bytes) = &block.content {
            self.copied += bytes.len() as u64;
        }
        if let Err(error) = self.sink.write(block) {
            self.stop.request(WRITER_FAILED);
            return Err(error);
        }
        let copied = self.copied;
        (self.progress)(Progress { position, copied });
        Ok(())
    }

    fn finish(self) -> Result<Written, BlockError> {
        if self.stop.requested() {
            return Err(BlockError::stopped());
        }
        self.sink.finish()
    }
}

/// Whether an error only tells that somebody asked to stop: another one is the reason then.
pub fn is_stop(error: &BlockError) -> bool {
    error.kind == BlockErrorKind::Stopped
}
