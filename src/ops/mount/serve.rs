//! Answers the kernel's requests for a mounted restore point, with the crate `fuser`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, Request, Session, SessionACL,
};
use rustix::process::{getegid, geteuid};

use super::files::{MountedFile, MountedFiles};
use crate::model::block::{BlockError, BlockErrorKind};

/// The number of threads that answer requests.
const THREADS: usize = 8;

/// The longest read that the kernel may request, in bytes. Each thread holds one answer.
const LONGEST_READ: u32 = 1 << 20;

/// How long the kernel may keep names and attributes, which never change.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// `SEEK_DATA` and `SEEK_HOLE` of lseek(2).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// The block size of `st_blocks`, and that of statfs.
const SECTOR: u64 = 512;
const BLOCK: u32 = 4096;

/// A read that failed.
#[derive(Debug)]
pub(super) struct FailedRead {
    /// The name of the file.
    pub(super) file: String,
    /// Why it failed.
    pub(super) error: BlockError,
}

/// A file system with the files of a restore point.
pub(super) struct Service {
    pub(super) files: Arc<MountedFiles>,
    /// The time of all files.
    pub(super) time: SystemTime,
    /// Whether other users may read the files.
    pub(super) allow_other: bool,
    /// Receives the reads that fail; dropped when the session has ended. A failed read waits while
    /// the receiver is busy.
    pub(super) failures: SyncSender<FailedRead>,
    /// The number of reads that failed.
    pub(super) failed: Arc<AtomicU64>,
}

impl Service {
    /// Answers the requests that come from an open FUSE device until the mount is gone.
    ///
    /// # Errors
    /// The kernel's version of the FUSE protocol is not supported, or a thread cannot be started.
    pub(super) fn start(self, device: OwnedFd) -> io::Result<Session<Service>> {
        // The kernel keeps other users out, too.
        let acl = match self.allow_other {
            true => SessionACL::All,
            false => SessionACL::Owner,
        };
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        Session::from_fd(self, device, acl, config)
    }

    fn file(&self, number: INodeNo) -> Option<&MountedFile> {
        let place = number.0.checked_sub(INodeNo::ROOT.0 + 1)?;
        self.files.all().get(usize::try_from(place).ok()?)
    }

    fn attributes(&self, number: INodeNo) -> Option<FileAttr> {
        let of = |size: u64, allocated: u64, kind: FileType, modes: [u16; 2]| FileAttr {
            ino: number,
            size,
            blocks: allocated.div_ceil(SECTOR),
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            crtime: self.time,
            kind,
            perm: modes[usize::from(self.allow_other)],
            nlink: 1,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            rdev: 0,
            blksize: BLOCK,
            flags: 0,
        };
        if number == INodeNo::ROOT {
            return Some(of(0, 0, FileType::Directory, [0o500, 0o555]));
        }
        let file = self.file(number)?;
        Some(of(
            file.size(),
            file.allocated(),
            FileType::RegularFile,
            [0o400, 0o444],
        ))
    }

    /// Reports a failed read, and returns the error for the reader.
    fn failed(&self, file: &MountedFile, error: BlockError) -> Errno {
        if error.kind != BlockErrorKind::Stopped {
            self.failed.fetch_add(1, Ordering::Relaxed);
            // Without a receiver the mount is about to end.
            let _ = self.failures.send(FailedRead {
                file: file.name().to_owned(),
                error,
            });
        }
        Errno::EIO
    }
}

/// The inode number of the file at this place.
fn number_of(place: usize) -> INodeNo {
    INodeNo(INodeNo::ROOT.0 + 1 + place as u64)
}

impl Filesystem for Service {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Also the limit of reads, which are then at most this long.
        let limited = config.set_max_write(LONGEST_READ);
        limited.map(drop).map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_str().filter(|_| parent == INodeNo::ROOT);
        let found = name.and_then(|name| self.files.find(name));
        let attributes = found.and_then(|(place, _)| self.attributes(number_of(place)));
        match attributes {
            Some(attributes) => reply.entry(&KEPT, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(number) {
            Some(attributes) => reply.attr(&KEPT, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.file(number) {
            // Pages that the kernel has cached stay right.
            Some(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.file(number) else {
            return reply.error(Errno::ENOENT);
        };
        // The kernel takes a short answer for the end of the file, so damage fails the whole
        // request. The kernel then asks for single pages.
        match file.read_at(offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(self.failed(file, error)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if number != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let own = [".", ".."].map(|name| (INodeNo::ROOT, FileType::Directory, name));
        let files = self.files.all().iter().enumerate();
        let files = files.map(|(place, file)| (number_of(place), FileType::RegularFile, file.name()));
        let entries = (1..).zip(own.into_iter().chain(files));
        for (next, (number, kind, name)) in entries.skip_while(|(next, _)| *next <= offset) {
            if reply.add(number, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        let files = self.files.all();
        let blocks = |file: &MountedFile| file.size().div_ceil(u64::from(BLOCK));
        let all = files.iter().map(blocks).fold(0, u64::saturating_add);
        reply.statfs(all, 0, 0, files.len() as u64, 0, BLOCK, 255, BLOCK);
    }

    fn lseek(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(file) = self.file(number) else {
            return reply.error(Errno::ENOENT);
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let found = match whence {
            SEEK_DATA => file.data_from(offset),
            SEEK_HOLE => file.hole_from(offset),
            _ => return reply.error(Errno::EINVAL),
        };
        match found {
            Ok(Some(found)) => match i64::try_from(found) {
                Ok(found) => reply.offset(found),
                Err(_) => reply.error(Errno::EINVAL),
            },
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(self.failed(file, error)),
        }
    }
}
