//! Storage pools of the simulated hypervisor: folders of the test, with real files.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use super::{SimHost, simulated};
use crate::host::{HostError, NewVolume, Pool, Refusal, Result, VolumeKind};

/// The size of a device is a multiple of this number of bytes.
const UNIT: u64 = 1 << 20;

/// A pool, and the volumes that the hypervisor knows.
#[derive(Clone)]
pub(super) struct SimPool {
    pool: Pool,
    is_active: bool,
    volumes: BTreeSet<String>,
}

impl SimHost {
    /// Adds an active pool whose volumes have their paths in `folder`, which exists.
    pub fn add_pool(&self, name: &str, volumes: VolumeKind, folder: &Path, available: u64) {
        let pool = Pool {
            name: name.to_owned(),
            volumes,
            folder: folder.to_owned(),
            available,
        };
        let found = SimPool {
            pool,
            is_active: true,
            volumes: names_in(folder),
        };
        self.state().pools.insert(name.to_owned(), found);
    }

    /// Stops a pool.
    pub fn stop_pool(&self, name: &str) {
        if let Some(found) = self.state().pools.get_mut(name) {
            found.is_active = false;
        }
    }

    /// The volumes of a pool that the hypervisor knows.
    pub fn volumes(&self, pool: &str) -> Vec<String> {
        let state = self.state();
        let found = state.pools.get(pool);
        found.map_or_else(Vec::new, |found| found.volumes.iter().cloned().collect())
    }

    /// Sets the folder with the UEFI variables of domains.
    pub fn set_nvram_folder(&self, folder: &Path) {
        self.state().nvram_folder = Some(folder.to_owned());
    }

    fn in_pool<T>(&self, name: &str, work: impl FnOnce(&mut SimPool) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        let found = state.pools.get_mut(name);
        let name = name.to_owned();
        let found = found.ok_or(HostError::Refused(Refusal::NoSuchPool { name: name.clone() }))?;
        match found.is_active {
            true => work(found),
            false => Err(Refusal::PoolNotActive { name }.into()),
        }
    }

    pub(super) fn describe_pool(&self, name: &str) -> Result<Pool> {
        self.in_pool(name, |found| Ok(found.pool.clone()))
    }

    pub(super) fn knows_volume(&self, pool: &str, name: &str) -> Result<bool> {
        self.in_pool(pool, |found| Ok(found.volumes.contains(name)))
    }

    pub(super) fn make_volume(&self, volume: &NewVolume) -> Result<PathBuf> {
        self.in_pool(&volume.pool, |found| {
            let path = found.pool.folder.join(&volume.name);
            let made = OpenOptions::new().write(true).create_new(true).open(&path);
            let file = made.map_err(|error| HostError::io("create", &path, error))?;
            // The pool has content for a new image; a device has old content and its whole size.
            let filled = match found.pool.volumes {
                VolumeKind::Files => std::fs::write(&path, "an empty image"),
                VolumeKind::Devices => std::fs::write(&path, vec![0xaa; rounded(volume.size)]),
            };
            drop(file);
            filled.map_err(|error| HostError::io("create", &path, error))?;
            found.volumes.insert(volume.name.clone());
            Ok(path)
        })
    }

    pub(super) fn drop_volume(&self, pool: &str, name: &str) -> Result<()> {
        self.in_pool(pool, |found| {
            if !found.volumes.remove(name) {
                return Err(simulated("delete the volume", "there is none"));
            }
            let path = found.pool.folder.join(name);
            std::fs::remove_file(&path).map_err(|error| HostError::io("remove", &path, error))
        })
    }

    pub(super) fn look_at_pool(&self, pool: &str) -> Result<()> {
        self.in_pool(pool, |found| {
            found.volumes = names_in(&found.pool.folder);
            Ok(())
        })
    }
}

/// The size of a device for a disk, in bytes: a pool has a unit.
fn rounded(size: u64) -> usize {
    size.next_multiple_of(UNIT) as usize
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}
