//! libvirt's named points in time, and the names of ours.

use serde::{Deserialize, Serialize};

/// How many checkpoints of the active chain stay in a domain unless the user says otherwise.
pub const KEPT_CHECKPOINTS: usize = 32;

/// The prefix of our checkpoints' names: the classic one, so that status and scrub know them.
const PREFIX: &str = "virtnbdbackup.";

/// What a mark says before the id of the repository.
const OF_REPOSITORY: &str = " of repository ";

/// The mark of the checkpoint that a run makes. `repository` is the id of the repository of its restore point, if that is known.
pub fn mark_of_run(run: &str, repository: Option<&str>) -> String {
    with_repository(format!("vmsnap run {run}"), repository)
}

/// The mark of a checkpoint that is made known to libvirt again, because this restore point recorded it.
pub fn mark_of_point(id: &str, repository: Option<&str>) -> String {
    with_repository(format!("vmsnap restore point {id}"), repository)
}

fn with_repository(mark: String, repository: Option<&str>) -> String {
    match repository {
        Some(repository) => mark + OF_REPOSITORY + repository,
        None => mark,
    }
}

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

    /// The id of the repository for which it was made, where its mark says so: those of earlier versions do not.
    pub fn repository(&self) -> Option<&str> {
        let (_, id) = self.mark.as_deref()?.rsplit_once(OF_REPOSITORY)?;
        Some(id)
    }

    /// Whether it was made for another repository than the one with the id `own`. A repository without an id has made no checkpoint whose
    /// mark names a repository.
    pub fn is_of_other_repository(&self, own: Option<&str>) -> bool {
        self.repository().is_some_and(|of| Some(of) != own)
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
    /// It cannot be looked at now: the domain is shut off, and its images are on another machine, or cannot be opened.
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

/// Digits of a name's time, in seconds since 1970.
const TIME_DIGITS: usize = 10;

/// Digits of a name's random part.
const RANDOM_DIGITS: usize = 15;

/// A name that no other run gives, whatever host, definition or repository it is for, and whenever: the time in seconds since 1970, then 15
/// random digits (50 bits). Later names have higher numbers.
///
/// The number has 25 digits: a program that counts from the highest number it can read never comes to one of these.
pub fn new_name(seconds: i64, random: u64) -> String {
    let seconds = seconds.clamp(0, 10_i64.pow(TIME_DIGITS as u32) - 1);
    let random = random % 10_u64.pow(RANDOM_DIGITS as u32);
    format!("{PREFIX}{seconds:0TIME_DIGITS$}{random:0RANDOM_DIGITS$}")
}

/// Whether a name is one of ours: `virtnbdbackup.` and digits, however many.
pub fn is_own(name: &str) -> bool {
    digits(name).is_some()
}

/// Whether a name has the form of [`new_name`]: the bitmap that has it can only be the one of its run. A number that was counted can
/// have been given again.
pub fn is_unique(name: &str) -> bool {
    digits(name).is_some_and(|digits| digits.len() == TIME_DIGITS + RANDOM_DIGITS)
}

/// A key that sorts our names by their numbers, and foreign names after them.
pub fn sort_key(name: &str) -> (bool, usize, &str) {
    match digits(name) {
        Some(digits) => {
            let number = digits.trim_start_matches('0');
            (false, number.len(), number)
        }
        None => (true, 0, name),
    }
}

/// The digits of one of our names; `None` for a foreign one.
fn digits(name: &str) -> Option<&str> {
    let digits = name.strip_prefix(PREFIX)?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_names_are_ours_and_unique_whatever_the_clock_says() {
        assert_eq!(
            new_name(1_793_667_600, 7),
            "virtnbdbackup.1793667600000000000000007"
        );
        for seconds in [i64::MIN, -1, 0, 1, 999_999_999, 9_999_999_999, i64::MAX] {
            for random in [0, 1, 999_999_999_999_999, u64::MAX] {
                let name = new_name(seconds, random);
                assert!(is_own(&name) && is_unique(&name), "{name}");
            }
        }
        assert_ne!(new_name(1, 0), new_name(1, 1));
    }

    #[test]
    fn a_mark_names_the_repository() {
        let marked = |mark: &str| Checkpoint {
            name: String::new(),
            created: 0,
            mark: Some(mark.to_owned()),
            disks: Vec::new(),
        };
        for mark in [mark_of_run("r", Some("id")), mark_of_point("p", Some("id"))] {
            let checkpoint = marked(&mark);
            assert_eq!(checkpoint.repository(), Some("id"));
            assert!(checkpoint.is_of_other_repository(Some("other")));
            assert!(checkpoint.is_of_other_repository(None));
            assert!(!checkpoint.is_of_other_repository(Some("id")));
        }
        for mark in [mark_of_run("r", None).as_str(), REMOVAL_MARK, "by hand"] {
            assert!(!marked(mark).is_of_other_repository(Some("id")), "{mark}");
        }
    }

    #[test]
    fn later_names_have_higher_numbers() {
        let mut names = [new_name(1_800_000_000, 0), new_name(1_799_999_999, u64::MAX)];
        names.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
        assert_eq!(names[0], new_name(1_799_999_999, u64::MAX));
    }

    #[test]
    fn no_name_that_was_counted_is_unique() {
        let counted = [
            "virtnbdbackup.0",
            "virtnbdbackup.3",
            "virtnbdbackup.18446744073709551615",
        ];
        for counted in counted {
            assert!(is_own(counted) && !is_unique(counted), "{counted}");
        }
    }

    #[test]
    fn names_are_sorted_by_their_numbers_and_foreign_ones_come_last() {
        let mut names = [
            "mine.3",
            "virtnbdbackup.1793667600000000000000007",
            "virtnbdbackup.10",
            "virtnbdbackup.09",
        ];
        names.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
        let ours = [
            "virtnbdbackup.09",
            "virtnbdbackup.10",
            "virtnbdbackup.1793667600000000000000007",
        ];
        assert_eq!((&names[..3], names[3]), (&ours[..], "mine.3"));
    }

    #[test]
    fn foreign_names_are_distinguished_from_ours() {
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
            assert!(!is_own(foreign) && !is_unique(foreign), "{foreign}");
        }
    }
}
