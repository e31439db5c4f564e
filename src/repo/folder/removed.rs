//! Records in one file of the domain's folder which restore points were removed on purpose, alone
//! or by a merge. The record distinguishes them from lost restore points, and identifies their
//! checkpoints that are still in the domain. The removal of a whole period is not recorded.
//!
//! A restore point is recorded before it is removed, so an entry counts only if the restore point
//! is missing.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{layout, note};
use crate::io::Store;
use crate::model::chain::RemovedPoint;
use crate::model::checkpoint::CheckpointId;
use crate::model::finding::Finding;
use crate::repo::history::REMOVALS_UNREADABLE;
use crate::repo::{RepoError, Result};

/// The number of entries; the oldest are dropped.
const MOST: usize = 1000;

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// The content of the file.
#[derive(Default, Serialize, Deserialize)]
struct Written {
    removed: Vec<WrittenPoint>,
}

#[derive(Serialize, Deserialize)]
struct WrittenPoint {
    id: String,
    uuid: String,
    removed: Timestamp,
    checkpoint: Option<CheckpointId>,
}

/// Reads the entries, oldest first, with a finding if the file is damaged.
pub(super) fn read(domain_dir: &Path) -> Result<(Vec<RemovedPoint>, Option<Finding>)> {
    let path = domain_dir.join(layout::REMOVED);
    Ok(match note::read::<Written>(&path, MAX_BYTES)? {
        Ok(written) => {
            let points = written.unwrap_or_default().removed.into_iter();
            let point = |point: WrittenPoint| RemovedPoint {
                id: point.id,
                uuid: point.uuid,
                checkpoint: point.checkpoint,
                removed: point.removed,
            };
            (points.map(point).collect(), None)
        }
        Err(why) => {
            let what = format!(
                "cannot read the record of removed restore points, {}: {why}; no policy removes restore points \
                 until this file is moved away",
                path.display()
            );
            (Vec::new(), Some(Finding::new(REMOVALS_UNREADABLE, what)))
        }
    })
}

/// Records a restore point that is about to be removed.
///
/// # Errors
/// The existing record cannot be read; it is not overwritten.
pub(super) fn remember(store: &dyn Store, domain_dir: &Path, point: &RemovedPoint) -> Result<()> {
    let path = domain_dir.join(layout::REMOVED);
    let mut written = match note::read::<Written>(&path, MAX_BYTES)? {
        Ok(written) => written.unwrap_or_default(),
        Err(why) => {
            return Err(RepoError::NoNote {
                location: path.display().to_string(),
                why,
            });
        }
    };
    written.removed.retain(|known| known.id != point.id);
    written.removed.push(WrittenPoint {
        id: point.id.clone(),
        uuid: point.uuid.clone(),
        removed: point.removed,
        checkpoint: point.checkpoint.clone(),
    });
    let surplus = written.removed.len().saturating_sub(MOST);
    written.removed.drain(..surplus);
    note::write(store, &path, &written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::DiskStore;

    fn point(number: i64) -> RemovedPoint {
        let removed = Timestamp::from_second(1_793_667_600 + number).expect("in range");
        RemovedPoint {
            id: format!("point {number}"),
            uuid: "a uuid".to_owned(),
            checkpoint: (number % 2 == 0).then(|| CheckpointId {
                name: format!("virtnbdbackup.{number}"),
                created: number,
            }),
            removed,
        }
    }

    #[test]
    fn removed_points_are_remembered_once_each() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let read = || read(folder.path()).expect("it may be read");
        assert_eq!(read(), (Vec::new(), None));
        for number in [1, 2, 1] {
            remember(&DiskStore, folder.path(), &point(number)).expect("remembered");
        }
        assert_eq!(read(), (vec![point(2), point(1)], None));
    }

    #[test]
    fn a_damaged_record_is_a_finding_and_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(layout::REMOVED);
        remember(&DiskStore, folder.path(), &point(1)).expect("remembered");
        let good = std::fs::read_to_string(&path).expect("readable");
        for bad in ["", "{\"format\": 1}", &good.replace("point 1", "point 2")] {
            std::fs::write(&path, bad).expect("written");
            let (removed, finding) = read(folder.path()).expect("it may be read");
            assert!(removed.is_empty());
            assert_eq!(finding.expect("a finding").code, REMOVALS_UNREADABLE);
            remember(&DiskStore, folder.path(), &point(3)).expect_err("nothing is overwritten");
            assert_eq!(std::fs::read_to_string(&path).expect("readable"), bad);
        }
    }
}
