//! A domain that disappears or is busy, an export that breaks, two runs at once.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use vmsnap::host::Host;
use vmsnap::ops::journal::JournalEntry;
use vmsnap::ops::{Cause, Class};

use super::{
    assert_names, assert_next_run_heals, assert_nothing_left, assert_unchanged, kept_files, once_copying,
    two_points, watched,
};
use crate::lab::{CLUSTER, Lab, NAMES, tree};

/// A bound on waits, so that a fault cannot hang the test. It measures nothing.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn of_two_runs_at_once_one_is_refused_and_the_other_succeeds() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    let before = kept_files(&lab.root());
    let (is_copying, copying) = channel();
    let (go_on, went_on) = channel::<()>();
    let (is_copying, went_on) = (Mutex::new(is_copying), Mutex::new(went_on));
    let first = thread::scope(|scope| {
        let lab = &lab;
        let first = scope.spawn(move || {
            watched(
                lab,
                "vm1",
                &Lab::options(),
                once_copying(move || {
                    is_copying
                        .lock()
                        .expect("no panic")
                        .send(())
                        .expect("the main thread waits");
                    went_on
                        .lock()
                        .expect("no panic")
                        .recv_timeout(PATIENCE)
                        .expect("it goes on");
                }),
            )
        });
        copying.recv_timeout(PATIENCE).expect("the first one copies");
        let during = tree(&lab.root());
        let refused = watched(lab, "vm1", &Lab::options(), |_| {}).expect_err("another run writes");
        assert_eq!(refused.class(), Class::Locked, "{refused}");
        assert_names(&refused, &lab.root().display().to_string(), "refused");
        assert_eq!(tree(&lab.root()), during, "nothing else has changed");
        assert!(lab.host.has_job("vm1"), "the other's job goes on");
        go_on.send(()).expect("it waits");
        first.join().expect("no panic")
    });
    let outcome = first.expect("the first one succeeds");
    let restored = lab.restored("vm1", &outcome.point.id, "vda").expect("restored");
    assert!(restored == lab.disk("vm1", "vda"));
    assert_unchanged(&before, &kept_files(&lab.root()), "two runs");
    assert_nothing_left(&lab, "vm1", "two runs");
    lab.pass(jiff::Span::new().minutes(10));
    assert_next_run_heals(&mut lab, "vm1", "two runs");
}

#[test]
fn runs_of_two_domains_at_once_both_succeed() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    two_points(&mut lab, "vm2");
    let (first_copies, first) = channel();
    let (second_copies, second) = channel();
    let meet = |mine: std::sync::mpsc::Sender<()>, other: std::sync::mpsc::Receiver<()>| {
        let ends = Mutex::new((mine, other));
        once_copying(move || {
            let ends = ends.lock().expect("no panic");
            ends.0.send(()).expect("the other run waits");
            ends.1.recv_timeout(PATIENCE).expect("the other one copies too");
        })
    };
    let (one, other) = (meet(first_copies, second), meet(second_copies, first));
    thread::scope(|scope| {
        let lab = &lab;
        let one = scope.spawn(move || watched(lab, "vm1", &Lab::options(), one));
        let other = scope.spawn(move || watched(lab, "vm2", &Lab::options(), other));
        one.join().expect("no panic").expect("vm1 succeeds");
        other.join().expect("no panic").expect("vm2 succeeds");
    });
    lab.pass(jiff::Span::new().minutes(10));
    for domain in ["vm1", "vm2"] {
        lab.assert_gives_back(domain, "vda");
        assert_next_run_heals(&mut lab, domain, domain);
    }
}

#[test]
fn a_domain_that_goes_away_in_mid_run_is_an_error_that_names_it() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    two_points(&mut lab, "vm2");
    let before = kept_files(&lab.root());
    let host = lab.host.clone();
    let error = watched(
        &lab,
        "vm1",
        &Lab::options(),
        once_copying(move || host.remove_domain("vm1")),
    )
    .expect_err("it is gone");
    assert_eq!(error.class(), Class::NotFound, "{error}");
    assert_names(&error, "vm1", "gone");
    assert_unchanged(&before, &kept_files(&lab.root()), "gone");
    assert_eq!(lab.history("vm1").kept.len(), 2, "nothing was committed");
    // The journal entry stays, and other domains are backed up.
    assert_next_run_heals(&mut lab, "vm2", "the other");
    let error = lab.backup("vm1").expect_err("still gone");
    assert_eq!(error.class(), Class::NotFound, "{error}");
    assert_names(&error, "vm1", "still gone");
    for id in lab
        .history("vm1")
        .kept
        .iter()
        .map(|kept| kept.manifest.point.id.clone())
    {
        lab.restored("vm1", &id, "vda").expect("the domain is not needed");
    }
    // A new domain gets the same name.
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.host.change("vm1", |domain| {
        domain.uuid = "11111111-0000-4000-8000-000000000001".into();
    });
    let outcome = assert_next_run_heals(&mut lab, "vm1", "made anew");
    assert_eq!(outcome.point.parent, None);
    assert!(
        outcome.point.disks[0]
            .reason
            .contains("another domain with the same name"),
        "{}",
        outcome.point.disks[0].reason
    );
    assert_unchanged(&before, &kept_files(&lab.root()), "made anew");
}

#[test]
fn recreated_domain_ignores_a_dead_run_of_the_old_one() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    let intent = JournalEntry {
        freezes: true,
        ..lab.intent_of_a_dead_run("vm1", NAMES[5])
    };
    let leftover = lab.leave_partial("vm1", &intent);
    lab.host.remove_domain("vm1");
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.host.change("vm1", |domain| {
        domain.uuid = "11111111-0000-4000-8000-000000000001".into();
    });
    lab.host.make_foreign_checkpoint("vm1", NAMES[5]);
    let outcome = lab.backup("vm1").expect("a full");
    assert!(!leftover.exists());
    assert_eq!(outcome.point.parent, None);
    let names = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
    assert_eq!(names, [lab.made[2].as_str(), NAMES[5]]);
}

#[test]
fn a_migration_keeps_the_backup_away_and_nothing_is_left_of_it() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    let before = tree(&lab.root());
    lab.host.begin_migration("vm1");
    let error = lab.backup("vm1").expect_err("it is being migrated");
    assert!(matches!(error.cause, Cause::Busy { .. }), "{error}");
    assert_names(&error, "outgoing migration", "busy");
    assert_eq!(tree(&lab.root()), before);
    assert!(lab.host.has_job("vm1"), "the migration goes on");
    let domain = lab.host.domain("vm1").expect("it is there");
    lab.host.abort_job(&domain).expect("it ends");
    assert_nothing_left(&lab, "vm1", "migrated");
    assert_next_run_heals(&mut lab, "vm1", "migrated");
}

#[test]
fn an_export_that_breaks_at_any_place_costs_nothing() {
    for clusters in 0..4 {
        for first in [true, false] {
            let case = format!("after {clusters} clusters, first {first}");
            let mut lab = Lab::new();
            if first {
                lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
            } else {
                two_points(&mut lab, "vm1");
            }
            lab.host
                .disk("vm1", "vda", |disk| disk.write(0, &[7; 4 * CLUSTER]));
            let before = kept_files(&lab.root());
            lab.host.fail_reads_after(Some((clusters * CLUSTER) as u64));
            let error = lab.backup("vm1").expect_err("the export breaks");
            lab.host.fail_reads_after(None);
            assert_eq!(error.disk.as_deref(), Some("vda"), "{case}");
            assert_names(&error, "domain 'vm1', disk vda", &case);
            assert_eq!(error.class(), Class::Failed, "{case}");
            assert_unchanged(&before, &kept_files(&lab.root()), &case);
            assert_nothing_left(&lab, "vm1", &case);
            assert_next_run_heals(&mut lab, "vm1", &case);
        }
    }
}
