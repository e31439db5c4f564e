//! What the current period holds.

use crate::repo::{History, PeriodUsage};

/// What a period holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirStats {
    /// Where it is.
    pub location: String,
    /// Its files.
    pub total_files: u64,
    /// Bytes of those files.
    pub total_size: u64,
    /// Checkpoints that its restore points recorded.
    pub checkpoints: u64,
}

/// Counts what the period holds.
pub(super) fn dir_stats(usage: PeriodUsage, history: &History, period: &str) -> DirStats {
    let of_period = history
        .chains
        .points()
        .iter()
        .filter(|kept| kept.point.period == period);
    DirStats {
        location: usage.location,
        total_files: usage.files,
        total_size: usage.bytes,
        checkpoints: of_period.filter(|kept| kept.point.checkpoint.is_some()).count() as u64,
    }
}
