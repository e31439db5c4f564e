//! The files that stay of a trial domain: the picture of its screen, and the text of its console.

use std::io;
use std::path::{Path, PathBuf};

use crate::io::Store;
use crate::model::file_name;
use crate::ops::Cause;

/// Writes a file for a restore point into a folder, in place of an earlier one. Returns its path.
pub(super) fn keep(
    store: &dyn Store,
    folder: &Path,
    domain: &str,
    id: &str,
    ending: &str,
    content: &[u8],
) -> Result<PathBuf, Cause> {
    // Names of domains may have slashes.
    let domain = file_name::escape(domain).unwrap_or_else(|| "domain".to_owned());
    let path = folder.join(format!("{domain}.{id}.{ending}"));
    let new = folder.join(format!(".{domain}.{id}.{ending}.new"));
    let failed = |operation: &'static str| {
        let path = path.clone();
        move |source| Cause::Io {
            operation,
            path,
            source,
        }
    };
    // A run that was killed may have left it.
    match store.remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("write")(error)),
        _ => {}
    }
    let written = store.create_file(&new, content);
    written
        .and_then(|()| store.replace(&new, &path))
        .map_err(|error| {
            let _ = store.remove_file(&new);
            failed("write")(error)
        })?;
    Ok(path)
}
