//! Checks a pack repository as a whole, and rebuilds its index: `vmsnap repository check` and
//! `vmsnap repository rebuild-index`.

use super::{Cause, Error, Result};
use crate::model::stop::Stop;
use crate::repo::{RepoError, Repository};

pub use crate::repo::{
    CondemnedNote, Cost, Damage, DamagedIndex, IndexFault, Rebuild, RebuildReport, RepositoryCheck,
    SessionNote,
};

/// Checks the repository as a whole. `None` for one without a structure that restore points share.
///
/// # Errors
/// Something cannot be read for a reason that says nothing about it. Damage is no error.
pub fn check(repo: &dyn Repository, deep: bool, stop: &Stop) -> Result<Option<RepositoryCheck>> {
    repo.check(deep, stop).map_err(|error| failed(error, stop))
}

/// Lists data in the index again that it lacks. `None` for a repository without an index.
///
/// # Errors
/// The repository fails, or a collection is at work. A later call does the rest.
pub fn rebuild_index(repo: &dyn Repository, how: &Rebuild, stop: &Stop) -> Result<Option<RebuildReport>> {
    repo.rebuild_index(how, stop).map_err(|error| failed(error, stop))
}

fn failed(error: RepoError, stop: &Stop) -> Error {
    match stop.reason() {
        Some(reason) => Error::of("", Cause::Stopped(reason)),
        None => Error::of("", error),
    }
}
