//! The restore points of a domain, and which of them are the parents of which.

use jiff::Timestamp;

use super::checkpoint::CheckpointId;
use super::pin::Pin;
use super::restore_point::{Level, RestorePoint};

/// A restore point as the repository holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPoint {
    /// What its manifest says.
    pub point: RestorePoint,
    /// The digest of its manifest, by which what stands upon it knows it.
    pub manifest: String,
    /// What is wrong with its own files; empty when they are all there with the recorded sizes.
    pub faults: Vec<FileFault>,
    /// What the last verification found damaged. Nothing new is to rely on it; giving it back may be tried all the same.
    pub suspected_damage: Vec<SuspectedDamage>,
    /// What comparisons with the domain found: nothing new may rely on what any bitmap of these disks knew then.
    pub missed_writes: Vec<MissedWrite>,
    /// What keeps it from being removed, if it is pinned.
    pub pin: Option<Pin>,
}

impl KeptPoint {
    /// The write of which a comparison with this restore point found that a bitmap of the disk had missed it.
    pub fn missed_write(&self, target: &str) -> Option<&MissedWrite> {
        self.missed_writes.iter().find(|missed| missed.disk == target)
    }
}

/// A bitmap had missed a write: a disk differed from its restore point where the bitmap called it unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissedWrite {
    /// The disk's target.
    pub disk: String,
    /// When it was found.
    pub found: Timestamp,
}

/// Something that a verification found damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuspectedDamage {
    /// A sentence that names the file.
    pub what: String,
    /// What of the restore point it concerns.
    pub concerns: Concern,
}

/// What of a restore point a damage concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concern {
    /// The disk of this target.
    Disk(String),
    /// Files that belong to none of its disks.
    Files,
    /// All of it, as far as anybody knows.
    All,
}

impl Concern {
    /// Whether the disk of this target is concerned.
    pub fn is_of_disk(&self, target: &str) -> bool {
        match self {
            Concern::Disk(disk) => disk == target,
            Concern::Files => false,
            Concern::All => true,
        }
    }
}

/// What is wrong with a file of a restore point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFault {
    /// The file's name within the restore point.
    pub file: String,
    /// A sentence that names its path.
    pub what: String,
}

/// A restore point that has gone, or whose manifest cannot be used: of its content nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostPoint {
    /// Its id, as its folder's name has it.
    pub id: String,
    /// A sentence that names its manifest.
    pub what: String,
    /// Whether it was written by a newer program, and may well be sound.
    pub is_newer: bool,
    /// Whether nothing of it is there any more.
    pub is_gone: bool,
}

/// A restore point that was removed on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedPoint {
    /// Its id.
    pub id: String,
    /// The UUID of its domain.
    pub uuid: String,
    /// The checkpoint that was made with it, which may still be in the domain.
    pub checkpoint: Option<CheckpointId>,
    /// When it was removed.
    pub removed: Timestamp,
}

/// The restore points of one domain that were read, with the questions one asks of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains {
    points: Vec<KeptPoint>,
    lost: Vec<LostPoint>,
    removed: Vec<RemovedPoint>,
}

impl Chains {
    /// Takes the restore points in any order.
    pub fn new(mut points: Vec<KeptPoint>) -> Self {
        points.sort_by(|a, b| {
            let key = |kept: &KeptPoint| (kept.point.sequence, kept.point.time);
            key(a).cmp(&key(b)).then_with(|| a.point.id.cmp(&b.point.id))
        });
        Chains {
            points,
            lost: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// The same, with those that were removed on purpose, as far as that is remembered.
    pub fn with_removed(self, removed: Vec<RemovedPoint>) -> Self {
        Chains { removed, ..self }
    }

    /// Those that were removed on purpose and are not there, as far as that is remembered.
    pub fn removed(&self) -> impl Iterator<Item = &RemovedPoint> {
        let is_gone = |removed: &&RemovedPoint| self.get(&removed.id).is_none();
        self.removed.iter().filter(is_gone)
    }

    /// The checkpoints that restore points of this domain recorded, also those that were removed.
    pub fn recorded_checkpoints<'a>(&'a self, uuid: &'a str) -> impl Iterator<Item = &'a CheckpointId> {
        let kept = self.points.iter().filter(move |kept| kept.point.uuid == uuid);
        let removed = self.removed().filter(move |removed| removed.uuid == uuid);
        let of_kept = kept.filter_map(|kept| kept.point.checkpoint.as_ref());
        of_kept.chain(removed.filter_map(|removed| removed.checkpoint.as_ref()))
    }

    /// The restore points that could not be read.
    pub fn all_lost(&self) -> impl Iterator<Item = &LostPoint> {
        self.lost_after("")
    }

    /// The same, beside restore points that could not be read.
    pub fn beside(self, lost: Vec<LostPoint>) -> Self {
        Chains { lost, ..self }
    }

    /// The restore point of this id that could not be read, if there is none of that id that could.
    pub fn lost(&self, id: &str) -> Option<&LostPoint> {
        self.lost
            .iter()
            .find(|lost| lost.id == id && self.get(id).is_none())
    }

    /// A restore point that could not be read and that may be of a later moment than `after`, both by their ids. Names decide nothing, but
    /// warn.
    pub fn lost_after(&self, after: &str) -> impl Iterator<Item = &LostPoint> {
        self.lost
            .iter()
            .filter(move |lost| lost.id.as_str() > after && self.get(&lost.id).is_none())
    }

    fn missing(&self, id: &str) -> String {
        let removed = self.removed().find(|removed| removed.id == id);
        match (self.lost(id), removed) {
            (Some(lost), _) => lost.what.clone(),
            (None, Some(removed)) => format!("restore point {id} was removed on {}", removed.removed),
            (None, None) => format!("restore point {id} is missing"),
        }
    }

    /// All of them, in the order they were committed.
    pub fn points(&self) -> &[KeptPoint] {
        &self.points
    }

    /// The one with this id.
    pub fn get(&self, id: &str) -> Option<&KeptPoint> {
        self.points.iter().find(|kept| kept.point.id == id)
    }

    /// Those in periods, in the same order: all except standalone copies, which no backup stands on.
    pub fn in_periods(&self) -> impl DoubleEndedIterator<Item = &KeptPoint> {
        self.points.iter().filter(|kept| !kept.point.is_copy())
    }

    /// The newest one in a period.
    pub fn latest_in_periods(&self) -> Option<&KeptPoint> {
        self.in_periods().next_back()
    }

    /// The newest one, copies included.
    pub fn latest(&self) -> Option<&KeptPoint> {
        self.points.last()
    }

    /// The restore points whose images make up this disk at `id`, newest first, or what breaks the chain.
    pub fn lineage(&self, id: &str, target: &str) -> Result<Vec<&KeptPoint>, String> {
        let mut line: Vec<&KeptPoint> = Vec::new();
        let mut wanted = id.to_owned();
        loop {
            let kept = self.get(&wanted).ok_or_else(|| self.missing(&wanted))?;
            if let Some(child) = line.last() {
                is_parent_of(child, kept, target)?;
            }
            let disk = kept
                .point
                .disk(target)
                .ok_or_else(|| format!("restore point {wanted} does not hold disk {target}"))?;
            // What is wrong with other files is no hindrance to this disk.
            if let Some(fault) = kept.faults.iter().find(|fault| fault.file == disk.image) {
                return Err(fault.what.clone());
            }
            if line.len() >= self.points.len() {
                return Err(format!("the parents of restore point {id} form a circle"));
            }
            line.push(kept);
            match (disk.level, &disk.parent) {
                (Level::Full, None) => return Ok(line),
                (Level::Incremental, Some(parent)) => wanted = parent.clone(),
                (Level::Full, Some(_)) => {
                    return Err(format!("disk {target} of {wanted} is full but names a parent"));
                }
                (Level::Incremental, None) => {
                    return Err(format!(
                        "disk {target} of {wanted} is incremental but names no parent"
                    ));
                }
            }
        }
    }

    /// Detects a replaced ancestor: a child was made when another restore point than this one, or than one of its parents, was here. However whole
    /// it is, nothing new is to rely on it.
    pub(super) fn replaced_ancestor(&self, id: &str, target: &str) -> Option<String> {
        let line = self.lineage(id, target).ok()?;
        let is_child = |kept: &&KeptPoint, parent: &KeptPoint| {
            let disk = kept.point.disk(target);
            disk.is_some_and(|disk| disk.parent.as_ref() == Some(&parent.point.id))
        };
        line.into_iter().find_map(|parent| {
            let mut children = self.points.iter().filter(|kept| is_child(kept, parent));
            children.find_map(|child| is_parent_of(child, parent, target).err())
        })
    }

    /// What the last verification found damaged in the images that make up this disk at `id`.
    pub fn suspected_damage(&self, id: &str, target: &str) -> Option<String> {
        let line = self.lineage(id, target).ok()?;
        let mut found = line.into_iter().flat_map(|kept| &kept.suspected_damage);
        let found = found.find(|damage| damage.concerns.is_of_disk(target));
        found.map(|damage| damage.what.clone())
    }

    /// The same for any disk of it, and for its other files.
    pub fn any_suspected_damage(&self, id: &str) -> Option<String> {
        let kept = self.get(id)?;
        let mut disks = kept.point.disks.iter();
        let of_disk = disks.find_map(|disk| self.suspected_damage(id, &disk.target));
        of_disk.or_else(|| kept.suspected_damage.first().map(|damage| damage.what.clone()))
    }

    /// The newest restore point in a period that holds this disk.
    pub fn latest_with(&self, target: &str) -> Option<&KeptPoint> {
        self.in_periods()
            .rev()
            .find(|kept| kept.point.disk(target).is_some())
    }

    /// Whether nothing was saved of this disk since the restore point `id`.
    pub fn is_latest_with(&self, id: &str, target: &str) -> bool {
        self.latest_with(target).is_some_and(|kept| kept.point.id == id)
    }

    /// The missed writes that are not made good: nothing was saved of these disks since they were found.
    pub fn standing_missed_writes(&self) -> impl Iterator<Item = &MissedWrite> {
        let missed = self.points.iter().flat_map(|kept| {
            kept.missed_writes
                .iter()
                .map(move |missed| (&kept.point.id, missed))
        });
        let standing = missed.filter(|(id, missed)| self.is_latest_with(id, &missed.disk));
        standing.map(|(_, missed)| missed)
    }

    /// Why this restore point cannot be given back whole; empty when it can.
    pub fn faults(&self, id: &str) -> Vec<String> {
        let Some(kept) = self.get(id) else {
            return vec![self.missing(id)];
        };
        let mut faults: Vec<String> = kept.faults.iter().map(|fault| fault.what.clone()).collect();
        for disk in &kept.point.disks {
            if let Err(fault) = self.lineage(id, &disk.target)
                && !faults.contains(&fault)
            {
                faults.push(fault);
            }
        }
        faults
    }
}

/// Whether `kept` is the restore point upon which this disk of `child` was made, and not another one of that name.
fn is_parent_of(child: &KeptPoint, kept: &KeptPoint, target: &str) -> Result<(), String> {
    let (of, parent) = (&child.point.id, &kept.point.id);
    let disk = child.point.disk(target);
    if let Some(made_upon) = disk.and_then(|disk| disk.parent_manifest.as_ref())
        && !made_upon.eq_ignore_ascii_case(&kept.manifest)
    {
        return Err(format!(
            "disk {target} of {of} was made upon another restore point {parent} than the one that is there"
        ));
    }
    if child.point.sequence <= kept.point.sequence {
        return Err(format!(
            "disk {target} of {of} stands upon {parent}, which is not older by its number"
        ));
    }
    Ok(())
}
