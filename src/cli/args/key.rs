//! Arguments of `vmsnap key`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::shared::{OutputArgs, RepositoryArgs};

/// Arguments of `vmsnap key`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap key list --repository s3:https://s3.example.org/backups/kvm1
  vmsnap key add --label safe --encrypt-to age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
  vmsnap key export --to /root/kvm1-recovery.age
The last two use VMSNAP_REPOSITORY.")]
pub struct KeyArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: KeyCommand,
}

/// What to do with the keys of a pack repository.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List the key slots; needs no key
    List(KeyListArgs),
    /// Add a key slot for a passphrase or an age public key
    Add(KeyAddArgs),
    /// Remove a key slot, unless it is the last one
    Remove(KeyRemoveArgs),
    /// Copy a key slot to a recovery file, which can be opened without the repository; needs no key
    Export(KeyExportArgs),
}

/// Arguments of `vmsnap key list`.
#[derive(Debug, Args)]
pub struct KeyListArgs {
    /// The repository.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// The file with the secret of a pack repository.
#[derive(Clone, Debug, Args)]
pub struct SecretArgs {
    /// Passphrase of a pack repository [env: VMSNAP_PASSPHRASE_FILE]
    #[arg(long, value_name = "FILE", conflicts_with = "identity_file")]
    pub passphrase_file: Option<PathBuf>,

    /// Private keys for a pack repository [env: VMSNAP_IDENTITY_FILE]
    #[arg(long, alias = "identity", value_name = "FILE")]
    pub identity_file: Option<PathBuf>,
}

/// The secret that opens the repository, and the place of the key slot.
#[derive(Debug, Args)]
pub struct OpenerArgs {
    /// The secret.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Use the key in this recovery file (see `vmsnap key export`), not the repository's key slots
    #[arg(long, value_name = "FILE")]
    pub recovery_file: Option<PathBuf>,
}

/// Arguments of `vmsnap key add`.
#[derive(Debug, Args)]
pub struct KeyAddArgs {
    /// The repository.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub opener: OpenerArgs,

    /// Add a slot for the owner of this age public key (age1…)
    #[arg(long, value_name = "RECIPIENT", conflicts_with = "new_passphrase_file")]
    pub encrypt_to: Option<String>,

    /// Add a slot for the passphrase in this file [default: ask on the terminal]
    #[arg(long, value_name = "FILE")]
    pub new_passphrase_file: Option<PathBuf>,

    /// A label for the new slot, shown by `vmsnap key list`
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub label: String,
}

/// Arguments of `vmsnap key remove`.
#[derive(Debug, Args)]
pub struct KeyRemoveArgs {
    /// The id of the slot
    #[arg(value_name = "SLOT")]
    pub slot: String,

    /// The repository.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub opener: OpenerArgs,
}

/// Arguments of `vmsnap key export`.
#[derive(Debug, Args)]
pub struct KeyExportArgs {
    /// The id of the slot [default: the only one]
    #[arg(value_name = "SLOT")]
    pub slot: Option<String>,

    /// The repository.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The file to write; it must not exist
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
}
