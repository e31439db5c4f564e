//! The qcow2 format, version 3: its layout, a writer that only appends, and a reader that trusts
//! nothing.

pub mod check;
pub mod header;
pub mod layout;
pub mod reader;
pub mod writer;

mod log;

#[cfg(test)]
mod check_tests;

pub use header::Header;
pub use reader::{Image, MappedRun, Mapping};
pub use writer::{Qcow2Options, Qcow2Writer};
