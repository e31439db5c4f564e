//! Collects data of a pack repository that no restore point needs: `vmsnap repository collect`, and
//! the last step of `vmsnap prune`.

use super::{Cause, Error, Result};
use crate::model::stop::Stop;
use crate::repo::Repository;

pub use crate::repo::{Amount, CollectReport, Collection, Waiting};

/// Collects unused data. Returns `None` for a kind of repository in which removing a restore point
/// frees its space at once.
///
/// # Errors
/// Something cannot be read, and nothing was deleted; or the repository fails later, and the next
/// collection does the rest.
pub fn collect(repo: &dyn Repository, how: &Collection, stop: &Stop) -> Result<Option<CollectReport>> {
    repo.collect(how, stop).map_err(|error| match stop.reason() {
        Some(reason) => Error::of("", Cause::Stopped(reason)),
        None => Error::of("", error),
    })
}
