//! Reads and writes libvirt's XML documents.
//!
//! All functions are pure. The formats are described at <https://libvirt.org/formatdomain.html>,
//! <https://libvirt.org/formatbackup.html> and <https://libvirt.org/formatcheckpoint.html>.

mod checkpoint;
mod define;
mod disk;
mod domain;
mod excluded;
mod firmware;
mod job;
mod pool;
mod sources;
mod splice;
mod trial;

pub(crate) use checkpoint::{
    CheckpointDescription, KnownCheckpoint, oldest_first, read_checkpoint, write_known_checkpoint,
    write_new_checkpoint,
};
pub use define::{Edits, ImageFormat, NewSource, redefine};
pub(crate) use disk::is_valid_target;
#[cfg(feature = "libvirt")]
pub(crate) use domain::dac_owner;
pub use domain::{DomainDescription, read_domain};
pub(crate) use job::{BackupDisk, backup_socket, write_backup};
#[cfg(feature = "libvirt")]
pub(crate) use pool::{read_pool, write_volume};
pub(crate) use sources::{NamedPlace, read_sources};
pub use trial::{Memory, Served, TrialEdits, as_trial, with_addresses};

use std::io;
use std::path::Path;

use roxmltree::{Document, Node};

use super::{HostError, Refusal, Result};

/// The longest document that is parsed, in bytes. libvirt itself refuses domains beyond 16 MiB.
const LONGEST: usize = 16 << 20;

fn bad(what: &str, message: impl Into<String>) -> HostError {
    HostError::Xml {
        what: what.to_owned(),
        message: message.into(),
    }
}

/// Parses a document with this root element. A DTD is refused, so there are no entities to expand.
fn parse<'a>(xml: &'a str, what: &str, root: &str) -> Result<Document<'a>> {
    if xml.len() > LONGEST {
        return Err(bad(
            what,
            format!("it is larger than the limit of {} MiB", LONGEST >> 20),
        ));
    }
    let document = Document::parse(xml).map_err(|error| bad(what, error.to_string()))?;
    let name = document.root_element().tag_name().name();
    if name != root {
        return Err(bad(what, format!("its root element is <{name}>, not <{root}>")));
    }
    Ok(document)
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

/// Returns all text of a node, including CDATA. roxmltree's `text()` returns only the first part.
fn text(node: Node<'_, '_>) -> String {
    node.children()
        .filter(Node::is_text)
        .filter_map(|piece| piece.text())
        .collect()
}

/// Returns a path as text for a document; it must be UTF-8 without control characters.
fn path_text<'a>(path: &'a Path, what: &str) -> Result<&'a str> {
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => Ok(text),
        _ => Err(Refusal::ImpossiblePath {
            what: what.to_owned(),
            path: path.to_owned(),
        }
        .into()),
    }
}

/// Returns the text from a writer. Writing to memory never fails, but the types allow an error.
fn written(result: io::Result<()>, bytes: Vec<u8>, what: &str) -> Result<String> {
    result.map_err(|error| bad(what, error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| bad(what, error.to_string()))
}
