//! Disks that a backup leaves out: on purpose, by the rule for raw disks, or because it cannot save
//! them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::finding::Finding;
use super::text::shown;

/// A disk that a backup leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    /// The disk's target.
    pub disk: String,
    /// The kind of reason.
    pub kind: Kind,
    /// The reason, as a clause without a full stop (`it is shareable …`).
    pub reason: String,
}

/// Why a disk is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The user excluded it.
    Excluded,
    /// It is raw, and raw disks are saved only on request.
    Raw,
    /// It is encrypted, and the user has not allowed vmsnap to store its plain text. The backup is
    /// partial.
    Encrypted,
    /// It cannot be saved. The backup is partial.
    #[serde(other)]
    Skipped,
}

impl Kind {
    /// The word for this kind in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Excluded => "excluded",
            Kind::Raw => "raw",
            Kind::Encrypted => "encrypted",
            Kind::Skipped => "skipped",
        }
    }
}

/// The kinds that make a backup partial: the disk should have been saved.
pub(crate) const UNASKED: [Kind; 2] = [Kind::Encrypted, Kind::Skipped];

/// The code of the finding about a disk that was left out on purpose.
pub(crate) const DISK_EXCLUDED: &str = "disk-excluded";

impl LeftOut {
    /// A disk that cannot be saved.
    pub fn skipped(disk: &str, reason: &str) -> LeftOut {
        LeftOut {
            disk: disk.to_owned(),
            kind: Kind::Skipped,
            reason: reason.to_owned(),
        }
    }

    /// The finding about this disk.
    pub fn finding(&self) -> Finding {
        let (disk, reason) = (shown(&self.disk), &self.reason);
        let (code, message) = match self.kind {
            Kind::Excluded => (DISK_EXCLUDED, format!("disk {disk} is left out: {reason}")),
            Kind::Raw => (
                "raw-disk-skipped",
                format!("disk {disk} is not backed up: {reason}"),
            ),
            Kind::Encrypted => (
                "disk-encrypted",
                format!("disk {disk} is not backed up: {reason}"),
            ),
            Kind::Skipped => ("disk-skipped", format!("disk {disk} is not backed up: {reason}")),
        };
        Finding::of_disk(code, &self.disk, message)
    }
}

/// The targets of the disks that were left out for these kinds of reasons.
pub fn targets<'a>(left_out: &'a [LeftOut], kinds: &[Kind]) -> Vec<&'a str> {
    let of_kinds = left_out.iter().filter(|left| kinds.contains(&left.kind));
    of_kinds.map(|left| left.disk.as_str()).collect()
}

/// The disks that should have been saved.
pub(crate) fn unasked(left_out: &[LeftOut]) -> impl Iterator<Item = &LeftOut> {
    left_out.iter().filter(|left| UNASKED.contains(&left.kind))
}

/// Whether a backup that leaves out these disks is partial.
pub fn is_partial(left_out: &[LeftOut]) -> bool {
    unasked(left_out).next().is_some()
}

/// A disk that the command line excludes from the backup of one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusion {
    /// The disk's target.
    pub disk: String,
    /// Whether to report it if the domain does not have this disk.
    pub is_expected: bool,
}

/// The exclusions of a command line, by domain.
pub type Exclusions = BTreeMap<String, Vec<Exclusion>>;

/// The exclusions of a command line that excludes nothing.
pub static NOTHING_EXCLUDED: Exclusions = Exclusions::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kind_counts_as_a_disk_that_could_not_be_saved() {
        let text = r#"{"disk":"vda","kind":"from-the-future","reason":"r"}"#;
        let read: LeftOut = serde_json::from_str(text).expect("it is read");
        assert!(is_partial(&[read]));
    }

    #[test]
    fn the_word_of_a_kind_is_what_manifests_hold() {
        for kind in [Kind::Excluded, Kind::Raw, Kind::Encrypted, Kind::Skipped] {
            let written = serde_json::to_value(kind).expect("it is written");
            assert_eq!(written, kind.word());
        }
    }
}
