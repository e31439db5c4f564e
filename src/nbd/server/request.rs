//! Decides what a request asks for, and encodes replies. No I/O.

use super::handshake::{Agreement, CONTEXT_ID};
use crate::nbd::error::errno;
use crate::nbd::wire::*;

/// The longest run of bytes in one chunk of a reply, in bytes. It is also the longest read that is
/// answered in one piece on request ([`CMD_FLAG_DF`]).
pub(super) const PIECE: u32 = 1 << 20;
/// The largest number of descriptors in the answer to one status request.
pub(super) const MAX_DESCRIPTORS: usize = 4096;
/// The length of what precedes data in the longest kind of reply, in bytes.
pub(super) const HEAD: usize = 28;

/// The work that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Bytes of the disk.
    Read {
        cookie: u64,
        offset: u64,
        length: u32,
        /// Whether the bytes must be sent in one chunk.
        in_one: bool,
    },
    /// The status of a range.
    Status {
        cookie: u64,
        offset: u64,
        length: u32,
        /// Whether one descriptor is enough.
        only_first: bool,
    },
    /// A request that cannot be carried out: the answer is this error number.
    Refuse { cookie: u64, errno: u32 },
}

/// The server's next step after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Do it, after this many bytes of the request have been received and dropped.
    Do(Task, u32),
    /// The client says goodbye.
    Goodbye,
    /// Disconnect: the client's next bytes cannot be understood, or are too many.
    HangUp,
}

/// Decides about a request to an export of `size` bytes.
pub(super) fn judge(request: &Request, size: u64, agreement: &Agreement) -> Verdict {
    let Request {
        flags,
        command,
        cookie,
        offset,
        length,
    } = *request;
    let refuse = |errno| Verdict::Do(Task::Refuse { cookie, errno }, 0);
    let is_inside = length > 0 && offset.checked_add(length.into()).is_some_and(|end| end <= size);
    let allows = |allowed: u16| flags & !allowed == 0;
    match command {
        CMD_READ => {
            let in_one = flags & CMD_FLAG_DF != 0;
            let allowed = if agreement.structured { CMD_FLAG_DF } else { 0 };
            if !is_inside || length > MAX_READ || !allows(allowed) {
                return refuse(errno::EINVAL);
            }
            if in_one && length > PIECE {
                return refuse(errno::EOVERFLOW);
            }
            let task = Task::Read {
                cookie,
                offset,
                length,
                in_one,
            };
            Verdict::Do(task, 0)
        }
        CMD_BLOCK_STATUS => {
            if !is_inside || !agreement.allocation || !allows(CMD_FLAG_REQ_ONE) {
                return refuse(errno::EINVAL);
            }
            let task = Task::Status {
                cookie,
                offset,
                length,
                only_first: flags & CMD_FLAG_REQ_ONE != 0,
            };
            Verdict::Do(task, 0)
        }
        CMD_DISC => Verdict::Goodbye,
        CMD_WRITE if length > MAX_READ => Verdict::HangUp,
        CMD_WRITE => {
            let errno = errno::EPERM;
            Verdict::Do(Task::Refuse { cookie, errno }, length)
        }
        CMD_TRIM | CMD_WRITE_ZEROES => refuse(errno::EPERM),
        _ => refuse(errno::EINVAL),
    }
}

/// Encodes the head of a chunk before a payload of `length` bytes.
fn chunk(kind: u16, cookie: u64, length: u32, is_last: bool) -> [u8; 20] {
    let flags = if is_last { REPLY_FLAG_DONE } else { 0 };
    let mut bytes = [0; 20];
    bytes[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..20].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Encodes what precedes `length` bytes of data in a chunk.
pub(super) fn data_head(cookie: u64, offset: u64, length: u32, is_last: bool) -> [u8; HEAD] {
    let mut bytes = [0; HEAD];
    bytes[..20].copy_from_slice(&chunk(REPLY_OFFSET_DATA, cookie, length + 8, is_last));
    bytes[20..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// Encodes a chunk that says that a range reads as zero.
pub(super) fn hole(cookie: u64, offset: u64, length: u32, is_last: bool) -> Vec<u8> {
    let mut bytes = chunk(REPLY_OFFSET_HOLE, cookie, 12, is_last).to_vec();
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// Encodes the answer to a status request: lengths of ranges, and whether each reads as zero.
pub(super) fn status(cookie: u64, ranges: &[(u32, bool)]) -> Vec<u8> {
    let length = 4 + 8 * ranges.len() as u32;
    let mut bytes = chunk(REPLY_BLOCK_STATUS, cookie, length, true).to_vec();
    bytes.extend(CONTEXT_ID.to_be_bytes());
    for (length, is_zero) in ranges {
        let flags = if *is_zero { STATE_HOLE | STATE_ZERO } else { 0 };
        bytes.extend(length.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
    }
    bytes
}

/// Encodes the head of a simple reply, which is all of it after an error.
pub(super) fn simple(cookie: u64, errno: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&errno.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// Encodes an error that ends a reply.
pub(super) fn error(cookie: u64, errno: u32, structured: bool) -> Vec<u8> {
    if !structured {
        return simple(cookie, errno).to_vec();
    }
    // The message leaves out paths: clients may be on other machines.
    let message = match errno {
        errno::EPERM => "the export is read-only",
        errno::EIO => "stored data is damaged or cannot be read; the messages of the server say which",
        errno::EOVERFLOW => "the range is too long for one chunk",
        errno::ESHUTDOWN => "the server is shutting down",
        _ => "the request is invalid",
    };
    let mut bytes = chunk(REPLY_ERROR, cookie, 6 + message.len() as u32, true).to_vec();
    bytes.extend(errno.to_be_bytes());
    bytes.extend((message.len() as u16).to_be_bytes());
    bytes.extend(message.as_bytes());
    bytes
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
