//! Counts what the folder of a period holds.

use std::fs;
use std::path::Path;

use super::layout;
use crate::repo::PeriodUsage;

/// How deep below a period's folder files of ours lie, and one more.
const DEPTH: u32 = 4;

/// What lies in a period's folder.
pub(super) fn of(dir: &Path) -> PeriodUsage {
    let (files, bytes) = count_files(dir, DEPTH);
    PeriodUsage {
        exists: dir.is_dir(),
        location: dir.display().to_string(),
        files,
        bytes,
    }
}

/// Files and their bytes below a folder, down to a depth beyond which nothing of ours lies.
fn count_files(dir: &Path, depth: u32) -> (u64, u64) {
    let mut files = 0;
    let mut bytes = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(found) = entry.metadata() else { continue };
        // What is only known of restore points is no part of any.
        if entry.file_name() == layout::COMMITTED || entry.file_name() == layout::PIN {
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
