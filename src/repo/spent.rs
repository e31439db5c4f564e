//! Remembers the numbers of checkpoints that failed runs had made, so that none of them is given again.
//!
//! The bitmap of a failed run can come back: with a storage snapshot that was taken while that run was under way. If a later run had given
//! its number again, the old bitmap would pass for the later one, and would not know what changed in between.

use std::fs;
use std::io;
use std::path::Path;

use super::store::Store;
use super::{RepoError, Result};
use crate::model::checkpoint::own_number;

/// The folder of the numbers, in the domain's folder. An empty file per number; the highest is enough.
const FOLDER: &str = ".spent";

/// The names that must not be given again.
pub(super) fn read(domain_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(domain_dir.join(FOLDER))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| own_number(name).is_some())
        .collect()
}

/// Remembers a name. Names of others are nobody's numbers.
pub(super) fn remember(store: &dyn Store, domain_dir: &Path, name: &str) -> Result<()> {
    let Some(number) = own_number(name) else {
        return Ok(());
    };
    let before = read(domain_dir);
    if before.iter().any(|other| own_number(other) >= Some(number)) {
        return Ok(());
    }
    let dir = domain_dir.join(FOLDER);
    match store.create_dir(&dir) {
        Ok(()) => store
            .sync_dir(domain_dir)
            .map_err(RepoError::io("sync", domain_dir))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(RepoError::io("create the folder", &dir)(error)),
    }
    let path = dir.join(name);
    match store.create_file(&path, b"") {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(RepoError::io("write", &path)(error));
        }
        _ => store.sync_dir(&dir).map_err(RepoError::io("sync", &dir))?,
    }
    // One too many does no harm; what lies behind a link is somebody else's.
    if dir.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        for lower in before {
            let _ = store.remove_file(&dir.join(lower));
        }
    }
    Ok(())
}
