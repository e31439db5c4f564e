//! Arguments of `vmsnap files`.

use std::ffi::OsString;

use clap::{Args, ValueEnum};

use super::key::SecretArgs;
use super::shared::{OutputArgs, RepositoryArgs};

/// Arguments of `vmsnap files`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap files vm1 --repository /backups
  vmsnap files vm1 ls /etc --repository /backups
  vmsnap files vm1 cat /etc/fstab --repository /backups --at 2026-11-01T02:00:00Z
  vmsnap files vm1 get /home/ann /etc/fstab /tmp/out --repository /backups
  vmsnap files vm1 tar /srv --repository /backups --device /dev/sdb1 > srv.tar

Without an action it lists the devices and file systems. It needs guestfish (Debian: package
libguestfs-tools, Fedora: libguestfs), which reads the guest's file systems in a virtual machine")]
pub struct FilesArgs {
    /// The domain, by its name at the time of the backup
    #[arg(value_name = "DOMAIN")]
    pub domain: String,

    /// What to do with the files
    #[arg(value_name = "ACTION", value_enum)]
    pub action: Option<FilesVerb>,

    /// Absolute paths in the guest; for get, followed by a folder on this host for the copies
    #[arg(value_name = "PATH")]
    pub paths: Vec<OsString>,

    /// The repository with the restore points.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Restore point: an id, a checkpoint's name, a time like 2026-11-01T02:00:00Z (selects the
    /// newest restore point up to that time), or latest
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub at: String,

    /// Look only at this disk; may be given several times
    #[arg(long = "disk", value_name = "TARGET")]
    pub disks: Vec<String>,

    /// Read the file system on this device, such as /dev/sda1 or /dev/vg/lv [default: all file
    /// systems that the guest's operating system mounts, or the only file system]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// What to do with files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FilesVerb {
    /// List a folder [default: /]
    Ls,
    /// Print the content of files
    Cat,
    /// Copy files and folders into a folder on this host
    Get,
    /// Write a folder to stdout as a tar stream
    Tar,
}
