//! Allows one writer per domain. The kernel releases the lock when its owner ends, even by a crash.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::wait;

/// The right to write to one domain's part of a repository, until it is dropped.
#[derive(Debug)]
pub(super) struct DomainLock {
    file: File,
}

impl Drop for DomainLock {
    /// Unlocks, because closing the file is not enough while a child process that was just forked
    /// still has it open. Without an unlock the lock ends when the child starts its program.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// The reason why the lock was not taken.
#[derive(Debug)]
pub(super) enum LockError {
    /// Another run holds the lock. The text is that run's description of itself.
    Held(String),
    /// The lock file cannot be used.
    Io(PathBuf, io::Error),
}

/// The number of retries and the pause between them. A process that only checks the lock holds it
/// for microseconds.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(10);

/// Takes the lock. If another run still holds it after a moment, the error describes that run.
pub(super) fn acquire(path: &Path) -> Result<DomainLock, LockError> {
    let failed = |error| LockError::Io(path.to_owned(), error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        // Through a link another file would be emptied, and opening a pipe could block for ever.
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
    Ok(DomainLock { file })
}

/// The description of the run that holds the lock, if there is one.
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

/// Reads the holder's note, as far as possible. Even if that fails, the lock is held.
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

    /// As a child process has it between fork and exec.
    #[test]
    fn lock_is_free_after_drop_even_if_its_file_is_open() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(".lock");
        let lock = acquire(&path).expect("nobody holds it");
        let inherited = lock.file.try_clone().expect("a second handle");
        drop(lock);
        acquire(&path).expect("it is free again");
        drop(inherited);
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
