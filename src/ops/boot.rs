//! Starts a domain from a restore point at once: `vmsnap boot`.
//!
//! The new domain (a trial domain) has an overlay for each disk, over the disk that an NBD server
//! of this process offers. It runs within seconds, whatever the size of the disks. It lives as long
//! as this process, unless its disks are to be kept: then they are pulled while it runs, and it
//! stays.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Cause;
use super::monitor::{self, Event, Monitor};
use super::restore::{DefineOptions, DefinePlan, Encrypted, Format, Purpose, RestoredDisk, plan_definition};
use super::restore::{choose, chosen_targets};
use super::serve::{self, DiskServer};
use super::stored::StoredPoint;
use super::{Error, Result};
use crate::host::Host;
pub use crate::host::xml::Memory;
use crate::host::xml::{Served, TrialEdits, as_trial, read_domain, with_addresses};
use crate::io::Store;
use crate::model::domain::{Agent, Disk};
use crate::model::finding::Finding;
use crate::model::left_out::LeftOut;
use crate::model::restore_point::RestorePoint;
use crate::model::stop::Stop;
use crate::model::text::shown;
use crate::repo::Repository;

mod leftovers;
mod record;
mod run;
mod stage;

pub use leftovers::clear;
use record::{Record, Records};
pub use run::{Booted, Ending, Onlooker, Outcome, Sight};
use stage::Stage;

/// The name of the socket in the folder of a trial domain.
const SOCKET: &str = "nbd.sock";

/// The name of the socket at which an onlooker gets the output of the domain's console.
const CONSOLE: &str = "console.sock";

/// The options of `boot`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which restore point: as for a restore.
    pub at: String,
    /// The name of the new domain; `None` for the old name with `-boot`.
    pub name: Option<String>,
    /// The libvirt network of its network cards; `None` leaves them without a link.
    pub network: Option<String>,
    /// Its memory.
    pub memory: Memory,
    /// Whether an [`Onlooker`] sees its console and its screen.
    pub is_watched: bool,
    /// The folder in which the disks stay, and the domain with them; `None` to remove both at the
    /// end.
    pub keep: Option<PathBuf>,
    /// The folder for the files that are removed at the end.
    pub scratch: PathBuf,
}

/// The environment of `boot`.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The repository of the restore point.
    pub repo: &'a dyn Repository,
    /// The store for the files of the domain.
    pub store: &'a dyn Store,
    /// The hypervisor.
    pub host: &'a dyn Host,
    /// The folder of this host's state, for the record of what has to be removed.
    pub state: &'a Path,
    /// The receiver of events.
    pub monitor: &'a dyn Monitor,
    /// Ends the domain.
    pub stop: &'a Stop,
    /// The time between two looks at the domain.
    pub glance: Duration,
}

/// The plan of a trial domain.
#[derive(Clone, Debug)]
pub struct BootPlan {
    /// The restore point.
    pub point: RestorePoint,
    /// The name of the new domain.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// The folder for its socket, and for the files that are removed at the end.
    pub folder: PathBuf,
    /// Its disks.
    pub disks: Vec<Overlay>,
    /// The folder in which the disks stay, if they do, and whether it has to be created.
    pub keep: Option<(PathBuf, bool)>,
    /// The devices of the old domain that the new one lacks, in words.
    pub lacks: Vec<String>,
    /// The findings.
    pub findings: Vec<Finding>,
    define: DefinePlan,
    /// The XML with which it is started.
    trial_xml: String,
}

impl BootPlan {
    /// Whether the domain has a port for a guest agent.
    pub(super) fn has_agent(&self) -> bool {
        read_domain(&self.trial_xml).is_ok_and(|domain| domain.agent != Agent::None)
    }

    /// The socket at which an onlooker gets the output of its console.
    pub(super) fn console(&self) -> PathBuf {
        self.folder.join(CONSOLE)
    }
}

/// A disk of a trial domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its target.
    pub target: String,
    /// Its size, in bytes.
    pub size: u64,
    /// The image that receives what the guest writes.
    pub path: PathBuf,
}

/// Plans a trial domain. Reads only.
///
/// # Errors
/// There is no such restore point, it is not whole, its definition cannot be used, a name is taken,
/// or a file is in the way.
pub fn plan(domain: &str, repo: &dyn Repository, host: &dyn Host, options: &Options) -> Result<BootPlan> {
    let failed = |cause: Cause| Error::of(domain, cause);
    // Also notices a hypervisor on another machine.
    host.trials().owner().map_err(|error| failed(error.into()))?;
    let repository = repo.domain(domain).map_err(|error| failed(error.into()))?;
    let history = repository.history().map_err(|error| failed(error.into()))?;
    let mut findings = history.findings.clone();
    let point = choose(domain, &history, &options.at)?.point.clone();
    let Some(kept) = history.get(&point.id) else {
        let (id, fault) = (point.id.clone(), "it is missing".to_owned());
        return Err(failed(Cause::NotWhole { id, fault }));
    };
    let stored = StoredPoint {
        repository: repository.as_ref(),
        kept,
    };
    let targets = chosen_targets(domain, &point, &[])?;
    let encrypted = Encrypted::of(stored, &targets);
    if let Some((disk, what)) = encrypted.refusal() {
        return Err(Error::of_disk(domain, disk, Cause::Usage(what)));
    }
    findings.extend(encrypted.findings());
    let name = options.name.clone().unwrap_or_else(|| format!("{domain}-boot"));
    let keep = match &options.keep {
        Some(dir) => Some(kept_folder(dir).map_err(failed)?),
        None => None,
    };
    let folder = options.scratch.join(folder_name());
    let files = keep.as_ref().map_or(folder.as_path(), |(dir, _)| dir.as_path());
    let mut disks = Vec::new();
    for target in &targets {
        let path = files.join(format!("{target}.qcow2"));
        if path.symlink_metadata().is_ok() {
            return Err(Error::of_disk(domain, target, Cause::Exists(path)));
        }
        disks.push(Overlay {
            target: target.clone(),
            size: point.disk(target).map_or(0, |disk| disk.virtual_size),
            path,
        });
    }
    let restored: Vec<RestoredDisk> = disks.iter().map(as_restored).collect();
    let wanted = DefineOptions {
        name: Some(name.clone()),
    };
    let place = (files, Purpose::Another);
    let mut define = plan_definition(host, stored, &restored, place, &wanted, &mut findings)?;
    let random = || {
        let [a, b, c, ..] = *uuid::Uuid::new_v4().as_bytes();
        format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
    };
    let addressed = with_addresses(&define.xml, std::iter::repeat_with(random));
    define.xml = addressed.map_err(|error| failed(error.into()))?;
    let edits = TrialEdits {
        disks: restored
            .iter()
            .map(|disk| {
                let served = Served {
                    socket: folder.join(SOCKET),
                    export: disk.target.clone(),
                };
                (disk.target.clone(), served)
            })
            .collect(),
        network: options.network.clone(),
        memory: options.memory,
        console: options.is_watched.then(|| folder.join(CONSOLE)),
        screen: options.is_watched,
    };
    let (trial_xml, lacks) = as_trial(&define.xml, &edits).map_err(|error| failed(error.into()))?;
    let named = read_domain(&trial_xml).map_err(|error| failed(error.into()))?;
    findings.extend(left_out(&point, &named.disks));
    Ok(BootPlan {
        uuid: define.uuid.clone(),
        name,
        folder,
        disks,
        keep,
        lacks,
        findings,
        define,
        trial_xml,
        point,
    })
}

/// Carries out a plan: starts the domain, and stays until it ends, a stop is requested, or its
/// disks are kept. `ready` is called once the domain runs.
///
/// # Errors
/// A file, the server or the domain cannot be started. Then nothing is left.
pub fn boot(
    domain: &str,
    plan: BootPlan,
    means: &Means<'_>,
    ready: impl FnOnce(&Booted<'_>),
) -> Result<Outcome> {
    watched(domain, plan, means, &mut Caller(Some(ready)))
}

/// Carries out a plan under the eyes of an onlooker, until it has seen enough. Otherwise as
/// [`boot`].
///
/// # Errors
/// As [`boot`].
pub(super) fn watched(
    domain: &str,
    plan: BootPlan,
    means: &Means<'_>,
    onlooker: &mut dyn Onlooker,
) -> Result<Outcome> {
    monitor::noting(means.monitor, |monitor| {
        for finding in &plan.findings {
            monitor.event(Event::Found { domain, finding });
        }
        run::carry_out(domain, &plan, &Means { monitor, ..*means }, onlooker)
    })
}

/// An onlooker that only waits for the start.
struct Caller<F>(Option<F>);

impl<F: FnOnce(&Booted<'_>)> Onlooker for Caller<F> {
    fn started(&mut self, booted: &Booted<'_>) {
        if let Some(ready) = self.0.take() {
            ready(booted);
        }
    }
}

/// A name that other users cannot guess, because they may pass through the folder.
fn folder_name() -> String {
    format!("vmsnap-boot-{}", uuid::Uuid::new_v4().simple())
}

/// The folder in which disks are kept, as an absolute path, and whether it has to be created.
fn kept_folder(dir: &Path) -> std::result::Result<(PathBuf, bool), Cause> {
    let path = std::path::absolute(dir).map_err(|source| Cause::Io {
        operation: "find",
        path: dir.to_owned(),
        source,
    })?;
    match path.metadata() {
        Ok(found) if found.is_dir() => Ok((path, false)),
        Ok(_) => Err(Cause::Exists(path)),
        Err(_) if path.parent().is_some_and(Path::is_dir) => Ok((path, true)),
        Err(source) => Err(Cause::Io {
            operation: "use the folder",
            path,
            source,
        }),
    }
}

fn as_restored(disk: &Overlay) -> RestoredDisk {
    RestoredDisk {
        target: disk.target.clone(),
        size: disk.size,
        to: disk.path.clone(),
        device: false,
        format: Format::Qcow2,
        steps: 0,
        volume: None,
    }
}

/// Reports the disks that the old domain had and the new one has not.
fn left_out(point: &RestorePoint, disks: &[Disk]) -> Vec<Finding> {
    let is_missing = |left: &&LeftOut| !disks.iter().any(|disk| disk.target == left.disk);
    let missing = point.left_out.iter().filter(is_missing);
    let finding = |left: &LeftOut| {
        let what = format!(
            "disk {} is not in the restore point ({}), so the new domain does not have it",
            shown(&left.disk),
            shown(&left.reason)
        );
        Finding::of_disk("disk-not-restored", &left.disk, what)
    };
    missing.map(finding).collect()
}

/// Starts the server of the disks, to which QEMU can connect.
fn start_server(domain: &str, plan: &BootPlan, means: &Means<'_>) -> Result<DiskServer> {
    let socket = plan.folder.join(SOCKET);
    let options = serve::Options {
        at: plan.point.id.clone(),
        disks: Vec::new(),
        place: serve::Place::Socket(socket.clone()),
    };
    // The guest still needs its disks while it is being ended.
    let server = serve::start(domain, means.repo, &options, &Stop::default())?;
    give_qemu(&socket, means.host).map_err(|cause| Error::of(domain, cause))?;
    Ok(server)
}

/// Gives a file or a socket to the user as which QEMU runs.
pub(super) fn give_qemu(path: &Path, host: &dyn Host) -> std::result::Result<(), Cause> {
    stage::give(path, host.trials().owner()?).map_err(|source| Cause::Io {
        operation: "give QEMU access to",
        path: path.to_owned(),
        source,
    })
}
