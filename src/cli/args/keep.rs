//! The switches of a retention policy.

use clap::Args;

use crate::ops::retention::{Policy, Quota, Rule, Within};

/// The switches of a retention policy. They have the same names as in restic.
#[derive(Debug, Args)]
pub struct KeepArgs {
    /// Keep the newest N restore points. Here and below, N is a number, or 'unlimited' (same as -1)
    #[arg(
        help_heading = "What to keep",
        long,
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub keep_last: Option<Quota>,

    /// Keep one restore point for each of the newest N hours, its newest
    #[arg(
        help_heading = "What to keep",
        long,
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub keep_hourly: Option<Quota>,

    /// Keep one restore point for each of the newest N days, its newest
    #[arg(
        help_heading = "What to keep",
        long,
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub keep_daily: Option<Quota>,

    /// Keep one for each of the newest N weeks, which begin on Monday
    #[arg(
        help_heading = "What to keep",
        long,
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub keep_weekly: Option<Quota>,

    /// Keep one restore point for each of the newest N months, its newest
    #[arg(
        help_heading = "What to keep",
        long,
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub keep_monthly: Option<Quota>,

    /// Keep one restore point for each of the newest N years, its newest
    #[arg(
        help_heading = "What to keep",
        long,
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub keep_yearly: Option<Quota>,

    /// Keep all restore points within this duration before the newest one: 14d, 1y6m2w7d12h
    /// (m: months)
    #[arg(help_heading = "What to keep", long, value_name = "DURATION")]
    pub keep_within: Option<Within>,
}

impl KeepArgs {
    /// The policy; `None` if no switch is given.
    pub(crate) fn policy(&self) -> Option<Policy> {
        let quotas: [(Rule, Option<Quota>); Rule::ALL.len()] = [
            (Rule::Last, self.keep_last),
            (Rule::Hourly, self.keep_hourly),
            (Rule::Daily, self.keep_daily),
            (Rule::Weekly, self.keep_weekly),
            (Rule::Monthly, self.keep_monthly),
            (Rule::Yearly, self.keep_yearly),
        ];
        if quotas.iter().all(|(_, quota)| quota.is_none()) && self.keep_within.is_none() {
            return None;
        }
        let policy = quotas
            .into_iter()
            .fold(Policy::default(), |policy, (rule, quota)| {
                policy.with(rule, quota.unwrap_or_default())
            });
        Some(policy.with_within(self.keep_within))
    }
}
