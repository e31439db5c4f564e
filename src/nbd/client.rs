//! A client of one export: the handshake, its results, and single requests that wait for their
//! answers.

use std::path::Path;

use super::error::{Error, Result};
use super::negotiate::{Context, Export, negotiate};
use super::open_request::Body;
use super::options::BlockSizes;
use super::socket::Socket;
use super::transmit::Connection;
use super::wire;
use crate::model::buffer::Buffer;
use crate::model::extents::Run;
use crate::model::stop::WaitLimit;

/// The longest buffer of zeroes, in bytes, for a server that cannot make zeroes by itself.
const ZEROES: u32 = 1 << 20;

/// The longest range that one request makes zero, in bytes: slow storage must finish it before the
/// deadline.
const LONGEST_ZEROES: u64 = 128 << 20;

/// Cuts a range into pieces of at most `longest` bytes: offset and length of each.
fn pieces(offset: u64, length: u64, longest: u64) -> impl Iterator<Item = (u64, u64)> {
    let starts = (0..length).step_by(usize::try_from(longest).unwrap_or(usize::MAX));
    starts.map(move |start| (offset + start, longest.min(length - start)))
}

/// A connection to one export, after the handshake. Dropping it disconnects.
#[derive(Debug)]
pub struct Client {
    pub(super) connection: Connection,
    pub(super) export: Export,
}

impl Client {
    /// Connects to a unix socket and opens `export`, with those of `contexts` that the server
    /// grants.
    ///
    /// # Errors
    /// [`Error::Connect`] if no server listens, [`Error::Refused`] if the server refuses the
    /// export, [`Error::Unsupported`] or [`Error::Protocol`] if its answers cannot be used; others
    /// if the connection fails, the server is silent until the deadline, or a stop was requested.
    pub fn connect_unix(path: &Path, export: &str, contexts: &[&str], limit: &WaitLimit) -> Result<Self> {
        let socket = Socket::connect(path, limit)?;
        Self::begin(socket, export, contexts)
    }

    /// Opens `export` over a stream that is already connected.
    #[cfg(test)]
    pub(crate) fn from_stream(
        stream: std::os::unix::net::UnixStream,
        export: &str,
        contexts: &[&str],
        limit: &WaitLimit,
    ) -> Result<Self> {
        let socket = Socket::from_stream(stream, limit)?;
        Self::begin(socket, export, contexts)
    }

    fn begin(mut socket: Socket, export: &str, contexts: &[&str]) -> Result<Self> {
        let export = negotiate(&mut socket, export, contexts)?;
        Ok(Client {
            connection: Connection::new(socket, &export),
            export,
        })
    }

    /// Size of the export, in bytes.
    pub fn size(&self) -> u64 {
        self.export.size
    }

    /// Whether the export is read-only.
    pub(crate) fn read_only(&self) -> bool {
        self.export.flags & wire::FLAG_READ_ONLY != 0
    }

    /// Whether the server sends structured replies.
    pub fn structured(&self) -> bool {
        self.export.structured
    }

    /// The limits of requests.
    pub(crate) fn block_sizes(&self) -> BlockSizes {
        self.export.block_sizes
    }

    /// The metadata contexts that the server granted.
    pub fn contexts(&self) -> &[Context] {
        &self.export.contexts
    }

    /// The longest read that may be sent, in bytes: a multiple of the server's minimum block size.
    pub(crate) fn longest_read(&self) -> u32 {
        let BlockSizes { minimum, maximum, .. } = self.export.block_sizes;
        let longest = maximum.min(wire::MAX_READ);
        longest - longest % minimum
    }

    /// Reads `into.len()` bytes at `offset`. Both are multiples of the server's minimum block size.
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.check(offset, into.len() as u64)?;
        let longest = self.longest_read();
        let mut buffer = Buffer::alone(into.len().min(longest as usize));
        let mut offset = offset;
        for piece in into.chunks_mut(longest as usize) {
            self.connection.read(0, offset, piece.len() as u32, buffer);
            let Body::Read(filled) = self.answered()? else {
                return Err(Error::protocol(
                    "it answers a read request with another kind of reply",
                ));
            };
            piece.copy_from_slice(&filled[..piece.len()]);
            buffer = filled;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Returns the status of a range of at most 4 GiB - 1 byte in every context.
    ///
    /// Both ends of the range are multiples of the server's minimum block size. The result has the
    /// runs of each context from `offset` on, in the order of [`Self::contexts`]: at least one run
    /// each. The runs never extend past the range, but they often end before it.
    pub fn block_status(&mut self, offset: u64, length: u64) -> Result<Vec<Vec<Run>>> {
        self.check(offset, length)?;
        let bad = |what: &str| Error::BadRequest {
            offset,
            length,
            what: what.to_owned(),
        };
        let short = u32::try_from(length).map_err(|_| bad("the length does not fit into 32 bits"))?;
        if short == 0 || self.export.contexts.is_empty() {
            return Err(bad("the range is empty, or no metadata context was granted"));
        }
        self.connection.status(0, offset, short);
        match self.answered()? {
            Body::Status(contexts) => Ok(contexts),
            _ => Err(Error::protocol(
                "it answers a status request with another kind of reply",
            )),
        }
    }

    /// Writes bytes at `offset`, in pieces that the server accepts. Both ends are multiples of the
    /// server's minimum block size.
    ///
    /// A later [`Self::flush`] makes the bytes durable.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len() as u64)?;
        let mut offset = offset;
        for piece in bytes.chunks(self.longest_read() as usize) {
            let length = piece.len() as u32;
            self.connection
                .change(0, (wire::CMD_WRITE, "write"), offset, length, piece);
            self.done()?;
            offset += u64::from(length);
        }
        Ok(())
    }

    /// Makes a range read as zero, without sending zeroes if the server can do that by itself. Both
    /// ends are multiples of the server's minimum block size.
    pub fn write_zeroes(&mut self, offset: u64, length: u64) -> Result<()> {
        self.check(offset, length)?;
        if self.export.flags & wire::FLAG_SEND_WRITE_ZEROES == 0 {
            let zeroes = vec![0; self.longest_read().min(ZEROES) as usize];
            return pieces(offset, length, zeroes.len() as u64)
                .try_for_each(|(offset, length)| self.write(offset, &zeroes[..length as usize]));
        }
        for (offset, length) in pieces(offset, length, LONGEST_ZEROES) {
            let command = (wire::CMD_WRITE_ZEROES, "write zeroes to");
            self.connection.change(0, command, offset, length as u32, &[]);
            self.done()?;
        }
        Ok(())
    }

    /// Brings all finished writes to stable storage, as far as the server can do that.
    pub fn flush(&mut self) -> Result<()> {
        if self.export.flags & wire::FLAG_SEND_FLUSH == 0 {
            return Ok(());
        }
        self.connection.change(0, (wire::CMD_FLUSH, "flush"), 0, 0, &[]);
        self.done()
    }

    /// Waits until the only request in flight, a change, was carried out.
    fn done(&mut self) -> Result<()> {
        match self.answered()? {
            Body::Done(_) => Ok(()),
            _ => Err(Error::protocol("it answers a write request with content")),
        }
    }

    /// Waits for the answer to the only request in flight.
    fn answered(&mut self) -> Result<Body> {
        loop {
            if let Some(answer) = self.connection.answer() {
                return answer.into_body();
            }
            // Looking for an answer may have repeated a request.
            self.connection.flush()?;
            if self.connection.in_flight() > 0 {
                self.connection.receive()?;
            }
        }
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        let minimum = u64::from(self.export.block_sizes.minimum);
        let what = if offset
            .checked_add(length)
            .is_none_or(|end| end > self.export.size)
        {
            format!("the export ends at {}", self.export.size)
        } else if !offset.is_multiple_of(minimum) || !length.is_multiple_of(minimum) {
            format!("offset and length must be multiples of {minimum}")
        } else {
            return Ok(());
        };
        Err(Error::BadRequest { offset, length, what })
    }
}
