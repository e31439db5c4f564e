//! The door to files: beneath both the repository, which creates images, and the images' own writers.

mod direct;
mod store;

pub use direct::DirectFile;
pub use store::{Claim, DiskStore, Store};
