//! The parts of libvirt and QEMU that the throw-away domain needs.

use std::path::Path;

use virt::connect::Connect;
use virt::error::ErrorNumber;

use crate::host::qemu::is_installed;

/// The names under which libvirt looks for the emulator.
const EMULATORS: [&str; 2] = ["qemu-system-x86_64", "qemu-kvm"];

/// Where Fedora and RHEL keep it, outside `PATH`.
const EMULATOR_OF_RHEL: &str = "/usr/libexec/qemu-kvm";

/// A part that distributions package by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// libvirt's QEMU driver, a module that libvirt loads.
    Driver,
    /// QEMU's system emulator.
    Emulator,
}

impl Part {
    /// What users know it by.
    pub fn name(self) -> &'static str {
        match self {
            Part::Driver => "libvirt's QEMU driver",
            Part::Emulator => EMULATORS[0],
        }
    }

    /// The packages of Debian and Ubuntu. Debian 12 and Ubuntu have a part of the driver in `libvirt-daemon`.
    pub fn debian(self) -> &'static str {
        match self {
            Part::Driver => "libvirt-daemon-driver-qemu libvirt-daemon",
            Part::Emulator => "qemu-system-x86",
        }
    }

    /// The package of Fedora and RHEL.
    pub fn fedora(self) -> &'static str {
        match self {
            Part::Driver => "libvirt-daemon-driver-qemu",
            Part::Emulator => "qemu-kvm-core",
        }
    }
}

/// The names of these parts in one line.
pub fn names(parts: &[Part]) -> String {
    let names: Vec<&str> = parts.iter().map(|part| part.name()).collect();
    names.join(", ")
}

/// The parts that are not installed. `uri` is the embedded driver's; nothing is started.
pub(super) fn missing(uri: &str) -> Vec<Part> {
    let lacks_driver = Connect::open(Some(uri)).is_err_and(|error| error.code() == ErrorNumber::NoConnect);
    let has_emulator = EMULATORS.into_iter().any(is_installed) || Path::new(EMULATOR_OF_RHEL).exists();
    let parts = [(Part::Driver, lacks_driver), (Part::Emulator, !has_emulator)];
    parts
        .into_iter()
        .filter(|(_, is_missing)| *is_missing)
        .map(|(part, _)| part)
        .collect()
}
