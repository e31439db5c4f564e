//! Keeps a domain's backups in one grouping: a second chain with another grouping begins only on
//! request.

use std::cmp::Reverse;

use super::{Cause, Error, Result};
use crate::model::finding::Finding;
use crate::model::period::{GroupBy, Period};
use crate::repo::{DomainRepository, History};

/// Refuses a grouping that differs from that of the domain's backups.
///
/// # Errors
/// The grouping differs ([`Cause::OtherGrouping`]), or the folder cannot be read.
pub(super) fn check(repository: &dyn DomainRepository, history: &History, wanted: GroupBy) -> Result<()> {
    let name = repository.name();
    let used = repository
        .used_periods()
        .map_err(|error| Error::of(name, error))?;
    let newest = history.chains.latest_in_periods();
    match other_grouping(newest.map(|kept| kept.point.period.as_str()), &used, wanted) {
        None => Ok(()),
        Some(existing) => {
            let cause = Cause::OtherGrouping {
                existing: existing.group_by().word(),
                wanted: wanted.word(),
                folder: existing.folder(),
            };
            Err(Error::of(name, cause))
        }
    }
}

/// The code of the finding that says that a backup with this grouping would be refused.
pub(super) const OTHER_GROUPING: &str = "other-grouping";

/// Returns a finding if a backup with the wanted grouping would be refused.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn finding(
    repository: &dyn DomainRepository,
    history: &History,
    wanted: GroupBy,
) -> Result<Option<Finding>> {
    let refused = match check(repository, history, wanted) {
        Ok(()) => return Ok(None),
        Err(error) => error,
    };
    let Cause::OtherGrouping { existing, .. } = &refused.cause else {
        return Err(refused);
    };
    let what = format!(
        "{}, so the backup needs --force; --group-by {existing} shows the next backup of the existing chain",
        refused.cause
    );
    Ok(Some(Finding::new(OTHER_GROUPING, what)))
}

/// Returns the period whose grouping differs from the wanted one, if there is one.
///
/// The newest restore point decides. If none can be read, the newest of the `used` folders decides,
/// unless one of them has the wanted grouping.
fn other_grouping(newest: Option<&str>, used: &[String], wanted: GroupBy) -> Option<Period> {
    if let Some(newest) = newest {
        return Period::of_folder(newest).filter(|period| period.group_by() != wanted);
    }
    let mut periods: Vec<Period> = used.iter().filter_map(|name| Period::of_folder(name)).collect();
    if periods.iter().any(|period| period.group_by() == wanted) {
        return None;
    }
    periods.sort_by_key(|period| Reverse(period.start()));
    periods.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(newest: Option<&str>, used: &[&str], wanted: GroupBy) -> Option<String> {
        let used: Vec<String> = used.iter().map(|name| (*name).to_owned()).collect();
        other_grouping(newest, &used, wanted).map(Period::folder)
    }

    const MONTH: &str = "vmsnap-backup-monthly-2026-11";
    const YEAR: &str = "vmsnap-backup-yearly-2025";

    #[test]
    fn the_newest_restore_point_decides() {
        assert_eq!(other(Some(MONTH), &[MONTH, YEAR], GroupBy::Month), None);
        assert_eq!(
            other(Some(MONTH), &[MONTH, YEAR], GroupBy::Year).as_deref(),
            Some(MONTH)
        );
        assert_eq!(other(Some("vmsnap-backup-by-hand"), &[], GroupBy::Year), None);
    }

    #[test]
    fn without_a_readable_restore_point_the_folders_decide() {
        assert_eq!(other(None, &[], GroupBy::Year), None);
        assert_eq!(other(None, &[YEAR, MONTH], GroupBy::Year), None);
        assert_eq!(
            other(None, &[YEAR, MONTH, "vmsnap-backup-x"], GroupBy::Quarter).as_deref(),
            Some(MONTH)
        );
    }
}
