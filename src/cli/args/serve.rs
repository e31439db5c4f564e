//! Arguments of `vmsnap serve`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::key::SecretArgs;
use super::shared::{OutputArgs, RepositoryArgs};

/// Arguments of `vmsnap serve`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vmsnap serve vm1 --repository /backups
  vmsnap serve vm1 --repository /backups --disk vda --socket /run/vda.sock
  vmsnap serve vm1 --repository /backups --at 2026-11-01T02:00:00Z --listen 10809")]
pub struct ServeArgs {
    /// The domain, by its name at the time of the backup
    #[arg(value_name = "DOMAIN")]
    pub domain: String,

    /// The repository with the restore points.
    #[command(flatten)]
    pub repository: RepositoryArgs,

    /// The secret that opens the repository.
    #[command(flatten)]
    pub secret: SecretArgs,

    /// Restore point: an id, a checkpoint's name, a time like 2026-11-01T02:00:00Z (selects the
    /// newest restore point up to that time), or latest
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub at: String,

    /// Serve only this disk; may be given several times
    #[arg(long = "disk", value_name = "TARGET")]
    pub disks: Vec<String>,

    /// Listen on this unix socket [default: one in a folder that only this user can use]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Listen on this TCP port of 127.0.0.1, or on this address and port. Anybody who reaches the
    /// address can read the disks: there is no encryption and no authentication
    #[arg(long, value_name = "[ADDRESS:]PORT", conflicts_with = "socket", value_parser = address)]
    pub listen: Option<SocketAddr>,

    /// The format of the output.
    #[command(flatten)]
    pub output_args: OutputArgs,
}

/// Reads a port, or an address with a port. A port alone means 127.0.0.1.
fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    match port.parse::<u16>() {
        Ok(port) => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
        Err(_) => text
            .parse()
            .map_err(|_| "expected a port such as 10809, or an IP address with a port such as 192.0.2.1:10809 or [2001:db8::1]:10809".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_one_of_the_loopback_address() {
        for text in ["10809", ":10809"] {
            let found = address(text).expect("valid");
            assert_eq!(found.to_string(), "127.0.0.1:10809");
        }
        for text in ["0.0.0.0:1", "[::1]:10809"] {
            assert_eq!(address(text).expect("valid").to_string(), text);
        }
        for invalid in ["", "70000", "localhost:1", "1.2.3.4", "::1"] {
            assert!(address(invalid).is_err(), "{invalid}");
        }
    }
}
