//! Implements the hypervisor with libvirt's QEMU driver, through libvirt's official Rust bindings.

mod active_job;
mod agent;
mod bitmaps;
mod checkpoints;
mod files;
mod firmware;
mod freeze;
mod guest_exec;
mod image_bitmaps;
mod images;
mod inspect;
mod job;
mod link;
mod offline;
mod places;
mod pools;
mod records;
mod register;
mod rewrite;
mod secrets;
mod trial;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::host::trial::Trials;
use crate::host::xml::read_domain;
use crate::model::checkpoint::Checkpoint;
use crate::model::domain::{Agent, Domain, DomainState};
use crate::model::guest::GuestFacts;
use crate::model::restore_point::FileId;
use crate::model::tpm_state::TpmState;

use super::ffi::{self, CallError};
use super::{
    ActiveJob, BackupJob, BackupRequest, Capabilities, DiskSizes, DomainFiles, Host, HostError, NewVolume,
    PlaceWishes, Places, Pool, Refusal, Result, RewriteJob, RewriteRequest,
};
use link::Link;

/// A hypervisor with one connection to libvirt, which is opened again when it is lost.
pub struct LibvirtHost {
    link: Arc<Link>,
}

impl LibvirtHost {
    /// Connects to `uri`; `None` leaves the choice to libvirt, as `virsh` does.
    ///
    /// Starts libvirt's event loop on a separate thread, once per process.
    pub fn connect(uri: Option<&str>) -> Result<LibvirtHost> {
        let link = Link::open(uri)?;
        Ok(LibvirtHost { link: Arc::new(link) })
    }

    /// Connects as [`LibvirtHost::connect`] does, but read-only.
    pub(crate) fn connect_read_only(uri: Option<&str>) -> Result<LibvirtHost> {
        let link = Link::open_read_only(uri)?;
        Ok(LibvirtHost { link: Arc::new(link) })
    }
}

/// Keeps a libvirt driver inside this process from using stderr and the user's runtime folder.
///
/// The driver uses `folder` instead. Call this before the program starts its first thread.
pub(crate) fn prepare_environment(folder: &std::path::Path) {
    ffi::quiet_driver();
    ffi::set_runtime_folder(folder);
}

impl Host for LibvirtHost {
    fn capabilities(&self) -> Result<Capabilities> {
        inspect::capabilities(&self.link)
    }

    fn domain_names(&self) -> Result<Vec<String>> {
        inspect::domain_names(&self.link)
    }

    fn uri(&self) -> &str {
        self.link.full_uri()
    }

    fn domain(&self, name: &str) -> Result<Domain> {
        inspect::domain(&self.link, name)
    }

    fn disk_sizes(&self, domain: &Domain, target: &str) -> Result<DiskSizes> {
        inspect::disk_sizes(&self.link, domain, target)
    }

    fn file_id(&self, path: &Path) -> Option<FileId> {
        inspect::file_id(&self.link, path)
    }

    fn checkpoints(&self, domain: &Domain) -> Result<Vec<Checkpoint>> {
        checkpoints::list(&self.link, domain)
    }

    fn bitmap_names(&self, domain: &Domain, target: &str) -> Result<Vec<String>> {
        bitmaps::names(&self.link, domain, target)
    }

    fn delete_checkpoint(&self, domain: &Domain, name: &str) -> Result<()> {
        checkpoints::delete(&self.link, domain, name)
    }

    fn forget_checkpoint(&self, domain: &Domain, name: &str) -> Result<()> {
        checkpoints::forget(&self.link, domain, name)
    }

    fn register_checkpoint(&self, domain: &Domain, checkpoint: &Checkpoint) -> Result<bool> {
        register::register(&self.link, domain, checkpoint)
    }

    fn remove_bitmaps(&self, domain: &Domain, name: &str) -> Result<Vec<String>> {
        bitmaps::remove(&self.link, domain, name)
    }

    fn internal_snapshots(&self, domain: &Domain) -> Result<Vec<String>> {
        inspect::internal_snapshots(&self.link.find(domain)?)
    }

    fn active_job(&self, domain: &Domain) -> Result<Option<ActiveJob>> {
        inspect::active_job(&self.link.find(domain)?)
    }

    fn abort_job(&self, domain: &Domain) -> Result<()> {
        let handle = self.link.find(domain)?;
        active_job::end(&handle)?;
        active_job::resume_if_stuck(&handle).map(drop)
    }

    fn thaw(&self, domain: &Domain) -> Result<()> {
        let handle = self.link.find(domain)?;
        if domain.agent == Agent::Connected && inspect::is_active(&handle)? {
            freeze::thaw_now(&handle);
        }
        Ok(())
    }

    fn guest_facts(&self, domain: &Domain, limit: Duration) -> Result<Option<GuestFacts>> {
        if domain.agent != Agent::Connected || domain.state != DomainState::Running {
            return Ok(None);
        }
        agent::facts(&self.link.find(domain)?, freeze::whole_seconds(limit))
    }

    fn places(&self, domain: &Domain, targets: &[String], wishes: &PlaceWishes, run: &str) -> Result<Places> {
        places::choose(&self.link, domain, targets, wishes, run)
    }

    fn clear_places(&self, places: &Places) -> Result<()> {
        places::clear(places)
    }

    fn begin_backup(&self, domain: &Domain, request: &BackupRequest) -> Result<Box<dyn BackupJob>> {
        let handle = self.link.find(domain)?;
        if inspect::is_active(&handle)? {
            job::begin(&self.link, &handle, request)
        } else {
            offline::begin(&self.link, &handle, request)
        }
    }

    fn has_saved_memory(&self, domain: &Domain) -> Result<bool> {
        offline::has_saved_memory(&self.link.find(domain)?)
    }

    fn begin_rewrite(&self, domain: &Domain, request: &RewriteRequest) -> Result<Box<dyn RewriteJob>> {
        rewrite::begin(&self.link, &self.link.find(domain)?, request)
    }

    fn nvram(&self, domain: &Domain) -> Result<Option<Vec<u8>>> {
        firmware::nvram(&self.link, domain)
    }

    fn tpm_state(&self, domain: &Domain) -> Result<Option<TpmState>> {
        firmware::tpm_state(&self.link, domain)
    }

    fn tpm_folder(&self) -> Option<PathBuf> {
        firmware::tpm_folder(&self.link)
    }

    fn is_defined(&self, name: &str, uuid: &str) -> Result<(bool, bool)> {
        link::check_name(name)?;
        Ok((
            self.link.by_name(name)?.is_some(),
            self.link.by_uuid(uuid)?.is_some(),
        ))
    }

    fn domain_files(&self) -> Result<DomainFiles> {
        files::all(&self.link)
    }

    fn pool(&self, name: &str) -> Result<Pool> {
        pools::describe(&self.link, name)
    }

    fn has_volume(&self, pool: &str, name: &str) -> Result<bool> {
        pools::has_volume(&self.link, pool, name)
    }

    fn create_volume(&self, volume: &NewVolume) -> Result<PathBuf> {
        pools::create_volume(&self.link, volume)
    }

    fn delete_volume(&self, pool: &str, name: &str) -> Result<()> {
        pools::delete_volume(&self.link, pool, name)
    }

    fn refresh_pool(&self, pool: &str) -> Result<()> {
        pools::refresh(&self.link, pool)
    }

    fn nvram_folder(&self) -> Option<PathBuf> {
        let state = self.link.location().state_dir.as_ref()?;
        Some(state.join("nvram"))
    }

    fn define(&self, xml: &str) -> Result<()> {
        let description = read_domain(xml)?;
        link::check_name(&description.name)?;
        if self.link.by_name(&description.name)?.is_some() {
            return Err(Refusal::DomainNameTaken {
                name: description.name,
            }
            .into());
        }
        if !description.uuid.is_empty() && self.link.by_uuid(&description.uuid)?.is_some() {
            return Err(Refusal::DomainUuidTaken {
                uuid: description.uuid,
            }
            .into());
        }
        // The bindings cannot take a NUL byte, and XML cannot hold one.
        ffi::c_string(xml).map_err(failed("define the domain"))?;
        let connection = self.link.connection()?;
        virt::domain::Domain::define_xml(&connection, xml).map_err(failed("define the domain"))?;
        Ok(())
    }

    fn trials(&self) -> &dyn Trials {
        self
    }
}

/// Returns a function that converts libvirt's error to a [`HostError`]. `operation` is a verb
/// phrase.
fn failed<E: Into<CallError>>(operation: impl Into<String>) -> impl FnOnce(E) -> HostError {
    let operation = operation.into();
    move |error| {
        let error = error.into();
        HostError::Libvirt {
            operation,
            code: i32::try_from(error.number.to_raw()).unwrap_or(1),
            message: error.message,
        }
    }
}
