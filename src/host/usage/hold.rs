//! Opens a block device and claims it exclusively, as far as the kernel allows.
//!
//! `O_EXCL` excludes mounts, swap, device-mapper, RAID and every program that also uses `O_EXCL`.
//! QEMU does not use it, but takes advisory locks on single bytes of the file
//! (`raw_apply_lock_bytes` in QEMU's block/file-posix.c). This module takes the same locks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::OFlags;

use super::{Usage, User};

/// The offsets of QEMU's lock bytes (RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE).
///
/// A process that performs action `n` locks byte `USED + n`. A process that forbids action `n` to
/// others locks byte `DENIED + n`.
const USED: i64 = 100;
const DENIED: i64 = 200;
/// QEMU's actions: consistent reads (0), writes (1), writes that change nothing (2), resizing (3).
const ACTIONS: std::ops::RangeInclusive<i64> = 0..=3;
const WRITE: i64 = 1;

/// The reason why a device could not be opened and claimed.
#[derive(Debug)]
pub(crate) enum HoldError {
    /// The kernel or another program has claimed or locked the device.
    Used(User),
    /// The device could not be opened.
    Io(io::Error),
}

/// A block device that is open for reading and writing, claimed and locked.
///
/// The claim lasts until this value and every file cloned from it are closed.
#[derive(Debug)]
pub(crate) struct HeldDevice {
    file: File,
    path: PathBuf,
}

impl HeldDevice {
    /// Opens and claims a block device.
    ///
    /// # Errors
    /// Claims or locks show that the device is in use, or the device cannot be opened.
    pub fn open(path: &Path) -> Result<HeldDevice, HoldError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::EXCL.bits() as i32)
            .open(path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::ResourceBusy => HoldError::Used(User::Claim),
                _ => HoldError::Io(error),
            })?;
        for action in ACTIONS {
            lock(&file, DENIED + action);
        }
        lock(&file, USED + WRITE);
        // Takes its own locks before it checks for others, as QEMU does: of two processes at least
        // one then notices the conflict.
        if is_locked_by_others(&file) {
            return Err(HoldError::Used(User::QemuLock));
        }
        Ok(HeldDevice {
            file,
            path: path.to_owned(),
        })
    }

    /// Returns the path by which the device was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Clones the open file. The claim lasts until all clones are closed.
    ///
    /// # Errors
    /// The process has reached its limit of open files.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// Finds another program's claim or lock without changing anything.
///
/// `None` if there is none, or if the device cannot be opened.
pub(super) fn claimed_by_others(path: &Path) -> Option<Usage> {
    let flags = OFlags::EXCL | OFlags::NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path);
    let user = match opened {
        Ok(file) => is_locked_by_others(&file).then_some(User::QemuLock)?,
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => User::Claim,
        Err(_) => return None,
    };
    Some(Usage { user, part: None })
}

/// Takes a shared lock on a byte.
///
/// Ignores failures: on a file system without locks QEMU cannot lock either.
fn lock(file: &File, byte: i64) {
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&one_byte(libc::F_RDLCK, byte)));
}

/// Returns whether the locks of another open file show any action or forbid writing.
fn is_locked_by_others(file: &File) -> bool {
    let mut bytes = ACTIONS.map(|action| USED + action).chain([DENIED + WRITE]);
    bytes.any(|byte| {
        let mut found = one_byte(libc::F_WRLCK, byte);
        let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut found));
        asked.is_ok() && i32::from(found.l_type) != libc::F_UNLCK
    })
}

fn one_byte(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_handles() -> (tempfile::NamedTempFile, File, File) {
        let named = tempfile::NamedTempFile::new().expect("a file");
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).open(named.path()).expect("opened")
        };
        let (ours, theirs) = (open(), open());
        (named, ours, theirs)
    }

    #[test]
    fn a_reader_and_a_writer_of_qemu_are_both_seen() {
        for action in ACTIONS {
            let (_named, ours, theirs) = two_handles();
            assert!(!is_locked_by_others(&ours));
            lock(&theirs, USED + action);
            assert!(is_locked_by_others(&ours), "{action}");
            drop(theirs);
            assert!(!is_locked_by_others(&ours), "{action}");
        }
    }

    #[test]
    fn a_process_that_denies_writing_is_seen_and_own_locks_are_not() {
        let (_named, ours, theirs) = two_handles();
        for action in ACTIONS {
            lock(&ours, DENIED + action);
        }
        lock(&ours, USED + WRITE);
        assert!(!is_locked_by_others(&ours));
        lock(&theirs, DENIED + WRITE);
        assert!(is_locked_by_others(&ours));
    }

    #[test]
    fn a_missing_device_is_no_claim() {
        assert_eq!(claimed_by_others(Path::new("/nonexistent")), None);
        let missing = HeldDevice::open(Path::new("/nonexistent"));
        assert!(matches!(missing, Err(HoldError::Io(_))));
    }
}
