//! Gives the page cache back what was read only once: an image is larger than what the host's cache is there for.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};

/// The kernel caches a file in pieces of several pages, up to some MiB, and keeps a piece of which only a part is given back. So what was
/// given back before is named once more, in bytes.
const OVERLAP: u64 = 8 * 1024 * 1024;

/// Gives back what lies before `end`; before `done` all has been given back already.
pub(super) fn forget_until(file: &File, done: u64, end: u64) {
    let from = done.saturating_sub(OVERLAP);
    let length = NonZeroU64::new(end.saturating_sub(from));
    if length.is_some() {
        // Advice only: a file system that cannot take it has been read all the same.
        let _ = fadvise(file, from, length, Advice::DontNeed);
    }
}

/// Gives the whole file back. What is read next comes from the disk, but for what was written and is not there yet.
pub(super) fn forget(file: &File) {
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

/// Lets nothing be read ahead: for what is read here and there.
pub(super) fn expect_no_order(file: &File) {
    let _ = fadvise(file, 0, None, Advice::Random);
}

/// The most that the kernel is expected to be reading ahead of who reads a file from front to back, in bytes.
const READ_AHEAD: u64 = 32 * 1024 * 1024;

/// Waits for what is being read ahead from `from` on: it cannot be given back before it is there. Nothing further is read ahead.
pub(super) fn await_read_ahead(file: &File, from: u64) {
    expect_no_order(file);
    let mut bytes = vec![0; 1024 * 1024];
    let mut at = from;
    while at < from + READ_AHEAD {
        match file.read_at(&mut bytes, at) {
            Ok(count) if count > 0 => at += count as u64,
            _ => break,
        }
    }
}
