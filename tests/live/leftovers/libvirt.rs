//! Domains, and libvirt's files about them.

use std::fs;
use std::path::{Path, PathBuf};

use super::Leftover;
use crate::owner::owners_in;
use crate::process::{COMMAND_DEADLINE, Finished, command, processes_with, run_within};

/// The folder of libvirt's domain definitions.
const DEFINITIONS: &str = "/etc/libvirt/qemu";

/// The folders in which libvirt keeps files named after a domain.
const FOLDERS: [&str; 15] = [
    DEFINITIONS,
    "/etc/libvirt/qemu/autostart",
    "/run/libvirt/qemu",
    "/run/libvirt/qemu/channel",
    "/run/libvirt/qemu/swtpm",
    "/run/libvirt/storage",
    "/var/lib/libvirt/qemu",
    "/var/lib/libvirt/qemu/channel/target",
    "/var/lib/libvirt/qemu/checkpoint",
    "/var/lib/libvirt/qemu/dump",
    "/var/lib/libvirt/qemu/nvram",
    "/var/lib/libvirt/qemu/save",
    "/var/lib/libvirt/qemu/snapshot",
    "/var/log/libvirt/qemu",
    "/var/log/swtpm/libvirt/qemu",
];

/// The sockets on which a system daemon answers.
const SOCKETS: [&str; 2] = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"];

/// The domains of these test processes that the system's daemon knows, if one answers.
pub fn domains(is_left: &dyn Fn(u32) -> bool) -> Vec<Leftover> {
    let is_theirs = |text: &str| owners_in(text).iter().any(|pid| is_left(*pid));
    let listed = virsh(&["list", "--all", "--name"]);
    let names = listed.iter().flat_map(|listed| listed.stdout.lines());
    let names = names.map(str::trim).filter(|name| !name.is_empty());
    // A domain with another name is recognised by the folder of its images.
    let definition = |name: &str| fs::read_to_string(Path::new(DEFINITIONS).join(format!("{name}.xml")));
    let names = names.filter(|name| is_theirs(name) || definition(name).is_ok_and(|xml| is_theirs(&xml)));
    names.map(|name| Leftover::Domain(name.to_owned())).collect()
}

/// Destroys and undefines a domain.
pub fn end(name: &str) {
    virsh(&["destroy", "--domain", name]);
    undefine(name);
}

/// Undefines a domain with everything that libvirt keeps about it.
pub fn undefine(name: &str) {
    let metadata = [
        "--checkpoints-metadata",
        "--snapshots-metadata",
        "--managed-save",
        "--nvram",
    ];
    virsh(&[&["undefine", "--domain", name][..], &metadata].concat());
}

fn virsh(words: &[&str]) -> Option<Finished> {
    // Without a daemon no domain runs, and libvirt's files are checked anyway.
    SOCKETS.iter().find(|socket| Path::new(socket).exists())?;
    let words = [&["--connect", "qemu:///system"], words].concat();
    Some(run_within(command("virsh", &words), COMMAND_DEADLINE).0)
}

/// Removes libvirt's leftover files of a removed domain, and its log.
pub fn forget(name: &str) {
    let is_its = |file: &str| {
        let is_file = file
            .strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest == "-swtpm.log");
        is_file || is_dead_folder(file, name)
    };
    let entries = FOLDERS.iter().filter_map(|folder| fs::read_dir(folder).ok());
    for entry in entries.flatten().flatten() {
        if is_its(&entry.file_name().to_string_lossy()) {
            super::remove(&entry.path());
        }
    }
}

/// Whether this is the folder of an ended QEMU of the domain.
///
/// A folder's name contains the id of the run and the first 20 characters of the domain's name.
/// Several domains of one test process may share these characters. So the folder may be another
/// domain's if libvirt knows its id or a QEMU runs from it.
fn is_dead_folder(folder: &str, name: &str) -> bool {
    let short: String = name.chars().take(20).collect();
    let Some((id, rest)) = folder
        .strip_prefix("domain-")
        .and_then(|rest| rest.split_once('-'))
    else {
        return false;
    };
    let is_active = || virsh(&["domname", id]).is_some_and(|said| said.ok());
    let is_running = || !processes_with(&format!("{folder}/")).is_empty();
    id.parse::<u32>().is_ok() && rest == short && !is_running() && !is_active()
}

/// libvirt's files and folders about domains of these test processes.
pub fn files(is_left: &dyn Fn(u32) -> bool) -> Vec<PathBuf> {
    let is_theirs = |text: &str| owners_in(text).iter().any(|pid| is_left(*pid));
    let entries = FOLDERS.iter().filter_map(|folder| fs::read_dir(folder).ok());
    let mut found = Vec::new();
    for entry in entries.flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let is_definition = path.parent() == Some(Path::new(DEFINITIONS));
        let holds_name = || {
            is_definition
                && path.extension().is_some_and(|end| end == "xml")
                && fs::read_to_string(&path).is_ok_and(|xml| is_theirs(&xml))
        };
        if is_theirs(&name.to_string_lossy()) || holds_name() {
            found.push(path);
        }
    }
    found
}
