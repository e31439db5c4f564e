//! `--full never`: one chain across the periods, and a policy that moves its start forward.

use vmsnap::model::level::FullRule;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::{Options, PruneOutcome};
use vmsnap::ops::retention::{Policy, Quota, RetentionOutcome, Rule};

use crate::lab::{CLUSTER, Lab};

fn never() -> Options {
    Options {
        full: FullRule::Never,
        ..Lab::options()
    }
}

fn keeping(policy: Policy) -> Options {
    Options {
        keep: Some(policy),
        ..never()
    }
}

fn last(number: u32) -> Policy {
    Policy::default().with(Rule::Last, Quota::AtMost(number))
}

/// A domain that is backed up on these days. Returns the id and the disk of each restore point.
fn backed_up(lab: &mut Lab, days: &[&str], options: &Options) -> Vec<(String, Vec<u8>)> {
    let mut made = Vec::new();
    for (number, day) in days.iter().enumerate() {
        lab.at(&format!("2026-{day}T02:00:00+01:00[Europe/Berlin]"));
        let (place, byte) = (number % 4 * CLUSTER, number as u8 + 1);
        lab.host.disk("vm1", "vda", |disk| {
            disk.write(place, &vec![byte; 9000]);
            disk.zero((place + 2 * CLUSTER) % (4 * CLUSTER), 5000);
        });
        let outcome = lab.backup_with("vm1", options).expect("a restore point");
        made.push((outcome.point.id, lab.disk("vm1", "vda")));
    }
    made
}

fn lab() -> Lab {
    let lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab
}

fn assert_restores(lab: &Lab, points: &[(String, Vec<u8>)]) {
    let history = lab.history("vm1");
    assert!(history.findings.is_empty(), "{:?}", history.findings);
    for (id, disk) in points {
        assert_eq!(history.chains.faults(id), [""; 0]);
        let restored = lab.restored("vm1", id, "vda").expect("it can be restored");
        assert!(restored == *disk, "{id}");
    }
}

#[test]
fn the_chain_goes_on_across_periods() {
    let mut lab = lab();
    let days = ["01-30", "01-31", "02-01", "02-02", "03-05"];
    let points = backed_up(&mut lab, &days, &never());
    let history = lab.history("vm1");
    let levels: Vec<Level> = history
        .kept
        .iter()
        .map(|kept| kept.manifest.point.level)
        .collect();
    assert_eq!(levels[0], Level::Full);
    assert!(levels[1..].iter().all(|level| *level == Level::Incremental));
    let periods: Vec<&str> = history
        .kept
        .iter()
        .map(|kept| kept.manifest.point.period.as_str())
        .collect();
    assert_ne!(periods[1], periods[2]);
    assert_restores(&lab, &points);
    lab.assert_verified("vm1");
    let status = lab.status("vm1");
    assert!(status.is_consistent(), "{:?}", status.inconsistencies);
    // A period ends the chain again as soon as it is told to.
    lab.at("2026-04-01T02:00:00+02:00[Europe/Berlin]");
    let outcome = lab.backup("vm1").expect("a full");
    assert_eq!(outcome.point.level, Level::Full);
}

#[test]
fn a_new_month_is_consistent_before_its_first_backup() {
    let mut lab = lab();
    backed_up(&mut lab, &["01-30", "01-31"], &never());
    lab.at("2026-02-01T01:00:00+01:00[Europe/Berlin]");
    let status = lab.status("vm1");
    assert!(status.is_consistent(), "{:?}", status.inconsistencies);
    let points = backed_up(&mut lab, &["02-01"], &never());
    let point = lab
        .history("vm1")
        .get(&points[0].0)
        .expect("it is kept")
        .manifest
        .point
        .clone();
    assert_eq!(point.level, Level::Incremental, "{}", point.disks[0].reason);
}

#[test]
fn a_policy_moves_the_full_forward() {
    let mut lab = lab();
    let days = [
        "01-29", "01-30", "01-31", "02-01", "02-02", "02-03", "03-01", "03-02",
    ];
    let points = backed_up(&mut lab, &days, &keeping(last(3)));
    let history = lab.history("vm1");
    assert_eq!(history.kept.len(), 3);
    let levels: Vec<Level> = history
        .kept
        .iter()
        .map(|kept| kept.manifest.point.level)
        .collect();
    assert_eq!(levels, [Level::Full, Level::Incremental, Level::Incremental]);
    assert_restores(&lab, &points[5..]);
    lab.assert_verified("vm1");
    let status = lab.status("vm1");
    assert!(status.is_consistent(), "{:?}", status.inconsistencies);
    let january = lab.root().join("vm1/vmsnap-backup-monthly-2026-01");
    assert!(!january.exists(), "an empty period goes");
}

#[test]
fn a_period_on_which_others_stand_is_not_pruned() {
    let mut lab = lab();
    let points = backed_up(&mut lab, &["01-10", "01-11", "02-20"], &never());
    let pruning = Options {
        prune: true,
        ..never()
    };
    lab.at("2026-02-21T02:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &pruning).expect("a restore point");
    match &outcome.prune {
        Some(PruneOutcome::Kept(why)) => assert!(why.contains("of another period depends on"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_restores(&lab, &points);
}

/// Every day of a year, as an administrator would run it.
#[test]
fn a_year_of_daily_backups_keeps_what_the_policy_says() {
    let mut lab = lab();
    let policy = Policy::default()
        .with(Rule::Daily, Quota::AtMost(7))
        .with(Rule::Weekly, Quota::AtMost(4))
        .with(Rule::Monthly, Quota::AtMost(12));
    let options = keeping(policy);
    let mut disks: Vec<(String, Vec<u8>)> = Vec::new();
    let mut day: jiff::civil::Date = "2026-01-01".parse().expect("a day");
    for number in 0..365usize {
        lab.at(&format!("{day}T02:00:00[Europe/Berlin]"));
        let (place, byte) = (number * 7919 % (4 * CLUSTER - 3000), number as u8);
        lab.host
            .disk("vm1", "vda", |disk| disk.write(place, &vec![byte; 3000]));
        let outcome = lab.backup_with("vm1", &options).expect("a restore point");
        assert!(
            outcome.point.level == Level::Incremental || number == 0,
            "day {number}"
        );
        match &outcome.retention {
            Some(RetentionOutcome::Applied { plan, .. }) => assert!(plan.obstacle.is_none()),
            other => panic!("day {number}: {other:?}"),
        }
        disks.push((outcome.point.id, lab.disk("vm1", "vda")));
        day = day.tomorrow().expect("a day");
    }
    let history = lab.history("vm1");
    // 7 days, 3 more weeks and 11 more months.
    let kept = history.kept.len();
    assert!((19..=22).contains(&kept), "{kept} restore points");
    let fulls = history
        .kept
        .iter()
        .filter(|kept| kept.manifest.point.level == Level::Full);
    assert_eq!(fulls.count(), 1, "only the oldest is full");
    let there: Vec<(String, Vec<u8>)> = disks
        .into_iter()
        .filter(|(id, _)| history.get(id).is_some())
        .collect();
    assert_eq!(there.len(), kept);
    assert_restores(&lab, &there);
    lab.assert_verified("vm1");
    let status = lab.status("vm1");
    assert!(status.is_consistent(), "{:?}", status.inconsistencies);
}
