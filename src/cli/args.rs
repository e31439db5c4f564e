//! What is typed on the command line, word for word. What is meant is decided in `commands`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

mod backup;
mod list;
mod restore;
mod scrub;
mod shared;
mod status;
mod verify;

pub use backup::BackupArgs;
pub use list::ListArgs;
pub use restore::{FormatArg, RestoreArgs};
pub use scrub::ScrubArgs;
pub use shared::{ConnectArgs, DomainArgs, OutputArgs, RepositoryArgs, WaitArgs};
pub use status::StatusArgs;
pub use verify::VerifyArgs;

/// Incremental backups of libvirt/KVM domains: made, kept, proved, brought back.
#[derive(Debug, Parser)]
#[command(name = "vmsnap", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Examples:
  vmsnap                                       how all domains stand
  vmsnap backup vm1 --output /backups          a full backup, then what has changed
  vmsnap list --repository /backups            what there is
  vmsnap restore vm1 --repository /backups --to /tmp/drill
  vmsnap demo                                  all of it on a throw-away domain

The spelling of the Node.js VMSnap works too:
  vmsnap --domains=vm1 --backup --output=/backups --groupBy=quarter --prune")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What to tell on the way.
    #[command(flatten)]
    pub log: LogArgs,
}

impl Cli {
    /// Notes that the words were typed in the classic spelling, where a default differs.
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

/// The whole command line, with everything that clap adds to it.
pub fn grammar() -> clap::Command {
    let mut grammar = Cli::command();
    grammar.build();
    grammar
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes a restore point of each domain: full for the first of a period, then what has changed
    Backup(BackupArgs),
    /// Brings disks back from a restore point, and the domain with --define
    Restore(RestoreArgs),
    /// Lists restore points; needs no hypervisor
    List(ListArgs),
    /// Proves restore points: digests, structure and chain; with --deep every byte as a restore would read it
    Verify(VerifyArgs),
    /// Shows how domains stand: checkpoints, disks, bitmaps, and whether they agree
    Status(StatusArgs),
    /// Removes our checkpoints and bitmaps from domains, and tells what the next backup will therefore be
    Scrub(ScrubArgs),
    /// Shows the whole job on a throw-away domain and compares every byte; needs no configuration and no daemon
    Demo(DemoArgs),
    /// Prints the completions of a shell, as packages install them
    Completions(CompletionsArgs),
    /// Prints the manual page of vmsnap or of one of its commands, as packages install them
    Man(ManArgs),
}

/// What goes to stderr besides the answer.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Messages on stderr")]
pub struct LogArgs {
    /// Tell more; twice: still more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,

    /// Tell only what went wrong
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// How messages are written: text or json
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
    /// The settings for an error in these words, which could not be parsed: only the format counts.
    pub fn before_parsing(words: &[OsString]) -> LogArgs {
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

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people; with fields where stderr is the systemd journal
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
    /// Where to put the throw-away files; a folder of its own is made there and removed again
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// The folder below `dir`, chosen before the first thread starts
    #[arg(skip)]
    pub folder: PathBuf,
}
