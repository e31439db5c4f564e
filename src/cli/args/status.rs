//! Arguments of `vmsnap status`.

use std::path::PathBuf;

use clap::Args;

use crate::model::level::FullRule;

use super::key::SecretArgs;
use super::shared::{ConnectArgs, DomainArgs, flag_of_env, path_or_empty};

/// Arguments of `vmsnap status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap status                                 all domains
  vmsnap status vm1 --output /backups --pretty  with the backup folder and the next backup
  vmsnap status --machine --json                one line for monitoring")]
pub struct StatusArgs {
    /// The domains to work on.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// Repository to compare the domain with; also shows the current period's folder
    #[arg(
        short,
        long,
        alias = "repository",
        value_name = "DIR",
        env = "VMSNAP_REPOSITORY",
        value_parser = path_or_empty()
    )]
    pub output: Option<PathBuf>,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Grouping whose current period is examined: month, quarter, bi-annual, year
    #[arg(long, alias = "groupBy", value_name = "SPAN", default_value = "month")]
    pub group_by: String,

    /// Assume that backups use this rule for full backups (as in vmsnap backup): period, never
    #[arg(long, value_name = "RULE", env = "VMSNAP_FULL", default_value = "period")]
    pub full: FullRule,

    /// Assume that backups leave out this disk (as in vmsnap backup)
    #[arg(long, value_name = "DISK", env = "VMSNAP_EXCLUDE_DISK")]
    pub exclude_disk: Vec<String>,

    /// Assume that backups use --store-decrypted
    #[arg(
        long,
        alias = "storeDecrypted",
        env = "VMSNAP_STORE_DECRYPTED",
        value_parser = flag_of_env("VMSNAP_STORE_DECRYPTED")
    )]
    pub store_decrypted: bool,

    /// Assume that backups leave encrypted disks out, even if VMSNAP_STORE_DECRYPTED=yes is set
    #[arg(long, hide = true)]
    pub no_store_decrypted: bool,

    /// The hypervisor to connect to.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// Print YAML; overrides --json
    #[arg(long, alias = "yml", help_heading = "Output")]
    pub yaml: bool,

    /// Omit the title and separator lines of --json and --yaml, and print JSON on one line; no
    /// effect on text
    #[arg(long, help_heading = "Output")]
    pub machine: bool,

    /// Print sizes with units: 14.3 GB
    #[arg(long, help_heading = "Output")]
    pub pretty: bool,
}
