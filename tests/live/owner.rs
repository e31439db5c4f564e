//! Names that contain the id of the test process that made a thing: `vmsnap-test-<pid>-…`.
//!
//! Every folder and domain of the live tests has such a name. A thing counts as left over only if
//! the process in its name is gone, so concurrent test runs keep their things.

use std::path::Path;

use tempfile::TempDir;

use crate::process::is_alive;

/// The prefix of every such name. The id of the test process follows.
pub const PREFIX: &str = "vmsnap-test-";

/// The prefixes of the file names of programs that use the lab: the live tests (`live-<hash>`) and
/// the benchmark that compares vmsnap with its peers.
const PROGRAMS: [&str; 2] = ["live", "peers"];

/// The stem of the names that this process gives.
pub fn stem() -> String {
    format!("{PREFIX}{}", std::process::id())
}

/// A new folder for temporary files, removed when dropped. Random letters follow the label, which
/// may contain blanks.
pub fn folder(label: &str) -> TempDir {
    folder_in(&std::env::temp_dir(), label)
}

/// A new folder on a disk, where images can be written past the page cache.
pub fn folder_on_disk(label: &str) -> TempDir {
    folder_in(Path::new("/var/tmp"), label)
}

/// A new folder within another one.
pub fn folder_in(parent: &Path, label: &str) -> TempDir {
    let prefix = format!("{}-{label}", stem());
    let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
    made.unwrap_or_else(|error| panic!("no folder in {}: {error}", parent.display()))
}

/// The ids of the test processes that a text names.
pub fn owners_in(text: &str) -> Vec<u32> {
    text.split(PREFIX)
        .skip(1)
        .filter_map(number_before_dash)
        .collect()
}

/// The id of the test process that made a thing with this name.
pub fn owner_of(name: &str) -> Option<u32> {
    number_before_dash(name.strip_prefix(PREFIX)?)
}

fn number_before_dash(text: &str) -> Option<u32> {
    text.split_once('-')?.0.parse().ok()
}

/// Whether no test process has this id. Another program may have it by now.
pub fn is_gone(pid: u32) -> bool {
    if !is_alive(pid) {
        return true;
    }
    // If the link cannot be read, the owner counts as alive.
    let program = std::fs::read_link(format!("/proc/{pid}/exe"));
    program.is_ok_and(|program| {
        let name = program.file_name().unwrap_or_default().as_encoded_bytes();
        !PROGRAMS.iter().any(|begin| name.starts_with(begin.as_bytes()))
    })
}
