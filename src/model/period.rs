//! The calendar spans whose restore points share a folder.

use jiff::civil::{Date, date};

/// How restore points are grouped into periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GroupBy {
    /// A calendar month.
    #[default]
    Month,
    /// Three months from January, April, July or October.
    Quarter,
    /// Half a year from January or July.
    BiAnnual,
    /// A calendar year.
    Year,
}

impl GroupBy {
    /// All groupings, shortest first.
    pub const ALL: [GroupBy; 4] = [GroupBy::Month, GroupBy::Quarter, GroupBy::BiAnnual, GroupBy::Year];

    /// The word for the grouping on the command line.
    pub fn word(self) -> &'static str {
        match self {
            GroupBy::Month => "month",
            GroupBy::Quarter => "quarter",
            GroupBy::BiAnnual => "bi-annual",
            GroupBy::Year => "year",
        }
    }

    /// The grouping for this word of the command line.
    pub(crate) fn from_word(word: &str) -> Option<GroupBy> {
        GroupBy::ALL.into_iter().find(|by| by.word() == word)
    }

    /// Whole days from the period's start to its midpoint. From then on pruning may delete the
    /// previous period.
    pub(crate) fn middle_mark_days(self) -> i32 {
        match self {
            GroupBy::Month => 15,
            GroupBy::Quarter => 45,
            GroupBy::BiAnnual => 90,
            GroupBy::Year => 180,
        }
    }

    /// The word for it in folder names.
    fn stem(self) -> &'static str {
        match self {
            GroupBy::Month => "monthly",
            GroupBy::Quarter => "quarterly",
            GroupBy::BiAnnual => "bi-annually",
            GroupBy::Year => "yearly",
        }
    }

    fn months(self) -> i8 {
        match self {
            GroupBy::Month => 1,
            GroupBy::Quarter => 3,
            GroupBy::BiAnnual => 6,
            GroupBy::Year => 12,
        }
    }
}

/// One period: a grouping and the day it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period {
    group_by: GroupBy,
    start: Date,
}

impl Period {
    /// The period that contains `day` (local time, as in the classic program).
    pub(crate) fn containing(group_by: GroupBy, day: Date) -> Period {
        let months = group_by.months();
        let first_month = (day.month() - 1) / months * months + 1;
        Period {
            group_by,
            start: date(day.year(), first_month, 1),
        }
    }

    /// The period of this folder; `None` for any other name.
    pub(crate) fn of_folder(folder: &str) -> Option<Period> {
        let rest = folder.strip_prefix(FOLDER_PREFIX)?;
        GroupBy::ALL.into_iter().find_map(|group_by| {
            let suffix = rest.strip_prefix(group_by.stem())?.strip_prefix('-')?;
            let (year, part) = suffix.split_once('-').unwrap_or((suffix, "1"));
            let number: i8 = part.trim_start_matches(['Q', 'p']).parse().ok()?;
            let month = number
                .checked_sub(1)?
                .checked_mul(group_by.months())?
                .checked_add(1)?;
            let start = Date::new(year.parse().ok()?, month, 1).ok()?;
            // Accept only the spelling that `folder` produces.
            Some(Period { group_by, start }).filter(|period| period.folder() == folder)
        })
    }

    /// The grouping.
    pub fn group_by(self) -> GroupBy {
        self.group_by
    }

    /// The period just before this one, of the same grouping. `None` only at the calendar's
    /// beginning.
    pub(crate) fn previous(self) -> Option<Period> {
        let day_before = self.start.yesterday().ok()?;
        Some(Period::containing(self.group_by, day_before))
    }

    /// The first day.
    pub fn start(self) -> Date {
        self.start
    }

    /// Whether `day` is the period's midpoint or later. Days of the calendar are counted, not
    /// hours, so the midpoint keeps its date despite clock changes and days without midnight.
    pub(crate) fn is_past_middle(self, day: Date) -> bool {
        let days = (day - self.start).get_days();
        days >= self.group_by.middle_mark_days()
    }

    /// The folder's name, spelt as in the classic program.
    pub fn folder(self) -> String {
        let year = self.start.year();
        let month = self.start.month();
        let suffix = match self.group_by {
            GroupBy::Month => format!("{year:04}-{month:02}"),
            GroupBy::Quarter => format!("{year:04}-Q{}", (month - 1) / 3 + 1),
            GroupBy::BiAnnual => format!("{year:04}-p{}", (month - 1) / 6 + 1),
            GroupBy::Year => format!("{year:04}"),
        };
        format!("{FOLDER_PREFIX}{}-{suffix}", self.group_by.stem())
    }
}

/// The prefix of every period folder.
pub(crate) const FOLDER_PREFIX: &str = "vmsnap-backup-";

/// The prefix of the folder of a standalone copy; the copy's id follows.
pub(crate) const COPY_PREFIX: &str = "vmsnap-copy-";

/// Whether a folder of this name may hold restore points, because it belongs to a period or a
/// standalone copy.
pub(crate) fn holds_restore_points(folder: &str) -> bool {
    folder.starts_with(FOLDER_PREFIX) || folder.starts_with(COPY_PREFIX)
}

#[cfg(test)]
#[path = "period_tests.rs"]
mod tests;
