//! The pump: takes blocks from a source and puts them into a sink, with a bounded pool of buffers between them.

use std::sync::mpsc::sync_channel;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use crate::model::block::{Block, BlockError, BlockErrorKind, BlockSink, BlockSource, Content, Written};
use crate::model::buffer::BufferPool;
use crate::model::stop::{Stop, StopReason};

/// Bytes of one read request: a huge page, so that a buffer for it is one. Shorter ones take more of our processor time.
pub const REQUEST: usize = 2 << 20;

/// Buffers per disk: what is in flight, what waits for the writer, and what is being written.
pub const BUFFERS: usize = 16;

/// How long the other side may keep silent before it is given up.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// How often one looks how far the copying of an export is.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

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

/// Copies an export, and finishes the sink. One thread takes the export's answers, hashes them while they are in its processor's cache, and hands them
/// on to the image, which is written behind it: that thread waits for nothing but a buffer. This one tells the progress, so whoever is told may take
/// his time: what he has missed meanwhile is not told to him later.
///
/// `stop` is asked for when the sink fails: whoever shares it (the other disks of a job) ends as well.
///
/// # Errors
/// Whatever the source or the sink met first; a stop.
pub fn copy_export(
    source: &mut dyn BlockSource,
    sink: &mut dyn BlockSink,
    stop: &Stop,
    progress: &mut dyn FnMut(Progress),
) -> Result<Written, BlockError> {
    let board = Board::default();
    thread::scope(|scope| {
        let copier = scope.spawn(|| -> Result<Written, BlockError> {
            // However the copying ends, a panic included, nobody waits for its progress any longer.
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

/// Copies a chain of images, and finishes the sink. The images are read and hashed on a thread of their own.
///
/// `stop` must be the one that the source looks at too: it is asked for when the sink fails, so that a waiting reader ends.
///
/// # Errors
/// Whatever the source or the sink met first; a stop.
pub fn copy_chain(
    source: &mut dyn BlockSource,
    sink: &mut dyn BlockSink,
    stop: &Stop,
    progress: &mut dyn FnMut(Progress),
) -> Result<Written, BlockError> {
    let mut pump = Pump::new(sink, stop);
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

/// What a thread came to; its panic goes on here.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(end) => end,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Where one thread writes down how far it is, over what stood there, and another one looks now and then: to be woken for each block would take
/// more time than a short block itself.
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

    /// What is new at the next look; `None` when nothing will come any more.
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

/// Tells the end when it goes.
struct EndOfBoard<'a>(&'a Board);

impl Drop for EndOfBoard<'_> {
    fn drop(&mut self) {
        self.0.news().ended = true;
        self.0.ended.notify_one();
    }
}

/// What puts blocks into a sink, and knows how far it is.
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
    use crate::model::block::{CLUSTER, ImageFile};

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
    }

    impl BlockSource for Scattered {
        fn size(&self) -> u64 {
            BLOCKS * TABLE_SPAN
        }

        fn next_block(&mut self) -> Result<Option<Block>, BlockError> {
            if self.given == BLOCKS {
                return Ok(None);
            }
            // Whatever may be on its way is taken in before the disk writes anything.
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

    /// Blocks of zeroes; opens its gate when the last one was taken.
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

    /// Takes everything.
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
        let mut told = Vec::new();
        let copied = copy_export(&mut source, &mut Void, &Stop::default(), &mut |at| {
            assert!(gate.pass(), "the copying waits for who is told of it");
            told.push(at.position);
        });
        copied.expect("it ends");
        assert_eq!(told.last(), Some(&(BLOCKS * CLUSTER)));
        assert!(told.len() <= 2, "what was missed is not told later: {told:?}");
    }

    #[test]
    #[should_panic(expected = "the source panics")]
    fn a_panic_of_the_source_is_passed_on_and_leaves_nobody_waiting() {
        let mut source = Zeroes::new();
        source.panics = true;
        let _ = copy_export(&mut source, &mut Void, &Stop::default(), &mut |_| {});
    }
}
