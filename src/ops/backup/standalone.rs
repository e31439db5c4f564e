//! Plans a standalone copy: every disk is full, no checkpoint is made, nothing is retired. Pure.

use crate::model::level::{DiskLevel, LevelReason};
use crate::ops::reconcile::{Reconciliation, Repair};

/// The code of the finding that every backup is full. A copy is always full, so it does not have
/// this finding.
const NO_INCREMENTAL: &str = "no-incremental";

/// Turns the plan of a backup into the plan of a copy into this folder.
pub(super) fn as_copy(planned: Reconciliation, folder: String) -> Reconciliation {
    let mut backup = planned.backup;
    backup.period = folder;
    backup.checkpoint = false;
    backup.registered.clear();
    backup.findings.retain(|finding| finding.code != NO_INCREMENTAL);
    for planned in &mut backup.disks {
        planned.checkpointed = false;
        planned.possible_parent = None;
        planned.level = DiskLevel {
            target: planned.disk.target.clone(),
            parent: None,
            reason: LevelReason::StandaloneCopy,
        };
    }
    let touches_no_checkpoint = |repair: &Repair| !matches!(repair, Repair::Register(_));
    Reconciliation {
        repairs: planned
            .repairs
            .into_iter()
            .filter(touches_no_checkpoint)
            .collect(),
        backup,
        retired: Vec::new(),
        obstacle: planned.obstacle,
    }
}
