//! Chooses the restore point and the disks that the user means.

use jiff::Timestamp;

use crate::model::chain::{KeptPoint, LostPoint};
use crate::model::restore_point::{RestorePoint, id_of};
use crate::model::text::shown;
use crate::ops::{Cause, Error, Result};
use crate::repo::History;

/// Returns the restore point that the user means with `at`.
pub(in crate::ops) fn choose<'a>(domain: &str, history: &'a History, at: &str) -> Result<&'a KeptPoint> {
    let chains = &history.chains;
    let none = |what: String| Error::of(domain, Cause::NoSuchRestorePoint(what));
    if chains.points().is_empty() && chains.lost_after("").next().is_none() {
        return Err(Error::of(domain, Cause::NoRestorePoints));
    }
    let newest_first = || chains.points().iter().rev();
    if at == "latest" {
        let latest = chains.latest();
        let mut lost = chains.lost_after(latest.map_or("", |kept| &kept.point.id));
        return match lost.next() {
            Some(lost) => Err(cannot_be_read(domain, lost)),
            None => latest.ok_or_else(|| none("there are no restore points".to_owned())),
        };
    }
    if let Some(kept) = chains.get(at) {
        return Ok(kept);
    }
    if let Some(lost) = chains.lost(at) {
        return Err(cannot_be_read(domain, lost));
    }
    if let Some(removed) = chains.removed().find(|removed| removed.id == at) {
        let day = removed.removed;
        return Err(none(format!("restore point {at} was removed on {day}")));
    }
    let has_checkpoint = |kept: &&KeptPoint| {
        kept.point
            .checkpoint
            .as_ref()
            .is_some_and(|found| found.name == at)
    };
    if let Some(kept) = newest_first().find(has_checkpoint) {
        return Ok(kept);
    }
    if let Ok(time) = at.parse::<Timestamp>() {
        let nearest = newest_first()
            .filter(|kept| kept.point.time <= time)
            .max_by_key(|kept| kept.point.time)
            .ok_or_else(|| none(format!("there is no restore point at or before {at}")))?;
        let until = id_of(time);
        let mut lost = chains.lost_after(&nearest.point.id);
        return match lost.find(|lost| lost.id <= until) {
            Some(lost) => Err(cannot_be_read(domain, lost)),
            None => Ok(nearest),
        };
    }
    // Only its manifest shows which restore point a checkpoint belongs to.
    if let Some(lost) = chains.lost_after("").last() {
        let what = format!(
            "'{}' may be a checkpoint of this restore point, but {}",
            shown(at),
            lost.what
        );
        let lost = LostPoint { what, ..lost.clone() };
        return Err(cannot_be_read(domain, &lost));
    }
    Err(none(format!(
        "'{}' is neither the id of a restore point, nor a checkpoint of one, nor a time like 2026-11-01T02:00:00Z",
        shown(at)
    )))
}

/// Creates the error for a lost restore point. No older one is used instead: the user gets the
/// requested moment or the reason why not.
fn cannot_be_read(domain: &str, lost: &LostPoint) -> Error {
    let (id, what) = (lost.id.clone(), lost.what.clone());
    let cause = match lost.is_newer {
        true => Cause::WrittenByANewerVmsnap { id, what },
        false => Cause::NotWhole { id, fault: what },
    };
    Error::of(domain, cause)
}

/// Returns the targets of the disks that the user means, each once.
pub(in crate::ops) fn chosen_targets(
    domain: &str,
    point: &RestorePoint,
    wanted: &[String],
) -> Result<Vec<String>> {
    if wanted.is_empty() {
        return Ok(point.disks.iter().map(|disk| disk.target.clone()).collect());
    }
    let mut targets = Vec::new();
    for target in wanted {
        if point.disk(target).is_none() {
            let there: Vec<&str> = point.disks.iter().map(|disk| disk.target.as_str()).collect();
            let what = format!(
                "restore point {} holds no disk {target}, only {}",
                point.id,
                there.join(", ")
            );
            return Err(Error::of(domain, Cause::NoSuchRestorePoint(what)));
        }
        if !targets.contains(target) {
            targets.push(target.clone());
        }
    }
    Ok(targets)
}
