//! The files of a restore point, as a check of them reports.

use super::FileEntry;
use super::manifest::{DOMAIN_XML, Manifest, NVRAM};

/// A small file of a restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmallFile {
    /// The domain's definition.
    Definition,
    /// The domain's UEFI variables.
    Nvram,
}

impl SmallFile {
    /// The name by which the manifest knows it.
    pub fn name(self) -> &'static str {
        match self {
            SmallFile::Definition => DOMAIN_XML,
            SmallFile::Nvram => NVRAM,
        }
    }

    /// What the manifest says of it, if the restore point has it.
    pub fn entry(self, manifest: &Manifest) -> Option<&FileEntry> {
        manifest.file(self.name())
    }
}

/// Something of a restore point's files that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDamage {
    /// The file, where it is one.
    pub location: Option<String>,
    /// Where in the file, in bytes, where that is known.
    pub offset: Option<u64>,
    /// The target of the disk that it concerns; `None` for files that belong to no disk.
    pub disk: Option<String>,
    /// What is wrong, in words that name the file.
    pub what: String,
}

/// Receives the progress of a check of a restore point's files.
pub trait FileWatch {
    /// A file of so many bytes is about to be read.
    fn begins(&mut self, file: &str, size: u64);
    /// Everything before this offset of the file has been read.
    fn at(&mut self, file: &str, position: u64);
    /// The file is read no further.
    fn ends(&mut self, file: &str);
}
