//! Reads which clusters of an export changed and which hold data, without reading the disk.

use std::path::Path;

use super::client::Client;
use super::error::{Error, Result};
use super::wire;
use crate::model::block::CLUSTER;
use crate::model::clusters::{ClusterSet, DiskMap};
use crate::model::extents::Run;
use crate::model::stop::WaitLimit;

/// The longest range of one status request, in bytes: it fits a signed 32-bit number.
const LONGEST: u64 = (2 << 30) - CLUSTER;

/// Reads the status of the whole export.
///
/// `bitmap_context` is `qemu:dirty-bitmap:NAME`; without it no cluster counts as changed. Without
/// `base:allocation` every cluster counts as data.
///
/// # Errors
/// [`Error::ContextMissing`] if the server does not grant the bitmap, [`Error::TooLarge`] if the
/// export is too large, [`Error::Server`] if the status cannot be read; others as for
/// [`Client::connect_unix`].
pub(crate) fn disk_map(
    path: &Path,
    export: &str,
    bitmap_context: Option<&str>,
    limit: &WaitLimit,
) -> Result<DiskMap> {
    let mut wanted = vec![wire::BASE_ALLOCATION];
    wanted.extend(bitmap_context);
    let mut client = Client::connect_unix(path, export, &wanted, limit)?;
    let context = |name: &str| client.contexts().iter().position(|context| context.name == name);
    let zero = context(wire::BASE_ALLOCATION);
    let dirty = match bitmap_context {
        None => None,
        Some(name) => Some(context(name).ok_or_else(|| Error::ContextMissing {
            export: export.to_owned(),
            context: name.to_owned(),
        })?),
    };
    let size = client.size();
    if size > ClusterSet::LARGEST_DISK {
        let most = ClusterSet::LARGEST_DISK;
        return Err(Error::TooLarge { size, most });
    }
    let mut map = DiskMap {
        changed: ClusterSet::new(size),
        data: ClusterSet::new(size),
    };
    if zero.is_none() {
        map.data.add(0, size);
    }
    if zero.is_none() && dirty.is_none() {
        return Ok(map);
    }
    let alignment = u64::from(client.block_sizes().minimum);
    let mut position = 0;
    while position < size {
        let length = LONGEST.min(size - position);
        let status = client.block_status(position, length)?;
        // Contexts may cover ranges of different lengths: their common part is used, the rest is
        // requested again.
        let length_of = |runs: &[Run]| runs.iter().map(|run| run.length).sum::<u64>();
        let common = status
            .iter()
            .map(|runs| length_of(runs))
            .min()
            .unwrap_or(0)
            .min(length);
        let mut end = position + common;
        if end != size {
            end -= end % alignment;
        }
        if end <= position {
            return Err(Error::protocol(format!(
                "the status at offset {position} covers less than the minimum block size"
            )));
        }
        if let Some(zero) = zero {
            add(&mut map.data, &status[zero], position, end, |flags| {
                flags & wire::STATE_ZERO == 0
            });
        }
        if let Some(dirty) = dirty {
            add(&mut map.changed, &status[dirty], position, end, |flags| {
                flags & wire::STATE_DIRTY != 0
            });
        }
        position = end;
    }
    Ok(map)
}

fn add(set: &mut ClusterSet, runs: &[Run], start: u64, end: u64, is_in: impl Fn(u32) -> bool) {
    let mut at = start;
    for run in runs {
        let stop = at.saturating_add(run.length).min(end);
        if is_in(run.flags) && stop > at {
            set.add(at, stop - at);
        }
        at = stop;
    }
}
