//! Proves one restore point: the files it is made of, and on request its disks from end to end.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::Damage;
use crate::image::chain::{ChainImage, ChainSource, Recorded};
use crate::image::qcow2::Image;
use crate::image::qcow2::check::check;
use crate::image::{self, damaged_ranges, verify_file};
use crate::model::block::{BlockErrorKind, BlockSource, Content};
use crate::model::restore_point::DiskPoint;
use crate::model::stop::{Stop, StopReason};
use crate::model::text::with_sources;
use crate::ops::monitor::{Event, Monitor};
use crate::ops::{Cause, Error, Result, copy, lineage};
use crate::repo::folder::layout;
use crate::repo::history::Kept;
use crate::repo::{DomainRepository, FileEntry, History};

/// Most ranges that are told of one damaged file.
const MOST_RANGES: usize = 16;

/// Proves restore points of one domain.
pub(super) struct Prover<'a> {
    domain: &'a str,
    repository: &'a DomainRepository,
    history: &'a History,
    monitor: &'a dyn Monitor,
    stop: &'a Stop,
    bytes: u64,
}

impl<'a> Prover<'a> {
    pub(super) fn new(
        domain: &'a str,
        repository: &'a DomainRepository,
        history: &'a History,
        monitor: &'a dyn Monitor,
        stop: &'a Stop,
    ) -> Self {
        Prover {
            domain,
            repository,
            history,
            monitor,
            stop,
            bytes: 0,
        }
    }

    /// Bytes that were read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds everything that is damaged of a restore point to `damage`, which begins with what it inherits. An error only when the user asked to stop,
    /// or something could not be read for a reason that is no verdict on the restore point: what was found before is in `damage` all the same.
    pub(super) fn prove(&mut self, kept: &Kept, deep: bool, damage: &mut Vec<Damage>) -> Result<()> {
        for file in &kept.manifest.files {
            let path = kept.dir.join(&file.name);
            let mut disks = kept.manifest.point.disks.iter();
            let disk = disks.find(|disk| disk.image == file.name);
            let of_disk = |found: Damage| match disk {
                Some(disk) => found.of_disk(&disk.target),
                None => found,
            };
            // Each is there as soon as it is found: whatever is looked at next may be stopped.
            let before = damage.len();
            damage.extend(self.prove_file(&path, file)?.map(of_disk));
            let Some(disk) = disk else { continue };
            if damage.len() > before {
                if !has_length(&path, file.size) {
                    continue;
                }
                // Of an image that is not what was written, pieces and structure may still tell where.
                let places = self.locate(&path, file)?;
                damage[before].offset = places.first().and_then(|place| place.offset);
                damage.extend(places.into_iter().map(of_disk));
            }
            damage.extend(self.prove_image(&path, disk)?.into_iter().map(of_disk));
        }
        if let Some((path, file)) = checkpoint_file(kept) {
            damage.extend(self.prove_file(&path, file)?);
        }
        for disk in &kept.manifest.point.disks {
            let (id, target) = (&kept.manifest.point.id, disk.target.as_str());
            let is_damaged = damage.iter().any(|damage| damage.disk.as_deref() == Some(target));
            match self.history.chains.lineage(id, target) {
                // Its own files are told above, those of its parents with the parents.
                _ if is_damaged => {}
                Err(fault) => {
                    let what = format!("disk {target} of {id} cannot be given back: {fault}");
                    damage.push(Damage::told(what).of_disk(target));
                }
                Ok(_) if deep => damage.extend(self.prove_disk(id, disk)?),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Length and digest.
    fn prove_file(&mut self, path: &Path, entry: &FileEntry) -> Result<Option<Damage>> {
        let name = self.name_of(path);
        let domain = self.domain;
        let (file, size) = (name.as_str(), entry.size);
        self.monitor.event(Event::FileBegins { domain, file, size });
        let recorded = Recorded {
            bytes: entry.size,
            blake3: entry.blake3.clone(),
        };
        let mut read = 0;
        let mut progress = |position| {
            read = position;
            self.monitor.event(Event::FileAt {
                domain,
                file,
                position,
            });
        };
        let proved =
            open_file(path).and_then(|file| verify_file(file, path, &recorded, self.stop, &mut progress));
        self.bytes += read;
        self.monitor.event(Event::FileEnds { domain, file });
        match proved {
            Ok(()) => Ok(None),
            Err(error) => self.damage(path, error).map(Some),
        }
    }

    /// Where a file is not what was written.
    fn locate(&self, path: &Path, entry: &FileEntry) -> Result<Vec<Damage>> {
        let Some(pieces) = entry.pieces() else {
            return Ok(Vec::new());
        };
        let ranges =
            open_file(path).and_then(|file| damaged_ranges(&file, path, &pieces, MOST_RANGES, self.stop));
        match ranges {
            Ok(ranges) => Ok(ranges
                .into_iter()
                .map(|range| damaged_range(path, &range))
                .collect()),
            Err(error) => self.damage(path, error).map(|damage| vec![damage]),
        }
    }

    /// The structure of an image, and that it says of itself what the manifest says.
    fn prove_image(&self, path: &Path, disk: &DiskPoint) -> Result<Vec<Damage>> {
        let image = match open_file(path).and_then(|file| Image::open(file, path)) {
            Ok(image) => image,
            Err(error) => return self.damage(path, error).map(|damage| vec![damage]),
        };
        let faults = match check(&image, self.stop) {
            Ok(faults) => faults,
            Err(error) => return self.damage(path, error).map(|damage| vec![damage]),
        };
        let of_structure = faults.into_iter().map(|fault| Damage {
            path: Some(path.to_owned()),
            offset: Some(fault.offset),
            ..Damage::told(format!(
                "{}: at offset {}: {}",
                path.display(),
                fault.offset,
                fault.what
            ))
        });
        let mut damage: Vec<Damage> = of_structure.collect();
        let mut disagree = |what: String| {
            damage.push(Damage {
                path: Some(path.to_owned()),
                ..Damage::told(format!("{}: {what}", path.display()))
            });
        };
        if image.size() != disk.virtual_size {
            disagree(format!(
                "it is an image of {} bytes, the manifest says {}",
                image.size(),
                disk.virtual_size
            ));
        }
        let expected = disk
            .parent
            .as_ref()
            .and_then(|parent| self.backing_of(parent, &disk.target));
        if disk.parent.is_some() == expected.is_some() && image.backing_name() != expected.as_deref() {
            disagree(format!(
                "its backing file is {}, by the manifests it is {}",
                image.backing_name().unwrap_or("none"),
                expected.as_deref().unwrap_or("none")
            ));
        }
        Ok(damage)
    }

    /// The name by which an image names that of its parent.
    fn backing_of(&self, parent: &str, target: &str) -> Option<String> {
        let point = &self.history.chains.get(parent)?.point;
        let image = &point.disk(target)?.image;
        Some(format!("../{}/{image}", point.folder()))
    }

    /// Reads a disk from end to end, as a restore would.
    fn prove_disk(&mut self, id: &str, disk: &DiskPoint) -> Result<Option<Damage>> {
        let target = &disk.target;
        let name = format!("disk {target} of {id}");
        let domain = self.domain;
        let (file, size) = (name.as_str(), disk.virtual_size);
        self.monitor.event(Event::FileBegins { domain, file, size });
        let read = self.read_disk(id, disk, |position| {
            self.monitor.event(Event::FileAt {
                domain,
                file,
                position,
            });
        });
        self.monitor.event(Event::FileEnds { domain, file });
        match read {
            Ok(bytes) => {
                self.bytes += bytes;
                Ok(None)
            }
            Err(Cause::Copy(error)) if error.kind == BlockErrorKind::Stopped => Err(self.stopped()),
            Err(cause) if cause.is_no_verdict() => Err(Error::of_disk(domain, target, cause)),
            Err(cause) => {
                let what = format!("{name} cannot be given back: {}", with_sources(&cause));
                Ok(Some(Damage::told(what).of_disk(target)))
            }
        }
    }

    fn read_disk(
        &self,
        id: &str,
        disk: &DiskPoint,
        mut progress: impl FnMut(u64),
    ) -> std::result::Result<u64, Cause> {
        let images = lineage::open_at(self.history, id, &disk.target)?;
        images.iter().for_each(ChainImage::forget_cached);
        let mut source = ChainSource::open(images, copy::pool(), self.stop.clone())
            .map_err(|error| Cause::Copy(error.into()))?;
        let mut bytes = 0;
        while let Some(block) = source.next_block().map_err(Cause::Copy)? {
            if matches!(block.content, Content::Data(_)) {
                bytes += block.length();
            }
            progress(block.offset + block.length());
        }
        Ok(bytes)
    }

    fn damage(&self, path: &Path, error: image::Error) -> Result<Damage> {
        if matches!(error, image::Error::Stopped) {
            return Err(self.stopped());
        }
        let offset = match &error {
            image::Error::Io { offset, .. }
            | image::Error::Truncated { offset, .. }
            | image::Error::Format { offset, .. } => Some(*offset),
            _ => None,
        };
        let cause = Cause::Copy(error.into());
        if cause.is_no_verdict() {
            return Err(Error::of(self.domain, cause));
        }
        Ok(Damage {
            path: Some(path.to_owned()),
            offset,
            ..Damage::told(with_sources(&cause))
        })
    }

    fn stopped(&self) -> Error {
        Error::of(
            self.domain,
            Cause::Stopped(self.stop.reason().unwrap_or(StopReason::Interrupted)),
        )
    }

    /// The file's path within the domain's folder.
    fn name_of(&self, path: &Path) -> String {
        let within = path.strip_prefix(self.repository.dir()).unwrap_or(path);
        within.display().to_string()
    }
}

/// Opens a file that has to be one: what a link leads to is no part of the repository, and a pipe would be waited for.
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

fn damaged_range(path: &Path, range: &Range<u64>) -> Damage {
    Damage {
        path: Some(path.to_owned()),
        offset: Some(range.start),
        ..Damage::told(format!(
            "{}: it differs somewhere in the {} bytes from offset {} on",
            path.display(),
            range.end - range.start,
            range.start
        ))
    }
}

/// Whether the checkpoint's XML of a restore point is there, as far as names and lengths tell.
pub(super) fn has_checkpoint(kept: &Kept) -> bool {
    checkpoint_file(kept).is_none_or(|(path, file)| has_length(&path, file.size))
}

fn checkpoint_file(kept: &Kept) -> Option<(PathBuf, &FileEntry)> {
    let file = kept.manifest.checkpoint_file.as_ref()?;
    let period = kept.dir.parent()?;
    Some((period.join(layout::CHECKPOINTS).join(&file.name), file))
}

/// Whether the file there has so many bytes.
fn has_length(path: &Path, bytes: u64) -> bool {
    path.symlink_metadata()
        .is_ok_and(|found| found.is_file() && found.len() == bytes)
}
