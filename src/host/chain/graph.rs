//! Describes the images of a disk for QEMU's block layer.
//!
//! The format is `BlockdevOptions` in QEMU's `qapi/block-core.json`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Trouble;
use crate::model::storage::SecretRef;

/// One image of a chain, with its format and storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The file, device or server with its bytes.
    pub storage: Storage,
    /// The image's format.
    pub layout: Layout,
}

/// The file, device or server that holds the bytes of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A file.
    File(PathBuf),
    /// A block device.
    Device(PathBuf),
    /// A server: its description for QEMU's block layer, and its name in messages.
    Remote(Value, String),
}

/// The format of an image, and the other files and keys that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Raw bytes.
    Raw,
    /// Raw bytes encrypted with LUKS, and the number of the key.
    Luks(usize),
    /// A format without references to other files.
    Plain(&'static str),
    /// qcow2.
    Qcow2 {
        /// Whether it may contain bitmaps.
        has_bitmaps: bool,
        /// The external data file with the guest's bytes, if there is one.
        data_file: Option<Storage>,
        /// The number of the key, if the image is encrypted.
        key: Option<usize>,
        /// The image beneath.
        backing: Option<Box<Image>>,
    },
}

/// All images of a disk, and the secrets that open them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The topmost image.
    pub top: Image,
    /// The secrets; the number of a key is its index here.
    pub secrets: Vec<SecretRef>,
}

/// Returns QEMU's name for the secret with this number.
pub(crate) fn key_name(number: usize) -> String {
    format!("key{number}")
}

impl Storage {
    /// Returns QEMU's description of the storage.
    pub(super) fn node(&self) -> Result<Value, Trouble> {
        let file = |driver: &str, path: &Path| match path.to_str() {
            Some(path) => Ok(json!({"driver": driver, "filename": path})),
            None => Err(Trouble::Refused(format!(
                "the path {} is not UTF-8, so it cannot be passed to QEMU",
                path.display()
            ))),
        };
        match self {
            Storage::File(path) => file("file", path),
            Storage::Device(path) => file("host_device", path),
            Storage::Remote(node, _) => Ok(node.clone()),
        }
    }

    /// Returns the path on the host, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Storage::File(path) | Storage::Device(path) => Some(path),
            Storage::Remote(..) => None,
        }
    }

    /// Returns the name of the storage for messages.
    pub fn text(&self) -> String {
        match self {
            Storage::File(path) | Storage::Device(path) => path.display().to_string(),
            Storage::Remote(_, text) => text.clone(),
        }
    }
}

impl Image {
    /// Returns QEMU's description of the image and all images beneath it.
    pub fn node(&self) -> Result<Value, Trouble> {
        self.describe(true)
    }

    /// Returns QEMU's description of the image without a backing image.
    ///
    /// Sufficient to read the image's properties and to change its bitmaps.
    pub(crate) fn node_alone(&self) -> Result<Value, Trouble> {
        self.describe(false)
    }

    fn describe(&self, with_backing: bool) -> Result<Value, Trouble> {
        let file = self.storage.node()?;
        Ok(match &self.layout {
            Layout::Raw => json!({"driver": "raw", "file": file}),
            Layout::Plain(format) => json!({"driver": format, "file": file}),
            Layout::Luks(key) => json!({"driver": "luks", "key-secret": key_name(*key), "file": file}),
            Layout::Qcow2 {
                data_file,
                key,
                backing,
                ..
            } => {
                let mut node = json!({"driver": "qcow2", "file": file, "backing": null});
                if let Some(backing) = backing.as_ref().filter(|_| with_backing) {
                    node["backing"] = backing.describe(true)?;
                }
                if let Some(data_file) = data_file {
                    node["data-file"] = data_file.node()?;
                }
                if let Some(key) = key {
                    node["encrypt"] = json!({"format": "luks", "key-secret": key_name(*key)});
                }
                node
            }
        })
    }

    /// Iterates over the image and the images beneath it, topmost first.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        std::iter::successors(Some(self), |image| match &image.layout {
            Layout::Qcow2 { backing, .. } => backing.as_deref(),
            _ => None,
        })
    }
}
