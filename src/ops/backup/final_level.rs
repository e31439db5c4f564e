//! Decides the level of a disk after its export was opened. The disk becomes full if it has shrunk,
//! if its parent's chain cannot be read, or if the bitmap proves wrong.

use std::sync::Arc;

use crate::model::block::BlockErrorKind;
use crate::model::finding::Finding;
use crate::model::restore_point::Level;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::ops::plan::PlannedDisk;
use crate::ops::{Cause, copy};
use crate::repo::{DiskReader, DomainRepository, History};

/// The level of a disk once its export has been opened and its size is known. A disk that has
/// shrunk since its parent is read in full from the same export.
pub(super) struct FinalLevel {
    pub(super) parent: Option<FinalParent>,
    pub(super) reason: String,
}

pub(super) struct FinalParent {
    pub(super) id: String,
    pub(super) virtual_size: u64,
    /// The disk as the parent holds it, for the spot check and for ranges that now read as zero.
    pub(super) disk: Arc<dyn DiskReader>,
}

impl FinalLevel {
    /// Decides the level of a disk of `size` bytes.
    ///
    /// # Errors
    /// Only a request to stop. Any other problem with the parent's chain makes the disk full,
    /// because a full image needs no chain.
    pub(super) fn of(
        planned: &PlannedDisk,
        size: u64,
        (repository, history): (&dyn DomainRepository, &History),
        stop: &Stop,
    ) -> std::result::Result<FinalLevel, Cause> {
        let planned = &planned.level;
        let Some(parent) = &planned.parent else {
            return Ok(FinalLevel::full(planned.reason.to_string()));
        };
        if size < parent.virtual_size {
            let reason = format!("disk {} has shrunk since {}", planned.target, parent.id);
            return Ok(FinalLevel::full(reason));
        }
        let opened = repository.open_disk(history, &parent.id, &planned.target, stop);
        match opened.map_err(Cause::from) {
            Ok(disk) => Ok(FinalLevel {
                parent: Some(FinalParent {
                    id: parent.id.clone(),
                    virtual_size: parent.virtual_size,
                    disk,
                }),
                reason: planned.reason.to_string(),
            }),
            Err(Cause::Copy(error)) if copy::is_stop(&error) => Err(Cause::Copy(error)),
            Err(Cause::NotWhole { fault, .. }) => {
                let reason = format!("the chain of {} is not whole: {fault}", parent.id);
                Ok(FinalLevel::full(reason))
            }
            Err(cause) => {
                let why = with_sources(&cause);
                let reason = format!("the chain of {} cannot be read: {why}", parent.id);
                Ok(FinalLevel::full(reason))
            }
        }
    }

    pub(super) fn full(reason: String) -> FinalLevel {
        FinalLevel { parent: None, reason }
    }

    /// Returns a finding if the disk is full instead of incremental, because a full one takes
    /// unexpected space and time.
    pub(super) fn finding(&self, planned: &PlannedDisk) -> Option<Finding> {
        let target = &planned.disk.target;
        let is_other = planned.level.parent.is_some() && self.parent.is_none();
        is_other.then(|| {
            let what = format!("disk {target} is saved in full: {}", self.reason);
            Finding::of_disk("full-instead", target, what)
        })
    }

    pub(super) fn level(&self) -> Level {
        match self.parent {
            Some(_) => Level::Incremental,
            None => Level::Full,
        }
    }
}

/// Returns why a disk has to be read in full, from the same export, after its incremental copy
/// failed with `cause`. `None` if a full copy would fail too.
pub(super) fn reason_for_full(cause: &Cause) -> Option<String> {
    let what = with_sources(cause);
    match cause {
        Cause::Copy(error) if matches!(error.kind, BlockErrorKind::Distrusted | BlockErrorKind::Damaged) => {
            Some(format!(
                "the bitmap or the parent restore point is unreliable ({what})"
            ))
        }
        cause if cause.lacks_files() => Some(format!(
            "the images of the chain need more open files than the limit allows ({what})"
        )),
        _ => None,
    }
}
