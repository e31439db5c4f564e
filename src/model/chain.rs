//! The restore points of a domain, and their parents.

use jiff::Timestamp;

use super::checkpoint::CheckpointId;
use super::pin::Pin;
use super::restore_point::{Level, RestorePoint};

mod index;

use index::Index;

/// A restore point with the facts that the repository knows about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPoint {
    /// The content of its manifest.
    pub point: RestorePoint,
    /// The digest of its manifest, by which its children refer to it.
    pub manifest: String,
    /// The faults of its own files, as far as kinds and sizes show.
    pub faults: Vec<FileFault>,
    /// The damage that a verification found or may have found, and that no later one has disproved.
    /// No backup uses a damaged image as a parent, but a restore may still be tried.
    pub suspected_damage: Vec<SuspectedDamage>,
    /// The missed writes that comparisons with the domain found or may have found. No backup relies
    /// on the bitmaps that these disks had then.
    pub missed_writes: Vec<MissedWrite>,
    /// Its pin, if it has one.
    pub pin: Option<Pin>,
    /// Whether its incremental disks need their parents. A complete restore point holds all of its
    /// disks by itself, and its parents only record how it was made.
    pub needs_parents: bool,
}

impl KeptPoint {
    /// The missed write of this disk, if a comparison with this restore point found one.
    pub fn missed_write(&self, target: &str) -> Option<&MissedWrite> {
        self.missed_writes.iter().find(|missed| missed.disk == target)
    }
}

/// A write that a bitmap did not record: a disk differed from its restore point where the bitmap
/// called it unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissedWrite {
    /// The disk's target.
    pub disk: String,
    /// When the comparison found it.
    pub found: Timestamp,
}

/// Damage that a verification found or may have found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuspectedDamage {
    /// A sentence that names the file.
    pub what: String,
    /// The part of the restore point that it affects.
    pub concerns: Concern,
}

/// The part of a restore point that damage affects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concern {
    /// The disk of this target.
    Disk(String),
    /// Files that belong to no disk.
    Files,
    /// The whole restore point, because nothing more precise is known.
    All,
}

impl Concern {
    /// Whether the damage affects the disk of this target.
    pub(crate) fn is_of_disk(&self, target: &str) -> bool {
        match self {
            Concern::Disk(disk) => disk == target,
            Concern::Files => false,
            Concern::All => true,
        }
    }
}

/// A fault of a file of a restore point: the file is missing, has another kind or size, or cannot
/// be examined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFault {
    /// The file's name within the restore point.
    pub file: String,
    /// A sentence that names its path.
    pub what: String,
}

/// A restore point that is missing, or whose manifest cannot be used. Its content is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostPoint {
    /// Its id, as in the name of its folder.
    pub id: String,
    /// A sentence that names its manifest or its folder.
    pub what: String,
    /// Whether a newer version of vmsnap wrote it, so that it may be sound.
    pub is_newer: bool,
    /// Whether its folder is missing.
    pub is_gone: bool,
}

/// A restore point that was removed on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedPoint {
    /// Its id.
    pub id: String,
    /// The UUID of its domain.
    pub uuid: String,
    /// Its checkpoint, which may still exist in the domain.
    pub checkpoint: Option<CheckpointId>,
    /// When it was removed.
    pub removed: Timestamp,
}

/// The restore points under one domain's name, with lookups of parents, faults and damage.
#[derive(Clone, Debug, Default)]
pub struct Chains {
    points: Vec<KeptPoint>,
    lost: Vec<LostPoint>,
    removed: Vec<RemovedPoint>,
    index: Index,
}

impl Chains {
    /// Makes the chains from restore points in any order.
    pub fn new(mut points: Vec<KeptPoint>) -> Self {
        points.sort_by(|a, b| {
            let key = |kept: &KeptPoint| (kept.point.sequence, kept.point.time);
            key(a).cmp(&key(b)).then_with(|| a.point.id.cmp(&b.point.id))
        });
        Chains {
            index: Index::new(&points),
            points,
            lost: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// Adds the restore points that were removed on purpose, as far as this is recorded.
    pub(crate) fn with_removed(self, removed: Vec<RemovedPoint>) -> Self {
        let index = self.index.without_conditions();
        Chains {
            removed,
            index,
            ..self
        }
    }

    /// The restore points that were removed on purpose and are missing, as far as this is recorded.
    pub fn removed(&self) -> impl Iterator<Item = &RemovedPoint> {
        let is_gone = |removed: &&RemovedPoint| self.get(&removed.id).is_none();
        self.removed.iter().filter(is_gone)
    }

    /// The checkpoints that restore points of this domain recorded, including removed ones.
    pub(crate) fn recorded_checkpoints<'a>(
        &'a self,
        uuid: &'a str,
    ) -> impl Iterator<Item = &'a CheckpointId> {
        let kept = self.points.iter().filter(move |kept| kept.point.uuid == uuid);
        let removed = self.removed().filter(move |removed| removed.uuid == uuid);
        let of_kept = kept.filter_map(|kept| kept.point.checkpoint.as_ref());
        of_kept.chain(removed.filter_map(|removed| removed.checkpoint.as_ref()))
    }

    /// The lost restore points.
    pub(crate) fn all_lost(&self) -> impl Iterator<Item = &LostPoint> {
        self.lost_after("")
    }

    /// Adds the lost restore points.
    pub fn beside(self, lost: Vec<LostPoint>) -> Self {
        let index = self.index.without_conditions();
        Chains { lost, index, ..self }
    }

    /// The lost restore point of this id, unless a readable one has the same id.
    pub fn lost(&self, id: &str) -> Option<&LostPoint> {
        self.lost
            .iter()
            .find(|lost| lost.id == id && self.get(id).is_none())
    }

    /// Lost restore points that may be later than `after`, judged by their ids. Ids are reliable
    /// enough for a warning, but not for a decision.
    pub(crate) fn lost_after(&self, after: &str) -> impl Iterator<Item = &LostPoint> {
        self.lost
            .iter()
            .filter(move |lost| lost.id.as_str() > after && self.get(&lost.id).is_none())
    }

    fn missing(&self, id: &str) -> String {
        let removed = self.removed().find(|removed| removed.id == id);
        match (self.lost(id), removed) {
            (Some(lost), _) => lost.what.clone(),
            (None, Some(removed)) => format!("restore point {id} was removed on {:.0}", removed.removed),
            (None, None) => format!("restore point {id} is missing"),
        }
    }

    /// The readable restore points, in the order in which they were committed.
    pub fn points(&self) -> &[KeptPoint] {
        &self.points
    }

    /// The restore point with this id.
    pub fn get(&self, id: &str) -> Option<&KeptPoint> {
        self.points.get(self.index.place(id)?)
    }

    /// The sequence number of a restore point that is made now: higher than those of all readable
    /// ones, and at least the number of seconds since 1970.
    ///
    /// Lost restore points may become readable again. Their numbers are lower too, because the time
    /// is part of the rule.
    pub(crate) fn next_sequence(&self, now: Timestamp) -> u64 {
        let newest = self.points.last().map_or(0, |kept| kept.point.sequence);
        let seconds = u64::try_from(now.as_second()).unwrap_or(0);
        newest.saturating_add(1).max(seconds)
    }

    /// The restore points in periods, in the same order: all except standalone copies, on which no
    /// backup depends.
    pub(crate) fn in_periods(&self) -> impl DoubleEndedIterator<Item = &KeptPoint> {
        self.points.iter().filter(|kept| !kept.point.is_copy())
    }

    /// The newest restore point in a period.
    pub(crate) fn latest_in_periods(&self) -> Option<&KeptPoint> {
        self.in_periods().next_back()
    }

    /// The newest chain of a period, newest first: its restore points of this domain from the
    /// newest down to the first that was made without a parent. The chain may continue in earlier
    /// periods. Some of them may have been removed if they are complete.
    pub(crate) fn newest_chain<'a>(&'a self, uuid: &str, period: &str) -> Vec<&'a KeptPoint> {
        let mut chain: Vec<&KeptPoint> = Vec::new();
        let is_of_period = |kept: &&KeptPoint| kept.point.period == *period && kept.point.uuid == *uuid;
        for kept in self.points.iter().rev().filter(is_of_period) {
            chain.push(kept);
            if kept.point.parent.is_none() {
                return chain;
            }
        }
        if let Some(parent) = chain.last().and_then(|oldest| oldest.point.parent.as_ref()) {
            let known = chain.len();
            chain.extend(self.chain_from(parent).take(self.points.len() - known));
        }
        chain
    }

    /// This restore point, its parent, the parent's parent and so on: newest first.
    pub(crate) fn chain_from<'a>(&'a self, id: &str) -> impl Iterator<Item = &'a KeptPoint> {
        let parent = |kept: &&'a KeptPoint| self.get(kept.point.parent.as_ref()?);
        // A circle is damage, and must not be endless.
        std::iter::successors(self.get(id), parent).take(self.points.len())
    }

    /// The restore points on which the disks of this one depend, each with the disk. A complete
    /// restore point depends on none.
    pub(crate) fn parents<'a>(&self, point: &'a RestorePoint) -> impl Iterator<Item = (&'a str, &'a str)> {
        let needs_parents = self.get(&point.id).is_none_or(|kept| kept.needs_parents);
        let disks = point.disks.iter().filter(move |_| needs_parents);
        disks.filter_map(|disk| Some((disk.target.as_str(), disk.parent.as_deref()?)))
    }

    /// The newest restore point, copies included.
    pub fn latest(&self) -> Option<&KeptPoint> {
        self.points.last()
    }

    /// The restore points whose images make up this disk at `id`, newest first.
    ///
    /// # Errors
    /// A sentence that says what breaks the chain.
    pub fn lineage(&self, id: &str, target: &str) -> Result<Vec<&KeptPoint>, String> {
        let mut next = Some(self.get(id).ok_or_else(|| self.missing(id))?);
        let mut line = Vec::new();
        // Each parent has a lower sequence number than its child, so this ends.
        while let Some(kept) = next {
            line.push(kept);
            next = self.parent_of(kept, target)?;
        }
        Ok(line)
    }

    /// The restore point on which this disk of `kept` depends; `None` if the disk is full, or if
    /// `kept` is complete.
    ///
    /// # Errors
    /// A sentence that says why this disk of `kept` cannot be read, or why `kept` was not made on
    /// that restore point.
    fn parent_of(&self, kept: &KeptPoint, target: &str) -> Result<Option<&KeptPoint>, String> {
        let id = &kept.point.id;
        let disk = kept
            .point
            .disk(target)
            .ok_or_else(|| format!("restore point {id} does not hold disk {target}"))?;
        // Faults of other files do not matter for this disk.
        if let Some(fault) = kept.faults.iter().find(|fault| fault.file == disk.image) {
            return Err(fault.what.clone());
        }
        if !kept.needs_parents {
            return Ok(None);
        }
        match (disk.level, &disk.parent) {
            (Level::Full, None) => Ok(None),
            (Level::Incremental, Some(parent)) => {
                let parent = self.get(parent).ok_or_else(|| self.missing(parent))?;
                is_parent_of(kept, parent, target)?;
                Ok(Some(parent))
            }
            (Level::Full, Some(_)) => Err(format!("disk {target} of {id} is full but names a parent")),
            (Level::Incremental, None) => Err(format!(
                "disk {target} of {id} is incremental but names no parent"
            )),
        }
    }

    /// Detects a replaced ancestor: a restore point of this chain is not the one on which its child
    /// was made. Returns the evidence. No backup relies on such a chain, even if it is whole.
    pub(super) fn replaced_ancestor(&self, id: &str, target: &str) -> Option<String> {
        let line = self.lineage(id, target).ok()?;
        let is_child = |kept: &&KeptPoint, parent: &KeptPoint| {
            let disk = kept.point.disk(target);
            kept.needs_parents && disk.is_some_and(|disk| disk.parent.as_ref() == Some(&parent.point.id))
        };
        line.into_iter().find_map(|parent| {
            let mut children = self.points.iter().filter(|kept| is_child(kept, parent));
            children.find_map(|child| is_parent_of(child, parent, target).err())
        })
    }

    /// Damage that a verification found in the images that make up this disk at `id`. `None` also
    /// if the chain has a fault.
    pub fn suspected_damage(&self, id: &str, target: &str) -> Option<String> {
        let condition = self.index.condition(self, id, target)?;
        condition.damage.as_deref().map(str::to_owned)
    }

    /// Damage in any disk of a restore point, or in its other files.
    pub(crate) fn any_suspected_damage(&self, id: &str) -> Option<String> {
        let kept = self.get(id)?;
        let mut disks = kept.point.disks.iter();
        let of_disk = disks.find_map(|disk| self.suspected_damage(id, &disk.target));
        of_disk.or_else(|| kept.suspected_damage.first().map(|damage| damage.what.clone()))
    }

    /// The newest restore point in a period that holds this disk.
    pub(crate) fn latest_with(&self, target: &str) -> Option<&KeptPoint> {
        self.in_periods()
            .rev()
            .find(|kept| kept.point.disk(target).is_some())
    }

    /// Whether `id` is the newest restore point in a period that holds this disk.
    pub(crate) fn is_latest_with(&self, id: &str, target: &str) -> bool {
        self.latest_with(target).is_some_and(|kept| kept.point.id == id)
    }

    /// The missed writes that still matter: for each disk, those found with the newest restore
    /// point in a period that holds the disk.
    pub fn standing_missed_writes(&self) -> impl Iterator<Item = &MissedWrite> {
        let missed = self.points.iter().flat_map(|kept| {
            kept.missed_writes
                .iter()
                .map(move |missed| (&kept.point.id, missed))
        });
        let standing = missed.filter(|(id, missed)| self.is_latest_with(id, &missed.disk));
        standing.map(|(_, missed)| missed)
    }

    /// The reasons why this restore point cannot be restored completely, as far as manifests and
    /// the sizes of files show; empty if it can.
    pub fn faults(&self, id: &str) -> Vec<String> {
        let Some(kept) = self.get(id) else {
            return vec![self.missing(id)];
        };
        let mut faults: Vec<String> = kept.faults.iter().map(|fault| fault.what.clone()).collect();
        for disk in &kept.point.disks {
            let condition = self.index.condition(self, id, &disk.target);
            if let Some(fault) = condition.and_then(|condition| condition.fault.as_deref())
                && !faults.iter().any(|known| known == fault)
            {
                faults.push(fault.to_owned());
            }
        }
        faults
    }
}

/// Checks that `kept` is the restore point on which this disk of `child` was made, and not another
/// one with the same id.
fn is_parent_of(child: &KeptPoint, kept: &KeptPoint, target: &str) -> Result<(), String> {
    let (of, parent) = (&child.point.id, &kept.point.id);
    let disk = child.point.disk(target);
    if let Some(made_on) = disk.and_then(|disk| disk.parent_manifest.as_ref())
        && !kept.point.has_or_had_manifest(&kept.manifest, made_on)
    {
        return Err(format!(
            "disk {target} of {of} depends on restore point {parent}, which has been replaced by another one"
        ));
    }
    if child.point.sequence <= kept.point.sequence {
        return Err(format!(
            "disk {target} of {of} depends on {parent}, whose sequence number is not lower"
        ));
    }
    Ok(())
}
