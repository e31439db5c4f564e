//! The server's part of the fixed newstyle handshake, from the options of a client to an export.
//!
//! [`Handshake`] answers one option after another without I/O; [`greet_and_choose`] runs it on a
//! channel.

use crate::nbd::error::{Error, Result};
use crate::nbd::options::BlockSizes;
use crate::nbd::socket::Channel;
use crate::nbd::wire::*;

/// The longest data of an option that is parsed, in bytes: an export and several contexts.
pub(super) const MAX_OPTION: u32 = 4 * MAX_STRING as u32;
/// Longer data of an option is received and dropped up to this length, in bytes. A client that
/// sends more is disconnected.
pub(super) const MAX_DROPPED: u32 = 1 << 20;
/// The largest number of options in a handshake.
const MAX_OPTIONS: usize = 128;
/// The id of `base:allocation`, the only context.
pub(super) const CONTEXT_ID: u32 = 1;

/// The limits of requests that clients are told.
const SIZES: BlockSizes = BlockSizes {
    minimum: 1,
    preferred: 64 * 1024,
    maximum: MAX_READ,
};

/// An export as the handshake describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) name: String,
    /// Its size, in bytes.
    pub(super) size: u64,
}

/// The result of a successful handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreement {
    /// The place of the export among the offers.
    pub(super) export: usize,
    /// Whether replies are structured.
    pub(super) structured: bool,
    /// Whether the client may ask for the status of ranges.
    pub(super) allocation: bool,
}

/// The server's next step after an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Send this, and receive the next option.
    Answer(Vec<u8>),
    /// Send this, and begin transmission.
    Begin(Vec<u8>, Agreement),
    /// Send this, and disconnect.
    End(Vec<u8>),
}

/// The state of a handshake.
#[derive(Debug)]
pub(super) struct Handshake<'a> {
    offers: &'a [Offer],
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was chosen.
    allocation: Option<usize>,
}

impl<'a> Handshake<'a> {
    /// Begins a handshake with the flags that the client has sent in answer to the greeting.
    ///
    /// # Errors
    /// The client set an unknown flag, or does not speak the fixed newstyle handshake.
    pub(super) fn new(offers: &'a [Offer], client_flags: u32) -> Result<Handshake<'a>> {
        let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        if client_flags & !known != 0 || client_flags & u32::from(FLAG_FIXED_NEWSTYLE) == 0 {
            return Err(Error::protocol(format!(
                "the client answers with the flags {client_flags:#x}"
            )));
        }
        Ok(Handshake {
            offers,
            no_zeroes: client_flags & u32::from(FLAG_NO_ZEROES) != 0,
            structured: false,
            allocation: None,
        })
    }

    /// Answers an option.
    pub(super) fn option(&mut self, option: u32, data: &[u8]) -> Next {
        match option {
            OPT_EXPORT_NAME => self.export_name(data),
            OPT_ABORT => Next::End(reply(option, REP_ACK, &[])),
            OPT_LIST => Next::Answer(self.list(data)),
            OPT_INFO | OPT_GO => self.info_or_go(option, data),
            OPT_STRUCTURED_REPLY => {
                if !data.is_empty() {
                    return invalid(option, "the option has no data");
                }
                self.structured = true;
                Next::Answer(reply(option, REP_ACK, &[]))
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => Next::Answer(self.contexts(option, data)),
            _ => Next::Answer(error(option, REP_ERR_UNSUP, "the option is not supported")),
        }
    }

    /// The place of the export with this name. An empty name stands for the only export.
    fn find(&self, name: &[u8]) -> Option<usize> {
        if name.is_empty() && self.offers.len() == 1 {
            return Some(0);
        }
        self.offers.iter().position(|offer| offer.name.as_bytes() == name)
    }

    /// The protocol has no error reply to this option: an unknown export ends the connection.
    fn export_name(&self, name: &[u8]) -> Next {
        let Some(place) = self.find(name) else {
            return Next::End(Vec::new());
        };
        let mut bytes = self.size_and_flags(place);
        if !self.no_zeroes {
            bytes.extend([0; 124]);
        }
        Next::Begin(bytes, self.agreement(place))
    }

    fn list(&self, data: &[u8]) -> Vec<u8> {
        if !data.is_empty() {
            return error(OPT_LIST, REP_ERR_INVALID, "the option has no data");
        }
        let mut bytes = Vec::new();
        for offer in self.offers {
            let mut payload = (offer.name.len() as u32).to_be_bytes().to_vec();
            payload.extend(offer.name.as_bytes());
            bytes.extend(reply(OPT_LIST, REP_SERVER, &payload));
        }
        bytes.extend(reply(OPT_LIST, REP_ACK, &[]));
        bytes
    }

    fn info_or_go(&self, option: u32, data: &[u8]) -> Next {
        let Ok(name) = parse_info_request(data) else {
            return invalid(option, "the option's data is invalid");
        };
        let Some(place) = self.find(name) else {
            return Next::Answer(error(option, REP_ERR_UNKNOWN, "there is no such export"));
        };
        let mut payload = INFO_EXPORT.to_be_bytes().to_vec();
        payload.extend(self.size_and_flags(place));
        let mut bytes = reply(option, REP_INFO, &payload);
        // Information that was not requested is allowed, and clients that know it use it.
        let mut payload = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [SIZES.minimum, SIZES.preferred, SIZES.maximum] {
            payload.extend(size.to_be_bytes());
        }
        bytes.extend(reply(option, REP_INFO, &payload));
        bytes.extend(reply(option, REP_ACK, &[]));
        match option {
            OPT_GO => Next::Begin(bytes, self.agreement(place)),
            _ => Next::Answer(bytes),
        }
    }

    fn contexts(&mut self, option: u32, data: &[u8]) -> Vec<u8> {
        let is_set = option == OPT_SET_META_CONTEXT;
        if is_set {
            self.allocation = None;
        }
        if !self.structured {
            return error(option, REP_ERR_INVALID, "negotiate structured replies first");
        }
        let Ok((name, queries)) = parse_context_request(data) else {
            return error(option, REP_ERR_INVALID, "the option's data is invalid");
        };
        let Some(place) = self.find(name) else {
            return error(option, REP_ERR_UNKNOWN, "there is no such export");
        };
        let is_wanted = match is_set {
            true => queries.contains(&BASE_ALLOCATION.as_bytes()),
            false => {
                let lists_it = |query: &&[u8]| [BASE_ALLOCATION.as_bytes(), b"base:"].contains(query);
                queries.is_empty() || queries.iter().any(lists_it)
            }
        };
        let mut bytes = Vec::new();
        if is_wanted {
            // The id in a list has no meaning.
            let id = if is_set { CONTEXT_ID } else { 0 };
            let mut payload = id.to_be_bytes().to_vec();
            payload.extend(BASE_ALLOCATION.as_bytes());
            bytes.extend(reply(option, REP_META_CONTEXT, &payload));
            if is_set {
                self.allocation = Some(place);
            }
        }
        bytes.extend(reply(option, REP_ACK, &[]));
        bytes
    }

    fn size_and_flags(&self, place: usize) -> Vec<u8> {
        let mut flags = FLAG_HAS_FLAGS | FLAG_READ_ONLY | FLAG_CAN_MULTI_CONN;
        if self.structured {
            flags |= FLAG_SEND_DF;
        }
        let mut bytes = self.offers[place].size.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes
    }

    fn agreement(&self, place: usize) -> Agreement {
        Agreement {
            export: place,
            structured: self.structured,
            // Contexts belong to the export for which they were chosen.
            allocation: self.structured && self.allocation == Some(place),
        }
    }
}

/// Encodes a reply to an option.
fn reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + payload.len());
    bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn error(option: u32, kind: u32, message: &str) -> Vec<u8> {
    reply(option, kind, message.as_bytes())
}

fn invalid(option: u32, message: &str) -> Next {
    Next::Answer(error(option, REP_ERR_INVALID, message))
}

/// Takes a string with its length (4 bytes) off the front.
fn take_string<'d>(fields: &mut Fields<'d>) -> Result<&'d [u8]> {
    let length = fields.u32()? as usize;
    let whole = fields.0;
    let Some((string, rest)) = whole.split_at_checked(length).filter(|_| length <= MAX_STRING) else {
        return Err(Error::protocol("a string is too long"));
    };
    fields.0 = rest;
    Ok(string)
}

/// Parses the data of [`OPT_GO`] and [`OPT_INFO`]: the name of an export. The requested kinds of
/// information are checked and ignored.
fn parse_info_request(data: &[u8]) -> Result<&[u8]> {
    let mut fields = Fields(data);
    let name = take_string(&mut fields)?;
    for _ in 0..fields.u16()? {
        fields.u16()?;
    }
    fields.end("the data of an option").map(|()| name)
}

/// Parses the data of [`OPT_SET_META_CONTEXT`] and [`OPT_LIST_META_CONTEXT`]: the name of an
/// export, and the queries.
fn parse_context_request(data: &[u8]) -> Result<(&[u8], Vec<&[u8]>)> {
    let mut fields = Fields(data);
    let name = take_string(&mut fields)?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    // Each query takes at least the four bytes of its length, so the data bound their number.
    for _ in 0..count {
        queries.push(take_string(&mut fields)?);
    }
    fields.end("the data of an option").map(|()| (name, queries))
}

/// Runs the handshake on a channel. `None` if the client has ended it.
///
/// # Errors
/// The client breaks the protocol, sends too many or too long options, or the channel fails.
pub(super) fn greet_and_choose(channel: &mut impl Channel, offers: &[Offer]) -> Result<Option<Agreement>> {
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(INIT_MAGIC.to_be_bytes());
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    channel.send(&greeting)?;
    let mut flags = [0; 4];
    channel.receive_exact(&mut flags)?;
    let mut handshake = Handshake::new(offers, u32::from_be_bytes(flags))?;
    for _ in 0..MAX_OPTIONS {
        let mut head = [0; 16];
        channel.receive_exact(&mut head)?;
        let (option, length) = parse_option_head(&head)?;
        let next = if length > MAX_OPTION {
            drop_bytes(channel, length)?;
            match option {
                // An export with such a name does not exist.
                OPT_EXPORT_NAME => Next::End(Vec::new()),
                _ => Next::Answer(error(option, REP_ERR_TOO_BIG, "the option is too long")),
            }
        } else {
            let mut data = vec![0; length as usize];
            channel.receive_exact(&mut data)?;
            handshake.option(option, &data)
        };
        match next {
            Next::Answer(bytes) => channel.send(&bytes)?,
            Next::Begin(bytes, agreement) => {
                channel.send(&bytes)?;
                return Ok(Some(agreement));
            }
            Next::End(bytes) => {
                channel.send(&bytes)?;
                return Ok(None);
            }
        }
    }
    Err(Error::protocol(format!(
        "the client sends more than {MAX_OPTIONS} options"
    )))
}

/// Parses the 16 bytes before the data of an option: its number, and the length of its data.
fn parse_option_head(bytes: &[u8]) -> Result<(u32, u32)> {
    let mut fields = Fields(bytes);
    if fields.u64()? != OPTION_MAGIC {
        return Err(Error::protocol("an option begins with an unknown magic"));
    }
    let option = fields.u32()?;
    let length = fields.u32()?;
    match length <= MAX_DROPPED {
        true => Ok((option, length)),
        false => Err(Error::protocol(format!("an option has {length} bytes"))),
    }
}

/// Receives bytes and drops them.
///
/// # Errors
/// The channel fails.
pub(super) fn drop_bytes(channel: &mut impl Channel, length: u32) -> Result<()> {
    let mut sink = [0; 4096];
    let mut left = length as usize;
    while left > 0 {
        let piece = left.min(sink.len());
        channel.receive_exact(&mut sink[..piece])?;
        left -= piece;
    }
    Ok(())
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
