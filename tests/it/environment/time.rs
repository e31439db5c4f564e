//! Wrong clocks.

use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::PruneOutcome;

use super::{assert_next_run_heals, assert_unchanged, assert_whole, kept_files, two_points};
use crate::lab::{CLUSTER, Lab};

#[test]
fn clock_set_back_within_month_keeps_order_and_chain() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    let before = kept_files(&lab.root());
    for time in ["2026-11-01T00:00:30+01:00", "2026-11-03T02:00:00+01:00"] {
        lab.at(&format!("{time}[Europe/Berlin]"));
        let newest = lab.latest("vm1");
        let outcome = assert_next_run_heals(&mut lab, "vm1", time);
        assert_eq!(outcome.point.parent, Some(newest), "{time}");
        assert_eq!(lab.latest("vm1"), outcome.point.id, "{time}");
    }
    assert_unchanged(&before, &kept_files(&lab.root()), "set back");
}

#[test]
fn clock_set_back_across_months_leaves_whole_chains() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    lab.at("2026-12-05T02:00:00+01:00[Europe/Berlin]");
    let december = lab.backup("vm1").expect("December's full");
    assert_eq!(december.point.level, Level::Full);
    let before = kept_files(&lab.root());
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    let outcome = assert_next_run_heals(&mut lab, "vm1", "set back");
    assert!(
        outcome.point.period.ends_with("2026-11"),
        "{}",
        outcome.point.period
    );
    assert_eq!(outcome.point.sequence, december.point.sequence + 1);
    lab.at("2026-12-06T02:00:00+01:00[Europe/Berlin]");
    let outcome = assert_next_run_heals(&mut lab, "vm1", "right again");
    assert!(
        outcome.point.period.ends_with("2026-12"),
        "{}",
        outcome.point.period
    );
    let latest = lab.latest("vm1");
    assert_eq!(latest, outcome.point.id, "the order follows the sequence");
    assert_unchanged(&before, &kept_files(&lab.root()), "right again");
}

#[test]
fn wrong_clock_deletes_nothing_newer_than_its_present() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    lab.at("2026-12-05T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("December's full");
    let before = kept_files(&lab.root());
    // The clock is wrong because of an empty battery or a mistyped month.
    for time in ["2000-01-20T02:00:00+01:00", "2026-11-20T02:00:00+01:00"] {
        lab.at(&format!("{time}[Europe/Berlin]"));
        lab.host.disk("vm1", "vda", |disk| disk.write(0, &[9; CLUSTER]));
        let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a backup");
        assert!(
            matches!(outcome.prune, Some(PruneOutcome::Kept(_))),
            "{time}: {:?}",
            outcome.prune
        );
    }
    assert_unchanged(&before, &kept_files(&lab.root()), "wrong clocks");
    assert_whole(&lab, "vm1", "wrong clocks");
}

#[test]
fn clock_set_back_deletes_no_period() {
    let mut lab = Lab::new();
    lab.at("2026-10-20T02:00:00+02:00[Europe/Berlin]");
    two_points(&mut lab, "vm1");
    lab.at("2026-12-05T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("December's full");
    let before = kept_files(&lab.root());
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a backup");
    match outcome.prune {
        Some(PruneOutcome::Kept(why)) => assert!(why.contains("the clock is or was wrong"), "{why}"),
        other => panic!("October is gone: {other:?}"),
    }
    assert_unchanged(&before, &kept_files(&lab.root()), "set back");
    lab.at("2026-12-06T02:00:00+01:00[Europe/Berlin]");
    assert_next_run_heals(&mut lab, "vm1", "right again");
}

#[test]
fn period_written_by_a_wrong_clock_is_pruned_later() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    lab.at("2026-12-20T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("December's full");
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    let newest = lab.backup("vm1").expect("the newest, by a wrong clock");
    lab.at("2026-12-21T02:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a backup");
    // December's newest point is now newer than the point in November, which may be pruned.
    assert!(outcome.point.sequence > newest.point.sequence);
    assert!(
        matches!(outcome.prune, Some(PruneOutcome::Deleted(_))),
        "{:?}",
        outcome.prune
    );
    assert_whole(&lab, "vm1", "pruned");
    lab.assert_gives_back("vm1", "vda");
}
