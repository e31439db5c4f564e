//! Creates and deletes volumes of storage pools.

use std::path::PathBuf;
use std::time::Duration;

use virt::error::ErrorNumber;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;

use super::link::Link;
use super::{NewVolume, Pool, Refusal, Result, failed, ffi, inspect};
use crate::host::VolumeKind;
use crate::host::xml::{read_pool, write_volume};
use crate::wait;

/// How long a volume may be busy before its deletion is given up: udev looks at a new device, and
/// another program may work in the pool.
const BUSY: Duration = Duration::from_secs(10);
/// Time between two tries.
const STEP: Duration = Duration::from_millis(200);

/// Describes a pool in which volumes can be created.
pub fn describe(link: &Link, name: &str) -> Result<Pool> {
    if !link.location().is_local {
        return Err(inspect::not_here("its storage pools"));
    }
    let pool = find(link, name)?;
    let examine = || format!("examine the storage pool {name}");
    if !pool.is_active().map_err(failed(examine()))? {
        let name = name.to_owned();
        return Err(Refusal::PoolNotActive { name }.into());
    }
    let xml = pool.get_xml_desc(0).map_err(failed(examine()))?;
    let found = read_pool(&xml)?;
    let volumes = match found.kind.as_str() {
        "dir" | "fs" | "netfs" => VolumeKind::Files,
        "logical" => VolumeKind::Devices,
        _ => {
            let (name, kind) = (name.to_owned(), found.kind);
            return Err(Refusal::UnsuitablePool { name, kind }.into());
        }
    };
    let Some(folder) = found.target else {
        let name = name.to_owned();
        return Err(Refusal::PoolWithoutPath { name }.into());
    };
    // libvirt looks at a pool only when it is refreshed.
    let free_now = match volumes {
        VolumeKind::Files => rustix::fs::statvfs(&folder).ok(),
        VolumeKind::Devices => None,
    };
    let free_now = free_now.map(|found| found.f_bavail.saturating_mul(found.f_frsize));
    Ok(Pool {
        name: name.to_owned(),
        volumes,
        folder,
        available: free_now.or(found.available).unwrap_or(u64::MAX),
    })
}

/// Whether a pool has a volume of this name.
pub fn has_volume(link: &Link, pool: &str, name: &str) -> Result<bool> {
    let pool = find(link, pool)?;
    Ok(volume(&pool, name)?.is_some())
}

/// Creates a volume.
pub fn create_volume(link: &Link, volume: &NewVolume) -> Result<PathBuf> {
    let operation = || format!("create the volume {}", volume.name);
    let pool = find(link, &volume.pool)?;
    let xml = write_volume(&volume.name, volume.size, volume.format, volume.allocates);
    ffi::c_string(&xml).map_err(failed(operation()))?;
    let created = StorageVol::create_xml(&pool, &xml, 0).map_err(failed(operation()))?;
    let path = created.get_path().map_err(failed(operation()))?;
    Ok(path.into())
}

/// Deletes a volume. A missing one is not an error.
pub fn delete_volume(link: &Link, pool: &str, name: &str) -> Result<()> {
    let pool = find(link, pool)?;
    let mut refused = None;
    let deleted = wait::until(BUSY, STEP, || match volume(&pool, name) {
        Ok(None) => Some(Ok(())),
        Err(error) => Some(Err(error)),
        Ok(Some(found)) => match found.delete(0) {
            Ok(_) => Some(Ok(())),
            Err(error) => {
                refused = Some(error);
                None
            }
        },
    });
    match (deleted, refused) {
        (Some(deleted), _) => deleted,
        (None, Some(error)) => Err(failed(format!("delete the volume {name}"))(error)),
        (None, None) => Ok(()),
    }
}

/// Refreshes a pool. Waits a few seconds for other work in it.
pub fn refresh(link: &Link, pool: &str) -> Result<()> {
    let found = find(link, pool)?;
    let mut refused = None;
    let refreshed = wait::until(BUSY, STEP, || match found.refresh(0) {
        Ok(_) => Some(()),
        Err(error) => {
            refused = Some(error);
            None
        }
    });
    match (refreshed, refused) {
        (None, Some(error)) => Err(failed(format!("refresh the storage pool {pool}"))(error)),
        _ => Ok(()),
    }
}

fn find(link: &Link, name: &str) -> Result<StoragePool> {
    let operation = || format!("look up the storage pool {name}");
    // The bindings cannot take a NUL byte.
    ffi::c_string(name).map_err(failed(operation()))?;
    match StoragePool::lookup_by_name(&link.connection()?, name) {
        Ok(pool) => Ok(pool),
        Err(error) if error.code() == ErrorNumber::NoStoragePool => {
            let name = name.to_owned();
            Err(Refusal::NoSuchPool { name }.into())
        }
        Err(error) => Err(failed(operation())(error)),
    }
}

fn volume(pool: &StoragePool, name: &str) -> Result<Option<StorageVol>> {
    let operation = || format!("look up the volume {name}");
    ffi::c_string(name).map_err(failed(operation()))?;
    match StorageVol::lookup_by_name(pool, name) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.code() == ErrorNumber::NoStorageVolume => Ok(None),
        Err(error) => Err(failed(operation())(error)),
    }
}
