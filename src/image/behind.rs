//! A thread that writes to an image while the next bytes are being read and hashed.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::{Error, Result};
use crate::model::block::ImageFile;
use crate::model::buffer::Buffer;

/// The largest number of pieces that wait for the disk. The buffers that hold them are the real
/// limit: a caller that sends pieces of a pool's buffers waits for the next buffer, never here. So
/// the caller can always receive the bytes that a server has sent.
const QUEUE: usize = 1024;

/// A part of a buffer, and its offset in the file. The buffer returns to its pool after its last
/// piece was written.
pub(super) struct Piece {
    pub(super) buffer: Arc<Buffer>,
    pub(super) range: Range<usize>,
    pub(super) offset: u64,
}

/// An image file with its own thread, which writes pieces in the order they were sent.
///
/// Dropping it without [`WriteBehind::finish`] cancels the pieces whose writing has not begun.
pub(super) struct WriteBehind {
    path: PathBuf,
    sender: Option<SyncSender<Piece>>,
    thread: Option<JoinHandle<std::result::Result<Box<dyn ImageFile>, Failure>>>,
    cancelled: Arc<AtomicBool>,
}

struct Failure {
    offset: u64,
    error: io::Error,
}

impl WriteBehind {
    /// Starts the thread. `path` is for messages only.
    pub(super) fn start(file: Box<dyn ImageFile>, path: &Path) -> Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let cancelled = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&cancelled);
        let thread = Builder::new()
            .name("image-writer".into())
            .spawn(move || write_all(file, &receiver, &seen))
            .map_err(|error| Error::of_file("start a thread for", path, error))?;
        Ok(WriteBehind {
            path: path.to_owned(),
            sender: Some(sender),
            thread: Some(thread),
            cancelled,
        })
    }

    /// Queues a piece, and waits while the queue is full. Reports a failure of an earlier piece.
    pub(super) fn send(&mut self, piece: Piece) -> Result<()> {
        let sent = self
            .sender
            .as_ref()
            .is_some_and(|sender| sender.send(piece).is_ok());
        if sent {
            return Ok(());
        }
        // The thread closes the channel only after a failure.
        self.join()?;
        Err(Error::Closed {
            path: self.path.clone(),
        })
    }

    /// Waits until everything is written, then syncs the file.
    pub(super) fn finish(mut self) -> Result<()> {
        match self.join()? {
            Some(mut file) => file
                .sync()
                .map_err(|error| Error::of_file("sync", &self.path, error)),
            None => Err(Error::Closed {
                path: self.path.clone(),
            }),
        }
    }

    fn join(&mut self) -> Result<Option<Box<dyn ImageFile>>> {
        self.sender = None;
        let Some(thread) = self.thread.take() else {
            return Ok(None);
        };
        match thread.join() {
            Ok(Ok(file)) => Ok(Some(file)),
            Ok(Err(Failure { offset, error })) => Err(Error::io("write", &self.path, offset, error)),
            Err(_) => Err(Error::of_file(
                "write",
                &self.path,
                io::Error::other("the writing thread panicked"),
            )),
        }
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::SeqCst);
        let _ = self.join();
    }
}

impl fmt::Debug for WriteBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteBehind({})", self.path.display())
    }
}

fn write_all(
    mut file: Box<dyn ImageFile>,
    pieces: &Receiver<Piece>,
    cancelled: &AtomicBool,
) -> std::result::Result<Box<dyn ImageFile>, Failure> {
    for piece in pieces {
        if cancelled.load(Ordering::SeqCst) {
            break;
        }
        let offset = piece.offset;
        let written = file.write_at(&piece.buffer[piece.range], offset);
        written.map_err(|error| Failure { offset, error })?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::block::CLUSTER;
    use std::sync::Mutex;

    /// Length of a piece, in bytes.
    const LENGTH: usize = 256 * 1024;

    /// Offset and length of each write.
    type Writes = Arc<Mutex<Vec<(u64, usize)>>>;

    struct Recorder {
        writes: Writes,
        fail_from: u64,
    }

    impl ImageFile for Recorder {
        fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
            if offset >= self.fail_from {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            self.writes
                .lock()
                .expect("no test panics with it")
                .push((offset, bytes.len()));
            Ok(())
        }

        fn set_len(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            self.writes
                .lock()
                .expect("no test panics with it")
                .push((u64::MAX, 0));
            Ok(())
        }
    }

    fn start(fail_from: u64) -> (WriteBehind, Writes) {
        let writes = Arc::new(Mutex::new(Vec::new()));
        let file = Recorder {
            writes: Arc::clone(&writes),
            fail_from,
        };
        (
            WriteBehind::start(Box::new(file), Path::new("x.qcow2")).expect("a thread"),
            writes,
        )
    }

    fn piece(offset: u64, length: usize) -> Piece {
        Piece {
            buffer: Arc::new(Buffer::alone(length)),
            range: 0..length,
            offset,
        }
    }

    /// The `n`-th of consecutive pieces.
    fn nth(n: u64) -> Piece {
        piece(n * LENGTH as u64, LENGTH)
    }

    #[test]
    fn pieces_arrive_in_order_and_the_sync_comes_last() {
        let (mut behind, writes) = start(u64::MAX);
        for n in 0..10 {
            behind.send(nth(n)).expect("it writes");
        }
        behind.finish().expect("it finishes");
        let writes = writes.lock().expect("no test panics with it");
        let pieces = (0..10).map(|n| (n * LENGTH as u64, LENGTH));
        let expected: Vec<_> = pieces.chain([(u64::MAX, 0)]).collect();
        assert_eq!(*writes, expected);
    }

    #[test]
    fn failed_write_is_reported_with_its_offset() {
        let (mut behind, _) = start(2 * LENGTH as u64);
        let failed = (0..100_000).find_map(|n| behind.send(nth(n)).err());
        match failed {
            Some(Error::Io { offset, source, .. }) => {
                assert_eq!(
                    (offset, source.kind()),
                    (2 * LENGTH as u64, io::ErrorKind::StorageFull)
                );
            }
            other => panic!("expected the write's error, got {other:?}"),
        }
        assert!(matches!(behind.send(nth(0)), Err(Error::Closed { .. })));
    }

    #[test]
    fn failure_of_the_last_write_is_reported_at_the_end() {
        for length in [4096, LENGTH] {
            let (mut behind, writes) = start(4096);
            behind
                .send(piece(CLUSTER, length))
                .expect("nobody has looked yet");
            assert!(matches!(behind.finish(), Err(Error::Io { offset: CLUSTER, .. })));
            assert!(
                writes.lock().expect("no test panics with it").is_empty(),
                "a failed file is not synced"
            );
        }
    }

    #[test]
    fn dropped_unfinished_it_does_not_sync() {
        let (mut behind, writes) = start(u64::MAX);
        behind.send(nth(0)).expect("it writes");
        drop(behind);
        assert!(
            !writes
                .lock()
                .expect("no test panics with it")
                .contains(&(u64::MAX, 0))
        );
    }
}
