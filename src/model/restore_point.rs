//! One moment of one domain, as its manifest records it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::checkpoint::CheckpointId;
use super::finding::Finding;
use super::guest::GuestFacts;
use super::left_out::{self, LeftOut};
use super::period::COPY_PREFIX;

/// Whether an image holds the whole disk or the changes since its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The whole disk.
    Full,
    /// The changes since the parent.
    Incremental,
}

impl Level {
    /// The word for the level.
    pub fn word(self) -> &'static str {
        match self {
            Level::Full => "full",
            Level::Incremental => "incremental",
        }
    }
}

/// The state of the guest's file systems in a restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// The guest agent froze the file systems around the moment.
    Filesystem,
    /// As after a power cut: the guest was not shut down, and its file systems were not frozen.
    Crash,
    /// The domain was shut off.
    Offline,
}

impl Consistency {
    /// A short description for messages.
    pub fn sentence(self) -> &'static str {
        match self {
            Consistency::Filesystem => "file systems frozen",
            Consistency::Crash => "crash-consistent",
            Consistency::Offline => "shut off",
        }
    }
}

/// The usual id of a restore point of this moment: the time in UTC in whole seconds, in characters
/// that every file system accepts. If the id is taken, the repository appends `-2`, `-3` and so on.
pub fn id_of(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H-%M-%SZ")
        .to_string()
}

/// One moment of one domain: the content of `manifest.json`, except what concerns only the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestorePoint {
    /// Its id within the domain, which is also the stem of its folder's name.
    pub id: String,
    /// The number of the restore point in the domain's order of commits, from 1. Unlike the time,
    /// it does not depend on the clock.
    pub sequence: u64,
    /// The domain's name.
    pub domain: String,
    /// The domain's UUID.
    pub uuid: String,
    /// The moment that the disks show.
    pub time: Timestamp,
    /// The name of the period's folder.
    pub period: String,
    /// Incremental if at least one disk is.
    pub level: Level,
    /// The restore point on which an incremental one depends (the newest of its disks' parents).
    pub parent: Option<String>,
    /// The checkpoint from which the next restore point can start.
    pub checkpoint: Option<CheckpointId>,
    /// The state of the guest's file systems.
    pub consistency: Consistency,
    /// The disks, in the order of the domain's XML.
    pub disks: Vec<DiskPoint>,
    /// The findings of the backup up to the commit.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// The domain's disks that it does not hold, with reasons; older manifests do not record them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// The restore points that were merged into it since it was committed; `None` if there are
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<Merged>,
    /// The restore point of another repository of which it is a copy; `None` if it was made here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_from: Option<CopiedFrom>,
    /// What the guest agent reported about it when the backup began; `None` if no agent
    /// answered, and in manifests of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestFacts>,
}

/// The restore point of another repository that was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CopiedFrom {
    /// The id of that repository; `None` if it had none.
    pub repository: Option<String>,
    /// The location of that repository when it was copied, for messages.
    pub location: String,
    /// The digest of that restore point's manifest.
    pub manifest: String,
    /// When it was copied.
    pub time: Timestamp,
}

/// What was merged into a restore point: removed restore points on which it depended. The images of
/// the remaining restore point now hold the data that it needs from the removed ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Merged {
    /// Its level when it was committed, which the name of its folder shows. The folder keeps its
    /// name, because the images of children refer to it.
    pub committed: Level,
    /// The digests of its earlier manifests, oldest first. Children refer to the manifest that it
    /// had when they were made.
    pub replaces: Vec<String>,
    /// The restore points that the last merge removed.
    pub points: Vec<MergedPoint>,
}

/// A restore point that was merged into another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MergedPoint {
    /// Its id.
    pub id: String,
    /// The digest of its manifest.
    pub manifest: String,
}

impl RestorePoint {
    /// The name of its folder within the period's folder.
    pub fn folder(&self) -> String {
        let committed = self.merged.as_ref().map(|merged| merged.committed);
        match committed.unwrap_or(self.level) {
            Level::Full => format!("{}.full", self.id),
            Level::Incremental => format!("{}.inc", self.id),
        }
    }

    /// Whether it is a standalone copy: it has its own folder, and no backup depends on it.
    pub fn is_copy(&self) -> bool {
        self.period.starts_with(COPY_PREFIX)
    }

    /// The word for its kind: copy, or its level.
    pub(crate) fn kind_word(&self) -> &'static str {
        match self.is_copy() {
            true => "copy",
            false => self.level.word(),
        }
    }

    /// The number of bytes of data in its images, before compression.
    pub fn data_bytes(&self) -> u64 {
        let disks = self.disks.iter();
        disks.fold(0, |sum, disk| disk.data_bytes.saturating_add(sum))
    }

    /// Whether any of its images holds compressed clusters.
    pub fn is_compressed(&self) -> bool {
        self.disks.iter().any(|disk| disk.compression.is_some())
    }

    /// The number of merges into this restore point.
    pub fn merges(&self) -> usize {
        self.merged.as_ref().map_or(0, |merged| merged.replaces.len())
    }

    /// Whether `digest` is the digest of its present manifest, which is `manifest`, or of a
    /// manifest that it had before a merge.
    pub fn has_or_had_manifest(&self, manifest: &str, digest: &str) -> bool {
        let earlier = self.merged.iter().flat_map(|merged| &merged.replaces);
        let mut all = earlier.map(String::as_str).chain([manifest]);
        all.any(|known| known.eq_ignore_ascii_case(digest))
    }

    /// Whether it lacks a disk that should have been saved.
    pub fn is_partial(&self) -> bool {
        left_out::is_partial(&self.left_out)
    }

    /// The disk with this target.
    pub fn disk(&self, target: &str) -> Option<&DiskPoint> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

/// The identity of the file at a path. The path may lead to another file later, and an inode number
/// may be reused, but not together with the same time of birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileId {
    /// The inode's number.
    pub inode: u64,
    /// When the file was created, as its file system records it.
    pub born: Timestamp,
}

/// One disk of a restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskPoint {
    /// The disk's target (`vda`).
    pub target: String,
    /// Whether the image is full or depends on a parent.
    pub level: Level,
    /// The reason for the level, in a few words.
    pub reason: String,
    /// The restore point whose image of the same disk is the parent of this one.
    pub parent: Option<String>,
    /// The digest of that restore point's manifest; older manifests do not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_manifest: Option<String>,
    /// Whether the checkpoint covers this disk, so that an incremental image can follow.
    pub checkpointed: bool,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// The location of the disk's content: a path on the host, or a text about another source.
    pub source: String,
    /// The identity of that file, if the file system provides it; older manifests do not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_file: Option<FileId>,
    /// The disk's own format (`qcow2`, `raw`).
    pub source_format: String,
    /// Whether the disk was encrypted, so that the image holds plain text that the host's image did
    /// not. Older manifests do not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decrypted: Option<bool>,
    /// The file name of the image within the restore point.
    pub image: String,
    /// The number of bytes of data in the image, before compression.
    pub data_bytes: u64,
    /// The number of bytes that the image holds as explicit zeroes.
    pub zero_bytes: u64,
    /// How clusters of the image are compressed (`zstd`); `None` if all of them are stored plain.
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
