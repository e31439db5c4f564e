//! Arguments of `vmsnap pin` and `vmsnap unpin`.

use clap::Args;

use super::key::SecretArgs;
use super::shared::{OutputArgs, RepositoryArgs, WAIT, WaitArgs};

/// Arguments of `vmsnap pin`.
#[derive(Debug, Args)]
#[command(mut_arg("wait", |arg| arg.help(WAIT)))]
#[command(after_help = "Example:
  vmsnap pin vm1 2026-11-01T02-00-03Z --note 'before the upgrade' --repository /backups")]
pub struct PinArgs {
    /// The restore point.
    #[command(flatten)]
    pub point: PinnedArgs,

    /// The reason, shown by `vmsnap list`
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub note: String,
}

/// Arguments of `vmsnap unpin`.
#[derive(Debug, Args)]
#[command(mut_arg("wait", |arg| arg.help(WAIT)))]
#[command(after_help = "Example:
  vmsnap unpin vm1 2026-11-01T02-00-03Z --repository /backups")]
pub struct UnpinArgs {
    /// The restore point.
    #[command(flatten)]
    pub point: PinnedArgs,
}

/// The restore point that is pinned or unpinned.
#[derive(Debug, Args)]
pub struct PinnedArgs {
    /// The domain
    #[arg(value_name = "DOMAIN")]
    pub domain: String,

    /// The restore point, as for `vmsnap restore --at`: an id, a checkpoint's name, a time, or
    /// latest
    #[arg(value_name = "POINT")]
    pub id: String,

    /// The repository.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// How long to wait for another run.
    #[command(flatten)]
    pub wait: WaitArgs,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}
