//! Looks for users of a block device in `/proc` and `/sys`.
//!
//! Processes end and devices go while they are looked at: what cannot be read is passed over, and what may not be read is counted.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use super::{Number, Usage, User, parse};

/// Bytes of one text of the kernel that are read at most.
const LONGEST: u64 = 16 << 20;
/// Open descriptors of all processes that are looked at at most.
const MOST_DESCRIPTORS: usize = 4_000_000;
/// Block devices that are looked at at most, for one subject.
const MOST_PARTS: usize = 4096;

/// What a path is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Identity {
    /// A block device.
    Device(Number),
    /// Anything else, by its file system's device and its inode.
    File(Number, u64),
}

/// Tells what a path is. Asks no server of files.
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

/// How a part belongs to the subject, which decides who counts as its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// The device itself, or one of its partitions.
    Own,
    /// The disk whose partition the device is.
    Disk,
    /// A device or file that the device is made of. Programs that serve it may have it open.
    Beneath,
}

/// A device or file whose use is a use of the subject.
#[derive(Clone, Debug)]
pub(super) struct Part {
    identity: Identity,
    relation: Relation,
    /// Its folder in sysfs, if it is a block device.
    folder: Option<PathBuf>,
    /// What it is to the subject; `None` for the subject itself.
    pub(super) name: Option<String>,
}

/// A block device with everything whose use would be a use of it.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    parts: Vec<Part>,
}

impl Subject {
    /// The part with this identity.
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

    /// The part, if an open descriptor or a mount of it counts.
    fn open_part(&self, identity: Identity) -> Option<&Part> {
        // A multipath daemon has the paths beneath its device open all the time.
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
    /// The real one.
    pub(super) fn new() -> Kernel {
        Kernel {
            proc: "/proc".into(),
            sys: "/sys".into(),
            own_pid: std::process::id(),
        }
    }

    /// The block device of a path, in sysfs.
    fn folder(&self, device: Number) -> Option<PathBuf> {
        let link = format!("dev/block/{}:{}", device.major, device.minor);
        self.sys.join(link).canonicalize().ok()
    }

    /// Size of a block device in bytes.
    pub(super) fn size(&self, path: &Path) -> Option<u64> {
        let Ok(Identity::Device(number)) = identity(path) else {
            return None;
        };
        let text = read(&self.folder(number)?.join("size")).ok()?;
        // In sectors of 512 bytes, whatever the device's own are.
        let sectors: u64 = std::str::from_utf8(&text).ok()?.trim().parse().ok()?;
        sectors.checked_mul(512)
    }

    /// The path with everything whose use is a use of it.
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
                let name = format!("its partition {}", name_of(&partition));
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

    /// Adds the devices and files that a device is made of, and those beneath them.
    fn add_beneath(&self, subject: &mut Subject, folder: &Path) {
        let mut waiting = vec![folder.to_owned()];
        while let Some(folder) = waiting.pop() {
            let backing = read(&folder.join("loop/backing_file")).ok();
            if let Some(file) = backing.as_deref().and_then(parse::backing_file)
                && let Ok(identity) = identity(&file)
            {
                let name = format!("its backing file {}", file.display());
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
                let name = format!("{} beneath it", name_of(&slave));
                if subject.add_device(slave.clone(), Relation::Beneath, name) {
                    waiting.push(slave);
                }
            }
        }
    }

    /// Everybody who uses the subject, and how many processes could not be looked at.
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

    /// Other loop devices on the subject or on what it is made of.
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

    /// Open descriptors and mounts of all processes but this one.
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
            // Some file systems give their files a device number of their own: then the source is compared.
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

    /// The processes that make the subject work: a network block device's has it open as long as it exists.
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

/// What an open descriptor is; `None` for those without a path: sockets, pipes and the like.
fn open_identity(descriptor: &Path) -> Option<Identity> {
    let has_path = fs::read_link(descriptor).is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"/"));
    identity(descriptor).ok().filter(|_| has_path)
}

fn device_number(folder: &Path) -> Option<Number> {
    parse::number(&read(&folder.join("dev")).ok()?)
}

/// The disk whose partition this is.
fn disk_of(folder: &Path) -> Option<PathBuf> {
    let is_partition = folder.join("partition").exists();
    folder.parent().filter(|_| is_partition).map(Path::to_owned)
}

/// `dm-0 (vg-lv)`, or the name alone.
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

/// Reads a text of the kernel, up to a length that no such text reaches.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
