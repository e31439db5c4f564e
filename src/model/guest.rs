//! What a guest agent reports about its guest, and how far a guest came in a boot proof.
//!
//! Agents run in guests, so a report may be wrong on purpose: it is cut to bounds, and used
//! only for comparison and for people.

use serde::{Deserialize, Serialize};

/// The largest number of file systems that are kept of one guest.
const MOST_FILE_SYSTEMS: usize = 256;

/// The largest number of characters of each text.
const LONGEST_TEXT: usize = 255;

/// File systems of media that a boot proof does not have, or that come and go.
const PASSING: [&str; 6] = ["iso9660", "udf", "squashfs", "erofs", "CDFS", "UDF"];

/// What a guest agent has reported about its guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestFacts {
    /// Its host name; `None` if the agent does not report it.
    pub hostname: Option<String>,
    /// The name and version of its operating system, for people; `None` if the agent does not
    /// report it.
    pub system: Option<String>,
    /// Its mounted file systems, in the order of their places.
    pub file_systems: Vec<GuestFileSystem>,
}

/// A file system that is mounted in a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestFileSystem {
    /// Where it is mounted.
    pub place: String,
    /// Its type, such as `ext4`.
    pub kind: String,
    /// The targets of the domain's disks on which it lies, as far as libvirt knows them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<String>,
}

impl GuestFacts {
    /// The same within the bounds, with the file systems in order.
    pub fn bounded(mut self) -> GuestFacts {
        let cut = |text: &mut String| {
            if let Some((end, _)) = text.char_indices().nth(LONGEST_TEXT) {
                text.truncate(end);
            }
        };
        self.hostname.iter_mut().for_each(cut);
        self.system.iter_mut().for_each(cut);
        for found in &mut self.file_systems {
            cut(&mut found.place);
            cut(&mut found.kind);
            found.disks.iter_mut().for_each(cut);
            found.disks.truncate(MOST_FILE_SYSTEMS);
        }
        self.file_systems.sort();
        self.file_systems.dedup();
        self.file_systems.truncate(MOST_FILE_SYSTEMS);
        self
    }

    /// Whether there is anything that can be compared.
    pub fn is_comparable(&self) -> bool {
        self.hostname.is_some() || !self.file_systems.is_empty()
    }

    /// What these facts of a booted guest lack of those that were recorded with its disks, as part
    /// of a sentence; `None` if the host name and all file systems are the same. `disks` are the
    /// targets that the booted domain has: what lay on others is not expected.
    pub fn differs_from(&self, recorded: &GuestFacts, disks: &[&str]) -> Option<String> {
        if let Some(name) = &recorded.hostname
            && self.hostname.as_ref() != Some(name)
        {
            let found = self.hostname.as_deref().unwrap_or("unknown");
            return Some(format!("the host name is {found:?}, not {name:?}"));
        }
        let is_expected = |wanted: &&GuestFileSystem| {
            let is_there = wanted.disks.iter().all(|disk| disks.contains(&disk.as_str()));
            is_there && !PASSING.contains(&wanted.kind.as_str())
        };
        let is_same = |wanted: &GuestFileSystem, found: &GuestFileSystem| {
            (&wanted.place, &wanted.kind) == (&found.place, &found.kind)
        };
        let mut expected = recorded.file_systems.iter().filter(is_expected);
        let missing =
            expected.find(|wanted| !self.file_systems.iter().any(|found| is_same(wanted, found)))?;
        let (place, kind) = (&missing.place, &missing.kind);
        Some(format!("no {kind} file system is mounted at {place:?}"))
    }
}

/// How far a guest came in a boot proof. Each level counts more than those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootLevel {
    /// It has not even read from its disks.
    Nothing,
    /// It, or its firmware, has read from its disks.
    Read,
    /// The expected text appeared on its console.
    Console,
    /// Its guest agent answered.
    Agent,
    /// Its host name and file systems are those that were recorded when it was backed up.
    Same,
    /// A command of the user succeeded in it.
    Command,
}

impl BootLevel {
    /// All levels, the lowest first.
    pub const ALL: [BootLevel; 6] = [
        BootLevel::Nothing,
        BootLevel::Read,
        BootLevel::Console,
        BootLevel::Agent,
        BootLevel::Same,
        BootLevel::Command,
    ];

    /// The word for it in the interface.
    pub fn word(self) -> &'static str {
        match self {
            BootLevel::Nothing => "nothing",
            BootLevel::Read => "read",
            BootLevel::Console => "console",
            BootLevel::Agent => "agent",
            BootLevel::Same => "same",
            BootLevel::Command => "command",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_system(place: &str, kind: &str, disks: &[&str]) -> GuestFileSystem {
        GuestFileSystem {
            place: place.to_owned(),
            kind: kind.to_owned(),
            disks: disks.iter().map(|disk| (*disk).to_owned()).collect(),
        }
    }

    fn facts(hostname: Option<&str>, file_systems: Vec<GuestFileSystem>) -> GuestFacts {
        GuestFacts {
            hostname: hostname.map(str::to_owned),
            system: None,
            file_systems,
        }
    }

    #[test]
    fn every_difference_of_a_guest_is_named() {
        let root = file_system("/", "ext4", &["vda"]);
        let recorded = facts(
            Some("web"),
            vec![
                root.clone(),
                file_system("/media", "iso9660", &["sda"]),
                file_system("/scratch", "xfs", &["vdb"]),
            ],
        );
        let booted = facts(Some("web"), vec![file_system("/", "ext4", &[])]);
        assert_eq!(booted.differs_from(&recorded, &["vda"]), None);
        let both = booted
            .differs_from(&recorded, &["vda", "vdb"])
            .expect("one is missing");
        assert!(both.contains("/scratch") && both.contains("xfs"), "{both}");
        let other = facts(Some("web2"), vec![root.clone()]);
        let name = other.differs_from(&recorded, &["vda"]).expect("the name differs");
        assert!(name.contains("web2"), "{name}");
        let unnamed = facts(None, vec![root]);
        assert!(unnamed.differs_from(&recorded, &["vda"]).is_some());
        let another_type = facts(Some("web"), vec![file_system("/", "xfs", &[])]);
        assert!(another_type.differs_from(&recorded, &["vda"]).is_some());
    }

    #[test]
    fn facts_of_hostile_agents_are_cut() {
        let many = (0..5000).map(|number| file_system(&format!("/{number}{}", "ä".repeat(500)), "ext4", &[]));
        let facts = facts(Some(&"é".repeat(9000)), many.collect()).bounded();
        assert_eq!(facts.file_systems.len(), MOST_FILE_SYSTEMS);
        assert_eq!(facts.hostname.expect("it stays").chars().count(), LONGEST_TEXT);
        let longest = facts
            .file_systems
            .iter()
            .map(|found| found.place.chars().count())
            .max();
        assert_eq!(longest, Some(LONGEST_TEXT));
    }

    #[test]
    fn levels_rise_and_keep_their_words() {
        assert!(BootLevel::ALL.is_sorted());
        for level in BootLevel::ALL {
            let json = serde_json::to_string(&level).expect("it can be written");
            assert_eq!(json, format!("{:?}", level.word()));
        }
    }
}
