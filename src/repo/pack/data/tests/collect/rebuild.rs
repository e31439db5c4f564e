//! The index is rebuilt from the tables of packs.

use super::world::{BLOCK, World};
use crate::repo::pack::data::tests::lab::{C, noise};
use crate::repo::pack::data::tests::store::Trouble;
use crate::repo::pack::data::{IndexFault, RebuildOptions, RebuildReport, Waiting};
use crate::repo::pack::objects::ObjectName;
use crate::repo::pack_error::PackError;

const LIST: RebuildOptions<'static> = RebuildOptions {
    host: "host",
    dry_run: false,
    delete_damaged: false,
};

const DELETE: RebuildOptions<'static> = RebuildOptions {
    delete_damaged: true,
    ..LIST
};

fn points() -> World {
    let world = World::new();
    for seed in 1..=4 {
        world.backup(None, &noise(seed, 3 * BLOCK * C)).expect("a backup");
    }
    world.store.pass(30);
    world
}

/// One index object is damaged, and one is missing. Returns the name of the first.
fn hurt(world: &World) -> String {
    let names = world.names("index/");
    let mut state = world.store.inner.state();
    state.objects.get_mut(&names[0]).expect("there")[40] ^= 1;
    state.objects.remove(&names[1]);
    names[0].clone()
}

fn rebuilt(world: &World, options: &RebuildOptions<'_>) -> RebuildReport {
    world.rebuild(options).expect("it rebuilds")
}

#[test]
fn rebuilt_index_lists_everything_and_collectors_work_again() {
    let world = points();
    let damaged = hurt(&world);
    world.collect().expect_err("an index object is damaged");
    let before = world.store.snapshot();
    let planned = rebuilt(
        &world,
        &RebuildOptions {
            dry_run: true,
            ..DELETE
        },
    );
    assert!(world.store.snapshot() == before, "a dry run changes nothing");
    assert!(
        planned.listed.packs > 1 && planned.damaged[0].is_deleted,
        "{planned:?}"
    );

    world.store.refuse_deletion(true);
    let listed = rebuilt(&world, &LIST);
    world.store.refuse_deletion(false);
    assert_eq!(listed.listed, planned.listed);
    assert_eq!(listed.damaged[0].name, damaged);
    assert!(
        !listed.damaged[0].is_deleted && !listed.is_held_back,
        "{listed:?}"
    );
    assert!(world.names("index/").contains(&damaged));
    // Its session could not be deleted either, so collectors wait until it ends by its age.
    let waits = world.collect().expect("it waits").waiting;
    assert!(matches!(waits[..], [Waiting::Collector(_)]), "{waits:?}");
    world.store.pass(80);
    world.collect().expect_err("the damaged one is still there");
    let check = world.check_whole(true).expect("it checks");
    assert_eq!(check.unlisted.packs, 0, "{check:?}");

    let deleted = rebuilt(&world, &DELETE);
    assert_eq!(deleted.listed.packs, 0, "{deleted:?}");
    assert!(deleted.damaged[0].is_deleted, "{deleted:?}");
    assert!(!world.names("index/").contains(&damaged));
    let check = world.check_whole(true).expect("it checks");
    assert_eq!(check.damage, []);
    world.assert_collected("at the end");
}

#[test]
fn rebuild_that_dies_at_any_call_loses_nothing() {
    for number in 0.. {
        let world = points();
        hurt(&world);
        world.store.inner.trouble(number, Trouble::Dies);
        let done = world.rebuild(&DELETE);
        world.store.inner.calm();
        let what = format!("call {number}");
        world.assert_sound(&what);
        let again = rebuilt(&world, &DELETE);
        let check = world.check_whole(true).expect("it checks");
        assert_eq!(check.damage, [], "{what}: {again:?}");
        assert_eq!(check.unlisted.packs, 0, "{what}: {check:?}");
        world.assert_collected(&what);
        if done.is_ok() {
            assert!(number > 20, "{number} calls");
            break;
        }
    }
}

#[test]
fn lost_answers_change_nothing() {
    for number in (0..50).step_by(5) {
        let world = points();
        hurt(&world);
        world.store.inner.trouble(number, Trouble::LosesAnswer);
        rebuilt(&world, &DELETE);
        world.store.inner.calm();
        let check = world.check_whole(true).expect("it checks");
        assert_eq!((check.damage, check.unlisted.packs), (vec![], 0), "call {number}");
        world.assert_collected(&format!("call {number}"));
    }
}

#[test]
fn damaged_index_object_stays_while_a_pack_is_in_no_other() {
    let world = points();
    let damaged = hurt(&world);
    let pack = {
        let check = world.check_whole(false).expect("it checks");
        assert!(check.unlisted.packs > 0);
        let sound = rebuilt(
            &world,
            &RebuildOptions {
                dry_run: true,
                ..LIST
            },
        );
        assert_eq!(sound.listed, check.unlisted);
        world.names("packs/")
    };
    // Whatever pack is damaged: if it is in no index object, nothing is deleted.
    let mut held_back = 0;
    for name in pack {
        let world = points_like(&world);
        world.store.inner.state().objects.get_mut(&name).expect("there")[3] ^= 1;
        let before = world.names("index/");
        let report = rebuilt(&world, &DELETE);
        assert_eq!(report.is_held_back, !report.unsound.is_empty(), "{report:?}");
        if report.is_held_back {
            held_back += 1;
            assert_eq!(report.unsound[0].0, name);
            assert!(!report.damaged[0].is_deleted);
            assert!(world.names("index/").contains(&damaged), "{before:?}");
            // A pack that is deleted holds nothing back.
            world.store.inner.state().objects.remove(&name);
            assert!(rebuilt(&world, &DELETE).damaged[0].is_deleted);
        }
    }
    assert!(held_back > 1, "{held_back}");
}

/// A copy of the store.
fn points_like(world: &World) -> World {
    let copy = World::new();
    for (name, content) in world.store.snapshot() {
        copy.store.put_now(&name, &content);
    }
    copy
}

#[test]
fn rebuild_refuses_beside_a_collector() {
    let world = points();
    hurt(&world);
    let session = format!("sessions/collector.{}", "0a".repeat(16));
    world.store.put_now(&session, b"x");
    let before = world.store.snapshot();
    let error = world.rebuild(&DELETE).expect_err("a collector is at work");
    assert!(matches!(error, PackError::Collecting { .. }), "{error}");
    assert!(world.store.snapshot() == before);
    // One that was killed ends by its age.
    world.store.pass(80);
    rebuilt(&world, &DELETE);
    world.assert_collected("at the end");
}

/// A collector that comes at any call does nothing, or the rebuild refuses.
#[test]
fn collector_beside_a_rebuild_at_any_call_is_safe() {
    for number in 0.. {
        let world = points();
        let first = world.points().keys().next().copied().expect("one");
        world.remove(first);
        world.collect().expect("it condemns");
        world.store.pass(30);
        // Condemned packs are in no index object, either.
        let mut state = world.store.inner.state();
        state.objects.retain(|name, _| !name.starts_with("index/"));
        drop(state);
        let collector = world.clone();
        world.store.before_call(number, move || {
            // It may refuse, because needed packs are in no index object.
            if let Ok(report) = collector.collect() {
                let is_waiting = |waiting: &Waiting| matches!(waiting, Waiting::Collector(_));
                assert!(
                    number < 3 || report.waiting.iter().any(is_waiting),
                    "{number}: {report:?}"
                );
            }
        });
        let rebuilt = world.rebuild(&LIST);
        assert!(rebuilt.is_ok(), "the collector has ended");
        let is_over = world.store.take_callback();
        let what = format!("call {number}");
        let check = world.check_whole(true).expect("it checks");
        assert_eq!(check.damage, [], "{what}");
        world.assert_collected(&what);
        if is_over {
            assert!(number > 20, "{number} calls");
            break;
        }
    }
}

#[test]
fn rebuild_beside_a_writer_at_any_call_is_safe() {
    for number in (0..).step_by(2) {
        let world = points();
        hurt(&world);
        let writer = world.clone();
        world.store.before_call(number, move || {
            writer.backup(None, &noise(9, 3 * BLOCK * C)).expect("a backup");
        });
        rebuilt(&world, &DELETE);
        let is_over = world.store.take_callback();
        let what = format!("call {number}");
        let check = world.check_whole(true).expect("it checks");
        assert_eq!(check.damage, [], "{what}");
        world.assert_collected(&what);
        if is_over {
            break;
        }
    }
}

/// An index object of a newer format is genuine, and a foreign one is the user's own.
#[test]
fn only_damaged_index_objects_are_deleted() {
    let world = points();
    let newer = format!("index/{}", "0b".repeat(16));
    let name = ObjectName::new(&newer).expect("valid");
    let record = world
        .open()
        .seal_record(&name, &[2, 0, 0, 0, 0])
        .expect("it seals");
    world.store.put_now(&newer, &record);
    world.store.put_now("index/notes.txt", b"mine");
    let names = world.names("index/");
    let damaged = names.into_iter().find(|name| *name != newer);
    let damaged = damaged.expect("there are more");
    world
        .store
        .inner
        .state()
        .objects
        .get_mut(&damaged)
        .expect("there")[40] ^= 1;
    let report = rebuilt(&world, &DELETE);
    let deleted = report.damaged.iter().filter(|damaged| damaged.is_deleted);
    assert_eq!(
        deleted.map(|found| found.name.clone()).collect::<Vec<_>>(),
        [damaged]
    );
    let faults: Vec<IndexFault> = report.damaged.iter().map(|damaged| damaged.fault).collect();
    for fault in [IndexFault::Seal, IndexFault::Format, IndexFault::Name] {
        assert!(faults.contains(&fault), "{report:?}");
    }
    assert_eq!(faults.len(), 3, "{report:?}");
    assert!(world.names("index/").contains(&newer));
    assert!(world.names("index/").contains(&"index/notes.txt".to_owned()));
}
