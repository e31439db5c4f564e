//! Lists the files, block devices and volumes of a domain's devices and firmware, from its XML.

use std::path::PathBuf;

use roxmltree::Node;

use super::{child, children, parse, text};
use crate::host::Result;

const WHAT: &str = "domain XML";

/// The location of a source that the XML names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NamedPlace {
    /// At an absolute path on the host.
    Path(PathBuf),
    /// In a storage volume.
    Volume {
        /// The pool's name.
        pool: String,
        /// The volume's name in the pool.
        volume: String,
    },
}

/// A file, block device or volume that a domain's XML names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedSource {
    /// Its purpose in the domain, for example `disk vda` or `the backing file of disk vda`.
    pub role: String,
    /// Its location.
    pub place: NamedPlace,
    /// Whether the XML says that it is read as qcow2.
    pub is_qcow2: bool,
}

/// Reads the sources from the XML of an active or inactive domain.
///
/// They belong to its disks, to images beneath these, to other devices, and to its firmware, kernel
/// and initrd.
pub(crate) fn read_sources(xml: &str) -> Result<Vec<NamedSource>> {
    let document = parse(xml, WHAT, "domain")?;
    let domain = document.root_element();
    let mut found = Vec::new();
    for devices in children(domain, "devices") {
        for device in devices.children().filter(Node::is_element) {
            read_device(device, &mut found);
        }
    }
    for os in children(domain, "os") {
        for (element, role) in [
            ("nvram", "UEFI variables"),
            ("loader", "firmware"),
            ("kernel", "kernel"),
            ("initrd", "initrd"),
        ] {
            for node in children(os, element) {
                add_path(&text(node), role, false, &mut found);
                read_sources_below(node, role, false, &mut found);
            }
        }
    }
    Ok(found)
}

fn read_device(device: Node, found: &mut Vec<NamedSource>) {
    if device.tag_name().name() != "disk" {
        let role = format!("a {} device", device.tag_name().name());
        return read_sources_below(device, &role, false, found);
    }
    let target = child(device, "target").and_then(|target| target.attribute("dev"));
    let disk = format!("disk {}", target.unwrap_or("without a target"));
    let driver = child(device, "driver").and_then(|driver| driver.attribute("type"));
    for source in children(device, "source") {
        read_source(source, &disk, driver == Some("qcow2"), found);
        // An external data file is named within the source.
        for inner in source.children().filter(Node::is_element) {
            read_sources_below(inner, &format!("the data file of {disk}"), false, found);
        }
    }
    for (element, role) in [
        ("backingStore", format!("the backing file of {disk}")),
        ("mirror", format!("the mirror of {disk}")),
    ] {
        for node in children(device, element) {
            read_sources_below(node, &role, false, found);
        }
    }
}

/// Reads all sources at any depth. Each backing image has its own `<format>`.
fn read_sources_below(node: Node, role: &str, is_qcow2: bool, found: &mut Vec<NamedSource>) {
    for source in node.descendants().filter(|inner| inner.has_tag_name("source")) {
        let format = source.parent().and_then(|parent| child(parent, "format"));
        let says_qcow2 = format.and_then(|format| format.attribute("type")) == Some("qcow2");
        read_source(source, role, is_qcow2 || says_qcow2, found);
    }
}

fn read_source(source: Node, role: &str, is_qcow2: bool, found: &mut Vec<NamedSource>) {
    for attribute in ["file", "dev", "dir", "path"] {
        add_path(
            source.attribute(attribute).unwrap_or_default(),
            role,
            is_qcow2,
            found,
        );
    }
    // A storage device of the host that is passed to a container.
    for block in children(source, "block") {
        add_path(&text(block), role, false, found);
    }
    if let (Some(pool), Some(volume)) = (source.attribute("pool"), source.attribute("volume")) {
        let place = NamedPlace::Volume {
            pool: pool.to_owned(),
            volume: volume.to_owned(),
        };
        push(role, place, is_qcow2, found);
    }
}

fn add_path(path: &str, role: &str, is_qcow2: bool, found: &mut Vec<NamedSource>) {
    let path = path.trim_matches(['\n', ' ', '\t']);
    if path.starts_with('/') {
        push(role, NamedPlace::Path(path.into()), is_qcow2, found);
    }
}

fn push(role: &str, place: NamedPlace, is_qcow2: bool, found: &mut Vec<NamedSource>) {
    let source = NamedSource {
        role: role.to_owned(),
        place,
        is_qcow2,
    };
    if !found.contains(&source) {
        found.push(source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<domain><name>x</name>
  <os><loader readonly='yes'>/ovmf.fd</loader><nvram type='file'><source file='/vars.fd'/></nvram></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/top.qcow2'><dataStore type='block'><format type='raw'/><source dev='/dev/data'/></dataStore></source>
      <backingStore type='file'>
        <format type='qcow2'/><source file='/middle.qcow2'/>
        <backingStore type='block'><format type='raw'/><source dev='/dev/base'/><backingStore/></backingStore>
      </backingStore>
      <mirror type='block' job='copy'><format type='raw'/><source dev='/dev/mirror'/></mirror>
      <target dev='vda'/>
    </disk>
    <disk type='volume' device='disk'><driver type='raw'/><source pool='p' volume='v'/><target dev='vdb'/></disk>
    <disk type='network' device='disk'><source protocol='nbd' name='/not/a/path'/><target dev='vdc'/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/></disk>
    <hostdev mode='capabilities' type='storage'><source><block>/dev/sdx</block></source></hostdev>
    <interface type='direct'><source dev='eth0'/></interface>
    <serial type='file'><source path='/log'/></serial>
  </devices></domain>";

    #[test]
    fn every_path_is_read_with_its_role() {
        let found = read_sources(XML).expect("it is well-formed");
        let lines: Vec<String> = found
            .iter()
            .map(|source| {
                let place = match &source.place {
                    NamedPlace::Path(path) => path.display().to_string(),
                    NamedPlace::Volume { pool, volume } => format!("{pool}:{volume}"),
                };
                format!("{place} {} {}", source.role, source.is_qcow2)
            })
            .collect();
        assert_eq!(
            lines,
            [
                "/top.qcow2 disk vda true",
                "/dev/data the data file of disk vda false",
                "/middle.qcow2 the backing file of disk vda true",
                "/dev/base the backing file of disk vda false",
                "/dev/mirror the mirror of disk vda false",
                "p:v disk vdb false",
                "/dev/sdx a hostdev device false",
                "/log a serial device false",
                "/vars.fd UEFI variables false",
                "/ovmf.fd firmware false",
            ]
        );
    }

    #[test]
    fn odd_documents_are_refused_or_name_nothing() {
        for bad in ["", "<network/>", "<domain>"] {
            assert!(read_sources(bad).is_err(), "{bad}");
        }
        let odd = "<domain><devices><disk/><disk><source/></disk><disk><source file='relative'/></disk></devices></domain>";
        assert_eq!(read_sources(odd).expect("well-formed"), []);
    }
}
