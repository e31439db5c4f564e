//! Finds the users of a block device, so that a restore does not overwrite a device in use.
//!
//! * `parse` reads the kernel's text files.
//! * `scan` examines processes, mounts, swap, holders and loop devices of this machine.
//! * `layers` lists the images beneath a domain's disks, from the image headers.
//! * `hold` opens a device and claims it exclusively.

mod hold;
mod layers;
mod parse;
mod scan;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::model::finding::Finding;
use crate::model::text::shown;
use crate::wait;

pub(crate) use hold::{HeldDevice, HoldError};
pub(crate) use parse::mounts;
use scan::{Identity, Kernel, Subject};

/// How long the examination of one domain's file may take: the file may be on a server that does
/// not answer.
const LOOK_DEADLINE: Duration = Duration::from_secs(3);
/// After this number of files that do not answer, the remaining files are not examined. Each such
/// file blocks a thread.
const MOST_SILENT: usize = 8;

/// How long a process may have the device open before it counts as a user.
///
/// udev and its helpers open a device for a moment after each change.
const GLANCE: Duration = Duration::from_secs(1);
const GLANCE_STEP: Duration = Duration::from_millis(100);

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number {
    /// The number of the driver.
    pub major: u32,
    /// The number of the device within its driver.
    pub minor: u32,
}

/// A file or block device that a domain's definition names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainFile {
    /// The domain's name.
    pub domain: String,
    /// Whether the domain has a QEMU process now.
    pub is_active: bool,
    /// The purpose of the file in the domain, for example `disk vda` or `the backing file of disk
    /// vda`.
    pub role: String,
    /// Its path on this machine.
    pub path: PathBuf,
    /// Whether the domain reads the file as qcow2: then its header may name more files.
    pub is_qcow2: bool,
}

/// The files and block devices that the definitions of all domains name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainFiles {
    /// The files that were found.
    pub files: Vec<DomainFile>,
    /// Findings about domains that could not be examined.
    pub findings: Vec<Finding>,
}

/// One use of a device or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The user.
    pub user: User,
    /// The used part, for example `partition sda1`; `None` for the device itself.
    pub part: Option<String>,
}

/// A user of a device or file, with the details of its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A domain uses it, according to its definition or to the headers of its images.
    Domain {
        /// The domain's name.
        name: String,
        /// The purpose of the device in the domain, for example `disk vda`.
        role: String,
        /// Whether the domain has a QEMU process now.
        is_active: bool,
    },
    /// A process has it open.
    Process {
        /// Its process id.
        pid: u32,
        /// Its name, as shortened by the kernel.
        name: String,
    },
    /// It is mounted.
    Mount {
        /// The mount point.
        point: PathBuf,
    },
    /// The kernel uses it as swap.
    Swap,
    /// Another block device is built on it: device-mapper, LVM, RAID, bcache.
    Holder {
        /// The other device, with its own name if it has one: `dm-0 (vg-lv)`.
        name: String,
    },
    /// It is the backing file of a loop device.
    Loop {
        /// The loop device: `loop3`.
        name: String,
    },
    /// The kernel or a program has claimed it exclusively, so no other claim is possible.
    Claim,
    /// A QEMU process holds a lock on it.
    QemuLock,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = self.part.as_deref().map_or_else(|| "it".to_owned(), shown);
        match &self.user {
            User::Domain {
                name,
                role,
                is_active,
            } => {
                let state = if *is_active { "active" } else { "shut-off" };
                write!(f, "{state} domain '{}' has {it} as {}", shown(name), shown(role))
            }
            User::Process { pid, name } => write!(f, "process {pid} ({}) has {it} open", shown(name)),
            User::Mount { point } => write!(f, "{it} is mounted on {}", shown(&point.to_string_lossy())),
            User::Swap => write!(f, "{it} is used as swap"),
            User::Holder { name } => write!(f, "{} is built on {it}", shown(name)),
            User::Loop { name } => write!(f, "{name} is attached to {it}"),
            User::Claim => write!(f, "the kernel or a program has claimed {it} exclusively"),
            User::QemuLock => write!(f, "a QEMU process holds a lock on {it}"),
        }
    }
}

/// The users of a device, and findings about users that could not be examined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usages {
    /// The uses that were found.
    pub users: Vec<Usage>,
    /// Findings about processes and files that could not be examined.
    pub findings: Vec<Finding>,
}

/// Returns the size of a block device in bytes; `None` if it is unknown or for other files.
pub(crate) fn device_size(path: &Path) -> Option<u64> {
    Kernel::new().size(path)
}

/// Lists the users of a block device of this machine. `named` holds the files of the domains.
///
/// Compares device numbers, so it also finds uses through links, other device nodes, partitions,
/// and the disk of a partition. Takes about a second longer if processes have the device open.
/// Takes several seconds longer if a domain's file is on a server that does not answer.
///
/// # Errors
/// The path cannot be examined.
pub(crate) fn users_of(path: &Path, named: &DomainFiles) -> io::Result<Usages> {
    let mut usages = look(path, named, true)?;
    let is_glance = |usages: &Usages| {
        let is_process = |usage: &Usage| matches!(usage.user, User::Process { .. });
        !usages.users.is_empty() && usages.users.iter().all(is_process)
    };
    if is_glance(&usages) {
        wait::until(GLANCE, GLANCE_STEP, || match look(path, named, true) {
            Ok(now) => {
                usages = now;
                (!is_glance(&usages)).then_some(())
            }
            Err(_) => Some(()),
        });
    }
    Ok(usages)
}

/// Lists the users of a file or block device at this moment.
///
/// Includes processes that have the path open only for an instant. The list is empty if the path
/// cannot be examined.
pub(crate) fn users_now(path: &Path) -> Vec<Usage> {
    look(path, &DomainFiles::default(), true).map_or_else(|_| Vec::new(), |usages| usages.users)
}

/// Lists the other users of a device that this process holds.
///
/// # Errors
/// The errors of [`users_of`].
pub(crate) fn other_users_of(held: &HeldDevice, named: &DomainFiles) -> io::Result<Usages> {
    look(held.path(), named, false)
}

/// Lists the domains' files with this path, whether or not the file exists.
///
/// Compares names, and resolves links in the folders above the file.
pub(crate) fn domains_naming<'a>(path: &Path, named: &'a DomainFiles) -> Vec<&'a DomainFile> {
    let Some((parent, name)) = path.parent().zip(path.file_name()) else {
        return Vec::new();
    };
    let real_parent = parent.canonicalize().ok();
    let is_it = |file: &&DomainFile| {
        if file.path == path {
            return true;
        }
        file.path.file_name() == Some(name)
            && real_parent.is_some()
            && file.path.parent().and_then(|other| other.canonicalize().ok()) == real_parent
    };
    named.files.iter().filter(is_it).collect()
}

/// Examines all kinds of users once.
///
/// `claims` includes exclusive claims and QEMU's locks; it must be false for a device that this
/// process holds.
fn look(path: &Path, named: &DomainFiles, claims: bool) -> io::Result<Usages> {
    let kernel = Kernel::new();
    let subject = kernel.subject(path)?;
    let mut findings = named.findings.clone();
    let users = domain_users(path, &subject, named, &mut findings);
    let mut usages = Usages { users, findings };
    let (users, unseen) = kernel.users(&subject);
    usages.users.extend(users);
    if unseen > 0 {
        let of_others = match unseen {
            1 => "a process of another user could not be examined and".to_owned(),
            more => format!("{more} processes of other users could not be examined; one of them"),
        };
        let what = format!(
            "{of_others} may have {} open; run as root to see all processes",
            path.display()
        );
        usages.findings.push(Finding::new("processes-not-seen", what));
    }
    if claims && usages.users.is_empty() {
        usages.users.extend(hold::claimed_by_others(path));
    }
    Ok(usages)
}

/// A file found during the examination of a domain's file.
struct Seen {
    /// The index of the domain's file in the list.
    index: usize,
    identity: Identity,
    /// Whether this is an image beneath the domain's file instead of the file itself.
    is_beneath: bool,
}

/// Lists the domains that name the subject.
fn domain_users(
    path: &Path,
    subject: &Subject,
    named: &DomainFiles,
    findings: &mut Vec<Finding>,
) -> Vec<Usage> {
    let mut users = Vec::new();
    let mut add = |file: &DomainFile, is_beneath: bool, part: Option<String>| {
        let role = match is_beneath {
            true => format!("an image beneath {}", file.role),
            false => file.role.clone(),
        };
        let user = User::Domain {
            name: file.domain.clone(),
            role,
            is_active: file.is_active,
        };
        let usage = Usage { user, part };
        if !users.contains(&usage) {
            users.push(usage);
        }
    };
    let paths = named.files.iter().map(|file| (file.path.clone(), file.is_qcow2));
    let (all_seen, silent) = look_at_all(paths.collect(), LOOK_DEADLINE, look_at);
    for seen in all_seen {
        if let (Some(part), Some(file)) = (subject.part(seen.identity), named.files.get(seen.index)) {
            add(file, seen.is_beneath, part.name.clone());
        }
    }
    for file in named.files.iter().filter(|file| file.path == path) {
        add(file, false, None);
    }
    for file in silent.into_iter().filter_map(|index| named.files.get(index)) {
        let what = format!(
            "domain '{}' may use {}: {} ({}) could not be examined in time",
            shown(&file.domain),
            path.display(),
            file.path.display(),
            file.role
        );
        findings.push(Finding::new("domains-not-known", what));
    }
    users
}

/// Identifies one file and the images beneath it; the second value is true for those images.
fn look_at(path: &Path, is_qcow2: bool) -> Vec<(Identity, bool)> {
    let Ok(identity) = scan::identity(path) else {
        return Vec::new();
    };
    let beneath = if is_qcow2 {
        layers::beneath(path)
    } else {
        Vec::new()
    };
    let beneath = beneath.iter().filter_map(|path| scan::identity(path).ok());
    std::iter::once((identity, false))
        .chain(beneath.map(|identity| (identity, true)))
        .collect()
}

/// A path, and whether the file is read as qcow2.
type Listed = (PathBuf, bool);
type LookAt = fn(&Path, bool) -> Vec<(Identity, bool)>;

/// Examines the files one after the other on a separate thread.
///
/// If a file does not answer within `deadline`, its thread is abandoned and a new thread continues
/// with the next file. Returns the results and the indexes of the abandoned files.
fn look_at_all(files: Vec<Listed>, deadline: Duration, look_at: LookAt) -> (Vec<Seen>, Vec<usize>) {
    let files: Arc<[Listed]> = files.into();
    let (mut all_seen, mut silent) = (Vec::new(), Vec::new());
    let mut next = 0;
    while next < files.len() && silent.len() < MOST_SILENT {
        let (sender, receiver) = mpsc::channel();
        let (list, first) = (Arc::clone(&files), next);
        let work = move || {
            for (path, is_qcow2) in &list[first..] {
                if sender.send(look_at(path, *is_qcow2)).is_err() {
                    return;
                }
            }
        };
        let spawned = thread::Builder::new().name("domain-files".to_owned()).spawn(work);
        while spawned.is_ok() && next < files.len() {
            let Ok(found) = receiver.recv_timeout(deadline) else {
                break;
            };
            let seen = found.into_iter().map(|(identity, is_beneath)| Seen {
                index: next,
                identity,
                is_beneath,
            });
            all_seen.extend(seen);
            next += 1;
        }
        if next < files.len() {
            silent.push(next);
            next += 1;
        }
    }
    silent.extend(next..files.len());
    (all_seen, silent)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks for a minute on files with the name `silent`.
    fn sometimes_silent(path: &Path, _: bool) -> Vec<(Identity, bool)> {
        if path.ends_with("silent") {
            wait::pause(Duration::from_secs(60));
        }
        scan::identity(path).map_or_else(|_| Vec::new(), |identity| vec![(identity, false)])
    }

    #[test]
    fn a_file_that_does_not_answer_hides_no_other() {
        let files = ["/proc", "/silent", "/nonexistent", "/silent", "/"].map(|path| (path.into(), false));
        let (seen, silent) = look_at_all(files.to_vec(), Duration::from_secs(2), sometimes_silent);
        let seen: Vec<usize> = seen.iter().map(|seen| seen.index).collect();
        assert_eq!((seen, silent), (vec![0, 4], vec![1, 3]));
        let all_silent = vec![("/silent".into(), false); MOST_SILENT + 3];
        let (seen, silent) = look_at_all(all_silent, Duration::from_millis(1), sometimes_silent);
        assert!(seen.is_empty());
        assert_eq!(silent, Vec::from_iter(0..MOST_SILENT + 3));
    }

    #[test]
    fn users_are_named_in_sentences() {
        let text = |user: User, part: Option<&str>| {
            let part = part.map(str::to_owned);
            Usage { user, part }.to_string()
        };
        let domain = User::Domain {
            name: "a\nb".into(),
            role: "disk vda".into(),
            is_active: false,
        };
        assert_eq!(text(domain, None), "shut-off domain 'a\\nb' has it as disk vda");
        let mount = User::Mount { point: "/srv".into() };
        assert_eq!(
            text(mount, Some("partition sda1")),
            "partition sda1 is mounted on /srv"
        );
        assert_eq!(
            text(User::Claim, None),
            "the kernel or a program has claimed it exclusively"
        );
        assert_eq!(text(User::QemuLock, None), "a QEMU process holds a lock on it");
    }
}
