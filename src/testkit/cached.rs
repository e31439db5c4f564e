//! Measures and drops the cached pages of a file.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Advice, fadvise};

/// Asks the kernel for cached pages without touching them (`mincore(2)`). That call needs unsafe
/// code, so a separate program makes it.
const FINCORE: &str = "fincore";

/// Returns how many bytes of the file the page cache holds, in whole pages.
///
/// # Errors
/// If `fincore` (util-linux) is missing, or fails for this file.
#[allow(clippy::disallowed_methods, reason = "doubles have no host to ask")]
pub fn cached_bytes(path: &Path) -> io::Result<u64> {
    let asked = Command::new(FINCORE)
        .args(["--bytes", "--noheadings", "--raw", "--output", "RES", "--"])
        .arg(path)
        .env("LC_ALL", "C")
        .output()?;
    let answer = String::from_utf8_lossy(&asked.stdout);
    match answer.trim().parse() {
        Ok(bytes) if asked.status.success() => Ok(bytes),
        _ => Err(io::Error::other(format!(
            "{FINCORE} {}: {answer}{}",
            path.display(),
            String::from_utf8_lossy(&asked.stderr)
        ))),
    }
}

/// How often the kernel is asked to forget a file.
const ATTEMPTS: usize = 100;

/// Drops the file's pages from the page cache. The kernel keeps pages that it is moving at that
/// moment to form large pages, so it is asked up to 100 times.
///
/// # Errors
/// If the file cannot be opened, the advice is rejected, [`cached_bytes`] fails, or something is
/// still cached in the end. Pages that are not on the disk yet stay cached.
pub fn forget_cached(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    for _ in 0..ATTEMPTS {
        fadvise(&file, 0, None, Advice::DontNeed)?;
        if cached_bytes(path)? == 0 {
            return Ok(());
        }
    }
    Err(io::Error::other(format!(
        "{} stays in the page cache",
        path.display()
    )))
}
