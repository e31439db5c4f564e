//! One connection in transmission: requests go out, several at a time, and answers come back in the server's order.

use std::io::IoSliceMut;

use super::error::{Result, errno};
use super::negotiate::Export;
use super::open_request::{Answer, Asked, Body};
use super::reply::Decoder;
use super::socket::{Channel, Socket};
use super::wire::{self, Request};
use crate::model::buffer::Buffer;

/// Bytes that are received beyond the payload at hand: the heads of the next replies come along with the end of a payload in one call, and little payload is copied.
const AHEAD: usize = 8 * 1024;

/// Payload of so many bytes is worth a call of its own that waits for all of it.
const LONG: usize = 128 * 1024;

/// A connection after the handshake.
///
/// Requests are queued by [`Self::read`] and [`Self::status`] and leave with [`Self::flush`]. They are so small (28 bytes, few in flight) that
/// they fit the socket's queue even when the server reads none of them until we have read its replies: both sides never wait for each other.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    decoder: Decoder,
    outgoing: Vec<u8>,
    ahead: Box<[u8; AHEAD]>,
    /// Reads ask for answers in one piece.
    unfragmented: bool,
}

impl Connection {
    /// The handshake on `socket` has led to `export`.
    pub fn new(mut socket: Socket, export: &Export) -> Self {
        socket.enter_transmission();
        let contexts = export.contexts.iter().map(|context| context.id).collect();
        Connection {
            socket,
            decoder: Decoder::new(export.structured, contexts),
            outgoing: Vec::new(),
            ahead: Box::new([0; AHEAD]),
            unfragmented: export.structured && export.flags & wire::FLAG_SEND_DF != 0,
        }
    }

    /// How many requests are on their way.
    pub fn in_flight(&self) -> usize {
        self.decoder.pending()
    }

    /// Queues a read of `length` bytes into the beginning of `buffer`, which has room for them. `cookie` is below 2^63 and not in use.
    pub fn read(&mut self, cookie: u64, offset: u64, length: u32, buffer: Buffer) {
        self.queue(
            cookie,
            wire::CMD_READ,
            self.unfragmented,
            offset,
            length,
            Asked::Read(buffer),
        );
    }

    /// Queues a question for the status of a range. `cookie` as in [`Self::read`].
    pub fn status(&mut self, cookie: u64, offset: u64, length: u32) {
        self.queue(
            cookie,
            wire::CMD_BLOCK_STATUS,
            false,
            offset,
            length,
            Asked::Status,
        );
    }

    /// The lowest bit of the cookie on the wire remembers whether the answer was to come in one piece.
    fn queue(
        &mut self,
        cookie: u64,
        command: u16,
        unfragmented: bool,
        offset: u64,
        length: u32,
        asked: Asked,
    ) {
        let request = Request {
            flags: if unfragmented { wire::CMD_FLAG_DF } else { 0 },
            command,
            cookie: cookie << 1 | u64::from(unfragmented),
            offset,
            length,
        };
        self.outgoing.extend(request.encode());
        self.decoder.expect(request.cookie, offset, length, asked);
    }

    /// Sends what is queued.
    pub fn flush(&mut self) -> Result<()> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        let sent = self.socket.send(&self.outgoing);
        self.outgoing.clear();
        sent
    }

    /// Receives what is there, once; `false` when nothing is there now.
    pub fn receive_now(&mut self) -> Result<bool> {
        let ahead = IoSliceMut::new(&mut self.ahead[..]);
        let (direct, received) = match self.decoder.direct() {
            Some(room) => {
                let direct = room.len();
                (
                    direct,
                    self.socket.receive_now(&mut [IoSliceMut::new(room), ahead])?,
                )
            }
            None => (0, self.socket.receive_now(&mut [ahead])?),
        };
        let Some(count) = received else {
            return Ok(false);
        };
        self.decoder.advance(count.min(direct))?;
        self.decoder.feed(&self.ahead[..count.saturating_sub(direct)])?;
        Ok(true)
    }

    /// Receives the payload that an answer still lacks, if it is long, and waits for it a while; `false` when nothing has come or nothing long is due.
    pub fn receive_long(&mut self) -> Result<bool> {
        let Some(room) = self.decoder.direct().filter(|room| room.len() >= LONG) else {
            return Ok(false);
        };
        let Some(count) = self.socket.receive_filling(room)? else {
            return Ok(false);
        };
        self.decoder.advance(count)?;
        Ok(true)
    }

    /// Waits until there is something to receive.
    pub fn wait_readable(&self) -> Result<()> {
        self.socket.wait_readable()
    }

    /// Waits until something was received.
    pub fn receive(&mut self) -> Result<()> {
        while !self.receive_now()? {
            self.socket.wait_readable()?;
        }
        Ok(())
    }

    /// The next complete answer. A read that the server finds too long to answer in one piece is sent again without that wish.
    pub fn answer(&mut self) -> Option<Answer> {
        while let Some(mut answer) = self.decoder.answer() {
            let unfragmented = answer.cookie & 1 != 0;
            answer.cookie >>= 1;
            let too_long = answer
                .error
                .as_ref()
                .is_some_and(|error| error.errno == errno::EOVERFLOW);
            match answer.body {
                Body::Read(buffer) if unfragmented && too_long => {
                    self.unfragmented = false;
                    self.read(answer.cookie, answer.offset, answer.length, buffer);
                }
                body => return Some(Answer { body, ..answer }),
            }
        }
        None
    }
}

impl Drop for Connection {
    /// Says goodbye, so that the server need not take the end for a failure.
    fn drop(&mut self) {
        let goodbye = Request {
            flags: 0,
            command: wire::CMD_DISC,
            cookie: u64::MAX,
            offset: 0,
            length: 0,
        };
        self.socket.try_send(&goodbye.encode());
    }
}
