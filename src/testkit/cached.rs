//! How much of a file the page cache holds.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

const PAGE: usize = 4096;

/// So many bytes count as none.
const FEW: usize = 16 * PAGE;

/// How many bytes of the file the page cache holds, in whole pages. The question reads each page that was not there, so ask once; and now and
/// then such a page is there before the answer: up to 16 pages count as none.
///
/// # Errors
/// When the file cannot be read, or its file system cannot tell.
pub fn cached_bytes(path: &Path) -> io::Result<usize> {
    let file = File::open(path)?;
    // So that a question reads no other page ahead.
    fadvise(&file, 0, None, Advice::Random)?;
    let mut count = 0;
    for offset in (0..file.metadata()?.len()).step_by(PAGE) {
        let mut byte = [0];
        let mut into = [IoSliceMut::new(&mut byte)];
        match preadv2(&file, &mut into, offset, ReadWriteFlags::NOWAIT) {
            Ok(_) => count += PAGE,
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(if count <= FEW { 0 } else { count })
}

/// Lets the page cache forget the file, as far as it is on the disk.
///
/// # Errors
/// When the file cannot be opened, or advice is not taken.
pub fn forget_cached(path: &Path) -> io::Result<()> {
    Ok(fadvise(File::open(path)?, 0, None, Advice::DontNeed)?)
}
