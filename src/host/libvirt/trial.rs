//! Starts, watches and ends trial domains.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;
use virt_sys as sys;

use super::link::Link;
use super::{
    CallError, HostError, LibvirtHost, Refusal, Result, agent, failed, ffi, guest_exec, inspect, link,
};
use crate::host::trial::{GuestExit, Pull, Trial, TrialLife, TrialState, Trials};
use crate::host::xml::{dac_owner, read_domain};
use crate::model::domain::{Backing, Disk};
use crate::model::guest::GuestFacts;

/// How often the guest is resumed after a flush, before that counts as failed.
const RESUMES: usize = 3;

impl Trials for LibvirtHost {
    fn owner(&self) -> Result<Option<(u32, u32)>> {
        if !self.link.location().is_local {
            return Err(inspect::not_here("the disks of the new domain"));
        }
        let connection = self.link.connection()?;
        let capabilities = connection
            .get_capabilities()
            .map_err(failed("report its capabilities"))?;
        let owner = dac_owner(&capabilities)?;
        let user = rustix::process::geteuid();
        match owner {
            Some((uid, _)) if !user.is_root() && uid != user.as_raw() => {
                Err(Refusal::QemuOfAnotherUser { uid }.into())
            }
            owner => Ok(owner.filter(|_| user.is_root())),
        }
    }

    fn start(&self, xml: &str, life: TrialLife) -> Result<Box<dyn Trial>> {
        let description = read_domain(xml)?;
        link::check_name(&description.name)?;
        // libvirt would start an existing domain of this name and UUID with the new XML.
        if self.link.by_name(&description.name)?.is_some() {
            return Err(Refusal::DomainNameTaken {
                name: description.name,
            }
            .into());
        }
        if self.link.by_uuid(&description.uuid)?.is_some() {
            return Err(Refusal::DomainUuidTaken {
                uuid: description.uuid,
            }
            .into());
        }
        ffi::c_string(xml).map_err(failed("start the domain"))?;
        let flags = match life {
            TrialLife::OfProcess => sys::VIR_DOMAIN_START_AUTODESTROY,
            TrialLife::OfItself => sys::VIR_DOMAIN_NONE,
        };
        let connection = self.link.connection()?;
        let handle = Handle::create_xml(&connection, xml, flags).map_err(failed("start the domain"))?;
        Ok(Box::new(LibvirtTrial::of(&self.link, &handle)?))
    }

    fn find(&self, uuid: &str) -> Result<Option<Box<dyn Trial>>> {
        let Some(handle) = active(self.link.by_uuid(uuid)?)? else {
            return Ok(None);
        };
        Ok(Some(Box::new(LibvirtTrial::of(&self.link, &handle)?)))
    }
}

/// A trial domain, which is looked up for each call: the connection may have been opened again.
struct LibvirtTrial {
    link: Arc<Link>,
    uuid: String,
}

impl LibvirtTrial {
    fn of(link: &Arc<Link>, handle: &Handle) -> Result<LibvirtTrial> {
        let uuid = handle.get_uuid_string();
        Ok(LibvirtTrial {
            link: Arc::clone(link),
            uuid: uuid.map_err(failed("report the domain's UUID"))?,
        })
    }

    /// The domain; `None` if it has ended.
    fn handle(&self) -> Result<Option<Handle>> {
        active(self.link.by_uuid(&self.uuid)?)
    }

    fn running(&self) -> Result<Handle> {
        self.handle()?.ok_or_else(|| HostError::NoSuchDomain {
            name: self.uuid.clone(),
        })
    }
}

impl Trial for LibvirtTrial {
    fn state(&self) -> Result<TrialState> {
        let Some(handle) = self.handle()? else {
            return Ok(TrialState::Ended);
        };
        match handle.get_state() {
            Ok((state, reason)) => Ok(read_state(state, reason)),
            Err(error) if is_gone(error.code()) => Ok(TrialState::Ended),
            Err(error) => Err(failed("report the domain's state")(error)),
        }
    }

    fn begin_pull(&self, target: &str) -> Result<()> {
        let begun = ffi::block_pull(&self.running()?, target);
        begun.map_err(failed(format!("pull disk {target}")))
    }

    fn pull(&self, target: &str, overlay: &Path) -> Result<Pull> {
        let handle = self.running()?;
        let job = ffi::block_job(&handle, target);
        if let Some((done, total)) = job.map_err(failed(format!("report the pull of disk {target}")))? {
            return Ok(Pull::Active { done, total });
        }
        // The job also vanishes when it fails.
        let description = inspect::live(&handle)?;
        let disk = description.disks.iter().find(|disk| disk.target == target);
        let is_alone = |disk: &Disk| {
            matches!(disk.backing, Backing::End) && disk.source.path().is_some_and(|path| path == overlay)
        };
        let is_alone = disk.is_some_and(is_alone);
        Ok(if is_alone { Pull::Done } else { Pull::Failed })
    }

    fn flush(&self) -> Result<bool> {
        let handle = self.running()?;
        let (state, _) = handle.get_state().map_err(failed("report the domain's state"))?;
        if state != sys::VIR_DOMAIN_RUNNING {
            return Ok(false);
        }
        // QEMU flushes all disks when it stops a guest (do_vm_stop in its cpus.c), and libvirt has
        // no other call for that. A pull leaves tables of the image in QEMU's memory.
        handle
            .suspend()
            .map_err(failed("pause the guest to flush its disks"))?;
        let resumed = (0..RESUMES).find_map(|_| handle.resume().ok());
        match resumed {
            Some(_) => Ok(true),
            None => handle
                .resume()
                .map(|_| true)
                .map_err(failed("let the guest go on after its disks were flushed")),
        }
    }

    fn keep(&self, xml: &str) -> Result<()> {
        ffi::c_string(xml).map_err(failed("define the domain"))?;
        let is_persistent = self.running()?.is_persistent();
        if is_persistent.map_err(failed("report whether the domain is persistent"))? {
            return Ok(());
        }
        let connection = self.link.connection()?;
        Handle::define_xml(&connection, xml).map_err(failed("define the domain"))?;
        Ok(())
    }

    fn end(&self) -> Result<()> {
        let Some(handle) = self.handle()? else {
            return Ok(());
        };
        match handle.destroy() {
            Ok(()) => Ok(()),
            Err(error) if is_gone(error.code()) => Ok(()),
            Err(error) => Err(failed("end the domain")(CallError::from(error))),
        }
    }

    fn agent_answers(&self, limit: Duration) -> Result<bool> {
        guest_exec::answers(&self.running()?, limit)
    }

    fn guest_facts(&self, limit: Duration) -> Result<Option<GuestFacts>> {
        let seconds = u16::try_from(limit.as_secs()).unwrap_or(u16::MAX).max(1);
        agent::facts(&self.running()?, seconds)
    }

    fn run_in_guest(&self, command: &[String], limit: Duration) -> Result<u64> {
        guest_exec::run(&self.running()?, command, limit)
    }

    fn guest_exit(&self, number: u64, limit: Duration) -> Result<Option<GuestExit>> {
        guest_exec::exit(&self.running()?, number, limit)
    }

    fn screenshot(&self) -> Result<Vec<u8>> {
        let connection = self.link.connection()?;
        guest_exec::screenshot(&connection, &self.running()?)
    }
}

/// The domain, unless it has ended. A transient domain may vanish at any moment.
fn active(handle: Option<Handle>) -> Result<Option<Handle>> {
    let Some(handle) = handle else {
        return Ok(None);
    };
    match handle.is_active() {
        Ok(is_active) => Ok(Some(handle).filter(|_| is_active)),
        Err(error) if is_gone(error.code()) => Ok(None),
        Err(error) => Err(failed("report whether the domain is active")(error)),
    }
}

fn is_gone(error: ErrorNumber) -> bool {
    matches!(error, ErrorNumber::NoDomain | ErrorNumber::OperationInvalid)
}

fn read_state(state: sys::virDomainState, reason: i32) -> TrialState {
    match state {
        sys::VIR_DOMAIN_PAUSED if reason == sys::VIR_DOMAIN_PAUSED_IOERROR as i32 => TrialState::Stuck,
        sys::VIR_DOMAIN_SHUTOFF => TrialState::Ended,
        _ => TrialState::Running,
    }
}
