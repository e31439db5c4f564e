//! Locates the volumes of storage pools through libvirt.

use virt::error::ErrorNumber;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt_sys as sys;

use super::link::Link;
use super::{HostError, Result, failed, ffi};
use crate::model::domain::Source;
use crate::model::storage::Volume;

/// Returns the location of a volume. The inner error gives the reason why the location is unknown
/// and, in most cases, the remedy.
pub fn place(link: &Link, volume: &Volume) -> Result<std::result::Result<Source, String>> {
    let Volume {
        pool, volume: name, ..
    } = volume;
    for text in [pool, name] {
        // The bindings cannot take a NUL byte, and XML cannot hold one.
        ffi::c_string(text).map_err(failed("look up a storage volume"))?;
    }
    let connection = link.connection()?;
    let found = match StoragePool::lookup_by_name(&connection, pool) {
        Ok(found) => found,
        Err(error) if error.code() == ErrorNumber::NoStoragePool => {
            return Ok(Err(format!(
                "the storage pool '{pool}' of the disk's volume is not defined: define and start the pool"
            )));
        }
        Err(error) => return Ok(Err(unknown(pool, name, error.message()))),
    };
    if !found
        .is_active()
        .map_err(failed(format!("examine the storage pool {pool}")))?
    {
        return Ok(Err(format!(
            "the storage pool '{pool}' of the disk's volume is not active: start the pool (virsh pool-start)"
        )));
    }
    let volume = match StorageVol::lookup_by_name(&found, name) {
        Ok(volume) => volume,
        Err(error) if error.code() == ErrorNumber::NoStorageVolume => {
            return Ok(Err(format!(
                "the storage pool '{pool}' has no volume '{name}': refresh the pool (virsh pool-refresh)"
            )));
        }
        Err(error) => return Ok(Err(unknown(pool, name, error.message()))),
    };
    let read =
        |error: virt::error::Error| -> HostError { failed(format!("examine the volume {name}"))(error) };
    let path = volume.get_path().map_err(read)?;
    let kind = volume.get_info().map_err(read)?.kind;
    Ok(match kind {
        kind if kind == sys::VIR_STORAGE_VOL_FILE => Ok(Source::File(path.into())),
        kind if kind == sys::VIR_STORAGE_VOL_BLOCK => Ok(Source::Block(path.into())),
        _ => Err(format!(
            "only the domain's own QEMU can read the volume {pool}/{name}, because the volume is neither a file nor a \
             block device of this machine: back the disk up while the domain runs"
        )),
    })
}

fn unknown(pool: &str, name: &str, why: &str) -> String {
    format!("libvirt cannot locate the volume {pool}/{name}: {why}")
}
