//! One connection in transmission: several requests are in flight, and answers come back in the
//! server's order.

use std::io::IoSliceMut;

use super::error::{Result, errno};
use super::negotiate::Export;
use super::open_request::{Answer, Asked, Body};
use super::reply::Decoder;
use super::socket::{Channel, Socket};
use super::wire::{self, Request};
use crate::model::buffer::Buffer;

/// How many bytes are received beyond the current payload. One call brings the end of a payload and
/// the heads of the next replies, and little payload is copied.
const AHEAD: usize = 8 * 1024;

/// Payload of at least this length, in bytes, gets a call of its own that waits for all of it.
const LONG: usize = 128 * 1024;

/// A connection after the handshake.
///
/// [`Self::read`] and [`Self::status`] queue requests, and [`Self::flush`] sends them. They are
/// small (28 bytes) and few are in flight. So all of them fit the socket's queue, even if the
/// server reads no request until the client has read the earlier replies. The two sides never wait
/// for each other.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    decoder: Decoder,
    outgoing: Vec<u8>,
    ahead: Box<[u8; AHEAD]>,
    /// Whether reads request an answer in one piece.
    unfragmented: bool,
}

impl Connection {
    /// Begins transmission after the handshake on `socket` has opened `export`.
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

    /// The number of requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.decoder.pending()
    }

    /// Queues a read of `length` bytes into the beginning of `buffer`, which has room for them.
    /// `cookie` is below 2^63 and not in use.
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

    /// Queues a status request for a range. `cookie` as in [`Self::read`].
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

    /// Queues a change of the export, and the bytes that belong to it. `cookie` as in
    /// [`Self::read`]; `name` is the verb of error messages.
    ///
    /// No other request may be in flight: a server that waits until its reply is read would never
    /// read a long payload.
    pub fn change(
        &mut self,
        cookie: u64,
        (command, name): (u16, &'static str),
        offset: u64,
        length: u32,
        payload: &[u8],
    ) {
        self.queue(cookie, command, false, offset, length, Asked::Done(name));
        self.outgoing.extend_from_slice(payload);
    }

    /// Queues a request. The lowest bit of the cookie on the wire records whether an answer in one
    /// piece was requested.
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

    /// Sends the queued requests.
    pub fn flush(&mut self) -> Result<()> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        let sent = self.socket.send(&self.outgoing);
        self.outgoing.clear();
        sent
    }

    /// Receives the bytes that have arrived, once. Returns `false` if none have.
    pub(crate) fn receive_now(&mut self) -> Result<bool> {
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

    /// Receives the missing payload of an answer if it is long, and waits for it briefly. Returns
    /// `false` if nothing arrived, or no long payload is due.
    pub(crate) fn receive_long(&mut self) -> Result<bool> {
        let Some(room) = self.decoder.direct().filter(|room| room.len() >= LONG) else {
            return Ok(false);
        };
        let Some(count) = self.socket.receive_filling(room)? else {
            return Ok(false);
        };
        self.decoder.advance(count)?;
        Ok(true)
    }

    /// Waits until bytes can be received.
    pub(crate) fn wait_readable(&self) -> Result<()> {
        self.socket.wait_readable()
    }

    /// Waits until bytes were received.
    pub(crate) fn receive(&mut self) -> Result<()> {
        while !self.receive_now()? {
            self.socket.wait_readable()?;
        }
        Ok(())
    }

    /// Takes the next complete answer. If the server finds a read too long for an answer in one
    /// piece, the read is queued again, for an answer in any number of pieces.
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
    /// Sends a goodbye, so that the server does not take the end for a failure.
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
