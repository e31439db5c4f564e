//! Counts the files of a period's folder.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::layout;
use crate::repo::PeriodUsage;

/// The depth of vmsnap's files below a period's folder, plus one.
const DEPTH: u32 = 4;

/// The files of a period's folder.
pub(super) fn of(dir: &Path) -> PeriodUsage {
    let (files, bytes) = count_files(dir, DEPTH, &mut BTreeSet::new());
    PeriodUsage {
        exists: dir.is_dir(),
        location: dir.display().to_string(),
        files,
        bytes,
    }
}

/// The number of files below a folder, and the bytes that they store, down to a depth that vmsnap
/// does not exceed. A file with several names counts once.
fn count_files(dir: &Path, depth: u32, seen: &mut BTreeSet<(u64, u64)>) -> (u64, u64) {
    let mut files = 0;
    let mut bytes = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(found) = entry.metadata() else { continue };
        // Skip bookkeeping files.
        if entry.file_name() == layout::COMMITTED || entry.file_name() == layout::PIN {
            continue;
        }
        if found.is_dir() && depth > 0 {
            let (below_files, below_bytes) = count_files(&entry.path(), depth - 1, seen);
            files += below_files;
            bytes += below_bytes;
        } else if found.is_file() && (found.nlink() == 1 || seen.insert((found.dev(), found.ino()))) {
            files += 1;
            // A continued image has holes.
            bytes += found.len().min(found.blocks() * 512);
        }
    }
    (files, bytes)
}
