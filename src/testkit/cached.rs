//! How much of a file the page cache holds.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Advice, fadvise};

/// Asks the kernel without touching a page (`mincore(2)`), which needs unsafe code: so by a program that does nothing else.
const FINCORE: &str = "fincore";

/// How many bytes of the file the page cache holds, in whole pages.
///
/// # Errors
/// When `fincore` (util-linux) is not there, or cannot tell for this file.
#[allow(clippy::disallowed_methods, reason = "doubles have no host to ask")]
pub fn cached_bytes(path: &Path) -> io::Result<u64> {
    let asked = Command::new(FINCORE)
        .args(["--bytes", "--noheadings", "--raw", "--output", "RES", "--"])
        .arg(path)
        .env("LC_ALL", "C")
        .output()?;
    let told = String::from_utf8_lossy(&asked.stdout);
    match told.trim().parse() {
        Ok(bytes) if asked.status.success() => Ok(bytes),
        _ => Err(io::Error::other(format!(
            "{FINCORE} {}: {told}{}",
            path.display(),
            String::from_utf8_lossy(&asked.stderr)
        ))),
    }
}

/// How often the kernel is asked to forget a file.
const ATTEMPTS: usize = 100;

/// Lets the page cache forget the file, as far as it is on the disk. The kernel keeps what it is moving at that moment to make room for
/// large pages, so it is asked until nothing is left.
///
/// # Errors
/// When the file cannot be opened, advice is not taken, or something is still cached in the end.
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
