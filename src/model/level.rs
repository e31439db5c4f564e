//! Decides the level of a disk: full, or incremental to which restore point, and why. Pure.

use std::fmt;

use super::chain::{Chains, KeptPoint};
use super::checkpoint::{Checkpoint, is_unique};
use super::restore_point::{FileId, Level};

/// A disk about to be backed up, as far as its level depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskNow {
    /// The disk's target.
    pub target: String,
    /// `Some` when the disk can only be backed up in full, with the reason.
    pub full_only: Option<String>,
    /// Its size now, in bytes, where it is known before the job.
    pub virtual_size: Option<u64>,
    /// Where its content lies now, and the images beneath.
    pub sources: Vec<SourceNow>,
}

/// An image of a disk about to be backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceNow {
    /// Its path, as the manifest would write it.
    pub path: String,
    /// Which file that is, where it can be known.
    pub file: Option<FileId>,
}

/// The level of one disk, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLevel {
    /// The disk's target.
    pub target: String,
    /// Upon what it stands; `None` for a full.
    pub parent: Option<Parent>,
    /// Why.
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

/// What an incremental image stands upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The restore point.
    pub id: String,
    /// The checkpoint made with it, whose bitmap knows what was written since.
    pub checkpoint: String,
    /// The disk's size then, in bytes.
    pub virtual_size: u64,
    /// File name of its image, relative to the folder of a restore point of the same period.
    pub backing: String,
}

/// Why a disk has its level. Its text stands in manifests and output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LevelReason {
    /// Full: the disk cannot be incremental, for this reason.
    FullOnly(String),
    /// Full: a standalone copy has no parent.
    StandaloneCopy,
    /// Full: the period holds no restore point yet.
    FirstOfPeriod,
    /// Full: a comparison has found a write that a bitmap of the disk does not know of.
    MissedWrite {
        /// The disk's target.
        disk: String,
        /// The restore point that was compared.
        compared_with: String,
    },
    /// Full: no restore point of the period can be the parent. The reason is that of the newest one.
    NoParent(UnusableParent),
    /// Incremental.
    ChangesSince {
        /// The parent's id.
        parent: String,
        /// Why the newest restore point is not the parent, if it is not.
        instead_of: Option<UnusableParent>,
    },
}

impl fmt::Display for LevelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LevelReason::FullOnly(why) => f.write_str(why),
            LevelReason::StandaloneCopy => f.write_str("a standalone copy"),
            LevelReason::FirstOfPeriod => f.write_str("first of the period"),
            LevelReason::MissedWrite { disk, compared_with } => write!(
                f,
                "a bitmap of disk {disk} had missed a write when {compared_with} was compared with it"
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
    /// It is of another domain that had the same name.
    #[error("restore point {id} is of another domain of that name (UUID {uuid})")]
    OtherDomain {
        /// The restore point.
        id: String,
        /// The UUID of its domain.
        uuid: String,
    },
    /// It does not hold the disk.
    #[error("disk {disk} is new since {id}")]
    NewDisk {
        /// The disk's target.
        disk: String,
        /// The restore point.
        id: String,
    },
    /// The disk's content lay somewhere else.
    #[error("disk {disk} lay at {source_then} with {id}")]
    Moved {
        /// The disk's target.
        disk: String,
        /// Where it lay.
        source_then: String,
        /// The restore point.
        id: String,
    },
    /// The path of the disk names another file now.
    #[error("{source_then} is another file than it was with {id}")]
    OtherFile {
        /// The path.
        source_then: String,
        /// The restore point.
        id: String,
    },
    /// No checkpoint covers the disk since then.
    #[error("no checkpoint was made of disk {disk} with {id}")]
    NoCheckpoint {
        /// The disk's target.
        disk: String,
        /// The restore point.
        id: String,
    },
    /// Another bitmap can have the same name.
    #[error("checkpoint {checkpoint} has a name that can have been given to another bitmap since {id}")]
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
    /// Its checkpoint is not there any more.
    #[error("checkpoint {checkpoint} is gone")]
    CheckpointGone {
        /// The checkpoint's name.
        checkpoint: String,
    },
    /// A checkpoint of that name is there, and was made at another time.
    #[error("checkpoint {checkpoint} was made anew by somebody else")]
    CheckpointMadeAnew {
        /// The checkpoint's name.
        checkpoint: String,
    },
    /// The bitmap cannot be examined now.
    #[error("the bitmap {checkpoint} of disk {disk} cannot be seen from here")]
    BitmapUnknown {
        /// The checkpoint's name.
        checkpoint: String,
        /// The disk's target.
        disk: String,
    },
    /// The bitmap is missing or marked inconsistent.
    #[error("the bitmap {checkpoint} of disk {disk} is lost or inconsistent")]
    BitmapBroken {
        /// The checkpoint's name.
        checkpoint: String,
        /// The disk's target.
        disk: String,
    },
    /// Files of its chain are missing or have other sizes, or its chain does not fit together.
    #[error("the chain to {id} is not whole: {fault}")]
    NotWhole {
        /// The restore point.
        id: String,
        /// What breaks the chain.
        fault: String,
    },
    /// A verification has found damage in its chain.
    #[error("the chain to {id} is damaged: {damage}")]
    Damaged {
        /// The restore point.
        id: String,
        /// What was found.
        damage: String,
    },
    /// A restore point of its chain is not the one that was there before.
    #[error("the chain to {id} is not what it was: {fault}")]
    Replaced {
        /// The restore point.
        id: String,
        /// What shows it.
        fault: String,
    },
}

/// Decides the level of one disk: incremental to the newest restore point of the period that is whole and whose checkpoint is still there and sound
/// for this disk; full otherwise.
///
/// `uuid` is the domain's, `period` the folder that the new restore point goes to, `checkpoints` what the hypervisor lists now.
pub fn decide(
    disk: &DiskNow,
    uuid: &str,
    period: &str,
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
    for kept in newest_first.filter(|kept| kept.point.period == period) {
        if kept.missed_write(&disk.target).is_some() {
            let reason = LevelReason::MissedWrite {
                disk: disk.target.clone(),
                compared_with: kept.point.id.clone(),
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
    let reason = newest_is_unusable.map_or(LevelReason::FirstOfPeriod, LevelReason::NoParent);
    level(None, reason)
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
    // Every disk carries bitmaps of the same names: another disk under this target would pass for this one.
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
        backing: format!("../{}/{}", point.folder(), before.image),
    })
}

#[cfg(test)]
#[path = "level_tests.rs"]
mod tests;
