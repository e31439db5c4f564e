//! The calls that have to be unsafe, behind safe functions. The only unsafe code of the program.
//!
//! They are those to libvirt that the crate `virt` lacks, and one to the kernel.
//!
//! Strings cross as `CString` and come back copied; what libvirt allocates is freed here; handles free themselves.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt_sys as sys;

use crate::wait;

unsafe extern "C" {
    /// The C library's, which libvirt allocates with.
    fn free(memory: *mut c_void);
}

/// A libvirt call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// libvirt's error number (`virErrorNumber`).
    pub number: ErrorNumber,
    /// libvirt's words.
    pub message: String,
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        CallError {
            number: error.code(),
            message: error.message().to_owned(),
        }
    }
}

/// Result of a libvirt call.
pub type Call<T> = Result<T, CallError>;

/// Takes the error of the call that this thread has just made.
fn last_error() -> CallError {
    Error::last_error().into()
}

fn check(status: c_int) -> Call<c_int> {
    if status < 0 { Err(last_error()) } else { Ok(status) }
}

/// Text for libvirt. Only a NUL byte cannot be told to it.
pub fn c_string(text: &str) -> Call<CString> {
    CString::new(text).map_err(|_| CallError {
        number: ErrorNumber::InvalidArg,
        message: "the text holds a NUL byte".to_owned(),
    })
}

/// Copies a string that libvirt has allocated for us, and frees it.
fn owned_text(text: *mut c_char) -> Call<String> {
    if text.is_null() {
        return Err(last_error());
    }
    // SAFETY: libvirt returns either NULL, excluded above, or a NUL-terminated string that is ours.
    let copy = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: the caller of these functions has to free the string, which nothing refers to any more.
    unsafe { free(text.cast()) };
    Ok(copy)
}

/// Keeps libvirt's driver from writing its log to stderr when it runs inside this process (`qemu:///embed`): errors reach us
/// as errors, and the rest concerns nobody. Who has set the variable wants to see it.
///
/// To be called before the program starts its first thread.
pub fn quiet_driver() {
    const OUTPUTS: &str = "LIBVIRT_LOG_OUTPUTS";
    if std::env::var_os(OUTPUTS).is_none() {
        // SAFETY: the caller promises that there is no other thread yet, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(OUTPUTS, "4:file:/dev/null") };
    }
}

/// Makes libvirt use `folder` where it would use the user's runtime folder, or the home folder of a user without one. libvirt
/// creates the folder when it needs it, and reads the variable once.
///
/// Call this before the program starts its first thread.
pub fn set_runtime_folder(folder: &Path) {
    // SAFETY: the caller promises that there is no other thread yet, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var("XDG_RUNTIME_DIR", folder) };
}

/// Has the kernel kill the command's process when the **thread** that starts it ends, however that comes to pass.
pub fn tie_to_this_thread(command: &mut Command) {
    let us = rustix::process::Pid::from_raw(std::process::id().cast_signed());
    let tie = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // We may have died before that: then nobody would ever send the signal.
        match rustix::process::getppid() == us {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    };
    // SAFETY: between fork and exec only calls are allowed that neither allocate nor lock. These are two system calls, made directly, and
    // an error that holds nothing but its kind.
    unsafe { command.pre_exec(tie) };
}

/// Starts libvirt's event loop once per process and makes libvirt print nothing by itself. The embedded driver
/// demands the loop, keepalive messages need it, and it has to be there before the first connection is opened.
pub fn prepare() -> Call<()> {
    static PREPARED: OnceLock<Call<()>> = OnceLock::new();
    PREPARED
        .get_or_init(|| {
            virt::error::clear_error_callback();
            virt::event::event_register_default_impl()?;
            let spawned = thread::Builder::new()
                .name("libvirt-events".to_owned())
                .spawn(run_event_loop);
            spawned.map(drop).map_err(|error| CallError {
                number: ErrorNumber::SystemError,
                message: format!("cannot start the event thread: {error}"),
            })
        })
        .clone()
}

fn run_event_loop() {
    loop {
        if virt::event::event_run_default_impl().is_err() {
            // Nobody can be told here; the pause keeps a lasting failure from taking a processor.
            wait::pause(Duration::from_millis(100));
        }
    }
}

/// Begins a backup job, with a checkpoint made at the same moment if `checkpoint_xml` is given.
pub fn backup_begin(domain: &Domain, backup_xml: &str, checkpoint_xml: Option<&str>) -> Call<()> {
    let backup = c_string(backup_xml)?;
    let checkpoint = checkpoint_xml.map(c_string).transpose()?;
    let checkpoint = checkpoint.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: the domain lives as long as its borrow; both strings outlive the call, NULL means no checkpoint.
    check(unsafe { sys::virDomainBackupBegin(domain.as_ptr(), backup.as_ptr(), checkpoint, 0) })?;
    Ok(())
}

/// The XML of the backup job that is under way.
pub fn backup_xml(domain: &Domain) -> Call<String> {
    // SAFETY: the domain lives as long as its borrow.
    owned_text(unsafe { sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0) })
}

/// Ends the domain's job. This is also how a pull-mode backup that has been read in full ends.
pub fn abort_job(domain: &Domain) -> Call<()> {
    // SAFETY: the domain lives as long as its borrow.
    check(unsafe { sys::virDomainAbortJob(domain.as_ptr()) })?;
    Ok(())
}

/// The operation (`virDomainJobOperation`) of the job that holds the domain; `None` when there is none.
///
/// `virt`'s own `get_job_stats` makes a vector of the null pointer that libvirt returns without a job, and leaks the texts in it.
pub fn job_operation(domain: &Domain) -> Call<Option<u32>> {
    let mut kind: c_int = 0;
    let mut count: c_int = 0;
    let mut parameters: sys::virTypedParameterPtr = ptr::null_mut();
    // SAFETY: the domain lives as long as its borrow, and the three places are ours to be written to.
    check(unsafe { sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut parameters, &mut count, 0) })?;
    let mut operation: c_int = 0;
    let name = sys::VIR_DOMAIN_JOB_OPERATION.as_ptr();
    // SAFETY: libvirt has just given `count` parameters at `parameters`, none of which has been freed; a missing one
    // leaves `operation` as it is.
    unsafe { sys::virTypedParamsGetInt(parameters, count, name, &mut operation) };
    // SAFETY: the array is ours to free, once, together with what its entries hold; a null pointer is allowed.
    unsafe { sys::virTypedParamsFree(parameters, count) };
    let active = [sys::VIR_DOMAIN_JOB_BOUNDED, sys::VIR_DOMAIN_JOB_UNBOUNDED].contains(&(kind as c_uint));
    Ok(active.then_some(operation as u32))
}

/// Freezes all file systems of the guest; tells how many.
pub fn freeze(domain: &Domain) -> Call<u32> {
    // SAFETY: the domain lives as long as its borrow; no mount points (NULL, 0) means all of them.
    let frozen = check(unsafe { sys::virDomainFSFreeze(domain.as_ptr(), ptr::null_mut(), 0, 0) })?;
    Ok(frozen as u32)
}

/// Thaws all file systems of the guest; tells how many.
pub fn thaw(domain: &Domain) -> Call<u32> {
    // SAFETY: the domain lives as long as its borrow; no mount points (NULL, 0) means all of them.
    let thawed = check(unsafe { sys::virDomainFSThaw(domain.as_ptr(), ptr::null_mut(), 0, 0) })?;
    Ok(thawed as u32)
}

/// How long each question to the guest agent may take, in seconds; `None` is libvirt's default: 5 s for the greeting, no limit after it.
pub fn set_agent_timeout(domain: &Domain, seconds: Option<u16>) -> Call<()> {
    let timeout = seconds.map_or(sys::VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, c_int::from);
    // SAFETY: the domain lives as long as its borrow.
    check(unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), timeout, 0) })?;
    Ok(())
}

/// A disk that the guest could not write to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// The disk's target.
    pub target: String,
    /// Whether it was for want of space.
    pub no_space: bool,
}

/// The disks that stand still because of an error.
pub fn disk_errors(domain: &Domain) -> Call<Vec<DiskError>> {
    // SAFETY: the domain lives as long as its borrow; NULL and 0 ask for the number of disks.
    let disks = check(unsafe { sys::virDomainGetDiskErrors(domain.as_ptr(), ptr::null_mut(), 0, 0) })?;
    let empty = sys::virDomainDiskError {
        disk: ptr::null_mut(),
        error: 0,
    };
    let mut errors = vec![empty; disks as usize];
    if errors.is_empty() {
        return Ok(Vec::new());
    }
    // SAFETY: `errors` has room for as many entries as the call is told.
    let filled = check(unsafe {
        sys::virDomainGetDiskErrors(domain.as_ptr(), errors.as_mut_ptr(), errors.len() as c_uint, 0)
    })?;
    let no_space = sys::VIR_DOMAIN_DISK_ERROR_NO_SPACE as c_int;
    let read = |error: &sys::virDomainDiskError| {
        Ok(DiskError {
            target: owned_text(error.disk)?,
            no_space: error.error == no_space,
        })
    };
    errors.iter().take(filled as usize).map(read).collect()
}

/// A checkpoint of a domain. It keeps the domain's handle alive by itself.
#[derive(Debug)]
pub struct Checkpoint(NonNull<sys::virDomainCheckpoint>);

// SAFETY: libvirt's objects may be used from any thread, and by several at once: their counters and the connection
// beneath are locked (https://libvirt.org/html/libvirt-libvirt-host.html).
unsafe impl Send for Checkpoint {}
// SAFETY: as above.
unsafe impl Sync for Checkpoint {}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        // SAFETY: the handle was given to us with one reference, which ends here.
        unsafe { sys::virDomainCheckpointFree(self.0.as_ptr()) };
    }
}

impl Checkpoint {
    fn own(handle: sys::virDomainCheckpointPtr) -> Call<Checkpoint> {
        NonNull::new(handle).map(Checkpoint).ok_or_else(last_error)
    }

    /// All checkpoints of a domain, in no order.
    pub fn all(domain: &Domain) -> Call<Vec<Checkpoint>> {
        let mut list: *mut sys::virDomainCheckpointPtr = ptr::null_mut();
        // SAFETY: the domain lives as long as its borrow; libvirt writes an array of its own making to `list`.
        let count = check(unsafe { sys::virDomainListAllCheckpoints(domain.as_ptr(), &mut list, 0) })?;
        let checkpoints = (0..count as usize)
            // SAFETY: the array has `count` entries.
            .filter_map(|index| NonNull::new(unsafe { *list.add(index) }))
            .map(Checkpoint)
            .collect();
        // SAFETY: the array is ours to free; its entries have been taken over above.
        unsafe { free(list.cast()) };
        Ok(checkpoints)
    }

    /// The checkpoint of that name.
    pub fn lookup(domain: &Domain, name: &str) -> Call<Checkpoint> {
        let name = c_string(name)?;
        // SAFETY: the domain lives as long as its borrow, the name outlives the call.
        Self::own(unsafe { sys::virDomainCheckpointLookupByName(domain.as_ptr(), name.as_ptr(), 0) })
    }

    /// Makes a checkpoint known to libvirt whose bitmaps are there already. Nothing is looked up in the images.
    pub fn redefine(domain: &Domain, xml: &str) -> Call<Checkpoint> {
        Self::make_known(domain, xml, sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
    }

    /// The same for an active domain, whose QEMU is asked whether the bitmaps are there and sound.
    pub fn redefine_if_sound(domain: &Domain, xml: &str) -> Call<Checkpoint> {
        let flags =
            sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE;
        Self::make_known(domain, xml, flags)
    }

    fn make_known(
        domain: &Domain,
        xml: &str,
        flags: sys::virDomainCheckpointCreateFlags,
    ) -> Call<Checkpoint> {
        let xml = c_string(xml)?;
        // SAFETY: the domain lives as long as its borrow, the document outlives the call.
        Self::own(unsafe { sys::virDomainCheckpointCreateXML(domain.as_ptr(), xml.as_ptr(), flags) })
    }

    /// Its XML without the domain's. `sizes` asks QEMU for the state of each bitmap, which only an active domain can tell.
    pub fn xml(&self, sizes: bool) -> Call<String> {
        let sizes = if sizes {
            sys::VIR_DOMAIN_CHECKPOINT_XML_SIZE
        } else {
            0
        };
        let flags = sys::VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN | sizes;
        // SAFETY: the handle is valid until it is dropped.
        owned_text(unsafe { sys::virDomainCheckpointGetXMLDesc(self.0.as_ptr(), flags) })
    }

    /// Removes it: with its bitmaps, or only from libvirt's list.
    pub fn delete(&self, metadata_only: bool) -> Call<()> {
        let flags = if metadata_only {
            sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
        } else {
            0
        };
        // SAFETY: the handle is valid until it is dropped, also when the checkpoint itself is gone.
        check(unsafe { sys::virDomainCheckpointDelete(self.0.as_ptr(), flags) })?;
        Ok(())
    }
}
