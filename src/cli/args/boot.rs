//! Arguments of `vmsnap boot`.

use std::path::PathBuf;

use clap::Args;

use super::key::SecretArgs;
use super::shared::{ConnectArgs, OutputArgs, RepositoryArgs};

/// Arguments of `vmsnap boot`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap boot vm1 --repository /backups
  vmsnap boot vm1 --repository /backups --at 2026-11-01T02:00:00Z --name vm1-old --network isolated
  vmsnap boot vm1 --repository /backups --name vm1 --network default --keep /images/vm1")]
pub struct BootArgs {
    /// The domain, by its name at the time of the backup
    #[arg(value_name = "DOMAIN")]
    pub domain: String,

    /// Where the restore points are.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// What opens it.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Restore point: an id, a checkpoint's name, a time like 2026-11-01T02:00:00Z (selects the
    /// newest restore point up to that time), or latest
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub at: String,

    /// Name of the new domain [default: DOMAIN-boot]
    #[arg(long, value_name = "NEW")]
    pub name: Option<String>,

    /// Connect the new domain's network cards to this libvirt network [default: their links are
    /// down]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,

    /// Memory of the new domain, such as 512M or 4G [default: as the domain had]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<u64>,

    /// Keep the new domain: copy its disks into this folder while it runs, then define the domain
    /// and leave it running
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,

    /// Return once the new domain runs. A process in the background serves its disks until it ends
    #[arg(long, conflicts_with = "dry_run")]
    pub detach: bool,

    /// This process is the one in the background.
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub detached: bool,

    /// Folder for temporary files, which receive what the guest writes
    #[arg(
        long,
        value_name = "DIR",
        env = "VMSNAP_SCRATCH_DIR",
        default_value = "/var/tmp"
    )]
    pub scratch_dir: PathBuf,

    /// Show what would be started
    #[arg(long, conflicts_with = "json")]
    pub dry_run: bool,

    /// The hypervisor.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// The form of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Reads an amount of memory, and returns it in KiB.
pub(super) fn memory(text: &str) -> Result<u64, String> {
    let wrong = || "expected a number of MiB or GiB, such as 512M or 4G".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "M" | "MiB" => 1 << 10,
        "G" | "GiB" => 1 << 20,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let kib = number.checked_mul(unit).filter(|kib| (1..=1 << 40).contains(kib));
    kib.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_number_with_a_unit() {
        assert_eq!(memory("512M"), Ok(512 << 10));
        assert_eq!(memory("4GiB"), Ok(4 << 20));
        for wrong in [
            "",
            "4",
            "G",
            "0G",
            "-1G",
            "1.5G",
            "4 G",
            "4T",
            "99999999999999999999G",
            "2000000G",
        ] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }
}
