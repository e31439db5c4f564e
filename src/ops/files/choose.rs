//! Finds the file systems in the disks, and mounts those that are to be read.

use std::ffi::OsString;
use std::path::Path;

use super::{DiskDevice, FileSystemFacts, FileSystems, Session};
use crate::host::guestfish::{FileSystem, MountPoint};
use crate::model::files_fault::FilesFault;
use crate::model::finding::Finding;
use crate::model::text::shown;
use crate::ops::Result;
use crate::ops::serve::Served;

/// Which file systems are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    /// Those of the operating system with this root.
    System(String),
    /// This one.
    Device(String),
}

/// Lists the disks, their file systems, and the operating systems.
pub(super) fn survey(session: &mut Session<'_>, served: &Served) -> Result<FileSystems> {
    let devices = session.ask(&[b"list-devices"])?;
    let devices = String::from_utf8_lossy(&devices).into_owned();
    let disks = served.disks.iter().zip(devices.lines());
    let mut systems = FileSystems {
        disks: disks
            .map(|(disk, device)| DiskDevice {
                target: disk.target.clone(),
                device: device.to_owned(),
                size: disk.size,
            })
            .collect(),
        ..FileSystems::default()
    };
    let mut mounts = Vec::new();
    let listed = list(session)?;
    for root in roots(session)? {
        mounts.extend(mount_points(session, &root)?);
        let name = session.try_ask(&[b"inspect-get-product-name", root.as_bytes()])?;
        let name = Some(text(&name)).filter(|name| !name.is_empty() && name != "unknown");
        systems.systems.push((root, name));
    }
    for system in listed {
        let device = system.device.as_bytes();
        let label = text(&session.try_ask(&[b"vfs-label", device])?);
        let size = match device.starts_with(b"/dev/") {
            true => text(&session.try_ask(&[b"blockdev-getsize64", device])?)
                .parse()
                .ok(),
            false => None,
        };
        let mounted = mounts.iter().filter(|mount| mount.device == system.device);
        systems.found.push(FileSystemFacts {
            label: Some(label).filter(|label| !label.is_empty()),
            size,
            mounted_on: mounted.map(|mount| mount.path.clone()).collect::<Vec<OsString>>(),
            device: system.device,
            kind: system.kind,
        });
    }
    Ok(systems)
}

/// Mounts the file system of the wanted device; without a wanted device, the file systems that the
/// operating system mounts, or the only file system.
pub(super) fn mount(session: &mut Session<'_>, device: Option<&str>, notes: &mut Vec<Finding>) -> Result<()> {
    let listed = list(session)?;
    let roots = match device {
        Some(_) => Vec::new(),
        None => roots(session)?,
    };
    let choice = choose(device, &roots, &listed).map_err(|fault| session.fault(fault))?;
    let mounts = match choice {
        Choice::Device(device) => vec![MountPoint {
            path: "/".into(),
            device,
        }],
        Choice::System(root) => mount_points(session, &root)?,
    };
    for mount in &mounts {
        let path = mount.path.as_encoded_bytes();
        let words = [b"mount-ro", mount.device.as_bytes(), path];
        match path {
            b"/" => session.ask(&words)?,
            _ => session.try_ask(&words)?,
        };
    }
    let mounted = session.ask(&[b"mountpoints"])?;
    let mounted = MountPoint::list(&mounted, true);
    let is_there = |wanted: &MountPoint| {
        mounted
            .iter()
            .any(|found| Path::new(&found.path) == Path::new(&wanted.path))
    };
    session.not_mounted = mounts.into_iter().filter(|wanted| !is_there(wanted)).collect();
    notes.extend(session.not_mounted.iter().map(|mount| {
        let what = format!(
            "the file system on {} could not be mounted on {}, so its files are missing",
            shown(&mount.device),
            shown(&mount.path.to_string_lossy())
        );
        Finding::new("file-system-not-mounted", what)
    }));
    Ok(())
}

/// The file systems, also encrypted ones, which guestfish leaves out.
fn list(session: &mut Session<'_>) -> Result<Vec<FileSystem>> {
    let mut found = FileSystem::list(&session.ask(&[b"list-filesystems"])?);
    for command in [&b"list-devices"[..], b"list-partitions", b"lvs"] {
        for device in text(&session.try_ask(&[command])?).lines() {
            if found.iter().any(|found| found.device == device) {
                continue;
            }
            let kind = text(&session.try_ask(&[b"vfs-type", device.as_bytes()])?);
            let device = device.to_owned();
            found.extend(Some(FileSystem { device, kind }).filter(|found| found.encryption().is_some()));
        }
    }
    Ok(found)
}

/// The roots of the operating systems.
fn roots(session: &mut Session<'_>) -> Result<Vec<String>> {
    let answer = session.try_ask(&[b"inspect-os"])?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    Ok(answer.lines().map(str::to_owned).collect())
}

fn mount_points(session: &mut Session<'_>, root: &str) -> Result<Vec<MountPoint>> {
    let answer = session.ask(&[b"inspect-get-mountpoints", root.as_bytes()])?;
    let mut found = MountPoint::list(&answer, false);
    if !found.iter().any(|mount| mount.path == "/") {
        let path = "/".into();
        let device = root.to_owned();
        found.insert(0, MountPoint { path, device });
    }
    Ok(found)
}

fn text(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).into_owned()
}

/// Decides which file systems are mounted.
fn choose(
    device: Option<&str>,
    roots: &[String],
    listed: &[FileSystem],
) -> std::result::Result<Choice, FilesFault> {
    if let Some(device) = device {
        let found = listed.iter().find(|found| found.device == device);
        let found = found.ok_or_else(|| FilesFault::NoSuchDevice {
            device: shown(device),
            there: named(listed.iter()),
        })?;
        refuse_encrypted(found)?;
        return Ok(Choice::Device(device.to_owned()));
    }
    match roots {
        [] => {}
        [root] => return Ok(Choice::System(root.clone())),
        several => {
            let there = several
                .iter()
                .map(|root| shown(root))
                .collect::<Vec<_>>()
                .join(", ");
            let what = "operating systems";
            return Err(FilesFault::Several { what, there });
        }
    }
    let usable: Vec<&FileSystem> = listed.iter().filter(|found| found.may_hold_files()).collect();
    match usable[..] {
        [only] => Ok(Choice::Device(only.device.clone())),
        [] => {
            listed.iter().try_for_each(refuse_encrypted)?;
            let there = match listed {
                [] => String::new(),
                listed => format!(", only {}", named(listed.iter())),
            };
            Err(FilesFault::NoFileSystem { there })
        }
        _ => Err(FilesFault::Several {
            what: "file systems",
            there: named(usable.into_iter()),
        }),
    }
}

fn refuse_encrypted(system: &FileSystem) -> std::result::Result<(), FilesFault> {
    match system.encryption() {
        None => Ok(()),
        Some(with) => Err(FilesFault::Encrypted {
            device: shown(&system.device),
            with,
        }),
    }
}

/// The devices with their types, for a message.
fn named<'a>(systems: impl Iterator<Item = &'a FileSystem>) -> String {
    let named: Vec<String> = systems
        .map(|system| format!("{} ({})", shown(&system.device), shown(&system.kind)))
        .collect();
    match named.is_empty() {
        true => "none".to_owned(),
        false => named.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(systems: &[(&str, &str)]) -> Vec<FileSystem> {
        let systems = systems.iter().map(|(device, kind)| FileSystem {
            device: (*device).to_owned(),
            kind: (*kind).to_owned(),
        });
        systems.collect()
    }

    fn chosen(
        device: Option<&str>,
        roots: &[&str],
        systems: &[(&str, &str)],
    ) -> std::result::Result<Choice, String> {
        let roots: Vec<String> = roots.iter().map(|root| (*root).to_owned()).collect();
        choose(device, &roots, &listed(systems)).map_err(|fault| fault.to_string())
    }

    const SYSTEMS: [(&str, &str); 4] = [
        ("/dev/sda1", "ext4"),
        ("/dev/sda2", "swap"),
        ("/dev/vg/a", "xfs"),
        ("/dev/sdb", "crypto_LUKS"),
    ];

    #[test]
    fn an_operating_system_decides_unless_a_device_is_given() {
        let system = Choice::System("/dev/vg/a".to_owned());
        assert_eq!(chosen(None, &["/dev/vg/a"], &SYSTEMS), Ok(system));
        let device = Choice::Device("/dev/sda1".to_owned());
        assert_eq!(
            chosen(Some("/dev/sda1"), &["/dev/vg/a"], &SYSTEMS),
            Ok(device.clone())
        );
        assert_eq!(chosen(None, &[], &SYSTEMS[..2]), Ok(device));
    }

    #[test]
    fn what_cannot_be_chosen_is_named() {
        let said = chosen(None, &["/dev/sda1", "/dev/vg/a"], &SYSTEMS).unwrap_err();
        assert_eq!(said, "there are several operating systems: /dev/sda1, /dev/vg/a");
        let said = chosen(None, &[], &SYSTEMS).unwrap_err();
        assert_eq!(
            said,
            "there are several file systems: /dev/sda1 (ext4), /dev/vg/a (xfs)"
        );
        let said = chosen(Some("/dev/sdx"), &[], &SYSTEMS[..2]).unwrap_err();
        assert_eq!(
            said,
            "there is no file system on /dev/sdx; the file systems are: /dev/sda1 (ext4), /dev/sda2 (swap)"
        );
        let said = chosen(Some("/dev/sdb"), &[], &SYSTEMS).unwrap_err();
        assert!(said.contains("/dev/sdb is encrypted (LUKS)"), "{said}");
        let said = chosen(None, &[], &SYSTEMS[3..]).unwrap_err();
        assert!(said.contains("/dev/sdb is encrypted (LUKS)"), "{said}");
        let said = chosen(None, &[], &[]).unwrap_err();
        assert_eq!(said, "no file system was found in the disks");
        let said = chosen(None, &[], &[("/dev/sda", "unknown")]).unwrap_err();
        assert_eq!(
            said,
            "no file system was found in the disks, only /dev/sda (unknown)"
        );
    }
}
