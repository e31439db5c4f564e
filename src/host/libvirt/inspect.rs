//! Reads the present state of a domain, without changes.

use std::cmp::Ordering;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;
use virt_sys as sys;

use super::link::Link;
use super::{ActiveJob, Capabilities, DiskSizes, HostError, Refusal, Result, failed, ffi, images, volumes};
use crate::host::chain::open;
use crate::host::xml::{DomainDescription, backup_socket, read_domain};
use crate::model::domain::{Agent, Device, Disk, DiskFormat, Domain, DomainState, Source};
use crate::model::restore_point::FileId;

/// libvirt 7.6.0 and QEMU 6.1.0 as numbers: major × 1,000,000 + minor × 1,000 + release.
const OLDEST_LIBVIRT: u32 = 7_006_000;
const OLDEST_QEMU: u32 = 6_001_000;

/// Lists the names of the domain's internal snapshots.
pub(crate) fn internal_snapshots(handle: &Handle) -> Result<Vec<String>> {
    match handle.list_all_snapshots(sys::VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL) {
        Ok(snapshots) => snapshots
            .iter()
            .map(|snapshot| snapshot.get_name().map_err(failed("report a snapshot's name")))
            .collect(),
        // This driver has no snapshots.
        Err(error) if error.code() == ErrorNumber::NoSupport => Ok(Vec::new()),
        Err(error) => Err(failed("list the snapshots")(error)),
    }
}

pub fn capabilities(link: &Link) -> Result<Capabilities> {
    let connection = link.connection()?;
    let libvirt = connection
        .get_lib_version()
        .map_err(failed("report its version"))?;
    // Without a QEMU for this machine's architecture, libvirt reports no version. Checkpoints are
    // then assumed to work.
    let qemu = connection.get_hyp_version().unwrap_or(0);
    Ok(judge_versions(libvirt, qemu))
}

fn judge_versions(libvirt: u32, qemu: u32) -> Capabilities {
    let text = |version: u32| {
        format!(
            "{}.{}.{}",
            version / 1_000_000,
            version / 1000 % 1000,
            version % 1000
        )
    };
    let qemu_text = if qemu == 0 {
        "QEMU of unknown version".to_owned()
    } else {
        format!("QEMU {}", text(qemu))
    };
    let incremental = if libvirt < OLDEST_LIBVIRT {
        Err(format!(
            "libvirt {} is too old for checkpoints, which need libvirt 7.6.0 or newer",
            text(libvirt)
        ))
    } else if qemu != 0 && qemu < OLDEST_QEMU {
        Err(format!(
            "{qemu_text} is too old for checkpoints, which need QEMU 6.1.0 or newer"
        ))
    } else {
        Ok(())
    };
    Capabilities {
        incremental,
        versions: format!("libvirt {}, {qemu_text}", text(libvirt)),
    }
}

pub fn domain_names(link: &Link) -> Result<Vec<String>> {
    let handles = link
        .connection()?
        .list_all_domains(0)
        .map_err(failed("list the domains"))?;
    let mut listed = Vec::with_capacity(handles.len());
    for handle in &handles {
        listed.push((
            handle.get_id(),
            handle.get_name().map_err(failed("report a domain's name"))?,
        ));
    }
    listed.sort_by(listing_order);
    Ok(listed.into_iter().map(|(_, name)| name).collect())
}

/// Orders domains like `virsh list --all` (vshDomainSorter in tools/virsh-domain-monitor.c).
fn listing_order(a: &(Option<u32>, String), b: &(Option<u32>, String)) -> Ordering {
    let by_name = || {
        a.1.to_ascii_lowercase()
            .cmp(&b.1.to_ascii_lowercase())
            .then_with(|| a.1.cmp(&b.1))
    };
    match (a.0, b.0) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => by_name(),
    }
}

pub fn domain(link: &Link, name: &str) -> Result<Domain> {
    let handle = link.by_name(name)?.ok_or_else(|| HostError::NoSuchDomain {
        name: name.to_owned(),
    })?;
    domain_of(link, &handle)
}

/// Reads the present state of a domain.
pub(crate) fn domain_of(link: &Link, handle: &Handle) -> Result<Domain> {
    let (state, _) = state(handle)?;
    let inactive_xml = inactive_xml(handle)?;
    // The live XML has the open backing images, disks that were plugged in since the start, and the
    // agent's state.
    let defined = read_domain(&inactive_xml)?;
    let mut description = match state.is_active() {
        true => live(handle)?,
        false => defined.clone(),
    };
    // `virsh metadata` changes the running domain, its definition or both, so a mark in either
    // counts.
    let mut excluded = defined.excluded;
    for mark in std::mem::take(&mut description.excluded) {
        if !excluded.contains(&mark) {
            excluded.push(mark);
        }
    }
    let mut disks = description.disks;
    for disk in disks.iter_mut().filter(|disk| disk.device == Device::Disk) {
        complete(link, disk, state)?;
    }
    Ok(Domain {
        name: handle.get_name().map_err(failed("report the domain's name"))?,
        uuid: handle
            .get_uuid_string()
            .map_err(failed("report the domain's UUID"))?,
        state,
        persistent: handle
            .is_persistent()
            .map_err(failed("report whether the domain is persistent"))?,
        id: handle.get_id().filter(|_| state.is_active()),
        disks,
        nvram: description.nvram,
        excluded,
        tpm: description.tpm,
        agent: if state.is_active() {
            description.agent
        } else {
            no_listener(description.agent)
        },
        inactive_xml,
    })
}

/// Adds properties that a disk's definition lacks.
///
/// They are the location of its volume, an old version of qcow2, and whether the disk can be read
/// now.
fn complete(link: &Link, disk: &mut Disk, state: DomainState) -> Result<()> {
    if let Source::Volume(volume) = &mut disk.source {
        match volumes::place(link, volume)? {
            Ok(place) => volume.place = Some(Box::new(place)),
            // A running domain has its volume open already.
            Err(_) if state.is_active() => {}
            Err(why) => disk.unreadable = Some(why),
        }
    }
    if !link.location().is_local {
        return Ok(());
    }
    if disk.format == DiskFormat::Qcow2 && disk.source.path().is_some_and(|path| is_qcow2_version_2(path)) {
        disk.format = DiskFormat::Qcow2V2;
    }
    if !state.is_active() && disk.unreadable.is_none() && disk.source != Source::Empty {
        disk.unreadable = images::refusal(disk);
    }
    Ok(())
}

fn no_listener(agent: Agent) -> Agent {
    match agent {
        Agent::None => Agent::None,
        Agent::Disconnected | Agent::Connected => Agent::Disconnected,
    }
}

/// Returns the domain's state, and libvirt's number for the reason.
pub fn state(handle: &Handle) -> Result<(DomainState, i32)> {
    let (state, reason) = handle.get_state().map_err(failed("report the domain's state"))?;
    let active = is_active(handle)?;
    let state = match state {
        _ if !active => DomainState::ShutOff,
        // A crashed domain that is still active is paused with its disks open.
        sys::VIR_DOMAIN_PAUSED | sys::VIR_DOMAIN_CRASHED => DomainState::Paused,
        _ => DomainState::Running,
    };
    Ok((state, reason))
}

pub fn is_active(handle: &Handle) -> Result<bool> {
    handle
        .is_active()
        .map_err(failed("report whether the domain is active"))
}

/// Reads the live XML of a running domain.
pub fn live(handle: &Handle) -> Result<DomainDescription> {
    let xml = handle.get_xml_desc(0).map_err(failed("describe the domain"))?;
    read_domain(&xml)
}

/// Returns the XML to define the domain again, with passwords if this user may see them.
fn inactive_xml(handle: &Handle) -> Result<String> {
    let inactive = sys::VIR_DOMAIN_XML_INACTIVE;
    match handle.get_xml_desc(inactive | sys::VIR_DOMAIN_XML_SECURE) {
        Ok(xml) => Ok(xml),
        Err(error) => match error.code() {
            ErrorNumber::OperationDenied | ErrorNumber::AccessDenied | ErrorNumber::AuthFailed => handle
                .get_xml_desc(inactive)
                .map_err(failed("describe the domain")),
            _ => Err(failed("describe the domain")(error)),
        },
    }
}

/// Returns whether the image is a qcow2 file of version 2.
///
/// The file begins with the magic and the version, both big-endian (`docs/interop/qcow2.txt` in
/// QEMU). An unreadable image counts as newer: if it is old, QEMU reports an error later.
fn is_qcow2_version_2(image: &Path) -> bool {
    let mut head = [0; 8];
    open::open_image(image).is_ok_and(|mut file| file.read_exact(&mut head).is_ok())
        && head == *b"QFI\xfb\0\0\0\x02"
}

pub fn disk_sizes(link: &Link, domain: &Domain, target: &str) -> Result<DiskSizes> {
    let operation = format!("report the size of disk {target}");
    ffi::c_string(target).map_err(failed(operation.as_str()))?;
    // If the path is a FIFO, libvirt would block with the domain locked.
    let path = domain.disk(target).and_then(|disk| disk.source.path());
    if let Some(why) = path
        .filter(|_| link.location().is_local)
        .and_then(|path| open::not_an_image(path))
    {
        return Err(Refusal::UnreadableImage { why }.into());
    }
    let info = link
        .find(domain)?
        .get_block_info(target, 0)
        .map_err(failed(operation))?;
    Ok(DiskSizes {
        virtual_size: info.capacity,
        actual_size: info.allocation,
    })
}

/// Identifies the file at a path on this machine.
pub(crate) fn file_id(link: &Link, path: &Path) -> Option<FileId> {
    if !link.location().is_local {
        return None;
    }
    let found = path.metadata().ok().filter(|found| found.is_file())?;
    Some(FileId {
        inode: found.ino(),
        born: found.created().ok()?.try_into().ok()?,
    })
}

/// Returns the job that the domain is busy with now.
pub fn active_job(handle: &Handle) -> Result<Option<ActiveJob>> {
    let operation = match ffi::job_operation(handle) {
        Ok(None) => return Ok(None),
        Ok(Some(operation)) => operation,
        // The domain is shut off, or the driver has no jobs.
        Err(error)
            if matches!(
                error.number,
                ErrorNumber::OperationInvalid | ErrorNumber::NoSupport
            ) =>
        {
            return Ok(None);
        }
        Err(error) if is_lost_job(&error) => return Err(Refusal::JobForgotten.into()),
        Err(error) => return Err(failed("report whether a job is active")(error)),
    };
    let socket = match operation {
        sys::VIR_DOMAIN_JOB_OPERATION_BACKUP => socket_of_job(handle)?,
        _ => None,
    };
    Ok(Some(ActiveJob {
        operation: operation_word(operation).to_owned(),
        socket,
    }))
}

/// Recognizes libvirt's error for a job whose description it has lost.
///
/// The error is from qemuBackupGetJobInfoStats in src/qemu/qemu_backup.c. It occurs after libvirtd
/// was killed between writing the job to its status file and writing the description (seen with
/// 9.0.0). While the domain runs, neither `virsh domjobabort` nor a restart of libvirtd ends the
/// job. After a shutdown, the domain cannot start again in the same libvirtd.
fn is_lost_job(error: &ffi::CallError) -> bool {
    error.message.contains("backup job data missing")
}

/// Returns the socket of the active backup job, if there is one.
pub(crate) fn socket_of_job(handle: &Handle) -> Result<Option<std::path::PathBuf>> {
    match ffi::backup_xml(handle) {
        Ok(xml) => backup_socket(&xml),
        // The job has just ended.
        Err(error)
            if matches!(
                error.number,
                ErrorNumber::NoDomainBackup | ErrorNumber::OperationInvalid
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed("describe the backup job")(error)),
    }
}

/// Returns the name of an operation as in `virsh domjobinfo`, in lower case.
fn operation_word(operation: u32) -> &'static str {
    match operation {
        sys::VIR_DOMAIN_JOB_OPERATION_START => "start",
        sys::VIR_DOMAIN_JOB_OPERATION_SAVE => "save",
        sys::VIR_DOMAIN_JOB_OPERATION_RESTORE => "restore",
        sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN => "incoming migration",
        sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT => "outgoing migration",
        sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT => "snapshot",
        sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT => "snapshot revert",
        sys::VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE => "snapshot delete",
        sys::VIR_DOMAIN_JOB_OPERATION_DUMP => "dump",
        sys::VIR_DOMAIN_JOB_OPERATION_BACKUP => "backup",
        _ => "unknown",
    }
}

/// Creates the error for files on another machine.
pub(crate) fn not_here(what: &str) -> HostError {
    HostError::NotHere {
        what: what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_lost_by_libvirt_is_reported_with_the_remedy() {
        let error = ffi::CallError {
            number: ErrorNumber::InternalError,
            message: "internal error: backup job data missing".to_owned(),
        };
        assert!(is_lost_job(&error));
        assert!(
            Refusal::JobForgotten
                .to_string()
                .contains("then restart libvirtd")
        );
    }

    #[test]
    fn old_versions_are_recognised_by_name() {
        assert!(judge_versions(7_006_000, 6_001_000).incremental.is_ok());
        assert!(judge_versions(9_000_000, 0).incremental.is_ok());
        let old = judge_versions(7_005_000, 7_002_022);
        assert_eq!(old.versions, "libvirt 7.5.0, QEMU 7.2.22");
        assert!(old.incremental.expect_err("too old").contains("libvirt 7.5.0"));
        let old = judge_versions(9_000_000, 6_000_001);
        assert!(old.incremental.expect_err("too old").contains("QEMU 6.0.1"));
    }

    #[test]
    fn domains_are_listed_as_virsh_lists_them() {
        let mut listed = [
            (None, "b"),
            (Some(7), "z"),
            (None, "A"),
            (Some(12), "a"),
            (None, "a"),
        ]
        .map(|(id, name)| (id, name.to_owned()));
        listed.sort_by(listing_order);
        assert_eq!(listed.map(|(_, name)| name), ["z", "a", "A", "a", "b"]);
    }
}
