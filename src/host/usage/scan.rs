//! Finds the users of a block device in `/proc` and `/sys`.
//!
//! Processes and devices may disappear during the scan, so unreadable entries are skipped.
//! Processes that this user may not examine are counted.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use super::{Number, Usage, User, parse};

/// How many bytes of one of the kernel's text files are read at most.
const LONGEST: u64 = 16 << 20;
/// How many open descriptors of all processes are examined at most.
const MOST_DESCRIPTORS: usize = 4_000_000;
/// How many devices and files one subject has at most.
const MOST_PARTS: usize = 4096;

/// Identifies a device or file independently of its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Identity {
    /// A block device.
    Device(Number),
    /// Any other file, by the device number of its file system and its inode.
    File(Number, u64),
}

/// Identifies a path, without a request to a file server if the kernel has the attributes cached.
pub(super) fn identity(path: &Path) -> io::Result<Identity> {
    let flags = AtFlags::STATX_DONT_SYNC;
    let found = statx(CWD, path, flags, StatxFlags::TYPE | StatxFlags::INO)?;
    Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::BlockDevice => Identity::Device(Number {
            major: found.stx_rdev_major,
            minor: found.stx_rdev_minor,
        }),
        _ => {
            let device = Number {
                major: found.stx_dev_major,
                minor: found.stx_dev_minor,
            };
            Identity::File(device, found.stx_ino)
        }
    })
}

/// How a part belongs to the subject. It decides which uses of the part count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// The device itself, or one of its partitions.
    Own,
    /// The disk of which the device is a partition.
    Disk,
    /// A device or file that the device is built on. The programs that serve the device may have it
    /// open.
    Beneath,
}

/// A device or file that belongs to a [`Subject`]: if it is in use, so is the subject.
#[derive(Clone, Debug)]
pub(super) struct Part {
    identity: Identity,
    relation: Relation,
    /// Its folder in sysfs, if it is a block device.
    folder: Option<PathBuf>,
    /// A description of the part, for example `partition sda1`; `None` for the subject itself.
    pub(super) name: Option<String>,
}

/// A block device, with all devices and files through which it can be in use.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    parts: Vec<Part>,
}

impl Subject {
    /// Returns the part with this identity.
    pub(super) fn part(&self, identity: Identity) -> Option<&Part> {
        self.parts.iter().find(|part| part.identity == identity)
    }

    fn add(&mut self, part: Part) -> bool {
        let is_new = self.parts.len() < MOST_PARTS && self.part(part.identity).is_none();
        if is_new {
            self.parts.push(part);
        }
        is_new
    }

    /// Returns the part with this identity, if its open descriptors and mounts count as uses.
    fn open_part(&self, identity: Identity) -> Option<&Part> {
        // A multipath daemon always has the paths beneath its device open.
        let counts =
            |part: &&Part| part.relation != Relation::Beneath || matches!(part.identity, Identity::File(..));
        self.part(identity).filter(counts)
    }
}

/// The kernel's view of this machine.
pub(super) struct Kernel {
    proc: PathBuf,
    sys: PathBuf,
    own_pid: u32,
}

impl Kernel {
    /// Uses the real `/proc` and `/sys`.
    pub(super) fn new() -> Kernel {
        Kernel {
            proc: "/proc".into(),
            sys: "/sys".into(),
            own_pid: std::process::id(),
        }
    }

    /// Returns the folder of a block device in sysfs.
    fn folder(&self, device: Number) -> Option<PathBuf> {
        let link = format!("dev/block/{}:{}", device.major, device.minor);
        self.sys.join(link).canonicalize().ok()
    }

    /// Returns the size of a block device in bytes.
    pub(super) fn size(&self, path: &Path) -> Option<u64> {
        let Ok(Identity::Device(number)) = identity(path) else {
            return None;
        };
        let text = read(&self.folder(number)?.join("size")).ok()?;
        // In units of 512 bytes, independent of the device's sector size.
        let sectors: u64 = std::str::from_utf8(&text).ok()?.trim().parse().ok()?;
        sectors.checked_mul(512)
    }

    /// Finds all devices and files whose use implies that this path is in use.
    pub(super) fn subject(&self, path: &Path) -> io::Result<Subject> {
        Ok(self.subject_of(identity(path)?))
    }

    fn subject_of(&self, identity: Identity) -> Subject {
        let folder = match identity {
            Identity::Device(number) => self.folder(number),
            Identity::File(..) => None,
        };
        let mut subject = Subject { parts: Vec::new() };
        subject.add(Part {
            identity,
            relation: Relation::Own,
            folder: folder.clone(),
            name: None,
        });
        let Some(folder) = folder else {
            return subject;
        };
        for partition in entries(&folder) {
            if partition.join("partition").exists() {
                let name = format!("partition {}", name_of(&partition));
                subject.add_device(partition, Relation::Own, name);
            }
        }
        if let Some(disk) = disk_of(&folder) {
            let name = format!("the whole disk {}", name_of(&disk));
            subject.add_device(disk.clone(), Relation::Disk, name);
            self.add_beneath(&mut subject, &disk);
        }
        self.add_beneath(&mut subject, &folder);
        subject
    }

    /// Adds the devices and files that a device is built on, at every depth.
    fn add_beneath(&self, subject: &mut Subject, folder: &Path) {
        let mut waiting = vec![folder.to_owned()];
        while let Some(folder) = waiting.pop() {
            let backing = read(&folder.join("loop/backing_file")).ok();
            if let Some(file) = backing.as_deref().and_then(parse::backing_file)
                && let Ok(identity) = identity(&file)
            {
                let name = format!("the underlying file {}", file.display());
                let device = match identity {
                    Identity::Device(number) => self.folder(number),
                    Identity::File(..) => None,
                };
                let is_new = subject.add(Part {
                    identity,
                    relation: Relation::Beneath,
                    folder: device.clone(),
                    name: Some(name),
                });
                waiting.extend(device.filter(|_| is_new));
            }
            let slaves = entries(&folder.join("slaves")).into_iter();
            let above = slaves.filter_map(|slave| slave.canonicalize().ok());
            for slave in above.flat_map(|slave| [disk_of(&slave), Some(slave)]).flatten() {
                let name = format!("the underlying device {}", name_of(&slave));
                if subject.add_device(slave.clone(), Relation::Beneath, name) {
                    waiting.push(slave);
                }
            }
        }
    }

    /// Lists the uses of the subject, and counts the processes that could not be examined.
    pub(super) fn users(&self, subject: &Subject) -> (Vec<Usage>, usize) {
        let mut users = Vec::new();
        let mut add = |user: User, part: &Part| {
            let part = part.name.clone();
            let usage = Usage { user, part };
            if !users.contains(&usage) {
                users.push(usage);
            }
        };
        for part in subject.parts.iter().filter(|part| part.relation == Relation::Own) {
            let holders = part
                .folder
                .as_ref()
                .map(|folder| entries(&folder.join("holders")));
            for holder in holders.into_iter().flatten() {
                let name = holder_name(&holder);
                add(User::Holder { name }, part);
            }
        }
        for path in parse::swaps(&read(&self.proc.join("swaps")).unwrap_or_default()) {
            if let Some(part) = identity(&path)
                .ok()
                .and_then(|identity| subject.open_part(identity))
            {
                add(User::Swap, part);
            }
        }
        self.loops(subject, &mut add);
        let unseen = self.processes(subject, &mut add);
        (users, unseen)
    }

    /// Adds other loop devices that use the subject or one of its parts.
    fn loops(&self, subject: &Subject, add: &mut impl FnMut(User, &Part)) {
        for folder in entries(&self.sys.join("block")) {
            let name = name_of(&folder);
            let Ok(text) = read(&folder.join("loop/backing_file")) else {
                continue;
            };
            let number = device_number(&folder);
            if number.is_some_and(|number| subject.part(Identity::Device(number)).is_some()) {
                continue;
            }
            let backing = parse::backing_file(&text).and_then(|path| identity(&path).ok());
            if let Some(part) = backing.and_then(|identity| subject.part(identity)) {
                add(User::Loop { name }, part);
            }
        }
    }

    /// Adds mounts, and open descriptors of all processes except this one.
    ///
    /// Returns the number of processes that could not be examined.
    fn processes(&self, subject: &Subject, add: &mut impl FnMut(User, &Part)) -> usize {
        let servers = self.servers(subject);
        let mut namespaces = HashSet::new();
        let (mut unseen, mut looked_at) = (0, 0);
        for process in entries(&self.proc) {
            let Ok(pid) = name_of(&process).parse::<u32>() else {
                continue;
            };
            let namespace = fs::read_link(process.join("ns/mnt")).ok();
            if namespace.is_some_and(|namespace| namespaces.insert(namespace)) || pid == self.own_pid {
                self.mounts(&process, subject, add);
            }
            if pid == self.own_pid || servers.contains(&pid) {
                continue;
            }
            let descriptors = match fs::read_dir(process.join("fd")) {
                Ok(descriptors) => descriptors,
                Err(error) => {
                    unseen += usize::from(error.kind() == ErrorKind::PermissionDenied);
                    continue;
                }
            };
            for descriptor in descriptors.flatten() {
                looked_at += 1;
                if looked_at > MOST_DESCRIPTORS {
                    return unseen + 1;
                }
                if let Some(part) =
                    open_identity(&descriptor.path()).and_then(|found| subject.open_part(found))
                {
                    let name = read(&process.join("comm")).unwrap_or_default();
                    let name = String::from_utf8_lossy(&name).trim_end().to_owned();
                    add(User::Process { pid, name }, part);
                }
            }
        }
        unseen
    }

    fn mounts(&self, process: &Path, subject: &Subject, add: &mut impl FnMut(User, &Part)) {
        let text = read(&process.join("mountinfo")).unwrap_or_default();
        for mount in parse::mounts(&text) {
            // Some file systems do not give their files the number of the mounted device: compare
            // the source.
            let by_source = || {
                let source = identity(mount.source.as_deref()?).ok()?;
                subject.open_part(source)
            };
            let part = subject
                .open_part(Identity::Device(mount.device))
                .or_else(by_source);
            if let Some(part) = part {
                add(User::Mount { point: mount.point }, part);
            }
        }
    }

    /// Lists the processes that serve the subject. The client of a network block device has it open
    /// all the time.
    fn servers(&self, subject: &Subject) -> Vec<u32> {
        let folders = subject.parts.iter().filter_map(|part| part.folder.as_ref());
        let pids = folders.filter_map(|folder| read(&folder.join("pid")).ok());
        pids.filter_map(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok())
            .collect()
    }
}

impl Subject {
    fn add_device(&mut self, folder: PathBuf, relation: Relation, name: String) -> bool {
        let Some(number) = device_number(&folder) else {
            return false;
        };
        self.add(Part {
            identity: Identity::Device(number),
            relation,
            folder: Some(folder),
            name: Some(name),
        })
    }
}

/// Identifies the file of an open descriptor; `None` for sockets, pipes and others without a path.
fn open_identity(descriptor: &Path) -> Option<Identity> {
    let has_path = fs::read_link(descriptor).is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"/"));
    identity(descriptor).ok().filter(|_| has_path)
}

fn device_number(folder: &Path) -> Option<Number> {
    parse::number(&read(&folder.join("dev")).ok()?)
}

/// Returns the disk of a partition.
fn disk_of(folder: &Path) -> Option<PathBuf> {
    let is_partition = folder.join("partition").exists();
    folder.parent().filter(|_| is_partition).map(Path::to_owned)
}

/// Returns `dm-0 (vg-lv)`, or only the name of the device.
fn holder_name(holder: &Path) -> String {
    let name = name_of(holder);
    let own = read(&holder.join("dm/name")).unwrap_or_default();
    match String::from_utf8_lossy(&own).trim() {
        "" => name,
        own => format!("{name} ({own})"),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    found.map(|entry| entry.path()).collect()
}

/// Reads one of the kernel's text files, at most [`LONGEST`] bytes.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
