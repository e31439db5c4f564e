//! File access for the repository and the image writers.

mod direct;
mod opened_folder;
mod store;
mod unpack;

pub use direct::DirectFile;
pub(crate) use opened_folder::OpenedFolder;
pub use store::{Claim, DiskStore, Store};
pub(crate) use unpack::{Attributes, Unpacked, unpack, write_file};
