//! Continues an image, for a merge: the cost is that of the newer images.
//!
//! Everything new is appended to a file with the name of the new image ([`layout::merged_image`]).
//! This file is a clone of the old file where the file system can make clones (a reflink).
//! Elsewhere it is the old file itself, under a second name. In that case a note beside the old
//! name ([`layout::continued`]) says that the file may be longer than its manifest says: readers of
//! the old image stop where it ended.
//!
//! The changes that turn the file into the new image go to a file of their own ([`super::patch`]),
//! and readers of the new image apply them. They are made in the file itself once nobody reads the
//! old image ([`replace_header`], [`free_ranges`]).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock};

use super::look::{entries, folder_names, read_bounded};
use super::pending::remove_if_there;
use super::{layout, patch};
use crate::image::chain::ChainImage;
use crate::image::qcow2::Base;
use crate::io::Store;
use crate::model::block::{BlockError, CLUSTER, ImageFile, Patch};
use crate::model::buffer::Buffer;
use crate::model::period::holds_restore_points;
use crate::repo::manifest::{self, Manifest};
use crate::repo::{FileEntry, RepoError, Result};

/// The longest note that is read, in bytes.
const MAX_NOTE: u64 = 4096;
/// Bytes of zeroes that are written at once where ranges cannot be freed.
const ZEROES: usize = 1 << 20;

/// The image of a merge that continues an older one.
pub(super) struct Continuation<'a> {
    pub(super) store: &'a dyn Store,
    /// The domain's folder.
    pub(super) domain_dir: &'a Path,
    /// The folder of the restore point that stays.
    pub(super) dir: &'a Path,
    /// The name of the image of the restore point that stays.
    pub(super) image: &'a str,
    /// The number of the merge.
    pub(super) number: usize,
}

/// An image that is being continued.
pub(super) struct Begun {
    pub(super) base: Base,
    /// The file that the new image is appended to.
    pub(super) file: Box<dyn ImageFile>,
    /// How many names this file has.
    pub(super) links: u64,
}

impl Continuation<'_> {
    /// Prepares to continue this image, and opens its file for writing. `stored` is the number of
    /// bytes of data and of zeroes in the image. Returns `None`, and changes nothing, if the image
    /// cannot be continued.
    pub(super) fn begin(&self, base: ChainImage, stored: (u64, u64)) -> Result<Option<Begun>> {
        let path = base.path.clone();
        let found = path.symlink_metadata().map_err(RepoError::io("examine", &path))?;
        if !found.is_file() {
            return Ok(None);
        }
        let ChainImage { file, recorded, .. } = base;
        let Some(recorded) = recorded else {
            return Ok(None);
        };
        let base_bytes = recorded.bytes;
        let base = Base::open(file, path.clone(), recorded, stored).map_err(BlockError::from)?;
        let Some(base) = base else {
            return Ok(None);
        };
        if let Some(file) = self.clone_of(&path, base_bytes)? {
            return Ok(Some(Begun { base, file, links: 1 }));
        }
        // Another name of the file would show the changes: a copy made of links must stay as it is.
        if found.nlink() != 1 {
            return Ok(None);
        }
        // An interrupted merge may have left bytes after the old image.
        if found.len() > base_bytes {
            shorten(self.store, &path, base_bytes)?;
        }
        let file = self.second_name_of(&path)?;
        Ok(file.map(|file| Begun { base, file, links: 2 }))
    }

    /// Clones the old image, which has this many bytes. `None` if the file system cannot clone, or
    /// has no space for the clone.
    fn clone_of(&self, path: &Path, bytes: u64) -> Result<Option<Box<dyn ImageFile>>> {
        let merged = self.merged();
        let cloned = self.store.clone_image(path, &merged);
        match cloned.and_then(|clone| prepared(clone, &merged, path, bytes)) {
            Ok(file) => Ok(Some(file)),
            Err(error) => {
                remove_if_there(self.store, &merged, "remove")?;
                match is_unsupported(&error) || is_no_space(&error) {
                    true => Ok(None),
                    false => Err(RepoError::io("clone", path)(error)),
                }
            }
        }
    }

    /// Gives the old file its second name. `None` if the file system cannot do so.
    fn second_name_of(&self, path: &Path) -> Result<Option<Box<dyn ImageFile>>> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        let note = dir.join(layout::continued(&name.to_string_lossy()));
        remove_if_there(self.store, &note, "replace")?;
        self.store
            .create_file(&note, self.note().as_bytes())
            .map_err(RepoError::io("write", &note))?;
        self.store.sync_dir(dir).map_err(RepoError::io("sync", dir))?;
        let merged = self.merged();
        if let Err(error) = self.store.link(path, &merged) {
            remove_if_there(self.store, &note, "remove")?;
            return match is_unsupported(&error) {
                true => Ok(None),
                false => Err(RepoError::io("give a second name to", path)(error)),
            };
        }
        let file = self.store.continue_image(&merged);
        Ok(Some(file.map_err(RepoError::io("open", &merged))?))
    }

    fn merged(&self) -> PathBuf {
        self.dir.join(layout::merged_image(self.image, self.number))
    }

    /// Records the changes that are still to be made in the file, before the commit. `links` is the
    /// number of names that the file must still have, because the changes would be visible through
    /// any further name.
    pub(super) fn keep(&self, changes: &Patch, links: u64) -> Result<()> {
        let merged = self.merged();
        let found = merged
            .symlink_metadata()
            .map_err(RepoError::io("examine", &merged))?;
        if found.nlink() != links {
            let error =
                io::Error::other("the file was given another name (hard link) during the merge; run again");
            return Err(RepoError::io("merge into", &merged)(error));
        }
        let path = patch::path_of(&merged);
        let content = patch::encode(changes);
        if content.len() as u64 > patch::MAX_BYTES {
            let error = io::Error::from(io::ErrorKind::FileTooLarge);
            return Err(RepoError::io("write", &path)(error));
        }
        let written = self.store.create_file(&path, &content);
        written.map_err(RepoError::io("write", &path))
    }

    /// The note names the restore point that stays, and the merge.
    fn note(&self) -> String {
        note_of(self.domain_dir, self.dir, self.number)
    }
}

/// Gives the clone at `merged` the length of the old image.
///
/// The first cluster of the clone is written once more, so that this cluster is no longer shared:
/// the new header has to replace it after the commit, without new space if possible.
fn prepared(
    mut clone: Box<dyn ImageFile>,
    merged: &Path,
    old: &Path,
    bytes: u64,
) -> io::Result<Box<dyn ImageFile>> {
    // Linux before 6.13 reports success if XFS has run out of space or quota within the file. Then
    // the end is missing.
    if merged.symlink_metadata()?.len() < bytes {
        return Err(io::ErrorKind::Unsupported.into());
    }
    clone.set_len(bytes)?;
    let mut header = Buffer::alone(CLUSTER as usize);
    File::open(old)?.read_exact_at(&mut header, 0)?;
    clone.write_at(&header, 0)?;
    Ok(clone)
}

fn note_of(domain_dir: &Path, dir: &Path, number: usize) -> String {
    let key = dir.strip_prefix(domain_dir).unwrap_or(dir);
    format!("{}\n{number}\n", key.display())
}

/// File systems that can free ranges of files, as a rule (statfs(2)): ext4, XFS, Btrfs, F2FS, tmpfs
/// and bcachefs, and overlays, which pass it on.
const FREEING: [u64; 7] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0x0102_1994,
    0xca45_1a4e,
    0x794c_7630,
];

/// Whether a merge in this folder can probably continue images. Only the merge itself finds out for
/// certain.
pub(super) fn can_continue(dir: &Path) -> bool {
    let kind = rustix::fs::statfs(dir).map(|found| found.f_type as u64);
    kind.is_ok_and(|kind| FREEING.contains(&(kind & 0xffff_ffff)))
}

/// Whether this file system can free ranges of files. `path` is a file in it.
pub(super) fn can_free(store: &dyn Store, path: &Path) -> bool {
    // Beyond the end of the file, so that nothing changes.
    let beyond = 16 * CLUSTER..17 * CLUSTER;
    let file = store.continue_image(path);
    file.and_then(|mut file| file.free(beyond)).is_ok()
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn is_unsupported(error: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::Unsupported,
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::CrossesDevices,
        io::ErrorKind::TooManyLinks,
        io::ErrorKind::InvalidInput,
    ];
    kinds.contains(&error.kind())
}

/// Shortens the files that uncommitted merges into the restore point in `dir` have continued. Such
/// merges have a number above `merges`. Returns false if the old length of a file, or the merge
/// that continued it, is not known.
pub(super) fn take_back(store: &dyn Store, domain_dir: &Path, dir: &Path, merges: usize) -> Result<bool> {
    for period in folder_names(domain_dir)? {
        if !holds_restore_points(&period) {
            continue;
        }
        let period_dir = domain_dir.join(&period);
        for folder in folder_names(&period_dir)? {
            if layout::split_finished(&folder).is_none() {
                continue;
            }
            let base_dir = period_dir.join(&folder);
            for (name, _) in entries(&base_dir)? {
                let Some(image) = layout::image_continued(&name) else {
                    continue;
                };
                let note = base_dir.join(&name);
                let taken_back = match note_at(&note, domain_dir, dir, merges)? {
                    Noted::Uncommitted => cut(store, &base_dir, image)?,
                    // It was not durable when the power failed, so nothing was appended; or it is
                    // damaged, and may be of any merge.
                    Noted::Unknown => has_old_length(&base_dir, image),
                    Noted::Other => continue,
                };
                if !taken_back {
                    return Ok(false);
                }
                remove_if_there(store, &note, "remove")?;
            }
        }
    }
    Ok(true)
}

/// The merge that a note is of.
enum Noted {
    /// An uncommitted merge into the restore point in question.
    Uncommitted,
    /// Another merge.
    Other,
    /// The note does not say.
    Unknown,
}

fn note_at(note: &Path, domain_dir: &Path, dir: &Path, merges: usize) -> Result<Noted> {
    let text = match read_bounded(note, MAX_NOTE) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Noted::Other),
        Err(error) => return Err(RepoError::io("read", note)(error)),
    };
    let number = text.lines().last().and_then(|number| number.parse().ok());
    Ok(match number {
        Some(number) if number > merges && text == note_of(domain_dir, dir, number) => Noted::Uncommitted,
        Some(_) if text.ends_with('\n') => Noted::Other,
        _ => Noted::Unknown,
    })
}

/// The length of an image in the manifest of its folder.
fn old_length(dir: &Path, image: &str) -> Option<u64> {
    let text = read_bounded(&dir.join(layout::MANIFEST), manifest::MAX_BYTES).ok()?;
    Some(Manifest::parse(&text).ok()?.file(image)?.size)
}

fn has_old_length(dir: &Path, image: &str) -> bool {
    let found = dir.join(image).symlink_metadata();
    found.is_ok_and(|found| Some(found.len()) == old_length(dir, image))
}

/// Gives an image the length in its manifest. Returns false if the manifest cannot be used.
fn cut(store: &dyn Store, dir: &Path, image: &str) -> Result<bool> {
    let Some(size) = old_length(dir, image) else {
        return Ok(false);
    };
    let path = dir.join(image);
    match path.symlink_metadata() {
        Ok(found) if found.is_file() && found.len() > size => shorten(store, &path, size).map(|()| true),
        _ => Ok(true),
    }
}

fn shorten(store: &dyn Store, path: &Path, size: u64) -> Result<()> {
    let file = store.continue_image(path);
    let cut = file.and_then(|mut file| file.set_len(size).and_then(|()| file.sync()));
    cut.map_err(RepoError::io("shorten", path))
}

/// Puts the new header into the image of a committed merge, unless the image has it already. From
/// then on no reader uses the ranges that become free. Returns false if the header cannot be
/// replaced now, because a process reads the image, or the changes cannot be read or made.
///
/// vmsnap's readers are excluded by the caller. QEMU's programs lock the images that they read.
pub(super) fn replace_header(store: &dyn Store, merged: &Path, entry: &FileEntry) -> bool {
    let changes = match patch::read(merged, entry) {
        Ok(Some(changes)) => changes,
        Ok(None) => return true,
        Err(_) => return false,
    };
    let Some(_alone) = lock_out_programs(merged) else {
        return false;
    };
    let mut header = Buffer::alone(changes.header.len());
    header.copy_from_slice(&changes.header);
    let replaced = store.continue_image(merged).and_then(|mut file| {
        file.write_at(&header, 0)?;
        file.sync()
    });
    replaced.is_ok()
}

/// Locks an image against QEMU's programs, which lock some of its bytes while they use it; `None`
/// if such a program uses the image now.
fn lock_out_programs(image: &Path) -> Option<File> {
    let file = File::options().read(true).write(true).open(image).ok()?;
    let locked = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    locked.is_ok().then_some(file)
}

/// Frees the ranges that the new image no longer uses. Other processes may read the image
/// meanwhile, because it has its new header. Returns false if freeing fails.
pub(super) fn free_ranges(store: &dyn Store, merged: &Path, entry: &FileEntry) -> bool {
    let changes = match patch::read(merged, entry) {
        Ok(Some(changes)) => changes,
        Ok(None) => return true,
        Err(_) => return false,
    };
    let freed = store.continue_image(merged).and_then(|mut file| {
        for range in &changes.freed {
            match file.free(range.clone()) {
                Err(error) if is_unsupported(&error) => write_zeroes(file.as_mut(), range)?,
                freed => freed?,
            }
        }
        file.sync()
    });
    freed.is_ok()
}

/// For a repository that was moved to a file system that cannot free ranges.
fn write_zeroes(file: &mut dyn ImageFile, range: &Range<u64>) -> io::Result<()> {
    let mut zeroes = Buffer::alone(ZEROES);
    zeroes.fill(0);
    let mut at = range.start;
    while at < range.end {
        let length = (range.end - at).min(ZEROES as u64);
        file.write_at(&zeroes[..usize::try_from(length).unwrap_or(0)], at)?;
        at += length;
    }
    Ok(())
}
