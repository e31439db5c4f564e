//! Arguments of `vmsnap init` and `vmsnap repository`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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

    /// Encrypt for the owner of this public key of age (age1…); may be given several times
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

    /// The form of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Arguments of `vmsnap repository`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  vmsnap repository info s3:https://s3.example.org/backups/kvm1")]
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
}

/// Arguments of `vmsnap repository info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// The repository, as for `vmsnap init`
    #[arg(value_name = "LOCATION")]
    pub location: PathBuf,

    /// The form of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}
