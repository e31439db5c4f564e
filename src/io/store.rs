//! Changes to durable files: whatever must survive a crash is created, synced, renamed and deleted
//! through the store.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};

use super::DirectFile;
use crate::model::block::ImageFile;
use crate::model::buffer::Buffer;

/// Files of at least this length are written past the page cache, in pieces of this length, in
/// bytes.
const LARGE_FILE: usize = 1 << 20;

/// Operations on durable storage. Tests use a store that crashes at the n-th call.
pub trait Store: Send + Sync {
    /// Creates a folder that only its owner may access; an existing one is an error.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Creates a folder with the permissions that the umask allows, because QEMU may run as another
    /// user and need access to its content. An existing one is an error.
    fn create_open_dir(&self, path: &Path) -> io::Result<()>;

    /// Creates a folder that only its owner may list, and that every user may pass through. An
    /// existing one is an error.
    fn create_passage(&self, path: &Path) -> io::Result<()>;

    /// Creates a file for an image; an existing one is an error.
    fn create_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>>;

    /// Opens an existing file to change it. A link is an error.
    fn continue_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>>;

    /// Creates the file `name` as a clone of `file`, and opens `name` to write to it. The two files
    /// share their space until one of them changes.
    ///
    /// # Errors
    /// `file` does not exist or is a link; `name` exists already. `Unsupported` if the file system
    /// cannot clone.
    fn clone_image(&self, file: &Path, name: &Path) -> io::Result<Box<dyn ImageFile>>;

    /// Gives a file a second name; an existing one is an error.
    ///
    /// # Errors
    /// `Unsupported`, `PermissionDenied`, `CrossesDevices` or `TooManyLinks` if the file system
    /// cannot do that for these two names.
    fn link(&self, file: &Path, name: &Path) -> io::Result<()>;

    /// Creates a file under a temporary name, and claims it. Until the claim is dropped or its
    /// owner dies, [`Store::remove_unclaimed`] leaves the file alone. An existing file is an error.
    ///
    /// # Errors
    /// `WouldBlock` if another process took the new file for an abandoned one and removes it: the
    /// caller should try another name.
    fn create_claimed(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)>;

    /// Opens a file that another program has just created for the caller, and claims it as
    /// [`Store::create_claimed`] does. A link, or anything other than a regular file, is an error.
    ///
    /// # Errors
    /// `WouldBlock` or `NotFound` if another process took the file for an abandoned one: the caller
    /// should try another name.
    fn claim_image(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)>;

    /// Removes a file that [`Store::create_claimed`] made and whose owner is dead. Returns whether
    /// it was removed. Claimed files, and anything other than regular files, stay. On a file system
    /// without locks everything stays.
    fn remove_unclaimed(&self, path: &Path) -> io::Result<bool>;

    /// Creates a small file with this content and syncs it; an existing one is an error. Only its
    /// owner may read it.
    fn create_file(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Renames a file or folder; an existing target is an error.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames a file; an existing file with the new name is replaced in the same step.
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes everything created, renamed and removed in a folder survive a crash.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// A claim on an unfinished file: a kernel lock (`flock`), which shows that the file's owner is
/// alive. It ends with the process at the latest. On a file system without locks it is empty.
#[derive(Debug)]
pub struct Claim {
    _file: Option<File>,
}

impl Claim {
    /// Locks a file that has just been created. On a file system without locks the claim is empty,
    /// and no process can take the file for abandoned.
    fn take(file: &File) -> io::Result<Claim> {
        match file.try_lock() {
            // Another process may have locked and removed it between its creation and this lock.
            Ok(()) if file.metadata()?.nlink() == 0 => Err(io::ErrorKind::WouldBlock.into()),
            // The lock belongs to the open file, which the copy shares: it lasts until both are
            // closed.
            Ok(()) => Ok(Claim {
                _file: Some(file.try_clone()?),
            }),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(_)) => Ok(Claim { _file: None }),
        }
    }
}

/// The store on the real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskStore;

impl Store for DiskStore {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        // Images are copies of whole machines, so only their owner may read them.
        DirBuilder::new().mode(0o700).create(path)
    }

    fn create_open_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().create(path)
    }

    fn create_passage(&self, path: &Path) -> io::Result<()> {
        let mode = 0o711;
        DirBuilder::new().mode(mode).create(path)?;
        // The umask may have removed permissions.
        std::fs::set_permissions(path, Permissions::from_mode(mode))
    }

    fn create_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        Ok(Box::new(DirectFile::new(create_new(path)?)))
    }

    fn continue_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        Ok(Box::new(DirectFile::new(open_existing(path)?)))
    }

    fn clone_image(&self, file: &Path, name: &Path) -> io::Result<Box<dyn ImageFile>> {
        let (from, to) = (open_existing(file)?, create_new(name)?);
        if let Err(error) = rustix::fs::ioctl_ficlone(&to, &from) {
            std::fs::remove_file(name)?;
            let error = io::Error::from(error);
            return Err(match cannot_clone(&error) {
                true => io::ErrorKind::Unsupported.into(),
                false => error,
            });
        }
        Ok(Box::new(DirectFile::new(to)))
    }

    fn link(&self, file: &Path, name: &Path) -> io::Result<()> {
        std::fs::hard_link(file, name)
    }

    fn create_claimed(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)> {
        let file = create_new(path)?;
        let claim = Claim::take(&file)?;
        Ok((Box::new(DirectFile::new(file)), claim))
    }

    fn claim_image(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)> {
        let file = open_existing(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let claim = Claim::take(&file)?;
        Ok((Box::new(DirectFile::new(file)), claim))
    }

    fn remove_unclaimed(&self, path: &Path) -> io::Result<bool> {
        // Some network file systems lock only files that are open for writing.
        let file = open_existing(path)?;
        let found = file.metadata()?;
        if !found.is_file() || file.try_lock().is_err() {
            return Ok(false);
        }
        // Before the lock, its owner could rename it, and another process could create a file with
        // this name. From now on neither can happen: an owner holds the lock for as long as the
        // file has this name.
        let there = path.symlink_metadata()?;
        if (there.dev(), there.ino()) != (found.dev(), found.ino()) {
            return Ok(false);
        }
        std::fs::remove_file(path)?;
        Ok(true)
    }

    fn create_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = create_new(path)?;
        if content.len() < LARGE_FILE {
            file.write_all(content)?;
            return file.sync_all();
        }
        let mut direct = DirectFile::new(file);
        let mut piece = Buffer::alone(LARGE_FILE);
        for (number, bytes) in content.chunks(LARGE_FILE).enumerate() {
            piece.set_len(bytes.len());
            piece.copy_from_slice(bytes);
            direct.write_any(&piece, (number * LARGE_FILE) as u64)?;
        }
        direct.sync()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // Some network file systems cannot do this in one step.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if to.symlink_metadata().is_ok() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                Ok(rustix::fs::rename(from, to)?)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::rename(from, to)?)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }
}

/// Whether this error of ioctl_ficlone(2) means that the file system, or this file, cannot share
/// its space with another.
fn cannot_clone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let refusals = [
        Errno::OPNOTSUPP,
        Errno::NOTTY,
        Errno::NOSYS,
        Errno::INVAL,
        Errno::XDEV,
        Errno::PERM,
        Errno::TXTBSY,
    ];
    Errno::from_io_error(error).is_some_and(|errno| refusals.contains(&errno))
}

/// Opens a file for reading and writing. A link is an error, and a pipe does not block.
fn open_existing(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_are_written_whole() {
        // One of the two probably is a file system without O_DIRECT.
        for parent in [std::env::temp_dir(), "/dev/shm".into()] {
            let dir = tempfile::tempdir_in(parent).expect("a temporary folder");
            for length in [
                0,
                5,
                LARGE_FILE - 1,
                LARGE_FILE,
                2 * LARGE_FILE + 4096,
                3 * LARGE_FILE + 77,
            ] {
                let content: Vec<u8> = (0..length).map(|at| (at / 7) as u8).collect();
                let path = dir.path().join(length.to_string());
                DiskStore.create_file(&path, &content).expect("written");
                assert!(std::fs::read(&path).expect("there") == content, "{length} bytes");
                assert!(DiskStore.create_file(&path, &content).is_err(), "it exists");
            }
        }
    }

    #[test]
    fn nothing_that_exists_is_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let a = folder.path().join("a");
        let b = folder.path().join("b");
        DiskStore.create_file(&a, b"a").expect("new");
        DiskStore.create_file(&b, b"b").expect("new");
        for refused in [
            DiskStore.create_file(&a, b"x"),
            DiskStore.rename(&a, &b),
            DiskStore.create_dir(&a),
            DiskStore.create_open_dir(&a),
            DiskStore.create_passage(&a),
            DiskStore.create_image(&b).map(drop),
            DiskStore.clone_image(&a, &b).map(drop),
            DiskStore.create_claimed(&b).map(drop),
        ] {
            let error = refused.expect_err("it exists");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(std::fs::read(&b).expect("it is there"), b"b");
        DiskStore.replace(&a, &b).expect("that is what it is for");
        assert_eq!(std::fs::read(&b).expect("it is there"), b"a");
        assert!(!a.exists());
    }

    #[test]
    fn only_unclaimed_files_are_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("x");
        let (mut file, claim) = DiskStore.create_claimed(&path).expect("new");
        file.write_at(b"some", 0).expect("written");
        assert!(
            !DiskStore.remove_unclaimed(&path).expect("looked at"),
            "it is open"
        );
        drop(file);
        assert!(
            !DiskStore.remove_unclaimed(&path).expect("looked at"),
            "it is claimed"
        );
        drop(claim);
        assert!(DiskStore.remove_unclaimed(&path).expect("looked at"));
        assert!(!path.exists());
    }

    #[test]
    fn a_file_of_another_program_is_claimed_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, link) = (folder.path().join("x"), folder.path().join("link"));
        std::fs::write(&path, "an empty image").expect("written");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        let (mut file, claim) = DiskStore.claim_image(&path).expect("claimed");
        let again = DiskStore.claim_image(&path).map(drop).expect_err("it is claimed");
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        assert!(!DiskStore.remove_unclaimed(&path).expect("looked at"));
        file.set_len(0).expect("emptied");
        drop((file, claim));
        assert!(DiskStore.remove_unclaimed(&path).expect("looked at"));
        let gone = DiskStore.claim_image(&path).map(drop).expect_err("it is gone");
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        for wrong in [link.as_path(), folder.path()] {
            assert!(DiskStore.claim_image(wrong).is_err(), "{}", wrong.display());
        }
    }

    #[test]
    fn what_is_no_file_is_not_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [dir, link, target, pipe] =
            ["dir", "link", "target", "pipe"].map(|name| folder.path().join(name));
        DiskStore.create_dir(&dir).expect("new");
        DiskStore.create_file(&target, b"x").expect("new");
        std::os::unix::fs::symlink(&target, &link).expect("linked");
        rustix::fs::mknodat(
            CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .expect("a pipe");
        for path in [&dir, &link, &pipe] {
            assert!(!DiskStore.remove_unclaimed(path).unwrap_or(false));
            assert!(path.symlink_metadata().is_ok(), "{} is there", path.display());
        }
        assert!(target.exists());
    }
}
