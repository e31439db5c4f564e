//! Safe wrappers for unsafe calls: all unsafe code of the program is in this file.
//!
//! It is needed for calls to libvirt that the crate `virt` lacks, to set environment variables, and
//! to prepare a child process.
//!
//! Strings are passed as `CString` and returned as copies. Memory that libvirt allocates is freed
//! here, and handles free themselves.

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
    /// The C library's function; libvirt allocates with the same allocator.
    fn free(memory: *mut c_void);
}

/// A libvirt call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallError {
    /// libvirt's error number (`virErrorNumber`).
    pub number: ErrorNumber,
    /// libvirt's message.
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

/// The result of a libvirt call.
pub(crate) type Call<T> = Result<T, CallError>;

/// Returns the error of the last libvirt call of this thread.
fn last_error() -> CallError {
    Error::last_error().into()
}

fn check(status: c_int) -> Call<c_int> {
    if status < 0 { Err(last_error()) } else { Ok(status) }
}

/// Converts text for libvirt. Text with a NUL byte is an error.
pub(crate) fn c_string(text: &str) -> Call<CString> {
    CString::new(text).map_err(|_| CallError {
        number: ErrorNumber::InvalidArg,
        message: "the text contains a NUL byte".to_owned(),
    })
}

/// Copies a string that libvirt has allocated for the caller, and frees the original.
fn owned_text(text: *mut c_char) -> Call<String> {
    if text.is_null() {
        return Err(last_error());
    }
    // SAFETY: libvirt returns either NULL, excluded above, or a NUL-terminated string that the
    // caller owns.
    let copy = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: the caller of libvirt's function has to free the string, and no reference to it is
    // left.
    unsafe { free(text.cast()) };
    Ok(copy)
}

/// Keeps a libvirt driver inside this process (`qemu:///embed`) from logging to stderr.
///
/// vmsnap reports the driver's errors itself. If the user has set `LIBVIRT_LOG_OUTPUTS`, the log
/// goes where the user wants it.
///
/// Call this before the program starts its first thread.
pub(crate) fn quiet_driver() {
    const OUTPUTS: &str = "LIBVIRT_LOG_OUTPUTS";
    if std::env::var_os(OUTPUTS).is_none() {
        // SAFETY: the caller promises that there is no other thread yet that could read the
        // environment.
        unsafe { std::env::set_var(OUTPUTS, "4:file:/dev/null") };
    }
}

/// Makes libvirt use `folder` instead of the user's runtime folder.
///
/// Without this, libvirt uses `XDG_RUNTIME_DIR` or, if it is not set, a folder in the user's home.
/// libvirt creates the folder when it needs it, and reads the variable once.
///
/// Call this before the program starts its first thread.
pub(crate) fn set_runtime_folder(folder: &Path) {
    // SAFETY: the caller promises that there is no other thread yet that could read the
    // environment.
    unsafe { std::env::set_var("XDG_RUNTIME_DIR", folder) };
}

/// Makes the kernel send this signal to the command's process when the **thread** that starts it
/// ends.
pub(crate) fn tie_to_this_thread(command: &mut Command, end: rustix::process::Signal) {
    let us = rustix::process::Pid::from_raw(std::process::id().cast_signed());
    let tie = move || {
        rustix::process::set_parent_process_death_signal(Some(end))?;
        // If this process died before the call above, the kernel never sends the signal.
        match rustix::process::getppid() == us {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    };
    // SAFETY: between fork and exec, calls must neither allocate nor lock. The closure makes two
    // direct system calls and returns an error without allocated data.
    unsafe { command.pre_exec(tie) };
}

/// Starts libvirt's event loop once per process, and keeps libvirt from printing errors itself.
///
/// The embedded driver and keepalive messages need the loop. It has to run before the first
/// connection is opened.
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
            // The error cannot be reported here. The pause keeps a permanent failure from using a
            // whole CPU.
            wait::pause(Duration::from_millis(100));
        }
    }
}

/// Starts a backup job, with a checkpoint of the same moment if `checkpoint_xml` is given.
pub(crate) fn backup_begin(domain: &Domain, backup_xml: &str, checkpoint_xml: Option<&str>) -> Call<()> {
    let backup = c_string(backup_xml)?;
    let checkpoint = checkpoint_xml.map(c_string).transpose()?;
    let checkpoint = checkpoint.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: the domain lives as long as its borrow, both strings outlive the call, and NULL means
    // no checkpoint.
    check(unsafe { sys::virDomainBackupBegin(domain.as_ptr(), backup.as_ptr(), checkpoint, 0) })?;
    Ok(())
}

/// Returns the XML of the active backup job.
pub(crate) fn backup_xml(domain: &Domain) -> Call<String> {
    // SAFETY: the domain lives as long as its borrow.
    owned_text(unsafe { sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0) })
}

/// Ends the domain's job. A pull-mode backup has to be ended this way even after a complete read.
pub fn abort_job(domain: &Domain) -> Call<()> {
    // SAFETY: the domain lives as long as its borrow.
    check(unsafe { sys::virDomainAbortJob(domain.as_ptr()) })?;
    Ok(())
}

/// Returns the operation (`virDomainJobOperation`) of the active job; `None` without a job.
///
/// The `get_job_stats` of the crate `virt` is not usable: without a job it makes a vector of
/// libvirt's null pointer, and it leaks the strings.
pub(crate) fn job_operation(domain: &Domain) -> Call<Option<u32>> {
    let mut kind: c_int = 0;
    let mut count: c_int = 0;
    let mut parameters: sys::virTypedParameterPtr = ptr::null_mut();
    // SAFETY: the domain lives as long as its borrow, and the three pointers are to local
    // variables.
    check(unsafe { sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut parameters, &mut count, 0) })?;
    let mut operation: c_int = 0;
    let name = sys::VIR_DOMAIN_JOB_OPERATION.as_ptr();
    // SAFETY: libvirt has just returned `count` parameters at `parameters`, and none has been
    // freed. If the parameter is missing, `operation` stays as it is.
    unsafe { sys::virTypedParamsGetInt(parameters, count, name, &mut operation) };
    // SAFETY: the caller has to free the array and its entries once; a null pointer is allowed.
    unsafe { sys::virTypedParamsFree(parameters, count) };
    let active = [sys::VIR_DOMAIN_JOB_BOUNDED, sys::VIR_DOMAIN_JOB_UNBOUNDED].contains(&(kind as c_uint));
    Ok(active.then_some(operation as u32))
}

/// Freezes all file systems of the guest and returns their number.
pub fn freeze(domain: &Domain) -> Call<u32> {
    // SAFETY: the domain lives as long as its borrow; no mount points (NULL, 0) means all of them.
    let frozen = check(unsafe { sys::virDomainFSFreeze(domain.as_ptr(), ptr::null_mut(), 0, 0) })?;
    Ok(frozen as u32)
}

/// Thaws all file systems of the guest and returns their number.
pub fn thaw(domain: &Domain) -> Call<u32> {
    // SAFETY: the domain lives as long as its borrow; no mount points (NULL, 0) means all of them.
    let thawed = check(unsafe { sys::virDomainFSThaw(domain.as_ptr(), ptr::null_mut(), 0, 0) })?;
    Ok(thawed as u32)
}

/// Sets how long the guest agent may take for each command, in seconds.
///
/// `None` restores libvirt's default: 5 s for the first contact, and no limit after that.
pub(crate) fn set_agent_timeout(domain: &Domain, seconds: Option<u16>) -> Call<()> {
    let timeout = seconds.map_or(sys::VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, c_int::from);
    // SAFETY: the domain lives as long as its borrow.
    check(unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), timeout, 0) })?;
    Ok(())
}

/// Asks the guest agent for these facts (`virDomainGuestInfoTypes`), and returns those that are
/// texts, with their keys.
///
/// An agent that lacks one of their commands is an error.
pub(crate) fn guest_texts(
    domain: &Domain,
    facts: sys::virDomainGuestInfoTypes,
) -> Call<Vec<(String, String)>> {
    let mut count: c_int = 0;
    let mut parameters: sys::virTypedParameterPtr = ptr::null_mut();
    // SAFETY: the domain lives as long as its borrow, and the two pointers are to local variables.
    check(unsafe { sys::virDomainGetGuestInfo(domain.as_ptr(), facts, &mut parameters, &mut count, 0) })?;
    let mut texts = Vec::new();
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: libvirt has just returned `count` parameters at `parameters`, and none has been
        // freed.
        let parameter = unsafe { &*parameters.add(index) };
        if parameter.type_ != sys::VIR_TYPED_PARAM_STRING as c_int {
            continue;
        }
        // SAFETY: libvirt ends the name with a NUL byte within its array, and the type says that
        // the value is a string.
        let (key, text) = unsafe { (parameter.field.as_ptr(), parameter.value.s) };
        if !text.is_null() {
            // SAFETY: both are strings with a NUL byte at the end, and are copied here.
            let (key, text) = unsafe { (CStr::from_ptr(key), CStr::from_ptr(text)) };
            let copy = |text: &CStr| text.to_string_lossy().into_owned();
            texts.push((copy(key), copy(text)));
        }
    }
    // SAFETY: the caller has to free the array and its entries once; a null pointer is allowed.
    unsafe { sys::virTypedParamsFree(parameters, count) };
    Ok(texts)
}

/// Begins to copy all data that a disk's topmost image lacks from the images beneath it.
pub(crate) fn block_pull(domain: &Domain, target: &str) -> Call<()> {
    let target = c_string(target)?;
    // SAFETY: the domain lives as long as its borrow, and the string outlives the call.
    check(unsafe { sys::virDomainBlockPull(domain.as_ptr(), target.as_ptr(), 0, 0) })?;
    Ok(())
}

/// Returns the progress of the block job of a disk: the bytes done, and the bytes in total. `None`
/// without a job.
pub(crate) fn block_job(domain: &Domain, target: &str) -> Call<Option<(u64, u64)>> {
    let target = c_string(target)?;
    let mut info = sys::virDomainBlockJobInfo {
        type_: 0,
        bandwidth: 0,
        cur: 0,
        end: 0,
    };
    // SAFETY: the domain lives as long as its borrow, the string outlives the call, and libvirt
    // writes to a local variable.
    let found = unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), target.as_ptr(), &mut info, 0) };
    Ok((check(found)? > 0).then_some((info.cur, info.end)))
}

/// A disk with an I/O error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskError {
    /// The disk's target.
    pub target: String,
    /// Whether the error is a lack of space.
    pub no_space: bool,
}

/// Lists the disks that stopped because of an I/O error.
pub(crate) fn disk_errors(domain: &Domain) -> Call<Vec<DiskError>> {
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
    // SAFETY: the number passed to the call is the number of entries in `errors`.
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

/// A checkpoint of a domain. It keeps the domain's handle alive.
#[derive(Debug)]
pub struct Checkpoint(NonNull<sys::virDomainCheckpoint>);

// SAFETY: libvirt's objects may be used from several threads at once: libvirt locks their reference
// counts and their connection (https://libvirt.org/html/libvirt-libvirt-host.html).
unsafe impl Send for Checkpoint {}
// SAFETY: as above.
unsafe impl Sync for Checkpoint {}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        // SAFETY: this value owns one reference to the handle, which is released here.
        unsafe { sys::virDomainCheckpointFree(self.0.as_ptr()) };
    }
}

impl Checkpoint {
    fn own(handle: sys::virDomainCheckpointPtr) -> Call<Checkpoint> {
        NonNull::new(handle).map(Checkpoint).ok_or_else(last_error)
    }

    /// Lists all checkpoints of a domain, in no particular order.
    pub fn all(domain: &Domain) -> Call<Vec<Checkpoint>> {
        let mut list: *mut sys::virDomainCheckpointPtr = ptr::null_mut();
        // SAFETY: the domain lives as long as its borrow; libvirt writes the address of a new array
        // to `list`.
        let count = check(unsafe { sys::virDomainListAllCheckpoints(domain.as_ptr(), &mut list, 0) })?;
        let checkpoints = (0..count as usize)
            // SAFETY: the array has `count` entries.
            .filter_map(|index| NonNull::new(unsafe { *list.add(index) }))
            .map(Checkpoint)
            .collect();
        // SAFETY: the caller has to free the array; its entries are now owned by `checkpoints`.
        unsafe { free(list.cast()) };
        Ok(checkpoints)
    }

    /// Looks up the checkpoint with this name.
    pub(crate) fn lookup(domain: &Domain, name: &str) -> Call<Checkpoint> {
        let name = c_string(name)?;
        // SAFETY: the domain lives as long as its borrow, the name outlives the call.
        Self::own(unsafe { sys::virDomainCheckpointLookupByName(domain.as_ptr(), name.as_ptr(), 0) })
    }

    /// Registers a checkpoint whose bitmaps already exist. libvirt does not check the images.
    pub fn redefine(domain: &Domain, xml: &str) -> Call<Checkpoint> {
        Self::make_known(domain, xml, sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
    }

    /// Registers a checkpoint of an active domain if QEMU reports that its bitmaps are sound.
    pub(crate) fn redefine_if_sound(domain: &Domain, xml: &str) -> Call<Checkpoint> {
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

    /// Returns the checkpoint's XML without the XML of its domain.
    ///
    /// With `sizes`, the XML contains the number of bytes changed since the checkpoint, for each
    /// disk whose bitmap exists and is consistent. QEMU reports these numbers, so this works only
    /// for an active domain. A driver that does not report sizes answers with
    /// `ErrorNumber::InvalidArg`.
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

    /// Removes the checkpoint: its record alone, or also its bitmaps.
    pub fn delete(&self, metadata_only: bool) -> Call<()> {
        let flags = if metadata_only {
            sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
        } else {
            0
        };
        // SAFETY: the handle is valid until it is dropped, even after the checkpoint has been
        // removed.
        check(unsafe { sys::virDomainCheckpointDelete(self.0.as_ptr(), flags) })?;
        Ok(())
    }
}
