//! The fixed newstyle handshake, from the server's greeting to the start of transmission.

use super::error::{Error, Result};
use super::options::{self, BlockSizes, Info, OptionReply};
use super::socket::Channel;
use super::wire;

/// The largest number of replies to [`wire::OPT_GO`]. QEMU sends at most one for each kind of
/// information.
const MAX_REPLIES: usize = 64;

/// A metadata context that the server grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Its number in replies.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// The result of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its name.
    pub name: String,
    /// Its size, in bytes; at most `i64::MAX`.
    pub size: u64,
    /// Transmission flags (`FLAG_` numbers in [`wire`]).
    pub flags: u16,
    /// The limits of requests.
    pub block_sizes: BlockSizes,
    /// Whether replies to reads are structured.
    pub structured: bool,
    /// The requested contexts that the server grants.
    pub contexts: Vec<Context>,
}

/// Opens `export` with those of `contexts` that the server grants.
pub(super) fn negotiate(channel: &mut impl Channel, export: &str, contexts: &[&str]) -> Result<Export> {
    for name in contexts.iter().chain([&export]) {
        if name.len() > wire::MAX_STRING {
            return Err(Error::Unsupported {
                what: format!(
                    "the name of an export or context has {} bytes, but the protocol allows at most {}",
                    name.len(),
                    wire::MAX_STRING
                ),
            });
        }
    }
    let no_zeroes = greet(channel)?;
    let outcome = negotiate_options(channel, export, contexts, no_zeroes);
    if matches!(outcome, Err(Error::Refused { .. })) {
        // The protocol asks for a goodbye. Its failure does not matter, because the connection ends
        // anyway.
        let _ = channel.send(&options::encode_option(wire::OPT_ABORT, &[]));
    }
    outcome
}

/// Exchanges greetings. Returns whether the server omits the zeroes after
/// [`wire::OPT_EXPORT_NAME`].
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

fn negotiate_options(
    channel: &mut impl Channel,
    name: &str,
    contexts: &[&str],
    no_zeroes: bool,
) -> Result<Export> {
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
            "its transmission flags {:#06x} lack the flag NBD_FLAG_HAS_FLAGS",
            export.flags
        )));
    }
    // The largest offset that QEMU and Linux support.
    if export.size > i64::MAX as u64 {
        return Err(Error::Unsupported {
            what: format!(
                "its export has {} bytes, but QEMU and Linux support at most 2^63 - 1 bytes",
                export.size
            ),
        });
    }
    Ok(export)
}

/// Requests structured replies. Returns `false` if the server does not support them.
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

/// Requests contexts and returns those that the server grants: none if it refuses the option.
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
                    return Err(Error::protocol("it grants a context that was not requested"));
                }
                if granted.iter().any(|other| other.id == id || other.name == name) {
                    return Err(Error::protocol(format!(
                        "it grants two contexts with the same id or name (id {id}, name '{name}')"
                    )));
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

/// Opens the export. Returns `false` if the server does not support this option.
fn go(channel: &mut impl Channel, export: &mut Export) -> Result<bool> {
    let option = wire::OPT_GO;
    channel.send(&options::encode_option(option, &options::encode_go(&export.name)))?;
    let mut has_export_size = false;
    for _ in 0..MAX_REPLIES {
        let (reply, payload) = option_reply(channel, option)?;
        match reply.kind {
            wire::REP_ACK if has_export_size => return Ok(true),
            wire::REP_ACK => {
                return Err(Error::protocol(
                    "it opens the export but does not send the export's size",
                ));
            }
            wire::REP_INFO => match options::parse_info(&payload)? {
                Info::Export { size, flags } => {
                    (export.size, export.flags) = (size, flags);
                    has_export_size = true;
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
        "it sends more than {MAX_REPLIES} replies to one option"
    )))
}

/// Opens the export with the old option. A server refuses it by closing the connection.
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
            "it answers option {} instead of option {option}",
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

/// Runs the handshake against a fixed script of server bytes, for the fuzz target and the tests.
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
