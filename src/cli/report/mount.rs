//! The output of `vmsnap mount`.

use std::path::Path;

use super::lines::{line, table};
use crate::cli::pretty;
use crate::model::text::shell_word;
use crate::ops::mount::{MountEnding, MountedPoint, Outcome};

/// The lines about a new mount: its files, and how to unmount it.
pub fn ready_text(domain: &str, mounted: &MountedPoint, path: &Path) -> String {
    let (id, dir) = (&mounted.point.id, path.display());
    let unmount = match rustix::process::geteuid().is_root() {
        true => "umount",
        false => "fusermount3 -u",
    };
    let rows: Vec<Vec<String>> = mounted
        .files
        .all()
        .iter()
        .map(|file| vec![format!("  {}", file.name()), pretty::bytes(file.size())])
        .collect();
    line(&format!(
        "{domain}: restore point {id} is mounted on {dir}, read-only"
    )) + &table(&rows, &[1])
        + &line(&format!(
            "to end, press Ctrl-C here, or run: {unmount} {}",
            shell_word(&path.to_string_lossy())
        ))
}

/// The line about how a mount ended, and how many reads failed.
pub fn text(domain: &str, outcome: &Outcome, dir: &Path) -> String {
    let dir = dir.display();
    let ended = match outcome.end {
        MountEnding::Stopped => format!("{domain}: unmounted {dir}"),
        MountEnding::Unmounted => format!("{domain}: {dir} was unmounted"),
    };
    let reads = match outcome.failed_reads {
        0 => String::new(),
        1 => "; 1 read failed".to_owned(),
        count => format!("; {count} reads failed"),
    };
    let damage = match outcome.is_damaged {
        true => "; stored data is damaged",
        false => "",
    };
    line(&format!("{ended}{reads}{damage}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_says_whether_reads_failed() {
        let say = |end, failed_reads, is_damaged| {
            let outcome = Outcome {
                end,
                failed_reads,
                is_damaged,
            };
            text("vm1", &outcome, Path::new("/mnt/a\nb"))
        };
        assert_eq!(say(MountEnding::Stopped, 0, false), "vm1: unmounted /mnt/a\\nb\n");
        assert_eq!(
            say(MountEnding::Unmounted, 1, false),
            "vm1: /mnt/a\\nb was unmounted; 1 read failed\n"
        );
        assert_eq!(
            say(MountEnding::Stopped, 2, true),
            "vm1: unmounted /mnt/a\\nb; 2 reads failed; stored data is damaged\n"
        );
    }
}
