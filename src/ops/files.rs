//! Reads single files out of a restore point: `vmsnap files`.
//!
//! The disks are served over NBD (`ops::serve`) to a virtual machine of libguestfs, which mounts
//! the guest's file systems. The host's kernel never sees them.
//!
//! * `choose`: which file systems are mounted, decided from facts.
//! * `read`: lists and copies files.
//!
//! An answer counts only if `guestfish` reports success. Reads of the disks that failed are
//! findings in any case, because a file system may hide them.

use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::monitor::{Event, Monitor};
use super::serve::{self, DiskServer};
use super::{Cause, Error, Result};
use crate::host::HostError;
use crate::host::guestfish::{self, Guestfish, Setup};
use crate::io::DiskStore;
use crate::model::files_fault::FilesFault;
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::repo::Repository;

mod choose;
mod read;

pub use crate::host::guestfish::{FileFacts, FileKind};

/// The action on the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilesAction {
    /// List the devices and the file systems.
    Devices,
    /// List a folder, or show one file.
    List(OsString),
    /// Write the content of files to the output.
    Print(Vec<OsString>),
    /// Copy files and folders into a folder of the host, which is created if it is missing.
    Copy {
        /// The files and folders.
        paths: Vec<OsString>,
        /// The folder of the host.
        dir: PathBuf,
    },
    /// Write a folder as a tar stream to the output.
    Archive(OsString),
}

/// The options.
#[derive(Clone, Debug)]
pub struct Options {
    /// Selects the restore point, as `vmsnap restore --at` does.
    pub at: String,
    /// The targets of the disks to look at; empty for all.
    pub disks: Vec<String>,
    /// The device whose file system is read; `None` for the file systems that the operating system
    /// mounts, or for the only file system.
    pub device: Option<String>,
    /// The action.
    pub action: FilesAction,
}

/// The environment of the work on files.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The repository of the restore point.
    pub repo: &'a dyn Repository,
    /// The receiver of findings.
    pub monitor: &'a dyn Monitor,
    /// Ends the work.
    pub stop: &'a Stop,
    /// An unpredictable number, for names that nobody can guess.
    pub random: u64,
}

/// The result of the work on files.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The restore point.
    pub point: RestorePoint,
    /// The result of the action.
    pub done: Done,
    /// The findings; the monitor has received them too.
    pub findings: Vec<Finding>,
    /// Whether reads failed because stored data is damaged.
    pub has_damage: bool,
    /// Whether reads failed for a reason other than damage.
    pub has_failures: bool,
}

/// The result of the action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The devices and file systems.
    Devices(FileSystems),
    /// The entries of a folder, or one file.
    Listed(Vec<FileEntry>),
    /// Content was written to the output.
    Written,
    /// Files were copied.
    Copied(Vec<CopiedFile>),
}

/// The devices and file systems in the disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSystems {
    /// The disks.
    pub disks: Vec<DiskDevice>,
    /// The file systems, and other content of the devices, such as swap.
    pub found: Vec<FileSystemFacts>,
    /// The operating systems: the device of each root, and its name if that is known.
    pub systems: Vec<(String, Option<String>)>,
}

/// A disk as `guestfish` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskDevice {
    /// The target of the disk in the domain.
    pub target: String,
    /// The device, such as `/dev/sda`.
    pub device: String,
    /// The size of the disk, in bytes.
    pub size: u64,
}

/// Facts about a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystemFacts {
    /// Its device.
    pub device: String,
    /// Its type, as `blkid` names it.
    pub kind: String,
    /// Its label, if it has one.
    pub label: Option<String>,
    /// The size of the file system's device, in bytes, if known.
    pub size: Option<u64>,
    /// Where an operating system mounts it.
    pub mounted_on: Vec<OsString>,
}

/// A file in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name in the folder.
    pub name: OsString,
    /// Facts about the file.
    pub facts: FileFacts,
    /// The target of a symbolic link; `None` for other files.
    pub link: Option<OsString>,
}

/// A file or folder that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedFile {
    /// Its path in the guest.
    pub path: OsString,
    /// Its path on the host.
    pub to: PathBuf,
    /// The number of files, folders and links.
    pub entries: u64,
    /// The size of all files, in bytes.
    pub bytes: u64,
    /// The number of devices, pipes and sockets that were left out.
    pub left_out: u64,
}

/// A running `guestfish`, with what its failures mean.
struct Session<'a> {
    domain: &'a str,
    fish: Guestfish<'a>,
    stop: &'a Stop,
    /// What the operating system mounts, but could not be mounted here.
    not_mounted: Vec<guestfish::MountPoint>,
}

/// Lists or copies files of a restore point. Content goes to `out`.
///
/// # Errors
/// `guestfish` is missing or cannot run, there is no such restore point, disk, file system or file,
/// or it cannot be read.
pub fn files(domain: &str, means: &Means<'_>, options: &Options, out: &mut dyn Write) -> Result<Outcome> {
    read::check(domain, &options.action)?;
    let failed = |error: HostError| failure(domain, means.stop, error);
    guestfish::check_installed().map_err(failed)?;
    let folder = guestfish::private_folder().map_err(failed)?;
    let place = serve::Place::Socket(socket_in(folder.path()));
    let serving = serve::Options {
        at: options.at.clone(),
        disks: options.disks.clone(),
        place,
    };
    let server = serve::start(domain, means.repo, &serving, means.stop)?;
    let mut notes = server.served().findings.clone();
    let done = work(domain, means, options, &server, folder.path(), &mut notes, out);
    let served = server.end();
    let findings: Vec<Finding> = notes.into_iter().chain(served.findings.iter().cloned()).collect();
    for finding in &findings {
        means.monitor.event(Event::Found { domain, finding });
    }
    let is_damage = served.has_damage();
    let has_failures = served.has_failures();
    match done {
        Ok(done) => Ok(Outcome {
            point: served.served.point,
            done,
            findings,
            has_damage: is_damage,
            has_failures,
        }),
        Err(error) if (is_damage || has_failures) && !error.is_stopped() => {
            let message = with_sources(&error.cause);
            let fault = FilesFault::Reads { message, is_damage };
            Err(Error {
                findings,
                ..Error::of(domain, fault)
            })
        }
        Err(error) => Err(Error { findings, ..error }),
    }
}

/// The socket of the server in the private folder.
fn socket_in(folder: &Path) -> PathBuf {
    folder.join("disks")
}

/// Starts `guestfish`, and does what is asked.
fn work(
    domain: &str,
    means: &Means<'_>,
    options: &Options,
    server: &DiskServer,
    folder: &Path,
    notes: &mut Vec<Finding>,
    out: &mut dyn Write,
) -> Result<Done> {
    let disks: Vec<String> = server
        .served()
        .disks
        .iter()
        .map(|disk| disk.target.clone())
        .collect();
    let socket = socket_in(folder);
    let progress = || server.bytes_read();
    let setup = Setup {
        disks: &disks,
        socket: &socket,
        folder,
        random: means.random,
        stop: means.stop,
        progress: &progress,
        silence: guestfish::SILENCE,
    };
    let fish = Guestfish::start(setup).map_err(|error| failure(domain, means.stop, error))?;
    notes.extend(fish.without_kvm().map(|why| {
        let what = format!(
            "guestfish runs its virtual machine without KVM, which is slow, because the machine failed with KVM: {why}"
        );
        Finding::new("appliance-without-kvm", what)
    }));
    let mut session = Session {
        domain,
        fish,
        stop: means.stop,
        not_mounted: Vec::new(),
    };
    let done = match &options.action {
        FilesAction::Devices => Done::Devices(choose::survey(&mut session, server.served())?),
        action => {
            choose::mount(&mut session, options.device.as_deref(), notes)?;
            read::run(&mut session, action, &DiskStore, notes, out)?
        }
    };
    let Session { fish, .. } = session;
    fish.end().map_err(|error| failure(domain, means.stop, error))?;
    Ok(done)
}

/// The error about a failure of the host.
fn failure(domain: &str, stop: &Stop, error: HostError) -> Error {
    match (error, stop.reason()) {
        (HostError::Stopped, Some(reason)) => Error::of(domain, Cause::Stopped(reason)),
        (error, _) => Error::of(domain, error),
    }
}

impl Session<'_> {
    fn failed(&self, error: HostError) -> Error {
        failure(self.domain, self.stop, error)
    }

    fn fault(&self, fault: FilesFault) -> Error {
        Error::of(self.domain, fault)
    }

    fn ask(&mut self, words: &[&[u8]]) -> Result<Vec<u8>> {
        let answer = self.fish.ask(words);
        answer.map_err(|error| self.failed(error))
    }

    fn try_ask(&mut self, words: &[&[u8]]) -> Result<Vec<u8>> {
        let answer = self.fish.try_ask(words);
        answer.map_err(|error| self.failed(error))
    }
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("domain", &self.domain).finish()
    }
}
