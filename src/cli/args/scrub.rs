//! What is typed for `vmsnap scrub`.

use std::path::PathBuf;

use clap::Args;

use super::shared::{ConnectArgs, DomainArgs, OutputArgs, WaitArgs, path_or_empty};

/// Arguments of `vmsnap scrub`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap scrub vm1 --scrub-type both --dry-run  what would go, and what the next backup would be
  vmsnap scrub vm1 --scrub-type both            the next backup of vm1 is full
  vmsnap scrub vm1 --scrub-type bitmap --checkpoint-name virtnbdbackup.1793584802087731450996213
                                                a bitmap that is in the way")]
pub struct ScrubArgs {
    /// Which domains.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// What goes: checkpoint (their records only), bitmap (bitmaps only), both, or * (both, whatever is named)
    #[arg(long, aliases = ["scrubType", "type"], value_name = "TYPE")]
    pub scrub_type: Option<String>,

    /// Only this checkpoint or bitmap; * is all of ours, as without the switch (virtnbdbackup.N)
    #[arg(long, alias = "checkpointName", value_name = "NAME")]
    pub checkpoint_name: Option<String>,

    /// The repository: keeps backups of the domain away meanwhile, and tells exactly what the next one will be
    #[arg(
        short,
        long,
        alias = "repository",
        value_name = "DIR",
        env = "VMSNAP_REPOSITORY",
        value_parser = path_or_empty()
    )]
    pub output: Option<PathBuf>,

    /// The span whose restore points share a folder and a chain, as for backup
    #[arg(long, alias = "groupBy", value_name = "SPAN", default_value = "month")]
    pub group_by: String,

    /// Tell what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

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
