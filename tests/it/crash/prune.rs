//! A prune by policy, and a pin, that stop at any step.

use std::time::Duration;

use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::Options as BackupOptions;
use vmsnap::ops::pin::{self, PinRequest, change_pin};
use vmsnap::ops::retention::{self, Means, Options, Outcome, Policy, Quota, Rule, prune};
use vmsnap::ops::{Context, Result};
use vmsnap::testkit::{Blow, CrashStore, Fuse};

use super::world::{DOMAIN, World, at_step, every_end};
use crate::lab::{Lab, tree};

pub(super) fn last(number: u32) -> Policy {
    Policy::default().with(Rule::Last, Quota::AtMost(number))
}

pub(super) fn pruned(context: &Context, policy: Policy) -> Result<Outcome> {
    let means = Means {
        repo: context.repo,
        now: context.now.clone(),
        monitor: context.monitor,
        stop: &context.stop,
    };
    let wait = Duration::ZERO;
    prune(DOMAIN, &means, &Options { policy, wait })
}

/// The chain of October with three restore points, that of November with two. The first number of
/// October's and both of November's are to stay.
fn world(of_october: usize) -> (World, Vec<String>) {
    let mut world = World::new();
    world.lab.at("2026-10-20T02:00:00+02:00[Europe/Berlin]");
    for _ in 0..3 {
        world.backup(&Lab::options());
    }
    world.lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    for _ in 0..2 {
        world.backup(&Lab::options());
    }
    let ids = world.moments[..3].iter().map(|moment| moment.id.clone());
    let ids: Vec<String> = ids.collect();
    if let Some(place) = of_october.checked_sub(1) {
        pin(&world, &ids[place]);
    }
    (world, ids[of_october..].to_vec())
}

fn pin(world: &World, id: &str) {
    let change = PinRequest::Pin {
        note: "stays".to_owned(),
        now: world.lab.now.timestamp(),
    };
    change_pin(DOMAIN, id, &change, &pin_means(&world.lab)).expect("pinned");
}

fn pin_means(lab: &Lab) -> pin::Means<'_> {
    pin::Means {
        repo: lab.repo.as_ref(),
        wait: Duration::ZERO,
        monitor: &lab.recorder,
        stop: &lab.stop,
    }
}

/// Those that were to go may be gone; the others are what they were.
fn assert_kept(world: &mut World, doomed: &[String]) {
    let history = world.lab.history(DOMAIN);
    world
        .moments
        .retain(|moment| !doomed.contains(&moment.id) || history.get(&moment.id).is_some());
    world.assert_kept(None);
}

/// The next prune removes the rest, and nothing is left of it.
fn assert_pruned(world: &mut World, doomed: &[String], policy: Policy) {
    world.reopen();
    let outcome = pruned(&world.lab.context(&world.lab.recorder), policy).expect("it begins");
    let removed = outcome.removed.expect("it is no dry run");
    assert!(removed.failure.is_none(), "{:?}", removed.failure);
    let history = world.lab.history(DOMAIN);
    assert!(doomed.iter().all(|id| history.get(id).is_none()));
    assert_kept(world, doomed);
    let left: Vec<String> = tree(world.lab.folder.path())
        .into_iter()
        .filter(|path| {
            path.ends_with(".removing") || path.ends_with(".new") || doomed.iter().any(|id| path.contains(id))
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    world.assert_all_give_back();
}

pub(super) fn steps_of(mut world: World, policy: Policy) -> Vec<String> {
    let fuse = Fuse::default();
    let store = world.store(&fuse);
    world
        .crash_in(&fuse, store, |context| pruned(context, policy))
        .expect("nothing happens to it");
    fuse.steps()
}

#[test]
fn a_prune_ends_anywhere_and_the_next_finishes_it() {
    for of_october in [0, 1] {
        let (world, doomed) = world(of_october);
        let steps = steps_of(world.fork(), last(2));
        assert!(steps.iter().any(|step| step.starts_with("rename")), "{steps:#?}");
        for (number, blow) in every_end(&steps, &Blow::ALL) {
            at_step(&steps, number, &blow, || {
                let mut world = world.fork();
                let fuse = Fuse::at(number, blow);
                let _ = world.crash_in(&fuse, CrashStore::new(&fuse), |context| pruned(context, last(2)));
                assert_kept(&mut world, &doomed);
                assert_pruned(&mut world, &doomed, last(2));
            });
        }
    }
}

#[test]
fn a_backup_heals_an_interrupted_prune() {
    let (world, doomed) = world(1);
    let steps = steps_of(world.fork(), last(2));
    for (number, blow) in every_end(&steps, &[Blow::KilledAfter]) {
        at_step(&steps, number, &blow, || {
            let mut world = world.fork();
            let fuse = Fuse::at(number, blow);
            let _ = world.crash_in(&fuse, CrashStore::new(&fuse), |context| pruned(context, last(2)));
            assert_kept(&mut world, &doomed);
            let level = world.assert_next_backup_heals(&Lab::options());
            assert_eq!(level, Level::Incremental, "the live chain goes on");
            let left: Vec<String> = tree(world.lab.folder.path());
            assert!(left.iter().all(|path| !path.ends_with(".removing")), "{left:#?}");
            assert_pruned(&mut world, &doomed, last(3));
        });
    }
}

/// Cuts the power before every step of a prune that removes `removes` restore points, and after the
/// last one. Calls `check` each time.
pub(super) fn cut_power_everywhere(
    world: &World,
    policy: Policy,
    removes: usize,
    check: impl Fn(&mut World),
) {
    let steps = steps_of(world.fork(), policy);
    for number in 0..=steps.len() {
        for seed in 0..2 {
            at_step(&steps, number, &seed, || {
                let mut world = world.fork();
                let fuse = Fuse::at(number, Blow::KilledBefore);
                let store = world.store_with_power(&fuse);
                let outcome = world.crash_in(&fuse, store.clone(), |context| pruned(context, policy));
                store
                    .cut_power(seed * 1000 + number as u64)
                    .expect("files are written");
                if !fuse.is_dead() {
                    let removed = outcome.expect("nothing happened to it").removed;
                    let removed = removed.expect("it is no dry run").ids;
                    assert_eq!(removed.len(), removes);
                    let history = world.lab.history(DOMAIN);
                    assert!(removed.iter().all(|id| history.get(id).is_none()));
                }
                check(&mut world);
            });
        }
    }
}

#[test]
fn a_prune_survives_a_power_cut_at_any_step() {
    let (world, doomed) = world(1);
    cut_power_everywhere(&world, last(2), doomed.len(), |world| {
        assert_kept(world, &doomed);
        assert_pruned(world, &doomed, last(2));
    });
}

#[test]
fn a_backup_with_a_policy_ends_anywhere() {
    let (world, mut doomed) = world(0);
    doomed.truncate(3);
    let keeping = BackupOptions {
        keep: Some(last(3)),
        ..Lab::options()
    };
    let mut undisturbed = world.fork();
    let fuse = Fuse::default();
    let outcome = undisturbed
        .crash(&keeping, &fuse, CrashStore::new(&fuse))
        .expect("nothing happens to it");
    match outcome.retention {
        Some(retention::RetentionOutcome::Applied { removed, .. }) => assert_eq!(removed.len(), 3),
        other => panic!("{other:?}"),
    }
    let steps = fuse.steps();
    for (number, blow) in every_end(&steps, &[Blow::KilledAfter, Blow::Fails]) {
        at_step(&steps, number, &blow, || {
            let mut world = world.fork();
            let fuse = Fuse::at(number, blow);
            let _ = world.crash(&keeping, &fuse, CrashStore::new(&fuse));
            assert_kept(&mut world, &doomed);
            world.assert_next_backup_heals(&Lab::options());
            let stay = world.moments.iter().filter(|moment| !doomed.contains(&moment.id));
            let stay = stay.count() as u32;
            assert_pruned(&mut world, &doomed, last(stay));
        });
    }
}

#[test]
fn a_pin_ends_anywhere_and_is_the_old_or_the_new_one() {
    let (world, _) = world(1);
    let id = world.moments[0].id.clone();
    let change = PinRequest::Pin {
        note: "new".to_owned(),
        now: world.lab.now.timestamp(),
    };
    let repin = |context: &Context| {
        let means = pin::Means {
            repo: context.repo,
            wait: Duration::ZERO,
            monitor: context.monitor,
            stop: &context.stop,
        };
        change_pin(DOMAIN, &id, &change, &means)
    };
    let fuse = Fuse::default();
    world
        .fork()
        .crash_in(&fuse, CrashStore::new(&fuse), repin)
        .expect("nothing happens to it");
    let steps = fuse.steps();
    let note_of = |world: &World| {
        let history = world.lab.history(DOMAIN);
        assert!(history.findings.is_empty(), "{:?}", history.findings);
        let pin = history.chains.get(&id).expect("it is there").pin.clone();
        pin.expect("it is pinned").note
    };
    for (number, blow) in every_end(&steps, &Blow::ALL) {
        at_step(&steps, number, &blow, || {
            let mut world = world.fork();
            let fuse = Fuse::at(number, blow);
            let changed = world.crash_in(&fuse, CrashStore::new(&fuse), repin);
            let note = note_of(&world);
            assert!(note == "new" || (note == "stays" && changed.is_err()), "{note}");
            world.reopen();
            change_pin(DOMAIN, &id, &change, &pin_means(&world.lab)).expect("pinned");
            assert_eq!(note_of(&world), "new");
        });
    }
}
