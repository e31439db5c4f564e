//! The verbs. Each is a plain function that takes a domain's name, what it works with, and its options.
//!
//! * `copy`: the pump that every verb uses.
//! * `plan`: decides a backup, before anything is done.
//! * `journal`: what a run writes down before it begins a job.
//! * `survey`: reads how a domain stands; `reconcile`: decides what to repair, back up and retire; `heal`: carries repairs out.
//! * `job`: a backup job from its journal entry to its end.
//! * `backup`, `restore`, `list`, `status`, `scrub`, `verify`, `compare`, `retention`, `pin`: the verbs.
//! * `prune`: deletes the previous period after a backup.
//! * `stored`: a restore point with the repository that holds it.
//! * `grouping`: keeps a domain's backups in one grouping.
//! * `lock`: takes the right to write, waiting for another run if need be.
//! * `each`: runs a verb for each of several domains.
//! * `monitor`: whom the verbs tell how they are getting on.
//! * `error`: what can go wrong, with its class and its hint.

pub mod backup;
pub mod compare;
pub mod copy;
pub mod each;
pub mod error;
mod grouping;
pub mod heal;
mod job;
pub mod journal;
pub mod list;
mod lock;
pub mod monitor;
pub mod pin;
pub mod plan;
pub mod prune;
pub mod reconcile;
pub mod restore;
pub mod retention;
pub mod scrub;
pub mod status;
mod stored;
pub mod survey;
pub mod verify;

use std::path::Path;

use jiff::Zoned;

use crate::model::stop::Stop;
use crate::repo;

pub use crate::host::{Host, PlaceWishes};
pub use crate::io::{DiskStore, Store};
pub use crate::repo::Repository;
pub use error::{Cause, Class, Error, Result};
pub use monitor::{Event, Monitor};

/// What every verb that changes something works with.
pub struct Context<'a> {
    /// The hypervisor.
    pub host: &'a dyn Host,
    /// Where restore points are kept.
    pub repo: &'a dyn Repository,
    /// The moment the verb began, in the local time zone: periods are local.
    pub now: Zoned,
    /// Whom to tell.
    pub monitor: &'a dyn Monitor,
    /// Asked for by the user's Ctrl-C.
    pub stop: Stop,
    /// Random numbers, for names that no other run gives.
    pub random: &'a (dyn Fn() -> u64 + Sync),
}

impl Context<'_> {
    /// The same with another monitor.
    fn with_monitor<'b>(&'b self, monitor: &'b dyn Monitor) -> Context<'b> {
        Context {
            host: self.host,
            repo: self.repo,
            now: self.now.clone(),
            monitor,
            stop: self.stop.clone(),
            random: self.random,
        }
    }
}

/// Connects to a hypervisor; without a URI to the one that `virsh` would choose.
#[cfg(feature = "libvirt")]
pub fn connect(uri: Option<&str>) -> Result<Box<dyn Host>> {
    let host = crate::host::libvirt::LibvirtHost::connect(uri).map_err(|error| Error::of("", error))?;
    Ok(Box::new(host))
}

/// How long connecting may take where it is only to look.
#[cfg(feature = "libvirt")]
const LOOK_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// Connects to a hypervisor with the right to look, for work that can do without it. `None` when that fails or takes long. Where the chosen
/// hypervisor cannot be reached, that of the system will do.
#[cfg(feature = "libvirt")]
pub fn connect_to_look(uri: Option<&str>) -> Option<Box<dyn Host>> {
    use crate::host::libvirt::LibvirtHost;
    let uri = uri.map(str::to_owned);
    let (sender, receiver) = std::sync::mpsc::channel();
    // A daemon that hangs answers no call; then the thread is given up.
    let connect = move || {
        let chosen = LibvirtHost::connect_read_only(uri.as_deref());
        let host = chosen.or_else(|_| LibvirtHost::connect_read_only(Some("qemu:///system")));
        let _ = sender.send(host.ok());
    };
    std::thread::Builder::new()
        .name("connect".to_owned())
        .spawn(connect)
        .ok()?;
    let host = receiver.recv_timeout(LOOK_DEADLINE).ok().flatten()?;
    Some(Box::new(host))
}

/// This program was built without libvirt, so there is nobody to ask.
#[cfg(not(feature = "libvirt"))]
pub fn connect_to_look(_uri: Option<&str>) -> Option<Box<dyn Host>> {
    None
}

/// This program was built without libvirt, so there is nothing to connect to.
#[cfg(not(feature = "libvirt"))]
pub fn connect(_uri: Option<&str>) -> Result<Box<dyn Host>> {
    Err(Error::of("", crate::host::HostError::NoLibvirt))
}

/// Those of these programs that are not installed.
pub fn missing_programs(programs: &[&'static str]) -> Vec<&'static str> {
    let is_missing = |program: &&&'static str| !crate::host::qemu::is_installed(program);
    programs.iter().filter(is_missing).copied().collect()
}

/// Opens a repository that must be there.
pub fn open_repository(root: &Path) -> Result<Box<dyn Repository>> {
    repo::open(root).map_err(|error| Error::of("", error))
}

/// Opens a repository to look at; one that is not there holds nothing.
pub fn open_or_empty_repository(root: &Path) -> Result<Box<dyn Repository>> {
    repo::open_or_empty(root).map_err(|error| Error::of("", error))
}

/// Opens a repository as [`open_or_create_repository`] does, and creates nothing: for a dry run.
pub fn open_as_if_created_repository(root: &Path) -> Result<Box<dyn Repository>> {
    let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty());
    match parent.is_none_or(Path::is_dir) {
        true => open_or_empty_repository(root),
        false => open_repository(root),
    }
}

/// Opens a repository to write to, creating its last folder if need be.
pub fn open_or_create_repository(root: &Path) -> Result<Box<dyn Repository>> {
    repo::open_or_create(root).map_err(|error| Error::of("", error))
}
