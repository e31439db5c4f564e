//! The pump: one thread takes blocks from a source, one puts them into a sink, a bounded pool of buffers between them.

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

/// Copies everything that the source has, and finishes the sink. The source is read on a thread of its own: an export's answers are taken as they come,
/// whatever the sink, or whoever is told of the progress, waits for.
///
/// `stop` must be the one that the source looks at too: it is asked for when the sink fails, so that a waiting reader ends. Whoever else
/// shares it (the other disks of a job) ends as well.
pub fn copy(
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Condvar, Mutex};

    use super::*;
    use crate::image::qcow2::{Qcow2Options, Qcow2Writer};
    use crate::model::block::ImageFile;

    /// Bytes of the disk that one table of the image maps.
    const TABLE_SPAN: u64 = 512 << 20;
    const BLOCKS: u64 = 40;

    /// Shut until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<bool>, Condvar)>);

    impl Gate {
        fn open(&self) {
            *self.0.0.lock().expect("no test panics with it") = true;
            self.0.1.notify_all();
        }

        /// Whether it was opened within a minute.
        fn pass(&self) -> bool {
            let (is_open, turned) = &*self.0;
            let shut = is_open.lock().expect("no test panics with it");
            let minute = Duration::from_secs(60);
            let waited = turned.wait_timeout_while(shut, minute, |open| !*open);
            *waited.expect("no test panics with it").0
        }
    }

    /// A disk that writes nothing until somebody opens it.
    struct Stuck(Gate);

    impl ImageFile for Stuck {
        fn write_at(&mut self, _: &[u8], _: u64) -> io::Result<()> {
            match self.0.pass() {
                true => Ok(()),
                false => Err(io::ErrorKind::TimedOut.into()),
            }
        }

        fn set_len(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Clusters of data so far apart that each has a table of its own.
    struct Scattered {
        pool: BufferPool,
        given: u64,
        disk: Gate,
        /// How many blocks were taken before the disk wrote anything.
        taken_at_first: Option<u64>,
    }

    impl BlockSource for Scattered {
        fn size(&self) -> u64 {
            BLOCKS * TABLE_SPAN
        }

        fn next_block(&mut self) -> Result<Option<Block>, BlockError> {
            if self.given == BLOCKS {
                return Ok(None);
            }
            let taken = self.pool.try_take().or_else(|| {
                self.taken_at_first.get_or_insert(self.given);
                self.disk.open();
                self.pool.take_within(Duration::from_secs(60))
            });
            let mut buffer = taken.expect("the disk gives them back");
            buffer.set_len(CLUSTER as usize);
            buffer.fill(1);
            let offset = self.given * TABLE_SPAN;
            self.given += 1;
            Ok(Some(Block {
                offset,
                content: Content::Data(buffer),
            }))
        }
    }

    #[test]
    fn a_disk_that_stands_still_keeps_no_answer_of_the_server_waiting() {
        let disk = Gate::default();
        let mut source = Scattered {
            pool: pool(),
            given: 0,
            disk: disk.clone(),
            taken_at_first: None,
        };
        let stop = Stop::default();
        let options = Qcow2Options {
            path: "stuck.qcow2".into(),
            size: source.size(),
            backing: None,
            detect_zeroes: true,
            stop: stop.clone(),
        };
        let mut sink = Qcow2Writer::new(Box::new(Stuck(disk)), options).expect("it begins");
        let copied = copy(&mut source, &mut sink, &stop, &mut |_| {});
        assert_eq!(copied.expect("it goes on").data_bytes, BLOCKS * CLUSTER);
        let taken = source
            .taken_at_first
            .expect("a disk that writes nothing fills the buffers");
        assert!(
            taken >= BUFFERS as u64,
            "{taken}: everything for which there was a buffer"
        );
    }
}
