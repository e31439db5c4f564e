//! The qcow2 format, version 3: its layout, a writer that appends, and a reader for files that may
//! be damaged.

pub mod check;
pub mod decompress;
pub mod header;
pub mod layout;
pub mod reader;
pub mod writer;

mod log;
mod uses;

#[cfg(test)]
mod check_tests;

pub use decompress::Decompressor;
pub use header::Header;
pub use layout::CompressedCluster;
pub use reader::{Image, MappedRun, Mapping};
pub use writer::{Base, CompressingWriter, Qcow2Options, Qcow2Writer};
