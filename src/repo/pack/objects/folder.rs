//! Objects as files below a folder. A file appears under its name only when it is whole and synced.
//!
//! Calls of the file system cannot be interrupted, so a deadline has no effect here, and a stop is
//! noticed before a call only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use rustix::fs::OFlags;
use uuid::Uuid;

use super::{
    ListPage, ListedObject, ObjectError, ObjectErrorKind, ObjectName, ObjectResult, ObjectStore, PAGE,
    PutResult,
};
use crate::io::{OpenedFolder, Store};
use crate::model::stop::WaitLimit;
use crate::model::text::shown;

/// How the name of a file begins until it is whole. Such a file is left by a killed run at most.
const UNFINISHED: &str = ".new-";

/// The folder that mkfs makes in the root of some file systems.
const LOST_AND_FOUND: &str = "lost+found";

/// The deepest folder that a list visits. No name of vmsnap has more segments.
const DEEPEST: usize = 8;

/// Objects in a folder.
pub(crate) struct FolderObjects {
    root: PathBuf,
    store: Arc<dyn Store>,
    /// The folder, as soon as it was found.
    opened: OnceLock<OpenedFolder>,
}

impl FolderObjects {
    /// Objects below this folder, which need not exist yet.
    pub(crate) fn new(root: &Path, store: Arc<dyn Store>) -> FolderObjects {
        FolderObjects {
            root: root.to_owned(),
            store,
            opened: OnceLock::new(),
        }
    }

    /// Checks before a call that no stop was requested, and that the folder is still the same.
    fn check(&self, limit: &WaitLimit, operation: &'static str, name: &str) -> ObjectResult<()> {
        if let Some(reason) = limit.stop.reason() {
            let kind = ObjectErrorKind::Stopped(reason);
            return Err(ObjectError::new(operation, name.to_owned(), kind));
        }
        match self.opened.get() {
            Some(opened) => opened.check().map_err(|source| {
                let mut error = ObjectError::io("use", self.root.display().to_string(), source);
                if error.is_not_found() {
                    error.kind = ObjectErrorKind::NoPlace("folder");
                }
                error
            }),
            None => {
                // A missing folder is the error of the call itself.
                if let Ok(opened) = OpenedFolder::open(&self.root) {
                    let _ = self.opened.set(opened);
                }
                Ok(())
            }
        }
    }

    /// Creates the folder unless it exists. Its parent has to exist: a deeper missing path is more
    /// likely an unmounted file system.
    pub(crate) fn create_root(&self) -> ObjectResult<()> {
        match self.store.create_dir(&self.root) {
            Ok(()) => self.sync_parent(&self.root),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(self.failed("create", &self.root)(error)),
        }
    }

    /// Whether the folder exists.
    pub(crate) fn has_root(&self) -> bool {
        self.root.is_dir()
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Makes the error of an operation. A missing object differs from a missing root.
    fn failed(&self, operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ObjectError {
        let error = ObjectError::io;
        let location = path.display().to_string();
        let has_root = self.has_root() || path == self.root;
        move |source| {
            let mut error = error(operation, location, source);
            if error.kind == ObjectErrorKind::NotFound && !has_root {
                error.kind = ObjectErrorKind::NoPlace("folder");
            }
            error
        }
    }

    fn open(&self, name: &ObjectName) -> ObjectResult<(File, u64)> {
        let path = self.path(name);
        // A link could lead anywhere, and a pipe would block.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let open = || {
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(flags.bits() as i32)
                .open(&path)?;
            let found = file.metadata()?;
            match found.is_file() {
                true => Ok((file, found.len())),
                false => Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it is not a regular file",
                )),
            }
        };
        open().map_err(self.failed("read", &path))
    }

    /// Writes a file that has no meaning until it is linked or renamed.
    fn write_unfinished(&self, path: &Path, content: &[u8]) -> ObjectResult<PathBuf> {
        let parent = path.parent().unwrap_or(&self.root);
        self.create_parents(parent)?;
        let new = parent.join(format!("{UNFINISHED}{}", Uuid::new_v4().simple()));
        let written = self.store.create_file(&new, content);
        written.map_err(|error| {
            let _ = self.store.remove_file(&new);
            self.failed("write", path)(error)
        })?;
        Ok(new)
    }

    fn create_parents(&self, dir: &Path) -> ObjectResult<()> {
        if dir == self.root || dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent() {
            self.create_parents(parent)?;
        }
        match self.store.create_dir(dir) {
            Ok(()) => self.sync_parent(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(self.failed("create", dir)(error)),
        }
    }

    /// Makes the name of a file or folder survive a crash.
    fn sync_parent(&self, path: &Path) -> ObjectResult<()> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        self.store.sync_dir(parent).map_err(self.failed("sync", parent))
    }

    /// Gives a finished file its name, unless the name is taken.
    fn name_it(&self, new: &Path, path: &Path) -> io::Result<PutResult> {
        let named = match self.store.link(new, path) {
            Ok(()) => self.store.remove_file(new),
            // A file system without hard links. Its rename is the next best.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => self.store.rename(new, path),
            Err(error) => Err(error),
        };
        match named {
            Ok(()) => Ok(PutResult::Created),
            Err(error) => {
                let _ = self.store.remove_file(new);
                match error.kind() {
                    io::ErrorKind::AlreadyExists => Ok(PutResult::Existed),
                    _ => Err(error),
                }
            }
        }
    }
}

/// Adds files below a folder in the order of their names, up to one more than a page holds.
/// `above` is the folder's name with a slash, or empty; names up to `from` are passed over.
fn collect(
    dir: &Path,
    above: &str,
    depth: usize,
    from: &str,
    found: &mut Vec<(String, u64, Option<Timestamp>)>,
) -> io::Result<()> {
    for (name, path, is_dir) in entries(dir, above, depth)? {
        if found.len() > PAGE {
            return Ok(());
        }
        if is_dir {
            // Everything in it comes before `from`.
            if *name < *from && !from.starts_with(&name) {
                continue;
            }
            collect(&path, &name, depth + 1, from, found)?;
        } else if *name > *from {
            match path.symlink_metadata() {
                Ok(metadata) => found.push((name, metadata.len(), modified(&metadata))),
                // It was deleted since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// What is in a folder, in the order of the objects: the name after `above`, the path, and whether
/// it is a folder, whose name ends with a slash.
fn entries(dir: &Path, above: &str, depth: usize) -> io::Result<Vec<(String, PathBuf, bool)>> {
    let read = match std::fs::read_dir(dir) {
        // It was deleted since its name was read, so it was empty.
        Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => return Ok(Vec::new()),
        read => read?,
    };
    let mut entries = Vec::new();
    for entry in read {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_root = above.is_empty();
        if name.starts_with(UNFINISHED) || (is_root && name == LOST_AND_FOUND) {
            continue;
        }
        let is_dir = match entry.file_type() {
            // It was deleted since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            kind => depth < DEEPEST && kind?.is_dir(),
        };
        let slash = if is_dir { "/" } else { "" };
        entries.push((format!("{above}{name}{slash}"), entry.path(), is_dir));
    }
    entries.sort_unstable();
    Ok(entries)
}

/// When a file was written.
fn modified(metadata: &std::fs::Metadata) -> Option<Timestamp> {
    Timestamp::try_from(metadata.modified().ok()?).ok()
}

impl ObjectStore for FolderObjects {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn get(&self, name: &ObjectName, most: u64, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        self.check(limit, "read", name.as_str())?;
        let (file, _) = self.open(name)?;
        let path = self.path(name);
        let mut content = Vec::new();
        file.take(most.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(self.failed("read", &path))?;
        if content.len() as u64 > most {
            let kind = ObjectErrorKind::TooLarge { most };
            return Err(ObjectError::new("read", path.display().to_string(), kind));
        }
        Ok(content)
    }

    fn get_range(&self, name: &ObjectName, range: Range<u64>, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        self.check(limit, "read", name.as_str())?;
        let (mut file, size) = self.open(name)?;
        let path = self.path(name);
        if range.end > size || range.start > range.end {
            let location = path.display().to_string();
            return Err(ObjectError::new("read", location, ObjectErrorKind::TooShort));
        }
        let mut read = || {
            file.seek(SeekFrom::Start(range.start))?;
            let mut content = vec![0; (range.end - range.start) as usize];
            file.read_exact(&mut content)?;
            Ok(content)
        };
        read().map_err(self.failed("read", &path))
    }

    fn put_if_absent(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<PutResult> {
        self.check(limit, "write", name.as_str())?;
        let path = self.path(name);
        if path.symlink_metadata().is_ok() {
            // A run that was interrupted may have created it without making it durable.
            self.sync_parent(&path)?;
            return Ok(PutResult::Existed);
        }
        let new = self.write_unfinished(&path, content)?;
        let put = self.name_it(&new, &path).map_err(self.failed("write", &path))?;
        self.sync_parent(&path)?;
        Ok(put)
    }

    fn put(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<()> {
        self.check(limit, "write", name.as_str())?;
        let path = self.path(name);
        let new = self.write_unfinished(&path, content)?;
        self.store.replace(&new, &path).map_err(|error| {
            let _ = self.store.remove_file(&new);
            self.failed("write", &path)(error)
        })?;
        self.sync_parent(&path)
    }

    fn list(&self, prefix: &str, from: Option<&str>, limit: &WaitLimit) -> ObjectResult<ListPage> {
        self.check(limit, "list", prefix)?;
        let dir = self.root.join(prefix);
        let mut found = Vec::new();
        match collect(&dir, prefix, 0, from.unwrap_or_default(), &mut found) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && !prefix.is_empty() && self.has_root() => {}
            collected => collected.map_err(self.failed("list", &dir))?,
        }
        let mut page = ListPage {
            next: found
                .get(PAGE - 1)
                .filter(|_| found.len() > PAGE)
                .map(|(name, ..)| name.clone()),
            ..ListPage::default()
        };
        for (name, size, modified) in found.into_iter().take(PAGE) {
            match ObjectName::new(&name) {
                Some(name) => page.objects.push(ListedObject { name, size, modified }),
                None => page.foreign.push(shown(&name)),
            }
        }
        Ok(page)
    }

    fn head(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<Option<u64>> {
        self.check(limit, "read", name.as_str())?;
        match self.open(name) {
            Ok((_, size)) => Ok(Some(size)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn delete(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<()> {
        self.check(limit, "delete", name.as_str())?;
        let path = self.path(name);
        match self.store.remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.map_err(self.failed("delete", &path))?,
        }
        self.sync_parent(&path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::DiskStore;
    use crate::model::stop::Stop;
    use crate::repo::pack::objects::small;

    #[test]
    fn pages_hold_every_name_once_and_in_order() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut names: Vec<String> = (0..1100).map(|n| format!("a/{:02}/{n}", n % 3)).collect();
        names.extend((0..1100).map(|n| format!("a-b/{n}")));
        names.extend(["a.c", "a0", "b", "c/d/e"].map(str::to_owned));
        for name in &names {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
            std::fs::write(path, name).expect("written");
        }
        std::fs::write(dir.path().join("a/.new-1"), "unfinished").expect("written");
        let store = FolderObjects::new(dir.path(), Arc::new(DiskStore));
        for prefix in ["", "a/", "a/01/", "a-b/", "c/", "missing/"] {
            let mut expected: Vec<String> = names
                .iter()
                .filter(|name| name.starts_with(prefix))
                .cloned()
                .collect();
            expected.sort();
            let (mut found, mut from, mut pages) = (Vec::new(), None, 0);
            loop {
                let page = store
                    .list(prefix, from.as_deref(), &small(&Stop::default()))
                    .expect("listed");
                assert!(page.objects.len() <= PAGE && page.foreign.is_empty());
                found.extend(page.objects.into_iter().map(|object| object.name.to_string()));
                pages += 1;
                from = page.next;
                if from.is_none() {
                    break;
                }
            }
            assert_eq!(found, expected, "{prefix}");
            assert_eq!(pages, expected.len().div_ceil(PAGE).max(1), "{prefix}");
        }
    }
}
