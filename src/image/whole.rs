//! Verifies a file as a whole: its length and its digest.

use std::path::Path;
use std::sync::Arc;

use super::recorded::Recorded;
use super::sequential::Sequential;
use super::{Error, Result, StoredFile, cache};
use crate::model::stop::Stop;

/// How much is read at once, in bytes.
const PIECE: usize = 1024 * 1024;

/// Reads the whole file once, without filling the page cache, and compares it with its recorded
/// length and digest. Calls `progress` with the number of bytes read so far, about once per MiB.
///
/// # Errors
/// [`Error::Length`] or [`Error::Digest`] if the file does not match; others if it cannot be read,
/// or a stop was requested.
pub(crate) fn verify_file(
    file: StoredFile,
    path: &Path,
    recorded: &Recorded,
    stop: &Stop,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let actual = file
        .length()
        .map_err(|error| Error::of_file("examine", path, error))?;
    if actual != recorded.bytes {
        return Err(Error::Length {
            path: path.to_owned(),
            actual,
            expected: recorded.bytes,
        });
    }
    // The bytes on the disk have to be verified, not those in the page cache.
    cache::forget(file.file());
    let digest = recorded.blake3.clone();
    let stop = stop.clone();
    let mut whole = Sequential::new(
        Arc::new(file),
        path.to_owned(),
        recorded.bytes,
        digest,
        PIECE,
        stop,
    );
    let mut passed = 0;
    while passed < recorded.bytes {
        passed = whole.pass_piece().inspect_err(|_| whole.break_off())?;
        progress(passed);
    }
    whole.finish()
}
