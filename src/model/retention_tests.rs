//! Compares policies with restic, and tests their rules.

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;

const BERLIN: &str = "Europe/Berlin";

fn zone() -> TimeZone {
    TimeZone::get(BERLIN).expect("a known zone")
}

fn at(time: Timestamp) -> Zoned {
    time.to_zoned(zone())
}

/// A full restore point of a domain with one disk.
fn point(number: usize, time: Timestamp) -> Candidate {
    Candidate {
        id: format!("{number}"),
        sequence: number as u64 + 1,
        uuid: "a".to_owned(),
        time,
        period: "vmsnap-backup-yearly-1999".to_owned(),
        disks: vec!["vda".to_owned()],
        parents: Vec::new(),
        is_copy: false,
        is_pinned: false,
        is_intact: true,
    }
}

/// Full restore points at these moments in Berlin.
fn points(times: &[&str]) -> Vec<Candidate> {
    let moment = |time: &&str| {
        let time: DateTime = time.parse().expect("a time");
        time.to_zoned(zone()).expect("a time in Berlin").timestamp()
    };
    times
        .iter()
        .enumerate()
        .map(|(number, time)| point(number, moment(time)))
        .collect()
}

fn daily(number: u32) -> Policy {
    Policy::default().with(Rule::Daily, Quota::AtMost(number))
}

fn decided(points: &[Candidate], policy: &Policy) -> Vec<Decision> {
    let newest = points.iter().map(|point| point.time).max();
    decide(points, policy, &at(newest.unwrap_or_default()))
}

/// The ids of the kept restore points, each with the reasons.
fn kept(points: &[Candidate], policy: &Policy) -> Vec<(String, Vec<KeepReason>)> {
    let decisions = points.iter().zip(decided(points, policy));
    let kept = decisions.filter_map(|(point, decision)| match decision {
        Decision::Keep(reasons) => Some((point.id.clone(), reasons)),
        _ => None,
    });
    kept.collect()
}

fn removed(points: &[Candidate], policy: &Policy) -> Vec<String> {
    let decisions = points.iter().zip(decided(points, policy));
    let removed = decisions.filter(|(_, decision)| *decision == Decision::Remove);
    removed.map(|(point, _)| point.id.clone()).collect()
}

/// A policy as on restic's command line.
fn policy(words: &str) -> Policy {
    let words: Vec<&str> = words.split_whitespace().collect();
    let pairs = words.chunks(2).map(|pair| (pair[0], pair[1]));
    pairs.fold(Policy::default(), |policy, (switch, value)| {
        let word = switch.strip_prefix("--keep-").expect("a rule");
        if word == "within" {
            return policy.with_within(Some(value.parse().expect("a duration")));
        }
        let rule = Rule::ALL.into_iter().find(|rule| rule.word() == word);
        policy.with(rule.expect("a rule"), value.parse().expect("a number"))
    })
}

/// One restore point that restic keeps: its number, and the letters of the rules.
fn kept_by_restic(word: &str) -> (usize, String) {
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    (digits.parse().expect("a number"), word[digits.len()..].to_owned())
}

fn letter(reason: &KeepReason) -> Option<char> {
    match reason {
        KeepReason::Rule(Rule::Last) => Some('L'),
        KeepReason::Rule(rule) => rule.word().chars().next(),
        KeepReason::Within => Some('i'),
        // restic 0.14 has no such rule; later versions do.
        _ => None,
    }
}

#[test]
fn restic_keeps_the_same_for_the_same_reasons() {
    let data = include_str!("../../tests/data/retention/restic.txt");
    let lines: Vec<&str> = data.lines().filter(|line| !line.starts_with('#')).collect();
    let times = lines.iter().filter(|line| line.starts_with("20"));
    let times = times.map(|line| line.parse().expect("a time"));
    let points: Vec<Candidate> = times
        .enumerate()
        .map(|(number, time)| point(number, time))
        .collect();
    assert_eq!(points.len(), 162);
    let mut policies = 0;
    let restic = lines.iter().skip(points.len());
    for pair in restic.collect::<Vec<_>>().chunks(2) {
        let expected: Vec<(usize, String)> = pair[1].split_whitespace().map(kept_by_restic).collect();
        let decisions = decided(&points, &policy(pair[0]));
        let found = decisions.iter().enumerate().filter_map(|(number, decision)| {
            let Decision::Keep(reasons) = decision else {
                return None;
            };
            let letters: String = reasons.iter().filter_map(letter).collect();
            (!letters.is_empty()).then_some((number, letters))
        });
        let sorted = |kept: Vec<(usize, String)>| -> Vec<(usize, Vec<char>)> {
            let sorted = |letters: String| {
                let mut letters: Vec<char> = letters.chars().collect();
                letters.sort_unstable();
                letters
            };
            let kept = kept.into_iter();
            kept.map(|(number, letters)| (number, sorted(letters))).collect()
        };
        assert_eq!(sorted(found.collect()), sorted(expected), "{}", pair[0]);
        policies += 1;
    }
    assert_eq!(policies, 34);
}

#[test]
fn a_rule_with_places_left_keeps_the_oldest() {
    let points = points(&[
        "2026-11-01 01:00",
        "2026-11-01 02:00",
        "2026-11-01 03:00",
        "2026-11-02 03:00",
        "2026-11-02 04:00",
    ]);
    let ids = |kept: Vec<(String, Vec<KeepReason>)>| -> Vec<String> {
        kept.into_iter().map(|(id, _)| id).collect()
    };
    assert_eq!(ids(kept(&points, &daily(2))), ["2", "4"], "no place is left");
    let three = kept(&points, &daily(3));
    assert_eq!(three[0], ("0".to_owned(), vec![KeepReason::Oldest(Rule::Daily)]));
    assert_eq!(ids(three), ["0", "2", "4"]);
    let unlimited = Policy::default().with(Rule::Monthly, Quota::Unlimited);
    assert_eq!(ids(kept(&points, &unlimited)), ["0", "4"]);
}

#[test]
fn hours_are_those_of_the_clock_on_the_wall() {
    // The clock shows 02:30 twice, so restic counts these two hours as one; in spring no hour is
    // counted between 01:30 and 03:30.
    let hour = Timestamp::from_second(1_792_884_600).expect("in range");
    let hours = [0, 1, 2, 3].map(|hours| hour + jiff::Span::new().hours(hours));
    let times: Vec<String> = hours.map(|time| at(time).strftime("%H:%M").to_string()).into();
    assert_eq!(times, ["01:30", "02:30", "02:30", "03:30"]);
    let autumn: Vec<Candidate> = hours
        .into_iter()
        .enumerate()
        .map(|(n, time)| point(n, time))
        .collect();
    let hourly = |number| Policy::default().with(Rule::Hourly, Quota::AtMost(number));
    assert_eq!(removed(&autumn, &hourly(3)), ["1"]);
    assert_eq!(removed(&autumn, &hourly(2)), ["0", "1"]);
    let spring = points(&["2026-03-29 01:30", "2026-03-29 03:30"]);
    assert_eq!(removed(&spring, &hourly(2)), [""; 0]);
}

#[test]
fn days_are_local_whatever_utc_says() {
    // 23:30 UTC is the next day in Berlin.
    let points: Vec<Candidate> = [
        "2026-11-01T22:30:00Z",
        "2026-11-01T23:30:00Z",
        "2026-11-02T22:30:00Z",
    ]
    .into_iter()
    .enumerate()
    .map(|(number, time)| point(number, time.parse().expect("a time")))
    .collect();
    assert_eq!(removed(&points, &daily(2)), ["1"]);
}

#[test]
fn weeks_begin_on_monday_and_belong_to_one_year() {
    // 28 December 2026 is the Monday of week 53, which ends on 3 January 2027.
    let points = points(&[
        "2026-12-27 12:00",
        "2026-12-28 12:00",
        "2027-01-03 12:00",
        "2027-01-04 12:00",
    ]);
    let weekly = |number| Policy::default().with(Rule::Weekly, Quota::AtMost(number));
    assert_eq!(removed(&points, &weekly(3)), ["1"]);
    assert_eq!(removed(&points, &weekly(2)), ["0", "1"]);
}

#[test]
fn within_counts_from_the_newest_and_ends_just_before() {
    let points = points(&[
        "2026-01-31 12:00",
        "2026-02-28 11:59",
        "2026-02-28 12:00",
        "2026-02-28 12:01",
        "2026-03-31 12:00",
    ]);
    let within = |text: &str| Policy::default().with_within(Some(text.parse().expect("a duration")));
    // A month before 31 March is the last day of February.
    assert_eq!(removed(&points, &within("1m")), ["0", "1", "2"]);
    assert_eq!(removed(&points, &within("2m")), ["0"]);
    assert_eq!(removed(&points, &within("9999999y")), [""; 0]);
    // An hour was skipped between the two.
    assert_eq!(removed(&points, &within("31d")), ["0", "1", "2"]);
    assert_eq!(removed(&points, &within("744h")), ["0"]);
}

#[test]
fn damage_fills_no_place() {
    let mut points = points(&[
        "2026-11-01 02:00",
        "2026-11-02 02:00",
        "2026-11-02 03:00",
        "2026-11-03 02:00",
    ]);
    points[2].is_intact = false;
    let found = kept(&points, &daily(2));
    let reasons = |id: &str| {
        found
            .iter()
            .find(|(found, _)| found == id)
            .map(|(_, why)| why.clone())
    };
    assert_eq!(reasons("1"), Some(vec![KeepReason::Rule(Rule::Daily)]));
    assert_eq!(reasons("2"), Some(vec![KeepReason::Rule(Rule::Daily)]));
    assert_eq!(removed(&points, &daily(2)), ["0"]);
    assert_eq!(removed(&points, &daily(1)), ["0", "1", "2"], "its time has come");
    // The oldest is the oldest intact one.
    points[0].is_intact = false;
    points[1].is_intact = false;
    points[2].is_intact = true;
    let monthly = Policy::default().with(Rule::Monthly, Quota::AtMost(2));
    let found = kept(&points, &monthly);
    let oldest = vec![KeepReason::Oldest(Rule::Monthly)];
    assert!(found.contains(&("2".to_owned(), oldest)), "{found:?}");
}

#[test]
fn pins_copies_and_the_newest_of_each_disk_stay() {
    let mut points = points(&[
        "2026-11-01 02:00",
        "2026-11-02 02:00",
        "2026-11-03 02:00",
        "2026-11-04 02:00",
        "2026-11-05 02:00",
    ]);
    points[0].is_pinned = true;
    points[1].is_copy = true;
    points[2].disks.push("vdb".to_owned());
    let last = Policy::default().with(Rule::Last, Quota::AtMost(1));
    let expected = [
        ("0", KeepReason::Pinned),
        ("1", KeepReason::Copy),
        ("2", KeepReason::NewestOfDisk("vdb".to_owned())),
        ("4", KeepReason::Rule(Rule::Last)),
    ];
    let expected: Vec<_> = expected.map(|(id, why)| (id.to_owned(), vec![why])).into();
    assert_eq!(kept(&points, &last), expected);
}

#[test]
fn the_newest_of_each_running_period_stays() {
    let mut points = points(&["2026-11-02 02:00", "2026-11-03 02:00", "2026-11-04 02:00"]);
    points[0].period = "vmsnap-backup-yearly-2026".to_owned();
    points[1].period = "vmsnap-backup-monthly-2026-11".to_owned();
    points[2].period = "vmsnap-backup-monthly-2026-11".to_owned();
    let last = Policy::default().with(Rule::Last, Quota::AtMost(1));
    assert_eq!(removed(&points, &last), ["1"]);
    let later = at(points[2].time).checked_add(jiff::Span::new().years(1));
    let decisions = decide(&points, &last, &later.expect("in range"));
    assert_eq!(decisions[0], Decision::Remove, "next year it can go");
}

#[test]
fn clock_set_back_keeps_the_newest_by_number() {
    let mut points = points(&["2026-11-04 02:00", "2026-11-05 02:00", "2026-11-03 02:00"]);
    points[2].disks.push("vdb".to_owned());
    let found = kept(&points, &daily(1));
    assert_eq!(found[0], ("1".to_owned(), vec![KeepReason::Rule(Rule::Daily)]));
    assert_eq!(found[1], ("2".to_owned(), vec![KeepReason::Newest]));
}

#[test]
fn a_parent_goes_into_its_only_child() {
    let mut points = points(&[
        "2026-11-01 02:00",
        "2026-11-02 02:00",
        "2026-11-03 02:00",
        "2026-11-04 02:00",
        "2026-11-05 02:00",
        "2026-11-06 02:00",
    ]);
    // A chain of four, then another one.
    for number in [1, 2, 3, 5] {
        points[number].parents = vec![(number - 1).to_string()];
    }
    points[2].is_pinned = true;
    let into = |id: &str| Decision::Merge { into: id.to_owned() };
    let last = Policy::default().with(Rule::Last, Quota::AtMost(1));
    assert_eq!(
        decided(&points, &last),
        [
            into("2"),
            into("2"),
            Decision::Keep(vec![KeepReason::Pinned]),
            Decision::Remove,
            into("5"),
            Decision::Keep(vec![KeepReason::Rule(Rule::Last)]),
        ]
    );
}

#[test]
fn a_parent_that_cannot_be_merged_is_needed() {
    let times = ["2026-11-01 02:00", "2026-11-02 02:00", "2026-11-03 02:00"];
    let last = Policy::default().with(Rule::Last, Quota::AtMost(1));
    let first = |change: &dyn Fn(&mut Vec<Candidate>)| {
        let mut points = points(&times);
        points[1].parents = vec!["0".to_owned()];
        points[2].parents = vec!["1".to_owned()];
        change(&mut points);
        decided(&points, &last)[0].clone()
    };
    let needed = |by: &str| Decision::Needed { by: by.to_owned() };
    let into = |id: &str| Decision::Merge { into: id.to_owned() };
    assert_eq!(first(&|_| {}), into("2"));
    let of_two = first(&|points| points[2].parents.push("0".to_owned()));
    assert_eq!(of_two, needed("2"), "two depend on it");
    assert_eq!(first(&|points| points[0].is_intact = false), needed("2"));
    // It goes into the damaged one's parent at most, and that stays.
    assert_eq!(first(&|points| points[1].is_intact = false), needed("2"));
    assert_eq!(first(&|points| points[1].uuid = "b".to_owned()), needed("1"));
}

#[test]
fn domains_of_one_name_are_judged_by_themselves() {
    let mut points = points(&["2026-11-01 02:00", "2026-11-02 02:00", "2026-11-03 02:00"]);
    points[0].uuid = "b".to_owned();
    points[1].uuid = "b".to_owned();
    assert_eq!(removed(&points, &daily(1)), ["0"]);
}

#[test]
fn words_of_a_policy_are_read_or_refused() {
    for (text, shown) in [
        ("14d", "14d"),
        ("1y6m2w7d12h", "1y6m21d12h"),
        ("3w", "21d"),
        ("0h", ""),
    ] {
        let within: Within = text.parse().expect("a duration");
        assert_eq!(within.to_string(), shown);
    }
    for text in [
        "",
        "d",
        "7",
        "7x",
        "-1d",
        "1.5d",
        "1d1y",
        "1d2d",
        "7 d",
        "ü",
        "1ü",
        "99999999999d",
        "4294967295w",
    ] {
        assert_eq!(text.parse::<Within>(), Err(PolicyError::Duration), "{text}");
    }
    for (text, quota) in [
        ("0", Quota::AtMost(0)),
        ("7", Quota::AtMost(7)),
        ("-1", Quota::Unlimited),
        ("unlimited", Quota::Unlimited),
    ] {
        assert_eq!(text.parse(), Ok(quota));
    }
    for text in ["", "-2", "all", "1.5", "99999999999"] {
        assert_eq!(text.parse::<Quota>(), Err(PolicyError::Count), "{text}");
    }
    let zero = Policy::default().with_within(Some("0d".parse().expect("a duration")));
    assert!(zero.is_empty() && daily(0).is_empty());
    let policy = daily(7).with_within(Some("14d".parse().expect("a duration")));
    assert_eq!(policy.to_string(), "daily 7, within 14d");
}

fn quotas() -> impl Strategy<Value = Quota> {
    prop_oneof![4 => (0..12u32).prop_map(Quota::AtMost), 1 => Just(Quota::Unlimited)]
}

fn policies() -> impl Strategy<Value = Policy> {
    let within = prop::option::of((0..3u32, 0..50u32).prop_map(|(m, d)| format!("{m}m{d}d")));
    (prop::array::uniform6(quotas()), within).prop_map(|(quotas, within)| {
        let rules = Rule::ALL.into_iter().zip(quotas);
        let policy = rules.fold(Policy::default(), |policy, (rule, quota)| {
            policy.with(rule, quota)
        });
        policy.with_within(within.map(|text| text.parse().expect("a duration")))
    })
}

/// Chains of restore points at random times, some damaged, pinned, copied or of another domain.
fn stories() -> impl Strategy<Value = Vec<Candidate>> {
    let step = (1..200_000i64, 0..100u8, any::<bool>(), any::<bool>());
    prop::collection::vec(step, 1..60).prop_map(|steps| {
        let mut seconds = 1_700_000_000;
        let mut points: Vec<Candidate> = Vec::new();
        for (number, (pause, dice, is_full, has_vdb)) in steps.into_iter().enumerate() {
            seconds += pause;
            let mut made = point(number, Timestamp::from_second(seconds).expect("in range"));
            made.is_intact = dice >= 10;
            made.is_pinned = dice % 17 == 0;
            made.is_copy = dice % 19 == 1;
            if has_vdb {
                made.disks.push("vdb".to_owned());
            }
            if !is_full && !made.is_copy {
                let parent = points.iter().rev().find(|point| !point.is_copy);
                made.parents.extend(parent.map(|parent| parent.id.clone()));
            }
            points.push(made);
        }
        points
    })
}

fn stays(decision: &Decision) -> bool {
    matches!(decision, Decision::Keep(_))
}

proptest! {
    #[test]
    fn a_kept_point_stays_kept_when_the_policy_grows(
        points in stories(), policy in policies(), rule in 0..Rule::ALL.len(), more in 1..9u32,
    ) {
        let rule = Rule::ALL[rule];
        let grown = match policy.quota(rule) {
            Quota::AtMost(number) => policy.with(rule, Quota::AtMost(number + more)),
            Quota::Unlimited => policy,
        };
        let before = decided(&points, &policy);
        for (before, after) in before.iter().zip(decided(&points, &grown)) {
            prop_assert!(!stays(before) || stays(&after));
        }
    }

    #[test]
    fn the_newest_and_its_ancestors_always_stay(points in stories(), policy in policies()) {
        let decisions = decided(&points, &policy);
        let newest = points.iter().rposition(|point| !point.is_copy);
        prop_assert!(newest.is_none_or(|newest| stays(&decisions[newest])));
        for (point, decision) in points.iter().zip(&decisions) {
            for parent in &point.parents {
                let parent = points.iter().position(|found| found.id == *parent).expect("it is there");
                let is_safe = *decision == Decision::Remove || decisions[parent] != Decision::Remove;
                prop_assert!(is_safe, "{} goes before {}", points[parent].id, point.id);
            }
            if point.is_pinned || point.is_copy {
                prop_assert!(stays(decision));
            }
            if let Decision::Merge { into } = decision {
                let into = points.iter().position(|found| found.id == *into).expect("it is there");
                let is_there = matches!(decisions[into], Decision::Keep(_) | Decision::Needed { .. });
                prop_assert!(is_there);
                let children = points.iter().zip(&decisions).filter(|(child, decision)| {
                    child.parents.contains(&point.id) && **decision != Decision::Remove
                });
                prop_assert_eq!(children.count(), 1, "another one depends on {}", point.id);
            }
        }
        for disk in ["vda", "vdb"] {
            let holds = |point: &&Candidate| point.disks.iter().any(|held| held == disk) && point.is_intact;
            let of_disk = points.iter().filter(|point| !point.is_copy).rfind(holds);
            if let Some(of_disk) = of_disk {
                let place = points.iter().position(|point| point.id == of_disk.id).expect("it is there");
                prop_assert!(stays(&decisions[place]));
            }
        }
    }

    #[test]
    fn the_order_of_the_points_changes_no_verdict(points in stories(), policy in policies()) {
        let decisions = decided(&points, &policy);
        let reversed: Vec<Candidate> = points.iter().rev().cloned().collect();
        let mut again = decided(&reversed, &policy);
        again.reverse();
        prop_assert_eq!(decisions, again);
    }

    #[test]
    fn a_rule_keeps_as_many_intact_points_as_it_may(points in stories(), number in 1..9u32) {
        let points: Vec<Candidate> = points.into_iter().filter(|point| !point.is_copy).collect();
        let days = |points: Vec<&Candidate>| {
            let days = points.into_iter().map(|point| at(point.time).date());
            days.collect::<BTreeSet<_>>()
        };
        let intact = points.iter().filter(|point| point.is_intact).collect();
        let decisions = decided(&points, &daily(number));
        let by_rule = points.iter().zip(&decisions).filter(|(point, decision)| match decision {
            Decision::Keep(reasons) => point.is_intact && reasons.contains(&KeepReason::Rule(Rule::Daily)),
            _ => false,
        });
        let by_rule: Vec<&Candidate> = by_rule.map(|(point, _)| point).collect();
        prop_assert_eq!(by_rule.len(), days(intact).len().min(number as usize));
        prop_assert_eq!(days(by_rule.clone()).len(), by_rule.len(), "one of each day");
    }

    #[test]
    fn hostile_words_of_a_policy_never_panic(text in ".{0,20}") {
        let _ = text.parse::<Within>();
        let _ = text.parse::<Quota>();
    }
}
