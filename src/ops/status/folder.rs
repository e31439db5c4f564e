//! Counts the contents of the current period.

use crate::repo::{History, PeriodUsage};

/// The contents of a period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirStats {
    /// The location of the period.
    pub location: String,
    /// The number of its files.
    pub total_files: u64,
    /// The size of those files, in bytes.
    pub total_size: u64,
    /// The number of checkpoints that its restore points recorded.
    pub checkpoints: u64,
}

/// Counts the contents of the period.
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
