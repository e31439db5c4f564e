//! Checks a pack repository as a whole, and rebuilds its index: `vmsnap repository check` and
//! `vmsnap repository rebuild-index`.

use super::{Cause, Error, Result};
use crate::model::stop::Stop;
use crate::repo::{RepoError, Repository};

pub use crate::repo::{
    CondemnedNote, Cost, Damage, DamagedIndex, IndexFault, Rebuild, RebuildReport, RepositoryCheck,
    SessionNote,
};

/// Checks the repository as a whole. Returns `None` for a kind of repository in which restore
/// points share no structure.
///
/// # Errors
/// Something cannot be read, for a reason other than damage. Damage is not an error.
pub fn check(repo: &dyn Repository, deep: bool, stop: &Stop) -> Result<Option<RepositoryCheck>> {
    repo.check(deep, stop).map_err(|error| failed(error, stop))
}

/// Adds missing packs to the index. Returns `None` for a repository without an index.
///
/// # Errors
/// The repository fails, or a collection is at work. A later call continues.
pub fn rebuild_index(repo: &dyn Repository, how: &Rebuild, stop: &Stop) -> Result<Option<RebuildReport>> {
    repo.rebuild_index(how, stop).map_err(|error| failed(error, stop))
}

fn failed(error: RepoError, stop: &Stop) -> Error {
    match stop.reason() {
        Some(reason) => Error::of("", Cause::Stopped(reason)),
        None => Error::of("", error),
    }
}
