//! Arguments of `vmsnap scrub`.

use std::path::PathBuf;

use clap::Args;

use crate::model::level::FullRule;

use super::key::SecretArgs;
use super::shared::{ConnectArgs, DomainArgs, OutputArgs, WaitArgs, path_or_empty};

/// Arguments of `vmsnap scrub`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap scrub vm1 --scrub-type both --dry-run  what would be removed, and the next backup
  vmsnap scrub vm1 --scrub-type both            then the next backup will be full
  vmsnap scrub vm1 --scrub-type bitmap --checkpoint-name virtnbdbackup.1793584802087731450996213
                                                remove a bitmap that blocks a backup")]
pub struct ScrubArgs {
    /// The domains to work on.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// What to remove: checkpoint (only libvirt's records; the bitmaps stay), bitmap (only
    /// bitmaps), both, or * (both, ignoring --checkpoint-name)
    #[arg(long, aliases = ["scrubType", "type"], value_name = "TYPE")]
    pub scrub_type: Option<String>,

    /// Remove only the checkpoint or bitmap with this name [default: all of vmsnap's
    /// (virtnbdbackup.N), same as *]
    #[arg(long, alias = "checkpointName", value_name = "NAME")]
    pub checkpoint_name: Option<String>,

    /// Repository of the domain's backups: no backup into this repository runs during the scrub,
    /// checkpoints and bitmaps that other repositories may need stay, and the next backup into this
    /// repository is predicted
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

    /// Length of a period, as in vmsnap backup
    #[arg(long, alias = "groupBy", value_name = "SPAN", default_value = "month")]
    pub group_by: String,

    /// Assume that backups use this rule for full backups (as in vmsnap backup): period, never
    #[arg(long, value_name = "RULE", env = "VMSNAP_FULL", default_value = "period")]
    pub full: FullRule,

    /// Show what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

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
