//! A libvirt virtual machine and its disks, as its XML tells.

use std::path::PathBuf;

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
