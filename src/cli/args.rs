//! What is typed on the command line, word for word. What is meant is decided in `commands`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Incremental backups of libvirt/KVM domains: made, kept, proved, brought back.
#[derive(Debug, Parser)]
#[command(name = "vmsnap", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Examples:
  vmsnap backup vm1 --output /backups           a restore point of vm1: the first is full, the next are incremental
  vmsnap list --repository /backups             what there is
  vmsnap restore vm1 --repository /backups --to /tmp/drill
                                                the newest restore point, as files, without touching vm1
  vmsnap demo                                   all of it on a throw-away domain, every byte compared")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
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
    /// Shows how domains stand: checkpoints, disks, bitmaps, and whether they agree
    Status(StatusArgs),
    /// Removes our checkpoints and bitmaps from domains, and tells what the next backup will therefore be
    Scrub(ScrubArgs),
    /// Shows the whole job on a throw-away domain and compares every byte; needs no configuration and no daemon
    Demo(DemoArgs),
}

/// Which hypervisor.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The hypervisor [default: as virsh chooses]
    #[arg(short, long, value_name = "URI", env = "VMSNAP_CONNECT")]
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

    /// No progress on stderr
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `vmsnap backup`.
#[derive(Debug, Args)]
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
        env = "VMSNAP_REPOSITORY"
    )]
    pub output: Option<PathBuf>,

    /// The span whose restore points share a folder and a chain: month, quarter, bi-annual, year
    #[arg(long, alias = "groupBy", value_name = "SPAN", default_value = "month")]
    pub group_by: String,

    /// Save raw disks too, always in full
    #[arg(long)]
    pub raw: bool,

    /// Delete the previous period once the current one is past its middle and holds a whole full
    #[arg(long)]
    pub prune: bool,

    /// Tell what would be done, and do nothing
    #[arg(short = 'n', long, conflicts_with = "json")]
    pub dry_run: bool,

    /// How long the guest agent may take to freeze the file systems; 0 does not ask it
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub freeze_timeout: u64,

    /// Where QEMU keeps what the guest overwrites during the backup [default: beside each disk]
    #[arg(long, value_name = "DIR")]
    pub scratch_dir: Option<PathBuf>,

    /// The NBD unix socket, rarely needed
    #[arg(long, alias = "socket-file", value_name = "PATH")]
    pub socketfile: Option<PathBuf>,

    /// Checkpoints of the active chain that stay in the domain
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
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
pub struct RestoreArgs {
    /// The domain, as it was named when it was backed up
    #[arg(value_name = "DOMAIN")]
    pub domain: String,

    /// The repository
    #[arg(short, long, alias = "output", value_name = "DIR", env = "VMSNAP_REPOSITORY")]
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

    /// How the disks are laid out [default: by the ending of a file's name, otherwise qcow2]
    #[arg(long, value_enum)]
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
pub struct ListArgs {
    /// Which domains.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// The repository
    #[arg(short, long, alias = "output", value_name = "DIR", env = "VMSNAP_REPOSITORY")]
    pub repository: Option<PathBuf>,

    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,

    // Accepted so that a script can give every command the same switches; a list asks no hypervisor.
    #[command(flatten)]
    #[allow(missing_docs)]
    pub connect: ConnectArgs,
}

/// Arguments of `vmsnap status`.
#[derive(Debug, Args)]
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
        env = "VMSNAP_REPOSITORY"
    )]
    pub output: Option<PathBuf>,

    /// Which period folder is looked at: month, quarter, bi-annual, year
    #[arg(long, alias = "groupBy", value_name = "SPAN", default_value = "month")]
    pub group_by: String,

    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,

    /// Which hypervisor.
    #[command(flatten)]
    pub connect: ConnectArgs,
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
