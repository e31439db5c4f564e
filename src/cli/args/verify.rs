//! Arguments of `vmsnap verify`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::{Span, SpanTotal, Unit};

use regex::bytes::Regex;

use super::boot::memory;
use super::key::SecretArgs;
use super::shared::{ConnectArgs, DomainArgs, RepositoryArgs};
use crate::ops::boot_proof::of_lines;

/// Arguments of `vmsnap verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap verify --repository /backups                     newest restore points and their chains
  vmsnap verify vm1 --repository /backups --all --deep    everything, as a restore reads it
  vmsnap verify --repository /backups --all --older-than 7d
                                                          for cron: only those not verified in the last week
  vmsnap verify --compare-live vm1 --repository /backups  find bitmaps that missed a write
  vmsnap verify --boot vm1 --repository /backups          start it, and see how far its guest comes
  vmsnap verify --boot vm1 --repository /backups --command 'systemctl is-system-running --wait'")]
pub struct VerifyArgs {
    /// The domains to work on.
    #[command(flatten)]
    pub domains: DomainArgs,

    /// Where the restore points are.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// What opens it.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Restore point: an id, a checkpoint's name, a time like 2026-11-01T02:00:00Z (selects the
    /// newest restore point up to that time), or latest
    #[arg(
        help_heading = "What to verify",
        long,
        value_name = "POINT",
        default_value = "latest"
    )]
    pub at: String,

    /// Verify all restore points
    #[arg(help_heading = "What to verify", long, conflicts_with = "at")]
    pub all: bool,

    /// Also read every disk from start to end, as a restore would
    #[arg(help_heading = "What to verify", long)]
    pub deep: bool,

    /// Skip restore points that were verified as sound (with --boot: proven) within the last TIME
    /// (7d, 12h, 2w; m is minutes, mo is months; at most 10y)
    #[arg(help_heading = "What to verify", long, value_name = "TIME")]
    pub older_than: Option<String>,

    /// Compare the domains' current disks with their newest restore points: data that no bitmap
    /// marks as changed must be the same
    #[arg(
        help_heading = "Comparison with the domain",
        long,
        conflicts_with_all = ["at", "all", "deep", "older_than"]
    )]
    pub compare_live: bool,

    /// Compare all clusters instead of a random sample
    #[arg(help_heading = "Comparison with the domain", long, requires = "compare_live")]
    pub full: bool,

    /// How many clusters of 64 KiB of each disk to compare, at most
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

    /// With --compare-live: where QEMU stores data that the guest overwrites during the comparison
    /// [default: beside the disk's file; /var/tmp for other disks]. With --boot: folder for
    /// temporary files, which receive what the guests write [default: /var/tmp]
    #[arg(help_heading = "Hypervisor", long, value_name = "DIR")]
    pub scratch_dir: Option<PathBuf>,

    /// With --compare-live: how long to wait for another run of vmsnap on the same domain
    #[arg(
        help_heading = "Comparison with the domain",
        long,
        value_name = "SECONDS",
        env = "VMSNAP_WAIT",
        default_value_t = 0
    )]
    pub wait: u64,

    /// Start each restore point as a new domain without network, and see how far its guest comes
    #[arg(
        help_heading = "Boot proof",
        long,
        conflicts_with_all = ["deep", "compare_live"]
    )]
    pub boot: bool,

    /// How far the guest has to come: read (from its disks), console (--console-pattern appears),
    /// agent (the guest agent answers), same (host name and file systems are as at the backup)
    /// [default: same, if the agent answered at the backup; else console with --console-pattern;
    /// else agent, if the domain has a port for one; else console]
    #[arg(
        help_heading = "Boot proof",
        long,
        value_name = "LEVEL",
        requires = "boot",
        value_parser = ["read", "console", "agent", "same"]
    )]
    pub level: Option<String>,

    /// What has to appear on the guest's first serial port, besides the level: a regular expression
    #[arg(
        help_heading = "Boot proof",
        long,
        value_name = "REGEX",
        requires = "boot",
        value_parser = of_lines
    )]
    pub console_pattern: Option<Regex>,

    /// The command that has to succeed in the guest, run by its agent: a path and its arguments in
    /// one word. Quotes work as in a shell, but no shell runs it
    #[arg(
        help_heading = "Boot proof",
        long,
        value_name = "ARGV",
        requires = "boot",
        conflicts_with = "level",
        value_parser = words
    )]
    pub command: Option<Words>,

    /// The time for each guest (90s, 5m; at most 1d)
    #[arg(
        help_heading = "Boot proof",
        long,
        value_name = "TIME",
        requires = "boot",
        default_value = "5m",
        value_parser = duration
    )]
    pub deadline: Duration,

    /// The most memory for each guest
    #[arg(
        help_heading = "Boot proof",
        long,
        value_name = "SIZE",
        requires = "boot",
        default_value = "2G",
        value_parser = memory
    )]
    pub memory: u64,

    /// Write a picture of each guest's screen (PNG) and the text of its console into this folder
    #[arg(help_heading = "Boot proof", long, value_name = "DIR", requires = "boot")]
    pub screenshots: Option<PathBuf>,

    /// The hypervisor to connect to.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

/// A command and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

/// Divides a command into words, as a shell does.
fn words(text: &str) -> Result<Words, String> {
    match shlex::split(text) {
        Some(words) if !words.is_empty() => Ok(Words(words)),
        _ => Err("expected a path and its arguments, with a closing quote for each quote".to_owned()),
    }
}

/// The longest time for one guest, in seconds.
const LONGEST: i64 = 24 * 60 * 60;

/// Reads a time such as 90s or 5m.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a time between 1s and 1d, such as 90s or 5m".to_owned();
    let span: Span = text.parse().map_err(|_| wrong())?;
    let seconds = span
        .total(SpanTotal::from(Unit::Second).days_are_24_hours())
        .map_err(|_| wrong())? as i64;
    let seconds = Some(seconds).filter(|seconds| (1..=LONGEST).contains(seconds));
    seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_divided_into_words() {
        let found = words("/bin/sh -c 'exit 7' \"a b\"").expect("valid");
        assert_eq!(found.0, ["/bin/sh", "-c", "exit 7", "a b"]);
        assert!(words("a 'b").is_err() && words("").is_err() && words(" ").is_err());
    }

    #[test]
    fn deadlines_are_times_with_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1d"), Ok(Duration::from_secs(86_400)));
        for wrong in ["", "5", "0s", "-5m", "2d", "500ms", "1mo", "9999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
