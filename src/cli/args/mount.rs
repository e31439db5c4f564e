//! Arguments of `vmsnap mount`.

use std::path::PathBuf;

use clap::Args;

use super::key::SecretArgs;
use super::shared::RepositoryArgs;

/// Arguments of `vmsnap mount`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap mount vm1 /mnt/vm1 --repository /backups
  vmsnap mount vm1 /mnt/vm1 --repository /backups --at 2026-11-01T02:00:00Z

The command ends after Ctrl-C, or when somebody unmounts the folder")]
pub struct MountArgs {
    /// The domain, by its name at the time of the backup
    #[arg(value_name = "DOMAIN")]
    pub domain: String,

    /// Where to mount: an empty folder
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// The repository with the restore points.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Restore point: an id, a checkpoint's name, a time like 2026-11-01T02:00:00Z (selects the
    /// newest restore point up to that time), or latest
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub at: String,

    /// Let all users of this machine read the files; users other than root need the line
    /// user_allow_other in /etc/fuse.conf
    #[arg(long)]
    pub allow_other: bool,
}
