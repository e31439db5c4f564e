//! Drops pages whose content is read only once from the page cache. Otherwise an image would
//! displace the pages that the host needs.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};

/// How many bytes before `done` are dropped again, because the kernel keeps partly dropped pieces.
/// The kernel caches a file in pieces of up to some MiB.
const OVERLAP: u64 = 8 * 1024 * 1024;

/// Drops the pages before `end`. Those before `done` have been dropped already.
pub(super) fn forget_until(file: &File, done: u64, end: u64) {
    let from = done.saturating_sub(OVERLAP);
    let length = NonZeroU64::new(end.saturating_sub(from));
    if length.is_some() {
        // Advice only: if the file system ignores it, the read was correct all the same.
        let _ = fadvise(file, from, length, Advice::DontNeed);
    }
}

/// Drops the pages of a range.
pub(super) fn forget_range(file: &File, offset: u64, length: u64) {
    if let Some(length) = NonZeroU64::new(length) {
        let _ = fadvise(file, offset, Some(length), Advice::DontNeed);
    }
}

/// Drops the pages of the whole file, so that the next reads come from the disk. Pages that are not
/// on the disk yet stay.
pub(super) fn forget(file: &File) {
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

/// Disables read-ahead, for files that are read at random places.
pub(super) fn expect_no_order(file: &File) {
    let _ = fadvise(file, 0, None, Advice::Random);
}

/// The largest number of bytes that the kernel is expected to read ahead of a sequential reader.
const READ_AHEAD: u64 = 32 * 1024 * 1024;

/// Waits for the read-ahead from `from` on, because pages cannot be dropped before they have
/// arrived. Disables further read-ahead.
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
