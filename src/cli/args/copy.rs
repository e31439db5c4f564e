//! Arguments of `vmsnap copy`.

use std::path::PathBuf;

use clap::Args;

use crate::model::compression::Compression;

use super::keep::KeepArgs;
use super::key::SecretArgs;
use super::shared::{DomainArgs, OutputArgs, WAIT, WaitArgs, path_or_empty};

/// Arguments of `vmsnap copy`.
#[derive(Debug, Args)]
#[command(
    mut_arg("passphrase_file", |arg| arg.help(
        "File with the passphrase of the target; also of the source, unless a --from-… switch is given [env: VMSNAP_PASSPHRASE_FILE]"
    )),
    mut_arg("identity_file", |arg| arg.help(
        "File with private keys for the target; also for the source, unless a --from-… switch is given [env: VMSNAP_IDENTITY_FILE]"
    )),
    mut_arg("wait", |arg| arg.help(WAIT)),
)]
#[command(after_help = "Examples:
  vmsnap copy --from /backups --to s3:https://s3.example.org/backups/kvm --keep-daily 30
  vmsnap copy vm1 --from /backups --to /mnt/usb --newest
  vmsnap copy vm1 --from pack:/mnt/nas --to /rescue --at 2026-11-01T02-00-03Z")]
pub struct CopyArgs {
    /// The domains to work on.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// Location of the repository from which restore points are copied
    #[arg(long, value_name = "LOCATION", value_parser = path_or_empty())]
    pub from: PathBuf,

    /// Location of the repository to which restore points are copied: an existing pack repository
    /// (see `vmsnap init`), or a folder, which is created if its parent folder exists
    #[arg(long, value_name = "LOCATION", value_parser = path_or_empty())]
    pub to: PathBuf,

    /// Copy only this restore point: an id, a checkpoint's name, a time like 2026-11-01T02:00:00Z
    /// (selects the newest restore point up to that time), or latest
    #[arg(help_heading = "What to copy", long, value_name = "POINT", conflicts_with_all = ["newest", "all"])]
    pub at: Option<String>,

    /// Copy only the newest restore point, unless it was removed from the target
    #[arg(help_heading = "What to copy", long, conflicts_with = "all")]
    pub newest: bool,

    /// Copy all restore points that the target lacks, except those that a policy removed from it
    /// [default]
    #[arg(help_heading = "What to copy", long)]
    pub all: bool,

    /// The secret that opens the target. It also opens the source, unless one of the next two
    /// switches is given.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Open the source with the passphrase in this file
    #[arg(long, value_name = "FILE", conflicts_with = "from_identity_file")]
    pub from_passphrase_file: Option<PathBuf>,

    /// Open the source with the private keys in this file
    #[arg(long, value_name = "FILE")]
    pub from_identity_file: Option<PathBuf>,

    /// The policy for the target.
    #[command(flatten)]
    pub keep: KeepArgs,

    /// How data is compressed in the target: none, zstd (level 1), or zstd:LEVEL from 1 (fast) to
    /// 19 (small)
    #[arg(long, value_name = "METHOD", env = "VMSNAP_COMPRESS", default_value = "zstd")]
    pub compress: Compression,

    /// Show which restore points would be copied, and why others would not; copy nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// How long to wait for another run.
    #[command(flatten)]
    pub wait: WaitArgs,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

impl CopyArgs {
    /// The secret that opens the source.
    pub fn source_secret(&self) -> SecretArgs {
        match (&self.from_passphrase_file, &self.from_identity_file) {
            (None, None) => self.secret.clone(),
            (passphrase, identity) => SecretArgs {
                passphrase_file: passphrase.clone(),
                identity_file: identity.clone(),
            },
        }
    }
}
