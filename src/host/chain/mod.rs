//! Determines the images of a shut-off domain's disk before QEMU opens any of them.
//!
//! The rules are libvirt's (`virStorageSourceGetMetadata` in its
//! `src/storage_file/storage_source.c`). The chain in the domain's definition has priority. If the
//! definition does not state where the chain ends, the image headers are followed from there. Every
//! image gets an explicit format and an explicit backing image or none, so QEMU neither probes
//! formats nor follows headers.
//!
//! A chain is refused if libvirt would refuse to start the domain, or if a format is unknown
//! without probing. It is also refused if only the domain's own QEMU can read one of its images.

mod graph;
pub mod header;
pub mod open;
mod protocol;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{HostError, Refusal};
use crate::model::domain::{Backing, Disk, DiskFormat, Encryption, Layer, Source};
use crate::model::storage::{MAX_CHAIN, SecretRef};
pub(crate) use graph::key_name;
pub use graph::{Chain, Image, Layout, Storage};
use header::{Header, Looks};
pub use open::Head;

/// The reason why a chain cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The chain must not be read. The text gives the reason and, if there is one, the remedy.
    #[error("{0}")]
    Refused(String),
    /// An image is not valid qcow2, although the definition, the header above it or its first bytes
    /// say that it is qcow2.
    #[error("{shown} cannot be read as qcow2: {why}")]
    Broken {
        /// The image.
        shown: String,
        /// The reason.
        why: String,
    },
    /// An image could not be read.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// The image's path.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// An image on a server could not be inspected.
    #[error(transparent)]
    Host(Box<HostError>),
}

impl From<Trouble> for HostError {
    fn from(trouble: Trouble) -> HostError {
        match trouble {
            Trouble::Refused(why) => Refusal::UnreadableImage { why }.into(),
            broken @ Trouble::Broken { .. } => Refusal::UnreadableImage {
                why: broken.to_string(),
            }
            .into(),
            Trouble::Io { path, error } => HostError::io("read", &path, error),
            Trouble::Host(error) => *error,
        }
    }
}

/// Reads the image headers that the planner needs.
pub trait Look {
    /// Reads the first bytes of a file or block device.
    fn head(&self, path: &Path) -> Result<Head, Trouble>;

    /// Reads the qcow2 header of an image on a server. `storage` is QEMU's description of its
    /// storage.
    fn remote_header(&self, storage: &Value) -> Result<Header, Trouble>;
}

/// Determines the images of a disk and how QEMU opens them.
///
/// # Errors
/// [`Trouble::Refused`] if the disk must not be read. The others if an image is broken or cannot be
/// read.
pub fn plan(disk: &Disk, look: &dyn Look) -> Result<Chain, Trouble> {
    let mut planner = Planner {
        look,
        secrets: Vec::new(),
        seen: Vec::new(),
    };
    let top = planner.defined(&disk.image())?;
    Ok(Chain {
        top,
        secrets: planner.secrets,
    })
}

fn refused<T>(what: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble::Refused(what.into()))
}

struct Planner<'a> {
    look: &'a dyn Look,
    secrets: Vec<SecretRef>,
    /// Device and inode of every file of the chain so far.
    seen: Vec<(u64, u64)>,
}

impl Planner<'_> {
    /// Plans an image that the definition names.
    fn defined(&mut self, layer: &Layer) -> Result<Image, Trouble> {
        let shown = layer.source.text();
        if layer.is_slice {
            return refused(format!(
                "only a part of {shown} is used (<slices>), which is not supported"
            ));
        }
        let (storage, head) = self.storage(&layer.source)?;
        let layout = match &layer.format {
            DiskFormat::Raw => {
                if matches!(layer.backing, Backing::Layer(_)) {
                    return refused(format!(
                        "{shown} is raw, so it cannot have a backing image: correct the definition"
                    ));
                }
                match &layer.encryption {
                    None => Layout::Raw,
                    Some(encryption) => Layout::Luks(self.key(encryption, &shown)?),
                }
            }
            DiskFormat::Qcow2 | DiskFormat::Qcow2V2 => self.defined_qcow2(layer, &storage, head.as_ref())?,
            DiskFormat::Other(format) if layer.encryption.is_none() => Layout::Plain(plain(format, &shown)?),
            DiskFormat::Other(format) => {
                return refused(format!(
                    "{shown} is encrypted and has the format {format}, which is not supported"
                ));
            }
        };
        Ok(Image { storage, layout })
    }

    fn defined_qcow2(
        &mut self,
        layer: &Layer,
        storage: &Storage,
        head: Option<&Head>,
    ) -> Result<Layout, Trouble> {
        let shown = storage.text();
        let header = match head {
            Some(head) => header::parse(&head.bytes).map_err(|why| broken(&shown, &why))?,
            None => self.look.remote_header(&storage.node()?)?,
        };
        let key = match (&layer.encryption, header.encryption) {
            (None, 0) => None,
            (Some(encryption), 2) => Some(self.key(encryption, &shown)?),
            (None, _) => {
                return refused(format!(
                    "{shown} is encrypted, but the definition names no secret for it"
                ));
            }
            (Some(_), 0) => {
                return refused(format!(
                    "{shown} is not encrypted, but the definition says that it is"
                ));
            }
            (Some(_), _) => {
                return refused(format!(
                    "{shown} is encrypted in a way that QEMU no longer supports"
                ));
            }
        };
        let data_file = match &layer.data_file {
            Some(defined) if defined.is_encrypted() => {
                return refused(format!(
                    "the data file {} is encrypted, so only the domain's own QEMU can read it: back the disk up while the domain runs",
                    defined.source.text()
                ));
            }
            Some(defined) => Some(self.storage(&defined.source)?.0),
            None => self.data_file(&header, &shown)?,
        };
        let backing = match &layer.backing {
            Backing::Layer(beneath) => Some(Box::new(self.defined(beneath)?)),
            Backing::End => None,
            Backing::Unsaid => self.followed(&header, storage)?,
        };
        Ok(Layout::Qcow2 {
            has_bitmaps: header.has_bitmaps,
            data_file,
            key,
            backing,
        })
    }

    /// Returns the storage of a source, and its first bytes if it is on this machine.
    fn storage(&mut self, source: &Source) -> Result<(Storage, Option<Head>), Trouble> {
        match source {
            Source::File(path) | Source::Block(path) => {
                let (storage, head) = self.file(path)?;
                Ok((storage, Some(head)))
            }
            Source::Volume(volume) => match &volume.place {
                Some(place) if !matches!(**place, Source::Volume(_)) => self.storage(place),
                _ => refused(format!("the location of the {} is unknown", source.text())),
            },
            Source::Network(network) => {
                let node = protocol::node(network).map_err(Trouble::Refused)?;
                Ok((Storage::Remote(node, network.text()), None))
            }
            Source::Nvme(_) => refused(
                "only the domain's own QEMU can read the NVMe device: back the disk up while the domain runs",
            ),
            other => refused(format!("{} cannot be read", other.text())),
        }
    }

    fn file(&mut self, path: &Path) -> Result<(Storage, Head), Trouble> {
        let head = self.look.head(path)?;
        if self.seen.contains(&head.id) {
            return refused(format!("{} occurs twice in the backing chain", path.display()));
        }
        if self.seen.len() > MAX_CHAIN {
            return refused(format!(
                "the chain of backing files is longer than {MAX_CHAIN} images"
            ));
        }
        self.seen.push(head.id);
        let storage = match head.is_block {
            true => Storage::Device(path.to_owned()),
            false => Storage::File(path.to_owned()),
        };
        Ok((storage, head))
    }

    /// Plans the image that a header names as its backing file, if it names one.
    fn followed(&mut self, header: &Header, above: &Storage) -> Result<Option<Box<Image>>, Trouble> {
        let Some((name, format)) = &header.backing else {
            return Ok(None);
        };
        let path = backing_path(name, above)?;
        let (storage, head) = self.file(&path)?;
        let layout = match format.as_deref() {
            Some("raw") => Layout::Raw,
            Some("qcow2") => {
                let shown = path.display().to_string();
                let header = header::parse(&head.bytes).map_err(|why| broken(&shown, &why))?;
                self.found_qcow2(&header, &storage)?
            }
            Some(known) if is_known(known) => Layout::Plain(plain(known, &storage.text())?),
            // libvirt treats an unknown format name like a missing one.
            Some(_) | None => probed(&head, &storage, above)?,
        };
        Ok(Some(Box::new(Image { storage, layout })))
    }

    /// Plans a qcow2 image whose format is recorded in the header above it.
    fn found_qcow2(&mut self, header: &Header, storage: &Storage) -> Result<Layout, Trouble> {
        let shown = storage.text();
        if header.encryption != 0 {
            return refused(format!(
                "the backing file {shown} is encrypted, but the definition names no secret for it"
            ));
        }
        Ok(Layout::Qcow2 {
            has_bitmaps: header.has_bitmaps,
            data_file: self.data_file(header, &shown)?,
            key: None,
            backing: self.followed(header, storage)?,
        })
    }

    /// Returns the data file that a header names. QEMU opens it for the domain, too.
    fn data_file(&mut self, header: &Header, shown: &str) -> Result<Option<Storage>, Trouble> {
        if !header.has_data_file {
            return Ok(None);
        }
        let name = header.data_file.as_deref().unwrap_or_default();
        // QEMU resolves a relative name in its own working directory and would interpret a
        // `protocol:` prefix.
        if !name.starts_with('/') {
            return refused(format!(
                "the name '{name}' of the data file of {shown} is not an absolute path, so the domain cannot start either"
            ));
        }
        Ok(Some(self.file(Path::new(name))?.0))
    }

    fn key(&mut self, encryption: &Encryption, shown: &str) -> Result<usize, Trouble> {
        if encryption.format != "luks" {
            return refused(format!(
                "{shown} is encrypted in the format '{}', which only the domain's own QEMU can read: back the disk up while the domain runs",
                encryption.format
            ));
        }
        if let Some(engine) = encryption.engine.as_deref().filter(|engine| *engine != "qemu") {
            return refused(format!(
                "{shown} is decrypted by '{engine}', which only the domain's own QEMU can use: back the disk up while the domain runs"
            ));
        }
        let Some(secret) = encryption.secrets.first() else {
            return refused(format!(
                "{shown} is encrypted, but the definition names no secret for it"
            ));
        };
        self.secrets.push(secret.clone());
        Ok(self.secrets.len() - 1)
    }
}

fn broken(shown: &str, why: &str) -> Trouble {
    Trouble::Broken {
        shown: shown.to_owned(),
        why: why.to_owned(),
    }
}

/// Formats that refer to no other file, as QEMU names them.
const PLAIN: [&str; 3] = ["vdi", "vhdx", "vpc"];

/// Formats that libvirt knows and vmsnap does not read.
const OTHERS: [&str; 12] = [
    "bochs",
    "cloop",
    "cow",
    "dir",
    "dmg",
    "fat",
    "iso",
    "luks",
    "parallels",
    "qcow",
    "qed",
    "vmdk",
];

fn is_known(format: &str) -> bool {
    PLAIN.contains(&format) || OTHERS.contains(&format)
}

fn plain(format: &str, shown: &str) -> Result<&'static str, Trouble> {
    let found = PLAIN.iter().find(|plain| **plain == format);
    found.copied().ok_or_else(|| {
        Trouble::Refused(format!(
            "{shown} has the format {format}: vmsnap reads such a backing image only while the domain runs"
        ))
    })
}

/// Determines the format of a backing file whose format is not recorded.
///
/// Like libvirt, accepts the format that the first bytes show only if the image refers to no other
/// file.
fn probed(head: &Head, storage: &Storage, above: &Storage) -> Result<Layout, Trouble> {
    let (shown, above) = (storage.text(), above.text());
    let unclear = |why: &str| {
        refused(format!(
            "{above} does not record the format of its backing file {shown}, which looks like {why}: \
             record it (qemu-img rebase -u -F FORMAT -b {shown} {above})"
        ))
    };
    match header::probe(&head.bytes).map_err(|why| broken(&shown, &why))? {
        Looks::Raw => Ok(Layout::Raw),
        Looks::Qcow2(Header {
            backing: None,
            has_data_file: false,
            encryption: 0,
            has_bitmaps,
            ..
        }) => Ok(Layout::Qcow2 {
            has_bitmaps,
            data_file: None,
            key: None,
            backing: None,
        }),
        Looks::Qcow2(_) => unclear("a qcow2 image that names other files"),
        Looks::Other(format) => unclear(&format!("an image of the format {format}")),
    }
}

/// Resolves the backing file name in a header as libvirt does.
///
/// A relative name is relative to the folder in the path by which the image above was opened.
fn backing_path(name: &str, above: &Storage) -> Result<PathBuf, Trouble> {
    let shown = above.text();
    let colon = name.find(':');
    if colon.is_some_and(|colon| name.find('/').is_none_or(|slash| colon < slash)) {
        return refused(format!(
            "{shown} names its backing file as '{name}', not as a path, so only the domain's own QEMU can read it: back the disk up while the domain runs"
        ));
    }
    if name.starts_with('/') {
        return Ok(PathBuf::from(name));
    }
    match above.path().and_then(Path::parent) {
        Some(folder) => Ok(folder.join(name)),
        None => refused(format!(
            "{shown} names its backing file as '{name}', so only the domain's own QEMU can read it: back the disk up while the domain runs"
        )),
    }
}
