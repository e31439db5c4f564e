//! Reads `<disk>`: storage, format, encryption and backing chain.

use std::path::PathBuf;

use roxmltree::Node;

use super::{bad, child, children};
use crate::host::Result;
use crate::model::domain::{Backing, Device, Disk, DiskFormat, Encryption, Layer, Source};
use crate::model::storage::{MAX_CHAIN, Network, SecretRef, Server, Volume};

const WHAT: &str = "domain XML";

/// Returns whether a disk's target is safe as a part of file names and export names.
///
/// It has 1 to 64 ASCII letters, digits, `_`, `-` and `.`, and does not begin with `.` or `-`.
/// libvirt's schema is stricter.
pub(crate) fn is_valid_target(target: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=64).contains(&target.len()) && target.bytes().all(safe) && !target.starts_with(['.', '-'])
}

/// Reads one `<disk>`.
pub(crate) fn read_disk(disk: Node) -> Result<Disk> {
    let target = child(disk, "target").and_then(|target| target.attribute("dev"));
    let target = target.ok_or_else(|| bad(WHAT, "a disk has no target"))?;
    if !is_valid_target(target) {
        return Err(bad(WHAT, format!("a disk has the invalid target {target:?}")));
    }
    let device = match disk.attribute("device").unwrap_or("disk") {
        "disk" => Device::Disk,
        "cdrom" => Device::Cdrom,
        "floppy" => Device::Floppy,
        "lun" => Device::Lun,
        other => {
            return Err(bad(
                WHAT,
                format!("disk {target} has the unknown device type {other:?}"),
            ));
        }
    };
    let driver = child(disk, "driver").and_then(|driver| driver.attribute("type"));
    Ok(Disk {
        device,
        readonly: child(disk, "readonly").is_some(),
        shareable: child(disk, "shareable").is_some(),
        transient: child(disk, "transient").is_some(),
        encryption: read_encryption(disk),
        is_slice: is_slice(disk),
        data_file: read_data_file(disk),
        backing: read_backing(disk, target)?,
        ..Disk::new(
            target,
            read_source(disk),
            DiskFormat::named(driver.unwrap_or("raw")),
        )
    })
}

/// Reads the chain of nested `<backingStore>` elements. An element without a type ends the chain.
fn read_backing(disk: Node, target: &str) -> Result<Backing> {
    let mut stores = Vec::new();
    let mut above = disk;
    let mut backing = loop {
        match child(above, "backingStore") {
            None => break Backing::Unsaid,
            Some(store) if store.attribute("type").is_none() => break Backing::End,
            Some(_) if stores.len() == MAX_CHAIN => {
                let what = format!("disk {target} has more than {MAX_CHAIN} backing images");
                return Err(bad(WHAT, what));
            }
            Some(store) => {
                stores.push(store);
                above = store;
            }
        }
    };
    for store in stores.into_iter().rev() {
        let format = child(store, "format").and_then(|format| format.attribute("type"));
        let format =
            format.ok_or_else(|| bad(WHAT, format!("a backing image of disk {target} has no format")))?;
        backing = Backing::Layer(Box::new(Layer {
            encryption: read_encryption(store),
            is_slice: is_slice(store),
            data_file: read_data_file(store),
            backing,
            ..Layer::new(read_source(store), DiskFormat::named(format))
        }));
    }
    Ok(backing)
}

/// Returns whether the disk is only a slice of the image file.
fn is_slice(image: Node) -> bool {
    child(image, "source").is_some_and(|source| child(source, "slices").is_some())
}

/// Reads `<encryption>` in `<source>`, or in `<disk>` as older versions of libvirt wrote it.
fn read_encryption(image: Node) -> Option<Encryption> {
    let of_source = child(image, "source").and_then(|source| child(source, "encryption"));
    let encryption = of_source.or_else(|| child(image, "encryption"))?;
    let secret = |secret: Node| {
        let uuid = secret
            .attribute("uuid")
            .map(|uuid| SecretRef::Uuid(uuid.to_owned()));
        uuid.or_else(|| Some(SecretRef::Usage(secret.attribute("usage")?.to_owned())))
    };
    Some(Encryption {
        format: encryption.attribute("format").unwrap_or_default().to_owned(),
        engine: encryption.attribute("engine").map(str::to_owned),
        secrets: children(encryption, "secret").filter_map(secret).collect(),
    })
}

/// Reads `<dataStore>`, which names the external data file of a qcow2 image.
fn read_data_file(image: Node) -> Option<Box<Layer>> {
    let store = child(image, "source").and_then(|source| child(source, "dataStore"))?;
    Some(Box::new(Layer {
        encryption: read_encryption(store),
        ..Layer::new(read_source(store), DiskFormat::Raw)
    }))
}

/// Reads the source of a disk, backing image or data file.
fn read_source(image: Node) -> Source {
    let kind = image.attribute("type").unwrap_or("file");
    let Some(source) = child(image, "source") else {
        return Source::Empty;
    };
    let value = |attribute| source.attribute(attribute).filter(|value| !value.is_empty());
    let path = |attribute| value(attribute).map(PathBuf::from);
    match kind {
        "file" => path("file").map_or(Source::Empty, Source::File),
        "block" => path("dev").map_or(Source::Empty, Source::Block),
        "dir" => path("dir").map_or(Source::Empty, Source::Directory),
        "volume" => match (value("pool"), value("volume")) {
            (Some(pool), Some(volume)) => Source::Volume(Volume {
                pool: pool.to_owned(),
                volume: volume.to_owned(),
                place: None,
            }),
            _ => Source::Empty,
        },
        "network" => Source::Network(read_network(image, source)),
        "nvme" => Source::Nvme(nvme_address(source)),
        "vhostuser" => Source::VhostUser(value("path").unwrap_or_default().to_owned()),
        "vhostvdpa" => Source::VhostVdpa(value("dev").unwrap_or_default().to_owned()),
        other => Source::Other(other.to_owned()),
    }
}

/// Elements of a network source that affect its content or the access to it.
const SETTINGS: [&str; 9] = [
    "auth",
    "cookies",
    "ssl",
    "config",
    "snapshot",
    "initiator",
    "identity",
    "knownHosts",
    "reservations",
];

fn read_network(image: Node, source: Node) -> Network {
    let text = |attribute| source.attribute(attribute).unwrap_or_default().to_owned();
    let settings = SETTINGS.iter().filter(|name| child(source, name).is_some());
    let mut needs: Vec<String> = settings.map(|name| (*name).to_owned()).collect();
    if child(image, "auth").is_some() && !needs.iter().any(|need| need == "auth") {
        needs.push("auth".to_owned());
    }
    if source.attribute("tls") == Some("yes") {
        needs.push("TLS".to_owned());
    }
    Network {
        protocol: text("protocol"),
        name: text("name"),
        hosts: children(source, "host").map(read_server).collect(),
        query: source.attribute("query").map(str::to_owned),
        needs,
    }
}

fn read_server(host: Node) -> Server {
    match host.attribute("transport").unwrap_or("tcp") {
        "tcp" => Server::Tcp {
            host: host.attribute("name").unwrap_or_default().to_owned(),
            port: host.attribute("port").and_then(|port| port.parse().ok()),
        },
        "unix" => Server::Unix(host.attribute("socket").unwrap_or_default().into()),
        other => Server::Other(other.to_owned()),
    }
}

/// Formats PCI address and namespace in QEMU's notation.
fn nvme_address(source: Node) -> String {
    let number = |attribute: &str| {
        let text = child(source, "address").and_then(|address| address.attribute(attribute));
        let text = text.unwrap_or_default().trim_start_matches("0x");
        u32::from_str_radix(text, 16).unwrap_or(0)
    };
    let [domain, bus, slot, function] = ["domain", "bus", "slot", "function"].map(number);
    let namespace = source.attribute("namespace").unwrap_or("?");
    format!("{domain:04x}:{bus:02x}:{slot:02x}.{function}/{namespace}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::xml::read_domain;

    fn disk(xml: &str) -> Disk {
        let xml = format!("<domain><name>x</name><devices>{xml}</devices></domain>");
        read_domain(&xml).expect("it is a domain").disks.remove(0)
    }

    #[test]
    fn a_backing_chain_is_read_with_its_end() {
        let read = disk(
            "<disk type='file'><driver type='qcow2'/><source file='/t'/><target dev='vda'/>\
             <backingStore type='file'><format type='qcow2'/><source file='/m'>\
             <encryption format='luks'><secret type='passphrase' usage='u'/></encryption></source>\
             <backingStore type='block'><format type='raw'/><source dev='/dev/b'/><backingStore/>\
             </backingStore></backingStore></disk>",
        );
        let layers: Vec<&Layer> = read.beneath().collect();
        assert_eq!(layers[0].source, Source::File("/m".into()));
        assert_eq!(layers[1].source, Source::Block("/dev/b".into()));
        assert_eq!(
            (&layers[1].format, &layers[1].backing),
            (&DiskFormat::Raw, &Backing::End)
        );
        assert!(read.is_encrypted() && read.encryption.is_none());
        let open = disk("<disk type='file'><source file='/t'/><target dev='vda'/></disk>");
        assert_eq!(open.backing, Backing::Unsaid);
        let end = disk("<disk type='file'><source file='/t'/><target dev='vda'/><backingStore/></disk>");
        assert_eq!(end.backing, Backing::End);
    }

    #[test]
    fn encryption_is_found_in_both_places() {
        let secret = "<encryption format='luks'><secret type='passphrase' uuid='1'/></encryption>";
        for place in [
            format!("<source file='/t'>{secret}</source>"),
            format!("<source file='/t'/>{secret}"),
        ] {
            let read = disk(&format!("<disk type='file'>{place}<target dev='vda'/></disk>"));
            let encryption = read.encryption.expect("it is encrypted");
            assert_eq!(encryption.format, "luks");
            assert_eq!(encryption.secrets, [SecretRef::Uuid("1".into())]);
        }
    }

    #[test]
    fn an_encrypted_data_file_makes_an_encrypted_disk() {
        let read = |inner: &str| {
            disk(&format!(
                "<disk type='file'><driver type='qcow2'/><source file='/t'><dataStore type='file'><format type='raw'/>\
                 <source file='/d'>{inner}</source></dataStore></source><target dev='vda'/></disk>"
            ))
        };
        assert!(read("<encryption format='luks'/>").is_encrypted());
        assert!(!read("").is_encrypted());
    }

    #[test]
    fn every_kind_of_storage_is_recognised() {
        let source = |kind: &str, source: &str| {
            disk(&format!("<disk type='{kind}'>{source}<target dev='vda'/></disk>")).source
        };
        assert_eq!(
            source("volume", "<source pool='p' volume='v'/>").text(),
            "volume p/v"
        );
        assert_eq!(
            source("vhostuser", "<source type='unix' path='/s'/>").text(),
            "vhost-user /s"
        );
        assert_eq!(
            source("vhostvdpa", "<source dev='/dev/v'/>").text(),
            "vhost-vdpa /dev/v"
        );
        assert_eq!(
            source("dir", "<source dir='/d'/>"),
            Source::Directory("/d".into())
        );
        let nvme = "<source type='pci' namespace='1'><address domain='0x0000' bus='0x01' slot='0x00' function='0x2'/></source>";
        assert_eq!(source("nvme", nvme).text(), "nvme 0000:01:00.2/1");
        let nbd = "<source protocol='nbd' name='e' tls='yes'><host name='h' port='1'/><auth username='x'/></source>";
        let Source::Network(network) = source("network", nbd) else {
            panic!("it is a network disk");
        };
        assert_eq!(network.needs, ["auth", "TLS"]);
        assert_eq!(network.text(), "nbd://h:1/e");
        assert_eq!(source("teleport", "<source/>"), Source::Other("teleport".into()));
    }

    #[test]
    fn a_chain_without_an_end_in_sight_is_refused() {
        let store = "<backingStore type='file'><format type='raw'/>".repeat(MAX_CHAIN + 1);
        let ends = "</backingStore>".repeat(MAX_CHAIN + 1);
        let xml = format!(
            "<domain><name>x</name><devices><disk><target dev='vda'/>{store}{ends}</disk></devices></domain>"
        );
        read_domain(&xml).expect_err("it is too deep");
    }

    proptest! {
        #[test]
        fn hostile_disks_never_panic(
            kind in "(file|block|volume|network|nvme|vhostuser|dir|[a-z]{0,6})",
            inner in "(<(source|backingStore|encryption|driver|format|target|host|slices)( (type|file|dev|pool|port|name)='[a-z0-9/:]{0,6}')?/?>|</source>|</backingStore>){0,12}",
        ) {
            let xml = format!(
                "<domain><name>x</name><devices><disk type='{kind}'>{inner}<target dev='vda'/></disk></devices></domain>"
            );
            let _ = read_domain(&xml);
        }
    }
}
