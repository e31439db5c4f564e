//! The grammar of the command line, for clap. `commands` carries out what was typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

mod backup;
mod boot;
mod copy;
mod files;
mod init;
mod keep;
mod key;
mod list;
mod mount;
mod pin;
mod prune;
mod restore;
mod scrub;
mod serve;
mod shared;
mod status;
mod verify;

pub use backup::BackupArgs;
pub use boot::BootArgs;
pub use copy::CopyArgs;
pub use files::{FilesArgs, FilesVerb};
pub use init::{
    CheckArgs, CollectArgs, InfoArgs, InitArgs, RebuildArgs, RepositoryCommand, RepositoryCommandArgs,
};
pub use keep::KeepArgs;
pub use key::{
    KeyAddArgs, KeyArgs, KeyCommand, KeyExportArgs, KeyListArgs, KeyRemoveArgs, OpenerArgs, SecretArgs,
};
pub use list::ListArgs;
pub use mount::MountArgs;
pub use pin::{PinArgs, PinnedArgs, UnpinArgs};
pub use prune::PruneArgs;
pub use restore::{FormatArg, RestoreArgs};
pub use scrub::ScrubArgs;
pub use serve::ServeArgs;
pub use shared::{ConnectArgs, DomainArgs, OutputArgs, RepositoryArgs, WaitArgs};
pub use status::StatusArgs;
pub use verify::VerifyArgs;

/// Make, verify and restore incremental backups of libvirt/KVM domains.
#[derive(Debug, Parser)]
#[command(name = "vmsnap", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Examples:
  vmsnap                                       the status of all domains
  vmsnap backup vm1 --output /backups          a full backup, later incremental ones
  vmsnap list --repository /backups            all restore points
  vmsnap restore vm1 --repository /backups --to /tmp/drill
  vmsnap demo                                  all of this on a temporary domain

The command-line syntax of the Node.js VMSnap also works:
  vmsnap --domains=vm1 --backup --output=/backups --groupBy=quarter --prune")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Which messages go to stderr, and in which format.
    #[command(flatten)]
    pub log: LogArgs,
}

impl Cli {
    /// Records that the command line uses the syntax of the Node.js VMSnap, which changes a default
    /// and some messages.
    pub fn set_classic(&mut self) {
        match &mut self.command {
            Command::Backup(args) => {
                args.wait.is_classic = true;
                args.connect.is_classic = true;
            }
            Command::Scrub(args) => {
                args.wait.is_classic = true;
                args.connect.is_classic = true;
            }
            Command::Status(args) => args.connect.is_classic = true,
            _ => {}
        }
    }
}

/// The whole command line as clap sees it, including the parts that clap adds itself (`help`).
pub fn grammar() -> clap::Command {
    let mut grammar = Cli::command();
    grammar.build();
    grammar
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a restore point of each domain: full at the start of a period, then incremental
    Backup(BackupArgs),
    /// Restore disks from a restore point; with --define also the domain
    Restore(RestoreArgs),
    /// Start a new domain from a restore point within seconds, with its network links down; --keep
    /// makes the domain permanent
    Boot(BootArgs),
    /// Offer disks at a restore point to NBD clients, read-only; needs no hypervisor
    Serve(ServeArgs),
    /// Show a restore point as read-only files in a folder, a raw file per disk; needs no
    /// hypervisor
    Mount(MountArgs),
    /// List and copy single files of the guest out of a restore point; needs guestfish, but no
    /// hypervisor
    Files(FilesArgs),
    /// List restore points; needs no hypervisor
    List(ListArgs),
    /// Verify restore points: digests, image structure and chains; with --deep, also read every
    /// byte as a restore does
    Verify(VerifyArgs),
    /// Remove the restore points that a policy does not keep; needs no hypervisor
    Prune(PruneArgs),
    /// Copy restore points to another repository of any kind; needs no hypervisor
    Copy(CopyArgs),
    /// Pin a restore point, so that it is not removed
    Pin(PinArgs),
    /// Unpin a restore point
    Unpin(UnpinArgs),
    /// Show the checkpoints, disks and bitmaps of domains, and whether they are consistent
    Status(StatusArgs),
    /// Remove vmsnap's checkpoints and bitmaps from domains, and predict the level of the next
    /// backup
    Scrub(ScrubArgs),
    /// Create a pack repository: in an object store or a folder, for encrypted and deduplicated
    /// backups
    Init(InitArgs),
    /// List, add, remove or export the keys of a pack repository
    Key(KeyArgs),
    /// Show or check a pack repository, rebuild its index, or delete unused data
    Repository(RepositoryCommandArgs),
    /// Back up and restore a temporary domain and compare every byte; needs no configuration and no
    /// daemon
    Demo(DemoArgs),
    /// Print the completion script of a shell; for packagers
    Completions(CompletionsArgs),
    /// Print the manual page of vmsnap or of one of its commands; for packagers
    Man(ManArgs),
}

/// Which messages go to stderr, and in which format.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Messages on stderr")]
pub struct LogArgs {
    /// Print more messages; -vv prints even more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,

    /// Print only errors, warnings and summaries
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// Format of the messages: text or json
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "FORMAT",
        default_value_t = LogFormat::Text,
        global = true,
        env = "VMSNAP_LOG_FORMAT"
    )]
    pub log_format: LogFormat,
}

impl LogArgs {
    /// The settings for a command line that could not be parsed. Only the log format is taken from
    /// that command line, or from the environment.
    pub(crate) fn before_parsing(words: &[OsString]) -> LogArgs {
        let environment = std::env::var("VMSNAP_LOG_FORMAT").unwrap_or_default();
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        let mut format = environment.as_str();
        for (place, word) in words.iter().enumerate() {
            for switch in ["--log-format", "--logFormat"] {
                match word.strip_prefix(switch) {
                    Some("") => format = words.get(place + 1).map_or(format, AsRef::as_ref),
                    Some(value) => format = value.strip_prefix('=').unwrap_or(format),
                    None => {}
                }
            }
        }
        let log_format = match format {
            "json" => LogFormat::Json,
            _ => LogFormat::Text,
        };
        LogArgs {
            verbose: 0,
            quiet: false,
            log_format,
        }
    }
}

/// The format of the messages on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people; with fields if stderr is the systemd journal
    Text,
    /// A JSON object per line
    Json,
}

/// Arguments of `vmsnap completions`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  vmsnap completions bash > /usr/share/bash-completion/completions/vmsnap")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Arguments of `vmsnap man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap man | man -l -
  vmsnap man backup > vmsnap-backup.1")]
pub struct ManArgs {
    /// The command [default: vmsnap itself]
    #[arg(value_name = "COMMAND")]
    pub command: Option<String>,
}

/// Arguments of `vmsnap demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where to create the temporary folder, which is removed at the end
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// The path of the temporary folder below `dir`, chosen before the first thread starts
    #[arg(skip)]
    pub folder: PathBuf,
}
