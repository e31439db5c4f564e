//! Arguments of `vmsnap backup`.

use std::path::PathBuf;

use clap::Args;

use crate::model::compression::Compression;
use crate::model::level::FullRule;

use super::keep::KeepArgs;
use super::key::SecretArgs;
use super::shared::{ConnectArgs, DomainArgs, OutputArgs, WaitArgs, flag_of_env, path_or_empty};

/// Arguments of `vmsnap backup`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap backup vm1 --output /backups                  full, later incremental
  vmsnap backup 'web-*' db --output /backups --prune   several domains; delete the previous period
  vmsnap backup vm1 --output /backups --keep-daily 14  then remove what the policy does not keep
  vmsnap backup vm1 --output /backups --dry-run        show what would be done, and why
  vmsnap backup vm1 --output /mnt/usb --copy           a full copy outside the chain")]
pub struct BackupArgs {
    /// The domains to work on.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// Repository: a folder, or s3:… or pack:…
    #[arg(
        short,
        long,
        alias = "repository",
        value_name = "DIR",
        env = "VMSNAP_REPOSITORY",
        value_parser = path_or_empty()
    )]
    pub output: Option<PathBuf>,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Length of a period: month, quarter, bi-annual, year
    #[arg(
        help_heading = "What to save",
        long,
        alias = "groupBy",
        value_name = "SPAN",
        default_value = "month"
    )]
    pub group_by: String,

    /// When to start a new chain with a full backup: period (at the start of each period) or never
    /// (only if no chain can be continued)
    #[arg(
        help_heading = "What to save",
        long,
        value_name = "RULE",
        env = "VMSNAP_FULL",
        default_value = "period"
    )]
    pub full: FullRule,

    /// Save raw disks too, always in full
    #[arg(help_heading = "What to save", long)]
    pub raw: bool,

    /// Save encrypted disks too, as plain text: the repository then holds the unencrypted data
    #[arg(
        help_heading = "What to save",
        long,
        alias = "storeDecrypted",
        env = "VMSNAP_STORE_DECRYPTED",
        value_parser = flag_of_env("VMSNAP_STORE_DECRYPTED")
    )]
    pub store_decrypted: bool,

    /// Leave encrypted disks out, also with VMSNAP_STORE_DECRYPTED=yes
    #[arg(long, hide = true)]
    pub no_store_decrypted: bool,

    /// Leave out this disk: vdb in all domains, or vm1:vdb in one (vm1 may be a glob); comma lists
    /// allowed, may be given several times
    #[arg(
        help_heading = "What to save",
        long,
        value_name = "DISK",
        env = "VMSNAP_EXCLUDE_DISK"
    )]
    pub exclude_disk: Vec<String>,

    /// How images are compressed: none, zstd (level 1), or zstd:LEVEL from 1 (fast) to 19 (small)
    #[arg(
        help_heading = "What to save",
        long,
        value_name = "METHOD",
        env = "VMSNAP_COMPRESS",
        default_value = "zstd"
    )]
    pub compress: Compression,

    /// Delete the previous period once the current one is past its midpoint and contains an intact
    /// full backup
    #[arg(long)]
    pub prune: bool,

    /// The policy that decides which restore points to keep after the backup.
    #[command(flatten)]
    pub keep: KeepArgs,

    /// Back up even if existing backups have a grouping other than --group-by
    #[arg(help_heading = "What to save", long)]
    pub force: bool,

    /// Save a standalone full copy: no checkpoint, no bitmap, no chain
    #[arg(help_heading = "What to save", long)]
    pub copy: bool,

    /// Show what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// How long the guest agent may take to freeze the file systems; 0 means no freezing
    #[arg(
        help_heading = "Hypervisor",
        long,
        value_name = "SECONDS",
        default_value_t = 10
    )]
    pub freeze_timeout: u64,

    /// Where QEMU stores data that the guest overwrites during the backup [default: beside the
    /// disk's file; /var/tmp for other disks]
    #[arg(help_heading = "Hypervisor", long, value_name = "DIR")]
    pub scratch_dir: Option<PathBuf>,

    /// Absolute path of the NBD Unix socket, for a single running domain [default: chosen by
    /// vmsnap]
    #[arg(help_heading = "Hypervisor", long, alias = "socket-file", value_name = "PATH")]
    pub socketfile: Option<PathBuf>,

    /// How many checkpoints to keep in the domain for the newest chain of the current period of
    /// each grouping
    #[arg(help_heading = "Hypervisor", long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_checkpoints: u32,

    /// How long to wait for another run.
    #[command(flatten)]
    pub wait: WaitArgs,

    /// The hypervisor to connect to.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}
