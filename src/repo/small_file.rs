//! Reads small files that other programs may have changed.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::model::text;

/// Whether the path leads to something other than a file of vmsnap, so that a retry is useless.
pub(super) fn is_of_another_kind(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::IsADirectory,
        io::ErrorKind::InvalidInput,
        io::ErrorKind::FileTooLarge,
    ];
    kinds.contains(&error.kind())
}

/// Reads one of vmsnap's files, which has at most `limit` bytes. Links are not followed, because
/// they lead out of the repository.
pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what);
    // Opening a pipe would block until another process writes to it.
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let file = match opened {
        Err(error) if is_circle(&error) && path.is_symlink() => {
            return Err(refused("it is a link, not a file"));
        }
        opened => opened?,
    };
    let found = file.metadata()?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        return Err(refused("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!(
                "it is larger than {}, the limit for such a file",
                text::bytes(limit)
            ),
        ));
    }
    Ok(bytes)
}

/// Whether an error means that a path has too many links, or is itself a link that must not be
/// followed.
pub(super) fn is_circle(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}
