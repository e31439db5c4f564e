//! Edits a domain's XML before the domain is defined again, and keeps all other bytes unchanged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use roxmltree::Node;

use super::splice::{Splice, escape, name_end};
use super::{bad, child, children, parse, path_text, text};
use crate::host::Result;

const WHAT: &str = "domain XML";

/// The edits to make; the default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// The new name.
    pub name: Option<String>,
    /// The new UUID; its copy in the SMBIOS tables is changed as well.
    pub uuid: Option<String>,
    /// The new sources of disks, by target.
    pub disks: BTreeMap<String, NewSource>,
    /// The new path of the UEFI variables.
    pub nvram: Option<PathBuf>,
    /// The new path of the state of an emulated TPM whose definition names a path.
    pub tpm: Option<PathBuf>,
    /// Whether to remove the addresses of network interfaces: libvirt then generates new ones
    /// (52:54:00:…).
    pub drop_macs: bool,
    /// Whether to remove the disks that get no new source. CD and floppy drives stay.
    pub drop_other_disks: bool,
}

/// The new source of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSource {
    /// A file or a block device.
    pub path: PathBuf,
    /// The format of the content.
    pub format: ImageFormat,
    /// Whether the path is a block device.
    pub is_block: bool,
}

/// The format of a restored disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// A qcow2 image.
    Qcow2,
    /// Raw bytes.
    Raw,
}

impl ImageFormat {
    /// Returns QEMU's name for the format.
    pub fn word(self) -> &'static str {
        match self {
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Raw => "raw",
        }
    }
}

/// Returns the domain's XML with these edits, all other bytes unchanged.
///
/// # Errors
/// The XML is invalid, or it lacks something that is to be edited, such as a disk; or a new path
/// cannot be written in XML.
pub fn redefine(xml: &str, edits: &Edits) -> Result<String> {
    let document = parse(xml, WHAT, "domain")?;
    let domain = document.root_element();
    let mut splice = Splice::of(xml);

    if let Some(name) = &edits.name {
        let node = child(domain, "name").ok_or_else(|| bad(WHAT, "it has no name"))?;
        splice.set_text(node, name);
    }
    if let Some(uuid) = &edits.uuid {
        set_uuid(&mut splice, domain, uuid)?;
    }
    if let Some(nvram) = &edits.nvram {
        set_nvram(&mut splice, domain, path_text(nvram, "UEFI variables")?)?;
    }
    let mut wanted = edits.disks.clone();
    for devices in children(domain, "devices") {
        for disk in children(devices, "disk") {
            let target = child(disk, "target").and_then(|target| target.attribute("dev"));
            let is_drive = matches!(disk.attribute("device"), Some("cdrom" | "floppy"));
            match target.and_then(|target| wanted.remove(target)) {
                Some(source) => set_disk(&mut splice, disk, &source)?,
                None if edits.drop_other_disks && !is_drive => splice.remove(disk),
                None => {}
            }
        }
        for mac in children(devices, "interface").filter_map(|interface| child(interface, "mac")) {
            if edits.drop_macs {
                splice.remove(mac);
            }
        }
        if let Some(path) = &edits.tpm {
            set_tpm(&mut splice, devices, path_text(path, "state of the TPM")?);
        }
    }
    if let Some(target) = wanted.into_keys().next() {
        return Err(bad(WHAT, format!("it has no disk {target}")));
    }
    let edited = splice.apply()?;
    parse(&edited, WHAT, "domain")?;
    Ok(edited)
}

fn set_uuid(splice: &mut Splice, domain: Node, uuid: &str) -> Result<()> {
    match child(domain, "uuid") {
        Some(node) => splice.set_text(node, uuid),
        None => {
            let name = child(domain, "name").ok_or_else(|| bad(WHAT, "it has no name"))?;
            splice.insert(name.range().end, format!("<uuid>{}</uuid>", escape(uuid)));
        }
    }
    // libvirt refuses a domain whose SMBIOS tables contain a different UUID.
    let tables = children(domain, "sysinfo").flat_map(|sysinfo| children(sysinfo, "system"));
    let entries = tables.flat_map(|system| children(system, "entry"));
    for entry in entries.filter(|entry| entry.attribute("name") == Some("uuid")) {
        splice.set_text(entry, uuid);
    }
    Ok(())
}

fn set_nvram(splice: &mut Splice, domain: Node, path: &str) -> Result<()> {
    let os = child(domain, "os").ok_or_else(|| bad(WHAT, "it has no <os>"))?;
    let Some(nvram) = child(os, "nvram") else {
        let end = splice.inner(os).end;
        if end == os.range().end {
            return Err(bad(WHAT, "its <os> is empty"));
        }
        splice.insert(end, format!("<nvram>{}</nvram>", escape(path)));
        return Ok(());
    };
    match child(nvram, "source") {
        Some(source) => match source.attribute_node("file") {
            Some(file) => splice.set_value(file, path),
            None => {
                // A device or server: the new variables are in a file.
                if let Some(kind) = nvram.attribute_node("type") {
                    splice.set_value(kind, "file");
                }
                splice.replace(source.range(), format!("<source file='{}'/>", escape(path)));
            }
        },
        None if text(nvram).trim() == path => {}
        None => splice.set_text(nvram, path),
    }
    Ok(())
}

/// Changes the path of the state of each emulated TPM whose definition names one.
fn set_tpm(splice: &mut Splice, devices: Node, path: &str) {
    let backends = children(devices, "tpm").filter_map(|tpm| child(tpm, "backend"));
    for backend in backends.filter(|backend| backend.attribute("type") == Some("emulator")) {
        if let Some(old) = child(backend, "source").and_then(|source| source.attribute_node("path")) {
            splice.set_value(old, path);
        }
    }
}

fn set_disk(splice: &mut Splice, disk: Node, new: &NewSource) -> Result<()> {
    let path = path_text(&new.path, "restored disk")?;
    let (kind, attribute) = if new.is_block {
        ("block", "dev")
    } else {
        ("file", "file")
    };
    match disk.attribute_node("type") {
        Some(node) => splice.set_value(node, kind),
        None => splice.insert(name_end(disk), format!(" type='{kind}'")),
    }
    let first = disk
        .first_element_child()
        .ok_or_else(|| bad(WHAT, "a <disk> is empty"))?;
    match child(disk, "driver") {
        None => splice.insert(
            first.range().start,
            format!("<driver name='qemu' type='{}'/>", new.format.word()),
        ),
        Some(driver) => set_driver(splice, driver, new.format),
    }
    match child(disk, "source") {
        None => splice.insert(
            first.range().start,
            format!("<source {attribute}='{}'/>", escape(path)),
        ),
        Some(source) => set_source(splice, source, attribute, path),
    }
    // These describe the old image: its backing chain, encryption and credentials, and an active
    // job.
    for name in ["backingStore", "encryption", "auth", "mirror"] {
        children(disk, name).for_each(|node| splice.remove(node));
    }
    Ok(())
}

fn set_driver(splice: &mut Splice, driver: Node, format: ImageFormat) {
    match driver.attribute_node("type") {
        Some(node) => splice.set_value(node, format.word()),
        None => splice.insert(name_end(driver), format!(" type='{}'", format.word())),
    }
    if format == ImageFormat::Raw {
        // These settings of qcow2 are refused by libvirt for other formats.
        children(driver, "metadata_cache").for_each(|node| splice.remove(node));
        if let Some(node) = driver.attribute_node("discard_no_unref") {
            splice.remove_attribute(node);
        }
    }
}

/// Changes the source to `path`.
///
/// `startupPolicy` and `<seclabel>` stay because they apply to every kind of source. All other
/// attributes and children describe the old content and are removed.
fn set_source(splice: &mut Splice, source: Node, attribute: &str, path: &str) {
    match source.attribute_node(attribute) {
        Some(node) => splice.set_value(node, path),
        None => splice.insert(name_end(source), format!(" {attribute}='{}'", escape(path))),
    }
    for node in source.attributes() {
        if node.name() != attribute && node.name() != "startupPolicy" {
            splice.remove_attribute(node);
        }
    }
    for node in source.children().filter(Node::is_element) {
        if node.tag_name().name() != "seclabel" {
            splice.remove(node);
        }
    }
}

impl NewSource {
    /// Creates the source for a restored image file.
    pub fn file(path: &Path, format: ImageFormat) -> Self {
        NewSource {
            path: path.to_owned(),
            format,
            is_block: false,
        }
    }
}

#[cfg(test)]
#[path = "define_tests.rs"]
mod tests;
