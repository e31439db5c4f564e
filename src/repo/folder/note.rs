//! Small files that can be replaced. Each contains the digest of its own text. After a crash a file
//! has either its old or its new content.

use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::look::read_bounded;
use crate::io::Store;
use crate::repo::seal::{NO_DIGEST, holds, seal};
use crate::repo::{RepoError, Result};

/// The version of the format of these files.
const FORMAT: u32 = 1;

/// The suffix of such a file until it is completely written.
pub(super) const NEW: &str = ".new";

#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    format: u32,
    digest: String,
    #[serde(flatten)]
    content: T,
}

/// The part that a reader of any version can parse.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// Reads such a file of at most `limit` bytes. Returns `None` if it is missing, and the reason if
/// it is damaged.
///
/// # Errors
/// Permission was denied, so nothing is known about the file's content.
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
    limit: u64,
) -> Result<std::result::Result<Option<T>, String>> {
    match read_bounded(path, limit) {
        Ok(text) => Ok(parse(&text).map(Some)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ok(None)),
        // Its parent is not a folder.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Ok(None)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(RepoError::io("read", path)(error))
        }
        Err(error) => Ok(Err(error.to_string())),
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> std::result::Result<T, String> {
    let head: Head = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if head.format > FORMAT {
        return Err("it was written by a newer vmsnap".to_owned());
    }
    let sealed: Sealed<T> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match holds(text, &sealed.digest) {
        true => Ok(sealed.content),
        false => Err("its digest does not match its text".to_owned()),
    }
}

/// Writes such a file and replaces an existing one.
pub(super) fn write(store: &dyn Store, path: &Path, content: &impl Serialize) -> Result<()> {
    let failed = RepoError::io("write", path);
    let text = serde_json::to_string_pretty(&Sealed {
        format: FORMAT,
        digest: NO_DIGEST.to_owned(),
        content,
    });
    let text = match text {
        Ok(text) => seal(&text),
        Err(error) => return Err(failed(io::Error::other(error))),
    };
    put(store, path, text.as_bytes()).map_err(failed)?;
    let dir = path.parent().unwrap_or(path);
    store.sync_dir(dir).map_err(RepoError::io("sync", dir))
}

/// Writes a file completely or not at all, and replaces an existing one in one step. The caller
/// syncs its folder.
pub(super) fn put(store: &dyn Store, path: &Path, text: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(NEW);
    put_as(store, Path::new(&new), path, text)
}

/// Writes a file as [`put`] does, under the name `new` until it is complete.
pub(super) fn put_as(store: &dyn Store, new: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
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
    replaced
}
