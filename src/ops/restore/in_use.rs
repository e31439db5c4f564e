//! Keeps a restore from overwriting what is in use.
//!
//! A device is checked when the restore is planned, after it was claimed, before the first write,
//! and after the last one.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::{RestoredDisk, io_cause};
use crate::host::usage::{self, HeldDevice, HoldError, Usage, Usages, User};
use crate::host::{DomainFiles, Host};
use crate::model::finding::Finding;
use crate::model::text::{bytes, shown};
use crate::ops::Cause;
use crate::wait;

/// How long a new device may be missing or claimed before the restore gives up.
const NEW: Duration = Duration::from_secs(10);
/// Time between two tries.
const STEP: Duration = Duration::from_millis(100);

type Result<T> = std::result::Result<T, Cause>;

/// Returns the files that domains use. Without a hypervisor, a finding says that they are unknown.
pub(super) fn domain_files(host: Option<&dyn Host>) -> Result<DomainFiles> {
    match host {
        Some(host) => Ok(host.domain_files()?),
        None => Ok(DomainFiles {
            files: Vec::new(),
            findings: vec![Finding::new(
                "domains-not-known",
                "cannot ask libvirt whether a domain uses the device; only processes, mounts, swap and other devices \
                 of this machine were checked",
            )],
        }),
    }
}

/// Refuses a device that is in use, or too small for the disk.
pub(super) fn check_device(disk: &RestoredDisk, named: &DomainFiles) -> Result<Vec<Finding>> {
    let path = &disk.to;
    let found = usage::users_of(path, named).map_err(|source| io_cause("examine", path, source))?;
    let mut findings = refuse_users(path, found)?;
    if let Some(size) = usage::device_size(path) {
        check_size(disk, size)?;
        findings.extend(larger(disk, size));
    }
    Ok(findings)
}

/// Refuses a new file whose path an active domain uses. Returns a finding for a shut-off domain
/// that uses it.
pub(super) fn check_file(path: &Path, named: &DomainFiles) -> Result<Vec<Finding>> {
    let naming = usage::domains_naming(path, named);
    let active = naming.iter().filter(|file| file.is_active).map(|file| Usage {
        user: User::Domain {
            name: file.domain.clone(),
            role: file.role.clone(),
            is_active: true,
        },
        part: None,
    });
    let users: Vec<Usage> = active.collect();
    if !users.is_empty() {
        let path = path.to_owned();
        return Err(Cause::InUse { path, users });
    }
    let finding = |domain: &str, role: &str| {
        let what = format!(
            "the definition of the shut-off domain '{}' names {} as {role}: this domain will start with the restored file",
            shown(domain),
            path.display()
        );
        Finding::new("file-of-a-domain", what)
    };
    let named_by = naming.iter().map(|file| finding(&file.domain, &file.role));
    Ok(named_by.chain(named.findings.iter().cloned()).collect())
}

/// Claims the device of a disk, before anything is written to it. The claim ends when it is
/// dropped.
pub(super) fn claim<'a>(disk: &RestoredDisk, host: Option<&'a dyn Host>) -> Result<Claim<'a>> {
    let path = &disk.to;
    let held = HeldDevice::open(path).map_err(|error| match error {
        HoldError::Io(source) => io_cause("use", path, source),
        HoldError::Used(user) => in_use(path, user, host),
    })?;
    let size = length_of(&held, path)?;
    check_size(disk, size)?;
    let claim = Claim { held, host };
    claim.check()?;
    Ok(claim)
}

/// Claims a device that libvirt has just created. Waits a moment, because udev may have the device
/// open.
pub(super) fn claim_new(disk: &RestoredDisk) -> Result<Claim<'static>> {
    let path = &disk.to;
    let opened = wait::until(NEW, STEP, || match HeldDevice::open(path) {
        Err(HoldError::Used(_)) => None,
        Err(HoldError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
        opened => Some(opened),
    });
    let held = match opened {
        Some(Ok(held)) => held,
        Some(Err(HoldError::Io(source))) => return Err(io_cause("use", path, source)),
        Some(Err(HoldError::Used(user))) => return Err(in_use(path, user, None)),
        None if !path.exists() => return Err(io_cause("use", path, io::ErrorKind::NotFound.into())),
        None => return Err(in_use(path, User::Claim, None)),
    };
    let size = length_of(&held, path)?;
    check_size(disk, size)?;
    Ok(Claim { held, host: None })
}

/// The length of a device in bytes.
fn length_of(held: &HeldDevice, path: &Path) -> Result<u64> {
    let mut end = held.file().map_err(|source| io_cause("use", path, source))?;
    let size = io::Seek::seek(&mut end, io::SeekFrom::End(0));
    size.map_err(|source| io_cause("examine", path, source))
}

/// A claim on a device, which keeps others from using it as far as the kernel and QEMU's locks
/// allow.
pub(super) struct Claim<'a> {
    held: HeldDevice,
    host: Option<&'a dyn Host>,
}

impl Claim<'_> {
    /// The open device.
    pub(super) fn device(&self) -> &HeldDevice {
        &self.held
    }

    /// Refuses a device that is in use in spite of the claim, which QEMU does not respect.
    pub(super) fn check(&self) -> Result<()> {
        let named = domain_files(self.host)?;
        refuse_users(self.held.path(), self.others(&named)?).map(drop)
    }

    /// Checks again after the last write. A device that came into use while it was written cannot
    /// be relied on.
    pub(super) fn check_written(&self) -> Result<()> {
        // If libvirt can no longer be asked, the written bytes are still right. QEMU is found as a
        // process.
        let named = domain_files(self.host).unwrap_or_default();
        match self.others(&named)?.users {
            users if users.is_empty() => Ok(()),
            users => Err(Cause::TakenMeanwhile {
                path: self.held.path().to_owned(),
                users,
            }),
        }
    }

    fn others(&self, named: &DomainFiles) -> Result<Usages> {
        usage::other_users_of(&self.held, named)
            .map_err(|source| io_cause("examine", self.held.path(), source))
    }
}

/// Creates the error for a device that somebody has claimed, with the users if they can be found.
fn in_use(path: &Path, user: User, host: Option<&dyn Host>) -> Cause {
    let found = domain_files(host)
        .ok()
        .and_then(|named| usage::users_of(path, &named).ok());
    let users = found.map(|found| found.users).filter(|users| !users.is_empty());
    Cause::InUse {
        path: path.to_owned(),
        users: users.unwrap_or_else(|| vec![Usage { user, part: None }]),
    }
}

fn refuse_users(path: &Path, found: Usages) -> Result<Vec<Finding>> {
    match found.users.is_empty() {
        true => Ok(found.findings),
        false => Err(Cause::InUse {
            path: path.to_owned(),
            users: found.users,
        }),
    }
}

fn check_size(disk: &RestoredDisk, device: u64) -> Result<()> {
    match device < disk.size {
        false => Ok(()),
        true => Err(Cause::TooSmall {
            path: disk.to.clone(),
            device,
            disk: disk.size,
        }),
    }
}

/// Reports a device that is larger than the disk, both in bytes.
fn larger(disk: &RestoredDisk, device: u64) -> Option<Finding> {
    (device > disk.size).then(|| {
        let what = format!(
            "{} ({}) is larger than disk {} ({}): the rest of the device stays as it is",
            disk.to.display(),
            bytes(device),
            disk.target,
            bytes(disk.size)
        );
        Finding::of_disk("device-larger", &disk.target, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::restore::Format;

    #[test]
    fn a_larger_device_is_reported() {
        let disk = RestoredDisk {
            target: "vda".to_owned(),
            size: 1 << 20,
            to: "/dev/vg/lv".into(),
            device: true,
            format: Format::Raw,
            steps: 1,
            volume: None,
        };
        assert_eq!(larger(&disk, 1 << 20), None);
        let found = larger(&disk, 4 << 20).expect("reported");
        assert_eq!(
            (found.code.as_str(), found.message.as_str()),
            (
                "device-larger",
                "/dev/vg/lv (4.19 MB) is larger than disk vda (1.05 MB): the rest of the device stays as it is"
            )
        );
    }

    #[test]
    fn domains_that_could_not_be_read_are_reported_for_a_file_too() {
        let named = DomainFiles {
            files: Vec::new(),
            findings: vec![Finding::new(
                "domains-not-known",
                "the XML of a domain is invalid",
            )],
        };
        let findings = check_file(Path::new("/images/new.qcow2"), &named).expect("nobody uses it");
        assert_eq!(findings, named.findings);
    }
}
