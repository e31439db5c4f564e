//! A socket whose waits end at a deadline and notice a request to stop.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, recv, recvmsg, send, socket_with,
};

use super::error::{Error, Result};
use crate::model::stop::WaitLimit;
use crate::wait;

/// How long a wait lasts before it checks for a stop request again.
const SLICE: Duration = Duration::from_millis(100);

/// Waits until the socket has one of `events`.
#[allow(clippy::disallowed_methods, reason = "it waits for a socket")]
fn wait_for(limit: &WaitLimit, socket: BorrowedFd<'_>, events: PollFlags, phase: &'static str) -> Result<()> {
    let begin = Instant::now();
    let mut polled = [PollFd::from_borrowed_fd(socket, events)];
    loop {
        if limit.stop.requested() {
            return Err(Error::Stopped);
        }
        let left = limit.deadline.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Err(Error::TimedOut {
                phase,
                deadline: limit.deadline,
            });
        }
        match poll(&mut polled, Some(&timespec(left.min(SLICE)))) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => {
                return Err(Error::Io {
                    phase,
                    source: errno.into(),
                });
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().cast_signed(),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// The operations that the handshake needs.
pub(super) trait Channel {
    /// Sends all of `bytes`.
    fn send(&mut self, bytes: &[u8]) -> Result<()>;

    /// Fills `bytes`.
    fn receive_exact(&mut self, bytes: &mut [u8]) -> Result<()>;
}

/// A connected unix stream socket. It never blocks for longer than [`SLICE`] without a check for a
/// stop request.
#[derive(Debug)]
pub(super) struct Socket {
    stream: UnixStream,
    limit: WaitLimit,
    phase: &'static str,
}

impl Socket {
    /// Connects to a listening unix socket.
    pub fn connect(path: &Path, limit: &WaitLimit) -> Result<Self> {
        let failed = |source: io::Error| Error::Connect {
            path: path.to_owned(),
            source,
        };
        let address = SocketAddrUnix::new(path).map_err(|errno| failed(errno.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| failed(errno.into()))?;
        let begin = Instant::now();
        loop {
            if limit.stop.requested() {
                return Err(Error::Stopped);
            }
            match connect(&socket, &address) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                // The server's queue of connections is full, and nothing signals when it has room
                // again.
                Err(Errno::AGAIN) if begin.elapsed() < limit.deadline => {
                    wait::pause(SLICE / 5);
                }
                Err(Errno::AGAIN) => {
                    return Err(Error::TimedOut {
                        phase: "the connection attempt",
                        deadline: limit.deadline,
                    });
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Self::from_stream(socket.into(), limit)
    }

    /// Wraps a connected stream.
    pub(crate) fn from_stream(stream: UnixStream, limit: &WaitLimit) -> Result<Self> {
        let phase = "the handshake";
        // Calls that must not wait at all use `DONTWAIT`.
        stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(SLICE)))
            .map_err(|source| Error::Io { phase, source })?;
        Ok(Socket {
            stream,
            limit: limit.clone(),
            phase,
        })
    }

    /// Records that the handshake is over.
    pub(crate) fn enter_transmission(&mut self) {
        self.phase = "the transmission";
    }

    /// Receives the bytes that have arrived, at least one, or `None` if none have.
    pub(crate) fn receive_now(&self, buffers: &mut [IoSliceMut<'_>]) -> Result<Option<usize>> {
        loop {
            let received = recvmsg(
                &self.stream,
                buffers,
                &mut RecvAncillaryBuffer::default(),
                RecvFlags::DONTWAIT,
            );
            match received.map(|message| message.bytes) {
                Err(Errno::INTR) => {}
                received => return self.received(received),
            }
        }
    }

    /// Receives until `buffer` is full, for at most [`SLICE`]. Returns the number of bytes, or
    /// `None` if none arrived.
    ///
    /// A socket's queue holds some 200 KiB, so a long answer comes in many pieces. Letting the
    /// kernel gather them saves most of the calls.
    pub(crate) fn receive_filling(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match recv(&self.stream, buffer, RecvFlags::WAITALL) {
            Err(Errno::INTR) => Ok(None),
            received => self.received(received.map(|(count, _)| count)),
        }
    }

    fn received(&self, received: rustix::io::Result<usize>) -> Result<Option<usize>> {
        match received {
            Ok(0) => Err(Error::Disconnected { phase: self.phase }),
            Ok(count) => Ok(Some(count)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(self.broken(errno.into())),
        }
    }

    /// Waits until bytes can be received.
    pub(crate) fn wait_readable(&self) -> Result<()> {
        wait_for(&self.limit, self.as_fd(), PollFlags::IN, self.phase)
    }

    /// Sends `bytes` as far as there is room for them now. For a goodbye that may get lost.
    pub(crate) fn try_send(&self, bytes: &[u8]) {
        let _ = send(&self.stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }

    fn broken(&self, source: io::Error) -> Error {
        let phase = self.phase;
        match source.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Error::Disconnected { phase },
            _ => Error::Io { phase, source },
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Channel for Socket {
    fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match send(&self.stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    wait_for(&self.limit, self.as_fd(), PollFlags::OUT, self.phase)?;
                }
                Err(errno) => return Err(self.broken(errno.into())),
            }
        }
        Ok(())
    }

    fn receive_exact(&mut self, bytes: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.receive_now(&mut [IoSliceMut::new(&mut bytes[filled..])])? {
                Some(count) => filled += count,
                None => self.wait_readable()?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::block::BlockErrorKind;
    use crate::model::stop::{Stop, StopReason};
    use std::io::Write;

    fn limit(milliseconds: u64) -> WaitLimit {
        WaitLimit {
            deadline: Duration::from_millis(milliseconds),
            stop: Stop::default(),
        }
    }

    #[test]
    fn a_missing_socket_is_a_lost_server() {
        let error =
            Socket::connect(Path::new("/nonexistent/nbd.sock"), &limit(1000)).expect_err("nobody there");
        assert_eq!(error.kind(), BlockErrorKind::Lost);
        assert_eq!(
            error.to_string(),
            "cannot connect to the NBD server at /nonexistent/nbd.sock"
        );
    }

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_refused() {
        let path = format!("/tmp/{}", "x".repeat(120));
        let error = Socket::connect(Path::new(&path), &limit(1000)).expect_err("too long");
        assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    }

    #[test]
    fn a_full_send_queue_is_waited_for_until_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let mut socket = Socket::from_stream(ours, &limit(50)).expect("a socket");
        let error = socket.send(&vec![0; 16 << 20]).expect_err("nobody reads");
        assert!(
            matches!(
                error,
                Error::TimedOut {
                    phase: "the handshake",
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn a_stop_ends_the_waiting() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let limit = limit(60_000);
        let mut socket = Socket::from_stream(ours, &limit).expect("a socket");
        let waiting = std::thread::spawn(move || socket.receive_exact(&mut [0]));
        limit.stop.request(StopReason::Interrupted);
        assert!(matches!(waiting.join().expect("no panic"), Err(Error::Stopped)));
    }

    #[test]
    fn what_comes_in_pieces_is_gathered() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let socket = Socket::from_stream(ours, &limit(60_000)).expect("a socket");
        let server = std::thread::spawn(move || {
            (0..100u8).try_for_each(|piece| (&theirs).write_all(&[piece; 10_000]))
        });
        let mut bytes = vec![0; 1_000_000];
        let mut filled = 0;
        while filled < bytes.len() {
            let received = socket.receive_filling(&mut bytes[filled..]).expect("it is there");
            filled += received.unwrap_or(0);
        }
        server.join().expect("no panic").expect("all was taken");
        for (piece, bytes) in (0..).zip(bytes.chunks(10_000)) {
            assert!(bytes.iter().all(|&byte| byte == piece), "piece {piece}");
        }
    }

    #[test]
    fn pause_returns_received_bytes_then_none_then_the_end() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let socket = Socket::from_stream(ours, &limit(60_000)).expect("a socket");
        (&theirs).write_all(&[7; 1000]).expect("there is room");
        let mut bytes = [0; 4096];
        assert_eq!(socket.receive_filling(&mut bytes).expect("some"), Some(1000));
        assert_eq!(socket.receive_filling(&mut bytes).expect("a pause"), None);
        drop(theirs);
        let error = socket.receive_filling(&mut bytes).expect_err("the end");
        assert!(matches!(error, Error::Disconnected { .. }), "{error:?}");
    }

    #[test]
    fn a_server_that_does_not_accept_is_given_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).expect("an address")).expect("bound");
        rustix::net::listen(&socket, 0).expect("listening");
        let _first = Socket::connect(&path, &limit(50)).expect("fits into the queue");
        let error = Socket::connect(&path, &limit(50)).expect_err("the queue is full");
        assert!(
            matches!(
                error,
                Error::TimedOut {
                    phase: "the connection attempt",
                    ..
                }
            ),
            "{error:?}"
        );
    }
}
