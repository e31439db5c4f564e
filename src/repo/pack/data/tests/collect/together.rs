//! A collector between any two calls of a writer or of another collector.

use jiff::SignedDuration;

use super::world::{BLOCK, World};
use crate::repo::pack::data::tests::lab::{C, noise};
use crate::repo::pack_error::PackError;

fn content(seed: u64) -> Vec<u8> {
    let mut disk = noise(1, 6 * BLOCK * C);
    disk[..C].copy_from_slice(&noise(seed, C));
    disk
}

/// What happens between two calls.
type Between = fn(&World);

fn collects(world: &World) {
    world.collect().expect("it collects");
}

fn a_day_passes(world: &World) {
    collects(world);
    world.store.pass(26);
    collects(world);
}

fn days_pass(world: &World) {
    collects(world);
    world.store.pass(26);
    collects(world);
    world.store.pass(60);
    collects(world);
}

/// The old restore point is removed, too.
fn removes_and_collects(world: &World) {
    world.remove(0);
    a_day_passes(world);
}

/// A repository in which a writer meets blocks that are needed, unneeded and condemned.
fn prepared(is_condemned: bool) -> World {
    let world = World::new();
    let parent = world.backup(None, &content(2)).expect("a backup");
    let other = world.backup(None, &noise(7, 4 * BLOCK * C)).expect("a backup");
    assert_eq!((parent, other), (0, 1));
    world.remove(other);
    world.store.pass(30);
    if is_condemned {
        world.collect().expect("it collects");
        world.store.pass(2);
    }
    world
}

fn try_at_every_call(between: Between, is_condemned: bool, has_parent: bool) {
    for number in 0.. {
        let world = prepared(is_condemned);
        let late = world.store.now() + SignedDuration::from_hours(72);
        let other = world.clone();
        world.store.before_call(number, move || between(&other));
        let mut disk = content(3);
        disk.extend(noise(7, 4 * BLOCK * C));
        let parent = has_parent.then_some(0);
        let what = format!("before call {number}");
        let saved = world.backup(parent, &disk);
        let is_lost = matches!(saved, Err(PackError::SessionLost { .. }));
        // What it reads may have gone: its parent has, or it has slept.
        let may_fail = is_lost || !world.points().contains_key(&0) || world.store.now() > late;
        assert!(saved.is_ok() || may_fail, "{what}: {saved:?}");
        let is_over = world.store.take_callback();
        world.assert_collected(&what);
        if is_over {
            assert!(number > 20, "{number} calls");
            break;
        }
    }
}

#[test]
fn writer_survives_a_collector_at_every_call() {
    for is_condemned in [false, true] {
        for has_parent in [false, true] {
            try_at_every_call(collects, is_condemned, has_parent);
        }
    }
}

#[test]
fn writer_survives_a_day_at_every_call() {
    for is_condemned in [false, true] {
        try_at_every_call(a_day_passes, is_condemned, false);
    }
}

#[test]
fn writer_that_sleeps_commits_nothing_broken() {
    try_at_every_call(days_pass, true, true);
}

#[test]
fn writer_survives_the_removal_of_its_parent() {
    for is_condemned in [false, true] {
        try_at_every_call(removes_and_collects, is_condemned, true);
    }
}

#[test]
fn two_collectors_at_every_call_are_harmless() {
    let betweens: [Between; 2] = [collects, a_day_passes];
    for between in betweens {
        for number in 0.. {
            let world = prepared(true);
            world.backup(Some(0), &content(5)).expect("a backup");
            world.remove(0);
            world.store.ignore_conditions();
            world.store.pass(30);
            let other = world.clone();
            world.store.before_call(number, move || between(&other));
            let what = format!("before call {number}");
            let collected = world.collect();
            let is_over = world.store.take_callback();
            collected.unwrap_or_else(|error| panic!("{what}: {error}"));
            world.assert_collected(&what);
            if is_over {
                assert!(number > 20, "{number} calls");
                break;
            }
        }
    }
}
