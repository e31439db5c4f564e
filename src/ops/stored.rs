//! A restore point together with the repository that holds it: the input of a restore and of a
//! domain's definition.

use super::{Cause, Error, Result};
use crate::model::restore_point::RestorePoint;
use crate::repo::{DomainRepository, Kept, SmallFile};

/// A restore point to be restored.
#[derive(Clone, Copy)]
pub(super) struct StoredPoint<'a> {
    pub(super) repository: &'a dyn DomainRepository,
    pub(super) kept: &'a Kept,
}

impl<'a> StoredPoint<'a> {
    /// Returns the restore point, as its manifest describes it.
    pub(super) fn point(&self) -> &'a RestorePoint {
        &self.kept.manifest.point
    }

    /// Whether the restore point has this file.
    pub(super) fn has(&self, file: SmallFile) -> bool {
        file.entry(&self.kept.manifest).is_some()
    }

    /// Reads a small file, and checks it against the manifest.
    pub(super) fn read(&self, file: SmallFile) -> Result<Vec<u8>> {
        let read = self.repository.read_file(self.kept, file);
        read.map_err(|fault| self.not_whole(fault))
    }

    /// Creates the error that the restore point cannot be restored completely.
    pub(super) fn not_whole(&self, fault: String) -> Error {
        let id = self.point().id.clone();
        Error::of(&self.point().domain, Cause::NotWhole { id, fault })
    }
}
