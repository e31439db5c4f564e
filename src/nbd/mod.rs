//! The NBD client, which reads an export as extents and blocks and writes blocks to it, and a
//! read-only NBD server.

mod client;
mod coverage;
mod error;
#[cfg(test)]
mod fake;
mod map;
mod negotiate;
mod open_request;
mod options;
mod reply;
pub mod server;
mod sink;
mod socket;
mod source;
mod transmit;
pub mod wire;

pub use client::Client;
pub use error::{Error, Result};
pub(crate) use map::disk_map;
pub use negotiate::{Context, Export};
pub use options::BlockSizes;
pub use sink::ExportSink;
pub use source::{ExportSource, Mode, SourceOptions};

/// Entry points for the fuzz targets: the parsers without a socket.
#[doc(hidden)]
pub mod fuzzing {
    pub use super::negotiate::negotiate_with_script;
    pub use super::reply::decode_script;
    pub use super::server::serve_script;
}
