//! Decides which drives of a domain a backup saves, and whether they can be incremental. Pure.

use super::domain::{Device, Disk, DiskFormat, Domain, Source};
use super::finding::Finding;
use super::left_out::{Exclusion, Kind, LeftOut};
use super::text::shown;

/// The kinds of disks that a backup saves only on request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Raw disks.
    pub raw: bool,
    /// Encrypted disks, whose plain text the backup stores.
    pub decrypted: bool,
}

impl Allowed {
    /// Every kind that can be read.
    pub const ALL: Allowed = Allowed {
        raw: true,
        decrypted: true,
    };
}

/// The decision of a backup about a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Eligibility {
    /// Backed up, and incremental if possible, because the disk can carry bitmaps.
    Incremental,
    /// Always backed up in full, for this reason.
    FullOnly(String),
    /// Not backed up.
    Skipped(LeftOut),
    /// A removable-media drive, or an empty one: there is nothing to back up.
    NoDisk(&'static str),
}

impl Disk {
    /// Decides what a backup does with this drive.
    pub fn eligibility(&self, allowed: Allowed) -> Eligibility {
        let skip = |why: &str| Eligibility::Skipped(LeftOut::skipped(&self.target, why));
        match self.device {
            Device::Cdrom => return Eligibility::NoDisk("it is a CD drive"),
            Device::Floppy => return Eligibility::NoDisk("it is a floppy drive"),
            Device::Lun => {
                return match self.source {
                    Source::Empty => Eligibility::NoDisk("the drive is empty"),
                    _ => skip("it is a SCSI LUN passed through to the guest"),
                };
            }
            Device::Disk => {}
        }
        match &self.source {
            Source::Empty => return Eligibility::NoDisk("the drive is empty"),
            Source::Other(kind) => return skip(&format!("its source type '{kind}' is not supported")),
            Source::Directory(_) => return skip("it is a directory of the host, not an image"),
            Source::VhostUser(_) => {
                return skip(
                    "it is of type 'vhostuser': another process provides the disk, and QEMU cannot read the disk; \
                     back up the disk where its content is stored",
                );
            }
            Source::VhostVdpa(_) => {
                return skip(
                    "it is of type 'vhostvdpa': a device of the host provides the disk, and QEMU cannot read the disk; \
                     back up the disk where its content is stored",
                );
            }
            Source::File(_) | Source::Block(_) | Source::Volume(_) | Source::Network(_) | Source::Nvme(_) => {
            }
        }
        if self.is_slice {
            return skip("it is only a slice of its image");
        }
        if self.shareable {
            return skip("it is shareable, so other domains may write to it at the same time");
        }
        if self.transient {
            return skip("it is transient, so its changes are discarded when the domain stops");
        }
        if let Some(left) = self.not_allowed(allowed) {
            return Eligibility::Skipped(left);
        }
        if let Some(why) = &self.unreadable {
            return skip(why);
        }
        match &self.format {
            DiskFormat::Qcow2 if self.readonly => {
                Eligibility::FullOnly("a read-only disk cannot carry a dirty bitmap".to_owned())
            }
            DiskFormat::Qcow2 => Eligibility::Incremental,
            DiskFormat::Qcow2V2 => Eligibility::FullOnly(
                "the disk's image is qcow2 version 2, which cannot carry dirty bitmaps \
                 (`qemu-img amend -o compat=1.1` upgrades the image while the domain is shut off)"
                    .to_owned(),
            ),
            DiskFormat::Raw => Eligibility::FullOnly("a raw disk cannot carry a dirty bitmap".to_owned()),
            DiskFormat::Other(format) => skip(&format!("its format '{format}' is not supported")),
        }
    }

    /// Why the disk is left out unless the user allows it; `None` if it is allowed.
    fn not_allowed(&self, allowed: Allowed) -> Option<LeftOut> {
        let is_raw = self.format == DiskFormat::Raw && !allowed.raw;
        let is_encrypted = self.is_encrypted() && !allowed.decrypted;
        let (kind, reason) = match (is_raw, is_encrypted) {
            (false, false) => return None,
            (true, false) => (Kind::Raw, "it is raw; use --raw to back it up in full each time"),
            (true, true) => (
                Kind::Raw,
                "it is raw and encrypted; use --raw to back it up in full each time, and --store-decrypted \
                 to allow the disk's plain text in the backup",
            ),
            (false, true) => (
                Kind::Encrypted,
                "it is encrypted, and the backup would hold its plain text; use --store-decrypted to allow that",
            ),
        };
        Some(LeftOut {
            disk: self.target.clone(),
            kind,
            reason: reason.to_owned(),
        })
    }
}

/// Decides what a backup does with a disk of this domain. `excluded` lists the disks that the
/// command line excludes.
pub fn of(domain: &Domain, disk: &Disk, allowed: Allowed, excluded: &[Exclusion]) -> Eligibility {
    let of_disk = disk.eligibility(allowed);
    if matches!(of_disk, Eligibility::NoDisk(_)) {
        return of_disk;
    }
    let reason = if excluded.iter().any(|excluded| excluded.disk == disk.target) {
        "--exclude-disk names it"
    } else if domain.excluded.contains(&disk.target) {
        "the domain's metadata excludes it"
    } else {
        return of_disk;
    };
    Eligibility::Skipped(LeftOut {
        disk: disk.target.clone(),
        kind: Kind::Excluded,
        reason: reason.to_owned(),
    })
}

/// Reports exclusions of disks that the domain does not have. They are most likely misspelt, so
/// more is saved than the user intended.
pub(crate) fn missing_exclusions(domain: &Domain, excluded: &[Exclusion]) -> Vec<Finding> {
    let finding = |disk: &str, where_from: &str| {
        let what = format!(
            "{where_from} names disk '{}', which the domain does not have",
            shown(disk)
        );
        Finding::of_disk("excluded-disk-missing", disk, what)
    };
    let is_missing = |disk: &str| domain.disk(disk).is_none();
    let typed = excluded
        .iter()
        .filter(|excluded| excluded.is_expected && is_missing(&excluded.disk))
        .map(|excluded| finding(&excluded.disk, "--exclude-disk"));
    let marked = domain.excluded.iter().filter(|disk| is_missing(disk));
    let marked = marked.map(|disk| finding(disk, "the domain's metadata"));
    typed.chain(marked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk::new("vda", Source::File("/images/a.qcow2".into()), DiskFormat::Qcow2)
    }

    #[test]
    fn a_plain_qcow2_disk_is_incremental() {
        assert_eq!(disk().eligibility(Allowed::default()), Eligibility::Incremental);
    }

    #[test]
    fn raw_disks_need_the_switch_and_the_finding_says_so() {
        let raw = Disk {
            format: DiskFormat::Raw,
            ..disk()
        };
        match raw.eligibility(Allowed::default()) {
            Eligibility::Skipped(left) => {
                assert_eq!(left.kind, Kind::Raw);
                assert!(left.reason.contains("--raw"));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(raw.eligibility(Allowed::ALL), Eligibility::FullOnly(_)));
    }

    #[test]
    fn what_cannot_be_saved_is_skipped() {
        let cases = [
            Disk {
                device: Device::Lun,
                ..disk()
            },
            Disk {
                source: Source::Other("teleport".into()),
                ..disk()
            },
            Disk {
                source: Source::VhostUser("/run/s".into()),
                ..disk()
            },
            Disk {
                source: Source::Directory("/d".into()),
                ..disk()
            },
            Disk {
                is_slice: true,
                ..disk()
            },
            Disk {
                unreadable: Some("its path is a FIFO".into()),
                ..disk()
            },
            Disk {
                shareable: true,
                ..disk()
            },
            Disk {
                transient: true,
                ..disk()
            },
        ];
        for case in cases {
            match case.eligibility(Allowed::ALL) {
                Eligibility::Skipped(left) => assert_eq!(left.kind, Kind::Skipped),
                other => panic!("{case:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn drives_for_media_and_empty_drives_are_no_disks() {
        let cases = [
            Disk {
                device: Device::Cdrom,
                ..disk()
            },
            Disk {
                device: Device::Floppy,
                ..disk()
            },
            Disk {
                source: Source::Empty,
                ..disk()
            },
            Disk {
                device: Device::Lun,
                source: Source::Empty,
                ..disk()
            },
        ];
        for case in cases {
            let found = case.eligibility(Allowed::ALL);
            assert!(matches!(found, Eligibility::NoDisk(_)), "{case:?}");
        }
    }
}
