//! Storage pools and volumes: <https://libvirt.org/formatstorage.html>.

use std::path::PathBuf;

use super::splice::escape;
use super::{ImageFormat, bad, child, parse, text};
use crate::host::Result;

const WHAT: &str = "storage pool XML";

/// The facts from the XML of a storage pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolDescription {
    /// Its kind: `dir`, `logical` and others.
    pub(crate) kind: String,
    /// The path below which its volumes are, if it has one.
    pub(crate) target: Option<PathBuf>,
    /// The free space in bytes when libvirt last refreshed the pool, if known.
    pub(crate) available: Option<u64>,
}

/// Reads the XML of a storage pool.
///
/// # Errors
/// The XML is invalid, or does not name the kind of the pool.
pub(crate) fn read_pool(xml: &str) -> Result<PoolDescription> {
    let document = parse(xml, WHAT, "pool")?;
    let pool = document.root_element();
    let kind = pool.attribute("type");
    let kind = kind.ok_or_else(|| bad(WHAT, "the pool has no type"))?;
    let path = child(pool, "target").and_then(|target| child(target, "path"));
    let path = path.map(|path| text(path).trim().to_owned());
    Ok(PoolDescription {
        kind: kind.to_owned(),
        target: path.filter(|path| path.starts_with('/')).map(PathBuf::from),
        available: child(pool, "available").and_then(|node| {
            let is_bytes = matches!(node.attribute("unit"), None | Some("bytes" | "B"));
            text(node).trim().parse().ok().filter(|_| is_bytes)
        }),
    })
}

/// Writes the XML of a volume with this name and capacity in bytes. If it `allocates`, it takes its
/// space at once, as a device does.
pub(crate) fn write_volume(name: &str, capacity: u64, format: ImageFormat, allocates: bool) -> String {
    // libvirt creates qcow2 images of an old version unless the XML names another one.
    let compat = match format {
        ImageFormat::Qcow2 => "<compat>1.1</compat>",
        ImageFormat::Raw => "",
    };
    // For a device that allocates less than its capacity libvirt would make a sparse snapshot.
    let allocation = match allocates {
        true => capacity,
        false => 0,
    };
    format!(
        "<volume>\n  <name>{}</name>\n  <capacity unit='bytes'>{capacity}</capacity>\n  \
         <allocation unit='bytes'>{allocation}</allocation>\n  \
         <target><format type='{}'/>{compat}</target>\n</volume>\n",
        escape(name),
        format.word(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_described() {
        let found = read_pool(
            "<pool type='dir'><name>p</name><capacity unit='bytes'>100</capacity><available unit='bytes'>42</available>\
             <target><path> /var/lib/libvirt/images </path></target></pool>",
        )
        .expect("a pool");
        assert_eq!(
            found,
            PoolDescription {
                kind: "dir".to_owned(),
                target: Some("/var/lib/libvirt/images".into()),
                available: Some(42),
            }
        );
        let other = read_pool("<pool type='rbd'><available unit='GiB'>1</available></pool>").expect("a pool");
        assert_eq!((other.target, other.available), (None, None));
    }

    #[test]
    fn what_is_no_pool_is_an_error() {
        for xml in ["", "<volume/>", "<pool/>", "<pool type='dir'>"] {
            assert!(read_pool(xml).is_err(), "{xml}");
        }
    }

    #[test]
    fn names_of_volumes_are_escaped() {
        let xml = write_volume("a<b>&'c", 77, ImageFormat::Qcow2, false);
        let document = roxmltree::Document::parse(&xml).expect("XML");
        let name = child(document.root_element(), "name").expect("a name");
        assert_eq!(text(name), "a<b>&'c");
        assert!(xml.contains("<capacity unit='bytes'>77<") && xml.contains("type='qcow2'"));
        assert!(xml.contains("<allocation unit='bytes'>0<"));
        let device = write_volume("d", 77, ImageFormat::Raw, true);
        assert!(device.contains("<allocation unit='bytes'>77<"), "{device}");
    }
}
