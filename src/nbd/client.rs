//! A client of one export: the handshake, what was agreed upon, and single requests that wait for their answer.

use std::os::unix::net::UnixStream;
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

/// A connection to one export, past its handshake. Dropping it disconnects.
#[derive(Debug)]
pub struct Client {
    pub(super) connection: Connection,
    pub(super) export: Export,
}

impl Client {
    /// Connects to a unix socket and opens `export`, with as many of `contexts` as the server grants.
    ///
    /// # Errors
    /// [`Error::Connect`] when nobody listens, [`Error::Refused`] when there is no such export, [`Error::Unsupported`] for servers that do not speak the
    /// fixed newstyle handshake, and everything that waiting for a server brings.
    pub fn connect_unix(path: &Path, export: &str, contexts: &[&str], limit: &WaitLimit) -> Result<Self> {
        let socket = Socket::connect(path, limit)?;
        Self::begin(socket, export, contexts)
    }

    /// The same over a stream that is connected already.
    pub fn from_stream(
        stream: UnixStream,
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

    /// Whether the export cannot be written.
    pub fn read_only(&self) -> bool {
        self.export.flags & wire::FLAG_READ_ONLY != 0
    }

    /// Whether the server sends structured replies.
    pub fn structured(&self) -> bool {
        self.export.structured
    }

    /// What requests may look like.
    pub fn block_sizes(&self) -> BlockSizes {
        self.export.block_sizes
    }

    /// The contexts that the server granted.
    pub fn contexts(&self) -> &[Context] {
        &self.export.contexts
    }

    /// The longest read that may be sent, in bytes: a multiple of the server's minimum block size.
    pub fn longest_read(&self) -> u32 {
        let BlockSizes { minimum, maximum, .. } = self.export.block_sizes;
        let longest = maximum.min(wire::MAX_READ);
        longest - longest % minimum
    }

    /// Reads `into.len()` bytes at `offset`, both multiples of the server's minimum block size.
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.check(offset, into.len() as u64)?;
        let longest = self.longest_read();
        let mut buffer = Buffer::alone(into.len().min(longest as usize));
        let mut offset = offset;
        for piece in into.chunks_mut(longest as usize) {
            self.connection.read(0, offset, piece.len() as u32, buffer);
            let Body::Read(filled) = self.answered()? else {
                return Err(Error::protocol("a read is answered with a status"));
            };
            piece.copy_from_slice(&filled[..piece.len()]);
            buffer = filled;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Asks for the status of a range of at most 4 GiB - 1, both ends multiples of the server's minimum block size. Gives the runs of every context of [`Self::contexts`], in that order, from
    /// `offset` on: at least one each, never reaching behind the range, but often ending before it.
    pub fn block_status(&mut self, offset: u64, length: u64) -> Result<Vec<Vec<Run>>> {
        self.check(offset, length)?;
        let bad = |what: &str| Error::BadRequest {
            offset,
            length,
            what: what.to_owned(),
        };
        let short = u32::try_from(length).map_err(|_| bad("a status request has 32 bits for its length"))?;
        if short == 0 || self.export.contexts.is_empty() {
            return Err(bad("there is nothing to tell a status of"));
        }
        self.connection.status(0, offset, short);
        match self.answered()? {
            Body::Status(contexts) => Ok(contexts),
            Body::Read(_) => Err(Error::protocol("a status is answered with data")),
        }
    }

    /// Waits for the answer to the only request.
    fn answered(&mut self) -> Result<Body> {
        loop {
            self.connection.flush()?;
            if let Some(answer) = self.connection.answer() {
                return answer.into_body();
            }
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
            format!("both must be multiples of {minimum}")
        } else {
            return Ok(());
        };
        Err(Error::BadRequest { offset, length, what })
    }
}
