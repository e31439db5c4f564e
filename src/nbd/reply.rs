//! Decodes the server's replies, without I/O, so that tests can feed it any bytes.
//!
//! Replies come in any order, and chunks of different replies may be mixed. The payload of a read
//! is received straight into the buffer of its request: [`Decoder::direct`] returns the place for
//! the next bytes.

use std::collections::VecDeque;

use super::error::{Error, Result};
use super::open_request::{Answer, Asked, OpenRequest};
use super::wire::{self, Chunk, ErrorChunk};
use crate::model::buffer::Buffer;

/// The meaning of the next bytes in the stream. A `slot` is an index into the pending requests; no
/// request is removed while a stage holds an index.
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

/// Assembles replies from the server's bytes.
#[derive(Debug)]
pub(super) struct Decoder {
    structured: bool,
    contexts: Vec<u32>,
    pending: Vec<OpenRequest>,
    stage: Stage,
    /// The beginning of a message that is not complete yet.
    partial: Vec<u8>,
    answers: VecDeque<Answer>,
}

impl Decoder {
    /// Creates a decoder for a connection with these negotiated contexts.
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

    /// Registers a request that was sent. Its cookie is not in use, and a read's buffer has room
    /// for `length` bytes.
    pub fn expect(&mut self, cookie: u64, offset: u64, length: u32, asked: Asked) {
        self.pending.push(OpenRequest::new(
            cookie,
            offset,
            length,
            asked,
            self.contexts.len(),
        ));
    }

    /// The number of requests that wait for their replies.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes the next complete answer.
    pub fn answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    /// The place for the next bytes, if they are payload of a read. After receiving some, call
    /// [`Self::advance`].
    pub fn direct(&mut self) -> Option<&mut [u8]> {
        match self.stage {
            Stage::Data {
                slot, position, end, ..
            } => self.pending[slot].room(position, end),
            _ => None,
        }
    }

    /// Records that `count` bytes were put into the place that [`Self::direct`] returned. `count`
    /// is at most the length of that place.
    pub(crate) fn advance(&mut self, count: usize) -> Result<()> {
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

    /// Takes the next bytes of the stream. After an error the connection is unusable.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
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

    /// The number of bytes that the current stage takes at once; never 0.
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

    /// Processes the complete bytes of one stage.
    fn step(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stage {
            Stage::Magic => self.magic(bytes),
            Stage::Simple => self.simple(bytes),
            Stage::ChunkHead => self.chunk_head(bytes),
            Stage::DataOffset { chunk, slot } => {
                let offset = wire::parse_offset(bytes)?;
                let (position, end) = self.pending[slot].cover(offset, chunk.length - 8)?;
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
                let (start, end) = self.pending[slot].cover(offset, length)?;
                if let Some(room) = self.pending[slot].room(start, end) {
                    room.fill(0);
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
                let (length, flags) = wire::parse_descriptor(bytes)?;
                self.pending[slot].tell(context, length, flags);
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
                self.pending[slot].fail(wire::parse_error_chunk(chunk.kind, bytes)?)?;
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
                    "a structured reply although none were negotiated",
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
        found.ok_or_else(|| Error::protocol(format!("a reply to request {cookie:#x}, which is not pending")))
    }

    fn simple(&mut self, bytes: &[u8]) -> Result<()> {
        let reply = wire::parse_simple_reply(bytes)?;
        let slot = self.slot(reply.cookie)?;
        let pending = &mut self.pending[slot];
        if reply.errno != 0 {
            pending.fail(ErrorChunk {
                errno: reply.errno,
                message: String::new(),
                offset: None,
            })?;
            return self.chunk_ends(slot, true);
        }
        // A change may be answered in both ways, whatever was negotiated.
        if pending.is_change() {
            return self.chunk_ends(slot, true);
        }
        if self.structured || !pending.is_read() {
            return Err(Error::protocol(
                "a simple reply where only a structured one is allowed",
            ));
        }
        let (position, end) = pending.cover_whole()?;
        self.stage = Stage::Data {
            slot,
            position,
            end,
            done: true,
        };
        Ok(())
    }

    fn chunk_head(&mut self, bytes: &[u8]) -> Result<()> {
        let chunk = wire::parse_chunk(bytes)?;
        let slot = self.slot(chunk.cookie)?;
        let is_read = self.pending[slot].is_read();
        let is_status = self.pending[slot].is_status();
        self.stage = match chunk.kind {
            wire::REPLY_NONE => return self.chunk_ends(slot, true),
            wire::REPLY_OFFSET_DATA if is_read => Stage::DataOffset { chunk, slot },
            wire::REPLY_OFFSET_HOLE if is_read => Stage::Hole { chunk, slot },
            wire::REPLY_BLOCK_STATUS if is_status => Stage::ContextId { chunk, slot },
            kind if kind & wire::REPLY_ERROR_BIT != 0 => Stage::ErrorPayload { chunk, slot },
            kind => {
                return Err(Error::protocol(format!(
                    "a chunk of kind {kind} does not match the command of its request"
                )));
            }
        };
        Ok(())
    }

    fn context_id(&mut self, bytes: &[u8], chunk: Chunk, slot: usize) -> Result<()> {
        let id = wire::parse_context_id(bytes)?;
        let Some(context) = self.contexts.iter().position(|known| *known == id) else {
            return Err(Error::protocol(format!(
                "the status of context {id}, which was not negotiated"
            )));
        };
        self.pending[slot].begin_context(context)?;
        self.stage = Stage::Descriptors {
            slot,
            context,
            left: chunk.length - 4,
            done: chunk.done,
        };
        Ok(())
    }

    /// Ends a chunk. The last chunk of a reply completes the answer.
    fn chunk_ends(&mut self, slot: usize, done: bool) -> Result<()> {
        self.stage = Stage::Magic;
        if !done {
            return Ok(());
        }
        let answer = self.pending.swap_remove(slot).finish()?;
        self.answers.push_back(answer);
        Ok(())
    }
}

/// Feeds `bytes`, in pieces of `piece` bytes, to a decoder with three pending requests: two reads
/// and one block status. Returns how many of these requests `bytes` answers. For the fuzz target
/// and the tests.
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
