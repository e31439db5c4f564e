//! Deletes the previous period once the current one can stand alone.

use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::model::chain::{Chains, KeptPoint};
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
        /// Where it is.
        location: String,
    },
    /// Deletes nothing, for this reason.
    Keep(String),
}

/// Decides what pruning may delete on the day `today`.
///
/// Only the previous period of this grouping can go. The current period has to be past its
/// midpoint. Its newest restore point has to be whole, without suspected damage, of the same
/// domain, and has to hold every disk that the newest one of the previous period holds. (The chain
/// of a whole restore point contains a whole full backup.)
pub fn plan(repository: &dyn DomainRepository, chains: &Chains, group_by: GroupBy, today: Date) -> PrunePlan {
    let current = Period::containing(group_by, today);
    let Some(previous) = current.previous().map(Period::folder) else {
        return PrunePlan::Keep("there is no period before this one".to_owned());
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
            "restore point {} is dated later than today: the clock is wrong, or was wrong then",
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
    let Some(before) = newest_of(previous) else {
        return Ok(());
    };
    if before.point.uuid != newest.point.uuid {
        return Err(format!(
            "it belongs to another domain of that name (UUID {})",
            before.point.uuid
        ));
    }
    match before
        .point
        .disks
        .iter()
        .find(|disk| newest.point.disk(&disk.target).is_none())
    {
        Some(disk) => Err(format!("disk {} is in no newer restore point", disk.target)),
        None => Ok(()),
    }
}

/// Whether it is dated after today in every time zone.
fn is_later(kept: &KeptPoint, today: Date) -> bool {
    let day = kept.point.time.to_zoned(TimeZone::UTC).date();
    today.tomorrow().is_ok_and(|tomorrow| day > tomorrow)
}

/// Carries a plan out, under the lock under which it was made.
pub fn carry_out(domain: &str, locked: &dyn DomainWriter, plan: &PrunePlan) -> Result<()> {
    match plan {
        PrunePlan::Keep(_) => Ok(()),
        PrunePlan::Delete { period, .. } => locked
            .remove_period(period)
            .map_err(|error| Error::of(domain, error)),
    }
}
