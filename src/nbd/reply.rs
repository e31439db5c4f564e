//! What comes back: takes the server's bytes apart and puts replies together. No I/O in here, so that any bytes can be tried on it.
//!
//! Replies come in any order, and the chunks of one reply between those of others. Payload of reads is received straight into the buffer of its
//! request: [`Decoder::direct`] tells where the next bytes belong.

use std::collections::VecDeque;

use super::coverage::Coverage;
use super::error::{Error, Result};
use super::wire::{self, Chunk, ErrorChunk};
use crate::model::buffer::Buffer;
use crate::model::extents::Run;

/// Most runs of one context that are kept of a reply: as many as QEMU sends. What is beyond them is asked for again.
const MAX_RUNS: usize = 131_072;

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
struct Pending {
    cookie: u64,
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

/// What the next bytes of the stream are. A `slot` is an index into the pending requests; none is removed while a stage names it.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Magic,
    Simple,
    ChunkHead,
    DataOffset {
        chunk: Chunk,
        slot: usize,
    },
    Data {
        slot: usize,
        position: usize,
        end: usize,
        done: bool,
    },
    Hole {
        chunk: Chunk,
        slot: usize,
    },
    ContextId {
        chunk: Chunk,
        slot: usize,
    },
    Descriptors {
        slot: usize,
        context: usize,
        left: u32,
        done: bool,
    },
    ErrorPayload {
        chunk: Chunk,
        slot: usize,
    },
}

/// Puts replies together out of the server's bytes.
#[derive(Debug)]
pub(super) struct Decoder {
    structured: bool,
    contexts: Vec<u32>,
    pending: Vec<Pending>,
    stage: Stage,
    /// The beginning of a message whose end has not come.
    partial: Vec<u8>,
    answers: VecDeque<Answer>,
}

impl Decoder {
    /// For a connection with these negotiated contexts.
    pub fn new(structured: bool, contexts: Vec<u32>) -> Self {
        Decoder {
            structured,
            contexts,
            pending: Vec::new(),
            stage: Stage::Magic,
            partial: Vec::new(),
            answers: VecDeque::new(),
        }
    }

    /// A request was sent. Its cookie is not in use, and a read's buffer has room for `length` bytes.
    pub fn expect(&mut self, cookie: u64, offset: u64, length: u32, asked: Asked) {
        let parts = match asked {
            Asked::Read(buffer) => Parts::Read {
                buffer,
                coverage: Coverage::default(),
            },
            Asked::Status => Parts::Status(self.contexts.iter().map(|_| StatusParts::default()).collect()),
        };
        self.pending.push(Pending {
            cookie,
            offset,
            length,
            parts,
            error: None,
            errors: 0,
        });
    }

    /// How many requests wait for their reply.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The next complete answer.
    pub fn answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    /// Where the next bytes belong, when they are payload of a read; after receiving some call [`Self::advance`].
    pub fn direct(&mut self) -> Option<&mut [u8]> {
        match self.stage {
            Stage::Data {
                slot, position, end, ..
            } => match &mut self.pending[slot].parts {
                Parts::Read { buffer, .. } => Some(&mut buffer[position..end]),
                Parts::Status(_) => None,
            },
            _ => None,
        }
    }

    /// `count` bytes were put where [`Self::direct`] told; at most as many as it had room for.
    pub fn advance(&mut self, count: usize) -> Result<()> {
        if let Stage::Data {
            slot,
            position,
            end,
            done,
        } = self.stage
        {
            let position = position + count;
            self.stage = Stage::Data {
                slot,
                position,
                end,
                done,
            };
            if position == end {
                self.chunk_ends(slot, done)?;
            }
        }
        Ok(())
    }

    /// Takes the next bytes of the stream. After an error the connection is of no more use.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if let Some(room) = self.direct() {
                let count = room.len().min(bytes.len());
                room[..count].copy_from_slice(&bytes[..count]);
                bytes = &bytes[count..];
                self.advance(count)?;
                continue;
            }
            let need = self.need() - self.partial.len();
            let Some((head, rest)) = bytes.split_at_checked(need) else {
                self.partial.extend_from_slice(bytes);
                return Ok(());
            };
            bytes = rest;
            if self.partial.is_empty() {
                self.step(head)?;
            } else {
                let mut message = std::mem::take(&mut self.partial);
                message.extend_from_slice(head);
                self.step(&message)?;
            }
        }
        Ok(())
    }

    /// How many bytes the current stage takes at once. Never 0.
    fn need(&self) -> usize {
        match self.stage {
            Stage::Magic => 4,
            Stage::Simple => 12,
            Stage::ChunkHead => 16,
            Stage::DataOffset { .. } | Stage::Descriptors { .. } => 8,
            Stage::Hole { .. } => 12,
            Stage::ContextId { .. } => 4,
            Stage::ErrorPayload { chunk, .. } => chunk.length as usize,
            Stage::Data { position, end, .. } => end - position,
        }
    }

    /// The bytes of one stage are there.
    fn step(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stage {
            Stage::Magic => self.magic(bytes),
            Stage::Simple => self.simple(bytes),
            Stage::ChunkHead => self.chunk_head(bytes),
            Stage::DataOffset { chunk, slot } => {
                let (position, end) = self.cover(slot, wire::parse_offset(bytes)?, chunk.length - 8)?;
                self.stage = Stage::Data {
                    slot,
                    position,
                    end,
                    done: chunk.done,
                };
                Ok(())
            }
            Stage::Hole { chunk, slot } => {
                let (offset, length) = wire::parse_hole(bytes)?;
                let (start, end) = self.cover(slot, offset, length)?;
                if let Parts::Read { buffer, .. } = &mut self.pending[slot].parts {
                    buffer[start..end].fill(0);
                }
                self.chunk_ends(slot, chunk.done)
            }
            Stage::ContextId { chunk, slot } => self.context_id(bytes, chunk, slot),
            Stage::Descriptors {
                slot,
                context,
                left,
                done,
            } => {
                self.descriptor(bytes, slot, context)?;
                if left > 8 {
                    self.stage = Stage::Descriptors {
                        slot,
                        context,
                        left: left - 8,
                        done,
                    };
                    return Ok(());
                }
                self.chunk_ends(slot, done)
            }
            Stage::ErrorPayload { chunk, slot } => {
                let error = wire::parse_error_chunk(chunk.kind, bytes)?;
                let pending = &mut self.pending[slot];
                pending.error.get_or_insert(error);
                pending.errors += 1;
                if pending.errors > MAX_ERRORS {
                    return Err(Error::protocol(format!(
                        "one reply brings over {MAX_ERRORS} errors"
                    )));
                }
                self.chunk_ends(slot, chunk.done)
            }
            // Payload goes through `direct` and `advance`.
            Stage::Data { .. } => Ok(()),
        }
    }

    fn magic(&mut self, bytes: &[u8]) -> Result<()> {
        self.stage = match wire::parse_context_id(bytes)? {
            wire::SIMPLE_REPLY_MAGIC => Stage::Simple,
            wire::STRUCTURED_REPLY_MAGIC if self.structured => Stage::ChunkHead,
            wire::STRUCTURED_REPLY_MAGIC => {
                return Err(Error::protocol(
                    "a structured reply although none were agreed upon",
                ));
            }
            magic => {
                return Err(Error::protocol(format!(
                    "a reply has the unknown magic {magic:#010x}"
                )));
            }
        };
        Ok(())
    }

    fn slot(&self, cookie: u64) -> Result<usize> {
        let found = self.pending.iter().position(|pending| pending.cookie == cookie);
        found.ok_or_else(|| Error::protocol(format!("a reply to request {cookie:#x}, which was not sent")))
    }

    fn simple(&mut self, bytes: &[u8]) -> Result<()> {
        let reply = wire::parse_simple_reply(bytes)?;
        let slot = self.slot(reply.cookie)?;
        let pending = &mut self.pending[slot];
        if reply.errno != 0 {
            pending.error = Some(ErrorChunk {
                errno: reply.errno,
                message: String::new(),
                offset: None,
            });
            return self.chunk_ends(slot, true);
        }
        match &mut pending.parts {
            Parts::Read { coverage, .. } if !self.structured => {
                let end = pending.length as usize;
                coverage.add(0, end)?;
                self.stage = Stage::Data {
                    slot,
                    position: 0,
                    end,
                    done: true,
                };
                Ok(())
            }
            _ => Err(Error::protocol(
                "a simple reply where only a structured one is allowed",
            )),
        }
    }

    fn chunk_head(&mut self, bytes: &[u8]) -> Result<()> {
        let chunk = wire::parse_chunk(bytes)?;
        let slot = self.slot(chunk.cookie)?;
        let is_read = matches!(self.pending[slot].parts, Parts::Read { .. });
        self.stage = match chunk.kind {
            wire::REPLY_NONE => return self.chunk_ends(slot, true),
            wire::REPLY_OFFSET_DATA if is_read => Stage::DataOffset { chunk, slot },
            wire::REPLY_OFFSET_HOLE if is_read => Stage::Hole { chunk, slot },
            wire::REPLY_BLOCK_STATUS if !is_read => Stage::ContextId { chunk, slot },
            kind if kind & wire::REPLY_ERROR_BIT != 0 => Stage::ErrorPayload { chunk, slot },
            kind => {
                return Err(Error::protocol(format!(
                    "a chunk of kind {kind} answers another command"
                )));
            }
        };
        Ok(())
    }

    /// A content chunk covers `length` bytes from `offset` on. Returns where these are in the request's buffer.
    fn cover(&mut self, slot: usize, offset: u64, length: u32) -> Result<(usize, usize)> {
        let pending = &mut self.pending[slot];
        let start = offset.checked_sub(pending.offset);
        let end = start.and_then(|start| start.checked_add(u64::from(length)));
        match (start, end, &mut pending.parts) {
            (Some(start), Some(end), Parts::Read { coverage, .. })
                if length > 0 && end <= u64::from(pending.length) =>
            {
                coverage.add(start as usize, end as usize)?;
                Ok((start as usize, end as usize))
            }
            _ => Err(Error::protocol(format!(
                "a chunk of {length} bytes at offset {offset} answers a read of {} at {}",
                pending.length, pending.offset
            ))),
        }
    }

    fn context_id(&mut self, bytes: &[u8], chunk: Chunk, slot: usize) -> Result<()> {
        let id = wire::parse_context_id(bytes)?;
        let Some(context) = self.contexts.iter().position(|known| *known == id) else {
            return Err(Error::protocol(format!(
                "the status of context {id}, which was not agreed upon"
            )));
        };
        if let Parts::Status(contexts) = &mut self.pending[slot].parts
            && std::mem::replace(&mut contexts[context].begun, true)
        {
            return Err(Error::protocol(format!(
                "the status of context {id} comes twice in one reply"
            )));
        }
        self.stage = Stage::Descriptors {
            slot,
            context,
            left: chunk.length - 4,
            done: chunk.done,
        };
        Ok(())
    }

    /// One descriptor of a status chunk. The last one may reach beyond the request, and more may follow: only what was asked for is kept.
    fn descriptor(&mut self, bytes: &[u8], slot: usize, context: usize) -> Result<()> {
        let (length, flags) = wire::parse_descriptor(bytes)?;
        let pending = &mut self.pending[slot];
        let Parts::Status(contexts) = &mut pending.parts else {
            return Ok(());
        };
        let parts = &mut contexts[context];
        let length = u64::from(length).min(u64::from(pending.length) - parts.told);
        if length == 0 || parts.cut {
            return Ok(());
        }
        let full = parts.runs.len() == MAX_RUNS;
        match parts.runs.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ if full => {
                parts.cut = true;
                return Ok(());
            }
            _ => parts.runs.push(Run { length, flags }),
        }
        parts.told += length;
        Ok(())
    }

    /// A chunk is over; with the last one its request is answered.
    fn chunk_ends(&mut self, slot: usize, done: bool) -> Result<()> {
        self.stage = Stage::Magic;
        if !done {
            return Ok(());
        }
        let Pending {
            cookie,
            offset,
            length,
            parts,
            error,
            ..
        } = self.pending.swap_remove(slot);
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
        self.answers.push_back(Answer {
            cookie,
            offset,
            length,
            body,
            error,
        });
        Ok(())
    }
}

/// Feeds `bytes`, cut into pieces of `piece` bytes, to a client that waits for two reads and a status, and tells how many requests they answer.
/// For the fuzz target and the tests.
#[doc(hidden)]
pub fn decode_script(bytes: &[u8], structured: bool, piece: usize) -> Result<usize> {
    let mut decoder = Decoder::new(structured, vec![1, 2]);
    decoder.expect(1, 0, 8192, Asked::Read(Buffer::alone(8192)));
    decoder.expect(2, 8192, 100, Asked::Read(Buffer::alone(100)));
    decoder.expect(3, 0, 1 << 31, Asked::Status);
    for bytes in bytes.chunks(piece.max(1)) {
        decoder.feed(bytes)?;
    }
    Ok(decoder.answers.len())
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
