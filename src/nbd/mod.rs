//! The reader: an NBD client that turns an export into extents and blocks.

mod error;
mod negotiate;
mod socket;
pub mod wire;

pub use error::{Error, Result};
