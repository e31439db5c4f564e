//! The files that pruning deletes, and those that it keeps.

use vmsnap::model::period::GroupBy;
use vmsnap::ops::backup::{PruneOutcome, preview};
use vmsnap::ops::prune::PrunePlan;
use vmsnap::ops::{Context, monitor::Silent};

use crate::lab::{CLUSTER, InFolder, Lab, tree};

fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 2 * CLUSTER)]);
    lab.at("2026-10-20T02:00:00+02:00[Europe/Berlin]");
    lab.backup("vm1").expect("October's full");
    lab.at("2026-09-20T02:00:00+02:00[Europe/Berlin]");
    lab.backup("vm1").expect("September's full");
    lab
}

fn periods(lab: &Lab) -> Vec<String> {
    let all = tree(&lab.root().join("vm1"));
    all.into_iter()
        .filter(|path| path.starts_with("vmsnap-backup") && !path.contains('/'))
        .collect()
}

const SEPTEMBER: &str = "vmsnap-backup-monthly-2026-09";
const OCTOBER: &str = "vmsnap-backup-monthly-2026-10";
const NOVEMBER: &str = "vmsnap-backup-monthly-2026-11";

#[test]
fn before_the_middle_of_the_period_nothing_goes() {
    let mut lab = lab();
    lab.at("2026-11-15T23:59:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a full");
    assert!(
        matches!(outcome.prune, Some(PruneOutcome::Kept(_))),
        "{:?}",
        outcome.prune
    );
    assert_eq!(periods(&lab), [SEPTEMBER, OCTOBER, NOVEMBER]);
}

#[test]
fn from_the_middle_on_exactly_the_previous_period_goes() {
    let mut lab = lab();
    lab.at("2026-11-16T00:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a full");
    assert_eq!(outcome.prune, Some(PruneOutcome::Deleted(OCTOBER.to_owned())));
    assert_eq!(periods(&lab), [SEPTEMBER, NOVEMBER]);
    let again = lab.backup_with("vm1", &Lab::pruning()).expect("an incremental");
    assert!(
        matches!(again.prune, Some(PruneOutcome::Kept(_))),
        "there is none left"
    );
}

#[test]
fn without_the_switch_nothing_goes() {
    let mut lab = lab();
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup("vm1").expect("a full");
    assert_eq!(outcome.prune, None);
    assert_eq!(periods(&lab), [SEPTEMBER, OCTOBER, NOVEMBER]);
}

#[test]
fn a_failed_backup_prunes_nothing() {
    let mut lab = lab();
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[1]));
    lab.host.fail_reads_after(Some(0));
    lab.backup_with("vm1", &Lab::pruning())
        .expect_err("the export breaks");
    assert_eq!(periods(&lab), [SEPTEMBER, OCTOBER]);
}

#[test]
fn period_with_damaged_full_does_not_allow_pruning() {
    let mut lab = lab();
    lab.at("2026-11-10T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("November's full");
    lab.backup("vm1").expect("an incremental");
    let full = lab
        .history("vm1")
        .kept
        .last()
        .expect("points")
        .dir()
        .parent()
        .expect("a folder")
        .join("2026-11-10T01-00-00Z.full");
    // The period's newest chain is broken. The next backup makes a whole one, so the period may go
    // then.
    std::fs::remove_file(full.join("vda.qcow2")).expect("it was there");
    let repository = lab.repo.domain("vm1").expect("a name");
    let today = jiff::civil::date(2026, 11, 20);
    let plan = vmsnap::ops::prune::plan(
        repository.as_ref(),
        &lab.history("vm1").chains,
        GroupBy::Month,
        today,
    );
    assert!(matches!(plan, PrunePlan::Keep(_)), "{plan:?}");
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a new full");
    assert_eq!(outcome.prune, Some(PruneOutcome::Deleted(OCTOBER.to_owned())));
}

#[test]
fn a_period_that_holds_more_disks_than_the_newest_point_stays() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER), ("vdb", CLUSTER)]);
    lab.at("2026-10-20T02:00:00+02:00[Europe/Berlin]");
    lab.backup("vm1").expect("October's full");
    lab.host.change("vm1", |domain| domain.disks.truncate(1));
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a full");
    match outcome.prune {
        Some(PruneOutcome::Kept(why)) => {
            assert!(
                why.contains("disk vdb is not in the newest restore point of "),
                "{why}"
            )
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_period_of_another_domain_of_that_name_stays() {
    let mut lab = lab();
    lab.host.change("vm1", |domain| {
        domain.uuid = "11111111-0000-4000-8000-000000000001".into()
    });
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a full");
    assert!(
        matches!(outcome.prune, Some(PruneOutcome::Kept(_))),
        "{:?}",
        outcome.prune
    );
}

#[test]
fn dry_run_reports_and_deletes_nothing() {
    let mut lab = lab();
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("November's full");
    let before = tree(&lab.root());
    let context = Context {
        host: &lab.host,
        repo: lab.repo.as_ref(),
        now: lab.now.clone(),
        monitor: &Silent,
        stop: lab.stop.clone(),
        random: &*lab.random,
    };
    let preview = preview("vm1", &context, &Lab::pruning()).expect("a plan");
    match preview.prune {
        Some(PrunePlan::Delete { location, .. }) => assert!(location.ends_with(OCTOBER)),
        other => panic!("{other:?}"),
    }
    assert_eq!(tree(&lab.root()), before);
}

#[test]
fn interrupted_removal_is_ignored_and_finished_by_next_run() {
    let mut lab = lab();
    let half = lab.root().join("vm1").join(format!(".removing-{SEPTEMBER}"));
    std::fs::create_dir(&half).expect("new");
    std::fs::write(half.join("x"), b"x").expect("written");
    let elsewhere = lab.folder.path().join("precious");
    std::fs::create_dir(&elsewhere).expect("new");
    std::fs::write(elsewhere.join("file"), b"x").expect("written");
    std::os::unix::fs::symlink(&elsewhere, half.join("link")).expect("linked");
    assert!(lab.history("vm1").findings.is_empty());
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    lab.backup_with("vm1", &Lab::pruning()).expect("a full");
    assert!(!half.exists());
    assert!(elsewhere.join("file").exists(), "what a link points to stays");
}

#[test]
fn a_link_in_the_place_of_a_period_is_not_followed() {
    let mut lab = lab();
    let elsewhere = lab.folder.path().join("precious");
    std::fs::create_dir(&elsewhere).expect("new");
    std::fs::write(elsewhere.join("file"), b"x").expect("written");
    let october = lab.root().join("vm1").join(OCTOBER);
    std::fs::remove_dir_all(&october).expect("it was there");
    std::os::unix::fs::symlink(&elsewhere, &october).expect("linked");
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a full");
    assert!(
        matches!(outcome.prune, Some(PruneOutcome::Failed(_))),
        "{:?}",
        outcome.prune
    );
    assert!(elsewhere.join("file").exists());
}
