//! Arguments of `vmsnap restore`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::key::SecretArgs;
use super::shared::{ConnectArgs, OutputArgs, RepositoryArgs};

/// Arguments of `vmsnap restore`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap restore vm1 --repository /backups --to /var/tmp/drill
  vmsnap restore vm1 --repository /backups --to /tmp/a.raw --disk vda --format raw
  vmsnap restore vm1 --repository /backups --to /images/drill --define --name drill")]
pub struct RestoreArgs {
    /// The domain, by its name at the time of the backup
    #[arg(value_name = "DOMAIN")]
    pub domain: String,

    /// Where the restore points are.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// What opens it.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Folder for the disks (created if missing). A single disk can also go to a new file whose
    /// name ends in .qcow2, .raw or .img, or to an unused block device
    #[arg(long, value_name = "PATH")]
    pub to: PathBuf,

    /// Restore point: an id, a checkpoint's name, a time like 2026-11-01T02:00:00Z (selects the
    /// newest restore point up to that time), or latest
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub at: String,

    /// Restore only this disk; may be given several times
    #[arg(long = "disk", value_name = "TARGET")]
    pub disks: Vec<String>,

    /// Format of the restored disks: qcow2 or raw [default: qcow2 in a folder; for a file, qcow2 if
    /// its name ends in .qcow2, otherwise raw; raw for a block device]
    #[arg(long, value_enum, hide_possible_values = true)]
    pub format: Option<FormatArg>,

    /// Define the domain with the restored disks
    #[arg(long)]
    pub define: bool,

    /// Name of the defined domain
    #[arg(long, value_name = "NEW", requires = "define")]
    pub name: Option<String>,

    /// Show what would be done, and do nothing
    #[arg(short = 'n', long, conflicts_with = "json")]
    pub dry_run: bool,

    /// The hypervisor to connect to.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// The form of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Formats of restored disks.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FormatArg {
    /// qcow2 without a backing file
    Qcow2,
    /// The bytes themselves, with holes
    Raw,
}
