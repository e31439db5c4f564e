//! A temporary domain for `vmsnap demo` and the live tests: no daemon, no configuration, no guest
//! system.
//!
//! libvirt's driver runs inside this process (`qemu:///embed`), QEMU is started paused, and a
//! simulated guest writes through QEMU's own block device. The writes are also kept as a plain
//! model, so that restored bytes can be compared with the expected ones.

mod embed;
mod machine;
mod nobody;
mod parts;

pub(crate) use crate::host::libvirt::prepare_environment;
pub use embed::Embed;
pub use machine::{Machine, Write};
pub use parts::{Part, names};

/// An error while the temporary domain is made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be used.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// The operation that failed, as a verb.
        operation: &'static str,
        /// Its path.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// libvirt refused.
    #[error("libvirt could not {operation}: {message}")]
    Libvirt {
        /// The operation that failed, as a verb phrase.
        operation: &'static str,
        /// libvirt's message.
        message: String,
    },
    /// This thread could not work as the user `nobody`.
    #[error("cannot switch to user 'nobody'")]
    Nobody(#[source] std::io::Error),
    /// The user `nobody` cannot enter the folder.
    #[error(
        "choose another folder with --dir: the demo has to run as user 'nobody', because libvirt's own user for QEMU does not exist, and that user cannot use {}",
        path.display()
    )]
    Unreachable {
        /// The folder.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// Parts of libvirt or QEMU are not installed.
    #[error("Missing dependencies ({})", names(parts))]
    Missing {
        /// All missing parts.
        parts: Vec<Part>,
    },
    /// The disk's image could not be made.
    #[error("cannot create the disk's image")]
    Image(#[from] crate::model::block::BlockError),
    /// The simulated guest could not write.
    #[error("the simulated guest cannot run '{command}': {answer}")]
    Guest {
        /// The command.
        command: String,
        /// QEMU's answer.
        answer: String,
    },
}

/// Result of a function of the demo.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn io(operation: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io {
            operation,
            path,
            source,
        }
    }

    fn libvirt(operation: &'static str) -> impl FnOnce(virt::error::Error) -> Error {
        move |error| Error::Libvirt {
            operation,
            message: error.message().to_owned(),
        }
    }
}
