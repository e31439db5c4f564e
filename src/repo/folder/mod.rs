//! A repository in a folder: a folder per domain, in it a folder per period, in it a folder per restore point.
//!
//! * `layout`: which name stands for what.
//! * `committed`: which restore points there were, whatever has happened to them since.
//! * `look`: folders and small files, as they may be when others have been at them.
//! * `point`: reads one restore point.
//! * `history`: reads what is there, and what is wrong with it.
//! * `pending`: a restore point being written, until it is committed.
//! * `proofs`: the records of verifications and comparisons.
//! * `remove`: deletes folders.
//! * `lock`: one writer per domain.

mod committed;
pub mod history;
pub mod layout;
mod lock;
pub(in crate::repo) mod look;
mod pending;
pub(in crate::repo) mod point;
mod proofs;
mod remove;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::history::History;
use super::proof::{Missed, Proof};
use super::{RepoError, Result};
use crate::io::Store;
use crate::model::file_name;
use crate::model::period::COPY_PREFIX;

use lock::DomainLock;
pub use pending::Pending;

/// Makes the name of a new folder survive a crash. Without it everything within could be lost however well that was synced.
fn sync_name(store: &dyn Store, dir: &Path) -> Result<()> {
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => return Ok(()),
    };
    store.sync_dir(parent).map_err(RepoError::io("sync", parent))
}

/// The root of everything kept.
#[derive(Clone)]
pub struct Repository {
    root: PathBuf,
    store: Arc<dyn Store>,
    /// The folder itself, whatever comes to lie under its path. While it is open, its file system cannot be unmounted in passing.
    opened: Option<Arc<File>>,
}

impl Repository {
    /// Opens a repository that must be there.
    pub fn open(root: &Path, store: Arc<dyn Store>) -> Result<Repository> {
        let unusable = |source| RepoError::Unusable {
            path: root.to_owned(),
            source,
        };
        // Images name their backing files by relative paths, but what we print and hand to QEMU has to be absolute.
        let root = root.canonicalize().map_err(unusable)?;
        if !root.is_dir() {
            return Err(unusable(io::ErrorKind::NotADirectory.into()));
        }
        let opened = File::open(&root).map_err(unusable)?;
        Ok(Repository {
            root,
            store,
            opened: Some(Arc::new(opened)),
        })
    }

    /// Opens a repository to write to; its last folder is created if its parent is there. A deeper path that is missing is
    /// more likely a file system that is not mounted.
    pub fn open_or_create(root: &Path, store: Arc<dyn Store>) -> Result<Repository> {
        match store.create_dir(root) {
            Ok(()) => sync_name(store.as_ref(), root)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(RepoError::Unusable {
                    path: root.to_owned(),
                    source,
                });
            }
        }
        Repository::open(root, store)
    }

    /// Opens a repository to look at. One that nobody has made yet holds nothing.
    pub fn open_or_empty(root: &Path, store: Arc<dyn Store>) -> Result<Repository> {
        match Repository::open(root, Arc::clone(&store)) {
            Err(RepoError::Unusable { path, source }) if source.kind() == io::ErrorKind::NotFound => {
                let root =
                    std::path::absolute(root).map_err(|source| RepoError::Unusable { path, source })?;
                Ok(Repository {
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

    /// Whether its folder is there.
    pub fn exists(&self) -> bool {
        self.root.is_dir()
    }

    /// The door to durable files through which it is written to.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The names of the domains that have restore points here, or had; also those whose folders cannot be read, which their reader will hear.
    pub fn domain_names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = history::domain_folders(&self.root)?
            .into_iter()
            .filter_map(|folder| file_name::unescape(&folder))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Whether the folder that was opened is still the one under this path: a target may be unmounted in mid-run, and the folder beneath is
    /// not where backups belong.
    fn check_still_there(&self) -> Result<()> {
        let unusable = |source| RepoError::Unusable {
            path: self.root.clone(),
            source,
        };
        let Some(opened) = &self.opened else {
            return Ok(());
        };
        let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
        let before = opened.metadata().map(identity).map_err(unusable)?;
        let now = self.root.metadata().map(identity).map_err(unusable)?;
        if before == now {
            return Ok(());
        }
        let what = "another folder is there now than when it was opened: was its file system unmounted?";
        Err(unusable(io::Error::other(what)))
    }

    /// One domain's part of the repository. It need not be there yet.
    pub fn domain(&self, name: &str) -> Result<DomainRepository> {
        let folder = file_name::escape(name).ok_or_else(|| RepoError::NameTooLong {
            name: name.to_owned(),
        })?;
        Ok(DomainRepository {
            name: name.to_owned(),
            dir: self.root.join(folder),
            repository: self.clone(),
        })
    }
}

/// One domain's part of a repository: readable by everybody at any time.
#[derive(Clone)]
pub struct DomainRepository {
    name: String,
    dir: PathBuf,
    repository: Repository,
}

impl DomainRepository {
    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn store(&self) -> &Arc<dyn Store> {
        &self.repository.store
    }

    /// Reads what is there, and what is wrong with it. Waits for nobody: a run in progress is invisible until it commits.
    pub fn history(&self) -> Result<History> {
        history::read(&self.dir, &self.name)
    }

    /// The folders of periods that hold backups, also those of other programs or with restore points that cannot be read.
    pub fn used_periods(&self) -> Result<Vec<String>> {
        history::used_periods(&self.dir)
    }

    /// The name of the folder that a standalone copy of this moment goes to. It is that of no other copy, also within one second.
    pub fn copy_folder(&self, time: jiff::Timestamp) -> Result<String> {
        pending::free_id(&self.dir, time).map(|id| format!("{COPY_PREFIX}{id}"))
    }

    /// The folders of periods whose removal was begun and not ended.
    pub fn interrupted_removals(&self) -> Result<Vec<PathBuf>> {
        remove::interrupted(&self.dir)
    }

    /// Remembers the result of a verification, and forgets those of the same restore point that were `known` when it began: [`crate::repo::history::Kept::records`].
    pub fn keep_proof(&self, proof: &Proof, known: &[String]) -> Result<()> {
        proofs::keep(self.store().as_ref(), &self.dir, proof, known)
    }

    /// Forgets what is remembered of restore points that are not there any more.
    pub fn forget_removed(&self) -> Result<()> {
        proofs::forget_removed(self.store().as_ref(), &self.dir)
    }

    /// Remembers that bitmaps had missed writes, so that nothing new relies on them.
    pub fn keep_missed(&self, missed: &Missed) -> Result<()> {
        proofs::keep_missed(self.store().as_ref(), &self.dir, missed)
    }

    /// Who writes here now, as it wrote itself down; `None` when nobody does. Waits for nobody, and is in nobody's way.
    pub fn writer(&self) -> Option<String> {
        lock::holder(&self.dir.join(layout::LOCK))
    }

    /// The folder of a period, if it is there.
    pub fn period_dir(&self, period: &str) -> Option<PathBuf> {
        let dir = self.dir.join(period);
        dir.is_dir().then_some(dir)
    }

    /// Takes the right to write, or says at once who has it. Creates the domain's folder if need be.
    pub fn lock(&self) -> Result<LockedDomain> {
        self.repository.check_still_there()?;
        let store = self.store();
        match store.create_dir(&self.dir) {
            Ok(()) => sync_name(store.as_ref(), &self.dir)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(RepoError::io("create the folder", &self.dir)(error)),
        }
        let path = self.dir.join(layout::LOCK);
        match lock::acquire(&path) {
            Ok(lock) => Ok(LockedDomain {
                repository: self.clone(),
                _lock: lock,
            }),
            Err(lock::LockError::Held(holder)) => Err(RepoError::Locked {
                path,
                holder,
                waited: Duration::ZERO,
            }),
            Err(lock::LockError::Io(path, source)) => Err(RepoError::Io {
                operation: "lock",
                path,
                source,
            }),
        }
    }
}

/// One domain's part of a repository, with the right to write to it.
pub struct LockedDomain {
    repository: DomainRepository,
    _lock: DomainLock,
}

impl LockedDomain {
    /// Reads what is there. Nobody else can change it meanwhile.
    pub fn history(&self) -> Result<History> {
        self.repository.history()
    }

    /// Remembers of these restore points that they were committed: one of them that has gone is missed from then on.
    pub fn remember_committed(&self, history: &History) -> Result<()> {
        let store = self.repository.store().as_ref();
        let periods: BTreeSet<&Path> = history.kept.iter().filter_map(|kept| kept.dir.parent()).collect();
        for period in periods {
            let folders = history
                .kept
                .iter()
                .filter(|kept| kept.dir.parent() == Some(period));
            let names = folders.filter_map(|kept| kept.dir.file_name()?.to_str());
            committed::remember(store, period, names)?;
        }
        Ok(())
    }

    /// Begins a restore point of this moment in a period's folder.
    pub fn begin(&self, period: &str, time: jiff::Timestamp) -> Result<Pending> {
        Pending::create(
            Arc::clone(self.repository.store()),
            &self.repository.dir,
            period,
            time,
        )
    }

    /// Ends the removal of a period that an earlier run had begun: one of [`DomainRepository::interrupted_removals`].
    pub fn finish_removal(&self, dir: &Path) -> Result<()> {
        remove::finish(self.repository.store().as_ref(), dir)
    }

    /// Removes a whole period with everything in its folder.
    ///
    /// The folder is renamed first: from then on nothing in it counts, however much of it is left.
    pub fn remove_period(&self, period: &str) -> Result<()> {
        remove::period(self.repository.store().as_ref(), &self.repository.dir, period)
    }

    /// Removes the folder of a run that did not finish: that of a [`Leftover`].
    pub fn remove_partial(&self, dir: &Path) -> Result<()> {
        pending::remove_partial(self.repository.store().as_ref(), dir)
    }
}
