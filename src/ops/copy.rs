//! Copies blocks from a source to a sink, with a bounded pool of buffers between them.

use std::sync::mpsc::sync_channel;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use crate::model::block::{Block, BlockError, BlockErrorKind, BlockSink, BlockSource, Content, Written};
use crate::model::buffer::BufferPool;
use crate::model::stop::{Stop, StopReason};

/// The size of a buffer in bytes: exactly one huge page.
pub const BUFFER_SIZE: usize = 2 << 20;

/// The number of buffers per disk: for requests in flight, for blocks that wait for the writer, and
/// for the block that is being written.
pub const BUFFERS: usize = 16;

/// How long the NBD server of a disk may take to answer one request.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The interval at which the progress of an export is read.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Creates the buffers for one disk.
pub fn pool() -> BufferPool {
    BufferPool::new(BUFFERS, BUFFER_SIZE)
}

/// The progress of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The offset on the disk, in bytes, before which everything is done.
    pub position: u64,
    /// The number of bytes of data copied so far.
    pub copied: u64,
}

/// Copies an export and finishes the sink.
///
/// A separate thread receives the data and passes it to the sink. The calling thread reports the
/// progress. If reporting takes long, intermediate values are missed, but the copy is not delayed.
///
/// `stop` is requested if the sink fails, which also ends the other work that shares this stop,
/// such as the copies of the job's other disks.
///
/// # Errors
/// The first error of the source or the sink, or a request to stop.
pub fn copy_export(
    source: &mut dyn BlockSource,
    sink: &mut dyn BlockSink,
    stop: &Stop,
    progress: &mut dyn FnMut(Progress),
) -> Result<Written, BlockError> {
    let board = Board::default();
    thread::scope(|scope| {
        let copier = scope.spawn(|| -> Result<Written, BlockError> {
            // However the copy ends, even by a panic, the calling thread must not wait any longer.
            let _end = EndOfBoard(&board);
            let mut pump = Pump::new(sink, stop);
            while let Some(block) = source.next_block()? {
                board.put(pump.write(block)?);
            }
            pump.finish()
        });
        while let Some(at) = board.take() {
            progress(at);
        }
        join(copier)
    })
}

/// Copies a chain of images and finishes the sink. A separate thread reads and hashes the images.
///
/// `stop` must be the one that the source checks. It is requested if the sink fails, so that a
/// waiting reader ends.
///
/// # Errors
/// The first error of the source or the sink, or a request to stop.
pub(crate) fn copy_chain(
    source: &mut dyn BlockSource,
    sink: &mut dyn BlockSink,
    stop: &Stop,
    progress: &mut dyn FnMut(Progress),
) -> Result<Written, BlockError> {
    let mut pump = Pump::new(sink, stop);
    // The pool of buffers bounds the data. Blocks of zeroes need no buffer, so the channel has a
    // bound of its own.
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
        let written = receiver
            .iter()
            .try_for_each(|block| pump.write(block).map(&mut *progress));
        drop(receiver);
        let read = join(reader);
        written?;
        read
    })?;
    pump.finish()
}

/// Returns the result of a thread, or continues its panic.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(end) => end,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The latest progress of one thread, which another thread reads now and then. Waking that thread
/// for each block would take longer than a short block itself.
#[derive(Default)]
struct Board {
    news: Mutex<News>,
    ended: Condvar,
}

#[derive(Default)]
struct News {
    at: Option<Progress>,
    ended: bool,
}

impl Board {
    fn put(&self, at: Progress) {
        self.news().at = Some(at);
    }

    /// Waits for new progress; `None` when the copy has ended.
    fn take(&self) -> Option<Progress> {
        loop {
            let goes_on = |news: &mut News| !news.ended;
            let waited = self
                .ended
                .wait_timeout_while(self.news(), PROGRESS_EVERY, goes_on);
            let (mut news, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let at = news.at.take();
            if at.is_some() || news.ended {
                return at;
            }
        }
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks the copy as ended when it is dropped.
struct EndOfBoard<'a>(&'a Board);

impl Drop for EndOfBoard<'_> {
    fn drop(&mut self) {
        self.0.news().ended = true;
        self.0.ended.notify_one();
    }
}

/// Writes blocks into a sink and counts its progress.
struct Pump<'a> {
    sink: &'a mut dyn BlockSink,
    stop: &'a Stop,
    /// Bytes of data so far.
    copied: u64,
}

impl<'a> Pump<'a> {
    fn new(sink: &'a mut dyn BlockSink, stop: &'a Stop) -> Self {
        Pump {
            sink,
            stop,
            copied: 0,
        }
    }

    fn write(&mut self, block: Block) -> Result<Progress, BlockError> {
        if self.stop.requested() {
            return Err(BlockError::stopped());
        }
        let position = block.offset + block.length();
        if let Content::Data(bytes) = &block.content {
            self.copied += bytes.len() as u64;
        }
        if let Err(error) = self.sink.write(block) {
            self.stop.request(StopReason::OtherPartFailed);
            return Err(error);
        }
        Ok(Progress {
            position,
            copied: self.copied,
        })
    }

    fn finish(self) -> Result<Written, BlockError> {
        if self.stop.requested() {
            return Err(BlockError::stopped());
        }
        self.sink.finish()
    }
}

/// Whether an error only says that a stop was requested.
pub(crate) fn is_stop(error: &BlockError) -> bool {
    error.kind == BlockErrorKind::Stopped
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Condvar, Mutex};

    use super::*;
    use crate::image::qcow2::{Qcow2Options, Qcow2Writer};
    use crate::model::block::{CLUSTER, ImageFile};

    /// Bytes of the disk that one table of the image maps.
    const TABLE_SPAN: u64 = 512 << 20;
    const BLOCKS: u64 = 40;

    /// Closed until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<bool>, Condvar)>);

    impl Gate {
        fn open(&self) {
            *self.0.0.lock().expect("no test panics with it") = true;
            self.0.1.notify_all();
        }

        /// Waits until it is opened, at most a minute; returns whether it was.
        fn pass(&self) -> bool {
            let (is_open, turned) = &*self.0;
            let shut = is_open.lock().expect("no test panics with it");
            let minute = Duration::from_secs(60);
            let waited = turned.wait_timeout_while(shut, minute, |open| !*open);
            *waited.expect("no test panics with it").0
        }
    }

    /// An image file that writes nothing until its gate is opened.
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

    /// Clusters of data so far apart that each one has its own table in the image.
    struct Scattered {
        pool: BufferPool,
        given: u64,
        disk: Gate,
    }

    impl BlockSource for Scattered {
        fn size(&self) -> u64 {
            BLOCKS * TABLE_SPAN
        }

        fn next_block(&mut self) -> Result<Option<Block>, BlockError> {
            if self.given == BLOCKS {
                return Ok(None);
            }
            // Every buffer is handed out before the image file writes anything.
            if self.given == BUFFERS as u64 {
                self.disk.open();
            }
            let taken = self.pool.take_within(Duration::from_secs(60));
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
    fn stalled_target_does_not_delay_server_replies() {
        let disk = Gate::default();
        let mut source = Scattered {
            pool: pool(),
            given: 0,
            disk: disk.clone(),
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
        let copied = copy_export(&mut source, &mut sink, &stop, &mut |_| {});
        assert_eq!(copied.expect("it goes on").data_bytes, BLOCKS * CLUSTER);
    }

    /// Blocks of zeroes; opens its gate after the last one.
    struct Zeroes {
        given: u64,
        all_given: Gate,
        panics: bool,
    }

    impl Zeroes {
        fn new() -> Zeroes {
            Zeroes {
                given: 0,
                all_given: Gate::default(),
                panics: false,
            }
        }
    }

    impl BlockSource for Zeroes {
        fn size(&self) -> u64 {
            BLOCKS * CLUSTER
        }

        fn next_block(&mut self) -> Result<Option<Block>, BlockError> {
            assert!(!self.panics, "the source panics");
            if self.given == BLOCKS {
                self.all_given.open();
                return Ok(None);
            }
            self.given += 1;
            Ok(Some(Block {
                offset: (self.given - 1) * CLUSTER,
                content: Content::Zero(CLUSTER),
            }))
        }
    }

    /// A sink that drops everything.
    struct Void;

    impl BlockSink for Void {
        fn write(&mut self, _: Block) -> Result<(), BlockError> {
            Ok(())
        }

        fn finish(&mut self) -> Result<Written, BlockError> {
            Ok(Written::default())
        }
    }

    #[test]
    fn slow_progress_reporter_delays_no_reply_and_sees_the_end() {
        let mut source = Zeroes::new();
        let gate = source.all_given.clone();
        let mut positions = Vec::new();
        let copied = copy_export(&mut source, &mut Void, &Stop::default(), &mut |at| {
            assert!(gate.pass(), "the copy waits for the receiver of its progress");
            positions.push(at.position);
        });
        copied.expect("it ends");
        assert_eq!(positions.last(), Some(&(BLOCKS * CLUSTER)));
        assert!(
            positions.len() <= 2,
            "missed values are not reported later: {positions:?}"
        );
    }

    #[test]
    #[should_panic(expected = "the source panics")]
    fn a_panic_of_the_source_is_passed_on_and_leaves_nobody_waiting() {
        let mut source = Zeroes::new();
        source.panics = true;
        let _ = copy_export(&mut source, &mut Void, &Stop::default(), &mut |_| {});
    }
}
