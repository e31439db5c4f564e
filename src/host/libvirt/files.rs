//! Lists the files and block devices that the definitions of all domains on this machine name.

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt_sys as sys;

use super::link::Link;
use super::{Result, failed, ffi, inspect};
use crate::host::xml::{NamedPlace, read_sources};
use crate::host::{DomainFile, DomainFiles};
use crate::model::finding::Finding;
use crate::model::text::shown;

/// The system's hypervisor, whose domains are checked in addition to those of the user's
/// connection.
const SYSTEM: &str = "qemu:///system";

/// Lists the files of the system's domains and, if the connection is to this machine, of its
/// domains.
pub fn all(link: &Link) -> Result<DomainFiles> {
    let mut found = DomainFiles::default();
    if link.location().is_local {
        of_link(link, &mut found)?;
    }
    if link.full_uri() != SYSTEM {
        match Link::open_read_only(Some(SYSTEM)) {
            Ok(system) => of_link(&system, &mut found)?,
            Err(_) if link.location().is_local => {}
            Err(error) => {
                let what = format!(
                    "a domain may use the file or device to be written: cannot list the domains of this machine: {error}"
                );
                found.findings.push(Finding::new("domains-not-known", what));
            }
        }
    }
    Ok(found)
}

fn of_link(link: &Link, found: &mut DomainFiles) -> Result<()> {
    let connection = link.connection()?;
    let handles = connection
        .list_all_domains(0)
        .map_err(failed("list the domains"))?;
    for handle in &handles {
        match of_domain(link, handle) {
            Ok(files) => found.files.extend(files),
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                let name = handle.get_name().unwrap_or_default();
                let what = format!(
                    "domain '{}' may use the file or device to be written: cannot list the domain's disks: {error}",
                    shown(&name)
                );
                found.findings.push(Finding::new("domains-not-known", what));
            }
        }
    }
    Ok(())
}

fn of_domain(link: &Link, handle: &Handle) -> Result<Vec<DomainFile>> {
    let describe = |flags| handle.get_xml_desc(flags).map_err(failed("describe the domain"));
    let domain = handle.get_name().map_err(failed("report the domain's name"))?;
    let is_active = inspect::is_active(handle)?;
    let mut sources = Vec::new();
    if is_active {
        // The images that are open now, including the targets of block jobs.
        sources.extend(
            read_sources(&describe(0)?)?
                .into_iter()
                .map(|source| (source, true)),
        );
    }
    let inactive = read_sources(&describe(sys::VIR_DOMAIN_XML_INACTIVE)?)?;
    let only_defined = inactive
        .into_iter()
        .filter(|source| !sources.iter().any(|(live, _)| live.place == source.place))
        .collect::<Vec<_>>();
    sources.extend(only_defined.into_iter().map(|source| (source, is_active)));
    let files = sources.into_iter().filter_map(|(source, is_active)| {
        let path = match &source.place {
            NamedPlace::Path(path) => Some(path.clone()),
            NamedPlace::Volume { pool, volume } => volume_path(link, pool, volume),
        };
        Some(DomainFile {
            domain: domain.clone(),
            is_active,
            role: source.role,
            path: path?,
            is_qcow2: source.is_qcow2,
        })
    });
    Ok(files.collect())
}

/// Returns the path of a volume; `None` if its pool is not active.
///
/// Without the path, a process that uses the volume is still found by its open descriptors.
fn volume_path(link: &Link, pool: &str, volume: &str) -> Option<std::path::PathBuf> {
    ffi::c_string(pool).ok()?;
    ffi::c_string(volume).ok()?;
    let pool = StoragePool::lookup_by_name(&link.connection().ok()?, pool).ok()?;
    let path = StorageVol::lookup_by_name(&pool, volume).ok()?.get_path().ok()?;
    path.starts_with('/').then(|| path.into())
}

fn is_gone(error: &crate::host::HostError) -> bool {
    let crate::host::HostError::Libvirt { code, .. } = error else {
        return false;
    };
    i64::from(*code) == i64::from(ErrorNumber::NoDomain.to_raw())
}
