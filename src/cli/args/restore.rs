//! Arguments of `vmsnap restore`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::key::SecretArgs;
use super::shared::{ConnectArgs, OutputArgs, RepositoryArgs, WAIT, WaitArgs};
use crate::model::compression::Compression;
use crate::model::disk_choice::DiskChoice;
use crate::model::level::FullRule;

/// The heading of the switches that belong to `--in-place`.
const IN_PLACE: &str = "Restore in place";

/// Arguments of `vmsnap restore`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap restore vm1 --repository /backups --to /var/tmp/drill
  vmsnap restore vm1 --repository /backups --to /tmp/a.raw --disk vda --format raw
  vmsnap restore vm1 --repository /backups --to /images/drill --define --name drill
  vmsnap restore vm1 --repository /backups --pool default --define --name drill
  vmsnap restore vm1 --repository /backups --in-place --at 2026-11-01T02:00:00Z
  vmsnap restore vm1 --repository /backups --in-place --disk vdb=vm2:vdb")]
#[command(mut_arg("wait", |arg| arg.help(WAIT).help_heading(IN_PLACE)))]
pub struct RestoreArgs {
    /// The domain, by its name at the time of the backup
    #[arg(value_name = "DOMAIN")]
    pub domain: String,

    /// The repository with the restore points.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Folder for the disks (created if missing). A single disk can also go to a new file whose
    /// name ends in .qcow2, .raw or .img, or to an unused block device
    #[arg(long, value_name = "PATH", required_unless_present_any = ["in_place", "pool"])]
    pub to: Option<PathBuf>,

    /// Storage pool of libvirt in which the disks become new volumes, named DOMAIN-TARGET
    #[arg(long, value_name = "NAME", conflicts_with_all = ["to", "in_place"])]
    pub pool: Option<String>,

    /// Restore point: an id, a checkpoint's name, a time like 2026-11-01T02:00:00Z (selects the
    /// newest restore point up to that time), or latest
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub at: String,

    /// Restore only this disk; may be given several times. With --in-place, TARGET=DOMAIN:TARGET
    /// writes the disk onto a disk of another domain, which must be shut off
    #[arg(long = "disk", value_name = "TARGET")]
    pub disks: Vec<DiskChoice>,

    /// Format of the restored disks: qcow2 or raw [default: qcow2 in a folder or a storage pool of
    /// files; for a file, qcow2 if its name ends in .qcow2, otherwise raw; raw for a block device]
    #[arg(long, value_enum, hide_possible_values = true, conflicts_with = "in_place")]
    pub format: Option<FormatArg>,

    /// Define the domain with the restored disks
    #[arg(long, conflicts_with = "in_place")]
    pub define: bool,

    /// Name of the defined domain
    #[arg(long, value_name = "NEW", requires = "define")]
    pub name: Option<String>,

    /// Restore the domain's own disks, and write only what differs. The domain must be shut off.
    /// Its present state is backed up first, as by `vmsnap backup`
    #[arg(help_heading = IN_PLACE, long, conflicts_with = "to")]
    pub in_place: bool,

    /// Do not back up the present state of the disks first
    #[arg(help_heading = IN_PLACE, long, requires = "in_place")]
    pub discard_current: bool,

    /// Give up an unfinished restore in place: remove its mark, and leave the disks as they are
    #[arg(
        help_heading = IN_PLACE,
        long,
        requires = "in_place",
        conflicts_with_all = ["discard_current", "dry_run", "json", "disks"]
    )]
    pub abandon: bool,

    /// Rule for full backups when the present state is saved (as in vmsnap backup): period, never
    #[arg(
        help_heading = IN_PLACE,
        long,
        value_name = "RULE",
        env = "VMSNAP_FULL",
        default_value = "period"
    )]
    pub full: FullRule,

    /// How images are compressed when the present state is saved (as in vmsnap backup)
    #[arg(
        help_heading = IN_PLACE,
        long,
        value_name = "METHOD",
        env = "VMSNAP_COMPRESS",
        default_value = "zstd"
    )]
    pub compress: Compression,

    /// How long to wait for another run.
    #[command(flatten)]
    pub wait: WaitArgs,

    /// Show what would be done, and do nothing
    #[arg(short = 'n', long, conflicts_with = "json")]
    pub dry_run: bool,

    /// The hypervisor to connect to.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Formats of restored disks.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FormatArg {
    /// qcow2 without a backing file
    Qcow2,
    /// The disk's bytes without a header; ranges of zeroes become holes
    Raw,
}
