//! Encodes and parses the messages of the handshake without I/O, like [`super::wire`].

use super::error::{Error, Result};
use super::wire::*;

/// Parses the first 18 bytes from a server and returns its handshake flags.
pub(crate) fn parse_greeting(bytes: &[u8]) -> Result<u16> {
    let mut fields = Fields(bytes);
    if fields.u64()? != INIT_MAGIC {
        return Err(Error::protocol("it does not send the greeting of an NBD server"));
    }
    match fields.u64()? {
        OPTION_MAGIC => {}
        OLDSTYLE_MAGIC => {
            return Err(Error::Unsupported {
                what: "it speaks the oldstyle handshake".to_owned(),
            });
        }
        magic => {
            return Err(Error::protocol(format!(
                "its greeting has the unknown magic {magic:#018x}"
            )));
        }
    }
    fields.u16()
}

/// Encodes an option as the client sends it.
pub(crate) fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn put_string(bytes: &mut Vec<u8>, string: &str) {
    bytes.extend((string.len() as u32).to_be_bytes());
    bytes.extend(string.as_bytes());
}

/// Encodes the data of [`OPT_GO`], with a request for block sizes.
pub(crate) fn encode_go(export: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(export.len() + 8);
    put_string(&mut data, export);
    data.extend(1u16.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    data
}

/// Encodes the data of [`OPT_SET_META_CONTEXT`].
pub(crate) fn encode_set_meta_context(export: &str, contexts: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(&mut data, export);
    data.extend((contexts.len() as u32).to_be_bytes());
    for context in contexts {
        put_string(&mut data, context);
    }
    data
}

/// The head of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OptionReply {
    /// The option that is answered.
    pub option: u32,
    /// One of the `REP_` numbers.
    pub kind: u32,
    /// Length of the payload that follows, in bytes; at most [`MAX_OPTION_PAYLOAD`].
    pub length: u32,
}

/// Parses the 20 bytes before the payload of a reply to an option.
pub(crate) fn parse_option_reply(bytes: &[u8]) -> Result<OptionReply> {
    let mut fields = Fields(bytes);
    let magic = fields.u64()?;
    if magic != OPTION_REPLY_MAGIC {
        return Err(Error::protocol(format!(
            "an option reply has the unknown magic {magic:#018x}"
        )));
    }
    let reply = OptionReply {
        option: fields.u32()?,
        kind: fields.u32()?,
        length: fields.u32()?,
    };
    if reply.length > MAX_OPTION_PAYLOAD {
        return Err(Error::protocol(format!(
            "an option reply has {} bytes, but vmsnap accepts at most {MAX_OPTION_PAYLOAD} bytes",
            reply.length
        )));
    }
    Ok(reply)
}

/// Describes an error reply to an option: the name of the error, and the server's message if it
/// sent one.
pub(crate) fn option_error_words(kind: u32, payload: &[u8]) -> String {
    let name = match kind & !REP_ERROR_BIT {
        1 => "the option is not supported",
        2 => "the server's policy forbids it",
        3 => "the option is invalid",
        4 => "the server's platform does not support it",
        5 => "the server requires TLS, which vmsnap does not support",
        6 => "there is no such export",
        7 => "the server is shutting down",
        8 => "the server requires the client to negotiate block sizes",
        9 => "the option is too large",
        number => {
            return format!("unknown error {number} {}", printable(payload))
                .trim_end()
                .to_owned();
        }
    };
    match printable(payload) {
        words if words.is_empty() => name.to_owned(),
        words => format!("{name} ({words})"),
    }
}

/// The content of one [`REP_INFO`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Info {
    /// Size of the export in bytes, and its transmission flags.
    Export {
        /// Size, in bytes.
        size: u64,
        /// `FLAG_` bits.
        flags: u16,
    },
    /// The block sizes as the server sent them.
    BlockSize(BlockSizes),
    /// Information that was not requested.
    Other,
}

/// The server's limits for requests, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offset and length of every request are multiples of this: a power of two, at most 65,536.
    pub minimum: u32,
    /// Multiples of this are fast.
    pub preferred: u32,
    /// Reads are at most this long.
    pub maximum: u32,
}

impl Default for BlockSizes {
    /// The sizes that a client may assume if the server sends none: it serves single bytes, and
    /// reads of up to 32 MiB.
    fn default() -> Self {
        BlockSizes {
            minimum: 1,
            preferred: 4096,
            maximum: MAX_READ,
        }
    }
}

impl BlockSizes {
    /// Rejects sizes that break the protocol's rules, and sizes that do not allow a read of 64 KiB.
    pub fn checked(self) -> Result<Self> {
        let BlockSizes {
            minimum,
            preferred,
            maximum,
        } = self;
        if !minimum.is_power_of_two() || minimum > 65536 || maximum < minimum || preferred < minimum {
            return Err(Error::protocol(format!(
                "the protocol does not allow these block sizes: minimum {minimum}, preferred {preferred}, maximum {maximum} bytes"
            )));
        }
        if maximum < 65536 {
            return Err(Error::Unsupported {
                what: format!(
                    "it allows reads of at most {maximum} bytes, but vmsnap needs reads of 65536 bytes"
                ),
            });
        }
        Ok(self)
    }
}

/// Parses the payload of [`REP_INFO`].
pub(crate) fn parse_info(payload: &[u8]) -> Result<Info> {
    let mut fields = Fields(payload);
    match fields.u16()? {
        INFO_EXPORT => {
            let info = Info::Export {
                size: fields.u64()?,
                flags: fields.u16()?,
            };
            fields.end("the export information").map(|()| info)
        }
        INFO_BLOCK_SIZE => {
            let sizes = BlockSizes {
                minimum: fields.u32()?,
                preferred: fields.u32()?,
                maximum: fields.u32()?,
            };
            fields.end("the block size information")?;
            sizes.checked().map(Info::BlockSize)
        }
        _ => Ok(Info::Other),
    }
}

/// Parses the 10 bytes that answer [`OPT_EXPORT_NAME`]: size and transmission flags.
pub(crate) fn parse_export_name_reply(bytes: &[u8]) -> Result<(u64, u16)> {
    let mut fields = Fields(bytes);
    Ok((fields.u64()?, fields.u16()?))
}

/// Parses the payload of [`REP_META_CONTEXT`]: id and name.
pub(crate) fn parse_meta_context(payload: &[u8]) -> Result<(u32, &str)> {
    let mut fields = Fields(payload);
    let id = fields.u32()?;
    let name = str::from_utf8(fields.0).map_err(|_| Error::protocol("a context's name is not UTF-8"))?;
    Ok((id, name))
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
