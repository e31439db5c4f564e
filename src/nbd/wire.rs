//! Numbers and messages of the NBD protocol, encoded and parsed without I/O.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. Names are those of
//! the document without `NBD_`. All integers are big-endian.

use super::error::{Error, Result};

/// First eight bytes of every server (`NBDMAGIC`).
pub(crate) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Begins every option, and is the second magic of a newstyle server (`IHAVEOPT`).
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second magic of an oldstyle server.
pub(crate) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Begins every reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins every request.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply.
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag of server and client: fixed newstyle negotiation.
pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag of server and client: no 124 zeroes after `OPT_EXPORT_NAME`.
pub(crate) const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Transmission flag that every server sets.
pub(crate) const FLAG_HAS_FLAGS: u16 = 1 << 0;
/// Transmission flag: the export cannot be written.
pub(crate) const FLAG_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: [`CMD_FLUSH`] may be used.
pub(crate) const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: [`CMD_WRITE_ZEROES`] may be used.
pub(crate) const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: [`CMD_FLAG_DF`] may be used.
pub(crate) const FLAG_SEND_DF: u16 = 1 << 7;
/// Transmission flag: a client may open several connections.
pub(crate) const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

/// Option: choose the export; the reply is its size and flags (for servers without [`OPT_GO`]).
pub(crate) const OPT_EXPORT_NAME: u32 = 1;
/// Option: end the session.
pub(crate) const OPT_ABORT: u32 = 2;
/// Option: list the exports.
pub(crate) const OPT_LIST: u32 = 3;
/// Option: describe an export.
pub(crate) const OPT_INFO: u32 = 6;
/// Option: choose the export and begin transmission.
pub(crate) const OPT_GO: u32 = 7;
/// Option: use structured replies.
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: list metadata contexts.
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
/// Option: choose metadata contexts.
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;

/// Option reply: done.
pub(crate) const REP_ACK: u32 = 1;
/// Option reply: the name of an export.
pub(crate) const REP_SERVER: u32 = 2;
/// Option reply: information about the export.
pub(crate) const REP_INFO: u32 = 3;
/// Option reply: a metadata context and its id.
pub(crate) const REP_META_CONTEXT: u32 = 4;
/// The bit that all error replies to options have.
pub(crate) const REP_ERROR_BIT: u32 = 1 << 31;
/// Option reply: the server does not know the option.
pub(crate) const REP_ERR_UNSUP: u32 = REP_ERROR_BIT | 1;
/// Option reply: the option is invalid, or comes too early.
pub(crate) const REP_ERR_INVALID: u32 = REP_ERROR_BIT | 3;
/// Option reply: the server wants TLS.
pub(crate) const REP_ERR_TLS_REQD: u32 = REP_ERROR_BIT | 5;
/// Option reply: there is no such export.
pub(crate) const REP_ERR_UNKNOWN: u32 = REP_ERROR_BIT | 6;
/// Option reply: the server is shutting down.
pub(crate) const REP_ERR_SHUTDOWN: u32 = REP_ERROR_BIT | 7;
/// Option reply: the option is too long.
pub(crate) const REP_ERR_TOO_BIG: u32 = REP_ERROR_BIT | 9;

/// Kind of [`REP_INFO`]: size and transmission flags.
pub(crate) const INFO_EXPORT: u16 = 0;
/// Kind of [`REP_INFO`]: block sizes.
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

/// Command: read.
pub(crate) const CMD_READ: u16 = 0;
/// Command: write. The data follows the request.
pub(crate) const CMD_WRITE: u16 = 1;
/// Command: disconnect.
pub(crate) const CMD_DISC: u16 = 2;
/// Command: bring all writes that were answered to stable storage.
pub(crate) const CMD_FLUSH: u16 = 3;
/// Command: discard a range.
pub(crate) const CMD_TRIM: u16 = 4;
/// Command: write zeroes.
pub(crate) const CMD_WRITE_ZEROES: u16 = 6;
/// Command: report the status of a range.
pub(crate) const CMD_BLOCK_STATUS: u16 = 7;
/// Command flag: answer a read in one piece. This saves QEMU a look at the allocation of every
/// range.
pub(crate) const CMD_FLAG_DF: u16 = 1 << 2;
/// Command flag: report one descriptor only.
pub(crate) const CMD_FLAG_REQ_ONE: u16 = 1 << 3;

/// Reply flag: last chunk.
pub(crate) const REPLY_FLAG_DONE: u16 = 1 << 0;
/// Chunk: no payload.
pub(crate) const REPLY_NONE: u16 = 0;
/// Chunk: data at an offset.
pub(crate) const REPLY_OFFSET_DATA: u16 = 1;
/// Chunk: zeroes at an offset.
pub(crate) const REPLY_OFFSET_HOLE: u16 = 2;
/// Chunk: status of a range in one context.
pub(crate) const REPLY_BLOCK_STATUS: u16 = 5;
/// The bit that all error chunks have.
pub(crate) const REPLY_ERROR_BIT: u16 = 1 << 15;
/// Chunk: an error.
pub(crate) const REPLY_ERROR: u16 = REPLY_ERROR_BIT | 1;
/// Chunk: an error with its offset.
pub(crate) const REPLY_ERROR_OFFSET: u16 = REPLY_ERROR_BIT | 2;

/// The context that reports holes and zeroes.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";
/// Flag of [`BASE_ALLOCATION`]: not allocated. By itself, the flag does not describe the content.
pub(crate) const STATE_HOLE: u32 = 1 << 0;
/// Flag of [`BASE_ALLOCATION`]: reads as zero.
pub(crate) const STATE_ZERO: u32 = 1 << 1;
/// Flag of QEMU's `qemu:dirty-bitmap:NAME` contexts: the range is dirty in the bitmap (QEMU's
/// `docs/interop/nbd.txt`).
pub(crate) const STATE_DIRTY: u32 = 1 << 0;

/// Longest string that the protocol allows, in bytes.
pub(crate) const MAX_STRING: usize = 4096;
/// Longest read that every server can be expected to accept if it sends no block sizes, in bytes.
pub(crate) const MAX_READ: u32 = 32 << 20;
/// Longest accepted payload of an error chunk, in bytes: a message (its length has 16 bits) and
/// fields that may follow.
pub(crate) const MAX_ERROR_PAYLOAD: u32 = 65536 + 64;
/// Longest accepted payload of a reply to an option, in bytes: a string and fields that may precede
/// it.
pub(crate) const MAX_OPTION_PAYLOAD: u32 = MAX_STRING as u32 + 64;
/// Longest accepted list of descriptors in a status chunk, in bytes. QEMU sends at most 131,072
/// descriptors (1 MiB) for each context.
pub(crate) const MAX_STATUS_PAYLOAD: u32 = 64 << 20;

/// Takes integers off the front of a message.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| Error::protocol("a message is shorter than its kind requires"))?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn end(&self, what: &str) -> Result<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Error::protocol(format!(
                "{what} is {} bytes too long",
                self.0.len()
            )))
        }
    }
}

/// Cleans a server's message: UTF-8 without control characters, at most 512 characters.
pub(super) fn printable(words: &[u8]) -> String {
    String::from_utf8_lossy(words)
        .chars()
        .take(512)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

/// A request as the client sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// `CMD_FLAG_` bits.
    pub flags: u16,
    /// One of the `CMD_` numbers.
    pub command: u16,
    /// Returned in the reply.
    pub cookie: u64,
    /// Start of the range, in bytes.
    pub offset: u64,
    /// Length of the range, in bytes.
    pub length: u32,
}

impl Request {
    /// The request's 28 bytes.
    pub(crate) fn encode(&self) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Parses the 28 bytes of a request.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Request> {
        let mut fields = Fields(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return Err(Error::protocol("a request begins with an unknown magic"));
        }
        let request = Request {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        };
        fields.end("a request").map(|()| request)
    }
}

/// A simple reply, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SimpleReply {
    /// 0 for success.
    pub errno: u32,
    /// The cookie of the request.
    pub cookie: u64,
}

/// Parses the 12 bytes after the magic of a simple reply.
pub(crate) fn parse_simple_reply(bytes: &[u8]) -> Result<SimpleReply> {
    let mut fields = Fields(bytes);
    Ok(SimpleReply {
        errno: fields.u32()?,
        cookie: fields.u64()?,
    })
}

/// The head of a chunk of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Whether this is the reply's last chunk.
    pub done: bool,
    /// One of the `REPLY_` numbers.
    pub kind: u16,
    /// The cookie of the request.
    pub cookie: u64,
    /// Length of the payload, in bytes; checked against what the kind allows.
    pub length: u32,
}

/// Parses the 16 bytes after the magic of a chunk, and checks its length against its kind.
pub(crate) fn parse_chunk(bytes: &[u8]) -> Result<Chunk> {
    let mut fields = Fields(bytes);
    let flags = fields.u16()?;
    let chunk = Chunk {
        done: flags & REPLY_FLAG_DONE != 0,
        kind: fields.u16()?,
        cookie: fields.u64()?,
        length: fields.u32()?,
    };
    let allowed = match chunk.kind {
        REPLY_NONE => chunk.length == 0 && chunk.done,
        REPLY_OFFSET_DATA => chunk.length > 8,
        REPLY_OFFSET_HOLE => chunk.length == 12,
        REPLY_BLOCK_STATUS => {
            chunk.length >= 12 && chunk.length % 8 == 4 && chunk.length <= MAX_STATUS_PAYLOAD + 4
        }
        REPLY_ERROR_OFFSET => (14..=MAX_ERROR_PAYLOAD).contains(&chunk.length),
        kind if kind & REPLY_ERROR_BIT != 0 => (6..=MAX_ERROR_PAYLOAD).contains(&chunk.length),
        kind => {
            return Err(Error::protocol(format!(
                "a reply chunk has the unknown kind {kind}"
            )));
        }
    };
    if !allowed {
        return Err(Error::protocol(format!(
            "a reply chunk of kind {} has {} bytes and flags {flags:#x}, which the protocol does not allow for this kind",
            chunk.kind, chunk.length
        )));
    }
    Ok(chunk)
}

/// Parses the offset before the data of [`REPLY_OFFSET_DATA`] (8 bytes).
pub(crate) fn parse_offset(bytes: &[u8]) -> Result<u64> {
    Fields(bytes).u64()
}

/// Parses the payload of [`REPLY_OFFSET_HOLE`] (12 bytes): offset and length.
pub(crate) fn parse_hole(bytes: &[u8]) -> Result<(u64, u32)> {
    let mut fields = Fields(bytes);
    Ok((fields.u64()?, fields.u32()?))
}

/// Parses the context id before the descriptors of [`REPLY_BLOCK_STATUS`] (4 bytes).
pub(crate) fn parse_context_id(bytes: &[u8]) -> Result<u32> {
    Fields(bytes).u32()
}

/// Parses a descriptor of [`REPLY_BLOCK_STATUS`] (8 bytes): length, which is never 0, and flags.
pub(crate) fn parse_descriptor(bytes: &[u8]) -> Result<(u32, u32)> {
    let mut fields = Fields(bytes);
    match (fields.u32()?, fields.u32()?) {
        (0, _) => Err(Error::protocol("a block status descriptor has length 0")),
        descriptor => Ok(descriptor),
    }
}

/// The content of an error chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorChunk {
    /// Never 0.
    pub errno: u32,
    /// The server's message, without control characters.
    pub message: String,
    /// Where the error occurred, in bytes, if the server reported it.
    pub offset: Option<u64>,
}

/// Parses the payload of an error chunk, also of unknown kinds, which all begin alike.
pub(crate) fn parse_error_chunk(kind: u16, payload: &[u8]) -> Result<ErrorChunk> {
    let mut fields = Fields(payload);
    let errno = fields.u32()?;
    let length = usize::from(fields.u16()?);
    let Some((message, rest)) = fields.0.split_at_checked(length) else {
        return Err(Error::protocol(format!(
            "an error message of {length} bytes does not fit into its chunk"
        )));
    };
    if errno == 0 {
        return Err(Error::protocol("an error chunk has the error number 0"));
    }
    let offset = match kind {
        REPLY_ERROR_OFFSET => Some(Fields(rest).u64()?),
        _ => None,
    };
    Ok(ErrorChunk {
        errno,
        message: printable(message),
        offset,
    })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
