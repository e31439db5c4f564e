//! Errors of the NBD client.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::block::{BlockError, BlockErrorKind};

/// The result of functions in this module.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the NBD client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A stop was requested.
    #[error("stopped on request")]
    Stopped,
    /// No server listens on the socket, or the socket cannot be used.
    #[error("cannot connect to the NBD server at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The server closed the connection.
    #[error("the NBD server closed the connection during {phase}")]
    Disconnected {
        /// The phase of the connection: `the handshake` or `the transmission`.
        phase: &'static str,
    },
    /// The server sent nothing, or accepted nothing, until the deadline.
    #[error("the NBD server was silent for {} s during {phase}", deadline.as_secs_f64())]
    TimedOut {
        /// The phase of the connection: `the connection attempt`, `the handshake` or
        /// `the transmission`.
        phase: &'static str,
        /// The longest silence that is allowed.
        deadline: Duration,
    },
    /// The socket failed.
    #[error("the connection to the NBD server failed during {phase}")]
    Io {
        /// The phase of the connection: `the handshake` or `the transmission`.
        phase: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The server sent something that the protocol does not allow, or that exceeds a limit of this
    /// client.
    #[error("invalid answer from the NBD server: {what}")]
    Protocol {
        /// The fault, in words.
        what: String,
    },
    /// The server or its export needs something that this client does not support, or a name is too
    /// long for the protocol.
    #[error("the NBD server cannot be used: {what}")]
    Unsupported {
        /// The reason.
        what: String,
    },
    /// A comparison does not support exports of this size.
    #[error(
        "the disk has {size} bytes ({:.2} TiB), but a comparison supports at most {} TiB",
        tebibytes(*size), *most >> 40
    )]
    TooLarge {
        /// The size of the export, in bytes.
        size: u64,
        /// The largest size that is supported, in bytes: a multiple of 1 TiB.
        most: u64,
    },
    /// The server refused to open the export.
    #[error("the NBD server refused export '{export}': {reason}")]
    Refused {
        /// The export's name.
        export: String,
        /// A description of the server's error, with its message if it sent one.
        reason: String,
    },
    /// The server does not offer a metadata context that is required.
    #[error("the NBD server does not offer metadata context '{context}' for export '{export}'")]
    ContextMissing {
        /// The export's name.
        export: String,
        /// The context's name.
        context: String,
    },
    /// A range reads as zero, the parent may hold something else there, and the bitmap does not
    /// mark it as changed. The bitmap may lack other changes, too.
    #[error(
        "the disk reads as zeroes at offset {offset}, where the parent restore point may hold data, but the bitmap marks no change at this offset"
    )]
    Distrusted {
        /// Start of the range, in bytes.
        offset: u64,
    },
    /// The server answered a request with an error.
    #[error("the NBD server could not {command} {length} bytes at offset {offset}{}: {}", place_words(*failed_at), errno_words(*errno, message))]
    Server {
        /// The request, as a verb phrase (`read`, `report the status of`).
        command: &'static str,
        /// Start of the request, in bytes.
        offset: u64,
        /// Length of the request, in bytes.
        length: u32,
        /// The offset of the error, in bytes, if the server reported it.
        failed_at: Option<u64>,
        /// The protocol's error number; most are those of Linux.
        errno: u32,
        /// The server's message; usually empty.
        message: String,
    },
    /// A request that the export, its block sizes or its contexts do not allow, or a buffer that is
    /// too small: a bug in the caller.
    #[error("invalid request for {length} bytes at offset {offset}: {what}")]
    BadRequest {
        /// Start of the request, in bytes.
        offset: u64,
        /// Length of the request, in bytes.
        length: u64,
        /// The reason.
        what: String,
    },
}

/// Error numbers of the protocol ("Error values" in the NBD protocol).
pub(super) mod errno {
    /// The export is read-only.
    pub(crate) const EPERM: u32 = 1;
    /// Stored data is damaged, or cannot be read.
    pub(crate) const EIO: u32 = 5;
    /// The request is invalid.
    pub(crate) const EINVAL: u32 = 22;
    /// The storage is full.
    pub(crate) const ENOSPC: u32 = 28;
    /// The request is longer than the server can answer in one piece.
    pub(crate) const EOVERFLOW: u32 = 75;
    /// The server is shutting down.
    pub const ESHUTDOWN: u32 = 108;
}

fn tebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 40) as f64
}

fn place_words(failed_at: Option<u64>) -> String {
    failed_at.map_or_else(String::new, |at| format!(" (error at offset {at})"))
}

fn errno_words(number: u32, message: &str) -> String {
    let name = match number {
        1 => "operation not permitted (EPERM)",
        5 => "input/output error (EIO)",
        12 => "out of memory (ENOMEM)",
        22 => "invalid argument (EINVAL)",
        errno::ENOSPC => "no space left (ENOSPC)",
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

    /// The kind of this error, for callers that copy blocks.
    pub fn kind(&self) -> BlockErrorKind {
        match self {
            Error::Stopped => BlockErrorKind::Stopped,
            Error::Connect { .. }
            | Error::Disconnected { .. }
            | Error::TimedOut { .. }
            | Error::Io { .. } => BlockErrorKind::Lost,
            Error::Server { errno, .. } if *errno == errno::ESHUTDOWN => BlockErrorKind::Lost,
            Error::Server { errno, .. } if *errno == errno::ENOSPC => BlockErrorKind::NoSpace,
            Error::Protocol { .. } => BlockErrorKind::Invalid,
            Error::Distrusted { .. } => BlockErrorKind::Distrusted,
            Error::Unsupported { .. }
            | Error::TooLarge { .. }
            | Error::Refused { .. }
            | Error::ContextMissing { .. }
            | Error::Server { .. }
            | Error::BadRequest { .. } => BlockErrorKind::Io,
        }
    }

    /// Converts this error into the error of a block source. `what` describes the failed operation.
    pub(crate) fn into_block_error(self, what: impl Into<String>) -> BlockError {
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
                failed_at: None,
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
            failed_at: None,
            errno: errno::ESHUTDOWN,
            message: String::new(),
        };
        assert_eq!(error.kind(), BlockErrorKind::Lost);
    }
}
