//! A prune that merges restore points, and that stops at any step.

use std::collections::BTreeMap;

use vmsnap::ops::verify::{self, Which};
use vmsnap::repo::History;
use vmsnap::testkit::{Blow, CrashStore, Fuse};

use super::prune::{last, pruned, steps_of};
use super::world::{DOMAIN, Moment, World, at_step, every_end};
use crate::lab::{Lab, tree};

/// A chain of four restore points. A policy that keeps the last two merges the others into the
/// third.
fn world() -> World {
    let mut world = World::new();
    for _ in 0..4 {
        world.backup(&Lab::options());
    }
    world
}

/// The restore points that have to be there after a prune that keeps `kept`.
fn newest(world: &World, kept: usize) -> Vec<String> {
    let newest = world.moments.iter().rev().take(kept);
    newest.map(|moment| moment.id.clone()).collect()
}

/// Every restore point that the history names gives back its disks, and `stays` are among them.
fn assert_all_restore(world: &World, stays: &[String]) -> History {
    let history = world.lab.history(DOMAIN);
    assert!(history.findings.is_empty(), "{:?}", history.findings);
    assert!(history.damage().is_empty(), "{:?}", history.damage());
    for id in stays {
        assert!(history.get(id).is_some(), "{id} is lost");
    }
    let moments: BTreeMap<&str, &Moment> = world.moments.iter().map(|moment| (&*moment.id, moment)).collect();
    for kept in &history.kept {
        let id = &kept.manifest.point.id;
        assert_eq!(history.chains.faults(id), [""; 0]);
        for (disk, bytes) in &moments[id.as_str()].disks {
            let restored = world.lab.restored(DOMAIN, id, disk);
            let restored = restored.unwrap_or_else(|error| panic!("{id} {disk}: {error}"));
            assert!(restored == *bytes, "{disk} of {id} is not what it was");
        }
    }
    history
}

/// The next prune merges what is left to merge, and nothing of the crash remains.
fn assert_merged(world: &mut World, stays: &[String]) {
    world.reopen();
    let kept = stays.len() as u32;
    let outcome = pruned(&world.lab.context(&world.lab.recorder), last(kept)).expect("it begins");
    let removed = outcome.removed.expect("it is no dry run");
    assert!(removed.failure.is_none(), "{:?}", removed.failure);
    assert!(removed.waiting.is_empty());
    let history = assert_all_restore(world, stays);
    assert_eq!(history.kept.len(), stays.len());
    let left: Vec<String> = tree(world.lab.folder.path())
        .into_iter()
        .filter(|path| path.contains("merg") || path.ends_with(".removing") || path.ends_with(".new"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_verified(&world.lab);
}

fn assert_verified(lab: &Lab) {
    let options = verify::Options {
        which: Which::All,
        deep: true,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    let outcome = verify::verify(DOMAIN, lab.repo.as_ref(), &options, &lab.recorder, &lab.stop);
    let outcome = outcome.expect("it is verified");
    assert!(outcome.is_sound(), "{outcome:?}");
}

#[test]
fn a_merge_ends_anywhere_and_the_next_finishes_it() {
    for kept in [2, 1] {
        let world = world();
        let stays = newest(&world, kept);
        let steps = steps_of(world.fork(), last(kept as u32));
        assert!(steps.iter().any(|step| step.starts_with("replace")), "{steps:#?}");
        for (number, blow) in every_end(&steps, &Blow::ALL) {
            at_step(&steps, number, &blow, || {
                let mut world = world.fork();
                let fuse = Fuse::at(number, blow);
                let store = CrashStore::new(&fuse);
                let _ = world.crash_in(&fuse, store, |context| pruned(context, last(kept as u32)));
                assert_all_restore(&world, &stays);
                assert_merged(&mut world, &stays);
            });
        }
    }
}

#[test]
fn a_merge_survives_a_power_cut_at_any_step() {
    let world = world();
    let stays = newest(&world, 2);
    let steps = steps_of(world.fork(), last(2));
    for number in 0..=steps.len() {
        for seed in 0..2 {
            at_step(&steps, number, &seed, || {
                let mut world = world.fork();
                let fuse = Fuse::at(number, Blow::KilledBefore);
                let store = CrashStore::with_power(&fuse, world.lab.folder.path()).expect("it can be read");
                let outcome = world.crash_in(&fuse, store.clone(), |context| pruned(context, last(2)));
                store
                    .cut_power(seed * 1000 + number as u64)
                    .expect("files are written");
                assert_all_restore(&world, &stays);
                if !fuse.is_dead() {
                    let removed = outcome.expect("nothing happened to it").removed;
                    assert_eq!(removed.expect("it is no dry run").ids.len(), 2);
                    assert_eq!(world.lab.history(DOMAIN).kept.len(), 2);
                }
                assert_merged(&mut world, &stays);
            });
        }
    }
}

#[test]
fn a_backup_heals_an_interrupted_merge() {
    let world = world();
    let stays = newest(&world, 2);
    let steps = steps_of(world.fork(), last(2));
    for (number, blow) in every_end(&steps, &[Blow::KilledAfter]) {
        at_step(&steps, number, &blow, || {
            let mut world = world.fork();
            let fuse = Fuse::at(number, blow);
            let store = CrashStore::new(&fuse);
            let _ = world.crash_in(&fuse, store, |context| pruned(context, last(2)));
            world.guest_writes();
            let outcome = world.backup(&Lab::options());
            let mut all = stays.clone();
            all.push(outcome.point.id);
            assert_all_restore(&world, &all);
            let left: Vec<String> = tree(world.lab.folder.path());
            assert!(left.iter().all(|path| !path.contains("merg")), "{left:#?}");
        });
    }
}
