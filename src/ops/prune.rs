//! Deletes the previous period once the current one can stand alone.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::model::chain::{Chains, KeptPoint};
use crate::model::finding::Finding;
use crate::model::period::{GroupBy, Period};
use crate::ops::{Error, Result};
use crate::repo::{DomainRepository, DomainWriter};

/// The plan of pruning a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrunePlan {
    /// Deletes this period.
    Delete {
        /// The period.
        period: String,
        /// The location of the period.
        location: String,
    },
    /// Deletes nothing, for this reason.
    Keep(String),
}

/// Decides what pruning may delete on the day `today`.
///
/// Only the previous period of this grouping can be deleted. None of its restore points may be
/// pinned or needed by another period. The current period has to be past its midpoint. The newest
/// restore point of the current period has to be whole, without suspected damage, of the same
/// domain, and has to hold every disk that the newest restore point of the previous period holds.
/// (The chain of a whole restore point contains a whole full backup.) Nothing is deleted while a
/// restore point is dated in the future.
pub fn plan(repository: &dyn DomainRepository, chains: &Chains, group_by: GroupBy, today: Date) -> PrunePlan {
    let current = Period::containing(group_by, today);
    let Some(previous) = current.previous().map(Period::folder) else {
        return PrunePlan::Keep("there is no period before the current one".to_owned());
    };
    let usage = repository.period_usage(&previous);
    if !usage.exists {
        return PrunePlan::Keep(format!("there is no {previous}"));
    }
    if let Err(why) = may_go(chains, current, &previous, today) {
        return PrunePlan::Keep(format!("{previous} stays: {why}"));
    }
    PrunePlan::Delete {
        period: previous,
        location: usage.location,
    }
}

/// Checks whether the period before `current` may go; an error is the reason why not.
fn may_go(chains: &Chains, current: Period, previous: &str, today: Date) -> std::result::Result<(), String> {
    let folder = current.folder();
    if !current.is_past_middle(today) {
        return Err(format!("{folder} is not past its midpoint yet"));
    }
    if let Some(later) = chains.in_periods().find(|kept| is_later(kept, today)) {
        return Err(format!(
            "restore point {} is dated later than today: the clock is or was wrong",
            later.point.id
        ));
    }
    let newest_of = |period: &str| {
        chains
            .points()
            .iter()
            .rev()
            .find(|kept| kept.point.period == *period)
    };
    let Some(newest) = newest_of(&folder) else {
        return Err(format!("{folder} holds no restore point"));
    };
    if let Some(fault) = chains.faults(&newest.point.id).first() {
        return Err(format!(
            "the newest restore point of {folder} is not whole: {fault}"
        ));
    }
    if let Some(damage) = chains.any_suspected_damage(&newest.point.id) {
        return Err(format!(
            "the newest restore point of {folder} is damaged: {damage}"
        ));
    }
    if let Some(pinned) = pinned_in(chains, previous) {
        return Err(format!("restore point {} is pinned", pinned.point.id));
    }
    if let Some((child, parent)) = dependent_on(chains, previous) {
        return Err(format!(
            "restore point {child} of another period depends on restore point {parent}"
        ));
    }
    let Some(before) = newest_of(previous) else {
        return Ok(());
    };
    if before.point.uuid != newest.point.uuid {
        return Err(format!(
            "{previous} belongs to another domain with the same name (UUID {})",
            before.point.uuid
        ));
    }
    match before
        .point
        .disks
        .iter()
        .find(|disk| newest.point.disk(&disk.target).is_none())
    {
        Some(disk) => Err(format!(
            "disk {} is not in the newest restore point of {folder}",
            disk.target
        )),
        None => Ok(()),
    }
}

/// Finds a restore point outside the period that depends on one inside it. Returns the ids of both.
fn dependent_on<'a>(chains: &'a Chains, period: &str) -> Option<(&'a str, &'a str)> {
    let others = chains.points().iter().filter(|kept| kept.point.period != period);
    let parents = others.flat_map(|kept| {
        let parents = chains.parents(&kept.point);
        parents.map(move |(_, parent)| (kept.point.id.as_str(), parent))
    });
    let mut of_period = parents.filter_map(|(child, parent)| {
        let parent = chains.get(parent)?;
        (parent.point.period == period).then_some((child, parent.point.id.as_str()))
    });
    of_period.next()
}

/// Returns a finding if the previous period was due to be deleted, but stays because one of its
/// restore points is pinned.
pub(super) fn pinned(chains: &Chains, group_by: GroupBy, today: Date) -> Option<Finding> {
    let current = Period::containing(group_by, today);
    let previous = current.previous().filter(|_| current.is_past_middle(today))?;
    let folder = previous.folder();
    let pinned = pinned_in(chains, &folder)?;
    let what = format!("{folder} stays: restore point {} is pinned", pinned.point.id);
    Some(Finding::new("period-pinned", what))
}

/// A pinned restore point of a period. The whole period stays because of it.
fn pinned_in<'a>(chains: &'a Chains, period: &str) -> Option<&'a KeptPoint> {
    let mut points = chains.points().iter();
    points.find(|kept| kept.point.period == period && kept.pin.is_some())
}

/// Whether the restore point is dated after today in every time zone.
fn is_later(kept: &KeptPoint, today: Date) -> bool {
    let day = kept.point.time.to_zoned(TimeZone::UTC).date();
    today.tomorrow().is_ok_and(|tomorrow| day > tomorrow)
}

/// Carries out a plan, under the same lock under which it was made.
pub fn carry_out(domain: &str, locked: &dyn DomainWriter, plan: &PrunePlan, now: Timestamp) -> Result<()> {
    match plan {
        PrunePlan::Keep(_) => Ok(()),
        PrunePlan::Delete { period, .. } => locked
            .remove_period(period, now)
            .map_err(|error| Error::of(domain, error)),
    }
}
