//! The state of an emulated TPM as one file: a tar archive (ustar) of the files that swtpm keeps.
//!
//! The archive has no folders. Packing and unpacking accept only plain files with plain names, a
//! limited number of them, and a limited size. Pure.

use std::collections::BTreeSet;
use std::io::{self, Read};

use tar::{Archive, Builder, EntryType, Header};

/// The greatest number of files in a state. swtpm keeps three at most.
pub const MOST_FILES: usize = 32;

/// The greatest size of all files of a state together, in bytes. A usual state has a few KiB.
pub const LARGEST_STATE: u64 = 16 << 20;

/// The name in the archive of a state that is a single file, whatever its name on the host.
pub const SINGLE_FILE: &str = "state";

/// The longest name of a file, in bytes.
const LONGEST_NAME: usize = 64;

/// The name of swtpm's lock in the folder of a state.
const LOCK: &str = ".lock";

/// The prefix of the names of files that swtpm is writing (`SWTPM_NVRAM_GetFilenameForName` in its
/// `swtpm_nvstore.c`). A complete file is renamed.
const UNFINISHED: &str = "TMP";

/// The suffix of the file with what a TPM loses when its machine is shut off. A TPM that starts
/// with such a file continues in the middle of another run.
const VOLATILE: &str = ".volatilestate";

/// One file of a TPM's state.
#[derive(Clone, PartialEq, Eq)]
pub struct TpmFile {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// The ids of its user and group.
    pub owner: (u32, u32),
    /// When it was changed, in seconds since 1970.
    pub changed: u64,
}

/// The state of a TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmState {
    /// Its files, in the order of their names.
    pub files: Vec<TpmFile>,
    /// Whether every file is complete, as swtpm wrote it. Otherwise swtpm was writing the state
    /// while it was read.
    pub is_whole: bool,
}

impl std::fmt::Debug for TpmFile {
    /// Shows no content, because it holds keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TpmFile({:?}, {} bytes)", self.name, self.content.len())
    }
}

/// Whether a file in the folder of a state is not part of the state.
pub fn is_left_out(name: &[u8]) -> bool {
    name == LOCK.as_bytes() || name.starts_with(UNFINISHED.as_bytes()) || name.ends_with(VOLATILE.as_bytes())
}

/// Whether a file of a state may have this name: letters, digits, dots, hyphens and underscores,
/// without a dot at the beginning.
pub fn is_state_name(name: &str) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(is_safe) && !name.starts_with('.')
}

/// Checks the names, the number and the size of the files of a state.
///
/// # Errors
/// The reason why the files are not a valid state.
pub fn check(files: &[TpmFile]) -> Result<(), String> {
    if files.is_empty() {
        return Err("it has no files".to_owned());
    }
    if files.len() > MOST_FILES {
        return Err(format!("it has more than {MOST_FILES} files"));
    }
    let size: u64 = files.iter().map(|file| file.content.len() as u64).sum();
    if size > LARGEST_STATE {
        return Err(too_large());
    }
    let mut seen = BTreeSet::new();
    for TpmFile { name, .. } in files {
        if !is_state_name(name) || is_left_out(name.as_bytes()) {
            return Err(format!("it has a file with the invalid name {name:?}"));
        }
        if !seen.insert(name) {
            return Err(format!("it has two files named {name:?}"));
        }
    }
    Ok(())
}

/// Packs the files of a state.
///
/// # Errors
/// The reason why the files are not a valid state.
pub fn pack(files: &[TpmFile]) -> Result<Vec<u8>, String> {
    check(files)?;
    let packed = || -> io::Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for file in files {
            let mut header = Header::new_ustar();
            header.set_path(&file.name)?;
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o600);
            header.set_uid(file.owner.0.into());
            header.set_gid(file.owner.1.into());
            header.set_mtime(file.changed);
            header.set_size(file.content.len() as u64);
            header.set_cksum();
            archive.append(&header, file.content.as_slice())?;
        }
        archive.into_inner()
    };
    packed().map_err(|error| error.to_string())
}

/// Unpacks the files of a state.
///
/// # Errors
/// The reason why the bytes are not the archive of a valid state. Nothing of such an archive may be
/// used.
pub fn unpack(bytes: &[u8]) -> Result<Vec<TpmFile>, String> {
    let unreadable = |error: io::Error| format!("it is not a readable tar archive: {error}");
    let mut files = Vec::new();
    let mut archive = Archive::new(bytes);
    let mut size: u64 = 0;
    // Raw entries: no extension gives an entry another name or size.
    for entry in archive.entries().map_err(unreadable)?.raw(true) {
        let entry = entry.map_err(unreadable)?;
        if files.len() == MOST_FILES {
            return Err(format!("it has more than {MOST_FILES} files"));
        }
        let header = entry.header();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if header.as_ustar().is_none() || header.entry_type() != EntryType::Regular {
            return Err(format!("its entry {name:?} is not a plain file"));
        }
        let invalid = |_| format!("its entry {name:?} has an invalid owner");
        let owner = |id: io::Result<u64>| u32::try_from(id.map_err(unreadable)?).map_err(invalid);
        let owner = (owner(header.uid())?, owner(header.gid())?);
        let changed = header.mtime().map_err(unreadable)?;
        size = size.saturating_add(entry.size());
        if size > LARGEST_STATE {
            return Err(too_large());
        }
        let expected = entry.size();
        let mut content = Vec::new();
        entry
            .take(LARGEST_STATE)
            .read_to_end(&mut content)
            .map_err(unreadable)?;
        if content.len() as u64 != expected {
            return Err(format!("its entry {name:?} is truncated"));
        }
        files.push(TpmFile {
            name,
            content,
            owner,
            changed,
        });
    }
    check(&files)?;
    Ok(files)
}

fn too_large() -> String {
    format!("it is larger than {} MiB", LARGEST_STATE >> 20)
}

#[cfg(test)]
#[path = "tpm_state_tests.rs"]
mod tests;
