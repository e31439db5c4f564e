//! The policy: how many restore points stay, and for how long.

use std::fmt;

use jiff::{Span, Timestamp, Zoned};

/// A rule that keeps restore points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The newest ones, regardless of their times.
    Last,
    /// One of each hour.
    Hourly,
    /// One of each day.
    Daily,
    /// One of each ISO week, which begins on Monday.
    Weekly,
    /// One of each month.
    Monthly,
    /// One of each year.
    Yearly,
}

impl Rule {
    /// All rules, in restic's order.
    pub const ALL: [Rule; 6] = [
        Rule::Last,
        Rule::Hourly,
        Rule::Daily,
        Rule::Weekly,
        Rule::Monthly,
        Rule::Yearly,
    ];

    /// The word in the name of its switch, as in `--keep-daily`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Rule::Last => "last",
            Rule::Hourly => "hourly",
            Rule::Daily => "daily",
            Rule::Weekly => "weekly",
            Rule::Monthly => "monthly",
            Rule::Yearly => "yearly",
        }
    }
}

/// How many restore points a rule keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// At most this number; 0 disables the rule.
    AtMost(u32),
    /// No limit.
    Unlimited,
}

impl Default for Quota {
    fn default() -> Quota {
        Quota::AtMost(0)
    }
}

impl Quota {
    /// Whether the quota is used up.
    pub(crate) fn is_empty(self) -> bool {
        self == Quota::AtMost(0)
    }

    /// The remaining quota after the rule has kept one restore point.
    pub(super) fn less_one(self) -> Quota {
        match self {
            Quota::AtMost(number) => Quota::AtMost(number.saturating_sub(1)),
            Quota::Unlimited => Quota::Unlimited,
        }
    }
}

impl std::str::FromStr for Quota {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Quota, PolicyError> {
        match text {
            "unlimited" | "-1" => Ok(Quota::Unlimited),
            number => number.parse().map(Quota::AtMost).map_err(|_| PolicyError::Count),
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quota::AtMost(number) => write!(f, "{number}"),
            Quota::Unlimited => write!(f, "unlimited"),
        }
    }
}

/// A span before the newest restore point, in units of the calendar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Within {
    years: u32,
    months: u32,
    days: u32,
    hours: u32,
}

impl Within {
    /// The moment that is this span before `moment`; `None` if it is out of range.
    pub(super) fn before(self, moment: &Zoned) -> Option<Timestamp> {
        let span = Span::new().try_years(self.years).ok()?;
        let span = span.try_months(self.months).ok()?.try_days(self.days).ok()?;
        let earlier = moment.checked_sub(span).ok()?;
        // Hours are elapsed time, also across a change of the clocks.
        let hours = Span::new().try_hours(self.hours).ok()?;
        earlier.timestamp().checked_sub(hours).ok()
    }

    fn is_zero(self) -> bool {
        self == Within::default()
    }
}

impl std::str::FromStr for Within {
    type Err = PolicyError;

    /// Reads `1y6m2w7d12h`: years, months, weeks, days, hours, each at most once, at least one.
    fn from_str(text: &str) -> Result<Within, PolicyError> {
        const UNITS: [char; 5] = ['y', 'm', 'w', 'd', 'h'];
        let mut numbers = [0u32; UNITS.len()];
        let mut next = 0;
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .ok_or(PolicyError::Duration)?;
            let number = rest[..end].parse().map_err(|_| PolicyError::Duration)?;
            let mut units = UNITS.iter().enumerate().skip(next);
            let unit = units.find(|(_, unit)| rest[end..].starts_with(**unit));
            let (place, _) = unit.ok_or(PolicyError::Duration)?;
            numbers[place] = number;
            next = place + 1;
            rest = &rest[end + 1..];
        }
        let [years, months, weeks, days, hours] = numbers;
        let days = weeks.checked_mul(7).and_then(|more| days.checked_add(more));
        let days = days.filter(|_| !text.is_empty()).ok_or(PolicyError::Duration)?;
        Ok(Within {
            years,
            months,
            days,
            hours,
        })
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (self.years, 'y'),
            (self.months, 'm'),
            (self.days, 'd'),
            (self.hours, 'h'),
        ];
        let mut units = units.into_iter().filter(|(number, _)| *number > 0);
        units.try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

/// The error for an invalid value in a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The count is invalid.
    #[error("expected a whole number of at least 0, or 'unlimited' (the same as -1)")]
    Count,
    /// The duration is invalid.
    #[error("expected a duration like 14d or 1y6m2w7d12h (y years, m months, w weeks, d days, h hours)")]
    Duration,
}

/// The rules that decide which of a domain's restore points stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    quotas: [Quota; Rule::ALL.len()],
    /// Everything within this span before the newest restore point stays.
    pub within: Option<Within>,
}

impl Policy {
    /// Sets the quota of a rule.
    pub fn with(mut self, rule: Rule, quota: Quota) -> Policy {
        self.quotas[rule as usize] = quota;
        self
    }

    /// Sets the span within which everything stays; an empty span has no effect.
    pub fn with_within(mut self, within: Option<Within>) -> Policy {
        self.within = within.filter(|within| !within.is_zero());
        self
    }

    /// The quota of a rule.
    pub(crate) fn quota(&self, rule: Rule) -> Quota {
        self.quotas[rule as usize]
    }

    /// Whether the policy has no rule, so that it would keep nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.within.is_none() && self.quotas.iter().all(|quota| quota.is_empty())
    }
}

impl fmt::Display for Policy {
    /// As on the command line, without `--keep-`: `daily 7, within 14d`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = Rule::ALL.into_iter().filter(|rule| !self.quota(*rule).is_empty());
        let rules = rules.map(|rule| format!("{} {}", rule.word(), self.quota(rule)));
        let within = self.within.map(|within| format!("within {within}"));
        let words: Vec<String> = rules.chain(within).collect();
        write!(f, "{}", words.join(", "))
    }
}
