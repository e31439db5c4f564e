//! Arguments of `vmsnap verify`.

use std::path::PathBuf;

use clap::Args;

use super::key::SecretArgs;
use super::shared::{ConnectArgs, DomainArgs, RepositoryArgs};

/// Arguments of `vmsnap verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap verify --repository /backups                     newest restore points and their chains
  vmsnap verify vm1 --repository /backups --all --deep    everything, as a restore reads it
  vmsnap verify --repository /backups --all --older-than 7d
                                                          for cron: only those not verified in the last week
  vmsnap verify --compare-live vm1 --repository /backups  find bitmaps that missed a write")]
pub struct VerifyArgs {
    /// The domains to work on.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// Where the restore points are.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// What opens it.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Restore point: an id, a checkpoint's name, a time like 2026-11-01T02:00:00Z (selects the
    /// newest restore point up to that time), or latest
    #[arg(
        help_heading = "What to verify",
        long,
        value_name = "POINT",
        default_value = "latest"
    )]
    pub at: String,

    /// Verify all restore points
    #[arg(help_heading = "What to verify", long, conflicts_with = "at")]
    pub all: bool,

    /// Also read every disk from start to end, as a restore would
    #[arg(help_heading = "What to verify", long)]
    pub deep: bool,

    /// Skip restore points that were verified as sound within the last TIME (7d, 12h, 2w; m is
    /// minutes, mo is months; at most 10y)
    #[arg(help_heading = "What to verify", long, value_name = "TIME")]
    pub older_than: Option<String>,

    /// Compare the domains' current disks with their newest restore points: data that no bitmap
    /// marks as changed must be the same
    #[arg(
        help_heading = "Comparison with the domain",
        long,
        conflicts_with_all = ["at", "all", "deep", "older_than"]
    )]
    pub compare_live: bool,

    /// Compare all clusters instead of a random sample
    #[arg(help_heading = "Comparison with the domain", long, requires = "compare_live")]
    pub full: bool,

    /// How many clusters of 64 KiB of each disk to compare, at most
    #[arg(
        help_heading = "Comparison with the domain",
        long,
        value_name = "COUNT",
        requires = "compare_live",
        conflicts_with = "full",
        default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub sample: u32,

    /// Where QEMU stores data that the guest overwrites during the comparison [default: beside the
    /// disk's file; /var/tmp for other disks]
    #[arg(
        help_heading = "Comparison with the domain",
        long,
        value_name = "DIR",
        requires = "compare_live"
    )]
    pub scratch_dir: Option<PathBuf>,

    /// With --compare-live: how long to wait for another run of vmsnap on the same domain
    #[arg(
        help_heading = "Comparison with the domain",
        long,
        value_name = "SECONDS",
        env = "VMSNAP_WAIT",
        default_value_t = 0
    )]
    pub wait: u64,

    /// The hypervisor to connect to.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}
