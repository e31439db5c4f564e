//! What is typed for `vmsnap restore`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::shared::{ConnectArgs, OutputArgs, RepositoryArgs};

/// Arguments of `vmsnap restore`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap restore vm1 --repository /backups --to /var/tmp/drill
  vmsnap restore vm1 --repository /backups --to /tmp/a.raw --disk vda --format raw
  vmsnap restore vm1 --repository /backups --to /images/drill --define --name drill")]
pub struct RestoreArgs {
    /// The domain, as it was named when it was backed up
    #[arg(value_name = "DOMAIN")]
    pub domain: String,

    /// Where the restore points are.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// A folder for the disks; for a single disk also a file name or an unused block device
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,

    /// The restore point: its id, its checkpoint, a time like 2026-11-01T02:00:00Z, or latest
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub at: String,

    /// Only this disk; may be given several times
    #[arg(long = "disk", value_name = "TARGET")]
    pub disks: Vec<String>,

    /// How the disks are laid out: qcow2 or raw [default: by the ending of a file's name, raw for a block device, otherwise qcow2]
    #[arg(long, value_enum, hide_possible_values = true)]
    pub format: Option<FormatArg>,

    /// Define the domain with the restored disks
    #[arg(long)]
    pub define: bool,

    /// The name to define it under
    #[arg(long, value_name = "NEW", requires = "define")]
    pub name: Option<String>,

    /// Tell what would be done, and do nothing
    #[arg(short = 'n', long, conflicts_with = "json")]
    pub dry_run: bool,

    /// Which hypervisor.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// How to tell.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// The layouts on offer.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FormatArg {
    /// qcow2 without a backing file
    Qcow2,
    /// The bytes themselves, with holes
    Raw,
}
