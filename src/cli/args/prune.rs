//! Arguments of `vmsnap prune`.

use clap::Args;

use super::keep::KeepArgs;
use super::key::SecretArgs;
use super::shared::{DomainArgs, OutputArgs, RepositoryArgs, WAIT, WaitArgs};

/// Arguments of `vmsnap prune`.
#[derive(Debug, Args)]
#[command(mut_arg("wait", |arg| arg.help(WAIT)))]
#[command(after_help = "Examples:
  vmsnap prune --repository /backups --keep-daily 14 --keep-weekly 8 --keep-monthly 12 --dry-run
  vmsnap prune vm1 --repository /backups --keep-within 14d --keep-yearly unlimited")]
pub struct PruneArgs {
    /// The domains to work on.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// The repository.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// The policy that decides which restore points to keep.
    #[command(flatten)]
    pub keep: KeepArgs,

    /// Show each decision and its reason; remove nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// In a pack repository, do not collect unused data afterwards (`vmsnap repository collect`)
    #[arg(long)]
    pub no_collect: bool,

    /// How long to wait for another run.
    #[command(flatten)]
    pub wait: WaitArgs,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}
