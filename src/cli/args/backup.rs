//! What is typed for `vmsnap backup`.

use std::path::PathBuf;

use clap::Args;

use super::shared::{ConnectArgs, DomainArgs, OutputArgs, WaitArgs, flag_of_env, path_or_empty};

/// Arguments of `vmsnap backup`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap backup vm1 --output /backups                  full, then what has changed
  vmsnap backup 'web-*' db --output /backups --prune   several, and rotate
  vmsnap backup vm1 --output /backups --dry-run        what would be done, and why
  vmsnap backup vm1 --output /mnt/usb --copy           a full copy beside the chain")]
pub struct BackupArgs {
    /// Which domains.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// The repository: a folder in which each domain gets a folder
    #[arg(
        short,
        long,
        alias = "repository",
        value_name = "DIR",
        env = "VMSNAP_REPOSITORY",
        value_parser = path_or_empty()
    )]
    pub output: Option<PathBuf>,

    /// The span whose restore points share a folder and a chain: month, quarter, bi-annual, year
    #[arg(
        help_heading = "What is saved",
        long,
        alias = "groupBy",
        value_name = "SPAN",
        default_value = "month"
    )]
    pub group_by: String,

    /// Save raw disks too, always in full
    #[arg(help_heading = "What is saved", long)]
    pub raw: bool,

    /// Save encrypted disks too, as plain text: the repository then holds what the encryption hides
    #[arg(
        help_heading = "What is saved",
        long,
        alias = "storeDecrypted",
        env = "VMSNAP_STORE_DECRYPTED",
        value_parser = flag_of_env
    )]
    pub store_decrypted: bool,

    /// Leave encrypted disks out whatever the environment says
    #[arg(long, hide = true)]
    pub no_store_decrypted: bool,

    /// Leave this disk out: vdb, or vm1:vdb for one domain (globs too); comma lists, several times
    #[arg(
        help_heading = "What is saved",
        long,
        value_name = "DISK",
        env = "VMSNAP_EXCLUDE_DISK"
    )]
    pub exclude_disk: Vec<String>,

    /// Delete the previous period once the current one is past its middle and holds a whole full
    #[arg(long)]
    pub prune: bool,

    /// Begin a second chain where the domain's backups have another grouping than --group-by
    #[arg(help_heading = "What is saved", long)]
    pub force: bool,

    /// Save a full copy that stands alone: no checkpoint, no bitmap, no chain
    #[arg(help_heading = "What is saved", long)]
    pub copy: bool,

    /// Tell what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// How long the guest agent may take to freeze the file systems; 0 does not ask it
    #[arg(
        help_heading = "At the hypervisor",
        long,
        value_name = "SECONDS",
        default_value_t = 10
    )]
    pub freeze_timeout: u64,

    /// Where QEMU keeps what the guest overwrites during the backup [default: beside each disk]
    #[arg(help_heading = "At the hypervisor", long, value_name = "DIR")]
    pub scratch_dir: Option<PathBuf>,

    /// The NBD unix socket, rarely needed
    #[arg(
        help_heading = "At the hypervisor",
        long,
        alias = "socket-file",
        value_name = "PATH"
    )]
    pub socketfile: Option<PathBuf>,

    /// Checkpoints of the active chain that stay in the domain
    #[arg(help_heading = "At the hypervisor", long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_checkpoints: u32,

    /// How long to wait for another run.
    #[command(flatten)]
    pub wait: WaitArgs,

    /// Which hypervisor.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// How to tell.
    #[command(flatten)]
    pub output_args: OutputArgs,
}
