//! One writer per domain. The kernel frees the lock when its owner dies, however it dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::wait;

/// The right to write to one domain's folder, until dropped.
#[derive(Debug)]
pub struct DomainLock {
    _file: File,
}

/// Why the lock could not be had.
#[derive(Debug)]
pub(super) enum LockError {
    /// Another run holds it; who, as it wrote itself down.
    Held(String),
    /// The lock's file cannot be used.
    Io(PathBuf, io::Error),
}

/// How often and how long somebody who only looks may be in the way of one who wants the lock: looking takes microseconds.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(10);

/// Takes the lock, or says at once who holds it.
pub(super) fn acquire(path: &Path) -> Result<DomainLock, LockError> {
    let failed = |error| LockError::Io(path.to_owned(), error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        // Through a link somebody else's file would be emptied, and to open a pipe could take for ever.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a file",
        )));
    }
    let mut looks = 0;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if looks < LOOKS => {
                looks += 1;
                wait::pause(LOOK);
            }
            Err(TryLockError::WouldBlock) => return Err(LockError::Held(read_holder(&mut file))),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    let note = format!("process {}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(note.as_bytes()))
        .map_err(failed)?;
    Ok(DomainLock { _file: file })
}

/// Who holds the lock, if somebody does.
pub(super) fn holder(path: &Path) -> Option<String> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)
        .ok()
        .filter(|file| file.metadata().is_ok_and(|found| found.is_file()))?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(read_holder(&mut file)),
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// Who holds it is told as far as it can be read; that it is held is certain.
fn read_holder(file: &mut File) -> String {
    let mut holder = String::new();
    let _ = file.take(200).read_to_string(&mut holder);
    holder.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_lock_names_its_holder_and_is_free_after_drop() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(".lock");
        let first = acquire(&path).expect("nobody holds it");
        match acquire(&path) {
            Err(LockError::Held(holder)) => {
                assert_eq!(holder, format!("process {}", std::process::id()));
            }
            other => panic!("{other:?}"),
        }
        assert!(holder(&path).is_some_and(|holder| holder.starts_with("process ")));
        drop(first);
        assert_eq!(holder(&path), None);
        acquire(&path).expect("it is free again");
    }

    #[test]
    fn what_a_link_points_to_is_not_emptied() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, precious) = (folder.path().join(".lock"), folder.path().join("precious"));
        std::fs::write(&precious, "x").expect("written");
        std::os::unix::fs::symlink(&precious, &path).expect("linked");
        assert!(matches!(acquire(&path), Err(LockError::Io(..))));
        assert_eq!(std::fs::read(&precious).expect("it is there"), b"x");
    }
}
