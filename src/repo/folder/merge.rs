//! Merges restore points that are removed into the one that depends on them.
//!
//! The order of the steps, each durable before the next:
//!
//! 1. a note in the folder of the restore point that stays, so that an interrupted merge is found;
//! 2. its new images, beside its old images under other names ([`layout::merged_image`]). A new
//!    image is a copy, or the oldest image continued ([`super::continued`]);
//! 3. the record that the other restore points were removed;
//! 4. its new manifest, in place of the old one. **This is the commit**: the manifest names what
//!    was merged into it, and [`super::history`] no longer counts that as restore points;
//! 5. continued images get their new header, the new images get the names of the old ones, and the
//!    folders of the removed restore points are deleted. As this changes files and takes them from
//!    under readers, it waits until nobody reads ([`super::readers`]);
//! 6. the note goes.
//!
//! A merge that was interrupted before the commit is undone; after the commit it is finished
//! ([`finish`]). In each state every restore point can be restored, also by hand: an image keeps
//! its old name until the new image has it.

use std::io;
use std::path::{Path, PathBuf};

use super::continued::{self, Begun, Continuation};
use super::layout;
use super::look::{entries, folder_names, read_bounded};
use super::pending::remove_if_there;
use super::readers::FolderLock;
use super::{history, images, patch, point, readers, remove, removed};
use crate::image::chain::{ChainImage, ChainSource};
use crate::image::qcow2::Qcow2Options;
use crate::io::Store;
use crate::model::block::{BlockError, BlockSink, BlockSource, Patch, Written};
use crate::model::buffer::BufferPool;
use crate::model::chain::RemovedPoint;
use crate::model::period::holds_restore_points;
use crate::repo::merge::{self, Merge, MergeKind, Merged, NewImage};
use crate::repo::{FileEntry, History, Kept, Manifest, RepoError, Result, manifest};

/// The buffers of a merge, and the size of each in bytes.
const BUFFERS: usize = 4;
const BUFFER: usize = 1 << 20;

/// The text of the note, for people: no program reads it.
const NOTE: &[u8] =
    b"vmsnap was merging other restore points into this one. The next run finishes or undoes the merge.\n";

/// The folders that a merge needs.
pub(super) struct Place<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) domain_dir: &'a Path,
    /// Returns the folder of a restore point.
    pub(super) dir_of: &'a dyn Fn(&Kept) -> PathBuf,
    /// Opens the images of a disk at a restore point, newest first.
    pub(super) open: &'a dyn Fn(&str, &str) -> Result<Vec<ChainImage>>,
}

/// Carries out a merge. If a process reads the files of the removed restore points, [`finish`] has
/// to remove these files later.
pub(super) fn merge(place: &Place<'_>, history: &History, merge: &Merge<'_>) -> Result<Merged> {
    let plan = merge::plan(history, merge)?;
    for kept in plan.run.iter().chain([&plan.child]) {
        let dir = (place.dir_of)(kept);
        let is_unfinished = !history::is_gone(&dir.join(layout::MERGING));
        if is_unfinished && !finish(place.store, place.domain_dir, &dir)? {
            return Ok(Merged::NotYet);
        }
    }
    check_space(place.domain_dir, plan.bytes)?;
    let dir = (place.dir_of)(plan.child);
    let note = dir.join(layout::MERGING);
    place
        .store
        .create_file(&note, NOTE)
        .map_err(RepoError::io("write", &note))?;
    sync_dir(place.store, &dir)?;
    if let Err(error) = prepare(place, &dir, &plan, merge) {
        // Best effort: the next run finds the note. It also knows whether the commit took effect.
        let _ = finish(place.store, place.domain_dir, &dir);
        return Err(error);
    }
    Ok(match finish(place.store, place.domain_dir, &dir)? {
        true => Merged::Completely,
        false => Merged::ExceptFiles,
    })
}

/// Everything up to the commit.
fn prepare<'a>(place: &Place<'_>, dir: &Path, plan: &'a merge::Plan<'a>, merge: &Merge<'_>) -> Result<()> {
    let continues = plan.images.iter().any(|image| image.kind == MergeKind::Continue);
    let can_continue = continues
        && readers::can_lock(place.domain_dir)
        && continued::can_free(place.store, &dir.join(layout::MERGING));
    let make = |image: &NewImage<'_>| -> Result<Written> {
        if can_continue
            && image.kind == MergeKind::Continue
            && let Some(written) = continue_image(place, dir, plan, image, merge)?
        {
            return Ok(written);
        }
        write_image(place, dir, plan, image, merge)
    };
    let write = |image: &'a NewImage<'a>| {
        let disk = &image.disk.target;
        merge.watch.begins(disk, image.disk.virtual_size);
        let written = make(image);
        merge.watch.ends(disk);
        Ok((image, written?))
    };
    let images: Vec<_> = plan.images.iter().map(write).collect::<Result<_>>()?;
    let entries: Vec<FileEntry> = images
        .iter()
        .map(|(image, written)| entry(image, written))
        .collect();
    let manifest = merge::manifest(plan, &images, &entries);
    let text = manifest.to_text().map_err(|source| RepoError::Manifest {
        id: plan.child.manifest.point.id.clone(),
        source,
    })?;
    let (path, new) = (dir.join(layout::MANIFEST), dir.join(layout::NEW_MANIFEST));
    place
        .store
        .create_file(&new, text.as_bytes())
        .map_err(RepoError::io("write", &new))?;
    sync_dir(place.store, dir)?;
    for gone in &plan.run {
        let point = &gone.manifest.point;
        let gone = RemovedPoint {
            id: point.id.clone(),
            uuid: point.uuid.clone(),
            checkpoint: point.checkpoint.clone(),
            removed: merge.now,
        };
        removed::remember(place.store, place.domain_dir, &gone)?;
    }
    place
        .store
        .replace(&new, &path)
        .map_err(RepoError::io("replace", &path))?;
    sync_dir(place.store, dir)
}

/// The manifest's entry for a new image.
fn entry(image: &NewImage<'_>, written: &Written) -> FileEntry {
    let freed = written.patch.as_ref().map(Patch::freed_bytes);
    FileEntry {
        unused: freed.map(|freed| image.unused + freed),
        ..images::entry(&image.disk.image, written)
    }
}

/// The images that are merged into this one, newest first.
fn merged_images(place: &Place<'_>, plan: &merge::Plan<'_>, image: &NewImage<'_>) -> Result<Vec<ChainImage>> {
    let mut images = (place.open)(&plan.child.manifest.point.id, &image.disk.target)?;
    images.truncate(image.layers);
    Ok(images)
}

fn options(path: PathBuf, plan: &merge::Plan<'_>, image: &NewImage<'_>, merge: &Merge<'_>) -> Qcow2Options {
    let backing = image.parent.and_then(|parent| {
        let period = &plan.child.manifest.point.period;
        layout::backing(&parent.manifest.point, &image.disk.target, period)
    });
    Qcow2Options {
        path,
        size: image.disk.virtual_size,
        backing,
        detect_zeroes: true,
        stop: merge.stop.clone(),
    }
}

/// Continues the oldest of the merged images with the content of the newer ones. `None` if it
/// cannot be continued.
fn continue_image(
    place: &Place<'_>,
    dir: &Path,
    plan: &merge::Plan<'_>,
    image: &NewImage<'_>,
    merge: &Merge<'_>,
) -> Result<Option<Written>> {
    let path = dir.join(layout::merged_image(&image.disk.image, plan.number));
    remove_if_there(place.store, &path, "remove")?;
    let mut newer = merged_images(place, plan, image)?;
    let Some(base) = newer.pop().filter(|_| !newer.is_empty()) else {
        return Ok(None);
    };
    let continuation = Continuation {
        store: place.store,
        domain_dir: place.domain_dir,
        dir,
        image: &image.disk.image,
        number: plan.number,
    };
    let stored = (image.oldest.data_bytes, image.oldest.zero_bytes);
    let Some(Begun { base, file, links }) = continuation.begin(base, stored)? else {
        return Ok(None);
    };
    let source = source(newer, merge)?;
    let options = options(path, plan, image, merge);
    let written = copy(
        source,
        images::continuing(file, options, base, image.compression)?,
        image,
        merge,
    )?;
    if let Some(changes) = &written.patch {
        continuation.keep(changes, links)?;
    }
    Ok(Some(written))
}

fn source(images: Vec<ChainImage>, merge: &Merge<'_>) -> Result<ChainSource> {
    let pool = BufferPool::new(BUFFERS, BUFFER);
    Ok(ChainSource::open_part(images, pool, merge.stop.clone()).map_err(BlockError::from)?)
}

/// Writes a new image from those that are merged.
fn write_image(
    place: &Place<'_>,
    dir: &Path,
    plan: &merge::Plan<'_>,
    image: &NewImage<'_>,
    merge: &Merge<'_>,
) -> Result<Written> {
    let path = dir.join(layout::merged_image(&image.disk.image, plan.number));
    remove_if_there(place.store, &path, "remove")?;
    if image.kind == MergeKind::Continue {
        check_space(place.domain_dir, image.copied)?;
    }
    let images = merged_images(place, plan, image)?;
    let file = place
        .store
        .create_image(&path)
        .map_err(RepoError::io("create", &path))?;
    let options = options(path, plan, image, merge);
    copy(
        source(images, merge)?,
        images::writer(file, options, image.compression)?,
        image,
        merge,
    )
}

fn copy(
    mut source: ChainSource,
    mut sink: Box<dyn BlockSink>,
    image: &NewImage<'_>,
    merge: &Merge<'_>,
) -> Result<Written> {
    let disk = &image.disk.target;
    while let Some(block) = source.next_block()? {
        let position = block.offset + block.length();
        sink.write(block)?;
        merge.watch.at(disk, position);
    }
    // The source has verified everything that it read.
    Ok(sink.finish()?)
}

/// Refuses a merge for which the file system has no room.
fn check_space(dir: &Path, needed: u64) -> Result<()> {
    let Ok(found) = rustix::fs::statvfs(dir) else {
        return Ok(());
    };
    match found.f_bavail.saturating_mul(found.f_frsize) < needed {
        false => Ok(()),
        true => Err(RepoError::io("merge restore points in", dir)(
            io::ErrorKind::StorageFull.into(),
        )),
    }
}

/// The folders of the restore points whose merge was not finished, as paths within the domain's
/// folder.
pub(super) fn interrupted(domain_dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for period in folder_names(domain_dir)? {
        if !holds_restore_points(&period) {
            continue;
        }
        let folders = folder_names(&domain_dir.join(&period))?.into_iter();
        let points = folders.filter(|folder| layout::split_finished(folder).is_some());
        let keys = points.map(|folder| format!("{period}/{folder}"));
        found.extend(keys.filter(|key| !history::is_gone(&domain_dir.join(key).join(layout::MERGING))));
    }
    Ok(found)
}

/// Whether a leftover's key is that of an unfinished merge, and not of a folder that is being
/// deleted.
pub(super) fn is_of_merge(key: &str) -> bool {
    key.rsplit_once('/')
        .is_some_and(|(_, folder)| layout::split_finished(folder).is_some())
}

/// Finishes an interrupted merge into the restore point in this folder, or undoes it. Returns false
/// if this has to wait for readers to end, or because the manifest is unusable or the images differ
/// from it.
pub(super) fn finish(store: &dyn Store, domain_dir: &Path, dir: &Path) -> Result<bool> {
    let text = read_bounded(&dir.join(layout::MANIFEST), manifest::MAX_BYTES).ok();
    // The history reports a manifest that cannot be used. Only the manifest says which side of the
    // commit the merge is on, so nothing is removed without it.
    let Some(manifest) = text.and_then(|text| Manifest::parse(&text).ok()) else {
        return Ok(false);
    };
    // Files of a merge that was not committed have a higher number.
    let merges = manifest.point.merges();
    if !continued::take_back(store, domain_dir, dir, merges)? {
        return Ok(false);
    }
    remove_uncommitted(store, dir, merges)?;
    if let Some(merged) = &manifest.point.merged {
        // The commit may not be durable yet, and what follows changes files that are there.
        sync_dir(store, dir)?;
        if !complete_images(store, domain_dir, dir, &manifest)? {
            return Ok(false);
        }
        let Some(_alone) = readers::exclude(domain_dir)? else {
            return Ok(false);
        };
        for disk in &manifest.point.disks {
            let new = dir.join(layout::merged_image(&disk.image, merges));
            if !history::is_gone(&new) {
                let path = dir.join(&disk.image);
                store
                    .replace(&new, &path)
                    .map_err(RepoError::io("replace", &path))?;
            }
        }
        sync_dir(store, dir)?;
        for disk in &manifest.point.disks {
            let changes = layout::patch(&layout::merged_image(&disk.image, merges));
            remove_if_there(store, &dir.join(changes), "remove")?;
        }
        // Removed restore points are deleted only if the images are as the manifest says.
        if !point::file_faults(dir, &manifest).is_empty() {
            return Ok(false);
        }
        // A finished merge is not repeated: a removed restore point may have been copied back.
        let is_noted = !history::is_gone(&dir.join(layout::MERGING));
        for gone in merged.points.iter().filter(|_| is_noted) {
            remove_folder_of(store, domain_dir, &gone.id)?;
        }
    }
    // The note goes last, and only when the rest is gone for good.
    sync_dir(store, dir)?;
    remove_if_there(store, &dir.join(layout::MERGING), "remove")?;
    Ok(true)
}

/// Makes the changes in the images that a committed merge has continued. Returns false if that has
/// to wait.
fn complete_images(store: &dyn Store, domain_dir: &Path, dir: &Path, manifest: &Manifest) -> Result<bool> {
    let images = manifest.point.disks.iter().filter_map(|disk| {
        let path = point::path_of(dir, manifest, &disk.image);
        let entry = manifest.file(&disk.image)?;
        patch::is_due(&path, entry).then_some((path, entry))
    });
    let images: Vec<(PathBuf, &FileEntry)> = images.collect();
    if images.is_empty() {
        return Ok(true);
    }
    // A reader that opens an image from here on sees the new header, so ranges can be freed
    // afterwards without the lock: that takes long if there are many.
    let Some(alone) = readers::exclude(domain_dir)?.filter(FolderLock::is_held) else {
        return Ok(false);
    };
    let mut made = images.iter();
    if !made.all(|(path, entry)| continued::replace_header(store, path, entry)) {
        return Ok(false);
    }
    drop(alone);
    let mut made = images.iter();
    Ok(made.all(|(path, entry)| continued::free_ranges(store, path, entry)))
}

/// Removes what an uncommitted merge has written.
fn remove_uncommitted(store: &dyn Store, dir: &Path, merges: usize) -> Result<()> {
    for (name, _) in entries(dir)? {
        let number = layout::merge_number(&name);
        if name == layout::NEW_MANIFEST || number.is_some_and(|number| number > merges) {
            remove_if_there(store, &dir.join(name), "remove")?;
        }
    }
    Ok(())
}

/// Removes the folder of a restore point of this id. It may be in any period.
fn remove_folder_of(store: &dyn Store, domain_dir: &Path, id: &str) -> Result<()> {
    for (period, _) in entries(domain_dir)? {
        let period_dir = domain_dir.join(&period);
        if !holds_restore_points(&period) {
            continue;
        }
        for (folder, _) in entries(&period_dir)? {
            if layout::split_finished(&folder).is_some_and(|(found, _)| found == id) {
                remove::restore_point(store, &period_dir, &folder)?;
            }
        }
    }
    Ok(())
}

fn sync_dir(store: &dyn Store, dir: &Path) -> Result<()> {
    store.sync_dir(dir).map_err(RepoError::io("sync", dir))
}
