//! The parts of libvirt and QEMU that the temporary domain needs.

use std::fs;
use std::path::{Path, PathBuf};

use virt::connect::Connect;
use virt::error::ErrorNumber;

use crate::host::qemu::is_installed;

/// The names under which libvirt looks for the emulator.
const EMULATORS: [&str; 2] = ["qemu-system-x86_64", "qemu-kvm"];

/// The path of the emulator on Fedora and RHEL, outside `PATH`.
const EMULATOR_OF_RHEL: &str = "/usr/libexec/qemu-kvm";

/// The file name of libvirt's QEMU driver. `/proc/self/maps` lists it once it is loaded.
const DRIVER_MODULE: &str = "libvirt_driver_qemu.so";

/// The module with which that driver creates the scratch files of a backup job.
const FILES_MODULE: &str = "libvirt_storage_file_fs.so";

/// The name of that module's folder, which is beside the driver's folder.
const FILES_FOLDER: &str = "storage-file";

/// The newest version of libvirt, in libvirt's encoding, for which vmsnap reports a missing module:
/// 10.0 needs it, 11.3 does not.
const NEEDS_FILES_MODULE: u32 = 10_000_000;

/// The variable that sets another folder for libvirt.
const FILES_VARIABLE: &str = "LIBVIRT_STORAGE_FILE_DIR";

/// A component that distributions package separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// libvirt's QEMU driver, a module that libvirt loads.
    Driver,
    /// The module with which the driver creates scratch files.
    Files,
    /// QEMU's system emulator.
    Emulator,
}

impl Part {
    /// The name that users know.
    pub fn name(self) -> &'static str {
        match self {
            Part::Driver => "libvirt's QEMU driver",
            Part::Files => FILES_MODULE,
            Part::Emulator => EMULATORS[0],
        }
    }

    /// The packages of Debian and Ubuntu.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Part::Driver => "libvirt-daemon-driver-qemu libvirt-daemon",
            Part::Files => "libvirt-daemon",
            Part::Emulator => "qemu-system-x86",
        }
    }

    /// The packages of Fedora and RHEL.
    pub(crate) fn fedora(self) -> &'static str {
        match self {
            Part::Driver => "libvirt-daemon-driver-qemu libvirt-daemon-driver-storage-core",
            Part::Files => "libvirt-daemon-driver-storage-core",
            Part::Emulator => "qemu-kvm-core",
        }
    }
}

/// The names of these parts in one line.
pub fn names(parts: &[Part]) -> String {
    let names: Vec<&str> = parts.iter().map(|part| part.name()).collect();
    names.join(", ")
}

/// The parts that are not installed. `uri` is the embedded driver's. No program is started.
pub(super) fn missing(uri: &str) -> Vec<Part> {
    let lacks_driver = Connect::open(Some(uri)).is_err_and(|error| error.code() == ErrorNumber::NoConnect);
    let has_emulator = EMULATORS.into_iter().any(is_installed) || Path::new(EMULATOR_OF_RHEL).exists();
    let parts = [
        (Part::Driver, lacks_driver),
        (Part::Files, lacks_files_module()),
        (Part::Emulator, !has_emulator),
    ];
    parts
        .into_iter()
        .filter(|(_, is_missing)| *is_missing)
        .map(|(part, _)| part)
        .collect()
}

/// Whether the loaded driver lacks the module that creates files. libvirt reports that only when a
/// backup job begins, as a file that does not exist.
fn lacks_files_module() -> bool {
    let configured = std::env::var_os(FILES_VARIABLE).map(PathBuf::from);
    let is_modular = Connect::get_version().is_ok_and(needs_files_module);
    if configured.is_none() && !is_modular {
        return false;
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let folder = folder_of_driver(&maps)
        .map(|beside| configured.unwrap_or_else(|| beside.with_file_name(FILES_FOLDER)));
    folder.is_some_and(|folder| !folder.join(FILES_MODULE).exists())
}

/// Whether this version of libvirt's driver creates files with a module.
fn needs_files_module(version: u32) -> bool {
    version <= NEEDS_FILES_MODULE
}

/// The folder of the loaded driver, from the text of `/proc/self/maps` (proc(5)); `None` if no
/// driver is loaded.
fn folder_of_driver(maps: &str) -> Option<&Path> {
    let paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let mut drivers = paths.filter(|path| path.ends_with(DRIVER_MODULE));
    drivers.next()?.parent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_driver_is_found_among_the_mappings() {
        let maps = "55d0c0de2000-55d0c0de4000 r--p 00000000 fe:01 42   /usr/bin/vmsnap\n\
                    7f10a1c00000-7f10a1c28000 rw-p 00000000 00:00 0\n\
                    7f10a1d00000-7f10a1d28000 r--p 00000000 fe:01 77   \
                    /usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so\n\
                    7ffd3a5c0000-7ffd3a5e1000 rw-p 00000000 00:00 0   [stack]\n";
        let folder = Path::new("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver");
        assert_eq!(folder_of_driver(maps), Some(folder));
        assert_eq!(
            folder_of_driver("7f10-7f11 r--p 0 fe:01 7 /usr/lib/libvirt.so.0\n"),
            None
        );
        assert_eq!(folder_of_driver(""), None);
    }

    #[test]
    fn libvirt_needs_the_files_module_up_to_10_0() {
        // Ubuntu 22.04, Debian 12, Ubuntu 24.04, Debian 13.
        let needs = [8_000_000, 9_000_000, 10_000_000, 11_003_000].map(needs_files_module);
        assert_eq!(needs, [true, true, true, false]);
    }
}
