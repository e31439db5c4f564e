//! File access for the repository and the image writers.

mod direct;
mod store;

pub use direct::DirectFile;
pub use store::{Claim, DiskStore, Store};
