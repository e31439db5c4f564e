//! Access to files, for the repository, which creates images, and for the image writers.

mod direct;
mod store;

pub use direct::DirectFile;
pub use store::{Claim, DiskStore, Store};
