//! The files of a restore point, and the reports of a check of them.

use super::FileEntry;
use super::manifest::{DOMAIN_XML, Manifest, NVRAM, TPM};

/// A small file of a restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmallFile {
    /// The domain's definition.
    Definition,
    /// The domain's UEFI variables.
    Nvram,
    /// The state of the domain's TPM: the archive that `model::tpm_state` packs.
    Tpm,
}

impl SmallFile {
    /// Its name in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            SmallFile::Definition => DOMAIN_XML,
            SmallFile::Nvram => NVRAM,
            SmallFile::Tpm => TPM,
        }
    }

    /// Its entry in the manifest, if the restore point has it.
    pub fn entry(self, manifest: &Manifest) -> Option<&FileEntry> {
        manifest.file(self.name())
    }
}

/// Damage in a restore point's files: a part is missing, or contradicts the manifest or the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDamage {
    /// The path of the damaged file, if the damage lies in a file.
    pub location: Option<String>,
    /// The offset in the file, in bytes, if it is known.
    pub offset: Option<u64>,
    /// The target of the disk that it affects; `None` for files that belong to no disk.
    pub disk: Option<String>,
    /// A description that names the file.
    pub what: String,
}

/// Receives the progress of a check of a restore point's files.
pub trait FileWatch {
    /// Reading starts for a file that has this many bytes according to its manifest.
    fn begins(&mut self, file: &str, size: u64);
    /// Everything before this offset of the file has been read.
    fn at(&mut self, file: &str, position: u64);
    /// Reading the file has ended, or has failed.
    fn ends(&mut self, file: &str);
}
