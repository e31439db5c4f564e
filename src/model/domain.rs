//! A libvirt virtual machine and its disks, as its XML tells.

use std::path::PathBuf;

use super::left_out::{Kind, LeftOut};
pub use super::storage::{Backing, DiskFormat, Encryption, Layer, Source};

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
    /// Targets of disks that its metadata excludes from backups, as they stand there: whether it has such disks is another matter.
    pub excluded: Vec<String>,
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
    /// How its image is encrypted.
    pub encryption: Option<Encryption>,
    /// Whether it is only a part of its source.
    pub is_slice: bool,
    /// Where the guest's bytes lie if the image holds only their mapping, as far as the definition says.
    pub data_file: Option<Box<Layer>>,
    /// The images beneath its source, as the definition says. That of a running domain names all of them.
    pub backing: Backing,
    /// Why it cannot be read in the domain's present state, if the hypervisor knows that it cannot.
    pub unreadable: Option<String>,
}

impl Disk {
    /// A plain disk of which nothing else is known.
    pub fn new(target: &str, source: Source, format: DiskFormat) -> Disk {
        Disk {
            target: target.to_owned(),
            device: Device::Disk,
            source,
            format,
            readonly: false,
            shareable: false,
            transient: false,
            encryption: None,
            is_slice: false,
            data_file: None,
            backing: Backing::Unsaid,
            unreadable: None,
        }
    }

    /// The images beneath its source, topmost first, as far as the definition names them.
    pub fn beneath(&self) -> impl Iterator<Item = &Layer> {
        let first = match &self.backing {
            Backing::Layer(layer) => Some(layer.as_ref()),
            Backing::Unsaid | Backing::End => None,
        };
        first.into_iter().flat_map(Layer::layers)
    }

    /// The disk's topmost image.
    pub fn image(&self) -> Layer {
        Layer {
            source: self.source.clone(),
            format: self.format.clone(),
            encryption: self.encryption.clone(),
            is_slice: self.is_slice,
            data_file: self.data_file.clone(),
            backing: self.backing.clone(),
        }
    }

    /// Whether the definition says that any of its images is encrypted: its source, one beneath it, or a data file.
    pub fn is_encrypted(&self) -> bool {
        self.image().layers().any(Layer::is_encrypted)
    }
}

/// Which disks a backup may save beyond those that it saves anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Raw disks.
    pub raw: bool,
    /// Encrypted disks, of which the backup holds the plain text.
    pub decrypted: bool,
}

impl Allowed {
    /// Everything that can be read.
    pub const ALL: Allowed = Allowed {
        raw: true,
        decrypted: true,
    };
}

/// What a backup does with a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Eligibility {
    /// Backed up; its bitmaps let it be incremental.
    Incremental,
    /// Backed up, always in full, for this reason.
    FullOnly(String),
    /// Not backed up.
    Skipped(LeftOut),
    /// A drive for media, or an empty one: no disk, and nothing to back up.
    NoDisk(&'static str),
}

impl Disk {
    /// What a backup does with this drive.
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
            Source::Other(kind) => return skip(&format!("its source is of type '{kind}'")),
            Source::Directory(_) => return skip("it is a directory of the host, not an image"),
            Source::VhostUser(_) => {
                return skip(
                    "it is of type 'vhostuser': another process provides it and QEMU cannot read it; \
                     back it up where it is kept",
                );
            }
            Source::VhostVdpa(_) => {
                return skip(
                    "it is of type 'vhostvdpa': a device of the host provides it and QEMU cannot read it; \
                     back it up where it is kept",
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
            return skip("it is transient, so its content ends with the run");
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
                "its image is qcow2 version 2, which cannot carry dirty bitmaps \
                 (qemu-img amend -o compat=1.1 upgrades it while the domain is shut off)"
                    .to_owned(),
            ),
            DiskFormat::Raw => Eligibility::FullOnly("a raw disk cannot carry a dirty bitmap".to_owned()),
            DiskFormat::Other(format) => skip(&format!("its format '{format}' is not supported")),
        }
    }

    /// Why the disk is left out until the user allows it, if that is so.
    fn not_allowed(&self, allowed: Allowed) -> Option<LeftOut> {
        let is_raw = self.format == DiskFormat::Raw && !allowed.raw;
        let is_encrypted = self.is_encrypted() && !allowed.decrypted;
        let (kind, reason) = match (is_raw, is_encrypted) {
            (false, false) => return None,
            (true, false) => (Kind::Raw, "it is raw; give --raw to back it up in full each time"),
            (true, true) => (
                Kind::Raw,
                "it is raw and encrypted; give --raw to back it up in full each time, and --store-decrypted \
                 because the backup would hold its plain text",
            ),
            (false, true) => (
                Kind::Encrypted,
                "it is encrypted, and the backup would hold its plain text; give --store-decrypted to allow that",
            ),
        };
        Some(LeftOut {
            disk: self.target.clone(),
            kind,
            reason: reason.to_owned(),
        })
    }
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
