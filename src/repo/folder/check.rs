//! Checks the files of a restore point: their lengths and digests, the structure of its images, and
//! whether the images agree with the manifest.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::layout;
use super::point::{self, checkpoint_file};
use crate::image::chain::Recorded;
use crate::image::qcow2::Image;
use crate::image::qcow2::check::check;
use crate::image::{self, StoredFile, damaged_ranges, verify_file};
use crate::model::block::BlockError;
use crate::model::restore_point::DiskPoint;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::repo::error::is_no_verdict;
use crate::repo::{FileDamage, FileEntry, FileWatch, History, Kept, Result};

/// The largest number of ranges that are reported for one damaged file.
const MOST_RANGES: usize = 16;

/// A check of the files of one restore point.
pub(super) struct Check<'a> {
    pub(super) domain_dir: &'a Path,
    pub(super) history: &'a History,
    pub(super) watch: &'a mut dyn FileWatch,
    pub(super) stop: &'a Stop,
    /// Receives damage as soon as it is found, because a later step may be stopped.
    pub(super) damage: &'a mut Vec<FileDamage>,
}

impl Check<'_> {
    /// Checks the files of the restore point in this folder.
    pub(super) fn run(mut self, dir: &Path, kept: &Kept) -> Result<()> {
        for file in &kept.manifest.files {
            let path = point::path_of(dir, &kept.manifest, &file.name);
            let mut disks = kept.manifest.point.disks.iter();
            match disks.find(|disk| disk.image == file.name) {
                Some(disk) => self.check_image(&path, file, disk, &kept.manifest.point.period)?,
                None => {
                    let found = self.check_file(&path, file)?;
                    self.damage.extend(found);
                }
            }
        }
        let period_dir = dir.parent().unwrap_or(dir);
        if let Some((path, file)) = checkpoint_file(period_dir, &kept.manifest) {
            let found = self.check_file(&path, file)?;
            self.damage.extend(found);
        }
        Ok(())
    }

    fn check_image(&mut self, path: &Path, file: &FileEntry, disk: &DiskPoint, period: &str) -> Result<()> {
        let of_disk = |found: FileDamage| FileDamage {
            disk: Some(disk.target.clone()),
            ..found
        };
        if let Some(found) = self.check_file(path, file)? {
            let place = self.damage.len();
            self.damage.push(of_disk(found));
            if point::fault_of(path, file).is_some() {
                return Ok(());
            }
            // The pieces and the structure of a changed image may still locate the damage.
            let places = self.locate(path, file)?;
            self.damage[place].offset = places.first().and_then(|place| place.offset);
            self.damage.extend(places.into_iter().map(of_disk));
        }
        let found = self.check_structure(path, file, disk, period)?;
        self.damage.extend(found.into_iter().map(of_disk));
        Ok(())
    }

    /// Checks length and digest.
    fn check_file(&mut self, path: &Path, entry: &FileEntry) -> Result<Option<FileDamage>> {
        // The file's path within the domain's folder.
        let name = path.strip_prefix(self.domain_dir).unwrap_or(path);
        let name = name.display().to_string();
        self.watch.begins(&name, entry.size);
        let recorded = Recorded {
            bytes: entry.size,
            blake3: entry.blake3.clone(),
            pieces: None,
        };
        let checked = open_stored(path, entry).and_then(|file| {
            let mut progress = |position| self.watch.at(&name, position);
            verify_file(file, path, &recorded, self.stop, &mut progress)
        });
        self.watch.ends(&name);
        match checked {
            Ok(()) => Ok(None),
            Err(error) => damage(path, error).map(Some),
        }
    }

    /// Locates the changed ranges of a file.
    fn locate(&self, path: &Path, entry: &FileEntry) -> Result<Vec<FileDamage>> {
        let Some(pieces) = entry.pieces() else {
            return Ok(Vec::new());
        };
        let ranges = open_stored(path, entry)
            .and_then(|file| damaged_ranges(&file, path, &pieces, MOST_RANGES, self.stop));
        match ranges {
            Ok(ranges) => Ok(ranges
                .into_iter()
                .map(|range| damaged_range(path, &range))
                .collect()),
            Err(error) => damage(path, error).map(|damage| vec![damage]),
        }
    }

    /// Checks the structure of an image, and whether the image agrees with the manifest.
    fn check_structure(
        &self,
        path: &Path,
        entry: &FileEntry,
        disk: &DiskPoint,
        period: &str,
    ) -> Result<Vec<FileDamage>> {
        let image = match open_stored(path, entry).and_then(|file| Image::open(file, path)) {
            Ok(image) => image,
            Err(error) => return damage(path, error).map(|damage| vec![damage]),
        };
        let faults = match check(&image, self.stop) {
            Ok(faults) => faults,
            Err(error) => return damage(path, error).map(|damage| vec![damage]),
        };
        let shown = path.display();
        let of_structure = faults.into_iter().map(|fault| FileDamage {
            offset: Some(fault.offset),
            ..damage_of(
                path,
                format!("{shown}: at offset {}: {}", fault.offset, fault.what),
            )
        });
        let mut found: Vec<FileDamage> = of_structure.collect();
        let mut disagree = |what: String| found.push(damage_of(path, format!("{shown}: {what}")));
        if image.size() != disk.virtual_size {
            disagree(format!(
                "the image is for a disk of {} bytes, but the manifest records a disk of {} bytes",
                image.size(),
                disk.virtual_size
            ));
        }
        let expected = disk.parent.as_ref().and_then(|parent| {
            let parent = self.history.chains.get(parent)?;
            layout::backing(&parent.point, &disk.target, period)
        });
        if disk.parent.is_some() == expected.is_some() && image.backing_name() != expected.as_deref() {
            disagree(format!(
                "the backing file of the image is {}, but the manifests require {}",
                image.backing_name().unwrap_or("none"),
                expected.as_deref().unwrap_or("none")
            ));
        }
        Ok(found)
    }
}

/// Turns an error into the damage that it shows. Returns the error itself if it says nothing about
/// the content of the file.
fn damage(path: &Path, error: image::Error) -> Result<FileDamage> {
    let is_stop = matches!(error, image::Error::Stopped);
    let offset = match &error {
        image::Error::Io { offset, .. }
        | image::Error::Truncated { offset, .. }
        | image::Error::Format { offset, .. } => Some(*offset),
        _ => None,
    };
    let error = BlockError::from(error);
    if is_stop || is_no_verdict(&error) {
        return Err(error.into());
    }
    Ok(FileDamage {
        offset,
        ..damage_of(path, with_sources(&error))
    })
}

/// Damage of a file with this description.
fn damage_of(path: &Path, what: String) -> FileDamage {
    FileDamage {
        location: Some(path.display().to_string()),
        offset: None,
        disk: None,
        what,
    }
}

fn damaged_range(path: &Path, range: &Range<u64>) -> FileDamage {
    let what = format!(
        "{} has changed somewhere between offset {} and offset {} (in bytes)",
        path.display(),
        range.start,
        range.end
    );
    FileDamage {
        offset: Some(range.start),
        ..damage_of(path, what)
    }
}

/// Opens a regular file as its manifest describes it.
fn open_stored(path: &Path, entry: &FileEntry) -> image::Result<StoredFile> {
    let file = open_file(path)?;
    point::stored(file, path, entry).map_err(|source| image::Error::Open {
        path: path.to_owned(),
        source,
    })
}

/// Opens a regular file. A link leads out of the repository, and opening a pipe would block.
fn open_file(path: &Path) -> image::Result<File> {
    let failed = |source| image::Error::Open {
        path: path.to_owned(),
        source,
    };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let file = match opened {
        Err(_) if path.is_symlink() => return Err(failed(io::Error::other("it is a link, not a file"))),
        opened => opened.map_err(failed)?,
    };
    match file.metadata().map_err(failed)?.is_file() {
        true => Ok(file),
        false => Err(failed(io::Error::other("it is not a file"))),
    }
}
