//! Files that are written past the page cache: beneath both the repository, which creates images, and the images' own writers.

mod direct;

pub use direct::DirectFile;
