//! Arguments of `vmsnap list`.

use clap::Args;

use super::key::SecretArgs;
use super::shared::{ConnectArgs, DomainArgs, RepositoryArgs};

/// Arguments of `vmsnap list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap list --repository /backups              every domain's restore points
  vmsnap list vm1 --repository /backups --wide   with checkpoints and folders
  vmsnap list vm1 --repository /backups --json   for scripts")]
pub struct ListArgs {
    /// The domains to work on.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// The repository with the restore points.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Show all columns: also the checkpoint, the folder of the period and the last deep
    /// verification
    #[arg(long, conflicts_with = "json")]
    pub wide: bool,

    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,

    // Accepted so that a script can give every command the same switches; a list asks no
    // hypervisor.
    #[command(flatten)]
    #[allow(missing_docs)]
    pub connect: ConnectArgs,
}
