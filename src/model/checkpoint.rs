//! libvirt's checkpoints; the names of vmsnap's, and the marks in their descriptions.

use serde::{Deserialize, Serialize};

/// How many checkpoints are kept in a domain for the newest chain of each current period, unless
/// the user sets another number.
pub(crate) const KEPT_CHECKPOINTS: usize = 32;

/// The prefix of the names of vmsnap's checkpoints. The classic program uses it too, and status and
/// scrub recognise it.
const PREFIX: &str = "virtnbdbackup.";

/// The words of a mark before the id of the repository.
const OF_REPOSITORY: &str = " of repository ";

/// The mark of a checkpoint that a run makes. `repository` is the id of the repository of its
/// restore point, if it is known.
pub(crate) fn mark_of_run(run: &str, repository: Option<&str>) -> String {
    with_repository(format!("vmsnap run {run}"), repository)
}

/// The mark of a checkpoint that is registered with libvirt again from the record of this restore
/// point.
pub(crate) fn mark_of_point(id: &str, repository: Option<&str>) -> String {
    with_repository(format!("vmsnap restore point {id}"), repository)
}

fn with_repository(mark: String, repository: Option<&str>) -> String {
    match repository {
        Some(repository) => mark + OF_REPOSITORY + repository,
        None => mark,
    }
}

/// The mark of a checkpoint record that is created only to delete the bitmaps of the same name with
/// it.
pub const REMOVAL_MARK: &str = "vmsnap removes these bitmaps";

/// A checkpoint as libvirt lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Its description, which holds the mark if vmsnap made it.
    pub mark: Option<String>,
    /// The disks it covers with a bitmap.
    pub disks: Vec<CheckpointDisk>,
}

impl Checkpoint {
    /// Whether the bitmap of this disk exists and is sound.
    pub fn is_sound_for(&self, target: &str) -> bool {
        self.disks
            .iter()
            .any(|disk| disk.target == target && disk.bitmap == Bitmap::Sound)
    }

    /// The number of bytes written to this disk since the checkpoint, if the hypervisor reports it.
    pub(crate) fn dirty_bytes(&self, target: &str) -> Option<u64> {
        let disk = self.disks.iter().find(|disk| disk.target == target);
        disk.and_then(|disk| disk.dirty_bytes)
    }

    /// Whether the bitmap of this disk cannot be examined now.
    pub(crate) fn is_unknown_for(&self, target: &str) -> bool {
        self.disks
            .iter()
            .any(|disk| disk.target == target && disk.bitmap == Bitmap::Unknown)
    }

    /// The id of the repository for which the checkpoint was made; `None` for marks of earlier
    /// versions.
    pub fn repository(&self) -> Option<&str> {
        let (_, id) = self.mark.as_deref()?.rsplit_once(OF_REPOSITORY)?;
        Some(id)
    }

    /// Whether its mark names a repository other than `own`. If `own` is unknown, every named
    /// repository counts as another one, because marks name only repositories with an id.
    pub(crate) fn is_of_other_repository(&self, own: Option<&str>) -> bool {
        self.repository().is_some_and(|of| Some(of) != own)
    }

    /// Whether this is the recorded checkpoint, which has the same name and time of creation. The
    /// name alone is not enough, because it can be used again.
    pub fn is(&self, recorded: &CheckpointId) -> bool {
        self.name == recorded.name && self.created == recorded.created
    }
}

/// One disk of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointDisk {
    /// The disk's target.
    pub target: String,
    /// The state of its bitmap.
    pub bitmap: Bitmap,
    /// The number of bytes written since the checkpoint, if the hypervisor reports it.
    pub dirty_bytes: Option<u64>,
}

/// The state of a checkpoint's bitmap on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bitmap {
    /// It is present and recording.
    Sound,
    /// It is missing, or marked inconsistent, as after QEMU was killed.
    Broken,
    /// It cannot be examined now, for example because the domain is shut off and its images are on
    /// another machine.
    Unknown,
}

/// The record of a checkpoint in a manifest, by which it is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointId {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970, as libvirt reports it.
    pub created: i64,
}

/// The number of digits of the time in a name, in seconds since 1970.
const TIME_DIGITS: usize = 10;

/// The number of digits of the random part of a name.
const RANDOM_DIGITS: usize = 15;

/// Makes a checkpoint name that is practically unique across all runs, hosts, definitions and
/// repositories.
///
/// It consists of the time in seconds since 1970 and 15 random digits (about 50 bits), so names of
/// a later second have higher numbers. The number has 25 digits, so a program that counts up from
/// the highest number that it can read never reaches it.
pub(crate) fn new_name(seconds: i64, random: u64) -> String {
    let seconds = seconds.clamp(0, 10_i64.pow(TIME_DIGITS as u32) - 1);
    let random = random % 10_u64.pow(RANDOM_DIGITS as u32);
    format!("{PREFIX}{seconds:0TIME_DIGITS$}{random:0RANDOM_DIGITS$}")
}

/// Whether a name is one of vmsnap's: `virtnbdbackup.` and any number of digits.
pub(crate) fn is_own(name: &str) -> bool {
    digits(name).is_some()
}

/// Whether a name has the form of [`new_name`], so that only one run can have used it. The
/// consecutive numbers of earlier programs can be used twice.
pub(crate) fn is_unique(name: &str) -> bool {
    digits(name).is_some_and(|digits| digits.len() == TIME_DIGITS + RANDOM_DIGITS)
}

/// A key that sorts vmsnap's names by their numbers, and foreign names after them.
pub(crate) fn sort_key(name: &str) -> (bool, usize, &str) {
    match digits(name) {
        Some(digits) => {
            let number = digits.trim_start_matches('0');
            (false, number.len(), number)
        }
        None => (true, 0, name),
    }
}

/// The digits of one of vmsnap's names; `None` for a foreign name.
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
