//! Deletes the period before the current one, once the current one has come far enough to stand alone.

use std::path::PathBuf;

use jiff::civil::Date;

use crate::model::chain::Chains;
use crate::model::period::{GroupBy, Period};
use crate::model::restore_point::Level;
use crate::ops::{Error, Result};
use crate::repo::{DomainRepository, LockedDomain};

/// What pruning a domain would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrunePlan {
    /// Deletes this period's folder.
    Delete {
        /// The period.
        period: String,
        /// Its folder.
        dir: PathBuf,
    },
    /// Deletes nothing, for this reason.
    Keep(String),
}

/// Decides what pruning may delete on the day `today`: exactly the previous period of this grouping, and only when the current one has
/// reached its middle mark and holds a full restore point that is whole.
pub fn plan(repository: &DomainRepository, chains: &Chains, group_by: GroupBy, today: Date) -> PrunePlan {
    let current = Period::containing(group_by, today);
    let Some(previous) = current.previous().map(Period::folder) else {
        return PrunePlan::Keep("there is no period before this one".to_owned());
    };
    let Some(dir) = repository.period_dir(&previous) else {
        return PrunePlan::Keep(format!("there is no {previous}"));
    };
    if let Err(why) = may_go(chains, current, today) {
        return PrunePlan::Keep(format!("{previous} stays: {why}"));
    }
    PrunePlan::Delete {
        period: previous,
        dir,
    }
}

/// Why the period before `current` has to stay.
fn may_go(chains: &Chains, current: Period, today: Date) -> std::result::Result<(), String> {
    let folder = current.folder();
    if !current.is_past_middle(today) {
        return Err(format!("the middle of {folder} has not come yet"));
    }
    let in_current = chains.points().iter().filter(|kept| kept.point.period == folder);
    let mut full = in_current.filter(|kept| kept.point.level == Level::Full);
    if full.any(|kept| chains.faults(&kept.point.id).is_empty()) {
        Ok(())
    } else {
        Err(format!("{folder} holds no full restore point that is whole"))
    }
}

/// Carries a plan out, under the lock under which it was made.
pub fn carry_out(domain: &str, locked: &LockedDomain, plan: &PrunePlan) -> Result<()> {
    match plan {
        PrunePlan::Keep(_) => Ok(()),
        PrunePlan::Delete { period, .. } => locked
            .remove_period(period)
            .map_err(|error| Error::of(domain, error)),
    }
}
