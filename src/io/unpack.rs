//! Writes files that come from a guest: a single one, or a folder out of a tar stream.
//!
//! Names, links and their order are hostile. Every entry is created in a folder that is open, by a
//! name without slashes, and no link is ever followed. So nothing outside of the new folder is
//! created or changed. Links are kept as they are, also those that lead out.
//!
//! Not kept: the bits for set-user-ID, set-group-ID and sticky, because the guest's users are not
//! trusted on the host; extended attributes; and devices, pipes and sockets, which are left out.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};
use rustix::fs::{fchmod, futimens, linkat, mkdirat, openat, symlinkat, utimensat};
use rustix::process::{Gid, Uid};
use tar::EntryType;

use crate::model::text::shown;

/// How deep folders may lie in each other. Each one on the way is open.
const DEEPEST: usize = 400;

/// How many bytes the description of one entry may have: long names, and what a tar stream has
/// besides files.
const DESCRIPTION: u64 = 256 << 10;

/// The number of entries that are named when they are left out.
const NAMED: usize = 10;

/// The size of the pieces in which content is copied, in bytes.
const PIECE: usize = 128 << 10;

/// The attributes of a written file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes {
    /// Permissions, of which 9 bits are used.
    pub mode: u32,
    /// The ids of user and group; `None` leaves those of the process that writes.
    pub owner: Option<(u32, u32)>,
    /// When it was last modified, in seconds since 1970.
    pub modified: i64,
}

/// The result of writing files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// The number of files, folders and links.
    pub entries: u64,
    /// The size of all files, in bytes.
    pub bytes: u64,
    /// The number of devices, pipes and sockets, which were left out.
    pub left_out: u64,
    /// The paths of the first entries that were left out.
    pub named: Vec<String>,
}

/// Writes a new file, and returns its length in bytes.
///
/// # Errors
/// The file exists already, or `content` cannot be read or written.
pub(crate) fn write_file(content: &mut dyn Read, path: &Path, attributes: &Attributes) -> io::Result<u64> {
    let file = create(CWD, path.as_os_str())?;
    let length = fill(content, &file)?;
    finish(file.as_fd(), attributes)?;
    Ok(length)
}

/// Writes the content of a tar stream into a new folder, with the owners in the stream if `owners`
/// is set.
///
/// # Errors
/// The folder exists, the stream is invalid, or something cannot be written.
pub(crate) fn unpack(stream: &mut dyn Read, folder: &Path, owners: bool) -> io::Result<Unpacked> {
    mkdirat(CWD, folder, Mode::RWXU)?;
    let mut tree = Tree {
        folders: vec![Folder {
            name: OsString::new(),
            opened: open_folder(CWD, folder.as_os_str())?,
            attributes: None,
        }],
    };
    let allowed = Rc::new(Cell::new(DESCRIPTION));
    let gauge = Gauge {
        stream,
        allowed: Rc::clone(&allowed),
    };
    let mut archive = tar::Archive::new(gauge);
    let mut unpacked = Unpacked::default();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = components(&entry.path_bytes())?;
        allowed.set(u64::MAX);
        let added = tree.add(&mut entry, &path, owners, &mut unpacked);
        added.map_err(|error| at(&path, &error))?;
        // What it did not read belongs to an entry that is left out.
        io::copy(&mut entry, &mut io::sink())?;
        allowed.set(DESCRIPTION);
    }
    tree.leave(0)?;
    Ok(unpacked)
}

/// The error, with the path of its entry.
fn at(path: &[OsString], error: &io::Error) -> io::Error {
    let path: PathBuf = path.iter().collect();
    io::Error::new(
        error.kind(),
        format!("{}: {error}", shown(&path.to_string_lossy())),
    )
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A stream of which at most `allowed` bytes may be read, so that a description of an entry cannot
/// fill the memory.
struct Gauge<'s> {
    stream: &'s mut dyn Read,
    allowed: Rc<Cell<u64>>,
}

impl Read for Gauge<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowed.get();
        if allowed == 0 {
            return Err(invalid("the description of a file is too long"));
        }
        let most = usize::try_from(allowed).unwrap_or(usize::MAX).min(out.len());
        let length = self.stream.read(&mut out[..most])?;
        self.allowed.set(allowed.saturating_sub(length as u64));
        Ok(length)
    }
}

/// The names on the way to an entry; none for the folder itself.
fn components(path: &[u8]) -> io::Result<Vec<OsString>> {
    let path: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(path);
    let path = Path::new(path);
    let names = path.components().filter_map(|component| match component {
        Component::CurDir => None,
        Component::Normal(name) => Some(Ok(name.to_owned())),
        _ => Some(Err(invalid("a name leads out of the folder"))),
    });
    let names: Vec<OsString> = names.collect::<io::Result<_>>()?;
    match names.len() > DEEPEST {
        true => Err(invalid("the folders are nested too deeply")),
        false => Ok(names),
    }
}

/// A folder that is being filled.
struct Folder {
    name: OsString,
    opened: OwnedFd,
    /// What it gets when it is left; before that, its owner has to be able to write to it.
    attributes: Option<Attributes>,
}

/// The folders from the new one to the one that is being filled.
struct Tree {
    folders: Vec<Folder>,
}

impl Tree {
    fn add<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        path: &[OsString],
        owners: bool,
        unpacked: &mut Unpacked,
    ) -> io::Result<()> {
        let attributes = attributes(entry.header(), owners)?;
        let kind = entry.header().entry_type();
        let Some((name, above)) = path.split_last() else {
            return self.describe_root(kind, attributes);
        };
        self.enter(above)?;
        let folder = self.current();
        match kind {
            EntryType::Directory => {
                mkdirat(folder, name, Mode::RWXU)?;
                self.push(name, Some(attributes))?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let file = create(folder, name)?;
                unpacked.bytes += fill(entry, &file)?;
                finish(file.as_fd(), &attributes)?;
            }
            EntryType::Symlink => {
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| invalid("a link without a target"))?;
                symlinkat(&*target, folder, name)?;
                finish_link(folder, name, &attributes)?;
            }
            EntryType::Link => {
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| invalid("a link without a target"))?;
                self.link(&components(&target)?, name)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                unpacked.left_out += 1;
                if unpacked.named.len() < NAMED {
                    let path: PathBuf = path.iter().collect();
                    unpacked.named.push(path.to_string_lossy().into_owned());
                }
                return Ok(());
            }
            other => {
                return Err(invalid(&format!(
                    "the stream has an entry of the unknown type {other:?}"
                )));
            }
        }
        unpacked.entries += 1;
        Ok(())
    }

    /// Takes the attributes of the new folder itself.
    fn describe_root(&mut self, kind: EntryType, attributes: Attributes) -> io::Result<()> {
        match (kind, self.folders.first_mut()) {
            (EntryType::Directory, Some(root)) => {
                root.attributes = Some(attributes);
                Ok(())
            }
            _ => Err(invalid("an entry without a name")),
        }
    }

    fn current(&self) -> BorrowedFd<'_> {
        self.folders[self.folders.len() - 1].opened.as_fd()
    }

    /// Goes to a folder that exists, and leaves those that are not on the way.
    fn enter(&mut self, names: &[OsString]) -> io::Result<()> {
        let there = self.folders[1..].iter().zip(names);
        let common = there.take_while(|(folder, name)| folder.name == **name).count();
        self.leave(common + 1)?;
        for name in &names[common..] {
            self.push(name, None)?;
        }
        Ok(())
    }

    /// Opens a folder in the current one.
    fn push(&mut self, name: &OsStr, attributes: Option<Attributes>) -> io::Result<()> {
        let opened = open_folder(self.current(), name)?;
        self.folders.push(Folder {
            name: name.to_owned(),
            opened,
            attributes,
        });
        Ok(())
    }

    /// Leaves the innermost folders until `depth` are left, and gives each its attributes.
    fn leave(&mut self, depth: usize) -> io::Result<()> {
        while self.folders.len() > depth {
            let Some(folder) = self.folders.pop() else { break };
            if let Some(mut attributes) = folder.attributes {
                if attributes.owner.is_none() {
                    // So that its owner can remove it.
                    attributes.mode |= 0o700;
                }
                finish(folder.opened.as_fd(), &attributes)?;
            }
        }
        Ok(())
    }

    /// Gives a file that was written before a second name in the current folder.
    fn link(&self, target: &[OsString], name: &OsStr) -> io::Result<()> {
        let (last, above) = target
            .split_last()
            .ok_or_else(|| invalid("a link to the folder itself"))?;
        let mut opened: Option<OwnedFd> = None;
        for folder in above {
            let from = opened
                .as_ref()
                .map_or(self.folders[0].opened.as_fd(), AsFd::as_fd);
            opened = Some(open_folder(from, folder)?);
        }
        let from = opened
            .as_ref()
            .map_or(self.folders[0].opened.as_fd(), AsFd::as_fd);
        // Without flags, a link is not followed.
        Ok(linkat(from, last, self.current(), name, AtFlags::empty())?)
    }
}

/// Opens a folder. A link to one is an error.
fn open_folder(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Creates a file that only this user can read.
fn create(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(File::from(file))
}

/// Copies content into a new file. Zeroes become holes.
fn fill(content: &mut dyn Read, mut file: &File) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut length = 0;
    loop {
        let read = match content.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match piece[..read].iter().all(|byte| *byte == 0) {
            true => file.seek(SeekFrom::Current(read as i64)).map(drop)?,
            false => file.write_all(&piece[..read])?,
        }
        length += read as u64;
    }
    file.set_len(length)?;
    Ok(length)
}

fn attributes(header: &tar::Header, owners: bool) -> io::Result<Attributes> {
    let number = |number: io::Result<u64>| {
        u32::try_from(number?).map_err(|_| invalid("the number of a user or group is too large"))
    };
    let owner = match owners {
        true => Some((number(header.uid())?, number(header.gid())?)),
        false => None,
    };
    // A time before 1970 has all of its bits set.
    let modified = header.mtime()?.cast_signed();
    Ok(Attributes {
        mode: header.mode()?,
        owner,
        modified,
    })
}

fn ids((user, group): (u32, u32)) -> io::Result<(Option<Uid>, Option<Gid>)> {
    // The largest number means "unchanged" to the kernel.
    match user == u32::MAX || group == u32::MAX {
        true => Err(invalid("the number of a user or group is too large")),
        false => Ok((Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))),
    }
}

fn times(modified: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: modified,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Gives a file or folder its owner, permissions and time, in this order: a change of the owner
/// can take permissions away.
fn finish(file: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<()> {
    if let Some(owner) = attributes.owner {
        let (user, group) = ids(owner)?;
        rustix::fs::fchown(file, user, group)?;
    }
    fchmod(file, Mode::from_raw_mode(attributes.mode & 0o777))?;
    Ok(futimens(file, &times(attributes.modified))?)
}

fn finish_link(folder: BorrowedFd<'_>, name: &OsStr, attributes: &Attributes) -> io::Result<()> {
    if let Some(owner) = attributes.owner {
        let (user, group) = ids(owner)?;
        rustix::fs::chownat(folder, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    let times = times(attributes.modified);
    Ok(utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests;
