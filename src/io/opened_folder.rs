//! A folder that stays open, so that another one at its path is noticed.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A folder that was opened at a path. While it is open, its file system cannot be unmounted by
/// accident.
#[derive(Debug)]
pub(crate) struct OpenedFolder {
    path: PathBuf,
    file: File,
}

impl OpenedFolder {
    /// Opens the folder at this path.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub(crate) fn open(path: &Path) -> io::Result<OpenedFolder> {
        Ok(OpenedFolder {
            path: path.to_owned(),
            file: File::open(path)?,
        })
    }

    /// Checks that the folder is still the one at its path. A file system may be unmounted at any
    /// time, or another one mounted, and the folder beneath must be neither written nor read.
    ///
    /// # Errors
    /// The path now leads to another folder, or to none.
    pub(crate) fn check(&self) -> io::Result<()> {
        let identity = |found: Metadata| (found.dev(), found.ino());
        let before = identity(self.file.metadata()?);
        if before == identity(self.path.metadata()?) {
            return Ok(());
        }
        let what = "its path leads to a different folder than before; was its file system unmounted?";
        Err(io::Error::new(io::ErrorKind::InvalidInput, what))
    }
}
