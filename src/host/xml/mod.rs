//! libvirt's documents, read and written: pure functions over text.
//!
//! The formats are <https://libvirt.org/formatdomain.html>, <https://libvirt.org/formatbackup.html> and
//! <https://libvirt.org/formatcheckpoint.html>.

mod checkpoint;
mod define;
mod disk;
mod domain;
mod excluded;
mod job;
mod sources;

pub use checkpoint::{
    CheckpointDescription, CoveredDisk, KnownCheckpoint, oldest_first, read_checkpoint,
    write_known_checkpoint, write_new_checkpoint,
};
pub use define::{Edits, ImageFormat, NewSource, redefine};
pub use disk::is_valid_target;
pub use domain::{DomainDescription, read_domain};
pub use job::{BackupDisk, backup_socket, write_backup};
pub use sources::{NamedPlace, NamedSource, read_sources};

use std::io;
use std::path::Path;

use roxmltree::{Document, Node};

use super::{HostError, Refusal, Result};

/// The longest document that is looked at, in bytes. libvirt itself refuses domains beyond 16 MiB.
const LONGEST: usize = 16 << 20;

fn bad(what: &str, message: impl Into<String>) -> HostError {
    HostError::Xml {
        what: what.to_owned(),
        message: message.into(),
    }
}

/// Parses a document of the given root element. Document types are refused, so there are no entities to expand.
fn parse<'a>(xml: &'a str, what: &str, root: &str) -> Result<Document<'a>> {
    if xml.len() > LONGEST {
        return Err(bad(what, format!("it is {} bytes long", xml.len())));
    }
    let document = Document::parse(xml).map_err(|error| bad(what, error.to_string()))?;
    let name = document.root_element().tag_name().name();
    if name != root {
        return Err(bad(what, format!("its root is <{name}>, not <{root}>")));
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

/// All text of a node, CDATA included. roxmltree's `text()` is only the first piece.
fn text(node: Node<'_, '_>) -> String {
    node.children()
        .filter(Node::is_text)
        .filter_map(|piece| piece.text())
        .collect()
}

/// A path as it can stand in a document: UTF-8, no control characters.
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

/// What a writer into memory has written. It cannot fail, but its type does not say so.
fn written(result: io::Result<()>, bytes: Vec<u8>, what: &str) -> Result<String> {
    result.map_err(|error| bad(what, error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| bad(what, error.to_string()))
}
