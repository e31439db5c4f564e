//! A client's connection. Every wait notices the end of the server, and has a deadline unless the
//! client may be idle.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown};

use crate::model::stop::Stop;
use crate::nbd::error::{Error, Result};
use crate::nbd::socket::Channel;

/// How long a wait lasts before it checks for the end of the server again.
const SLICE: Duration = Duration::from_millis(100);

/// The phase of a connection, for errors.
const PHASE: &str = "a connection of its server";

/// A client's connection, shared by the threads that serve it.
#[derive(Debug)]
pub(super) struct Peer {
    socket: OwnedFd,
    stop: Stop,
}

impl Peer {
    /// Takes over a connected stream socket that does not block.
    pub(super) fn new(socket: OwnedFd, stop: Stop) -> Peer {
        Peer { socket, stop }
    }

    /// Waits for an event until this moment; without one, until the server ends.
    #[allow(clippy::disallowed_methods, reason = "it waits for a socket")]
    fn wait(&self, events: PollFlags, until: Option<Instant>) -> Result<()> {
        let mut polled = [PollFd::from_borrowed_fd(self.socket.as_fd(), events)];
        loop {
            if self.stop.requested() {
                return Err(Error::Stopped);
            }
            let left = until.map_or(SLICE, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(Error::TimedOut {
                    phase: PHASE,
                    deadline: Duration::ZERO,
                });
            }
            let left = left.min(SLICE);
            let time = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut polled, Some(&time)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Waits until the client sends something, for as long as the server runs.
    pub(super) fn wait_for_bytes(&self) -> Result<()> {
        self.wait(PollFlags::IN, None)
    }

    /// Fills `bytes`. Fails if that takes longer than until `until`.
    pub(super) fn receive(&self, bytes: &mut [u8], until: Instant) -> Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            match recv(&self.socket, &mut bytes[filled..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Error::Disconnected { phase: PHASE }),
                Ok((_, count)) => filled += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, Some(until))?,
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }

    /// Sends all of `head` and `body`. Fails if the client accepts nothing for `patience`.
    pub(super) fn send(&self, head: &[u8], body: &[u8], patience: Duration) -> Result<()> {
        let (mut head, mut body) = (head, body);
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        while !head.is_empty() || !body.is_empty() {
            let sent = match head.is_empty() {
                true => send(&self.socket, body, flags),
                false => {
                    let parts = [IoSlice::new(head), IoSlice::new(body)];
                    sendmsg(&self.socket, &parts, &mut SendAncillaryBuffer::default(), flags)
                }
            };
            match sent {
                Ok(count) => {
                    let of_head = count.min(head.len());
                    head = &head[of_head..];
                    body = &body[count - of_head..];
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, Some(Instant::now() + patience))?,
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }

    /// Whether the server is about to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.requested()
    }

    /// Ends the connection in both directions. All waits of other threads for the client return.
    pub(super) fn hang_up(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

fn failed(errno: Errno) -> Error {
    Error::Io {
        phase: PHASE,
        source: errno.into(),
    }
}

/// A connection during its handshake, which has to be over at some moment.
pub(super) struct Greeting<'a> {
    pub(super) peer: &'a Peer,
    pub(super) until: Instant,
}

impl Channel for Greeting<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        self.peer.send(bytes, &[], left)
    }

    fn receive_exact(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.peer.receive(bytes, self.until)
    }
}
