//! Why files of a guest cannot be read.

/// A fault that concerns the guest's files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesFault {
    /// There is no such file.
    #[error("there is no file {0} in the guest's file systems")]
    NoSuchFile(String),
    /// A file is of the wrong kind. The text says which.
    #[error("{0}")]
    WrongKind(String),
    /// There is no such device in the disks.
    #[error("there is no file system on {device}; there are: {there}")]
    NoSuchDevice {
        /// The wanted device.
        device: String,
        /// Those that there are, with their types.
        there: String,
    },
    /// There are several operating systems or file systems.
    #[error("there are several {what}: {there}")]
    Several {
        /// `operating systems` or `file systems`.
        what: &'static str,
        /// Their devices.
        there: String,
    },
    /// A file system is encrypted.
    #[error("the file system on {device} is encrypted ({with}), and vmsnap cannot open it")]
    Encrypted {
        /// Its device.
        device: String,
        /// What encrypts it.
        with: &'static str,
    },
    /// No device holds a file system.
    #[error("no file system was found in the disks{there}")]
    NoFileSystem {
        /// What was found instead, or nothing.
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
    #[error("{path} gave {found} bytes, but its size is {size}")]
    Length {
        /// The path.
        path: String,
        /// The number of bytes that came.
        found: u64,
        /// The size of the file.
        size: u64,
    },
    /// Reads of the disks failed. The text is the failure that followed from it.
    #[error("reads of the disks failed: {message}")]
    Reads {
        /// The failure.
        message: String,
        /// Whether stored data are damaged.
        is_damage: bool,
    },
}

impl FilesFault {
    /// What the user can do.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        Some(match self {
            FilesFault::NoSuchFile(_) => {
                "`vmsnap files DOMAIN ls /` shows the files, and without `ls /` the file systems"
            }
            FilesFault::NoSuchDevice { .. } | FilesFault::Several { .. } => {
                "choose a file system with --device"
            }
            FilesFault::Encrypted { .. } => {
                "`vmsnap mount` shows the disk as a file, in which guestfish can open the file system with --key"
            }
            FilesFault::NotMounted { .. } => "choose its file system with --device",
            FilesFault::Reads { is_damage: true, .. } => {
                "another restore point may hold the same data undamaged: `vmsnap verify --all --deep` shows which ones are sound"
            }
            _ => return None,
        })
    }
}
