//! The images of a disk with everything that QEMU needs to open them, as its block layer describes it (`BlockdevOptions` in
//! its `qapi/block-core.json`).

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Trouble;
use crate::model::storage::SecretRef;

/// One image of a chain, as QEMU is to open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Where its bytes lie.
    pub storage: Storage,
    /// How it is laid out.
    pub layout: Layout,
}

/// Where the bytes of an image lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A file.
    File(PathBuf),
    /// A block device.
    Device(PathBuf),
    /// A server, as QEMU's block layer describes it, and as it is shown.
    Remote(Value, String),
}

/// How an image is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The bytes themselves.
    Raw,
    /// The bytes themselves, encrypted; the number of its key.
    Luks(usize),
    /// A format without any reference to other files.
    Plain(&'static str),
    /// qcow2.
    Qcow2 {
        /// Whether it may carry bitmaps.
        has_bitmaps: bool,
        /// The file with the guest's bytes, if it holds only their mapping.
        data_file: Option<Storage>,
        /// The number of its key, if it is encrypted.
        key: Option<usize>,
        /// The image beneath.
        backing: Option<Box<Image>>,
    },
}

/// A disk as QEMU is to open it, and the secrets for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The topmost image.
    pub top: Image,
    /// The secrets, by the numbers of keys.
    pub secrets: Vec<SecretRef>,
}

/// The name by which QEMU knows the secret of this number.
pub fn key_name(number: usize) -> String {
    format!("key{number}")
}

impl Storage {
    /// The storage alone, for QEMU.
    pub(super) fn node(&self) -> Result<Value, Trouble> {
        let file = |driver: &str, path: &Path| match path.to_str() {
            Some(path) => Ok(json!({"driver": driver, "filename": path})),
            None => Err(Trouble::Refused(format!(
                "the path {} is not UTF-8, and QEMU cannot be given it",
                path.display()
            ))),
        };
        match self {
            Storage::File(path) => file("file", path),
            Storage::Device(path) => file("host_device", path),
            Storage::Remote(node, _) => Ok(node.clone()),
        }
    }

    /// The path on the host, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Storage::File(path) | Storage::Device(path) => Some(path),
            Storage::Remote(..) => None,
        }
    }

    /// The storage as it is shown.
    pub fn text(&self) -> String {
        match self {
            Storage::File(path) | Storage::Device(path) => path.display().to_string(),
            Storage::Remote(_, text) => text.clone(),
        }
    }
}

impl Image {
    /// The image with everything beneath it, for QEMU.
    pub fn node(&self) -> Result<Value, Trouble> {
        self.describe(true)
    }

    /// The image alone, for QEMU: what it says of itself, and its bitmaps.
    pub fn node_alone(&self) -> Result<Value, Trouble> {
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

    /// The image and those beneath it, topmost first.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        std::iter::successors(Some(self), |image| match &image.layout {
            Layout::Qcow2 { backing, .. } => backing.as_deref(),
            _ => None,
        })
    }
}
