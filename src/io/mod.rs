//! File access for the repository and the image writers.

mod direct;
mod opened_folder;
mod picture;
mod store;
mod unpack;

pub use direct::DirectFile;
pub(crate) use opened_folder::OpenedFolder;
pub(crate) use picture::as_png;
pub use store::{Claim, DiskStore, Store};
pub(crate) use unpack::{Attributes, Unpacked, unpack, write_file};
