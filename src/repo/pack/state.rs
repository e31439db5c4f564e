//! Files on the host about a pack repository: the lock of each domain, and the journal entries of
//! unfinished runs. Another host never needs them.
//!
//! `STATE/ID-OF-THE-REPOSITORY/DOMAIN/` holds `.lock`, a folder `ID.RUN.partial` for each run that
//! has not committed its restore point, and the mark of a restore in place.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::names::is_hex;
use super::point::RUN;
use crate::io::Store;
use crate::repo::lock::{self, DomainLock, LockError};
use crate::repo::restore_mark;
use crate::repo::small_file::{is_of_another_kind, read_bounded};
use crate::repo::{Leftover, Note, RepoError, Result, manifest};

/// The name of the lock file.
const LOCK: &str = ".lock";

/// The name of the mark of a restore in place.
const RESTORING: &str = "restoring.json";

/// The ending of the folder of an unfinished run.
const PARTIAL: &str = ".partial";

/// The name of a run's journal entry.
const JOURNAL_ENTRY: &str = "intent.json";

/// The folders in which a host keeps its own files about pack repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFolders {
    /// The folder for locks and journal entries, which must survive a restart; `None` if no folder
    /// is known.
    pub state: Option<PathBuf>,
    /// The folder for the cache of the index; `None` if no folder is known.
    pub cache: Option<PathBuf>,
}

impl HostFolders {
    /// The folders that the environment names, or else the usual ones of root or of this user. An
    /// empty variable counts as unset.
    pub fn of_environment(is_root: bool, variable: impl Fn(&str) -> Option<OsString>) -> HostFolders {
        let path = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let of_user = |xdg: &str, below_home: &str| {
            let base = path(xdg).filter(|base| base.is_absolute());
            let base = base.or_else(|| Some(path("HOME")?.join(below_home)));
            base.map(|base| base.join("vmsnap"))
        };
        let usual = |of_root: &str, xdg: &str, below_home: &str| match is_root {
            true => Some(PathBuf::from(of_root)),
            false => of_user(xdg, below_home),
        };
        HostFolders {
            state: path("VMSNAP_STATE")
                .or_else(|| usual("/var/lib/vmsnap", "XDG_STATE_HOME", ".local/state")),
            cache: path("VMSNAP_CACHE").or_else(|| usual("/var/cache/vmsnap", "XDG_CACHE_HOME", ".cache")),
        }
    }
}

/// The state of one domain on this host.
#[derive(Clone)]
pub(super) struct DomainState {
    store: Arc<dyn Store>,
    /// `None` if no place for the state is known.
    dir: Option<PathBuf>,
}

impl DomainState {
    /// The state of the domain with this hash in the repository of this id.
    pub(super) fn new(
        folders: &HostFolders,
        store: Arc<dyn Store>,
        repository: &str,
        hash: &str,
    ) -> DomainState {
        let dir = folders
            .state
            .as_ref()
            .map(|state| state.join(repository).join(hash));
        DomainState { store, dir }
    }

    fn dir(&self) -> Result<&Path> {
        self.dir.as_deref().ok_or_else(|| RepoError::Unusable {
            location: "of this host's state".to_owned(),
            source: io::Error::new(
                io::ErrorKind::NotFound,
                "no folder for locks and journal entries is known: set VMSNAP_STATE or HOME",
            ),
        })
    }

    /// Whether the folder of this state exists, because a run has written to it.
    pub(super) fn exists(&self) -> bool {
        self.dir.as_deref().is_some_and(Path::is_dir)
    }

    /// The mark of a restore in place. It belongs to this host, as the domain's disks do.
    pub(super) fn restore_mark(&self) -> Result<Note> {
        match &self.dir {
            Some(dir) => restore_mark::read(&dir.join(RESTORING)),
            None => Ok(Note::None),
        }
    }

    /// The marks of all domains in the repository of this id, on this host.
    pub(super) fn restore_marks(folders: &HostFolders, repository: &str) -> Result<Vec<Vec<u8>>> {
        match &folders.state {
            Some(state) => restore_mark::read_all(&state.join(repository), RESTORING),
            None => Ok(Vec::new()),
        }
    }

    /// Where the mark is kept.
    pub(super) fn restore_mark_location(&self) -> String {
        let path = self.dir.as_ref().map(|dir| dir.join(RESTORING));
        path.map_or_else(String::new, |path| path.display().to_string())
    }

    /// Writes the mark of a restore in place. The caller has the right to write.
    pub(super) fn write_restore_mark(&self, mark: &[u8]) -> Result<()> {
        restore_mark::write(self.store.as_ref(), &self.dir()?.join(RESTORING), mark)
    }

    /// Removes the mark of a restore in place.
    pub(super) fn remove_restore_mark(&self) -> Result<()> {
        restore_mark::remove(self.store.as_ref(), &self.dir()?.join(RESTORING))
    }

    /// The description of the run that has the right to write, if there is one.
    pub(super) fn writer(&self) -> Option<String> {
        lock::holder(&self.dir.as_ref()?.join(LOCK))
    }

    /// Takes the right to write.
    pub(super) fn lock(&self) -> Result<DomainLock> {
        let dir = self.dir()?;
        create_dirs(self.store.as_ref(), dir)?;
        let path = dir.join(LOCK);
        lock::acquire(&path).map_err(|error| match error {
            LockError::Held(holder) => RepoError::Locked {
                location: path.display().to_string(),
                holder,
                waited: Duration::ZERO,
            },
            LockError::Io(path, source) => RepoError::io("lock", &path)(source),
        })
    }

    /// The unfinished runs, each with the id of the run.
    pub(super) fn runs(&self) -> Result<Vec<(String, Leftover)>> {
        let Some(dir) = &self.dir else {
            return Ok(Vec::new());
        };
        let read = match fs::read_dir(dir) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RepoError::io("read the folder", dir)(error)),
        };
        let mut runs = Vec::new();
        for entry in read {
            let entry = entry.map_err(RepoError::io("read the folder", dir))?;
            let Ok(key) = entry.file_name().into_string() else {
                continue;
            };
            if let Some(run) = run_of(&key) {
                let leftover = Leftover {
                    location: dir.join(&key).display().to_string(),
                    is_merge: false,
                    key: key.clone(),
                };
                runs.push((run.to_owned(), leftover));
            }
        }
        runs.sort_by(|(_, a), (_, b)| a.key.cmp(&b.key));
        Ok(runs)
    }

    /// The ids of the restore points that unfinished runs were making.
    pub(super) fn ids(&self) -> Result<Vec<String>> {
        let runs = self.runs()?.into_iter();
        Ok(runs
            .filter_map(|(_, leftover)| Some(id_of_run(&leftover.key)?.to_owned()))
            .collect())
    }

    /// Begins a run that makes the restore point of this id.
    pub(super) fn begin(&self, id: &str, run: &str) -> Result<Leftover> {
        let dir = self.dir()?;
        let key = format!("{id}.{run}{PARTIAL}");
        let path = dir.join(&key);
        self.store
            .create_dir(&path)
            .map_err(RepoError::io("create the folder", &path))?;
        Ok(Leftover {
            location: path.display().to_string(),
            is_merge: false,
            key,
        })
    }

    /// Writes the journal entry of a run.
    pub(super) fn write_note(&self, run: &Leftover, note: &[u8]) -> Result<()> {
        let dir = self.dir()?;
        let of_run = dir.join(&run.key);
        let path = of_run.join(JOURNAL_ENTRY);
        self.store
            .create_file(&path, note)
            .map_err(RepoError::io("write", &path))?;
        for dir in [&of_run, dir] {
            self.store.sync_dir(dir).map_err(RepoError::io("sync", dir))?;
        }
        Ok(())
    }

    /// Whether an unfinished run is still there.
    pub(super) fn has(&self, run: &Leftover) -> bool {
        self.dir.as_ref().is_some_and(|dir| dir.join(&run.key).exists())
    }

    /// The journal entry of a run.
    pub(super) fn note(&self, run: &Leftover) -> Result<Note> {
        let path = self.dir()?.join(&run.key).join(JOURNAL_ENTRY);
        match read_bounded(&path, manifest::MAX_BYTES) {
            Ok(bytes) => Ok(Note::Text(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Note::None),
            Err(error) if is_of_another_kind(&error) => Ok(Note::Unusable(format!(
                "{} is not a journal entry: {error}",
                path.display()
            ))),
            Err(error) => Err(RepoError::io("read", &path)(error)),
        }
    }

    /// Removes the folder of a run.
    pub(super) fn remove(&self, run: &Leftover) -> Result<()> {
        let dir = self.dir()?;
        let of_run = dir.join(&run.key);
        let path = of_run.join(JOURNAL_ENTRY);
        let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match self.store.remove_file(&path) {
            Err(error) if !is_gone(&error) => return Err(RepoError::io("remove", &path)(error)),
            _ => {}
        }
        match self.store.remove_dir(&of_run) {
            Err(error) if !is_gone(&error) => return Err(RepoError::io("remove", &of_run)(error)),
            _ => {}
        }
        self.store.sync_dir(dir).map_err(RepoError::io("sync", dir))
    }
}

/// The id of the run in the name of its folder.
fn run_of(key: &str) -> Option<&str> {
    let (_, run) = key.strip_suffix(PARTIAL)?.rsplit_once('.')?;
    is_hex(run, RUN).then_some(run)
}

/// The id of the restore point in the name of its run's folder.
fn id_of_run(key: &str) -> Option<&str> {
    let (id, _) = key.strip_suffix(PARTIAL)?.rsplit_once('.')?;
    Some(id)
}

/// Creates a folder with its parents.
fn create_dirs(store: &dyn Store, dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dirs(store, parent)?;
    }
    match store.create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(RepoError::io("create the folder", dir)(error)),
    }
    let parent = parent.unwrap_or(Path::new("."));
    store.sync_dir(parent).map_err(RepoError::io("sync", parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::DiskStore;

    fn folders(is_root: bool, set: &[(&str, &str)]) -> HostFolders {
        let set: Vec<(String, OsString)> = set
            .iter()
            .map(|(name, value)| ((*name).into(), value.into()))
            .collect();
        HostFolders::of_environment(is_root, |name| {
            let found = set.iter().find(|(set, _)| set == name);
            found.map(|(_, value)| value.clone())
        })
    }

    #[test]
    fn folders_follow_the_environment() {
        let of = |state: &str, cache: &str| HostFolders {
            state: Some(state.into()),
            cache: Some(cache.into()),
        };
        let home = ("HOME", "/home/u");
        assert_eq!(folders(true, &[home]), of("/var/lib/vmsnap", "/var/cache/vmsnap"));
        assert_eq!(
            folders(false, &[home, ("XDG_STATE_HOME", ""), ("XDG_CACHE_HOME", "/c")]),
            of("/home/u/.local/state/vmsnap", "/c/vmsnap")
        );
        let set = [home, ("VMSNAP_STATE", "/s"), ("VMSNAP_CACHE", "/c")];
        assert_eq!(folders(true, &set), of("/s", "/c"));
        assert_eq!(folders(false, &[]).state, None);
    }

    fn state(dir: &Path) -> DomainState {
        let folders = HostFolders {
            state: Some(dir.join("a/b")),
            cache: None,
        };
        DomainState::new(&folders, Arc::new(DiskStore), "repository", "domain")
    }

    #[test]
    fn a_run_is_known_until_it_is_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let state = state(folder.path());
        assert_eq!(state.runs().expect("readable"), []);
        let _lock = state.lock().expect("nobody holds it");
        let run = "0123456789abcdef".repeat(2);
        let begun = state.begin("2026-11-01T02-00-03Z", &run).expect("begun");
        assert_eq!(state.note(&begun).expect("readable"), Note::None);
        state.write_note(&begun, b"x").expect("written");
        assert_eq!(state.runs().expect("readable"), [(run, begun.clone())]);
        assert_eq!(state.note(&begun).expect("readable"), Note::Text(b"x".to_vec()));
        state.remove(&begun).expect("removed");
        state.remove(&begun).expect("a second time is no error");
        assert!(!state.has(&begun) && state.runs().expect("readable").is_empty());
    }

    #[test]
    fn without_a_place_nothing_is_written() {
        let folders = HostFolders {
            state: None,
            cache: None,
        };
        let state = DomainState::new(&folders, Arc::new(DiskStore), "repository", "domain");
        assert_eq!(state.runs().expect("nothing is there"), []);
        let error = state.lock().map(drop).expect_err("there is no place");
        let source = std::error::Error::source(&error).expect("a reason").to_string();
        assert!(source.contains("VMSNAP_STATE"), "{source}");
    }
}
