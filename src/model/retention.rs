//! Decides which restore points a policy keeps. A pure function: it takes restore points, a policy
//! and a moment, and returns a decision for each restore point.
//!
//! The rules are those of `restic forget`. They go through the restore points from the newest to
//! the oldest. A rule such as "daily 7" keeps the newest of each day until it has kept seven. If it
//! has kept fewer when it reaches the oldest, it keeps the oldest too. `within` keeps everything in
//! a span before the newest. A restore point stays if any rule keeps it.
//!
//! Additions to restic's rules only keep more. A damaged restore point does not count for a rule.
//! Pinned restore points and copies stay, and so do the newest restore points of the domain, of
//! each current period and of each disk. A restore point that no rule keeps, but on which a kept
//! one depends, is merged into that one. Where that cannot be done it stays.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::DateTime;
use jiff::{Timestamp, Zoned};

use super::period::{GroupBy, Period};

mod policy;

pub use policy::{Policy, PolicyError, Quota, Rule, Within};

/// A restore point with the facts that a policy needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its id.
    pub id: String,
    /// Its number in the order of commits.
    pub sequence: u64,
    /// The UUID of its domain. A domain that was created again under the same name has another
    /// UUID, and the policy applies to each separately.
    pub uuid: String,
    /// The moment that it shows.
    pub time: Timestamp,
    /// The folder of its period.
    pub period: String,
    /// The targets of its disks.
    pub disks: Vec<String>,
    /// The ids of the restore points that its images depend on, each a direct parent.
    pub parents: Vec<String>,
    /// Whether it is a standalone copy, which no policy removes.
    pub is_copy: bool,
    /// Whether it is pinned.
    pub is_pinned: bool,
    /// Whether it can be restored completely, as far as is known.
    pub is_intact: bool,
}

/// Why a restore point stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// A rule keeps it: as one of the last, or as the newest of its hour, day and so on.
    Rule(Rule),
    /// A rule with quota left keeps it, because it is the oldest restore point.
    Oldest(Rule),
    /// It is within the policy's span before the newest restore point.
    Within,
    /// It is pinned.
    Pinned,
    /// It is a standalone copy.
    Copy,
    /// It is the newest restore point of its domain, or of a current period.
    Newest,
    /// It is the newest restore point with this disk.
    NewestOfDisk(String),
    /// It is the newest intact restore point with this disk.
    NewestIntactOfDisk(String),
    /// It is held back, because no restore point of its domain may be removed now.
    HeldBack,
}

/// The decision about a restore point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It stays, for at least one reason.
    Keep(Vec<KeepReason>),
    /// No rule keeps it, but it stays because a kept restore point depends on it.
    Needed {
        /// The id of the oldest kept restore point that depends on it.
        by: String,
    },
    /// It is removed, and merged into a restore point that needs its data.
    Merge {
        /// The id of that restore point.
        into: String,
    },
    /// It is removed.
    Remove,
}

/// Decides about each of these restore points of one domain name, in their order. `now` determines
/// the current periods and the time zone in which days and hours are counted.
pub(crate) fn decide(points: &[Candidate], policy: &Policy, now: &Zoned) -> Vec<Decision> {
    let mut reasons: Vec<Vec<KeepReason>> = vec![Vec::new(); points.len()];
    for domain in domains(points) {
        keep_by_policy(points, &domain, policy, now, &mut reasons);
        keep_what_always_stays(points, &domain, now, &mut reasons);
    }
    for (point, reasons) in points.iter().zip(&mut reasons) {
        if point.is_pinned {
            reasons.push(KeepReason::Pinned);
        }
        if point.is_copy {
            reasons.push(KeepReason::Copy);
        }
    }
    let kept: Vec<bool> = reasons.iter().map(|reasons| !reasons.is_empty()).collect();
    let needed = needed_by(points, &kept);
    let merged = merged_into(points, &kept, &needed);
    let decision = |(point, reasons): (&Candidate, Vec<KeepReason>)| match needed.get(&point.id) {
        _ if !reasons.is_empty() => Decision::Keep(reasons),
        Some(by) => match merged.get(point.id.as_str()) {
            Some(into) => Decision::Merge {
                into: (*into).to_owned(),
            },
            None => Decision::Needed { by: (*by).to_owned() },
        },
        None => Decision::Remove,
    };
    points.iter().zip(reasons).map(decision).collect()
}

/// The restore points that can be merged, each with the id of the one into which it goes. Such a
/// restore point has exactly one child among those that stay or are merged themselves.
fn merged_into<'a>(
    points: &'a [Candidate],
    kept: &[bool],
    needed: &BTreeMap<String, &str>,
) -> BTreeMap<&'a str, &'a str> {
    let mut kept_or_needed: Vec<(&Candidate, bool)> = points
        .iter()
        .zip(kept)
        .map(|(point, is_kept)| (point, *is_kept))
        .filter(|(point, is_kept)| *is_kept || needed.contains_key(&point.id))
        .collect();
    let mut children: BTreeMap<&str, Vec<&Candidate>> = BTreeMap::new();
    for (child, _) in &kept_or_needed {
        let parents: BTreeSet<&str> = child.parents.iter().map(String::as_str).collect();
        for parent in parents {
            children.entry(parent).or_default().push(child);
        }
    }
    // Newest first: where a child goes is known before its parent.
    kept_or_needed.sort_by_key(|(point, _)| std::cmp::Reverse(point.sequence));
    let mut merged: BTreeMap<&str, &str> = BTreeMap::new();
    for (point, _) in kept_or_needed.iter().filter(|(_, is_kept)| !is_kept) {
        let [child] = children.get(point.id.as_str()).map_or(&[][..], Vec::as_slice) else {
            continue;
        };
        let is_possible = point.is_intact && child.is_intact && !child.is_copy && child.uuid == point.uuid;
        if is_possible {
            let into = merged.get(child.id.as_str()).copied().unwrap_or(&child.id);
            merged.insert(&point.id, into);
        }
    }
    merged
}

/// The indexes of the restore points of each domain UUID, newest first, without copies.
fn domains(points: &[Candidate]) -> Vec<Vec<usize>> {
    let mut domains: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, point) in points.iter().enumerate().filter(|(_, point)| !point.is_copy) {
        domains.entry(&point.uuid).or_default().push(place);
    }
    let newest_first = |mut places: Vec<usize>| {
        places.sort_by_key(|place| {
            let point = &points[*place];
            std::cmp::Reverse((point.time, point.sequence))
        });
        places
    };
    domains.into_values().map(newest_first).collect()
}

/// Applies restic's rules to restore points that are given newest first.
fn keep_by_policy(
    points: &[Candidate],
    newest_first: &[usize],
    policy: &Policy,
    now: &Zoned,
    reasons: &mut [Vec<KeepReason>],
) {
    let zone = now.time_zone();
    let Some(newest) = newest_first.first() else {
        return;
    };
    let newest = points[*newest].time.to_zoned(zone.clone());
    let cutoff = policy.within.map(|within| within.before(&newest));
    // A damaged restore point is kept beside its substitute, and never counts as the oldest.
    let oldest = newest_first.iter().rposition(|place| points[*place].is_intact);
    let oldest = oldest.unwrap_or(newest_first.len() - 1);
    let mut left: [(Quota, Option<Bucket>); Rule::ALL.len()] =
        Rule::ALL.map(|rule| (policy.quota(rule), None));
    for (number, place) in newest_first.iter().enumerate() {
        let point = &points[*place];
        let local = point.time.to_zoned(zone.clone()).datetime();
        for (rule, (quota, last)) in Rule::ALL.into_iter().zip(&mut left) {
            if quota.is_empty() {
                continue;
            }
            let bucket = Bucket::of(rule, local, number);
            let is_first = *last != Some(bucket);
            if !is_first && number < oldest {
                continue;
            }
            reasons[*place].push(match is_first {
                true => KeepReason::Rule(rule),
                false => KeepReason::Oldest(rule),
            });
            if point.is_intact {
                *quota = quota.less_one();
                *last = Some(bucket);
            }
        }
        if cutoff.is_some_and(|cutoff| cutoff.is_none_or(|cutoff| point.time > cutoff)) {
            reasons[*place].push(KeepReason::Within);
        }
    }
}

/// The hour, day, week, month or year of a restore point in the local calendar, or its number for
/// `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket(i64);

impl Bucket {
    fn of(rule: Rule, local: DateTime, number: usize) -> Bucket {
        let (year, month) = (i64::from(local.year()), i64::from(local.month()));
        let (day, hour) = (i64::from(local.day()), i64::from(local.hour()));
        Bucket(match rule {
            Rule::Last => number as i64,
            Rule::Hourly => ((year * 100 + month) * 100 + day) * 100 + hour,
            Rule::Daily => (year * 100 + month) * 100 + day,
            Rule::Weekly => {
                let week = local.date().iso_week_date();
                i64::from(week.year()) * 100 + i64::from(week.week())
            }
            Rule::Monthly => year * 100 + month,
            Rule::Yearly => year,
        })
    }
}

/// Keeps the restore points that no policy may remove: the newest of a domain, the newest of each
/// current period (the next backup may depend on it), and the newest with each disk.
fn keep_what_always_stays(
    points: &[Candidate],
    places: &[usize],
    now: &Zoned,
    reasons: &mut [Vec<KeepReason>],
) {
    let newest = |of: &dyn Fn(&Candidate) -> bool| {
        let places = places.iter().copied().filter(|place| of(&points[*place]));
        places.max_by_key(|place| points[*place].sequence)
    };
    let mut keep = |place: Option<usize>, reason: KeepReason| {
        if let Some(reasons) = place.map(|place| &mut reasons[place])
            && reasons.is_empty()
        {
            reasons.push(reason);
        }
    };
    keep(newest(&|_| true), KeepReason::Newest);
    for group_by in GroupBy::ALL {
        let period = Period::containing(group_by, now.date()).folder();
        keep(newest(&|point| point.period == period), KeepReason::Newest);
    }
    let disks: BTreeSet<&String> = places.iter().flat_map(|place| &points[*place].disks).collect();
    for disk in disks {
        let holds = |point: &Candidate| point.disks.contains(disk);
        let intact = newest(&|point| point.is_intact && holds(point));
        keep(newest(&holds), KeepReason::NewestOfDisk(disk.clone()));
        keep(intact, KeepReason::NewestIntactOfDisk(disk.clone()));
    }
}

/// The ids of the restore points on which a kept restore point depends, each with the id of the
/// oldest kept restore point that depends on it.
fn needed_by<'a>(points: &'a [Candidate], kept: &[bool]) -> BTreeMap<String, &'a str> {
    let by_id: BTreeMap<&str, &Candidate> = points.iter().map(|point| (point.id.as_str(), point)).collect();
    let mut oldest_first: Vec<&Candidate> = points
        .iter()
        .zip(kept)
        .filter(|(_, is_kept)| **is_kept)
        .map(|(point, _)| point)
        .collect();
    oldest_first.sort_by_key(|point| point.sequence);
    let mut needed: BTreeMap<String, &str> = BTreeMap::new();
    for point in oldest_first {
        let mut parents: Vec<&String> = point.parents.iter().collect();
        while let Some(parent) = parents.pop() {
            if needed.contains_key(parent) {
                continue;
            }
            needed.insert(parent.clone(), &point.id);
            parents.extend(by_id.get(parent.as_str()).iter().flat_map(|found| &found.parents));
        }
    }
    needed
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
