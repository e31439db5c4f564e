//! Lists and copies the files of a guest whose file systems are mounted.

use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{CopiedFile, Done, FileEntry, FilesAction, Session};
use crate::host::guestfish::{FileFacts, FileKind};
use crate::io::{Attributes, Store, Unpacked, unpack, write_file};
use crate::model::files_fault::FilesFault;
use crate::model::finding::Finding;
use crate::model::text::shown;
use crate::ops::{Cause, Error, Result};

/// The names of a folder are kept in memory: at most this many bytes.
const MOST_NAMES: u64 = 64 << 20;

/// Checks the paths, before anything is started.
///
/// # Errors
/// A path is not absolute, or two files would get the same name.
pub(super) fn check(domain: &str, action: &FilesAction) -> Result<()> {
    let usage = |what: String| Err(Error::of(domain, Cause::Usage(what)));
    let paths: Vec<&OsString> = match action {
        FilesAction::Devices => Vec::new(),
        FilesAction::List(path) | FilesAction::Archive(path) => vec![path],
        FilesAction::Print(paths) | FilesAction::Copy { paths, .. } => paths.iter().collect(),
    };
    if let Some(path) = paths.iter().find(|path| !path.as_bytes().starts_with(b"/")) {
        return usage(format!(
            "'{}' is not an absolute path: give the path in the guest, from its root, such as /etc/fstab",
            lossy(path)
        ));
    }
    let FilesAction::Copy { dir, .. } = action else {
        return Ok(());
    };
    for (place, path) in paths.iter().enumerate() {
        let Some(name) = Path::new(path).file_name() else {
            return usage(format!(
                "'{}' has no name that its copy could have: name the files in it, or use tar",
                lossy(path)
            ));
        };
        if paths[..place]
            .iter()
            .any(|other| Path::new(other).file_name() == Some(name))
        {
            return usage(format!(
                "the copies of two of the paths would both be named '{}'",
                lossy(name)
            ));
        }
        let to = dir.join(name);
        if to.symlink_metadata().is_ok() {
            return Err(Error::of(domain, Cause::Exists(to)));
        }
    }
    Ok(())
}

/// Lists or copies the files, as `action` requests.
///
/// # Errors
/// A file is missing, of the wrong kind, or cannot be read or written.
pub(super) fn run(
    session: &mut Session<'_>,
    action: &FilesAction,
    store: &dyn Store,
    notes: &mut Vec<Finding>,
    out: &mut dyn Write,
) -> Result<Done> {
    match action {
        // It needs no mounted file systems.
        FilesAction::Devices => Ok(Done::Written),
        FilesAction::List(path) => Ok(Done::Listed(list(session, path)?)),
        FilesAction::Print(paths) => {
            for path in paths {
                print(session, path, out)?;
            }
            Ok(Done::Written)
        }
        FilesAction::Archive(path) => {
            archive(session, path, out)?;
            Ok(Done::Written)
        }
        FilesAction::Copy { paths, dir } => {
            if let Err(error) = store.create_open_dir(dir)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(session.io("create", dir, error));
            }
            let copies = paths.iter().map(|path| copy(session, path, dir, store, notes));
            Ok(Done::Copied(copies.collect::<Result<_>>()?))
        }
    }
}

/// A file in the guest, with all links on the way to it resolved.
struct Found {
    path: Vec<u8>,
    facts: FileFacts,
}

impl Session<'_> {
    fn io(&self, operation: &'static str, path: &Path, source: io::Error) -> Error {
        let path = path.to_owned();
        Error::of(
            self.domain,
            Cause::Io {
                operation,
                path,
                source,
            },
        )
    }

    /// Finds a file. A link is followed by the guest's own rules: absolute targets begin at the
    /// guest's root.
    fn find(&mut self, path: &OsStr) -> Result<Found> {
        if self.ask(&[b"exists", path.as_bytes()])? != b"true" {
            return Err(self.fault(FilesFault::NoSuchFile(lossy(path))));
        }
        let resolved = self.ask(&[b"realpath", path.as_bytes()])?;
        if !resolved.starts_with(b"/") {
            return Err(self.fault(FilesFault::Answer { command: "realpath" }));
        }
        let facts = self.facts(std::slice::from_ref(&resolved))?;
        let Some(facts) = facts.first().copied() else {
            return Err(self.fault(FilesFault::Answer { command: "lstatns" }));
        };
        Ok(Found {
            path: resolved,
            facts,
        })
    }

    /// The facts about files, in their order.
    fn facts(&mut self, paths: &[Vec<u8>]) -> Result<Vec<FileFacts>> {
        let answer = self.fish.ask_for_each("lstatns", paths);
        let answer = answer.map_err(|error| self.failed(error))?;
        let facts = FileFacts::list(&answer).filter(|facts| facts.len() == paths.len());
        facts.ok_or_else(|| self.fault(FilesFault::Answer { command: "lstatns" }))
    }

    /// Refuses a path whose files are on a file system that is not mounted. With `below`, also if
    /// only a part of them is.
    fn refuse_not_mounted(&self, path: &[u8], below: bool) -> Result<()> {
        let path = Path::new(OsStr::from_bytes(path));
        let missing = self.not_mounted.iter().find(|mount| {
            let place = Path::new(&mount.path);
            path.starts_with(place) || (below && place.starts_with(path))
        });
        match missing {
            None => Ok(()),
            Some(mount) => Err(self.fault(FilesFault::NotMounted {
                path: lossy(path.as_os_str()),
                device: shown(&mount.device),
                mount_point: lossy(&mount.path),
            })),
        }
    }

    /// Runs a command that writes to the pipe. A failure of `read` concerns `path` on the host.
    fn receive<T>(
        &mut self,
        command: &[&[u8]],
        more: &[&[u8]],
        read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
        failed: (&'static str, &Path),
    ) -> Result<T> {
        let received = self.fish.receive(command, more, read);
        let received = received.map_err(|error| self.failed(error))?;
        received.map_err(|error| self.io(failed.0, failed.1, error))
    }

    /// Checks that a file gave as many bytes as it has.
    fn check_length(&self, found: &Found, length: u64) -> Result<()> {
        match length == found.facts.size {
            true => Ok(()),
            false => Err(self.fault(FilesFault::Length {
                path: lossy(OsStr::from_bytes(&found.path)),
                found: length,
                size: found.facts.size,
            })),
        }
    }

    fn wrong_kind(&self, path: &OsStr, what: &str) -> Error {
        self.fault(FilesFault::WrongKind(format!("{} is {what}", lossy(path))))
    }
}

/// The entries of a folder, sorted by name; or the file itself.
fn list(session: &mut Session<'_>, path: &OsStr) -> Result<Vec<FileEntry>> {
    let found = session.find(path)?;
    session.refuse_not_mounted(&found.path, false)?;
    if found.facts.kind != FileKind::Folder {
        return Ok(vec![FileEntry {
            name: path.to_owned(),
            facts: found.facts,
            link: None,
        }]);
    }
    let mut names = names(session, &found.path)?;
    names.sort();
    let paths: Vec<Vec<u8>> = names.iter().map(|name| joined(&found.path, name)).collect();
    let facts = session.facts(&paths)?;
    let mut entries = Vec::with_capacity(names.len());
    for ((name, path), facts) in names.into_iter().zip(paths).zip(facts) {
        let link = match facts.kind {
            FileKind::Link => Some(OsString::from_vec(session.ask(&[b"readlink", &path])?)),
            _ => None,
        };
        entries.push(FileEntry {
            name: OsString::from_vec(name),
            facts,
            link,
        });
    }
    Ok(entries)
}

/// The names in a folder, each of which is followed by a zero byte in the answer.
fn names(session: &mut Session<'_>, folder: &[u8]) -> Result<Vec<Vec<u8>>> {
    let read = |data: &mut dyn Read| {
        let mut names = Vec::new();
        data.take(MOST_NAMES + 1).read_to_end(&mut names)?;
        match names.len() as u64 > MOST_NAMES {
            true => Err(io::Error::other("the folder has too many files to be listed")),
            false => Ok(names),
        }
    };
    let shown = PathBuf::from(OsStr::from_bytes(folder));
    let all = session.receive(&[b"ls0", folder], &[], read, ("list", &shown))?;
    let names = all.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    match names.clone().any(|name| name.contains(&b'/')) {
        true => Err(session.fault(FilesFault::Answer { command: "ls0" })),
        false => Ok(names.map(<[u8]>::to_vec).collect()),
    }
}

fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    match folder {
        b"/" => [b"/", name].concat(),
        folder => [folder, b"/", name].concat(),
    }
}

/// Writes the content of a file to the output.
fn print(session: &mut Session<'_>, path: &OsStr, out: &mut dyn Write) -> Result<()> {
    let found = regular(session, path)?;
    let read = |data: &mut dyn Read| written(data, out);
    let length = session.receive(
        &[b"download", &found.path],
        &[],
        read,
        ("write to", Path::new("stdout")),
    )?;
    session.check_length(&found, length)
}

/// Writes everything to the output. Returns how much that was.
fn written(data: &mut dyn Read, out: &mut dyn Write) -> io::Result<u64> {
    let length = io::copy(data, out)?;
    out.flush()?;
    Ok(length)
}

fn regular(session: &mut Session<'_>, path: &OsStr) -> Result<Found> {
    let found = session.find(path)?;
    session.refuse_not_mounted(&found.path, false)?;
    match found.facts.kind {
        FileKind::File => Ok(found),
        FileKind::Folder => Err(session.wrong_kind(path, "a folder: use get or tar")),
        _ => Err(session.wrong_kind(path, "neither a file nor a folder, but a device, pipe or socket")),
    }
}

/// Writes a folder as a tar stream to the output.
fn archive(session: &mut Session<'_>, path: &OsStr, out: &mut dyn Write) -> Result<()> {
    let found = session.find(path)?;
    session.refuse_not_mounted(&found.path, true)?;
    if found.facts.kind != FileKind::Folder {
        return Err(session.wrong_kind(path, "not a folder: use cat or get"));
    }
    let read = |data: &mut dyn Read| written(data, out).map(drop);
    let more: [&[u8]; 4] = [
        b"numericowner:true",
        b"xattrs:true",
        b"selinux:true",
        b"acls:true",
    ];
    session.receive(
        &[b"tar-out", &found.path],
        &more,
        read,
        ("write to", Path::new("stdout")),
    )
}

/// Copies a file or folder into a folder of the host, under a temporary name until it is whole.
fn copy(
    session: &mut Session<'_>,
    path: &OsStr,
    dir: &Path,
    store: &dyn Store,
    notes: &mut Vec<Finding>,
) -> Result<CopiedFile> {
    let found = session.find(path)?;
    let is_folder = match found.facts.kind {
        FileKind::Folder => true,
        FileKind::File => false,
        _ => {
            return Err(session.wrong_kind(path, "neither a file nor a folder, but a device, pipe or socket"));
        }
    };
    session.refuse_not_mounted(&found.path, is_folder)?;
    // `check` refuses paths without a name.
    let to = dir.join(Path::new(path).file_name().unwrap_or(path));
    // Its name begins with a dot, so that lists leave it out, and it is removed after a failure.
    let work = tempfile::Builder::new()
        .prefix(".vmsnap-files-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(dir);
    let work = work.map_err(|error| session.io("create a folder in", dir, error))?;
    let new = work.path().join("new");
    let is_root = rustix::process::geteuid().is_root();
    let unpacked = match is_folder {
        true => {
            let read = |data: &mut dyn Read| unpack(data, &new, is_root);
            let words: [&[u8]; 2] = [b"tar-out", &found.path];
            session.receive(&words, &[b"numericowner:true"], read, ("write to", &to))?
        }
        false => {
            let facts = found.facts;
            let attributes = Attributes {
                mode: facts.mode,
                owner: is_root.then_some((facts.user, facts.group)),
                modified: facts.modified,
            };
            let read = |data: &mut dyn Read| write_file(data, &new, &attributes);
            let words: [&[u8]; 2] = [b"download", &found.path];
            let bytes = session.receive(&words, &[], read, ("write to", &to))?;
            session.check_length(&found, bytes)?;
            Unpacked {
                entries: 1,
                bytes,
                ..Unpacked::default()
            }
        }
    };
    sync(work.path()).map_err(|error| session.io("write to", &to, error))?;
    let renamed = store.rename(&new, &to);
    renamed.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::of(session.domain, Cause::Exists(to.clone())),
        _ => session.io("create", &to, error),
    })?;
    let synced = store.sync_dir(dir);
    synced.map_err(|error| session.io("write to", dir, error))?;
    if unpacked.left_out > 0 {
        notes.push(left_out(path, &unpacked));
    }
    Ok(CopiedFile {
        path: path.to_owned(),
        to,
        entries: unpacked.entries,
        bytes: unpacked.bytes,
        left_out: unpacked.left_out,
    })
}

/// Writes everything on the file system of this folder to its disk: after a copy of many small
/// files that is one step instead of many.
fn sync(folder: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(std::fs::File::open(folder)?)?)
}

fn left_out(path: &OsStr, unpacked: &Unpacked) -> Finding {
    let names: Vec<String> = unpacked.named.iter().map(|name| shown(name)).collect();
    let more = match unpacked.left_out - names.len() as u64 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let what = format!(
        "{} files in {} are devices, pipes or sockets and were not copied: {}{more}",
        unpacked.left_out,
        lossy(path),
        names.join(", ")
    );
    Finding::new("special-files-left-out", what)
}

/// A path for a message.
fn lossy(path: &OsStr) -> String {
    shown(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(action: FilesAction) -> String {
        check("vm1", &action)
            .expect_err("it is refused")
            .cause
            .to_string()
    }

    #[test]
    fn paths_are_checked_before_anything_is_started() {
        assert!(said(FilesAction::List("etc".into())).contains("'etc' is not an absolute path"));
        assert!(
            said(FilesAction::Print(vec!["/a".into(), "".into()])).contains("'' is not an absolute path")
        );
        let dir = tempfile::tempdir().expect("a temporary folder");
        let copy = |paths: &[&str]| FilesAction::Copy {
            paths: paths.iter().map(OsString::from).collect(),
            dir: dir.path().to_owned(),
        };
        assert!(said(copy(&["/"])).contains("has no name"));
        assert!(said(copy(&["/home/.."])).contains("has no name"));
        assert!(said(copy(&["/a/x", "/b/x/"])).contains("would both be named 'x'"));
        std::os::unix::fs::symlink("/nowhere", dir.path().join("x")).expect("linked");
        assert!(said(copy(&["/a/x"])).contains("already exists"));
        assert!(check("vm1", &copy(&["/a/y", "/b/z"])).is_ok());
    }

    #[test]
    fn names_are_joined_with_one_slash() {
        assert_eq!(joined(b"/", b"a"), b"/a");
        assert_eq!(joined(b"/a", b"-b"), b"/a/-b");
    }
}
