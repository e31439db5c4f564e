//! Offers disks at a restore point to NBD clients, read-only: `vmsnap serve`.
//!
//! [`start`] opens the disks and returns a server that runs beside its caller. Every byte and every
//! range of zeroes is verified before a client gets it. While disks are served, no merge replaces
//! the files that they are read from.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::monitor::{self, Event, Monitor};
use super::restore::{choose, chosen_targets};
use super::{Cause, Error, Result};
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;
use crate::model::stop::Stop;
use crate::nbd::server::{Limits, ListenError, Listener, ServedExport, Server, private_folder};
use crate::repo::{History, Repository};

mod disk;

pub use crate::nbd::server::Visits;
pub use disk::ReadCounts;
use disk::{Readings, ServedReader};

/// How long a wait for findings lasts before the stop is checked again.
const GLANCE: Duration = Duration::from_millis(100);

/// The number of connections for each disk, if that is more than usual.
const CONNECTIONS_PER_DISK: usize = 4;

/// The longest path that a unix socket may have, in bytes.
const LONGEST_PATH: usize = 107;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket in this folder, which is created so that only this user can access it. The
    /// parent folder must exist.
    PrivateFolder(PathBuf),
    /// A Unix socket with this path.
    Socket(PathBuf),
    /// A TCP socket with this address and port.
    Address(SocketAddr),
}

/// The options of a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Selects the restore point, as `vmsnap restore --at` does.
    pub at: String,
    /// The targets of the disks to serve; empty for all.
    pub disks: Vec<String>,
    /// Where to listen.
    pub place: Place,
}

/// The environment of a server.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The repository of the restore point.
    pub repo: &'a dyn Repository,
    /// The receiver of findings.
    pub monitor: &'a dyn Monitor,
    /// A request to stop, which ends the server.
    pub stop: &'a Stop,
}

/// A disk that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedDisk {
    /// Its target, which is the name of its export.
    pub target: String,
    /// Its size, in bytes.
    pub size: u64,
    /// Where clients find it.
    pub uri: String,
}

/// The restore point and the disks that a server offers.
#[derive(Clone, Debug)]
pub struct Served {
    /// The restore point.
    pub point: RestorePoint,
    /// The disks.
    pub disks: Vec<ServedDisk>,
    /// The findings before the server started.
    pub findings: Vec<Finding>,
}

/// The result of a server that has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the server offered.
    pub served: Served,
    /// How much of each disk was read, in the order of the disks.
    pub counts: Vec<ReadCounts>,
    /// The number of connections of clients.
    pub visits: Visits,
    /// All findings, including those from before the start.
    pub findings: Vec<Finding>,
}

impl Outcome {
    /// Whether a client asked for stored data that is damaged.
    pub fn has_damage(&self) -> bool {
        self.counts.iter().any(|counts| counts.damaged > 0)
    }

    /// Whether requests failed for a reason other than damage.
    pub fn has_failures(&self) -> bool {
        self.counts.iter().any(|counts| counts.failed > 0)
    }
}

/// A server that runs until it is ended or dropped.
#[derive(Debug)]
pub struct DiskServer {
    served: Served,
    /// Ends the clients before the disks and the history.
    server: Server,
    readings: Vec<Arc<Readings>>,
    /// Ends reads that are in progress.
    stop: Stop,
    /// The private folder of the socket.
    folder: Option<PathBuf>,
    /// Keeps merges from replacing the files.
    _history: History,
}

/// Serves disks until a stop is requested. `ready` is called once clients can connect.
///
/// # Errors
/// The restore point or disk does not exist or cannot be read, or the place cannot be used.
pub fn serve(
    domain: &str,
    means: &Means<'_>,
    options: &Options,
    ready: impl FnOnce(&Served),
) -> Result<Outcome> {
    monitor::noting(means.monitor, |monitor| {
        let running = start(domain, means.repo, options, means.stop)?;
        for finding in &running.served.findings {
            monitor.event(Event::Found { domain, finding });
        }
        ready(&running.served);
        let mut reported = Vec::new();
        while !means.stop.requested() {
            report(domain, &running.new_findings(GLANCE), monitor, &mut reported);
        }
        let mut outcome = running.end();
        report(
            domain,
            &std::mem::take(&mut outcome.findings),
            monitor,
            &mut reported,
        );
        outcome.findings = outcome.served.findings.iter().cloned().chain(reported).collect();
        Ok(outcome)
    })
}

fn report(domain: &str, found: &[Finding], monitor: &dyn Monitor, reported: &mut Vec<Finding>) {
    for finding in found {
        monitor.event(Event::Found { domain, finding });
        reported.push(finding.clone());
    }
}

/// Starts to serve disks, and returns at once.
///
/// # Errors
/// The same as for [`serve`].
pub fn start(domain: &str, repo: &dyn Repository, options: &Options, stop: &Stop) -> Result<DiskServer> {
    let failed = |cause: Cause| Error::of(domain, cause);
    let repository = repo.domain(domain).map_err(|error| failed(error.into()))?;
    let history = repository.history().map_err(|error| failed(error.into()))?;
    let point = choose(domain, &history, &options.at)?.point.clone();
    let stop = stop.child();
    let mut exports = Vec::new();
    let mut readings = Vec::new();
    let mut disks = Vec::new();
    for target in chosen_targets(domain, &point, &options.disks)? {
        let of_disk = |cause: Cause| Error::of_disk(domain, &target, cause);
        let opened = repository.open_disk(&history, &point.id, &target, &stop);
        let reader = opened.map_err(|error| of_disk(error.into()))?;
        let size = reader.size();
        let recorded = point.disk(&target).map_or(0, |disk| disk.virtual_size);
        if size != recorded {
            let id = point.id.clone();
            let fault = format!("disk {target} has {size} bytes, but the manifest records {recorded} bytes");
            return Err(of_disk(Cause::NotWhole { id, fault }));
        }
        let reading = Arc::new(Readings::default());
        let disk = ServedReader::new(&target, reader, Arc::clone(&reading));
        exports.push(ServedExport {
            name: target.clone(),
            disk: Arc::new(disk),
        });
        readings.push(reading);
        disks.push((target, size));
    }
    if exports.is_empty() {
        let what = format!("restore point {} holds no disk", point.id);
        return Err(failed(Cause::NoSuchRestorePoint(what)));
    }
    let (listener, folder) = listen(domain, &point, &options.place).map_err(|error| failed(error.into()))?;
    let disks = disks.into_iter().map(|(target, size)| ServedDisk {
        uri: listener.uri(&target),
        target,
        size,
    });
    let served = Served {
        disks: disks.collect(),
        findings: history.findings.clone(),
        point,
    };
    let usual = Limits::default();
    let limits = Limits {
        // A machine with all disks has a connection for each.
        connections: usual.connections.max(CONNECTIONS_PER_DISK * exports.len()),
        ..usual
    };
    let server = Server::start(listener, exports, limits, &stop);
    let server = server.map_err(|source| {
        failed(Cause::Io {
            operation: "start a thread for",
            path: PathBuf::from("the NBD server"),
            source,
        })
    })?;
    Ok(DiskServer {
        served,
        server,
        readings,
        stop,
        folder,
        _history: history,
    })
}

impl DiskServer {
    /// The restore point and the disks that the server offers.
    pub fn served(&self) -> &Served {
        &self.served
    }

    /// The number of bytes of data that clients have read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.readings.iter().map(|readings| readings.counts().bytes).sum()
    }

    /// Waits up to `at_most` for findings about reads, and returns the new ones.
    pub fn new_findings(&self, at_most: Duration) -> Vec<Finding> {
        let mut found: Vec<Finding> = Vec::new();
        let share = at_most / u32::try_from(self.readings.len().max(1)).unwrap_or(u32::MAX);
        for readings in &self.readings {
            found.extend(readings.take_findings(share));
        }
        found
    }

    /// Ends all connections, and removes the socket. The findings are those that
    /// [`DiskServer::new_findings`] has not returned.
    pub fn end(mut self) -> Outcome {
        self.end_server();
        Outcome {
            counts: self.readings.iter().map(|readings| readings.counts()).collect(),
            visits: self.server.visits(),
            findings: self.new_findings(Duration::ZERO),
            served: self.served.clone(),
        }
    }

    fn end_server(&mut self) {
        self.stop.request(crate::model::stop::StopReason::OtherPartFailed);
        self.server.end();
        if let Some(folder) = self.folder.take() {
            // Another server may use it too.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

impl Drop for DiskServer {
    fn drop(&mut self) {
        self.end_server();
    }
}

/// Listens at a place. Returns the private folder of the socket, too.
fn listen(
    domain: &str,
    point: &RestorePoint,
    place: &Place,
) -> std::result::Result<(Listener, Option<PathBuf>), ListenError> {
    match place {
        Place::Socket(path) => Ok((Listener::unix(path)?, None)),
        Place::Address(address) => Ok((Listener::tcp(*address)?, None)),
        Place::PrivateFolder(folder) => {
            private_folder(folder)?;
            let room = LONGEST_PATH.saturating_sub(folder.as_os_str().len() + 1);
            let path = folder.join(socket_name(domain, &point.id, room));
            Ok((Listener::unix(&path)?, Some(folder.clone())))
        }
    }
}

/// The name of a socket for a domain, at most this long. A long name of a domain is cut.
fn socket_name(domain: &str, id: &str, room: usize) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let plain = domain.chars().map(|c| if is_plain(c) { c } else { '_' });
    let end = format!("-{id}.sock");
    let plain: String = plain.take(room.saturating_sub(end.len()).max(1)).collect();
    format!("{plain}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sockets_fit_and_are_plain() {
        let id = "2026-11-01T02-00-03Z";
        assert_eq!(socket_name("vm1", id, 80), "vm1-2026-11-01T02-00-03Z.sock");
        assert_eq!(
            socket_name("a/b \u{e4}", id, 80),
            "a_b__-2026-11-01T02-00-03Z.sock"
        );
        let long = socket_name(&"x".repeat(300), id, 60);
        assert_eq!(long.len(), 60);
        assert!(long.ends_with("xxx-2026-11-01T02-00-03Z.sock"), "{long}");
    }
}
