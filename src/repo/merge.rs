//! Plans a merge: which restore points go into which one, and which images it replaces. Pure.

use jiff::Timestamp;

use super::manifest::Manifest;
use super::{FileEntry, History, Kept, RepoError, Result};
use crate::model::block::{CLUSTER, Written};
use crate::model::chain::KeptPoint;
use crate::model::compression::Compression;
use crate::model::restore_point::{self, DiskPoint, Level, MergedPoint, RestorePoint};
use crate::model::stop::Stop;

/// A request to merge restore points.
#[derive(Clone, Debug)]
pub struct Merge<'a> {
    /// The ids of the restore points that are removed.
    pub run: &'a [String],
    /// The id of the restore point that stays and depends on them.
    pub into: &'a str,
    /// The current time.
    pub now: Timestamp,
    /// A request to stop. A merge that is not committed yet is then undone.
    pub stop: &'a Stop,
    /// Receives progress.
    pub watch: &'a dyn MergeWatch,
}

/// Receives the progress of a merge; `disk` is always the disk's target.
pub trait MergeWatch: std::fmt::Debug + Sync {
    /// The images of a disk of `size` bytes are about to be merged.
    fn begins(&self, disk: &str, size: u64);

    /// The images are merged up to this offset on the disk, in bytes.
    fn at(&self, disk: &str, position: u64);

    /// The images of the disk are merged, or their merge failed.
    fn ends(&self, disk: &str);
}

/// Ignores the progress.
impl MergeWatch for () {
    fn begins(&self, _: &str, _: u64) {}

    fn at(&self, _: &str, _: u64) {}

    fn ends(&self, _: &str) {}
}

/// The result of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// The restore points are removed, and so are their files.
    Completely,
    /// The restore points are removed, but files still have to be replaced or deleted, for example
    /// because a process reads them. This counts as an interrupted removal.
    ExceptFiles,
    /// The restore points still exist, because an earlier merge must be finished first, and cannot
    /// be finished now.
    NotYet,
}

/// A merge that is possible.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The restore point that stays.
    pub child: &'a Kept,
    /// The restore points that are removed, in the order of the history.
    pub run: Vec<&'a Kept>,
    /// The images that are replaced, one for each disk that depends on the run.
    pub images: Vec<NewImage<'a>>,
    /// The number of merges into the restore point so far, including this one.
    pub number: usize,
    /// The largest number of bytes that the merge writes, if each image is made as planned.
    pub bytes: u64,
}

/// How the image of a merge is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MergeKind {
    /// The images that are merged are copied into a new one.
    Copy,
    /// The content of the newer images is appended to the file of the oldest image.
    Continue,
}

/// An image that is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageSize {
    /// The length of its file, in bytes.
    pub file: u64,
    /// How many bytes of the file are holes.
    pub unused: u64,
    /// How many bytes of the disk the image changes.
    pub changed: u64,
}

/// The most that the newer images of a merge may change, in bytes of the disk, if the oldest one is
/// continued: what becomes free is listed in memory and in a file.
const MOST_CHANGED: u64 = 128 << 30;
/// An image whose file is this many times as long as what it holds is copied, so that holes do not
/// add up for ever. Short files may have more.
const MOST_LENGTH: u64 = 8;
const SHORT: u64 = 1 << 30;

impl ImageSize {
    pub(crate) fn of(file: &FileEntry, disk: &DiskPoint) -> ImageSize {
        ImageSize {
            changed: disk.data_bytes.saturating_add(disk.zero_bytes),
            file: file.size,
            unused: file.unused.unwrap_or(0),
        }
    }

    fn stored(self) -> u64 {
        self.file.saturating_sub(self.unused)
    }
}

/// Chooses how to merge `images`, given oldest first. Also returns the largest number of bytes that
/// the merge writes.
pub(crate) fn method(can_continue: bool, images: &[ImageSize]) -> (MergeKind, u64) {
    let Some((oldest, newer)) = images.split_first() else {
        return (MergeKind::Copy, 0);
    };
    let changed = newer
        .iter()
        .fold(0, |sum: u64, image| sum.saturating_add(image.changed));
    let newer = newer
        .iter()
        .fold(0, |sum: u64, image| sum.saturating_add(image.stored()));
    let longest = oldest.stored().saturating_mul(MOST_LENGTH).max(SHORT);
    let is_short = oldest.file.saturating_add(newer) <= longest;
    if !can_continue || newer >= oldest.stored() || changed > MOST_CHANGED || !is_short {
        return (MergeKind::Copy, newer.saturating_add(oldest.stored()));
    }
    // Refcount blocks of the old file, at most one for each 2 GiB and one for each GiB of their
    // table, and the last clusters of each kind of table. The L2 tables that are written again are
    // those that the newer images have, too.
    let counts = (oldest.file >> 31) + (oldest.file >> 44) + 6;
    (MergeKind::Continue, newer.saturating_add(counts * CLUSTER))
}

/// An image that replaces an image of the restore point that stays.
#[derive(Debug)]
pub(crate) struct NewImage<'a> {
    /// The disk of the restore point that stays.
    pub disk: &'a DiskPoint,
    /// How many of the newest images of its chain are merged.
    pub layers: usize,
    /// The disk's entry in the oldest restore point that the merge removes. The new image takes its
    /// level and parent from this entry.
    pub oldest: &'a DiskPoint,
    /// The restore point on which the new image depends; `None` for a full image.
    pub parent: Option<&'a Kept>,
    /// How the new image is to be made. If the oldest image cannot be continued after all, the
    /// images are copied.
    pub kind: MergeKind,
    /// How the new image is compressed.
    pub compression: Compression,
    /// The largest number of bytes that are written, if the image is made as `kind` says.
    pub bytes: u64,
    /// The largest number of bytes that are written if the images are copied, whatever `kind` is.
    pub copied: u64,
    /// How many bytes of the oldest image are holes.
    pub unused: u64,
}

/// Checks that no other restore point depends on those that a merge removes, and plans the merge.
///
/// # Errors
/// [`RepoError::NotWhole`] if a restore point is missing, its chain has a fault, or a disk has
/// shrunk; [`RepoError::Needed`] if another restore point depends on those that are removed.
pub(crate) fn plan<'a>(history: &'a History, merge: &Merge<'_>) -> Result<Plan<'a>> {
    let child = get(history, merge.into)?;
    let is_in_run = |id: &str| merge.run.iter().any(|gone| gone == id);
    let run = merge
        .run
        .iter()
        .map(|id| get(history, id))
        .collect::<Result<Vec<_>>>()?;
    for gone in &run {
        let id = &gone.manifest.point.id;
        let is_other = |kept: &&Kept| {
            let other = &kept.manifest.point.id;
            other != merge.into && !is_in_run(other)
        };
        if let Some(other) = history.children(id).find(is_other) {
            return Err(RepoError::Needed {
                id: id.clone(),
                by: other.manifest.point.id.clone(),
            });
        }
    }
    let disks = child.manifest.point.disks.iter();
    let planned = disks.map(|disk| new_image(history, merge, disk));
    let images: Vec<_> = planned.filter_map(Result::transpose).collect::<Result<_>>()?;
    Ok(Plan {
        number: child.manifest.point.merges() + 1,
        child,
        run,
        bytes: images.iter().map(|image| image.bytes).sum(),
        images,
    })
}

/// Plans the new image of a disk; `None` if the disk depends on nothing that is removed.
fn new_image<'a>(
    history: &'a History,
    merge: &Merge<'_>,
    disk: &'a DiskPoint,
) -> Result<Option<NewImage<'a>>> {
    let target = &disk.target;
    let line = history.chains.lineage(merge.into, target);
    let line = line.map_err(|fault| not_whole(merge.into, fault))?;
    if let Some(id) = shrunk(&line, target) {
        let fault = format!(
            "disk {target} is smaller than in the parent, so the two restore points cannot be merged"
        );
        return Err(not_whole(id, fault));
    }
    let is_in_run = |kept: &&&KeptPoint| merge.run.contains(&kept.point.id);
    let layers = 1 + line[1..].iter().take_while(is_in_run).count();
    let merged = || line[..layers].iter();
    let Some(oldest_point) = merged().next_back().filter(|_| layers > 1) else {
        return Ok(None);
    };
    let Some(oldest) = oldest_point.point.disk(target) else {
        return Ok(None);
    };
    let is_compressed = |kept: &&KeptPoint| {
        let disk = kept.point.disk(target);
        disk.is_some_and(|disk| disk.compression.is_some())
    };
    let sizes = merged()
        .rev()
        .filter_map(|kept| size_of(history, &kept.point.id, target));
    let sizes: Vec<ImageSize> = sizes.collect();
    // In the folder of another period, the name of its backing file would be wrong until the
    // header is replaced.
    let child = get(history, merge.into)?;
    let is_near = oldest_point.point.period == child.manifest.point.period;
    let can_continue = history.can_continue && (oldest.parent.is_none() || is_near);
    let (kind, bytes) = method(can_continue, &sizes);
    Ok(Some(NewImage {
        kind,
        copied: sizes.iter().map(|image| image.stored()).sum(),
        unused: sizes.first().map_or(0, |oldest| oldest.unused),
        disk,
        layers,
        oldest,
        parent: oldest
            .parent
            .as_ref()
            .map(|parent| get(history, parent))
            .transpose()?,
        compression: match merged().any(is_compressed) {
            true => Compression::default(),
            false => Compression::None,
        },
        bytes,
    }))
}

fn get<'a>(history: &'a History, id: &str) -> Result<&'a Kept> {
    let missing = || not_whole(id, "it is missing".to_owned());
    history.get(id).ok_or_else(missing)
}

fn not_whole(id: &str, fault: String) -> RepoError {
    RepoError::NotWhole {
        id: id.to_owned(),
        fault,
    }
}

/// A restore point of a chain, newest first, whose disk is smaller than that of an older one. No
/// backup makes one: a disk that has shrunk is saved in full.
fn shrunk<'a>(line: &[&'a KeptPoint], target: &str) -> Option<&'a str> {
    let sizes = line
        .iter()
        .filter_map(|kept| Some((kept, kept.point.disk(target)?.virtual_size)));
    let sizes: Vec<_> = sizes.collect();
    let pair = sizes.windows(2).find(|pair| pair[0].1 < pair[1].1)?;
    Some(&pair[0].0.point.id)
}

pub(crate) fn size_of(history: &History, id: &str, target: &str) -> Option<ImageSize> {
    let manifest = &history.get(id)?.manifest;
    let disk = manifest.point.disk(target)?;
    Some(ImageSize::of(manifest.file(&disk.image)?, disk))
}

/// The manifest of the restore point that stays, after the merge.
pub(crate) fn manifest(
    plan: &Plan<'_>,
    images: &[(&NewImage<'_>, Written)],
    entries: &[FileEntry],
) -> Manifest {
    let before = &plan.child.manifest;
    let new_disk = |disk: &DiskPoint| {
        let new = images.iter().find(|(image, _)| image.disk.target == disk.target);
        new.map_or_else(|| disk.clone(), |(image, written)| merged_disk(image, written))
    };
    let disks: Vec<DiskPoint> = before.point.disks.iter().map(new_disk).collect();
    let is_full = disks.iter().all(|disk| disk.level == Level::Full);
    let parents = || disks.iter().filter_map(|disk| disk.parent.as_ref());
    let of_images = images.iter().filter_map(|(image, _)| image.parent);
    let newest = of_images.max_by_key(|parent| parent.manifest.point.sequence);
    let newest = newest.map(|parent| parent.manifest.point.id.clone());
    // The parent of a disk that was not merged is not in the run, so it is still what it was.
    let unmerged = before
        .point
        .parent
        .clone()
        .filter(|parent| parents().any(|of_disk| of_disk == parent));
    let mut replaces = before
        .point
        .merged
        .clone()
        .map_or_else(Vec::new, |merged| merged.replaces);
    replaces.push(before.digest.clone());
    let merged = restore_point::Merged {
        committed: before
            .point
            .merged
            .as_ref()
            .map_or(before.point.level, |merged| merged.committed),
        replaces,
        points: plan.run.iter().map(|gone| merged_point(gone)).collect(),
    };
    let point = RestorePoint {
        level: if is_full { Level::Full } else { Level::Incremental },
        parent: unmerged.or(newest),
        disks,
        merged: Some(merged),
        ..before.point.clone()
    };
    before.after_merge(point, entries)
}

fn merged_disk(image: &NewImage<'_>, written: &Written) -> DiskPoint {
    DiskPoint {
        level: image.oldest.level,
        reason: format!(
            "{}; merged with removed restore points",
            first_reason(&image.disk.reason)
        ),
        parent: image.oldest.parent.clone(),
        parent_manifest: image.oldest.parent_manifest.clone(),
        data_bytes: written.data_bytes,
        zero_bytes: written.zero_bytes,
        compression: written.is_compressed.then(|| "zstd".to_owned()),
        ..image.disk.clone()
    }
}

/// The part of a reason that was there before any merge: why the backup chose this level.
fn first_reason(reason: &str) -> &str {
    reason.split("; merged with").next().unwrap_or(reason)
}

fn merged_point(gone: &Kept) -> MergedPoint {
    MergedPoint {
        id: gone.manifest.point.id.clone(),
        manifest: gone.manifest.digest.clone(),
    }
}
