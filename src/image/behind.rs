//! A thread that writes while the next bytes are being read and hashed.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::{Error, Result};
use crate::model::block::{CLUSTER, ImageFile};
use crate::model::buffer::Buffer;

/// Pieces that may wait for the disk. The buffers in which they lie are the real bound: who hands over pieces of a pool's buffers never waits here, but
/// for the next buffer, and so can always take what a server has on its way.
const QUEUE: usize = 1024;
/// Pieces of this length are written from where they are; shorter ones are gathered first. In bytes.
const DIRECT: usize = 256 * 1024;
/// How much is gathered, in bytes.
const GATHERED: usize = 1024 * 1024;

/// A part of a buffer on its way to a place in the file. The buffer goes home when its last piece is written, or gathered.
///
/// Pieces that follow each other in the file may have any length; wherever the next one does not, and at the end, the file is at a multiple of
/// [`CLUSTER`].
pub(super) struct Piece {
    pub(super) buffer: Arc<Buffer>,
    pub(super) range: Range<usize>,
    pub(super) offset: u64,
}

/// An image file with a thread of its own that writes pieces in the order they were sent, and short ones together.
/// Dropped without [`WriteBehind::finish`] it writes no more than it has begun.
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
    /// `path` is for messages only.
    pub(super) fn start(file: Box<dyn ImageFile>, path: &Path) -> Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let cancelled = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&cancelled);
        let thread = Builder::new()
            .name("image-writer".into())
            .spawn(move || write_all(file, &receiver, &seen))
            .map_err(|error| Error::io("start a thread for", path, 0, error))?;
        Ok(WriteBehind {
            path: path.to_owned(),
            sender: Some(sender),
            thread: Some(thread),
            cancelled,
        })
    }

    /// Hands over a piece. Waits while more are on their way than the buffers of one copy can hold. A failure of an earlier piece is told here.
    pub(super) fn send(&mut self, piece: Piece) -> Result<()> {
        let sent = self
            .sender
            .as_ref()
            .is_some_and(|sender| sender.send(piece).is_ok());
        if sent {
            return Ok(());
        }
        // The thread hangs up only when it has failed.
        self.join()?;
        Err(Error::Closed {
            path: self.path.clone(),
        })
    }

    /// Waits until everything is written, and brings it to stable storage.
    pub(super) fn finish(mut self) -> Result<()> {
        match self.join()? {
            Some(mut file) => file
                .sync()
                .map_err(|error| Error::io("sync", &self.path, 0, error)),
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
            Err(_) => Err(Error::io(
                "write",
                &self.path,
                0,
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
    file: Box<dyn ImageFile>,
    pieces: &Receiver<Piece>,
    cancelled: &AtomicBool,
) -> std::result::Result<Box<dyn ImageFile>, Failure> {
    let mut gathering = Gathering {
        file,
        gathered: Buffer::alone(GATHERED),
        length: 0,
        offset: 0,
    };
    for piece in pieces {
        if cancelled.load(Ordering::SeqCst) {
            return Ok(gathering.file);
        }
        gathering.write(&piece.buffer[piece.range], piece.offset)?;
    }
    gathering.flush()?;
    Ok(gathering.file)
}

/// A file, with what was gathered for it.
struct Gathering {
    file: Box<dyn ImageFile>,
    gathered: Buffer,
    /// How many bytes are gathered.
    length: usize,
    /// Where in the file they begin.
    offset: u64,
}

impl Gathering {
    fn write(&mut self, bytes: &[u8], offset: u64) -> std::result::Result<(), Failure> {
        if offset != self.offset + self.length as u64 {
            self.flush()?;
            self.offset = offset;
        }
        // What is written from where it is begins and ends with a cluster.
        let is_direct = bytes.len() >= DIRECT && offset.is_multiple_of(CLUSTER);
        let direct = if is_direct {
            bytes.len() - bytes.len() % CLUSTER as usize
        } else {
            0
        };
        let (direct, mut rest) = bytes.split_at(direct);
        if !direct.is_empty() {
            self.flush()?;
            self.write_now(direct)?;
        }
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(GATHERED - self.length));
            self.gathered[self.length..self.length + now.len()].copy_from_slice(now);
            self.length += now.len();
            if self.length == GATHERED {
                self.flush()?;
            }
            rest = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> std::result::Result<(), Failure> {
        let (offset, bytes) = (self.offset, &self.gathered[..self.length]);
        if !bytes.is_empty() {
            let written = self.file.write_at(bytes, offset);
            written.map_err(|error| Failure { offset, error })?;
        }
        self.offset += self.length as u64;
        self.length = 0;
        Ok(())
    }

    /// Writes behind what was flushed.
    fn write_now(&mut self, bytes: &[u8]) -> std::result::Result<(), Failure> {
        let offset = self.offset;
        let written = self.file.write_at(bytes, offset);
        written.map_err(|error| Failure { offset, error })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

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

    /// The `n`-th of pieces that are written from where they are.
    fn long(n: u64) -> Piece {
        piece(n * DIRECT as u64, DIRECT)
    }

    #[test]
    fn pieces_arrive_in_order_and_the_sync_comes_last() {
        let (mut behind, writes) = start(u64::MAX);
        for n in 0..10 {
            behind.send(long(n)).expect("it writes");
        }
        behind.finish().expect("it finishes");
        let writes = writes.lock().expect("no test panics with it");
        let long = (0..10).map(|n| (n * DIRECT as u64, DIRECT));
        let expected: Vec<_> = long.chain([(u64::MAX, 0)]).collect();
        assert_eq!(*writes, expected);
    }

    #[test]
    fn short_pieces_that_follow_each_other_are_written_together() {
        let cluster = CLUSTER as usize;
        let (mut behind, writes) = start(u64::MAX);
        // A cluster, the halves of one, a long piece with half a cluster at its end, the other half; and one at another place.
        let lengths = [
            cluster,
            cluster / 2,
            cluster / 2,
            DIRECT + cluster / 2,
            cluster / 2,
        ];
        let mut end = CLUSTER;
        for length in lengths {
            behind.send(piece(end, length)).expect("it writes");
            end += length as u64;
        }
        behind.send(piece(0, cluster)).expect("it writes");
        behind.finish().expect("it finishes");
        let direct_at = 3 * CLUSTER;
        let expected = [
            (CLUSTER, 2 * cluster),
            (direct_at, DIRECT),
            (direct_at + DIRECT as u64, cluster),
            (0, cluster),
            (u64::MAX, 0),
        ];
        assert_eq!(*writes.lock().expect("no test panics with it"), expected);
    }

    #[test]
    fn what_is_gathered_is_bounded() {
        let (mut behind, writes) = start(u64::MAX);
        let cluster = CLUSTER as usize;
        for n in 0..40 {
            behind.send(piece(n * CLUSTER, cluster)).expect("it writes");
        }
        behind.finish().expect("it finishes");
        let expected = [
            (0, GATHERED),
            (GATHERED as u64, GATHERED),
            (2 * GATHERED as u64, 8 * cluster),
            (u64::MAX, 0),
        ];
        assert_eq!(*writes.lock().expect("no test panics with it"), expected);
    }

    #[test]
    fn a_failed_write_is_told_with_its_offset() {
        let (mut behind, _) = start(2 * DIRECT as u64);
        let failed = (0..100_000).find_map(|n| behind.send(long(n)).err());
        match failed {
            Some(Error::Io { offset, source, .. }) => {
                assert_eq!(
                    (offset, source.kind()),
                    (2 * DIRECT as u64, io::ErrorKind::StorageFull)
                );
            }
            other => panic!("expected the write's error, got {other:?}"),
        }
        assert!(matches!(behind.send(long(0)), Err(Error::Closed { .. })));
    }

    #[test]
    fn a_failure_of_the_last_write_is_told_by_the_finish() {
        for length in [4096, DIRECT] {
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
        behind.send(long(0)).expect("it writes");
        drop(behind);
        assert!(
            !writes
                .lock()
                .expect("no test panics with it")
                .contains(&(u64::MAX, 0))
        );
    }
}
