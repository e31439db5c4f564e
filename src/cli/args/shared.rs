//! Arguments of several commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

/// Accepts any path. The command reports an empty one (`--output=$UNSET`) with its own message and
/// exit code.
pub(super) fn path_or_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Parses a switch that this environment variable can set too. An empty variable counts as unset.
pub(super) fn flag_of_env(variable: &'static str) -> impl TypedValueParser<Value = bool> {
    move |value: &str| match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("{variable} must be yes or no")),
    }
}

/// The repository to read.
#[derive(Debug, Args)]
pub struct RepositoryArgs {
    /// The repository
    #[arg(
        id = "repository",
        long = "repository",
        short = 'r',
        alias = "output",
        value_name = "DIR",
        env = "VMSNAP_REPOSITORY",
        value_parser = path_or_empty()
    )]
    pub dir: Option<PathBuf>,
}

/// The hypervisor to connect to.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// URI of the hypervisor [default: libvirt's]
    #[arg(
        help_heading = "Hypervisor",
        short,
        long,
        value_name = "URI",
        env = "VMSNAP_CONNECT"
    )]
    pub connect: Option<String>,

    /// Whether the command line uses the syntax of the Node.js VMSnap (commands as switches, such
    /// as `--backup`).
    #[arg(skip)]
    pub is_classic: bool,
}

/// The domains to work on.
#[derive(Debug, Args)]
pub struct DomainArgs {
    /// Domains: names, globs (* and ?), comma lists
    #[arg(value_name = "DOMAIN")]
    pub names: Vec<String>,

    /// Same as the DOMAIN arguments; may be given several times
    #[arg(long, value_name = "LIST")]
    pub domains: Vec<String>,
}

impl DomainArgs {
    /// The domains given as arguments and with `--domains`, in one list.
    pub fn all(&self) -> Vec<String> {
        self.names.iter().chain(&self.domains).cloned().collect()
    }
}

/// The help of `--wait` for a command that the Node.js VMSnap does not have.
pub(super) const WAIT: &str = "How long to wait until another run on the same domain ends [default: 0]";

/// How long to wait for another run.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// How long to wait until another run on the same domain ends [default: 0; 100 with the Node.js
    /// VMSnap syntax]
    #[arg(long, value_name = "SECONDS", env = "VMSNAP_WAIT")]
    pub wait: Option<u64>,

    /// Whether the command line uses the syntax of the Node.js VMSnap (commands as switches, such
    /// as `--backup`).
    #[arg(skip)]
    pub is_classic: bool,
}

/// How many seconds the Node.js VMSnap waited for its lock: it tried ten times, ten seconds apart.
const CLASSIC_WAIT: u64 = 100;

impl WaitArgs {
    /// The longest time to wait.
    pub fn time(&self) -> Duration {
        let default = if self.is_classic { CLASSIC_WAIT } else { 0 };
        Duration::from_secs(self.wait.unwrap_or(default))
    }
}

/// The format of the output.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}
