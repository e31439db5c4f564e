//! What a domain's firmware keeps outside its disks: UEFI variables and the state of a TPM.

use std::path::{Path, PathBuf};

/// The place of a domain's UEFI variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nvram {
    /// A file of their own.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether the file is a qcow2 image. Otherwise it holds the bytes that the guest sees.
        is_qcow2: bool,
    },
    /// A place that a backup does not read, described for messages.
    Elsewhere(String),
    /// The image of the firmware itself, which the guest may write to: the variables have no file
    /// of their own.
    Loader(PathBuf),
}

impl Nvram {
    /// A file with the bytes that the guest sees.
    pub fn raw(path: impl Into<PathBuf>) -> Nvram {
        Nvram::File {
            path: path.into(),
            is_qcow2: false,
        }
    }

    /// The path of the variables' own file, if they have one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Nvram::File { path, .. } => Some(path),
            Nvram::Elsewhere(_) | Nvram::Loader(_) => None,
        }
    }
}

/// An emulated TPM, as a domain's XML describes it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tpm {
    /// The version of the TPM: `1.2` or `2.0`. libvirt writes it into every definition.
    pub version: String,
    /// The place of its state.
    pub place: TpmPlace,
    /// The UUID of libvirt's secret with which the state is encrypted.
    pub secret: Option<String>,
}

/// The place of a TPM's state.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum TpmPlace {
    /// libvirt's folder, below which each domain has a folder named by its UUID.
    #[default]
    Usual,
    /// A folder that the definition names.
    Folder(PathBuf),
    /// A single file or block device that the definition names.
    File(PathBuf),
}

impl Tpm {
    /// The name of the folder that holds the state, within the domain's folder; `None` for an
    /// unknown version. The rule is that of qemuTPMEmulatorStorageBuildPath in libvirt's
    /// `src/qemu/qemu_tpm.c`.
    pub fn folder(&self) -> Option<&'static str> {
        match self.version.as_str() {
            "1.2" => Some("tpm1.2"),
            "2.0" => Some("tpm2"),
            _ => None,
        }
    }
}
