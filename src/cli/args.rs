//! What is typed on the command line, word for word. What is meant is decided in `commands`.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

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

/// A path; an empty one (`--output=$UNSET`) is judged by the command, which knows the right words and the right exit code.
fn path_or_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
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
        hide_possible_values = true,long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text, global = true, env = "VMSNAP_LOG_FORMAT")]
    pub log_format: LogFormat,
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

/// Which hypervisor.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The hypervisor [default: as virsh chooses]
    #[arg(
        help_heading = "At the hypervisor",
        short,
        long,
        value_name = "URI",
        env = "VMSNAP_CONNECT"
    )]
    pub connect: Option<String>,
}

/// Which domains.
#[derive(Debug, Args)]
pub struct DomainArgs {
    /// Domains: names, globs (* and ?), comma lists
    #[arg(value_name = "DOMAIN")]
    pub names: Vec<String>,

    /// The same as a switch; may be given several times
    #[arg(long, value_name = "LIST")]
    pub domains: Vec<String>,
}

impl DomainArgs {
    /// All that was typed, in one list.
    pub fn all(&self) -> Vec<String> {
        self.names.iter().chain(&self.domains).cloned().collect()
    }
}

/// How to tell.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `vmsnap backup`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap backup vm1 --output /backups                  full, then what has changed
  vmsnap backup 'web-*' db --output /backups --prune   several, and rotate
  vmsnap backup vm1 --output /backups --dry-run        what would be done, and why")]
pub struct BackupArgs {
    /// Which domains.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// The repository: a folder in which each domain gets a folder
    #[arg(
        short,
        long,
        alias = "repository",
        value_name = "DIR",
        env = "VMSNAP_REPOSITORY",
        value_parser = path_or_empty()
    )]
    pub output: Option<PathBuf>,

    /// The span whose restore points share a folder and a chain: month, quarter, bi-annual, year
    #[arg(
        help_heading = "What is saved",
        long,
        alias = "groupBy",
        value_name = "SPAN",
        default_value = "month"
    )]
    pub group_by: String,

    /// Save raw disks too, always in full
    #[arg(help_heading = "What is saved", long)]
    pub raw: bool,

    /// Delete the previous period once the current one is past its middle and holds a whole full
    #[arg(long)]
    pub prune: bool,

    /// Tell what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// How long the guest agent may take to freeze the file systems; 0 does not ask it
    #[arg(
        help_heading = "At the hypervisor",
        long,
        value_name = "SECONDS",
        default_value_t = 10
    )]
    pub freeze_timeout: u64,

    /// Where QEMU keeps what the guest overwrites during the backup [default: beside each disk]
    #[arg(help_heading = "At the hypervisor", long, value_name = "DIR")]
    pub scratch_dir: Option<PathBuf>,

    /// The NBD unix socket, rarely needed
    #[arg(
        help_heading = "At the hypervisor",
        long,
        alias = "socket-file",
        value_name = "PATH"
    )]
    pub socketfile: Option<PathBuf>,

    /// Checkpoints of the active chain that stay in the domain
    #[arg(help_heading = "At the hypervisor", long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_checkpoints: u32,

    /// Which hypervisor.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// How to tell.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Arguments of `vmsnap restore`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap restore vm1 --repository /backups --to /var/tmp/drill
  vmsnap restore vm1 --repository /backups --to /tmp/a.raw --disk vda --format raw
  vmsnap restore vm1 --repository /backups --to /images/drill --define --name drill")]
pub struct RestoreArgs {
    /// The domain, as it was named when it was backed up
    #[arg(value_name = "DOMAIN")]
    pub domain: String,

    /// The repository
    #[arg(short, long, alias = "output", value_name = "DIR", env = "VMSNAP_REPOSITORY",
        value_parser = path_or_empty())]
    pub repository: Option<PathBuf>,

    /// A folder for the disks; for a single disk also a file name or a block device
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,

    /// The restore point: its id, its checkpoint, a time like 2026-11-01T02:00:00Z, or latest
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub at: String,

    /// Only this disk; may be given several times
    #[arg(long = "disk", value_name = "TARGET")]
    pub disks: Vec<String>,

    /// How the disks are laid out: qcow2 or raw [default: by the ending of a file's name, otherwise qcow2]
    #[arg(long, value_enum, hide_possible_values = true)]
    pub format: Option<FormatArg>,

    /// Define the domain with the restored disks
    #[arg(long)]
    pub define: bool,

    /// The name to define it under
    #[arg(long, value_name = "NEW", requires = "define")]
    pub name: Option<String>,

    /// Tell what would be done, and do nothing
    #[arg(short = 'n', long, conflicts_with = "json")]
    pub dry_run: bool,

    /// Which hypervisor.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// How to tell.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// The layouts on offer.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FormatArg {
    /// qcow2 without a backing file
    Qcow2,
    /// The bytes themselves, with holes
    Raw,
}

/// Arguments of `vmsnap list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap list --repository /backups              every domain's restore points
  vmsnap list vm1 --repository /backups --json")]
pub struct ListArgs {
    /// Which domains.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// The repository
    #[arg(short, long, alias = "output", value_name = "DIR", env = "VMSNAP_REPOSITORY",
        value_parser = path_or_empty())]
    pub repository: Option<PathBuf>,

    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,

    // Accepted so that a script can give every command the same switches; a list asks no hypervisor.
    #[command(flatten)]
    #[allow(missing_docs)]
    pub connect: ConnectArgs,
}

/// Arguments of `vmsnap verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap verify --repository /backups                     every domain's newest restore point and its chain
  vmsnap verify vm1 --repository /backups --all --deep    everything, read as restores would
  vmsnap verify --repository /backups --all --older-than 7d
                                                          from cron: what was not proved for a week
  vmsnap verify --compare-live vm1 --repository /backups  whether a bitmap has missed a write")]
pub struct VerifyArgs {
    /// Which domains.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// The repository
    #[arg(short, long, alias = "output", value_name = "DIR", env = "VMSNAP_REPOSITORY",
        value_parser = path_or_empty())]
    pub repository: Option<PathBuf>,

    /// The restore point: its id, its checkpoint, a time like 2026-11-01T02:00:00Z, or latest
    #[arg(
        help_heading = "What is proved",
        long,
        value_name = "POINT",
        default_value = "latest"
    )]
    pub at: String,

    /// Every restore point
    #[arg(help_heading = "What is proved", long, conflicts_with = "at")]
    pub all: bool,

    /// Read every disk from end to end too, as a restore would
    #[arg(help_heading = "What is proved", long)]
    pub deep: bool,

    /// Skip restore points that were found sound within this time (7d, 12h, 2w)
    #[arg(help_heading = "What is proved", long, value_name = "TIME")]
    pub older_than: Option<String>,

    /// Compare the domains' disks as they are now with their newest restore points: what no bitmap calls changed has to be the same
    #[arg(
        help_heading = "Comparison with the domain",
        long,
        conflicts_with_all = ["at", "all", "deep", "older_than"]
    )]
    pub compare_live: bool,

    /// Compare all of it, and not a random sample
    #[arg(help_heading = "Comparison with the domain", long, requires = "compare_live")]
    pub full: bool,

    /// How many clusters of 64 KiB of each disk a sample has
    #[arg(
        help_heading = "Comparison with the domain",
        long,
        value_name = "COUNT",
        requires = "compare_live",
        conflicts_with = "full",
        default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub sample: u32,

    /// Where QEMU keeps what the guest overwrites meanwhile [default: beside each disk]
    #[arg(
        help_heading = "Comparison with the domain",
        long,
        value_name = "DIR",
        requires = "compare_live"
    )]
    pub scratch_dir: Option<PathBuf>,

    /// Which hypervisor.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `vmsnap status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap status                                 all domains
  vmsnap status vm1 --output /backups --pretty  and what the next backup will be
  vmsnap status --machine --json                one line for monitoring")]
pub struct StatusArgs {
    /// Which domains.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// The repository: adds what the current period holds, and the check against it
    #[arg(
        short,
        long,
        alias = "repository",
        value_name = "DIR",
        env = "VMSNAP_REPOSITORY",
        value_parser = path_or_empty()
    )]
    pub output: Option<PathBuf>,

    /// Which period folder is looked at: month, quarter, bi-annual, year
    #[arg(long, alias = "groupBy", value_name = "SPAN", default_value = "month")]
    pub group_by: String,

    /// Which hypervisor.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// As JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// As YAML; wins over --json
    #[arg(long, alias = "yml", help_heading = "Output")]
    pub yaml: bool,

    /// JSON on one line, JSON and YAML without a frame
    #[arg(long, help_heading = "Output")]
    pub machine: bool,

    /// Sizes for people: 14.3 GB
    #[arg(long, help_heading = "Output")]
    pub pretty: bool,
}

/// Arguments of `vmsnap scrub`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap scrub vm1 --scrub-type both --dry-run  what would go, and what the next backup would be
  vmsnap scrub vm1 --scrub-type both            the next backup of vm1 is full
  vmsnap scrub vm1 --scrub-type bitmap --checkpoint-name virtnbdbackup.3
                                                a bitmap that is in the way")]
pub struct ScrubArgs {
    /// Which domains.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// What goes: checkpoint (their records only), bitmap (bitmaps only), both, or * (both, whatever is named)
    #[arg(long, aliases = ["scrubType", "type"], value_name = "TYPE")]
    pub scrub_type: Option<String>,

    /// Only this checkpoint or bitmap [default: all of ours, virtnbdbackup.N]
    #[arg(long, alias = "checkpointName", value_name = "NAME")]
    pub checkpoint_name: Option<String>,

    /// The repository: keeps backups of the domain away meanwhile, and tells exactly what the next one will be
    #[arg(
        short,
        long,
        alias = "repository",
        value_name = "DIR",
        env = "VMSNAP_REPOSITORY"
    )]
    pub output: Option<PathBuf>,

    /// The span whose restore points share a folder and a chain, as for backup
    #[arg(long, alias = "groupBy", value_name = "SPAN", default_value = "month")]
    pub group_by: String,

    /// Tell what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Which hypervisor.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// How to tell.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Arguments of `vmsnap demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where to put the throw-away files; a folder of its own is made there and removed again
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
}
