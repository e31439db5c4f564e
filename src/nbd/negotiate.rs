//! The handshake: fixed newstyle, from the server's greeting to the first moment of transmission.

use super::error::{Error, Result};
use super::options::{self, BlockSizes, Info, OptionReply};
use super::socket::Channel;
use super::wire;

/// Most replies that one option may get. QEMU sends at most one for each context or kind of information.
const MAX_REPLIES: usize = 64;

/// A metadata context that the server grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The number that stands for it in replies.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// What was agreed upon in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// Its size, in bytes; at most `i64::MAX`.
    pub size: u64,
    /// Transmission flags (`FLAG_` numbers in [`wire`]).
    pub flags: u16,
    /// What requests may look like.
    pub block_sizes: BlockSizes,
    /// Whether replies to reads are structured.
    pub structured: bool,
    /// The contexts that the server grants out of those that were asked for.
    pub contexts: Vec<Context>,
}

/// Opens `export` with as many of `contexts` as the server grants.
pub(super) fn negotiate(channel: &mut impl Channel, export: &str, contexts: &[&str]) -> Result<Export> {
    for name in contexts.iter().chain([&export]) {
        if name.len() > wire::MAX_STRING {
            return Err(Error::Unsupported {
                what: format!(
                    "a name of {} bytes is longer than the protocol allows",
                    name.len()
                ),
            });
        }
    }
    let no_zeroes = greet(channel)?;
    let outcome = haggle(channel, export, contexts, no_zeroes);
    if matches!(outcome, Err(Error::Refused { .. })) {
        // The protocol asks for a goodbye. The server is left whether or not it hears it.
        let _ = channel.send(&options::encode_option(wire::OPT_ABORT, &[]));
    }
    outcome
}

/// Exchanges greetings. Returns whether the zeroes after [`wire::OPT_EXPORT_NAME`] are left out.
fn greet(channel: &mut impl Channel) -> Result<bool> {
    let mut greeting = [0; 18];
    channel.receive_exact(&mut greeting)?;
    let flags = options::parse_greeting(&greeting)?;
    if flags & wire::FLAG_FIXED_NEWSTYLE == 0 {
        return Err(Error::Unsupported {
            what: "it does not speak the fixed newstyle handshake".to_owned(),
        });
    }
    let agreed = flags & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
    channel.send(&u32::from(agreed).to_be_bytes())?;
    Ok(agreed & wire::FLAG_NO_ZEROES != 0)
}

fn haggle(channel: &mut impl Channel, name: &str, contexts: &[&str], no_zeroes: bool) -> Result<Export> {
    let mut export = Export {
        name: name.to_owned(),
        size: 0,
        flags: 0,
        block_sizes: BlockSizes::default(),
        structured: structured_replies(channel, name)?,
        contexts: Vec::new(),
    };
    if export.structured && !contexts.is_empty() {
        export.contexts = set_meta_contexts(channel, name, contexts)?;
    }
    if !go(channel, &mut export)? {
        export_name(channel, &mut export, no_zeroes)?;
    }
    if export.flags & wire::FLAG_HAS_FLAGS == 0 {
        return Err(Error::protocol(format!(
            "transmission flags {:#06x} are not valid",
            export.flags
        )));
    }
    // The largest offset that QEMU and Linux know.
    if export.size > i64::MAX as u64 {
        return Err(Error::protocol(format!(
            "an export of {} bytes is too big",
            export.size
        )));
    }
    Ok(export)
}

/// Asks for structured replies. A server that does not know them says so.
fn structured_replies(channel: &mut impl Channel, export: &str) -> Result<bool> {
    let option = wire::OPT_STRUCTURED_REPLY;
    channel.send(&options::encode_option(option, &[]))?;
    let (reply, payload) = option_reply(channel, option)?;
    match reply.kind {
        wire::REP_ACK => Ok(true),
        wire::REP_ERR_TLS_REQD | wire::REP_ERR_SHUTDOWN => Err(refused(export, reply.kind, &payload)),
        kind if kind & wire::REP_ERROR_BIT != 0 => Ok(false),
        kind => Err(unexpected(option, kind)),
    }
}

/// Asks for contexts; the result are those that the server grants. One that refuses the option grants none.
fn set_meta_contexts(channel: &mut impl Channel, export: &str, wanted: &[&str]) -> Result<Vec<Context>> {
    let option = wire::OPT_SET_META_CONTEXT;
    channel.send(&options::encode_option(
        option,
        &options::encode_set_meta_context(export, wanted),
    ))?;
    let mut granted: Vec<Context> = Vec::new();
    loop {
        let (reply, payload) = option_reply(channel, option)?;
        match reply.kind {
            wire::REP_ACK => return Ok(granted),
            wire::REP_META_CONTEXT => {
                let (id, name) = options::parse_meta_context(&payload)?;
                if !wanted.contains(&name) {
                    return Err(Error::protocol("it grants a context that was not asked for"));
                }
                if granted.iter().any(|other| other.id == id || other.name == name) {
                    return Err(Error::protocol(format!("it grants context {id} '{name}' twice")));
                }
                granted.push(Context {
                    id,
                    name: name.to_owned(),
                });
            }
            wire::REP_ERR_TLS_REQD | wire::REP_ERR_SHUTDOWN => {
                return Err(refused(export, reply.kind, &payload));
            }
            kind if kind & wire::REP_ERROR_BIT != 0 => return Ok(Vec::new()),
            kind => return Err(unexpected(option, kind)),
        }
    }
}

/// Opens the export; `false` when the server does not know how to do it this way.
fn go(channel: &mut impl Channel, export: &mut Export) -> Result<bool> {
    let option = wire::OPT_GO;
    channel.send(&options::encode_option(option, &options::encode_go(&export.name)))?;
    let mut told = false;
    for _ in 0..MAX_REPLIES {
        let (reply, payload) = option_reply(channel, option)?;
        match reply.kind {
            wire::REP_ACK if told => return Ok(true),
            wire::REP_ACK => return Err(Error::protocol("it opens the export without telling its size")),
            wire::REP_INFO => match options::parse_info(&payload)? {
                Info::Export { size, flags } => {
                    (export.size, export.flags) = (size, flags);
                    told = true;
                }
                Info::BlockSize(sizes) => export.block_sizes = sizes,
                Info::Other => {}
            },
            wire::REP_ERR_UNSUP => return Ok(false),
            kind if kind & wire::REP_ERROR_BIT != 0 => return Err(refused(&export.name, kind, &payload)),
            kind => return Err(unexpected(option, kind)),
        }
    }
    Err(Error::protocol(format!(
        "it answers one option more than {MAX_REPLIES} times"
    )))
}

/// Opens the export the old way, where a server says no by hanging up.
fn export_name(channel: &mut impl Channel, export: &mut Export, no_zeroes: bool) -> Result<()> {
    channel.send(&options::encode_option(
        wire::OPT_EXPORT_NAME,
        export.name.as_bytes(),
    ))?;
    let mut reply = [0; 10];
    channel.receive_exact(&mut reply)?;
    (export.size, export.flags) = options::parse_export_name_reply(&reply)?;
    if !no_zeroes {
        channel.receive_exact(&mut [0; 124])?;
    }
    Ok(())
}

/// Receives one reply to `option`, with its payload of at most [`wire::MAX_OPTION_PAYLOAD`] bytes.
fn option_reply(channel: &mut impl Channel, option: u32) -> Result<(OptionReply, Vec<u8>)> {
    let mut head = [0; 20];
    channel.receive_exact(&mut head)?;
    let reply = options::parse_option_reply(&head)?;
    if reply.option != option {
        return Err(Error::protocol(format!(
            "it answers option {} instead of {option}",
            reply.option
        )));
    }
    let mut payload = vec![0; reply.length as usize];
    channel.receive_exact(&mut payload)?;
    Ok((reply, payload))
}

fn refused(export: &str, kind: u32, payload: &[u8]) -> Error {
    Error::Refused {
        export: export.to_owned(),
        reason: options::option_error_words(kind, payload),
    }
}

fn unexpected(option: u32, kind: u32) -> Error {
    Error::protocol(format!(
        "it answers option {option} with the unexpected reply {kind:#x}"
    ))
}

/// The handshake against a server whose words are all known beforehand. For the fuzz target and the tests.
#[doc(hidden)]
pub fn negotiate_with_script(script: &[u8], export: &str, contexts: &[&str]) -> Result<Export> {
    struct Script<'a>(&'a [u8]);

    impl Channel for Script<'_> {
        fn send(&mut self, _: &[u8]) -> Result<()> {
            Ok(())
        }

        fn receive_exact(&mut self, bytes: &mut [u8]) -> Result<()> {
            let (head, rest) = self.0.split_at_checked(bytes.len()).ok_or(Error::Disconnected {
                phase: "the handshake",
            })?;
            bytes.copy_from_slice(head);
            self.0 = rest;
            Ok(())
        }
    }

    negotiate(&mut Script(script), export, contexts)
}

#[cfg(test)]
#[path = "negotiate_tests.rs"]
mod tests;
