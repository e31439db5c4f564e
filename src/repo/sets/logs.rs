//! Evidence from the logs that virtnbdbackup writes into the folder of a set.
//!
//! virtnbdbackup from version 2.21 on leaves out of incremental streams what became zero, unless it
//! has the switch `--no-sparse-detection`. A stream does not show which version wrote it, but the
//! log of the run does.

use std::collections::BTreeMap;

/// How much of a log is read, in bytes. The lines that matter come before the copying.
pub(super) const READ: u64 = 1 << 20;

/// The first version that leaves out zeroes.
const FIRST_WITHOUT_ZEROES: (u64, u64) = (2, 21);

/// What is known about the run that wrote a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The version of virtnbdbackup.
    pub(super) version: String,
    /// Whether the file contains all changes, including ranges that became zero.
    pub(super) has_zeroes: bool,
}

/// Evidence by the names of data files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Logs {
    files: BTreeMap<String, Evidence>,
}

impl Logs {
    /// Whether this is the name of a log.
    pub(super) fn is_log(name: &str) -> bool {
        name.starts_with("backup.") && name.ends_with(".log")
    }

    /// Adds the evidence from a log. If several runs wrote a file, a run that may have left out
    /// zeroes takes precedence.
    pub(super) fn add(&mut self, text: &[u8]) {
        let text = String::from_utf8_lossy(text);
        let mut version = None;
        let mut files = Vec::new();
        let mut has_all = false;
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once("Version: ")
                && line.contains(" Arguments: ")
            {
                version = rest.split_whitespace().next();
            } else if let Some((_, rest)) = line.split_once("Write data to target file: [") {
                let path = rest.split(']').next().unwrap_or_default();
                let name = path.rsplit('/').next().unwrap_or_default();
                files.extend(name.strip_suffix(".partial"));
            } else if line.contains("Skipping detection of sparse/fstrimmed blocks") {
                has_all = true;
            }
        }
        let Some((version, number)) = version.and_then(|version| Some((version, numbers(version)?))) else {
            return;
        };
        let has_zeroes = has_all || number < FIRST_WITHOUT_ZEROES;
        for file in files {
            let evidence = Evidence {
                version: version.to_owned(),
                has_zeroes,
            };
            let known = self.files.entry(file.to_owned()).or_insert(evidence.clone());
            if !has_zeroes {
                *known = evidence;
            }
        }
    }

    /// The evidence about a data file.
    pub(super) fn of(&self, data_file: &str) -> Option<&Evidence> {
        self.files.get(data_file)
    }
}

/// The first two numbers of a version such as `1.9.15` or `2.47`.
fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log(version: &str, more: &str) -> String {
        format!(
            "[2026-11-29 00:40:12] INFO lib common - printVersion [main]: Version: {version} Arguments: \
             /usr/bin/virtnbdbackup -d vm1\n{more}\
             [2026-11-29 00:40:12] INFO root virtnbdbackup - getWriter [vda]: Write data to target file: \
             [/b/vm1/vda.inc.virtnbdbackup.1.data.partial].\n"
        )
    }

    #[test]
    fn version_and_switch_decide() {
        let skipped = "[x] INFO root disk - Skipping detection of sparse/fstrimmed blocks.\n";
        for (version, more, expected) in [
            ("1.9.15", "", Some(true)),
            ("2.20", "", Some(true)),
            ("2.21", "", Some(false)),
            ("2.47", "", Some(false)),
            ("2.47", skipped, Some(true)),
            ("unknown", "", None),
        ] {
            let mut logs = Logs::default();
            logs.add(log(version, more).as_bytes());
            let found = logs
                .of("vda.inc.virtnbdbackup.1.data")
                .map(|found| found.has_zeroes);
            assert_eq!(found, expected, "{version} {more}");
            assert_eq!(logs.of("vdb.inc.virtnbdbackup.1.data"), None);
        }
    }

    #[test]
    fn the_worse_of_two_runs_counts() {
        for versions in [["1.9.15", "2.47"], ["2.47", "1.9.15"]] {
            let mut logs = Logs::default();
            versions
                .iter()
                .for_each(|version| logs.add(log(version, "").as_bytes()));
            let found = logs.of("vda.inc.virtnbdbackup.1.data").expect("it is known");
            assert_eq!((found.version.as_str(), found.has_zeroes), ("2.47", false));
        }
    }

    proptest! {
        #[test]
        fn any_log_is_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let mut logs = Logs::default();
            logs.add(&bytes);
        }
    }
}
