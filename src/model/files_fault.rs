//! Why files of a guest cannot be read.

/// A fault that concerns the guest's files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesFault {
    /// There is no such file.
    #[error("there is no file {0} in the guest's file systems")]
    NoSuchFile(String),
    /// A file is of the wrong kind, which the text names.
    #[error("{0}")]
    WrongKind(String),
    /// The disks have no such device.
    #[error("there is no file system on {device}; the file systems are: {there}")]
    NoSuchDevice {
        /// The wanted device.
        device: String,
        /// The file systems that exist, with their types.
        there: String,
    },
    /// There are several operating systems or file systems.
    #[error("there are several {what}: {there}")]
    Several {
        /// `operating systems` or `file systems`.
        what: &'static str,
        /// The devices of these systems.
        there: String,
    },
    /// A file system is encrypted.
    #[error("the file system on {device} is encrypted ({with}), and vmsnap cannot open it")]
    Encrypted {
        /// Its device.
        device: String,
        /// The kind of encryption.
        with: &'static str,
    },
    /// No device holds a file system.
    #[error("no file system was found in the disks{there}")]
    NoFileSystem {
        /// The devices that were found instead, as the end of the sentence; empty if there are
        /// none.
        there: String,
    },
    /// The path needs a file system that cannot be mounted.
    #[error("{path} needs the file system on {device}, which cannot be mounted on {mount_point}")]
    NotMounted {
        /// The wanted path.
        path: String,
        /// The device.
        device: String,
        /// Where the operating system mounts it.
        mount_point: String,
    },
    /// `guestfish` answered in an unknown form.
    #[error("guestfish answered '{command}' in an unknown form")]
    Answer {
        /// The command.
        command: &'static str,
    },
    /// A file was shorter or longer than its size.
    #[error("reading {path} returned {found} bytes, but the size of the file is {size} bytes")]
    Length {
        /// The path.
        path: String,
        /// The number of bytes that were read.
        found: u64,
        /// The size of the file.
        size: u64,
    },
    /// Reads of the disks failed. The text is the failure that resulted.
    #[error("reads of the disks failed: {message}")]
    Reads {
        /// The failure.
        message: String,
        /// Whether stored data is damaged.
        is_damage: bool,
    },
}

impl FilesFault {
    /// A hint on what the user can do, if there is one.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        Some(match self {
            FilesFault::NoSuchFile(_) => {
                "`vmsnap files DOMAIN ls /` shows the files, and without `ls /` the file systems"
            }
            FilesFault::NoSuchDevice { .. } | FilesFault::Several { .. } => {
                "choose a file system with --device"
            }
            FilesFault::Encrypted { .. } => {
                "`vmsnap mount` shows the disk as a file; guestfish can open the file system in this file, with its option --key"
            }
            FilesFault::NotMounted { .. } => "choose its file system with --device",
            FilesFault::Reads { is_damage: true, .. } => {
                "another restore point may hold the same data undamaged: `vmsnap verify --all --deep` shows which ones are sound"
            }
            _ => return None,
        })
    }
}
