//! Decides the level of a disk: full, or incremental to which restore point, and why. Pure.

use std::fmt;
use std::str::FromStr;

use super::chain::{Chains, KeptPoint};
use super::checkpoint::{Checkpoint, is_unique};
use super::restore_point::{DiskPoint, FileId, Level};

/// When a new chain starts with a full restore point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FullRule {
    /// At the start of each period.
    #[default]
    Period,
    /// Only the first restore point has to be full. A later one depends on an earlier one where
    /// that is possible, also across periods.
    Never,
}

impl FullRule {
    /// Whether a new restore point in `period` may depend on `kept`.
    pub(crate) fn allows(self, period: &str, kept: &KeptPoint) -> bool {
        match self {
            FullRule::Period => kept.point.period == period,
            FullRule::Never => !kept.point.is_copy(),
        }
    }
}

/// The error for an invalid rule for full backups.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 'period' or 'never'")]
pub struct UnknownFullRule;

impl FromStr for FullRule {
    type Err = UnknownFullRule;

    fn from_str(text: &str) -> Result<Self, UnknownFullRule> {
        match text {
            "period" => Ok(FullRule::Period),
            "never" => Ok(FullRule::Never),
            _ => Err(UnknownFullRule),
        }
    }
}

/// The facts about a disk that decide its level in the next backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskNow {
    /// The disk's target.
    pub target: String,
    /// The reason why the disk can only be backed up in full; `None` if it can be incremental.
    pub full_only: Option<String>,
    /// Its size now, in bytes, if it is known before the job.
    pub virtual_size: Option<u64>,
    /// Its images now: its own, and those beneath.
    pub sources: Vec<SourceNow>,
}

/// An image of the disk to be backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceNow {
    /// Its path, as the manifest would record it.
    pub path: String,
    /// The identity of the file, if it can be known.
    pub file: Option<FileId>,
}

/// The level of one disk, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLevel {
    /// The disk's target.
    pub target: String,
    /// The restore point on which it depends; `None` for a full image.
    pub parent: Option<Parent>,
    /// The reason for the level.
    pub reason: LevelReason,
}

impl DiskLevel {
    /// Full or incremental.
    pub fn level(&self) -> Level {
        match self.parent {
            Some(_) => Level::Incremental,
            None => Level::Full,
        }
    }
}

/// The restore point on which an incremental image depends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its id.
    pub id: String,
    /// The checkpoint made with it, whose bitmap records the writes since then.
    pub checkpoint: String,
    /// The disk's size in that restore point, in bytes.
    pub virtual_size: u64,
}

/// Why a disk has its level. Manifests and output contain its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LevelReason {
    /// Full: the disk cannot be incremental, for this reason.
    FullOnly(String),
    /// Full: a standalone copy has no parent.
    StandaloneCopy,
    /// Full: the period holds no restore point yet.
    FirstOfPeriod,
    /// Full: the domain has no restore point yet, except standalone copies.
    FirstOfDomain,
    /// Full: a comparison has found a write that a bitmap of the disk missed.
    MissedWrite {
        /// The disk's target.
        disk: String,
        /// The id of the disk's newest restore point at the time of the comparison.
        newest: String,
    },
    /// Full: no restore point that the rule allows can be the parent. The value is the reason why
    /// the newest of them cannot be.
    NoParent(UnusableParent),
    /// Incremental.
    ChangesSince {
        /// The parent's id.
        parent: String,
        /// The reason why the newest restore point is not the parent; `None` if it is.
        instead_of: Option<UnusableParent>,
    },
}

impl fmt::Display for LevelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LevelReason::FullOnly(why) => f.write_str(why),
            LevelReason::StandaloneCopy => f.write_str("a standalone copy"),
            LevelReason::FirstOfPeriod => f.write_str("first of the period"),
            LevelReason::FirstOfDomain => f.write_str("first of the domain"),
            LevelReason::MissedWrite { disk, newest } => write!(
                f,
                "a comparison made after {newest} found a write that a bitmap of disk {disk} had missed"
            ),
            LevelReason::NoParent(why) => write!(f, "{why}"),
            LevelReason::ChangesSince { parent, instead_of } => {
                write!(f, "changes since {parent}")?;
                instead_of.iter().try_for_each(|why| write!(f, " ({why})"))
            }
        }
    }
}

/// Why a restore point cannot be the parent of a disk's next image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableParent {
    /// It belongs to another domain that had the same name.
    #[error("restore point {id} belongs to another domain with the same name (UUID {uuid})")]
    OtherDomain {
        /// The restore point.
        id: String,
        /// The UUID of its domain.
        uuid: String,
    },
    /// It does not hold the disk.
    #[error("disk {disk} is not in restore point {id}")]
    NewDisk {
        /// The disk's target.
        disk: String,
        /// The restore point.
        id: String,
    },
    /// The disk's content had another location.
    #[error("disk {disk} was at {source_then} when restore point {id} was made, but is elsewhere now")]
    Moved {
        /// The disk's target.
        disk: String,
        /// The location of the disk then.
        source_then: String,
        /// The restore point.
        id: String,
    },
    /// The path of the disk leads to another file now.
    #[error("{source_then} is not the same file as when restore point {id} was made")]
    OtherFile {
        /// The path.
        source_then: String,
        /// The restore point.
        id: String,
    },
    /// The restore point has no checkpoint that covers the disk.
    #[error("restore point {id} has no checkpoint that covers disk {disk}")]
    NoCheckpoint {
        /// The disk's target.
        disk: String,
        /// The restore point.
        id: String,
    },
    /// Another bitmap may have the same name.
    #[error(
        "the name of checkpoint {checkpoint} of restore point {id} may have been reused for another bitmap"
    )]
    AmbiguousName {
        /// The checkpoint's name.
        checkpoint: String,
        /// The restore point.
        id: String,
    },
    /// The disk is smaller than it was.
    #[error("disk {disk} has shrunk since {id}")]
    Shrunk {
        /// The disk's target.
        disk: String,
        /// The restore point.
        id: String,
    },
    /// Its checkpoint no longer exists.
    #[error("checkpoint {checkpoint} is gone")]
    CheckpointGone {
        /// The checkpoint's name.
        checkpoint: String,
    },
    /// A checkpoint of that name exists, but was made at another time.
    #[error("checkpoint {checkpoint} has been replaced by another one of the same name")]
    CheckpointMadeAnew {
        /// The checkpoint's name.
        checkpoint: String,
    },
    /// The bitmap cannot be examined now.
    #[error("bitmap {checkpoint} of disk {disk} cannot be examined now")]
    BitmapUnknown {
        /// The checkpoint's name.
        checkpoint: String,
        /// The disk's target.
        disk: String,
    },
    /// The bitmap is missing or marked inconsistent.
    #[error("bitmap {checkpoint} of disk {disk} is missing or inconsistent")]
    BitmapBroken {
        /// The checkpoint's name.
        checkpoint: String,
        /// The disk's target.
        disk: String,
    },
    /// Files of its chain are missing or have other sizes, or its chain does not fit together.
    #[error("the chain of {id} is not whole: {fault}")]
    NotWhole {
        /// The restore point.
        id: String,
        /// The fault that breaks the chain.
        fault: String,
    },
    /// A verification has found damage in its chain.
    #[error("the chain of {id} is damaged: {damage}")]
    Damaged {
        /// The restore point.
        id: String,
        /// The damage that was found.
        damage: String,
    },
    /// A restore point of its chain has been replaced by another one.
    #[error("the chain of {id} has changed: {fault}")]
    Replaced {
        /// The restore point.
        id: String,
        /// The evidence.
        fault: String,
    },
}

/// Decides the level of one disk: incremental to the newest usable restore point that `rule`
/// allows, full if there is none. The disk is also full if a comparison with that restore point or
/// a newer one found a write that a bitmap of the disk had missed.
///
/// [`UnusableParent`] lists what makes a restore point unusable. `uuid` is the domain's UUID,
/// `period` the period's folder of the new restore point, and `checkpoints` the hypervisor's
/// present list.
pub(crate) fn decide(
    disk: &DiskNow,
    uuid: &str,
    (period, rule): (&str, FullRule),
    chains: &Chains,
    checkpoints: &[Checkpoint],
) -> DiskLevel {
    let level = |parent: Option<Parent>, reason: LevelReason| DiskLevel {
        target: disk.target.clone(),
        parent,
        reason,
    };
    if let Some(reason) = &disk.full_only {
        return level(None, LevelReason::FullOnly(reason.clone()));
    }
    let newest_first = chains.points().iter().rev();
    let mut newest_is_unusable = None;
    for kept in newest_first.filter(|kept| rule.allows(period, kept)) {
        if kept.missed_write(&disk.target).is_some() {
            let reason = LevelReason::MissedWrite {
                disk: disk.target.clone(),
                newest: kept.point.id.clone(),
            };
            return level(None, reason);
        }
        match usable_parent(disk, uuid, kept, chains, checkpoints) {
            Ok(parent) => {
                let reason = LevelReason::ChangesSince {
                    parent: parent.id.clone(),
                    instead_of: newest_is_unusable,
                };
                return level(Some(parent), reason);
            }
            Err(why) => {
                newest_is_unusable.get_or_insert(why);
            }
        }
    }
    let first = match rule {
        FullRule::Period => LevelReason::FirstOfPeriod,
        FullRule::Never => LevelReason::FirstOfDomain,
    };
    let reason = newest_is_unusable.map_or(first, LevelReason::NoParent);
    level(None, reason)
}

/// Returns this restore point with its checkpoint, if the checkpoint's bitmap has recorded all
/// writes to the disk since then.
pub(crate) fn recorded_since(
    disk: &DiskNow,
    uuid: &str,
    id: &str,
    chains: &Chains,
    checkpoints: &[Checkpoint],
) -> Option<Parent> {
    let wanted = chains.get(id).filter(|_| disk.full_only.is_none())?;
    // A missed write may be missing in every bitmap that existed when it was found. The same holds
    // for what made a backup distrust a newer bitmap.
    let mut points = chains.points().iter();
    let is_doubtful = points.any(|kept| {
        let (sequence, newer) = (wanted.point.sequence, kept.point.sequence);
        let image = kept.point.disk(&disk.target);
        newer >= sequence && kept.missed_write(&disk.target).is_some()
            || newer > sequence && image.is_some_and(is_unexpectedly_full)
    });
    match is_doubtful {
        true => None,
        false => usable_parent(disk, uuid, wanted, chains, checkpoints).ok(),
    }
}

/// Whether an image is full for another reason than that a chain had to start with it: the bitmap
/// may have been wrong.
fn is_unexpectedly_full(image: &DiskPoint) -> bool {
    let expected = [
        LevelReason::FirstOfPeriod,
        LevelReason::FirstOfDomain,
        LevelReason::StandaloneCopy,
    ];
    image.level == Level::Full && !expected.iter().any(|reason| reason.to_string() == image.reason)
}

fn usable_parent(
    now: &DiskNow,
    uuid: &str,
    kept: &KeptPoint,
    chains: &Chains,
    checkpoints: &[Checkpoint],
) -> Result<Parent, UnusableParent> {
    let point = &kept.point;
    let (id, disk) = (point.id.clone(), now.target.clone());
    if point.uuid != uuid {
        let uuid = point.uuid.clone();
        return Err(UnusableParent::OtherDomain { id, uuid });
    }
    let Some(before) = point.disk(&disk) else {
        return Err(UnusableParent::NewDisk { disk, id });
    };
    // Bitmaps have the same names on every disk, so another disk under this target would pass for
    // this one.
    let Some(source) = now.sources.iter().find(|now| now.path == before.source) else {
        let source_then = before.source.clone();
        return Err(UnusableParent::Moved {
            disk,
            source_then,
            id,
        });
    };
    if let (Some(file), Some(before_file)) = (source.file, before.source_file)
        && file != before_file
    {
        let source_then = before.source.clone();
        return Err(UnusableParent::OtherFile { source_then, id });
    }
    let (Some(recorded), true) = (&point.checkpoint, before.checkpointed) else {
        return Err(UnusableParent::NoCheckpoint { disk, id });
    };
    let checkpoint = recorded.name.clone();
    if !is_unique(&checkpoint) {
        return Err(UnusableParent::AmbiguousName { checkpoint, id });
    }
    if now.virtual_size.is_some_and(|now| now < before.virtual_size) {
        return Err(UnusableParent::Shrunk { disk, id });
    }
    let Some(found) = checkpoints.iter().find(|found| found.name == checkpoint) else {
        return Err(UnusableParent::CheckpointGone { checkpoint });
    };
    if !found.is(recorded) {
        return Err(UnusableParent::CheckpointMadeAnew { checkpoint });
    }
    if found.is_unknown_for(&disk) {
        return Err(UnusableParent::BitmapUnknown { checkpoint, disk });
    }
    if !found.is_sound_for(&disk) {
        return Err(UnusableParent::BitmapBroken { checkpoint, disk });
    }
    if let Err(fault) = chains.lineage(&id, &disk) {
        return Err(UnusableParent::NotWhole { id, fault });
    }
    if let Some(damage) = chains.suspected_damage(&id, &disk) {
        return Err(UnusableParent::Damaged { id, damage });
    }
    if let Some(fault) = chains.replaced_ancestor(&id, &disk) {
        return Err(UnusableParent::Replaced { id, fault });
    }
    Ok(Parent {
        id,
        checkpoint,
        virtual_size: before.virtual_size,
    })
}

#[cfg(test)]
#[path = "level_tests.rs"]
mod tests;
