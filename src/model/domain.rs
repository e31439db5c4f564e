//! A libvirt virtual machine and its disks, as its XML tells.

use std::path::PathBuf;

use super::finding::Finding;

/// Whether the domain runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// Running (also: blocked, being shut down, suspended by its guest).
    Running,
    /// Paused, by whom ever.
    Paused,
    /// Not running: shut off or crashed.
    ShutOff,
}

impl DomainState {
    /// Whether there is a QEMU process that holds the disks.
    pub fn is_active(self) -> bool {
        self != DomainState::ShutOff
    }

    /// The word for it, as `virsh` says it.
    pub fn word(self) -> &'static str {
        match self {
            DomainState::Running => "running",
            DomainState::Paused => "paused",
            DomainState::ShutOff => "shut off",
        }
    }
}

/// A domain as the hypervisor describes it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its name, exactly as libvirt has it.
    pub name: String,
    /// Its UUID, in libvirt's spelling.
    pub uuid: String,
    /// Whether it runs.
    pub state: DomainState,
    /// Whether its definition outlives its run.
    pub persistent: bool,
    /// The id of the run, while it runs.
    pub id: Option<u32>,
    /// Its drives in the order of the XML, those included that are never backed up.
    pub disks: Vec<Disk>,
    /// Where its UEFI variables are kept, if it has any.
    pub nvram: Option<PathBuf>,
    /// Whether it has an emulated TPM, whose state is not in any disk.
    pub has_tpm_state: bool,
    /// Whether it has a guest agent channel, and the agent was connected when last seen.
    pub agent: Agent,
    /// The XML to define it again: inactive form, security information included.
    pub inactive_xml: String,
}

impl Domain {
    /// The disk of that target.
    pub fn disk(&self, target: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

/// What is known of the guest agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// The domain has no channel for it.
    None,
    /// There is a channel; nobody is connected to it in the guest.
    Disconnected,
    /// There is a channel and something in the guest has opened it.
    Connected,
}

/// What the guest sees the drive as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A plain disk.
    Disk,
    /// A CD drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// A SCSI LUN passed through.
    Lun,
}

/// Where the drive's content lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file on the host.
    File(PathBuf),
    /// A block device on the host.
    Block(PathBuf),
    /// Something else (network, volume, NVMe …); libvirt's word for it.
    Other(String),
    /// Nothing: an empty drive.
    Empty,
}

impl Source {
    /// The path on the host, where there is one.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Source::File(path) | Source::Block(path) => Some(path),
            Source::Other(_) | Source::Empty => None,
        }
    }
}

/// How the drive's content is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// qcow2 of version 3 (or not known to be older): carries dirty bitmaps.
    Qcow2,
    /// qcow2 of version 2 (`compat=0.10`): cannot carry dirty bitmaps.
    Qcow2V2,
    /// No layout: the bytes themselves.
    Raw,
    /// Another one; QEMU's word for it.
    Other(String),
}

/// One drive of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its target, the name by which everything speaks of it (`vda`).
    pub target: String,
    /// What the guest sees it as.
    pub device: Device,
    /// Where its content lies.
    pub source: Source,
    /// How its content is laid out.
    pub format: DiskFormat,
    /// Whether the guest may not write to it.
    pub readonly: bool,
    /// Whether other domains may write to it at the same time.
    pub shareable: bool,
    /// Whether its writes are thrown away when the domain stops.
    pub transient: bool,
    /// The images beneath its source, topmost first, as far as the XML of a running domain tells them.
    pub beneath: Vec<PathBuf>,
}

/// What a backup does with a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Eligibility {
    /// Backed up; its bitmaps let it be incremental.
    Incremental,
    /// Backed up, always in full, for this reason.
    FullOnly(String),
    /// Not backed up, for the reason in the finding.
    Skipped(Finding),
}

impl Disk {
    /// What a backup does with this drive. `raw`: whether the user asked for raw disks too.
    pub fn eligibility(&self, raw: bool) -> Eligibility {
        let skip = |why: &str| {
            Eligibility::Skipped(Finding::of_disk(
                "disk-skipped",
                &self.target,
                format!("disk {} is not backed up: {why}", self.target),
            ))
        };
        match self.device {
            Device::Cdrom => return skip("it is a CD drive"),
            Device::Floppy => return skip("it is a floppy drive"),
            Device::Lun => return skip("it is a SCSI LUN passed through to the guest"),
            Device::Disk => {}
        }
        match &self.source {
            Source::Empty => return skip("the drive is empty"),
            Source::Other(kind) => return skip(&format!("its source is of type '{kind}'")),
            Source::File(_) | Source::Block(_) => {}
        }
        if self.shareable {
            return skip("it is shareable, so other domains may write to it at the same time");
        }
        if self.transient {
            return skip("it is transient, so its content ends with the run");
        }
        match &self.format {
            DiskFormat::Qcow2 if self.readonly => {
                Eligibility::FullOnly("a read-only disk cannot carry a dirty bitmap".to_owned())
            }
            DiskFormat::Qcow2 => Eligibility::Incremental,
            DiskFormat::Qcow2V2 => Eligibility::FullOnly(
                "its image is qcow2 version 2, which cannot carry dirty bitmaps \
                 (qemu-img amend -o compat=1.1 upgrades it while the domain is shut off)"
                    .to_owned(),
            ),
            DiskFormat::Raw if raw => {
                Eligibility::FullOnly("a raw disk cannot carry a dirty bitmap".to_owned())
            }
            DiskFormat::Raw => skip("it is raw; give --raw to back it up in full each time"),
            DiskFormat::Other(format) => skip(&format!("its format '{format}' is not supported")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk {
            target: "vda".into(),
            device: Device::Disk,
            source: Source::File("/images/a.qcow2".into()),
            format: DiskFormat::Qcow2,
            readonly: false,
            shareable: false,
            transient: false,
            beneath: vec![],
        }
    }

    #[test]
    fn a_plain_qcow2_disk_is_incremental() {
        assert_eq!(disk().eligibility(false), Eligibility::Incremental);
    }

    #[test]
    fn raw_disks_need_the_switch_and_the_finding_says_so() {
        let raw = Disk {
            format: DiskFormat::Raw,
            ..disk()
        };
        match raw.eligibility(false) {
            Eligibility::Skipped(finding) => assert!(finding.message.contains("--raw")),
            other => panic!("{other:?}"),
        }
        assert!(matches!(raw.eligibility(true), Eligibility::FullOnly(_)));
    }

    #[test]
    fn what_is_not_the_domains_own_is_skipped() {
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
                device: Device::Lun,
                ..disk()
            },
            Disk {
                source: Source::Empty,
                ..disk()
            },
            Disk {
                source: Source::Other("network".into()),
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
            assert!(
                matches!(case.eligibility(true), Eligibility::Skipped(_)),
                "{case:?}"
            );
        }
    }
}
