//! The output of a guest on its console, read from the file that QEMU or virtlogd writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::wait_until;

/// A console's log, or the end of it.
#[derive(Clone, Debug)]
pub struct SerialLog {
    path: PathBuf,
    /// The number of bytes at the start of the file that are ignored.
    skipped: usize,
}

impl SerialLog {
    /// The log at this path, which need not exist yet.
    pub fn new(path: PathBuf) -> SerialLog {
        SerialLog { path, skipped: 0 }
    }

    /// The same log without the output so far.
    pub fn later_output(&self) -> SerialLog {
        SerialLog {
            path: self.path.clone(),
            skipped: self.bytes().len(),
        }
    }

    /// The path of the log.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All output so far.
    pub fn text(&self) -> String {
        let bytes = self.bytes();
        let wanted = bytes.get(self.skipped..).unwrap_or_default();
        String::from_utf8_lossy(wanted).into_owned()
    }

    /// Whether the console shows this text.
    pub fn shows(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    /// Waits until the console shows this text. Panics with the log at the deadline.
    pub fn wait_for_text(&self, text: &str, deadline: Duration) {
        assert!(
            wait_until(deadline, || self.shows(text)),
            "the guest did not print {text:?} in {deadline:?}:\n{}",
            self.text()
        );
    }

    /// The last round reported, or 0.
    pub fn last_round(&self) -> u64 {
        last_round(&self.text())
    }

    /// Waits until a round is reported. Panics with the log at the deadline or when the guest
    /// reports a failure.
    pub fn wait_for_round(&self, round: u64, deadline: Duration) {
        let reached = wait_until(deadline, || {
            let text = self.text();
            assert!(!text.contains("FAILED:"), "the guest has failed:\n{text}");
            last_round(&text) >= round
        });
        assert!(
            reached,
            "the guest did not reach round {round} in {deadline:?}:\n{}",
            self.text()
        );
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap_or_default()
    }
}

fn last_round(text: &str) -> u64 {
    // An incomplete line may lack digits.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let newest = whole
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix("round ")?.parse().ok());
    newest.unwrap_or(0)
}

#[test]
fn last_whole_line_shows_the_round() {
    assert_eq!(last_round(""), 0);
    assert_eq!(last_round("booting\r\nround 7\r\n"), 7);
    assert_eq!(last_round("round 7\r\nround 8\r\nround 1"), 8);
    assert_eq!(last_round("round 9"), 0);
    assert_eq!(last_round("round x\nround 3\nwriting from round 4 on\n"), 3);
}
