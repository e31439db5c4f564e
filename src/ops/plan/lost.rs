//! Finds checkpoints whose records libvirt has lost: a transient domain was made again, or a domain
//! was redefined or migrated. Their bitmaps may still be in the images.

use super::Inputs;
use crate::model::chain::KeptPoint;
use crate::model::checkpoint::{Bitmap, Checkpoint, CheckpointDisk, CheckpointId, is_unique, mark_of_point};
use crate::model::level::{DiskNow, decide};

/// Returns the lost checkpoints whose restore points are possible parents and whose bitmaps are
/// known to be in the images, oldest first.
pub fn seen(inputs: &Inputs<'_>) -> Vec<Checkpoint> {
    let lost = recorded(inputs).filter(|(_, id)| is_lost(inputs, id));
    let checkpoints = lost.map(|(kept, id)| {
        let holds = |target: &str| {
            let mut facts = inputs.disks.iter();
            let facts = facts.find(|facts| facts.target == target);
            facts.is_some_and(|facts| facts.bitmaps.contains(&id.name))
        };
        checkpoint(inputs, kept, id, holds)
    });
    checkpoints
        .filter(|checkpoint| !checkpoint.disks.is_empty())
        .collect()
}

/// Finds the newest checkpoint whose restore point could be a parent. Returns it if libvirt no
/// longer lists it although its bitmaps may still exist: QEMU keeps bitmaps that were made since
/// the domain started in memory, so no image shows them. The returned checkpoint names only those
/// of `disks` that could be backed up incrementally from it.
///
/// `known` are the names of the checkpoints that libvirt lists and of those that [`seen`] returned.
/// `disks` are the disks that are about to be backed up.
pub fn suspected(inputs: &Inputs<'_>, known: &[Checkpoint], disks: &[DiskNow]) -> Option<Checkpoint> {
    if !inputs.domain.state.is_active() {
        return None;
    }
    let (kept, id) = recorded(inputs).last()?;
    if !is_lost(inputs, id) || known.iter().any(|known| known.name == id.name) {
        return None;
    }
    let mut with_it = known.to_vec();
    with_it.push(checkpoint(inputs, kept, id, |_| true));
    let (uuid, chains) = (&inputs.domain.uuid, inputs.chains);
    let is_parent = |target: &str| {
        let mut disks = disks.iter();
        let disk = disks.find(|disk| disk.target == target);
        let level = disk.map(|disk| decide(disk, uuid, (inputs.period, inputs.full), chains, &with_it));
        level
            .and_then(|level| level.parent)
            .is_some_and(|parent| parent.checkpoint == id.name)
    };
    Some(checkpoint(inputs, kept, id, is_parent)).filter(|checkpoint| !checkpoint.disks.is_empty())
}

/// Returns the restore points that the next one may depend on, with their checkpoints, oldest
/// first.
fn recorded<'a>(inputs: &Inputs<'a>) -> impl Iterator<Item = (&'a KeptPoint, &'a CheckpointId)> {
    let (period, rule, uuid) = (inputs.period, inputs.full, &inputs.domain.uuid);
    let points = inputs.chains.points().iter();
    points
        .filter(move |kept| rule.allows(period, kept) && kept.point.uuid == *uuid)
        .filter_map(|kept| Some((kept, kept.point.checkpoint.as_ref()?)))
}

fn is_lost(inputs: &Inputs<'_>, id: &CheckpointId) -> bool {
    let is_listed = inputs.checkpoints.iter().any(|listed| listed.name == id.name);
    is_unique(&id.name) && !is_listed && !inputs.missing.contains(&id.name)
}

/// Builds the checkpoint to register again, on the disks that `covers` accepts.
fn checkpoint(
    inputs: &Inputs<'_>,
    kept: &KeptPoint,
    id: &CheckpointId,
    covers: impl Fn(&str) -> bool,
) -> Checkpoint {
    let point = &kept.point;
    let disks = point.disks.iter();
    let covered = disks.filter(|disk| disk.checkpointed && covers(&disk.target));
    Checkpoint {
        name: id.name.clone(),
        created: id.created,
        mark: Some(mark_of_point(&point.id, inputs.repository)),
        disks: covered
            .map(|disk| CheckpointDisk {
                target: disk.target.clone(),
                bitmap: Bitmap::Sound,
                dirty_bytes: None,
            })
            .collect(),
    }
}
