//! What can go wrong between us and an NBD server.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::block::{BlockError, BlockErrorKind};

/// Result of everything in this room.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between us and an NBD server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user asked to stop.
    #[error("stopped on request")]
    Stopped,
    /// Nobody listens on the socket, or it cannot be used.
    #[error("cannot connect to the NBD server at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The server closed the connection.
    #[error("the NBD server closed the connection during {phase}")]
    Disconnected {
        /// `the handshake` or `the transmission`.
        phase: &'static str,
    },
    /// The server sent or took no byte before the deadline.
    #[error("the NBD server was silent for {} s during {phase}", deadline.as_secs_f64())]
    TimedOut {
        /// `the connecting`, `the handshake` or `the transmission`.
        phase: &'static str,
        /// How long it may keep silent.
        deadline: Duration,
    },
    /// The socket failed.
    #[error("the connection to the NBD server failed during {phase}")]
    Io {
        /// `the handshake` or `the transmission`.
        phase: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server said something that the protocol does not allow.
    #[error("the NBD server broke the protocol: {what}")]
    Protocol {
        /// What it said.
        what: String,
    },
    /// The server works in a way that this client does not know or cannot use.
    #[error("the NBD server cannot be used: {what}")]
    Unsupported {
        /// What is missing.
        what: String,
    },
    /// The server refused to open the export.
    #[error("the NBD server refused export '{export}': {reason}")]
    Refused {
        /// The export's name.
        export: String,
        /// The server's words, or the name of its error.
        reason: String,
    },
    /// The server does not offer a metadata context without which the wanted answer cannot be given.
    #[error("the NBD server does not offer context '{context}' for export '{export}'")]
    ContextMissing {
        /// The export's name.
        export: String,
        /// The context's name.
        context: String,
    },
    /// The disk reads as zero where it did not before, and the bitmap does not know of it: whatever else has changed, it may not know either.
    #[error("the bitmap does not know that the disk has become zero at offset {offset}")]
    Distrusted {
        /// Where, in bytes.
        offset: u64,
    },
    /// The server answered a request with an error.
    #[error("the NBD server could not {command} {length} bytes at offset {offset}: {}", errno_words(*errno, message))]
    Server {
        /// What was asked for, as a verb phrase (`read`, `tell the status of`).
        command: &'static str,
        /// Where the request began (or where the server met the error, if it told), in bytes.
        offset: u64,
        /// Length of the request, in bytes.
        length: u32,
        /// The protocol's error number; most are those of Linux.
        errno: u32,
        /// The server's words; mostly empty.
        message: String,
    },
    /// A request that the export or its block sizes do not allow: a mistake of the caller.
    #[error("cannot ask for {length} bytes at offset {offset}: {what}")]
    BadRequest {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
        /// Why not.
        what: String,
    },
}

/// Numbers of the errors that the protocol names ("Error values" in the NBD protocol).
pub(super) mod errno {
    /// The request is longer than the server can answer unfragmented.
    pub const EOVERFLOW: u32 = 75;
    /// The server is about to go away.
    pub const ESHUTDOWN: u32 = 108;
}

fn errno_words(number: u32, message: &str) -> String {
    let name = match number {
        1 => "operation not permitted (EPERM)",
        5 => "input/output error (EIO)",
        12 => "out of memory (ENOMEM)",
        22 => "invalid argument (EINVAL)",
        28 => "no space left (ENOSPC)",
        errno::EOVERFLOW => "value too large (EOVERFLOW)",
        95 => "not supported (ENOTSUP)",
        errno::ESHUTDOWN => "server is shutting down (ESHUTDOWN)",
        _ => "",
    };
    match (name, message) {
        ("", "") => format!("error {number}"),
        ("", message) => format!("{message} (error {number})"),
        (name, "") => name.to_owned(),
        (name, message) => format!("{message}: {name}"),
    }
}

impl Error {
    pub(super) fn protocol(what: impl Into<String>) -> Self {
        Error::Protocol { what: what.into() }
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> BlockErrorKind {
        match self {
            Error::Stopped => BlockErrorKind::Stopped,
            Error::Connect { .. }
            | Error::Disconnected { .. }
            | Error::TimedOut { .. }
            | Error::Io { .. } => BlockErrorKind::Lost,
            Error::Server { errno, .. } if *errno == errno::ESHUTDOWN => BlockErrorKind::Lost,
            Error::Protocol { .. } => BlockErrorKind::Invalid,
            Error::Distrusted { .. } => BlockErrorKind::Distrusted,
            Error::Unsupported { .. }
            | Error::Refused { .. }
            | Error::ContextMissing { .. }
            | Error::Server { .. }
            | Error::BadRequest { .. } => BlockErrorKind::Io,
        }
    }

    /// The same, as trouble of the pump. `what` tells what was being done.
    pub fn into_block_error(self, what: impl Into<String>) -> BlockError {
        match self {
            Error::Stopped => BlockError::stopped(),
            error => BlockError::from_source(error.kind(), what, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_error_names_the_place_and_the_number() {
        let error = |errno, message: &str| {
            Error::Server {
                command: "read",
                offset: 65536,
                length: 512,
                errno,
                message: message.to_owned(),
            }
            .to_string()
        };
        assert_eq!(
            error(5, ""),
            "the NBD server could not read 512 bytes at offset 65536: input/output error (EIO)"
        );
        assert!(error(5, "bad sector").ends_with(": bad sector: input/output error (EIO)"));
        assert!(error(77, "").ends_with(": error 77"));
    }

    #[test]
    fn a_server_that_shuts_down_counts_as_lost() {
        let error = Error::Server {
            command: "read",
            offset: 0,
            length: 1,
            errno: errno::ESHUTDOWN,
            message: String::new(),
        };
        assert_eq!(error.kind(), BlockErrorKind::Lost);
    }
}
