//! The verbs, as plain functions, and the steps that they share.
//!
//! * `copy`: copies blocks from a source to a sink.
//! * `plan`: plans a backup before anything is done.
//! * `journal`: the journal entry that a run writes before it begins a job.
//! * `survey`: reads the state of a domain; `reconcile`: decides what to repair, back up and
//!   retire; `heal`: carries out repairs.
//! * `job`: runs a backup job from its journal entry to its end.
//! * `backup`, `restore`, `list`, `status`, `scrub`, `verify`, `compare`, `pin`, `retention` (which
//!   is `vmsnap prune`): the verbs.
//! * `in_place`: brings the disks of a shut-off domain back to a restore point
//!   (`vmsnap restore --in-place`); `restore_mark`: the mark of one that has not ended.
//! * `transfer`: copies restore points to another repository (`vmsnap copy`).
//! * `serve`: offers disks at a restore point to NBD clients.
//! * `boot`: starts a new domain from a restore point at once.
//! * `boot_proof`: starts restore points to see how far their guests come (`vmsnap verify --boot`).
//! * `mount`: shows a restore point as files in a folder.
//! * `files`: reads single files of the guest.
//! * `init` creates a pack repository, and `key` manages the keys of one.
//! * `collect`: collects data of a pack repository that no restore point needs.
//! * `integrity`: checks a pack repository as a whole, and rebuilds its index.
//! * `prune`: deletes the previous period after a backup (`backup --prune`).
//! * `stored`: a restore point together with the repository that holds it.
//! * `grouping`: keeps a domain's backups in one grouping.
//! * `lock`: takes the lock of a domain's folder, and waits for another run if requested.
//! * `each`: runs a verb for each of several domains.
//! * `monitor`: receives the events of the verbs: progress and findings.
//! * `error`: the errors of the verbs, with a class and a hint for the user.

pub mod backup;
pub mod boot;
pub mod boot_proof;
pub mod collect;
pub mod compare;
pub mod copy;
pub mod each;
pub mod error;
pub mod files;
mod grouping;
pub mod heal;
pub mod in_place;
pub mod init;
pub mod integrity;
mod job;
pub mod journal;
pub mod key;
pub mod list;
mod lock;
pub mod monitor;
pub mod mount;
pub mod pin;
pub mod plan;
pub mod prune;
pub mod reconcile;
pub mod restore;
pub mod restore_mark;
pub mod retention;
pub mod scrub;
pub mod serve;
pub mod status;
mod stored;
pub mod survey;
pub mod transfer;
pub mod verify;

use std::path::Path;
use std::sync::Arc;

use jiff::Zoned;

use crate::model::stop::Stop;
use crate::repo::{self, Opener, RepoError, UnlockedHost};

pub use crate::host::{Host, PlaceWishes, background};
pub use crate::io::{DiskStore, Store};
pub use crate::repo::{HostFolders, Repository};
pub use error::{Cause, Class, Error, Result};
pub use monitor::{Event, Monitor};

/// The environment of a backup or a comparison.
pub struct Context<'a> {
    /// The hypervisor.
    pub host: &'a dyn Host,
    /// The repository of the restore points.
    pub repo: &'a dyn Repository,
    /// The time at which the verb began, in the local time zone, because periods are local.
    pub now: Zoned,
    /// The receiver of events.
    pub monitor: &'a dyn Monitor,
    /// The request to stop (Ctrl-C, SIGTERM or SIGHUP).
    pub stop: Stop,
    /// Random numbers, for names that no other run uses.
    pub random: &'a (dyn Fn() -> u64 + Sync),
}

impl Context<'_> {
    /// Returns the same context with another monitor.
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

/// Connects to a hypervisor; without a URI, to the one that `virsh` would choose.
#[cfg(feature = "libvirt")]
pub fn connect(uri: Option<&str>) -> Result<Box<dyn Host>> {
    let host = crate::host::libvirt::LibvirtHost::connect(uri).map_err(|error| Error::of("", error))?;
    Ok(Box::new(host))
}

/// The longest time that a read-only connection may take.
#[cfg(feature = "libvirt")]
const LOOK_DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// Connects to a hypervisor read-only, for work that is also possible without one.
///
/// Returns `None` if the connection fails or takes longer than ten seconds. If the chosen
/// hypervisor cannot be reached, `qemu:///system` is tried.
#[cfg(feature = "libvirt")]
pub(crate) fn connect_to_look(uri: Option<&str>) -> Option<Box<dyn Host>> {
    use crate::host::libvirt::LibvirtHost;
    let uri = uri.map(str::to_owned);
    let (sender, receiver) = std::sync::mpsc::channel();
    // A daemon that hangs never answers. The thread is then abandoned.
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

/// Returns `None`, because this program was built without libvirt.
#[cfg(not(feature = "libvirt"))]
pub(crate) fn connect_to_look(_uri: Option<&str>) -> Option<Box<dyn Host>> {
    None
}

/// Fails, because this program was built without libvirt.
#[cfg(not(feature = "libvirt"))]
pub fn connect(_uri: Option<&str>) -> Result<Box<dyn Host>> {
    Err(Error::of("", crate::host::HostError::NoLibvirt))
}

/// Returns the programs in this list that are not installed.
pub(crate) fn missing_programs(programs: &[&'static str]) -> Vec<&'static str> {
    let is_missing = |program: &&&'static str| !crate::host::qemu::is_installed(program);
    programs.iter().filter(is_missing).copied().collect()
}

/// The secret that opens an encrypted repository, and the folders in which this host keeps its own
/// files.
pub(crate) struct Access<'a> {
    /// Gets the secret. This function is called only if a secret is needed, because it may ask the
    /// user.
    pub(crate) opener: &'a dyn Fn() -> Result<Opener>,
    /// The folders of this host.
    pub(crate) folders: HostFolders,
    /// A request to stop.
    pub(crate) stop: &'a Stop,
}

/// Opens a pack repository.
fn open_pack(location: &Path, access: &Access<'_>) -> Result<Box<dyn Repository>> {
    let failed = |error: RepoError| Error::of("", error);
    let pack = repo::open_pack(location, access.stop).map_err(|error| failed(error.into()))?;
    let opener = pack.is_encrypted().then(access.opener).transpose()?;
    let host = UnlockedHost {
        folders: access.folders.clone(),
        store: Arc::new(DiskStore),
    };
    let unlocked = pack.unlocked(opener.as_ref(), host, access.stop);
    Ok(Box::new(unlocked.map_err(failed)?))
}

/// Opens a repository of any kind. `in_folder` opens one in a folder.
fn open_any(
    location: &Path,
    access: &Access<'_>,
    in_folder: impl Fn(&Path) -> std::result::Result<Box<dyn Repository>, RepoError>,
) -> Result<Box<dyn Repository>> {
    if repo::is_sets(location) {
        return repo::open_sets(location).map_err(|error| Error::of("", error));
    }
    match repo::is_pack(location) {
        Ok(true) => open_pack(location, access),
        Ok(false) => in_folder(location).map_err(|error| Error::of("", error)),
        Err(error) => Err(Error::of("", error)),
    }
}

/// Opens an existing repository.
pub(crate) fn open_repository(location: &Path, access: &Access<'_>) -> Result<Box<dyn Repository>> {
    open_any(location, access, repo::open)
}

/// Opens a repository for reading; a missing folder counts as an empty repository.
pub(crate) fn open_or_empty_repository(location: &Path, access: &Access<'_>) -> Result<Box<dyn Repository>> {
    open_any(location, access, repo::open_or_empty)
}

/// Refuses a location at which nothing can be written.
fn check_writable(location: &Path) -> Result<()> {
    match repo::is_sets(location) {
        true => {
            let location = location.display().to_string();
            Err(Error::of("", RepoError::ReadOnly { location }))
        }
        false => Ok(()),
    }
}

/// Opens a repository for a dry run: as [`open_or_create_repository`], but creates nothing.
pub(crate) fn open_as_if_created_repository(
    location: &Path,
    access: &Access<'_>,
) -> Result<Box<dyn Repository>> {
    check_writable(location)?;
    open_any(location, access, |root| {
        let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty());
        match parent.is_none_or(Path::is_dir) {
            true => repo::open_or_empty(root),
            false => repo::open(root),
        }
    })
}

/// Opens a repository for writing. The last folder of a repository in a folder is created if it is
/// missing.
pub(crate) fn open_or_create_repository(location: &Path, access: &Access<'_>) -> Result<Box<dyn Repository>> {
    check_writable(location)?;
    open_any(location, access, repo::open_or_create)
}

/// Opens a repository in a folder for writing, and creates its last folder if it is missing.
#[cfg(feature = "libvirt")]
pub(crate) fn open_or_create_folder(root: &Path) -> Result<Box<dyn Repository>> {
    repo::open_or_create(root).map_err(|error| Error::of("", error))
}
