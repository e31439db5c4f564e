//! Keeps merges from replacing the files of a domain's folder while anybody reads them.
//!
//! A reader holds a shared lock of the kernel on the domain's folder from before it reads the
//! manifests until it has closed the files. A merge takes the lock exclusively before it replaces
//! or removes files that an earlier manifest names. Both locks end with their process.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::repo::history::Guard;
use crate::repo::{RepoError, Result};
use crate::wait;

/// How long a reader waits for a merge that is replacing files at the moment.
const READER_WAITS: Duration = Duration::from_secs(120);
/// How long a merge waits for readers. Most read for a moment only.
const MERGE_WAITS: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// A lock on the domain's folder, until it is dropped.
#[derive(Debug)]
pub(super) struct FolderLock(Option<File>);

impl Guard for FolderLock {}

impl FolderLock {
    /// Whether the lock exists; false if the file system has no locks.
    pub(super) fn is_held(&self) -> bool {
        self.0.is_some()
    }
}

/// Whether locks on this folder work.
pub(super) fn can_lock(dir: &Path) -> bool {
    take(dir, Duration::ZERO, File::try_lock_shared).is_ok_and(|lock| lock.is_held())
}

impl Drop for FolderLock {
    /// Unlocks, because closing the file is not enough while a child process that was just forked
    /// still has it open.
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            let _ = file.unlock();
        }
    }
}

/// Keeps merges from replacing files until the lock is dropped. If the folder is missing, or its
/// file system has no locks, there is nothing to hold.
///
/// # Errors
/// A merge replaces files for longer than a reader waits.
pub(super) fn share(dir: &Path) -> Result<FolderLock> {
    let locked = take(dir, READER_WAITS, File::try_lock_shared);
    locked.map_err(|error| {
        let waited = READER_WAITS.as_secs();
        let why =
            format!("a merge is replacing files, and did not finish within {waited} s: run again later");
        RepoError::io("read", dir)(io::Error::new(error.kind(), why))
    })
}

/// Excludes readers until the lock is dropped; `None` if a process still reads after a few seconds.
/// If the file system has no locks ([`FolderLock::is_held`]), nobody is excluded.
pub(super) fn exclude(dir: &Path) -> Result<Option<FolderLock>> {
    match take(dir, MERGE_WAITS, File::try_lock) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(RepoError::io("lock", dir)(error)),
    }
}

fn take(
    dir: &Path,
    patience: Duration,
    lock: fn(&File) -> std::result::Result<(), TryLockError>,
) -> io::Result<FolderLock> {
    let file = match File::open(dir) {
        Ok(file) => file,
        // Reading it reports why.
        Err(_) => return Ok(FolderLock(None)),
    };
    let deadline = Instant::now() + patience;
    loop {
        match lock(&file) {
            Ok(()) => return Ok(FolderLock(Some(file))),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => wait::pause(PAUSE),
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(_)) => return Ok(FolderLock(None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_exclude_a_merge_and_not_each_other() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = share(folder.path()).expect("it is free");
        let second = share(folder.path()).expect("readers share it");
        let instead = take(folder.path(), Duration::ZERO, File::try_lock);
        assert_eq!(instead.expect_err("it is read").kind(), io::ErrorKind::WouldBlock);
        drop((first, second));
        let merge = exclude(folder.path())
            .expect("it can be locked")
            .expect("it is free");
        assert!(take(folder.path(), Duration::ZERO, File::try_lock_shared).is_err());
        drop(merge);
        share(folder.path()).expect("it is free again");
    }

    #[test]
    fn a_missing_folder_needs_no_lock() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = folder.path().join("missing");
        assert!(share(&missing).expect("nothing to hold").0.is_none());
    }
}
