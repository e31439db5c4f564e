//! A repository in a folder: a folder per domain, in it a folder per period, in it a folder per
//! restore point.
//!
//! * `domain`: one domain's folder, for reading and writing.
//! * `layout`: names of files and folders.
//! * `committed`: records which restore points were committed.
//! * `identity`: the file with the repository's id.
//! * `look`: looks at folders and small files that other programs may have changed.
//! * `point`: reads one restore point.
//! * `history`: reads restore points and finds their problems.
//! * `images`: the chain of images that makes up a disk, and new images.
//! * `check`: checks the files of a restore point.
//! * `pending`: a restore point being written, until it is committed.
//! * `proofs`: the records of verifications and comparisons.
//! * `note`: small files that may be replaced.
//! * `merge`: merges removed restore points into the one that depends on them.
//! * `continued`: images that a merge continues in their files.
//! * `patch`: the file with the changes that are still to be made in such an image.
//! * `readers`: keeps merges from replacing files while they are read.
//! * `pins`: the pin of a restore point.
//! * `removed`: which restore points were removed on purpose.
//! * `remove`: deletes folders.
//! * `usage`: counts files.

mod check;
mod committed;
mod continued;
mod domain;
mod history;
mod identity;
mod images;
mod layout;
mod look;
mod merge;
mod note;
mod patch;
mod pending;
mod pins;
mod point;
mod proofs;
mod readers;
mod remove;
mod removed;
mod usage;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DomainRepository, Identity, RepoError, Repository, Result, restore_mark, sets};
use crate::io::{OpenedFolder, Store};
use crate::model::file_name;

use domain::FolderDomain;

/// Makes the name of a new folder survive a crash. Otherwise its content could be lost even if it
/// was synced.
fn sync_name(store: &dyn Store, dir: &Path) -> Result<()> {
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => return Ok(()),
    };
    store.sync_dir(parent).map_err(RepoError::io("sync", parent))
}

/// A repository in a folder.
#[derive(Clone)]
pub struct FolderRepository {
    root: PathBuf,
    store: Arc<dyn Store>,
    /// The opened folder; `None` if it does not exist yet.
    opened: Option<Arc<OpenedFolder>>,
}

impl FolderRepository {
    /// Opens an existing repository.
    pub fn open(root: &Path, store: Arc<dyn Store>) -> Result<FolderRepository> {
        let unusable = |source| RepoError::Unusable {
            location: root.display().to_string(),
            source,
        };
        // Images name their backing files by relative paths, but printed paths and those for QEMU
        // have to be absolute.
        let root = root.canonicalize().map_err(unusable)?;
        if !root.is_dir() {
            return Err(unusable(io::ErrorKind::NotADirectory.into()));
        }
        let opened = OpenedFolder::open(&root).map_err(unusable)?;
        Ok(FolderRepository {
            root,
            store,
            opened: Some(Arc::new(opened)),
        })
    }

    /// Opens a repository for writing. Its last folder is created if the parent folder exists. A
    /// deeper missing path is more likely an unmounted file system.
    pub fn open_or_create(root: &Path, store: Arc<dyn Store>) -> Result<FolderRepository> {
        match store.create_dir(root) {
            Ok(()) => sync_name(store.as_ref(), root)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(RepoError::Unusable {
                    location: root.display().to_string(),
                    source,
                });
            }
        }
        FolderRepository::open(root, store)
    }

    /// Opens a repository for reading. A repository that does not exist yet is empty.
    pub(crate) fn open_or_empty(root: &Path, store: Arc<dyn Store>) -> Result<FolderRepository> {
        match FolderRepository::open(root, Arc::clone(&store)) {
            Err(RepoError::Unusable { location, source }) if source.kind() == io::ErrorKind::NotFound => {
                let root =
                    std::path::absolute(root).map_err(|source| RepoError::Unusable { location, source })?;
                Ok(FolderRepository {
                    root,
                    store,
                    opened: None,
                })
            }
            opened => opened,
        }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Checks that the opened folder is still the one at this path. A target may be unmounted
    /// during a run, and the folder beneath must not get backups.
    fn check_still_there(&self) -> Result<()> {
        let Some(opened) = &self.opened else {
            return Ok(());
        };
        opened.check().map_err(|source| RepoError::Unusable {
            location: self.root.display().to_string(),
            source,
        })
    }
}

impl Repository for FolderRepository {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn exists(&self) -> bool {
        self.root.is_dir()
    }

    fn identity(&self) -> Identity {
        identity::read(&self.root)
    }

    fn ensure_identity(&self) -> Result<Identity> {
        identity::ensure(self.store.as_ref(), &self.root)
    }

    fn domains(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = history::domain_folders(&self.root)?
            .into_iter()
            .filter_map(|folder| file_name::unescape(&folder))
            .collect();
        names.sort();
        Ok(names)
    }

    fn restore_marks(&self) -> Result<Vec<Vec<u8>>> {
        restore_mark::read_all(&self.root, layout::RESTORING)
    }

    fn sets_location(&self) -> Option<String> {
        let has_sets = |dir: &Path| sets::are_in_folder(dir);
        let below = look::folder_names(&self.root).unwrap_or_default();
        let found = has_sets(&self.root) || below.iter().any(|name| has_sets(&self.root.join(name)));
        found.then(|| sets::location_of(&self.root))
    }

    fn domain(&self, name: &str) -> Result<Box<dyn DomainRepository>> {
        let folder = file_name::escape(name).ok_or_else(|| RepoError::NameTooLong {
            name: name.to_owned(),
        })?;
        Ok(Box::new(FolderDomain {
            name: name.to_owned(),
            dir: self.root.join(folder),
            repository: self.clone(),
        }))
    }
}
