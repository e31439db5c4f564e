//! The file that marks a domain whose disks are being restored in place. It is replaced and removed
//! in one step each, so after a crash it is there as a whole or not at all.

use std::io;
use std::path::Path;

use super::small_file::read_bounded;
use super::{Note, RepoError, Result};
use crate::io::Store;

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The suffix of the file until it is completely written.
const NEW: &str = ".new";

/// Reads the mark. A missing file, or a missing folder, means that there is none.
///
/// # Errors
/// The mark cannot be read now. Something that is not a mark, such as a folder, is
/// [`Note::Unusable`] instead.
pub(super) fn read(path: &Path) -> Result<Note> {
    match read_bounded(path, MAX_BYTES) {
        Ok(text) => Ok(Note::Text(text)),
        Err(error) if is_missing(&error) => Ok(Note::None),
        Err(error) if super::small_file::is_of_another_kind(&error) => Ok(Note::Unusable(format!(
            "{} is not a mark of a restore in place: {error}",
            path.display()
        ))),
        Err(error) => Err(RepoError::io("read", path)(error)),
    }
}

/// Reads the marks of this name in all folders below `root`. A missing folder has no marks; a
/// folder that this user may not read is skipped.
///
/// # Errors
/// The errors of [`read`].
pub(super) fn read_all(root: &Path, name: &str) -> Result<Vec<Vec<u8>>> {
    let failed = |error| RepoError::io("list", root)(error);
    let entries = match std::fs::read_dir(root) {
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        match read(&path.join(name)) {
            Ok(Note::Text(text)) => found.push(text),
            Ok(Note::None | Note::Unusable(_)) => {}
            // A folder of another user.
            Err(RepoError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Writes the mark durably, and replaces an existing one.
pub(super) fn write(store: &dyn Store, path: &Path, text: &[u8]) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(NEW);
    let new = Path::new(&new);
    let written = match store.create_file(new, text) {
        // A killed run left it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let removed = store.remove_file(new);
            removed.and_then(|()| store.create_file(new, text))
        }
        written => written,
    };
    let replaced = written.and_then(|()| store.replace(new, path));
    if replaced.is_err() {
        let _ = store.remove_file(new);
    }
    replaced.map_err(RepoError::io("write", path))?;
    sync_folder(store, path)
}

/// Removes the mark durably. A missing one is not an error.
pub(super) fn remove(store: &dyn Store, path: &Path) -> Result<()> {
    match store.remove_file(path) {
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => Err(RepoError::io("remove", path)(error)),
        Ok(()) => sync_folder(store, path),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn sync_folder(store: &dyn Store, path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    store.sync_dir(dir).map_err(RepoError::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::DiskStore;

    #[test]
    fn a_mark_reads_back_is_replaced_and_goes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("mark.json");
        assert_eq!(read(&path).expect("readable"), Note::None);
        assert_eq!(read(&path.join("below")).expect("readable"), Note::None);
        for text in ["one", "two"] {
            // What a killed run left is in nobody's way.
            std::fs::write(folder.path().join("mark.json.new"), "half").expect("written");
            write(&DiskStore, &path, text.as_bytes()).expect("written");
            assert_eq!(read(&path).expect("readable"), Note::Text(text.into()));
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
        remove(&DiskStore, &path).expect("removed");
        remove(&DiskStore, &path).expect("nothing to do");
        assert_eq!(read(&path).expect("readable"), Note::None);
    }

    #[test]
    fn what_can_never_be_a_mark_is_reported_as_that() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("mark.json");
        std::fs::create_dir(&path).expect("made");
        assert!(matches!(read(&path), Ok(Note::Unusable(_))));
        std::fs::remove_dir(&path).expect("removed");
        std::os::unix::fs::symlink("/etc/passwd", &path).expect("linked");
        assert!(matches!(read(&path), Ok(Note::Unusable(_))));
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, vec![b'x'; 2 << 20]).expect("written");
        assert!(matches!(read(&path), Ok(Note::Unusable(_))));
    }

    #[test]
    fn marks_of_all_domains_are_listed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names = |root: &Path| read_all(root, "mark.json").expect("readable");
        assert!(names(&folder.path().join("missing")).is_empty());
        std::fs::write(folder.path().join("file"), "x").expect("written");
        for (domain, mark) in [("vm1", Some("one")), ("vm2", None), ("vm3", Some("three"))] {
            let dir = folder.path().join(domain);
            std::fs::create_dir(&dir).expect("made");
            if let Some(mark) = mark {
                write(&DiskStore, &dir.join("mark.json"), mark.as_bytes()).expect("written");
            }
        }
        let mut found = names(folder.path());
        found.sort();
        assert_eq!(found, [b"one".to_vec(), b"three".to_vec()]);
    }
}
