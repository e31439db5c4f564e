//! Arguments of `vmsnap init` and `vmsnap repository`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Span, SpanRelativeTo};

use super::key::SecretArgs;
use super::shared::OutputArgs;

/// Arguments of `vmsnap init`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap init s3:https://s3.example.org/backups/kvm1 --passphrase-file /etc/vmsnap/passphrase
  vmsnap init s3://backups/kvm1 --encrypt-to age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
  vmsnap init pack:/backups/pack")]
pub struct InitArgs {
    /// Where to create the repository: s3:https://HOST/BUCKET/PREFIX, s3://BUCKET/PREFIX (AWS), or
    /// pack:/DIRECTORY
    #[arg(value_name = "LOCATION")]
    pub location: PathBuf,

    /// Encrypt for the owner of this age public key (age1…); may be given several times
    #[arg(long, value_name = "RECIPIENT", conflicts_with_all = ["passphrase_file", "no_encryption"])]
    pub encrypt_to: Vec<String>,

    /// Encrypt with the passphrase in this file [env: VMSNAP_PASSPHRASE_FILE] [default: ask on the
    /// terminal]
    #[arg(long, value_name = "FILE", conflicts_with = "no_encryption")]
    pub passphrase_file: Option<PathBuf>,

    /// Do not encrypt: everybody who can read the objects can read the backups
    #[arg(long)]
    pub no_encryption: bool,

    /// A label for the key slot, shown by `vmsnap key list`
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub label: String,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Arguments of `vmsnap repository`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap repository info s3:https://s3.example.org/backups/kvm1
  vmsnap repository check s3:https://s3.example.org/backups/kvm1
  vmsnap repository collect s3:https://s3.example.org/backups/kvm1 --dry-run")]
pub struct RepositoryCommandArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: RepositoryCommand,
}

/// What to do with a repository as a whole.
#[derive(Debug, Subcommand)]
pub enum RepositoryCommand {
    /// Show the facts about a pack repository; needs no key
    Info(InfoArgs),
    /// Delete data that no restore point needs; `vmsnap prune` does this too
    Collect(CollectArgs),
    /// Check the objects of a pack repository, and show which disks and files each damaged one
    /// makes unreadable
    Check(CheckArgs),
    /// Add missing packs to the index, from the packs' own tables
    RebuildIndex(RebuildArgs),
}

/// Arguments of `vmsnap repository check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap repository check s3:https://s3.example.org/backups/kvm1
  vmsnap repository check pack:/backups/pack --deep --json")]
pub struct CheckArgs {
    /// The repository, as for `vmsnap init`
    #[arg(value_name = "LOCATION")]
    pub location: PathBuf,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Also read all packs from end to end
    #[arg(long)]
    pub deep: bool,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Arguments of `vmsnap repository rebuild-index`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap repository rebuild-index pack:/backups/pack --dry-run
  vmsnap repository rebuild-index s3:https://s3.example.org/backups/kvm1 --delete-damaged")]
pub struct RebuildArgs {
    /// The repository, as for `vmsnap init`
    #[arg(value_name = "LOCATION")]
    pub location: PathBuf,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Delete damaged index objects after all packs are listed in others
    #[arg(long)]
    pub delete_damaged: bool,

    /// Show what would be done; change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Arguments of `vmsnap repository collect`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap repository collect s3:https://s3.example.org/backups/kvm1
  vmsnap repository collect pack:/backups/pack --dry-run")]
pub struct CollectArgs {
    /// The repository, as for `vmsnap init`
    #[arg(value_name = "LOCATION")]
    pub location: PathBuf,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Grace period, such as 36h, 2d or 1w: how long an unused pack stays after it was condemned
    /// (marked for deletion). Packs younger than this are not condemned
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = grace)]
    pub grace: SignedDuration,

    /// Show what a collection would do. Needs the same rights as a collection. Packs that killed
    /// runs left are not read, and count as unused
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Reads a grace period. Days have 24 hours.
fn grace(text: &str) -> Result<SignedDuration, String> {
    let invalid = || "use a duration such as 36h, 2d or 1w".to_owned();
    let span: Span = text.parse().map_err(|_| invalid())?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours());
    match duration {
        Ok(duration) if !duration.is_negative() => Ok(duration),
        _ => Err(invalid()),
    }
}

/// Arguments of `vmsnap repository info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The repository, as for `vmsnap init`
    #[arg(value_name = "LOCATION")]
    pub location: PathBuf,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_periods_are_read() {
        let hours = |text| grace(text).map(|duration| duration.as_hours());
        assert_eq!(hours("36h"), Ok(36));
        assert_eq!(hours("2d"), Ok(48));
        assert_eq!(hours("1w"), Ok(168));
        assert_eq!(hours("0s"), Ok(0));
        for invalid in ["", "12", "-1h", "1 month", "1y", "99999999999h", "x"] {
            assert!(grace(invalid).is_err(), "{invalid}");
        }
    }
}
