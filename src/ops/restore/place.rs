//! Decides where restored files go.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use super::{Format, Options, io_cause};
use crate::ops::{Cause, Error, Result};

/// The meaning of `--to`.
pub(super) enum Place {
    Dir { dir: PathBuf, new: bool },
    File(PathBuf),
    Device(PathBuf),
}

impl Place {
    pub(super) fn of(domain: &str, options: &Options, disks: usize) -> Result<Place> {
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

    pub(super) fn new_dir(&self) -> Option<PathBuf> {
        match self {
            Place::Dir { dir, new: true } => Some(dir.clone()),
            _ => None,
        }
    }

    pub(super) fn of_disk(&self, target: &str, format: Option<Format>) -> (PathBuf, bool, Format) {
        match self {
            Place::Dir { dir, .. } => {
                let format = format.unwrap_or_default();
                (dir.join(format!("{target}.{}", format.word())), false, format)
            }
            Place::File(path) => {
                let is_qcow2 = path.extension().is_some_and(|ending| ending == "qcow2");
                let by_name = if is_qcow2 { Format::Qcow2 } else { Format::Raw };
                (path.clone(), false, format.unwrap_or(by_name))
            }
            Place::Device(path) => (path.clone(), true, Format::Raw),
        }
    }
}
