//! libvirt's named points in time, and the names of ours.

use serde::{Deserialize, Serialize};

/// The prefix of our checkpoints' names: the classic one, so that status and scrub know them.
const PREFIX: &str = "virtnbdbackup.";

/// The mark of a record that is made only to remove the bitmaps of its name with it.
pub const REMOVAL_MARK: &str = "vmsnap removes these bitmaps";

/// A checkpoint as libvirt lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Its description; a run of ours leaves its mark there.
    pub mark: Option<String>,
    /// The disks it covers with a bitmap.
    pub disks: Vec<CheckpointDisk>,
}

impl Checkpoint {
    /// Whether the bitmap of this disk is there and sound.
    pub fn is_sound_for(&self, target: &str) -> bool {
        self.disks
            .iter()
            .any(|disk| disk.target == target && disk.bitmap == Bitmap::Sound)
    }

    /// Bytes written to this disk since, where the hypervisor can tell.
    pub fn dirty_bytes(&self, target: &str) -> Option<u64> {
        let disk = self.disks.iter().find(|disk| disk.target == target);
        disk.and_then(|disk| disk.dirty_bytes)
    }

    /// Whether the bitmap of this disk cannot be looked at from here.
    pub fn is_unknown_for(&self, target: &str) -> bool {
        self.disks
            .iter()
            .any(|disk| disk.target == target && disk.bitmap == Bitmap::Unknown)
    }

    /// The same moment as the one recorded: name and time of creation agree. A name alone can have been used again.
    pub fn is(&self, recorded: &CheckpointId) -> bool {
        self.name == recorded.name && self.created == recorded.created
    }
}

/// One disk of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointDisk {
    /// The disk's target.
    pub target: String,
    /// What is known of its bitmap.
    pub bitmap: Bitmap,
    /// Bytes written since, where the hypervisor can tell.
    pub dirty_bytes: Option<u64>,
}

/// What is known of a checkpoint's bitmap on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bitmap {
    /// It is there and records.
    Sound,
    /// It is missing, or marked inconsistent since QEMU was killed.
    Broken,
    /// It cannot be looked at from here: the domain is shut off, and its images are on another machine.
    Unknown,
}

/// What a manifest keeps of a checkpoint, to know it again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointId {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970, as libvirt says.
    pub created: i64,
}

/// Whether a name is one of ours: `virtnbdbackup.` and digits, however many.
pub fn is_own(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX);
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The number in one of our checkpoints' names; `None` for a foreign name.
pub fn own_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The next name of ours that none of `taken` uses or has overtaken.
pub fn next_name<'a>(taken: impl IntoIterator<Item = &'a str>) -> String {
    let next = taken
        .into_iter()
        .filter_map(own_number)
        .max()
        .map_or(0, |highest| highest.saturating_add(1));
    format!("{PREFIX}{next}")
}

/// The name of ours that stands `steps` behind this one; a foreign name stays as it is.
pub fn further_name(name: &str, steps: u64) -> String {
    own_number(name).map_or_else(
        || name.to_owned(),
        |number| format!("{PREFIX}{}", number.saturating_add(steps)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_is_number_zero_and_gaps_are_not_filled() {
        assert_eq!(next_name([]), "virtnbdbackup.0");
        assert_eq!(
            next_name(["virtnbdbackup.0", "virtnbdbackup.7"]),
            "virtnbdbackup.8"
        );
    }

    #[test]
    fn foreign_names_do_not_count() {
        let foreign = [
            "",
            "mine.3",
            "virtnbdbackup.",
            "virtnbdbackup.1a",
            "xvirtnbdbackup.4",
            "virtnbdbackup.4\n",
            "virtnbdbackup.\u{661}",
            "VIRTNBDBACKUP.1",
        ];
        for foreign in foreign {
            assert_eq!(own_number(foreign), None, "{foreign}");
            assert!(!is_own(foreign), "{foreign}");
        }
        assert_eq!(next_name(["mine.3"]), "virtnbdbackup.0");
        assert!(is_own("virtnbdbackup.0") && is_own("virtnbdbackup.99999999999999999999999"));
    }
}
