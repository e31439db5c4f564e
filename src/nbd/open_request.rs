//! A request that waits for its reply, and the parts of the reply that have arrived.

use super::coverage::Coverage;
use super::error::{Error, Result};
use super::wire::ErrorChunk;
use crate::model::buffer::Buffer;
use crate::model::extents::Run;

/// The largest number of runs of one context that are kept from a reply: as many as QEMU sends. The
/// rest of the range is requested again.
pub(super) const MAX_RUNS: usize = 131_072;
/// The largest number of error chunks in one reply. Real servers send one.
const MAX_ERRORS: u32 = 1024;

/// The kind of a request.
#[derive(Debug)]
pub(super) enum Asked {
    /// Bytes, into the beginning of this buffer.
    Read(Buffer),
    /// The status of a range in every negotiated context.
    Status,
    /// Only success, because the request changes the export. The word names the request in errors.
    Done(&'static str),
}

/// A request with its complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// The cookie of the request.
    pub cookie: u64,
    /// Start of the request, in bytes.
    pub offset: u64,
    /// Length of the request, in bytes.
    pub length: u32,
    /// The content.
    pub body: Body,
    /// The server's error. If it is set, the body is meaningless.
    pub error: Option<ErrorChunk>,
}

/// The content of an answer.
#[derive(Debug)]
pub(super) enum Body {
    /// The buffer of the read, filled.
    Read(Buffer),
    /// The runs of each context from the request's offset on, in the order of the negotiation. They
    /// may end before the request does, but never extend past it.
    Status(Vec<Vec<Run>>),
    /// The request was carried out. The word names the request in errors.
    Done(&'static str),
}

impl Answer {
    /// Returns the body, or the server's error.
    pub(crate) fn into_body(self) -> Result<Body> {
        let command = match &self.body {
            Body::Read(_) => "read",
            Body::Status(_) => "report the status of",
            Body::Done(command) => command,
        };
        match self.error {
            None => Ok(self.body),
            Some(error) => Err(Error::Server {
                command,
                offset: self.offset,
                length: self.length,
                failed_at: error.offset,
                errno: error.errno,
                message: error.message,
            }),
        }
    }
}

/// A request whose reply is not complete yet.
#[derive(Debug)]
pub(super) struct OpenRequest {
    /// The cookie of the request.
    pub cookie: u64,
    offset: u64,
    length: u32,
    parts: Parts,
    error: Option<ErrorChunk>,
    errors: u32,
}

/// The parts of a reply that have arrived.
#[derive(Debug)]
enum Parts {
    Read { buffer: Buffer, coverage: Coverage },
    Status(Vec<StatusParts>),
    Done(&'static str),
}

/// The status from one context.
#[derive(Debug, Default)]
struct StatusParts {
    runs: Vec<Run>,
    /// The part of the request that the runs cover, in bytes.
    reported: u64,
    /// Whether this context's chunk, which comes once, has begun.
    begun: bool,
    /// Whether there were too many runs, so that later ones are dropped.
    cut: bool,
}

impl OpenRequest {
    /// Creates a request for `length` bytes at `offset`.
    ///
    /// The buffer of a read must have room for `length` bytes. `contexts` is the number of
    /// negotiated contexts, which is also the number of answers to a status request.
    pub fn new(cookie: u64, offset: u64, length: u32, asked: Asked, contexts: usize) -> Self {
        let parts = match asked {
            Asked::Read(buffer) => Parts::Read {
                buffer,
                coverage: Coverage::default(),
            },
            Asked::Status => Parts::Status((0..contexts).map(|_| StatusParts::default()).collect()),
            Asked::Done(command) => Parts::Done(command),
        };
        OpenRequest {
            cookie,
            offset,
            length,
            parts,
            error: None,
            errors: 0,
        }
    }

    /// Whether this is a read.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.parts, Parts::Read { .. })
    }

    /// Whether this is a request for the status of a range.
    pub(crate) fn is_status(&self) -> bool {
        matches!(self.parts, Parts::Status(_))
    }

    /// Whether its reply has no content.
    pub(crate) fn is_change(&self) -> bool {
        matches!(self.parts, Parts::Done(_))
    }

    /// Records that the server sends `length` bytes from `offset` of the disk on. Returns their
    /// start and end in the buffer.
    pub fn cover(&mut self, offset: u64, length: u32) -> Result<(usize, usize)> {
        let start = offset.checked_sub(self.offset);
        let end = start.and_then(|start| start.checked_add(u64::from(length)));
        match (start, end, &mut self.parts) {
            (Some(start), Some(end), Parts::Read { coverage, .. })
                if length > 0 && end <= u64::from(self.length) =>
            {
                coverage.add(start as usize, end as usize)?;
                Ok((start as usize, end as usize))
            }
            _ => Err(Error::protocol(format!(
                "a chunk of {length} bytes at offset {offset} is empty or lies outside the requested {} bytes at offset {}",
                self.length, self.offset
            ))),
        }
    }

    /// Records that the server sends a whole read at once.
    pub(crate) fn cover_whole(&mut self) -> Result<(usize, usize)> {
        self.cover(self.offset, self.length)
    }

    /// The part of a read's buffer between positions that [`Self::cover`] returned.
    pub fn room(&mut self, start: usize, end: usize) -> Option<&mut [u8]> {
        match &mut self.parts {
            Parts::Read { buffer, .. } => Some(&mut buffer[start..end]),
            Parts::Status(_) | Parts::Done(_) => None,
        }
    }

    /// Records that a context's descriptors begin, which may happen only once.
    pub(crate) fn begin_context(&mut self, context: usize) -> Result<()> {
        match &mut self.parts {
            Parts::Status(contexts) if !contexts[context].begun => {
                contexts[context].begun = true;
                Ok(())
            }
            _ => Err(Error::protocol(
                "one reply has two status chunks of the same context",
            )),
        }
    }

    /// Adds one descriptor of a context. The last one may extend past the request, and more may
    /// follow: only the requested range is kept.
    pub fn tell(&mut self, context: usize, length: u32, flags: u32) {
        let Parts::Status(contexts) = &mut self.parts else {
            return;
        };
        let parts = &mut contexts[context];
        let length = u64::from(length).min(u64::from(self.length) - parts.reported);
        if length == 0 || parts.cut {
            return;
        }
        let full = parts.runs.len() == MAX_RUNS;
        match parts.runs.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ if full => {
                parts.cut = true;
                return;
            }
            _ => parts.runs.push(Run { length, flags }),
        }
        parts.reported += length;
    }

    /// Records an error from the server; the first one counts.
    pub fn fail(&mut self, error: ErrorChunk) -> Result<()> {
        self.error.get_or_insert(error);
        self.errors += 1;
        if self.errors > MAX_ERRORS {
            return Err(Error::protocol(format!(
                "one reply has more than {MAX_ERRORS} errors"
            )));
        }
        Ok(())
    }

    /// Ends the reply, which must be complete unless it is an error.
    pub fn finish(self) -> Result<Answer> {
        let OpenRequest {
            cookie,
            offset,
            length,
            parts,
            error,
            ..
        } = self;
        let body = match parts {
            Parts::Read { buffer, coverage } => {
                if error.is_none() && !coverage.complete(length as usize) {
                    return Err(Error::protocol(format!(
                        "the reply to a read of {length} bytes at offset {offset} is incomplete"
                    )));
                }
                Body::Read(buffer)
            }
            Parts::Status(contexts) => {
                if error.is_none() && contexts.iter().any(|context| !context.begun) {
                    return Err(Error::protocol(format!(
                        "the status at offset {offset} lacks a negotiated context"
                    )));
                }
                Body::Status(contexts.into_iter().map(|context| context.runs).collect())
            }
            Parts::Done(command) => Body::Done(command),
        };
        Ok(Answer {
            cookie,
            offset,
            length,
            body,
            error,
        })
    }
}
