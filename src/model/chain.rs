//! Which restore points stand upon which, and what the next one can stand upon.

use jiff::Timestamp;

use super::checkpoint::{Checkpoint, is_unique};
use super::restore_point::{FileId, Level, RestorePoint};

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
    pub doubts: Vec<Doubt>,
    /// What comparisons with the domain found: nothing new may rely on what any bitmap of these disks knew then.
    pub missed: Vec<MissedWrite>,
}

impl KeptPoint {
    /// The write of which a comparison with this restore point found that a bitmap of the disk had missed it.
    pub fn missed_write(&self, target: &str) -> Option<&MissedWrite> {
        self.missed.iter().find(|missed| missed.disk == target)
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
pub struct Doubt {
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
}

/// The restore points of one domain that were read, with the questions one asks of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains {
    points: Vec<KeptPoint>,
    lost: Vec<LostPoint>,
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
        }
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
        self.lost(id).map_or_else(
            || format!("restore point {id} is missing"),
            |lost| lost.what.clone(),
        )
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

    /// Why another restore point than this one seems to have been here, or beneath it, when a child of it was made: whole as it may be, nothing
    /// new is to rely on it.
    fn disowned(&self, id: &str, target: &str) -> Option<String> {
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
    pub fn doubt(&self, id: &str, target: &str) -> Option<String> {
        let line = self.lineage(id, target).ok()?;
        let mut doubts = line.into_iter().flat_map(|kept| &kept.doubts);
        let found = doubts.find(|doubt| doubt.concerns.is_of_disk(target));
        found.map(|doubt| doubt.what.clone())
    }

    /// The same for any disk of it, and for its other files.
    pub fn doubts(&self, id: &str) -> Option<String> {
        let kept = self.get(id)?;
        let mut disks = kept.point.disks.iter();
        let of_disk = disks.find_map(|disk| self.doubt(id, &disk.target));
        of_disk.or_else(|| kept.doubts.first().map(|doubt| doubt.what.clone()))
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
    pub fn standing_missed(&self) -> impl Iterator<Item = &MissedWrite> {
        let missed = self
            .points
            .iter()
            .flat_map(|kept| kept.missed.iter().map(move |missed| (&kept.point.id, missed)));
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

/// The level of one disk, with the reason that stands in manifest and output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLevel {
    /// The disk's target.
    pub target: String,
    /// Upon what it stands; `None` for a full.
    pub parent: Option<Parent>,
    /// Why.
    pub reason: String,
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
}

/// Decides the level of one disk: incremental upon the newest restore point of the period that is whole, and whose
/// checkpoint is still there and sound for this disk; full otherwise.
///
/// `uuid` is the domain's, `period` the folder that the new restore point goes to, `checkpoints` what the hypervisor lists now.
pub fn decide(
    disk: &DiskNow,
    uuid: &str,
    period: &str,
    chains: &Chains,
    checkpoints: &[Checkpoint],
) -> DiskLevel {
    let full = |reason: String| DiskLevel {
        target: disk.target.clone(),
        parent: None,
        reason,
    };
    if let Some(reason) = &disk.full_only {
        return full(reason.clone());
    }
    let mut why_not = None;
    let candidates = chains
        .points()
        .iter()
        .rev()
        .filter(|kept| kept.point.period == period);
    for kept in candidates {
        if kept.missed_write(&disk.target).is_some() {
            let id = &kept.point.id;
            let what = format!(
                "a bitmap of disk {} had missed a write when {id} was compared with it",
                disk.target
            );
            return full(what);
        }
        match usable_parent(disk, uuid, kept, chains, checkpoints) {
            Ok(parent) => {
                let reason = match &why_not {
                    None => format!("changes since {}", parent.id),
                    Some(why_not) => format!("changes since {} ({why_not})", parent.id),
                };
                return DiskLevel {
                    target: disk.target.clone(),
                    parent: Some(parent),
                    reason,
                };
            }
            // The newest candidate's trouble is what the user wants to hear of.
            Err(reason) => {
                why_not.get_or_insert(reason);
            }
        }
    }
    full(why_not.unwrap_or_else(|| "first of the period".to_owned()))
}

fn usable_parent(
    disk: &DiskNow,
    uuid: &str,
    kept: &KeptPoint,
    chains: &Chains,
    checkpoints: &[Checkpoint],
) -> Result<Parent, String> {
    let point = &kept.point;
    let id = &point.id;
    if point.uuid != uuid {
        return Err(format!(
            "restore point {id} is of another domain of that name (UUID {})",
            point.uuid
        ));
    }
    let Some(before) = point.disk(&disk.target) else {
        return Err(format!("disk {} is new since {id}", disk.target));
    };
    // Every disk carries bitmaps of the same names: another disk under this target would pass for this one.
    let Some(source) = disk.sources.iter().find(|now| now.path == before.source) else {
        return Err(format!("disk {} lay at {} with {id}", disk.target, before.source));
    };
    if let (Some(file), Some(before_file)) = (source.file, before.source_file)
        && file != before_file
    {
        return Err(format!("{} is another file than it was with {id}", before.source));
    }
    let (Some(recorded), true) = (&point.checkpoint, before.checkpointed) else {
        return Err(format!(
            "no checkpoint was made of disk {} with {id}",
            disk.target
        ));
    };
    if !is_unique(&recorded.name) {
        return Err(format!(
            "checkpoint {} has a name that can have been given to another bitmap since {id}",
            recorded.name
        ));
    }
    if let Some(now) = disk.virtual_size
        && now < before.virtual_size
    {
        return Err(format!("disk {} has shrunk since {id}", disk.target));
    }
    let Some(checkpoint) = checkpoints
        .iter()
        .find(|checkpoint| checkpoint.name == recorded.name)
    else {
        return Err(format!("checkpoint {} is gone", recorded.name));
    };
    if !checkpoint.is(recorded) {
        return Err(format!(
            "checkpoint {} was made anew by somebody else",
            recorded.name
        ));
    }
    if checkpoint.is_unknown_for(&disk.target) {
        return Err(format!(
            "the bitmap {} of disk {} cannot be seen from here",
            recorded.name, disk.target
        ));
    }
    if !checkpoint.is_sound_for(&disk.target) {
        return Err(format!(
            "the bitmap {} of disk {} is lost or inconsistent",
            recorded.name, disk.target
        ));
    }
    chains
        .lineage(id, &disk.target)
        .map_err(|fault| format!("the chain to {id} is not whole: {fault}"))?;
    if let Some(doubt) = chains.doubt(id, &disk.target) {
        return Err(format!("the chain to {id} is damaged: {doubt}"));
    }
    if let Some(fault) = chains.disowned(id, &disk.target) {
        return Err(format!("the chain to {id} is not what it was: {fault}"));
    }
    Ok(Parent {
        id: id.clone(),
        checkpoint: recorded.name.clone(),
        virtual_size: before.virtual_size,
    })
}
