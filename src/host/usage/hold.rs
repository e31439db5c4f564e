//! An open block device that nobody else can claim, as far as the kernel lets us.
//!
//! `O_EXCL` keeps away mounts, swap, device-mapper, RAID and every program that asks for the same. QEMU does not ask for it; it takes
//! advisory locks on single bytes of the file (`raw_apply_lock_bytes` in QEMU's block/file-posix.c), which are taken here as well.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::OFlags;

use super::{Usage, User};

/// Byte `USED + n` is locked by a process that does `n`, `DENIED + n` by one that does not let others do it
/// (RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE).
const USED: i64 = 100;
const DENIED: i64 = 200;
/// What QEMU distinguishes: consistent reads (0), writes (1), unchanging writes (2), resizing (3).
const ACTIONS: std::ops::RangeInclusive<i64> = 0..=3;
const WRITE: i64 = 1;

/// Why a device could not be had.
#[derive(Debug)]
pub enum HoldError {
    /// Somebody else has claimed or locked it.
    Used(User),
    /// It could not be opened.
    Io(io::Error),
}

/// A block device that is open for reading and writing, claimed and locked until this and every file made from it are closed.
#[derive(Debug)]
pub struct HeldDevice {
    file: File,
    path: PathBuf,
}

impl HeldDevice {
    /// Opens and claims a block device.
    ///
    /// # Errors
    /// When somebody uses it, as far as claims and locks show it, or when it cannot be opened.
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
        // As QEMU does it: first the own locks, then a look at those of others, so that of two at least one gives way.
        if is_locked_by_others(&file) {
            return Err(HoldError::Used(User::QemuLock));
        }
        Ok(HeldDevice {
            file,
            path: path.to_owned(),
        })
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same open file once more. The claim lasts until all of them are closed.
    ///
    /// # Errors
    /// When this process may open no more files.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// The claim or lock of somebody else, found without changing anything. What cannot be opened shows none.
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

/// Takes a shared lock on a byte. On a file system without locks QEMU cannot lock either, so a failure is ignored.
fn lock(file: &File, byte: i64) {
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&one_byte(libc::F_RDLCK, byte)));
}

/// Whether another open file does what we would not let it do, or does not let us write.
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
