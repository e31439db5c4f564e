//! One moment of one domain, as its manifest records it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::checkpoint::CheckpointId;
use super::finding::Finding;
use super::left_out::{self, LeftOut};
use super::period::COPY_PREFIX;

/// Whether an image holds the whole disk or what changed since its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The whole disk.
    Full,
    /// What changed since the parent.
    Incremental,
}

impl Level {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Level::Full => "full",
            Level::Incremental => "incremental",
        }
    }
}

/// In which state the guest's file systems are in a restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// The guest agent froze the file systems around the moment.
    Filesystem,
    /// As after a power cut: the guest ran and was not asked, or did not answer.
    Crash,
    /// The domain was shut off.
    Offline,
}

impl Consistency {
    /// The word for it, with what it means.
    pub fn sentence(self) -> &'static str {
        match self {
            Consistency::Filesystem => "file systems frozen",
            Consistency::Crash => "crash-consistent",
            Consistency::Offline => "shut off",
        }
    }
}

/// The id of a restore point of this moment: the time in UTC to the second, in characters that every file system takes.
pub fn id_of(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H-%M-%SZ")
        .to_string()
}

/// One moment of one domain: the content of `manifest.json`, without what only the files concern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestorePoint {
    /// Its name within the domain; also the stem of its folder's name.
    pub id: String,
    /// Counts the domain's restore points in the order they were committed, from 1. Unlike the time it never goes back.
    pub sequence: u64,
    /// The domain's name.
    pub domain: String,
    /// The domain's UUID.
    pub uuid: String,
    /// The moment the disks were frozen at.
    pub time: Timestamp,
    /// Name of the period's folder.
    pub period: String,
    /// Incremental as soon as one disk is.
    pub level: Level,
    /// The restore point that an incremental one stands upon (the newest of its disks' parents).
    pub parent: Option<String>,
    /// The checkpoint that the next restore point can start from.
    pub checkpoint: Option<CheckpointId>,
    /// In which state the guest's file systems are.
    pub consistency: Consistency,
    /// The disks, in the order of the domain's XML.
    pub disks: Vec<DiskPoint>,
    /// What was worth telling.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// The domain's disks that it does not hold, and why; older manifests do not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

impl RestorePoint {
    /// Name of its folder within the period's.
    pub fn folder(&self) -> String {
        match self.level {
            Level::Full => format!("{}.full", self.id),
            Level::Incremental => format!("{}.inc", self.id),
        }
    }

    /// Whether it is a standalone copy: it lies in a folder of its own, and no backup stands on it.
    pub fn is_copy(&self) -> bool {
        self.period.starts_with(COPY_PREFIX)
    }

    /// The word for what it is: a copy, or its level.
    pub fn kind_word(&self) -> &'static str {
        match self.is_copy() {
            true => "copy",
            false => self.level.word(),
        }
    }

    /// Bytes of data in its images, before compression.
    pub fn data_bytes(&self) -> u64 {
        let disks = self.disks.iter();
        disks.fold(0, |sum, disk| disk.data_bytes.saturating_add(sum))
    }

    /// Whether an image of it holds compressed clusters.
    pub fn is_compressed(&self) -> bool {
        self.disks.iter().any(|disk| disk.compression.is_some())
    }

    /// Whether it lacks a disk that nobody asked to leave out.
    pub fn is_partial(&self) -> bool {
        left_out::is_partial(&self.left_out)
    }

    /// The disk of that target.
    pub fn disk(&self, target: &str) -> Option<&DiskPoint> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

/// Which file a path named. A path can name another file tomorrow, and the number of an inode be given again; both with the same birth cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileId {
    /// The inode's number.
    pub inode: u64,
    /// When the file was created, as its file system says.
    pub born: Timestamp,
}

/// One disk of a restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskPoint {
    /// The disk's target (`vda`).
    pub target: String,
    /// Whether the image stands alone.
    pub level: Level,
    /// Why it has this level, in a few words.
    pub reason: String,
    /// The restore point whose image of the same disk this one stands upon.
    pub parent: Option<String>,
    /// The digest of that restore point's manifest; older manifests do not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_manifest: Option<String>,
    /// Whether the checkpoint covers this disk, so that an incremental image can follow.
    pub checkpointed: bool,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// Where the disk's content lay on the host.
    pub source: String,
    /// Which file that was, where the file system tells; older manifests do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_file: Option<FileId>,
    /// The disk's own format (`qcow2`, `raw`).
    pub source_format: String,
    /// Whether the disk was encrypted, so that the image holds what was not readable on the host; older manifests do not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decrypted: Option<bool>,
    /// File name of the image within the restore point.
    pub image: String,
    /// Bytes of data in the image, before compression.
    pub data_bytes: u64,
    /// Bytes that the image holds as explicit zeroes.
    pub zero_bytes: u64,
    /// How clusters of the image are compressed (`zstd`); none if all of them are stored plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_time_in_utc() {
        let time = "2026-11-01T03:00:03.5+01:00".parse().expect("a time");
        assert_eq!(id_of(time), "2026-11-01T02-00-03Z");
    }
}
