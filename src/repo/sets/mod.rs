//! Backups of virtnbdbackup as a repository that is only read: `sets:DIRECTORY`.
//!
//! virtnbdbackup writes a **set**: a folder with a full backup of a domain and everything that
//! depends on it. Each run of it is a restore point here.
//!
//! * `location`: the form of a location.
//! * `place`: finds sets in folders.
//! * `names`, `definition`, `logs`: names of files, definitions of domains, logs. Pure.
//! * `folder`: reads the folder of a set.
//! * `dates`, `points`: makes restore points from its runs.
//! * `frame`, `trailer`, `walk`, `lz4`: the format of streams.
//! * `reader`: reads a file and computes its checksum.
//! * `layer`, `stack`: a file of a disk, and the files that make up a disk.
//! * `source`, `disk`: reads a disk from front to back, or at any place.
//! * `check`: checks the files of a restore point.
//! * `domain`: the sets of a domain.

mod check;
mod dates;
mod definition;
mod disk;
mod domain;
mod folder;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod layer;
mod location;
mod logs;
mod lz4;
mod names;
mod place;
mod points;
mod reader;
mod source;
mod stack;
mod trailer;
mod walk;
#[cfg(any(test, feature = "testkit"))]
mod written;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;

use super::{DomainRepository, Identity, RepoError, Repository, Result};
use domain::SetDomain;
use place::SetPlace;
#[cfg(any(test, feature = "testkit"))]
pub use written::WrittenStream;

/// Whether this is the location of sets.
pub(super) fn is_location(location: &Path) -> bool {
    location::parse(location).is_some()
}

/// A location of the sets in a folder, for messages.
pub(super) fn location_of(folder: &Path) -> String {
    format!("{}{}", location::PREFIX, folder.display())
}

/// Whether a domain's folder is a set or has sets as periods.
pub(super) fn are_in_folder(domain_dir: &Path) -> bool {
    let is_set = |dir: &Path| folder::names(dir).is_ok_and(|names| folder::is_set(&names));
    let below = folder::names(domain_dir).unwrap_or_default();
    is_set(domain_dir) || below.iter().any(|name| is_set(&domain_dir.join(name)))
}

/// The sets of virtnbdbackup in a folder.
#[derive(Debug)]
pub struct SetsRepository {
    location: String,
    root: PathBuf,
    places: Vec<SetPlace>,
    zone: TimeZone,
}

impl SetsRepository {
    /// Opens the sets at this location. The folder is a set, or contains folders of domains, which
    /// are sets or contain sets. The local times in headers of streams are taken as times of
    /// `zone`.
    ///
    /// # Errors
    /// The folder cannot be read, or there is no set.
    pub fn open(location: &Path, zone: TimeZone) -> Result<SetsRepository> {
        let unusable = |source| RepoError::Unusable {
            location: location.display().to_string(),
            source,
        };
        let root = location::parse(location).unwrap_or_else(|| location.to_owned());
        let root = root.canonicalize().map_err(unusable)?;
        if !root.is_dir() {
            return Err(unusable(io::ErrorKind::NotADirectory.into()));
        }
        let places = place::find(&root)?;
        if places.is_empty() {
            let what = "neither it nor the folders below it contain backups of virtnbdbackup";
            return Err(unusable(io::Error::other(what)));
        }
        Ok(SetsRepository {
            location: location_of(&root),
            root,
            places,
            zone,
        })
    }
}

impl Repository for SetsRepository {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn exists(&self) -> bool {
        self.root.is_dir()
    }

    fn identity(&self) -> Identity {
        Identity::None
    }

    fn ensure_identity(&self) -> Result<Identity> {
        Err(RepoError::ReadOnly {
            location: self.location.clone(),
        })
    }

    fn domains(&self) -> Result<Vec<String>> {
        let names: BTreeSet<&String> = self.places.iter().map(|place| &place.domain).collect();
        Ok(names.into_iter().cloned().collect())
    }

    fn domain(&self, name: &str) -> Result<Box<dyn DomainRepository>> {
        let places = self.places.iter().filter(|place| place.domain == name);
        Ok(Box::new(SetDomain {
            name: name.to_owned(),
            location: self.location.clone(),
            places: places.cloned().collect(),
            zone: self.zone.clone(),
        }))
    }
}
