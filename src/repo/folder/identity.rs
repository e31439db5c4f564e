//! The file with the id of a repository in a folder.
//!
//! The first backup writes the file, which never changes. It carries the digest of its own text.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::look::read_bounded;
use crate::io::Store;
use crate::repo::seal::{NO_DIGEST, holds, seal};
use crate::repo::{Identity, RepoError, Result};

/// The file's name. No domain's folder name begins with a dot.
const FILE: &str = ".vmsnap-repository.json";

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 4096;

/// The version of the file's format.
const FORMAT: u32 = 1;

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    digest: String,
    id: String,
}

/// Reads the id of the repository in this folder.
pub(super) fn read(root: &Path) -> Identity {
    let path = path(root);
    let unusable = |why: &dyn std::fmt::Display| Identity::Unusable(format!("{}: {why}", path.display()));
    let text = match read_bounded(&path, MAX_BYTES) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Identity::None,
        Err(error) => return unusable(&error),
    };
    match serde_json::from_slice::<Written>(&text) {
        Err(error) => unusable(&error),
        Ok(written) if written.format > FORMAT => unusable(&"it was written by a newer vmsnap"),
        Ok(written) if !holds(&text, &written.digest) => unusable(&"its digest does not match its text"),
        Ok(written) if Uuid::try_parse(&written.id).is_err() => unusable(&"its id is not a UUID"),
        Ok(written) => Identity::Known(written.id),
    }
}

/// Gives the repository an id unless it has one. An unusable file stays as it is.
pub(super) fn ensure(store: &dyn Store, root: &Path) -> Result<Identity> {
    match read(root) {
        Identity::None => create(store, root),
        found => Ok(found),
    }
}

fn create(store: &dyn Store, root: &Path) -> Result<Identity> {
    let written = Written {
        format: FORMAT,
        digest: NO_DIGEST.to_owned(),
        id: Uuid::new_v4().to_string(),
    };
    let text = serde_json::to_string_pretty(&written).map_err(|error| {
        let source = io::Error::other(error);
        RepoError::io("write", &path(root))(source)
    })?;
    // Another run may do the same for another domain. The first rename decides the id, and no run
    // sees a partial file.
    let new = root.join(format!("{FILE}.{}", Uuid::new_v4().simple()));
    store
        .create_file(&new, seal(&text).as_bytes())
        .map_err(RepoError::io("write", &new))?;
    let renamed = store.rename(&new, &path(root));
    if let Err(error) = renamed {
        let _ = store.remove_file(&new);
        if error.kind() != io::ErrorKind::AlreadyExists {
            return Err(RepoError::io("write", &path(root))(error));
        }
    }
    store.sync_dir(root).map_err(RepoError::io("sync", root))?;
    Ok(read(root))
}

fn path(root: &Path) -> PathBuf {
    root.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::DiskStore;

    #[test]
    fn an_id_is_given_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(read(folder.path()), Identity::None);
        let given = ensure(&DiskStore, folder.path()).expect("given");
        assert!(given.id().is_some(), "{given:?}");
        assert_eq!(ensure(&DiskStore, folder.path()).expect("kept"), given);
        assert_eq!(read(folder.path()), given);
        let files = std::fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(files, 1, "nothing else is left");
    }

    #[test]
    fn runs_at_the_same_time_agree_on_one_id() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ids: Vec<Identity> = std::thread::scope(|scope| {
            let run = || scope.spawn(|| ensure(&DiskStore, folder.path()).expect("given"));
            let runs: Vec<_> = (0..8).map(|_| run()).collect();
            runs.into_iter()
                .map(|run| run.join().expect("no panic"))
                .collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0] && id.id().is_some()), "{ids:?}");
    }

    #[test]
    fn a_damaged_id_is_reported_and_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        ensure(&DiskStore, folder.path()).expect("given");
        let text = std::fs::read_to_string(path(folder.path())).expect("readable");
        for damaged in [
            "",
            "{}",
            "[1]",
            &text.replace("\"format\": 1", "\"format\": 2"),
            &text.replace('-', "+"),
        ] {
            std::fs::write(path(folder.path()), damaged).expect("written");
            let found = ensure(&DiskStore, folder.path()).expect("no failure");
            assert!(matches!(found, Identity::Unusable(_)), "{damaged}: {found:?}");
            let kept = std::fs::read_to_string(path(folder.path())).expect("readable");
            assert_eq!(kept, damaged);
        }
    }
}
