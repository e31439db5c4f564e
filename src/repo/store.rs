//! The only door to durable files. Everything that has to outlive a crash is created, synced, renamed and deleted here.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::io::DirectFile;
use crate::model::block::ImageFile;

/// What the repository does to durable storage. Tests put a store here that crashes at the n-th call.
pub trait Store: Send + Sync {
    /// Creates a folder; one that exists is an error.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Creates a file for an image; one that exists is an error.
    fn create_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>>;

    /// Creates a small file with this content and syncs it; one that exists is an error. Only its owner may read it.
    fn create_file(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Renames; a target that exists is an error.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes what was created, renamed and removed in a folder survive a crash.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// The real thing.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskStore;

impl Store for DiskStore {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        // Images are copies of whole machines: nobody but the owner needs to look into them.
        DirBuilder::new().mode(0o700).create(path)
    }

    fn create_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        Ok(Box::new(DirectFile::new(create_new(path)?)))
    }

    fn create_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = create_new(path)?;
        file.write_all(content)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            // Some network file systems cannot promise it in one step.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if to.symlink_metadata().is_ok() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                Ok(rustix::fs::rename(from, to)?)
            }
            Err(error) => Err(error.into()),
        }
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
            DiskStore.create_image(&b).map(drop),
        ] {
            let error = refused.expect_err("it exists");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(std::fs::read(&b).expect("it is there"), b"b");
    }
}
