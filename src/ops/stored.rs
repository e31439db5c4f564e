//! A restore point with the repository that holds it: what a restore and the definition of its
//! domain read.

use super::{Cause, Error, Result};
use crate::model::restore_point::RestorePoint;
use crate::repo::{DomainRepository, Kept, SmallFile};

/// A restore point about to be given back.
#[derive(Clone, Copy)]
pub(super) struct StoredPoint<'a> {
    pub(super) repository: &'a dyn DomainRepository,
    pub(super) kept: &'a Kept,
}

impl<'a> StoredPoint<'a> {
    /// What its manifest says.
    pub(super) fn point(&self) -> &'a RestorePoint {
        &self.kept.manifest.point
    }

    /// Whether it has this file.
    pub(super) fn has(&self, file: SmallFile) -> bool {
        file.entry(&self.kept.manifest).is_some()
    }

    /// A small file of it, if it is what the manifest says.
    pub(super) fn read(&self, file: SmallFile) -> Result<Vec<u8>> {
        let read = self.repository.read_file(self.kept, file);
        read.map_err(|fault| self.not_whole(fault))
    }

    /// That it cannot be given back whole, and why.
    pub(super) fn not_whole(&self, fault: String) -> Error {
        let id = self.point().id.clone();
        Error::of(&self.point().domain, Cause::NotWhole { id, fault })
    }
}
