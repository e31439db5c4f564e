//! Records of trial domains on this host. A record is written before anything else is made, and is
//! locked as long as its process lives, so the next run knows what a dead one has left.
//!
//! `STATE/boot/UUID.json` names the domain and its files. `STATE/boot/UUID.home.xml` exists once
//! all disks have been pulled: from then on the domain and its files stay.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::io::{Claim, Store};
use crate::ops::Cause;

/// The folder below the state of this host.
const FOLDER: &str = "boot";

/// The longest record, in bytes.
const LONGEST: u64 = 1 << 20;

/// The longest definition of a domain, in bytes.
const LONGEST_XML: u64 = 16 << 20;

/// The version of the record.
const FORMAT: u32 = 1;

/// A trial domain, and everything that has to be removed with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    format: u32,
    /// The domain of the restore point.
    pub(super) domain: String,
    /// The name of the trial domain.
    pub(super) name: String,
    /// Its UUID.
    pub(super) uuid: String,
    /// The URI of the hypervisor.
    pub(super) uri: String,
    /// The folder for its socket and its temporary files.
    pub(super) folder: PathBuf,
    /// The files outside of this folder, before they are made.
    pub(super) files: Vec<PathBuf>,
    /// A folder that was created for these files.
    pub(super) new_dir: Option<PathBuf>,
    /// The folder with the state of its TPM.
    pub(super) tpm: Option<PathBuf>,
}

impl Record {
    /// The names under which its files are made, beside their final places. Nobody else knows them.
    pub(super) fn temporary(&self) -> impl Iterator<Item = (&Path, PathBuf)> {
        let folder = self
            .folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        self.files.iter().enumerate().map(move |(number, path)| {
            let name = format!(".{folder}-{number}");
            (path.as_path(), path.with_file_name(name))
        })
    }

    pub(super) fn new(domain: &str, name: &str, uuid: &str, uri: &str, folder: &Path) -> Record {
        Record {
            format: FORMAT,
            domain: domain.to_owned(),
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            uri: uri.to_owned(),
            folder: folder.to_owned(),
            files: Vec::new(),
            new_dir: None,
            tpm: None,
        }
    }
}

/// A file that was made for a trial domain, recognised again even if another file gets its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MadeFile {
    pub(super) path: PathBuf,
    device: u64,
    inode: u64,
    /// When it was created, in nanoseconds since 1970; 0 if its file system does not record it.
    created: u64,
}

impl MadeFile {
    /// The file that is at `path` now and will be renamed to `name`.
    pub(super) fn to_be(name: &Path, path: &Path) -> Option<MadeFile> {
        MadeFile::at(path).map(|found| MadeFile {
            path: name.to_owned(),
            ..found
        })
    }

    /// The file that has this path now; `None` if it cannot be examined, or is no regular file.
    pub(super) fn at(path: &Path) -> Option<MadeFile> {
        let found = path.symlink_metadata().ok().filter(fs::Metadata::is_file)?;
        let created = found.created().ok();
        let since = created.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        Some(MadeFile {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
            created: since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0)),
        })
    }
}

/// The records of this host.
#[derive(Clone, Copy)]
pub(super) struct Records<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) state: &'a Path,
}

/// A record of a process that is dead.
pub(super) enum Dead {
    /// It can be read. The lock is held until this is dropped.
    Known {
        record: Box<Record>,
        /// The files that were made.
        made: Vec<MadeFile>,
        /// The definition with which the domain stays, if its disks have been pulled.
        home: Option<String>,
        _lock: File,
    },
    /// It cannot be read.
    Unknown { path: PathBuf, why: String },
}

impl Records<'_> {
    fn folder(&self) -> PathBuf {
        self.state.join(FOLDER)
    }

    fn path(&self, uuid: &str) -> PathBuf {
        self.folder().join(format!("{uuid}.json"))
    }

    fn home(&self, uuid: &str) -> PathBuf {
        self.folder().join(format!("{uuid}.home.xml"))
    }

    fn made(&self, uuid: &str) -> PathBuf {
        self.folder().join(format!("{uuid}.files"))
    }

    /// Records the files that were made.
    pub(super) fn identify(&self, uuid: &str, made: &[MadeFile]) -> Result<(), Cause> {
        let path = self.made(uuid);
        let text = serde_json::to_vec(made).map_err(|error| failed("write", &path, error.into()))?;
        let written = self.store.create_file(&path, &text);
        let written = written.and_then(|()| self.store.sync_dir(&self.folder()));
        written.map_err(|error| failed("write", &path, error))
    }

    /// The definition before it is complete.
    fn new_home(&self, uuid: &str) -> PathBuf {
        self.folder().join(format!("{uuid}.home.new"))
    }

    /// Writes a record. It counts as that of a live process until the claim is dropped.
    pub(super) fn write(&self, record: &Record) -> Result<Claim, Cause> {
        let (folder, path) = (self.folder(), self.path(&record.uuid));
        if !folder.is_dir() {
            fs::create_dir_all(self.state).map_err(|error| failed("create the folder", self.state, error))?;
            match self.store.create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create the folder", &folder, error));
                }
                _ => {}
            }
        }
        let text = serde_json::to_vec(record).map_err(|error| failed("write", &path, error.into()))?;
        let created = self.store.create_claimed(&path);
        let (mut file, claim) = created.map_err(|error| failed("create", &path, error))?;
        let written = file.write_at(&text, 0).and_then(|()| file.sync());
        let written = written.and_then(|()| self.store.sync_dir(&folder));
        if let Err(error) = written {
            let _ = self.store.remove_file(&path);
            return Err(failed("write", &path, error));
        }
        Ok(claim)
    }

    /// Records that the domain and its files stay.
    pub(super) fn stay(&self, uuid: &str, xml: &str) -> Result<(), Cause> {
        let (path, new) = (self.home(uuid), self.new_home(uuid));
        // An earlier try may have left it.
        let _ = self.store.remove_file(&new);
        let written = self.store.create_file(&new, xml.as_bytes());
        let written = written.and_then(|()| self.store.replace(&new, &path));
        let written = written.and_then(|()| self.store.sync_dir(&self.folder()));
        written.map_err(|error| failed("write", &path, error))
    }

    /// Removes a record, after everything that it names.
    pub(super) fn remove(&self, uuid: &str) -> Result<(), Cause> {
        let remove = |path: &Path| match self.store.remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, error)),
            _ => Ok(()),
        };
        // Without its record the definition has no meaning.
        remove(&self.path(uuid))?;
        remove(&self.home(uuid))?;
        remove(&self.made(uuid))?;
        remove(&self.new_home(uuid))
    }

    /// The records of dead processes.
    pub(super) fn dead(&self) -> Result<Vec<Dead>, Cause> {
        let folder = self.folder();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &folder, error)),
        };
        let mut dead = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| failed("list", &folder, error))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let uuid = name
                .and_then(|name| name.strip_suffix(".json"))
                .map(str::to_owned);
            if let Some(uuid) = uuid.filter(|uuid| uuid::Uuid::parse_str(uuid).is_ok()) {
                dead.extend(self.read(&path, &uuid));
            }
            self.remove_if_alone(&path);
        }
        Ok(dead)
    }

    /// Removes a definition whose record is gone: its process died between the two.
    fn remove_if_alone(&self, path: &Path) {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let uuid = [".home.xml", ".home.new", ".files"]
            .into_iter()
            .find_map(|end| name.strip_suffix(end));
        if uuid.is_some_and(|uuid| !self.path(uuid).exists()) {
            let _ = self.store.remove_file(path);
        }
    }

    /// Reads a record; `None` if its process lives, or has just removed it.
    fn read(&self, path: &Path, uuid: &str) -> Option<Dead> {
        let unknown = |why: String| {
            Some(Dead::Unknown {
                path: path.to_owned(),
                why,
            })
        };
        let file = match open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return unknown(error.to_string()),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return None,
            Err(TryLockError::Error(error)) => return unknown(error.to_string()),
        }
        // Its process may have removed it before it gave up the lock.
        if !path.exists() {
            return None;
        }
        let text = match bounded(&file, LONGEST) {
            Ok(text) => text,
            Err(error) => return unknown(error.to_string()),
        };
        if text.is_empty() {
            // The process died before it had made anything.
            let _ = self.store.remove_file(path);
            return None;
        }
        let record: Record = match serde_json::from_str(&text) {
            Ok(record) => record,
            Err(error) => return unknown(error.to_string()),
        };
        if record.format != FORMAT {
            return unknown("it was written by another version of vmsnap".to_owned());
        }
        if record.uuid != uuid {
            return unknown("it names another domain than its file name".to_owned());
        }
        let home = match open(&self.home(uuid)) {
            Ok(home) => match bounded(&home, LONGEST_XML) {
                Ok(xml) => Some(xml),
                Err(error) => return unknown(error.to_string()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return unknown(error.to_string()),
        };
        // A list that is cut off was never relied on.
        let made = open(&self.made(uuid)).and_then(|file| bounded(&file, LONGEST));
        let made = made.ok().and_then(|text| serde_json::from_str(&text).ok());
        Some(Dead::Known {
            record: Box::new(record),
            made: made.unwrap_or_default(),
            home,
            _lock: file,
        })
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn bounded(file: &File, longest: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = file.take(longest + 1).read_to_string(&mut text)?;
    match read as u64 > longest {
        true => Err(io::Error::other("it is too long")),
        false => Ok(text),
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> Cause {
    Cause::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}
