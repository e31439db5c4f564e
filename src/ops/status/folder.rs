//! What the folder of a period holds.

use std::fs;
use std::path::{Path, PathBuf};

use crate::repo::History;
use crate::repo::folder::layout;

/// What the folder of a period holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirStats {
    /// The folder.
    pub path: PathBuf,
    /// Files in it, at any depth.
    pub total_files: u64,
    /// Bytes of those files.
    pub total_size: u64,
    /// Checkpoints that its restore points recorded.
    pub checkpoints: u64,
}

/// Counts what the folder of the period holds.
pub(super) fn dir_stats(path: PathBuf, history: &History, period: &str) -> DirStats {
    let (total_files, total_size) = count_files(&path, 4);
    let of_period = history
        .chains
        .points()
        .iter()
        .filter(|kept| kept.point.period == period);
    DirStats {
        total_files,
        total_size,
        checkpoints: of_period.filter(|kept| kept.point.checkpoint.is_some()).count() as u64,
        path,
    }
}

/// Files and their bytes below a folder, down to a depth beyond which nothing of ours lies.
fn count_files(dir: &Path, depth: u32) -> (u64, u64) {
    let mut files = 0;
    let mut bytes = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(found) = entry.metadata() else { continue };
        // What is only known of restore points is no part of any.
        if entry.file_name() == layout::COMMITTED {
            continue;
        }
        if found.is_dir() && depth > 0 {
            let (below_files, below_bytes) = count_files(&entry.path(), depth - 1);
            files += below_files;
            bytes += below_bytes;
        } else if found.is_file() {
            files += 1;
            bytes += found.len();
        }
    }
    (files, bytes)
}
