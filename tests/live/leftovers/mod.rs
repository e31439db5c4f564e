//! Finds and removes what ended test processes have left on this machine.
//!
//! A thing is the lab's if its name, path, command line or an open file contains the name of a test
//! process ([`crate::owner`]), or if it is an unused daemon of the lab. Nothing else is considered.

mod libvirt;
mod processes;
mod storage;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::owner;
use crate::process::start_time;

/// Lock files and process ids of the lab's daemons.
pub const LAB_DIR: &str = "/run/vmsnap-lab";

/// A thing that is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// A process, identified by its id and its start time in clock ticks.
    Process { pid: u32, started: u64, line: String },
    /// A domain of the libvirtd that answers.
    Domain(String),
    /// A mounted file system.
    Mount(PathBuf),
    /// A loop device and its backing file.
    Loop { device: PathBuf, backing: String },
    /// A bound Unix socket.
    Socket(String),
    /// A file or folder.
    Path(PathBuf),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leftover::Process { pid, line, .. } => {
                // A QEMU's command line has thousands of characters.
                write!(f, "process {pid}: {}", line.chars().take(200).collect::<String>())
            }
            Leftover::Domain(name) => write!(f, "domain {name:?}"),
            Leftover::Mount(point) => write!(f, "mount {}", point.display()),
            Leftover::Loop { device, backing } => {
                write!(f, "loop device {} over {backing}", device.display())
            }
            Leftover::Socket(path) => write!(f, "socket {path}"),
            Leftover::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Leftovers of ended test processes.
pub fn of_the_gone() -> Vec<Leftover> {
    find(&owner::is_gone)
}

/// Leftovers of these test processes, and the lab's unused daemons.
pub fn find(is_left: &dyn Fn(u32) -> bool) -> Vec<Leftover> {
    let mut found = libvirt::domains(is_left);
    found.extend(processes::find(is_left));
    found.extend(storage::mounts(is_left));
    found.extend(storage::loops(is_left));
    found.extend(processes::sockets(is_left));
    found.extend(libvirt::files(is_left).into_iter().map(Leftover::Path));
    let folders = folders(is_left);
    let noted = folders.iter().flat_map(|folder| places_noted_in(folder));
    found.extend(noted.map(Leftover::Path));
    found.extend(folders.iter().cloned().map(Leftover::Path));
    if Path::new(LAB_DIR).exists() && processes::lab_is_unused() {
        found.push(Leftover::Path(LAB_DIR.into()));
    }
    found
}

/// Removes all of it. The next search finds anything that cannot be removed.
pub fn end(found: &[Leftover]) {
    // Users of a thing are ended before the thing: `find` returns them in this order.
    for leftover in found {
        match leftover {
            Leftover::Process { pid, started, .. } => processes::end(*pid, *started),
            Leftover::Domain(name) => libvirt::end(name),
            Leftover::Mount(point) => storage::unmount(point),
            Leftover::Loop { device, .. } => storage::detach(device),
            Leftover::Socket(path) => remove(Path::new(path)),
            Leftover::Path(path) => remove(path),
        }
    }
}

/// Undefines a domain with everything that libvirt keeps about it.
pub fn undefine(name: &str) {
    libvirt::undefine(name);
}

/// Removes libvirt's leftover files of a removed domain, and its log.
pub fn forget(name: &str) {
    libvirt::forget(name);
}

/// Ends a process that was just found.
pub fn end_process(pid: u32) {
    if let Some(started) = start_time(pid) {
        processes::end(pid, started);
    }
}

/// Removes a file, or a folder with its content. Another test run may do the same concurrently.
pub fn remove(path: &Path) {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let _ = match is_folder {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
}

/// The folders in which test processes create their folders.
fn parents() -> Vec<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut parents = vec![std::env::temp_dir(), "/var/tmp".into(), target.to_owned()];
    parents.extend(target.parent().map(Path::to_owned));
    parents.sort();
    parents.dedup();
    parents
}

/// The folders of these test processes.
fn folders(is_left: &dyn Fn(u32) -> bool) -> Vec<PathBuf> {
    let parents = parents();
    let entries = parents.iter().filter_map(|parent| fs::read_dir(parent).ok());
    let is_theirs = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name.to_str().and_then(owner::owner_of).is_some_and(is_left)
    };
    let entries = entries.flatten().flatten().filter(is_theirs);
    entries.map(|entry| entry.path()).collect()
}

/// The sockets, scratch files and folders of unfinished runs that still exist, according to the
/// journal entries (`intent.json`) and marks (`.restoring.json`) of repositories within this
/// folder.
pub fn places_noted_in(folder: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    collect_places(folder, 8, &mut places);
    places.retain(|place| fs::symlink_metadata(place).is_ok());
    places
}

fn collect_places(folder: &Path, depth: usize, places: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && depth > 0 {
            collect_places(&entry.path(), depth - 1, places);
        } else if entry.file_name() == "intent.json" || entry.file_name() == ".restoring.json" {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let intent: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let noted = &intent["places"];
            let paths = [&noted["sockets"], &noted["ownDirs"]].into_iter();
            let paths = paths.filter_map(|list| list.as_array()).flatten();
            let scratch = noted["scratch"].as_array().into_iter().flatten();
            let paths = paths.chain(scratch.map(|pair| &pair[1]));
            places.extend(paths.filter_map(|path| path.as_str()).map(PathBuf::from));
        }
    }
}
