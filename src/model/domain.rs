//! A libvirt virtual machine and its disks, as its XML describes them.

use super::firmware::{Nvram, Tpm};
pub use super::storage::{Backing, DiskFormat, Encryption, Layer, Source};

/// Whether the domain runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// Running, blocked, being shut down, or suspended by its guest.
    Running,
    /// Paused for any reason, or crashed while its QEMU process still exists.
    Paused,
    /// Not running: it has no QEMU process.
    ShutOff,
}

impl DomainState {
    /// Whether a QEMU process holds the disks.
    pub fn is_active(self) -> bool {
        self != DomainState::ShutOff
    }

    /// The word for the state, as in `virsh list`.
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
    /// Its name, exactly as in libvirt.
    pub name: String,
    /// Its UUID, in libvirt's spelling.
    pub uuid: String,
    /// Whether it runs.
    pub state: DomainState,
    /// Whether the domain is persistent: its definition remains after the domain stops.
    pub persistent: bool,
    /// libvirt's id of the active domain; `None` if it is shut off.
    pub id: Option<u32>,
    /// Its drives in the order of the XML, including those that are never backed up.
    pub disks: Vec<Disk>,
    /// The place of its UEFI variables, if it has any.
    pub nvram: Option<Nvram>,
    /// Its emulated TPM, whose state is not in any disk.
    pub tpm: Option<Tpm>,
    /// The state of its guest agent when last seen.
    pub agent: Agent,
    /// Targets of disks that its metadata excludes from backups. The domain need not have these
    /// disks.
    pub excluded: Vec<String>,
    /// The XML to define it again: the inactive form, with security information.
    pub inactive_xml: String,
}

impl Domain {
    /// The disk with this target.
    pub fn disk(&self, target: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

/// The state of the guest agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// The domain has no channel for the agent.
    None,
    /// There is a channel, but nothing in the guest has opened it.
    Disconnected,
    /// There is a channel, and something in the guest has opened it.
    Connected,
}

/// The kind of device that the guest sees.
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
    /// Its target (`vda`), which identifies it everywhere.
    pub target: String,
    /// The kind of device that the guest sees.
    pub device: Device,
    /// The location of its content.
    pub source: Source,
    /// The format of its content.
    pub format: DiskFormat,
    /// Whether the guest may not write to it.
    pub readonly: bool,
    /// Whether other domains may write to it at the same time.
    pub shareable: bool,
    /// Whether its changes are discarded when the domain stops.
    pub transient: bool,
    /// The encryption of its image.
    pub encryption: Option<Encryption>,
    /// Whether the disk is only a slice of its source.
    pub is_slice: bool,
    /// The external data file, if the definition names one: it holds the guest's bytes, and the
    /// image only their mapping.
    pub data_file: Option<Box<Layer>>,
    /// The images beneath its source, as the definition describes them. For an active domain the
    /// definition names all of them.
    pub backing: Backing,
    /// The reason why the disk cannot be read in the domain's present state, if the hypervisor
    /// knows one.
    pub unreadable: Option<String>,
}

impl Disk {
    /// A plain disk with defaults for everything else.
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

    /// Whether the definition declares any of its images encrypted: its source, one beneath it, or
    /// a data file.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.image().layers().any(Layer::is_encrypted)
    }
}
