//! A request that waits for its reply, and what of the reply has come.

use super::coverage::Coverage;
use super::error::{Error, Result};
use super::wire::ErrorChunk;
use crate::model::buffer::Buffer;
use crate::model::extents::Run;

/// Most runs of one context that are kept of a reply: as many as QEMU sends. What is beyond them is asked for again.
pub(super) const MAX_RUNS: usize = 131_072;
/// Most error chunks that one reply may bring. Real servers send one.
const MAX_ERRORS: u32 = 1024;

/// What was asked for.
#[derive(Debug)]
pub(super) enum Asked {
    /// Bytes, into the beginning of this buffer.
    Read(Buffer),
    /// The status of a range in every negotiated context.
    Status,
}

/// A request that was answered in full.
#[derive(Debug)]
pub(super) struct Answer {
    /// The request's.
    pub cookie: u64,
    /// Where it began, in bytes.
    pub offset: u64,
    /// Its length, in bytes.
    pub length: u32,
    /// What came.
    pub body: Body,
    /// Set when the server answered with an error; then the body is worth nothing.
    pub error: Option<ErrorChunk>,
}

/// What an answer brings.
#[derive(Debug)]
pub(super) enum Body {
    /// The buffer of the read, filled.
    Read(Buffer),
    /// For every context, in the order of the negotiation, its runs from the request's offset on; they may end before the request does, and never behind it.
    Status(Vec<Vec<Run>>),
}

impl Answer {
    /// The body, or the server's error.
    pub fn into_body(self) -> Result<Body> {
        let command = match &self.body {
            Body::Read(_) => "read",
            Body::Status(_) => "tell the status of",
        };
        match self.error {
            None => Ok(self.body),
            Some(error) => Err(Error::Server {
                command,
                offset: error.offset.unwrap_or(self.offset),
                length: self.length,
                errno: error.errno,
                message: error.message,
            }),
        }
    }
}

/// A request that waits for its reply or the rest of it.
#[derive(Debug)]
pub(super) struct OpenRequest {
    /// The request's.
    pub cookie: u64,
    offset: u64,
    length: u32,
    parts: Parts,
    error: Option<ErrorChunk>,
    errors: u32,
}

/// What of a reply has come.
#[derive(Debug)]
enum Parts {
    Read { buffer: Buffer, coverage: Coverage },
    Status(Vec<StatusParts>),
}

/// What one context has told.
#[derive(Debug, Default)]
struct StatusParts {
    runs: Vec<Run>,
    /// How much of the request the runs cover, in bytes.
    told: u64,
    /// The server has begun this context's chunk, which comes once.
    begun: bool,
    /// Too many runs: what follows is left out.
    cut: bool,
}

impl OpenRequest {
    /// A request for `length` bytes at `offset`; a read's buffer has room for them. A status is told by so many contexts.
    pub fn new(cookie: u64, offset: u64, length: u32, asked: Asked, contexts: usize) -> Self {
        let parts = match asked {
            Asked::Read(buffer) => Parts::Read {
                buffer,
                coverage: Coverage::default(),
            },
            Asked::Status => Parts::Status((0..contexts).map(|_| StatusParts::default()).collect()),
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

    /// Whether it is a read.
    pub fn is_read(&self) -> bool {
        matches!(self.parts, Parts::Read { .. })
    }

    /// The server sends `length` bytes from `offset` of the disk on. Returns where these belong in the buffer.
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
                "a chunk of {length} bytes at offset {offset} answers a read of {} at {}",
                self.length, self.offset
            ))),
        }
    }

    /// The server sends all of a read at once.
    pub fn cover_whole(&mut self) -> Result<(usize, usize)> {
        self.cover(self.offset, self.length)
    }

    /// A part of a read's buffer, which [`Self::cover`] has named.
    pub fn room(&mut self, start: usize, end: usize) -> Option<&mut [u8]> {
        match &mut self.parts {
            Parts::Read { buffer, .. } => Some(&mut buffer[start..end]),
            Parts::Status(_) => None,
        }
    }

    /// A context's descriptors begin; they come once.
    pub fn begin_context(&mut self, context: usize) -> Result<()> {
        match &mut self.parts {
            Parts::Status(contexts) if !contexts[context].begun => {
                contexts[context].begun = true;
                Ok(())
            }
            _ => Err(Error::protocol(
                "the status of one context comes twice in one reply",
            )),
        }
    }

    /// One descriptor of a context. The last one may reach beyond the request, and more may follow: only what was asked for is kept.
    pub fn tell(&mut self, context: usize, length: u32, flags: u32) {
        let Parts::Status(contexts) = &mut self.parts else {
            return;
        };
        let parts = &mut contexts[context];
        let length = u64::from(length).min(u64::from(self.length) - parts.told);
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
        parts.told += length;
    }

    /// The server tells of an error; the first one counts.
    pub fn fail(&mut self, error: ErrorChunk) -> Result<()> {
        self.error.get_or_insert(error);
        self.errors += 1;
        if self.errors > MAX_ERRORS {
            return Err(Error::protocol(format!(
                "one reply brings over {MAX_ERRORS} errors"
            )));
        }
        Ok(())
    }

    /// The reply is over: it has to be whole, or an error.
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
                        "the reply to a read of {length} bytes at offset {offset} is not whole"
                    )));
                }
                Body::Read(buffer)
            }
            Parts::Status(contexts) => {
                if error.is_none() && contexts.iter().any(|context| !context.begun) {
                    return Err(Error::protocol(format!(
                        "the status at offset {offset} lacks a context that was agreed upon"
                    )));
                }
                Body::Status(contexts.into_iter().map(|context| context.runs).collect())
            }
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
