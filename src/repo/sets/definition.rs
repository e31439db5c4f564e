//! Facts from a domain's definition that virtnbdbackup saved.

use roxmltree::{Document, Node};

use super::names::is_target;

/// The longest definition that is parsed, in bytes.
pub(super) const LONGEST: u64 = 16 << 20;

/// Facts from a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Definition {
    /// The domain's name.
    pub(super) name: String,
    /// Its UUID; empty if the definition has none.
    pub(super) uuid: String,
    /// Its hard disks, in the definition's order.
    pub(super) disks: Vec<DefinedDisk>,
    /// The file name of its UEFI variables, without folders.
    pub(super) nvram: Option<String>,
}

/// A hard disk of a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DefinedDisk {
    /// Its target.
    pub(super) target: String,
    /// The format of its image.
    pub(super) format: String,
    /// Where its image is, for messages.
    pub(super) source: String,
}

impl Definition {
    /// Reads a definition. A DTD is refused, so there are no entities to expand.
    ///
    /// # Errors
    /// A clause that says what is wrong with the definition.
    pub(super) fn parse(xml: &[u8]) -> Result<Definition, String> {
        let xml = std::str::from_utf8(xml).map_err(|_| "it is not UTF-8".to_owned())?;
        let document = Document::parse(xml).map_err(|error| error.to_string())?;
        let domain = document.root_element();
        if domain.tag_name().name() != "domain" {
            return Err("its root element is not <domain>".to_owned());
        }
        let text_of = |name| child(domain, name).map(text).unwrap_or_default();
        let name = text_of("name");
        if name.is_empty() {
            return Err("it has no name".to_owned());
        }
        let devices = child(domain, "devices");
        let disks = devices.into_iter().flat_map(|devices| children(devices, "disk"));
        let nvram = child(domain, "os").and_then(|os| child(os, "nvram")).map(text);
        let base = nvram.as_deref().and_then(|path| path.trim().rsplit('/').next());
        Ok(Definition {
            name,
            uuid: text_of("uuid").trim().to_owned(),
            disks: disks.filter_map(defined_disk).collect(),
            nvram: base.filter(|base| !base.is_empty()).map(str::to_owned),
        })
    }

    /// The disk of this target.
    pub(super) fn disk(&self, target: &str) -> Option<&DefinedDisk> {
        self.disks.iter().find(|disk| disk.target == target)
    }
}

fn defined_disk(disk: Node<'_, '_>) -> Option<DefinedDisk> {
    let is_hard_disk = matches!(disk.attribute("device").unwrap_or("disk"), "disk" | "lun");
    let target = child(disk, "target").and_then(|target| target.attribute("dev"));
    let target = target.filter(|target| is_hard_disk && is_target(target))?;
    let format = child(disk, "driver").and_then(|driver| driver.attribute("type"));
    let source = child(disk, "source");
    let place = |name| source.and_then(|source| source.attribute(name));
    let place = ["file", "dev", "name", "volume"].into_iter().find_map(place);
    Some(DefinedDisk {
        target: target.to_owned(),
        format: format.unwrap_or("raw").to_owned(),
        source: place.unwrap_or_default().to_owned(),
    })
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

fn children<'a, 'input, 'n>(
    node: Node<'a, 'input>,
    name: &'n str,
) -> impl Iterator<Item = Node<'a, 'input>> + use<'a, 'input, 'n> {
    node.children().filter(move |child| {
        child.is_element() && child.tag_name().namespace().is_none() && child.tag_name().name() == name
    })
}

fn text(node: Node<'_, '_>) -> String {
    let texts = node.children().filter(Node::is_text);
    texts.filter_map(|piece| piece.text()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read() {
        let xml =
            b"<domain><name>a&amp;b</name><uuid> u </uuid><os><nvram>/x/y/a_VARS.fd</nvram></os><devices>\
            <disk device='disk'><driver type='qcow2'/><source file='/i/a'/><target dev='vda'/></disk>\
            <disk device='cdrom'><target dev='sda'/></disk>\
            <disk type='block'><source dev='/dev/x'/><target dev='vdb'/></disk>\
            <disk><target dev='../x'/></disk></devices></domain>";
        let read = Definition::parse(xml).expect("it is valid");
        assert_eq!((read.name.as_str(), read.uuid.as_str()), ("a&b", "u"));
        let disk = |target: &str, format: &str, source: &str| DefinedDisk {
            target: target.to_owned(),
            format: format.to_owned(),
            source: source.to_owned(),
        };
        assert_eq!(
            read.disks,
            [disk("vda", "qcow2", "/i/a"), disk("vdb", "raw", "/dev/x")]
        );
        assert_eq!(read.nvram.as_deref(), Some("a_VARS.fd"));
    }

    #[test]
    fn other_documents_are_refused() {
        let bomb = b"<!DOCTYPE d [<!ENTITY a 'x'>]><domain><name>&a;</name></domain>";
        for xml in [
            &b""[..],
            b"<domain/>",
            b"<pool><name>x</name></pool>",
            b"\xff",
            bomb,
        ] {
            assert!(Definition::parse(xml).is_err());
        }
    }
}
