//! The storage of a disk, as its domain's definition describes it: source, format, encryption and
//! backing chain.

use std::path::PathBuf;

/// The largest number of images in a backing chain that a definition may describe. libvirt has the
/// same limit.
pub(crate) const MAX_CHAIN: usize = 200;

/// The location of an image's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file on the host.
    File(PathBuf),
    /// A block device on the host.
    Block(PathBuf),
    /// A directory that QEMU presents as a FAT file system.
    Directory(PathBuf),
    /// A volume of a libvirt storage pool.
    Volume(Volume),
    /// An image that a server provides.
    Network(Network),
    /// A namespace of an NVMe device that QEMU drives itself: PCI address and namespace.
    Nvme(String),
    /// A device that another process provides over a vhost-user socket. QEMU never sees its bytes.
    VhostUser(String),
    /// A vDPA device. QEMU never sees its bytes.
    VhostVdpa(String),
    /// A type that vmsnap does not know, by libvirt's word for it.
    Other(String),
    /// Nothing: an empty drive.
    Empty,
}

/// A volume of a libvirt storage pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The pool's name.
    pub pool: String,
    /// The volume's name in the pool.
    pub volume: String,
    /// The location of its bytes, once libvirt has reported it.
    pub place: Option<Box<Source>>,
}

/// An image that a server provides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The protocol (`nbd`, `rbd`, `iscsi`, `https` …).
    pub protocol: String,
    /// The image's name on the server: export, pool and image, target and LUN, or path.
    pub name: String,
    /// The servers.
    pub hosts: Vec<Server>,
    /// The query of a URL.
    pub query: Option<String>,
    /// Settings that only libvirt can apply (`auth`, `cookies`, `TLS` …), by name.
    pub needs: Vec<String>,
}

/// A server of a network disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// Reached over TCP.
    Tcp {
        /// Its name or address.
        host: String,
        /// Its port; the protocol's usual port if `None`.
        port: Option<u16>,
    },
    /// Reached over a unix socket.
    Unix(PathBuf),
    /// Reached in another way, by libvirt's word for it.
    Other(String),
}

impl Source {
    /// The path on the host, if the source is a file or block device with a known path.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Source::File(path) | Source::Block(path) => Some(path),
            Source::Volume(volume) => volume.place.as_deref().and_then(Source::path),
            _ => None,
        }
    }

    /// The source in one line, without secrets. It does not change while the definition stays the
    /// same.
    pub fn text(&self) -> String {
        match self {
            Source::File(path) | Source::Block(path) | Source::Directory(path) => path.display().to_string(),
            Source::Volume(volume) => format!("volume {}/{}", volume.pool, volume.volume),
            Source::Network(network) => network.text(),
            Source::Nvme(device) => format!("nvme {device}"),
            Source::VhostUser(socket) => format!("vhost-user {socket}"),
            Source::VhostVdpa(device) => format!("vhost-vdpa {device}"),
            Source::Other(kind) => format!("source of type '{kind}'"),
            Source::Empty => String::new(),
        }
    }
}

impl Network {
    /// The image in one line, like a URL, without its query and credentials.
    pub fn text(&self) -> String {
        let Network { protocol, name, .. } = self;
        let name = name.trim_start_matches('/');
        match self.hosts.first() {
            None => format!("{protocol}:{name}"),
            Some(Server::Unix(socket)) => format!("{protocol}+unix:///{name}?socket={}", socket.display()),
            Some(Server::Other(transport)) => format!("{protocol}+{transport}:///{name}"),
            Some(Server::Tcp { host, port }) => {
                let host = match host.contains(':') {
                    true => format!("[{host}]"),
                    false => host.clone(),
                };
                let port = port.map_or_else(String::new, |port| format!(":{port}"));
                format!("{protocol}://{host}{port}/{name}")
            }
        }
    }
}

/// The format of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// qcow2 of version 3 (or not known to be older), which can carry dirty bitmaps.
    Qcow2,
    /// qcow2 of version 2 (`compat=0.10`), which cannot carry dirty bitmaps.
    Qcow2V2,
    /// No format: the bytes themselves.
    Raw,
    /// Another format, by QEMU's word for it.
    Other(String),
}

impl DiskFormat {
    /// The format with this name.
    pub fn named(word: &str) -> DiskFormat {
        match word {
            "qcow2" => DiskFormat::Qcow2,
            "raw" => DiskFormat::Raw,
            other => DiskFormat::Other(other.to_owned()),
        }
    }

    /// QEMU's word for the format.
    pub fn word(&self) -> &str {
        match self {
            DiskFormat::Qcow2 | DiskFormat::Qcow2V2 => "qcow2",
            DiskFormat::Raw => "raw",
            DiskFormat::Other(word) => word,
        }
    }
}

/// The encryption of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// The format (`luks`, `qcow` …).
    pub format: String,
    /// The program that decrypts (`qemu`, `librbd`); QEMU if `None`.
    pub engine: Option<String>,
    /// The secrets that decrypt it.
    pub secrets: Vec<SecretRef>,
}

/// A reference to one of libvirt's secrets in a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// By its UUID.
    Uuid(String),
    /// By the volume to which it belongs.
    Usage(String),
}

/// An image's `<backingStore>` in the domain's XML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// The XML does not state the image beneath, so libvirt follows the image's header.
    #[default]
    Unsaid,
    /// There is no image beneath, whatever the image's header says.
    End,
    /// This image is beneath, whatever the image's header says.
    Layer(Box<Layer>),
}

/// One image of a definition's backing chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The location of its bytes.
    pub source: Source,
    /// Its format.
    pub format: DiskFormat,
    /// Its encryption.
    pub encryption: Option<Encryption>,
    /// Whether the image is only a slice of its source.
    pub is_slice: bool,
    /// The external data file, if there is one: it holds the guest's bytes, and the image only
    /// their mapping.
    pub data_file: Option<Box<Layer>>,
    /// The image beneath it.
    pub backing: Backing,
}

impl Layer {
    /// An image of this source and format, with defaults for everything else.
    pub fn new(source: Source, format: DiskFormat) -> Layer {
        Layer {
            source,
            format,
            encryption: None,
            is_slice: false,
            data_file: None,
            backing: Backing::Unsaid,
        }
    }

    /// Whether the definition declares the image or its data file encrypted. Images beneath are not
    /// considered.
    pub(crate) fn is_encrypted(&self) -> bool {
        let data_file = self.data_file.as_ref().and_then(|file| file.encryption.as_ref());
        self.encryption.is_some() || data_file.is_some()
    }

    /// The image and those beneath it, topmost first, as far as the definition names them.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::successors(Some(self), |layer| match &layer.backing {
            Backing::Layer(beneath) => Some(beneath),
            Backing::Unsaid | Backing::End => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_source_is_shown_as_a_url_without_its_query() {
        let mut network = Network {
            protocol: "https".into(),
            name: "/images/a.qcow2".into(),
            hosts: vec![Server::Tcp {
                host: "::1".into(),
                port: Some(8443),
            }],
            query: Some("token=secret".into()),
            needs: vec![],
        };
        assert_eq!(network.text(), "https://[::1]:8443/images/a.qcow2");
        network.hosts = vec![Server::Unix("/run/s".into())];
        network.protocol = "nbd".into();
        assert_eq!(network.text(), "nbd+unix:///images/a.qcow2?socket=/run/s");
        network.hosts = vec![];
        assert_eq!(Source::Network(network).text(), "nbd:images/a.qcow2");
    }

    #[test]
    fn the_path_of_a_volume_is_where_its_pool_keeps_it() {
        let volume = |place| {
            Source::Volume(Volume {
                pool: "p".into(),
                volume: "v".into(),
                place,
            })
        };
        assert_eq!(volume(None).path(), None);
        let placed = volume(Some(Box::new(Source::File("/pool/v".into()))));
        assert_eq!(placed.path(), Some(&PathBuf::from("/pool/v")));
        assert_eq!(placed.text(), "volume p/v");
    }
}
