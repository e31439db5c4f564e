//! Decides where restored files go.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use super::{Format, Options, Volume, io_cause, volume};
use crate::host::{Host, Pool, VolumeKind};
use crate::ops::{Cause, Error, Result};

/// The meaning of `--to`.
pub(super) enum Place {
    Dir {
        dir: PathBuf,
        new: bool,
    },
    File(PathBuf),
    Device(PathBuf),
    /// Volumes of a pool for a domain of this name.
    Pool {
        pool: Pool,
        name: String,
    },
}

/// Where a disk goes.
pub(super) struct DiskPlace {
    pub(super) to: PathBuf,
    pub(super) device: bool,
    pub(super) format: Format,
    pub(super) volume: Option<Volume>,
}

impl Place {
    pub(super) fn of(
        domain: &str,
        options: &Options,
        disks: usize,
        host: Option<&dyn Host>,
    ) -> Result<Place> {
        if let Some(pool) = &options.pool {
            return Place::of_pool(domain, pool, options, host);
        }
        let to = std::path::absolute(&options.to)
            .map_err(|source| Error::of(domain, io_cause("use", &options.to, source)))?;
        let single = |place: Place| {
            if disks == 1 {
                return Ok(place);
            }
            let what = format!(
                "{} can take only one disk; choose the disk with --disk",
                to.display()
            );
            Err(Error::of(domain, Cause::Usage(what)))
        };
        match to.metadata() {
            Ok(found) if found.is_dir() => Ok(Place::Dir { dir: to, new: false }),
            Ok(found) if found.file_type().is_block_device() => single(Place::Device(to.clone())),
            Ok(_) => Err(Error::of(domain, Cause::Exists(to))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let looks_like_a_file = to
                    .extension()
                    .is_some_and(|ending| ["qcow2", "raw", "img"].iter().any(|known| ending == *known));
                if looks_like_a_file {
                    single(Place::File(to.clone()))
                } else {
                    Ok(Place::Dir { dir: to, new: true })
                }
            }
            Err(source) => Err(Error::of(domain, io_cause("use", &to, source))),
        }
    }

    fn of_pool(domain: &str, pool: &str, options: &Options, host: Option<&dyn Host>) -> Result<Place> {
        let Some(host) = host else {
            let what = "a restore into a storage pool needs a hypervisor";
            return Err(Error::of(domain, Cause::Usage(what.to_owned())));
        };
        let pool = host.pool(pool).map_err(|error| Error::of(domain, error))?;
        let new_name = options.define.as_ref().and_then(|define| define.name.as_deref());
        Ok(Place::Pool {
            pool,
            name: new_name.unwrap_or(domain).to_owned(),
        })
    }

    /// The pool, if the disks become volumes.
    pub(super) fn pool(&self) -> Option<&Pool> {
        match self {
            Place::Pool { pool, .. } => Some(pool),
            _ => None,
        }
    }

    pub(super) fn new_dir(&self) -> Option<PathBuf> {
        match self {
            Place::Dir { dir, new: true } => Some(dir.clone()),
            _ => None,
        }
    }

    pub(super) fn of_disk(&self, target: &str, format: Option<Format>) -> DiskPlace {
        let place = |to: PathBuf, device: bool, format: Format| DiskPlace {
            to,
            device,
            format,
            volume: None,
        };
        match self {
            Place::Pool { pool, name } => {
                let device = pool.volumes == VolumeKind::Devices;
                let format = match device {
                    true => Format::Raw,
                    false => format.unwrap_or_default(),
                };
                let name = volume::name_of(name, target, pool.volumes, format.word());
                DiskPlace {
                    volume: Some(Volume {
                        pool: pool.name.clone(),
                        name: name.clone(),
                    }),
                    ..place(pool.folder.join(name), device, format)
                }
            }
            Place::Dir { dir, .. } => {
                let format = format.unwrap_or_default();
                place(dir.join(format!("{target}.{}", format.word())), false, format)
            }
            Place::File(path) => {
                let is_qcow2 = path.extension().is_some_and(|ending| ending == "qcow2");
                let by_name = if is_qcow2 { Format::Qcow2 } else { Format::Raw };
                place(path.clone(), false, format.unwrap_or(by_name))
            }
            Place::Device(path) => place(path.clone(), true, Format::Raw),
        }
    }
}
