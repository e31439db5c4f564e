//! A standalone copy: every disk in full, no checkpoint, nothing retired. Pure.

use crate::model::level::{DiskLevel, LevelReason};
use crate::ops::reconcile::{Reconciliation, Repair};

/// The code of the finding that every backup is full, which of a copy is no news.
const NO_INCREMENTAL: &str = "no-incremental";

/// What a copy into this folder does where a backup would do what was `planned`.
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
