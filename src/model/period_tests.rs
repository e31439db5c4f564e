//! Compares periods with an independent calendar: day by day and, in zones with clock changes, half
//! hour by half hour.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use proptest::prelude::*;

use super::*;

/// Years of every kind: leap years, common years, a century that is a leap year and one that is
/// not.
const YEARS: [std::ops::RangeInclusive<i16>; 3] = [1999..=2001, 2010..=2030, 2099..=2101];

/// Zones of every kind: with clock changes, with a skipped day (30 December 2011), with days that
/// lack midnight (two), at both ends of the day, and with changes of half an hour.
const ZONES: [(&str, i16); 9] = [
    ("Europe/Berlin", 2024),
    ("America/New_York", 2024),
    ("Pacific/Apia", 2011),
    ("America/Sao_Paulo", 2018),
    ("Asia/Beirut", 2023),
    ("Pacific/Kiritimati", 2024),
    ("Etc/GMT+12", 2024),
    ("Australia/Lord_Howe", 2024),
    ("UTC", 2000),
];

/// The folder names by the description of the classic interface, computed independently.
fn naive_folder(by: GroupBy, year: i16, month: i8) -> String {
    match by {
        GroupBy::Month => format!("vmsnap-backup-monthly-{year}-{month:02}"),
        GroupBy::Quarter => {
            let quarter = ["Q1", "Q2", "Q3", "Q4"][usize::try_from(month - 1).expect("a month") / 3];
            format!("vmsnap-backup-quarterly-{year}-{quarter}")
        }
        GroupBy::BiAnnual => {
            let half = if month <= 6 { "p1" } else { "p2" };
            format!("vmsnap-backup-bi-annually-{year}-{half}")
        }
        GroupBy::Year => format!("vmsnap-backup-yearly-{year}"),
    }
}

fn naive_mark(by: GroupBy) -> u32 {
    match by {
        GroupBy::Month => 15,
        GroupBy::Quarter => 45,
        GroupBy::BiAnnual => 90,
        GroupBy::Year => 180,
    }
}

fn naive_month_length(year: i16, month: i8) -> i8 {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Follows the calendar day by day: the current folder, the previous one, and the days since the
/// last change.
struct Watcher {
    by: GroupBy,
    folder: String,
    before: Option<String>,
    days: u32,
    /// Whether it has seen the first day of the folder: only then is `days` right.
    counts: bool,
}

impl Watcher {
    fn all(year: i16, month: i8) -> [Watcher; 4] {
        GroupBy::ALL.map(|by| Watcher {
            by,
            folder: naive_folder(by, year, month),
            before: None,
            days: 0,
            counts: false,
        })
    }

    fn next_day(&mut self, year: i16, month: i8) {
        let folder = naive_folder(self.by, year, month);
        self.days += 1;
        if folder != self.folder {
            self.before = Some(std::mem::replace(&mut self.folder, folder));
            self.days = 0;
            self.counts = true;
        }
    }

    fn agrees(&self, day: Date) {
        let period = Period::containing(self.by, day);
        assert_eq!(period.folder(), self.folder, "{day}");
        if let Some(before) = &self.before {
            let previous = period.previous().expect("far from the calendar's beginning");
            assert_eq!(&previous.folder(), before, "{day}");
        }
        if self.counts {
            let past = self.days >= naive_mark(self.by);
            assert_eq!(period.is_past_middle(day), past, "{:?} {day}", self.by);
        }
    }
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).expect("tzdata is installed")
}

#[test]
fn folders_are_spelt_the_classic_way() {
    let day = date(2024, 11, 17);
    let folders = GroupBy::ALL.map(|by| Period::containing(by, day).folder());
    assert_eq!(
        folders,
        [
            "vmsnap-backup-monthly-2024-11",
            "vmsnap-backup-quarterly-2024-Q4",
            "vmsnap-backup-bi-annually-2024-p2",
            "vmsnap-backup-yearly-2024",
        ]
    );
}

#[test]
fn folder_predecessor_and_midpoint_side_hold_for_every_day() {
    let mut days = 0;
    for years in YEARS {
        // Starts in December, so that each watcher sees the first of January.
        let mut watchers = Watcher::all(years.start() - 1, 12);
        for year in years {
            for month in 1..=12 {
                for number in 1..=naive_month_length(year, month) {
                    let day = date(year, month, number);
                    for watcher in &mut watchers {
                        watcher.next_day(year, month);
                        watcher.agrees(day);
                    }
                    days += 1;
                }
            }
        }
    }
    // 27 years with leap days in 2000, 2012, 2016, 2020, 2024 and 2028, and none in 2100.
    assert_eq!(days, 27 * 365 + 6);
}

#[test]
fn the_middle_mark_is_reached_on_these_days() {
    let first_past = |by: GroupBy, start: Date| {
        let period = Period::containing(by, start);
        assert_eq!(period.start(), start);
        let mut days = start.series(jiff::Span::new().days(1));
        days.find(|day| period.is_past_middle(*day)).expect("it comes")
    };
    for (by, start, mark) in [
        (GroupBy::Month, date(2024, 2, 1), date(2024, 2, 16)),
        (GroupBy::Month, date(2023, 2, 1), date(2023, 2, 16)),
        (GroupBy::Quarter, date(2024, 1, 1), date(2024, 2, 15)),
        (GroupBy::Quarter, date(2024, 10, 1), date(2024, 11, 15)),
        (GroupBy::BiAnnual, date(2024, 1, 1), date(2024, 3, 31)),
        (GroupBy::BiAnnual, date(2023, 1, 1), date(2023, 4, 1)),
        (GroupBy::BiAnnual, date(2100, 1, 1), date(2100, 4, 1)),
        (GroupBy::BiAnnual, date(2023, 7, 1), date(2023, 9, 29)),
        (GroupBy::Year, date(2024, 1, 1), date(2024, 6, 29)),
        (GroupBy::Year, date(2023, 1, 1), date(2023, 6, 30)),
        (GroupBy::Year, date(2000, 1, 1), date(2000, 6, 29)),
    ] {
        assert_eq!(first_past(by, start), mark, "{by:?}");
    }
}

/// Guards against two faults of the classic program: a midpoint of the half-year that is always
/// past, and a wrong previous folder on 28 to 30 June.
#[test]
fn half_year_midpoint_and_predecessor_are_right_in_june() {
    let half = |day| Period::containing(GroupBy::BiAnnual, day);
    for day in [
        date(2024, 1, 1),
        date(2024, 3, 30),
        date(2024, 7, 1),
        date(2024, 9, 28),
    ] {
        assert!(!half(day).is_past_middle(day), "{day}");
    }
    for number in 26..=30 {
        let day = date(2024, 6, number);
        assert!(half(day).is_past_middle(day), "{day}");
        let before = half(day).previous().expect("in range");
        assert_eq!(before.folder(), "vmsnap-backup-bi-annually-2023-p2", "{day}");
    }
    let after = half(date(2024, 7, 1)).previous().expect("in range");
    assert_eq!(after.folder(), "vmsnap-backup-bi-annually-2024-p1");
}

/// Steps by half an hour through a year and those before and after it. The folder follows local
/// time, and each date counts as one day, however many hours it has.
#[test]
fn folder_follows_local_time_across_clock_changes() {
    for (name, year) in ZONES {
        let zone = zone(name);
        let mut now = date(year - 1, 12, 31)
            .at(12, 0, 0, 0)
            .to_zoned(zone)
            .expect("a moment");
        let mut watchers = Watcher::all(now.year(), now.month());
        let mut shown = now.date();
        while now.year() <= year + 1 {
            // The formatted local time, which does not depend on `Period`.
            let wall = now.strftime("%Y %m").to_string();
            let (wall_year, wall_month) = wall.split_once(' ').expect("two numbers");
            let wall_year = wall_year.parse().expect("a year");
            let wall_month = wall_month.parse().expect("a month");
            if now.date() != shown {
                shown = now.date();
                for watcher in &mut watchers {
                    watcher.next_day(wall_year, wall_month);
                }
            }
            for watcher in &watchers {
                watcher.agrees(now.date());
            }
            now = now.checked_add(SignedDuration::from_mins(30)).expect("in range");
        }
    }
}

#[test]
fn days_without_midnight_and_skipped_days_are_handled() {
    let folder = |by, text: &str| {
        let now: Zoned = text.parse().expect("a time");
        Period::containing(by, now.date()).folder()
    };
    // 4 November 2018 began at 01:00.
    assert_eq!(
        folder(GroupBy::Month, "2018-11-04T01:00:00-02:00[America/Sao_Paulo]"),
        "vmsnap-backup-monthly-2018-11"
    );
    let before: Zoned = "2018-11-03T23:59:59-03:00[America/Sao_Paulo]"
        .parse()
        .expect("a time");
    let after = before
        .checked_add(SignedDuration::from_secs(1))
        .expect("in range");
    assert_eq!(after.date(), date(2018, 11, 4));
    // 29 December 2011 was followed by 31 December and a new year.
    let eve: Zoned = "2011-12-29T23:59:59-10:00[Pacific/Apia]".parse().expect("a time");
    let next = eve.checked_add(SignedDuration::from_secs(1)).expect("in range");
    assert_eq!(next.date(), date(2011, 12, 31));
    for by in GroupBy::ALL {
        assert_eq!(
            Period::containing(by, next.date()),
            Period::containing(by, eve.date())
        );
        let new_year = next
            .checked_add(SignedDuration::from_hours(24))
            .expect("in range");
        let period = Period::containing(by, new_year.date());
        assert_eq!(period.start(), date(2012, 1, 1));
        assert_eq!(period.previous(), Some(Period::containing(by, eve.date())));
    }
}

#[test]
fn at_the_same_moment_zones_may_be_in_different_periods() {
    let moment: Timestamp = "2024-12-31T11:00:00Z".parse().expect("a time");
    let year = |name| {
        let now = moment.to_zoned(zone(name));
        Period::containing(GroupBy::Year, now.date()).folder()
    };
    assert_eq!(year("Pacific/Kiritimati"), "vmsnap-backup-yearly-2025");
    assert_eq!(year("Europe/Berlin"), "vmsnap-backup-yearly-2024");
    assert_eq!(year("Etc/GMT+12"), "vmsnap-backup-yearly-2024");
}

proptest! {
    /// At any moment in any zone, the day lies in its period and in no other, and periods follow
    /// each other without a gap.
    #[test]
    fn periods_tile_the_calendar(seconds in 0_i64..7_000_000_000, place in 0..ZONES.len()) {
        let now = Timestamp::from_second(seconds).expect("in range").to_zoned(zone(ZONES[place].0));
        let day = now.date();
        for by in GroupBy::ALL {
            let period = Period::containing(by, day);
            let previous = period.previous().expect("in range");
            prop_assert!(period.start() <= day);
            prop_assert_eq!(period.folder(), naive_folder(by, day.year(), day.month()));
            prop_assert_eq!(Period::containing(by, period.start()), period);
            prop_assert_eq!(Period::containing(by, period.start().yesterday().expect("in range")), previous);
            prop_assert!(previous.start() < period.start());
            prop_assert!(!period.is_past_middle(period.start()));
            prop_assert!(previous.is_past_middle(day) , "the previous period is past its midpoint");
        }
    }
}
