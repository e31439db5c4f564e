//! Storage pools, in which a restore creates volumes.

use std::path::PathBuf;

use super::xml::ImageFormat;

/// An active storage pool of this machine in which volumes can be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The kind of its volumes.
    pub volumes: VolumeKind,
    /// The folder that contains the paths of the volumes.
    pub folder: PathBuf,
    /// The free space, in bytes.
    pub available: u64,
}

/// The kind of the volumes of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// Files.
    Files,
    /// Block devices.
    Devices,
}

/// A volume to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// The name of its pool.
    pub pool: String,
    /// Its name; an existing volume of this name is an error.
    pub name: String,
    /// The format of its content.
    pub format: ImageFormat,
    /// The size of the disk, in bytes. The pool may round it up.
    pub size: u64,
    /// Whether the volume takes its whole size at once, as a device does.
    pub allocates: bool,
}
