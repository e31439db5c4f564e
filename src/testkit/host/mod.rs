//! A simulated hypervisor: domains and checkpoints like libvirt's, disks in memory, failures on
//! demand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::crash::Fuse;
use crate::host::{ActiveJob, BackupRequest, HostError, Result};
use crate::model::guest::GuestFacts;
use crate::model::restore_point::FileId;
use crate::model::stop::Stop;

mod calls;
mod domain;
mod job;
mod pools;
mod rewrite;
mod trial;
mod trouble;
mod world;

use domain::SimDomain;
use pools::SimPool;
pub use trial::{SimGuest, SimTrial};

/// A simulated hypervisor. Clones share one state.
#[derive(Clone, Default)]
pub struct SimHost(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    domains: BTreeMap<String, SimDomain>,
    clock: i64,
    fail_reads_after: Option<u64>,
    fail_begin: bool,
    /// The next job begins only after its caller has stopped waiting.
    begin_late: bool,
    /// The next job fails after the bitmaps of its checkpoint are made, with nothing undone.
    begin_half: bool,
    late: Option<(String, BackupRequest)>,
    fail_removal_of: Option<String>,
    no_incremental: Option<String>,
    fail_end: bool,
    stop_in_begin: Option<Stop>,
    is_elsewhere: bool,
    /// Domains and targets of the disks that cannot be opened.
    unreachable: BTreeSet<(String, String)>,
    files: BTreeMap<PathBuf, FileId>,
    /// What the guest agents of domains report.
    guests: BTreeMap<String, GuestFacts>,
    tpm_folder: Option<PathBuf>,
    nvram_folder: Option<PathBuf>,
    pools: BTreeMap<String, SimPool>,
    /// The shut-off domains whose memory is saved.
    saved_memory: BTreeSet<String>,
    /// The internal snapshots of domains.
    snapshots: BTreeMap<String, Vec<String>>,
    /// The running trial domains, by UUID.
    trials: BTreeMap<String, SimTrial>,
    /// The next trial domain cannot be started.
    fail_trial: bool,
    /// What the guests of trial domains do.
    trial_guest: trial::SimGuest,
    /// The next pull of a disk fails.
    fail_pull: bool,
    fuse: Option<Fuse>,
}

impl SimHost {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates another hypervisor with a copy of the state, which is independent from now on. The
    /// copy has no fuse.
    pub fn fork(&self) -> SimHost {
        SimHost(Arc::new(Mutex::new(State {
            fuse: None,
            ..self.state().clone()
        })))
    }

    /// Lets the fuse interrupt operations of the client that have several steps (the bitmaps of a
    /// shut-off domain); `None` ends this.
    pub fn die_with(&self, fuse: Option<&Fuse>) {
        self.state().fuse = fuse.cloned();
    }

    fn fuse(&self) -> Option<Fuse> {
        self.state().fuse.clone()
    }

    fn with<T>(&self, name: &str, work: impl FnOnce(&mut SimDomain) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        let found = state.domains.get_mut(name);
        work(found.ok_or_else(|| HostError::NoSuchDomain {
            name: name.to_owned(),
        })?)
    }

    fn refuse_removal(&self, name: &str) -> Result<()> {
        if self.state().fail_removal_of.as_deref() == Some(name) {
            return Err(HostError::Libvirt {
                operation: format!("remove {name}"),
                code: 1,
                message: "simulated".to_owned(),
            });
        }
        Ok(())
    }

    /// The offset, in bytes, from which reading a disk fails.
    fn fails_reads_after(&self) -> Option<u64> {
        self.state().fail_reads_after
    }

    /// Whether the daemon is unavailable at the end of a job.
    pub(in crate::testkit) fn fails_to_end(&self) -> bool {
        self.state().fail_end
    }
}

fn backup_job(socket: PathBuf) -> ActiveJob {
    ActiveJob {
        operation: "backup".to_owned(),
        socket: Some(socket),
    }
}

fn simulated(operation: &str, message: &str) -> HostError {
    HostError::Libvirt {
        operation: operation.to_owned(),
        code: 1,
        message: message.to_owned(),
    }
}

/// Performs a step of the client itself, at which it may die.
fn step<T>(fuse: &Option<Fuse>, name: &str, work: impl FnOnce() -> T) -> Result<T> {
    match fuse {
        None => Ok(work()),
        Some(fuse) => fuse
            .step(|| name.to_owned(), work)
            .map_err(|_| simulated(name, "simulated: the step fails")),
    }
}
