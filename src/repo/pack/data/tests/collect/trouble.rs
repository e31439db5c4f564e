//! Failures at every call of a collector, and what makes it refuse.

use super::world::{BLOCK, World};
use crate::model::stop::{Stop, StopReason};
use crate::repo::pack::data::tests::lab::{C, noise};
use crate::repo::pack::data::tests::store::Trouble;
use crate::repo::pack::data::{BlockId, CollectOptions, Needed, Reuse};
use crate::repo::pack_error::{PackError, PackErrorClass};

/// A repository in which a call adopts, rewrites, condemns and deletes.
fn busy() -> World {
    let world = World::new();
    let first = world.backup(None, &noise(1, 6 * BLOCK * C)).expect("a backup");
    world.remove(first);
    world.store.pass(30);
    world.collect().expect("it condemns");
    let second = world.backup(None, &noise(2, 6 * BLOCK * C)).expect("a backup");
    let part = [noise(2, BLOCK * C), noise(3, BLOCK * C)].concat();
    world.backup(None, &part).expect("a backup");
    world.remove(second);
    let index = world.names("index/");
    let killed = world.draft(None, &noise(4, 4 * BLOCK * C)).expect("a draft");
    std::mem::forget(killed.writing);
    let mut state = world.store.inner.state();
    state
        .objects
        .retain(|name, _| !name.starts_with("index/") || index.contains(name));
    drop(state);
    world.store.pass(80);
    world
}

fn options() -> CollectOptions<'static> {
    CollectOptions {
        rewrite_percent: 80,
        ..CollectOptions::new("x")
    }
}

#[test]
fn collector_that_dies_at_any_call_loses_nothing() {
    for number in 0.. {
        let world = busy();
        let all = world.names("packs/").len();
        world.store.inner.trouble(number, Trouble::Dies);
        let collected = world.collect_with(&options());
        world.store.inner.calm();
        let what = format!("call {number}");
        world.assert_sound(&what);
        if let Ok(report) = &collected {
            assert!(report.deleted.packs > 1, "{report:?}");
            assert!(
                report.adopted.packs > 1 && report.rewritten.packs > 0,
                "{report:?}"
            );
            assert!(world.names("packs/").len() < all);
        }
        world.assert_collected(&what);
        if collected.is_ok() && number > 20 {
            break;
        }
    }
}

#[test]
fn answers_that_are_lost_change_nothing() {
    for number in (0..60).step_by(7) {
        let world = busy();
        world.store.inner.trouble(number, Trouble::LosesAnswer);
        world.collect_with(&options()).expect("it tries again");
        world.assert_collected(&format!("call {number}"));
    }
}

/// Asserts that a call fails and has neither condemned nor deleted anything.
fn assert_refused(world: &World, what: &str) -> PackError {
    let before = world.store.snapshot();
    let error = world.collect_with(&options()).expect_err(what);
    let after = world.store.snapshot();
    let is_kept = |prefix: &str| {
        let of = |all: &std::collections::BTreeMap<String, Vec<u8>>| -> Vec<String> {
            all.keys()
                .filter(|name| name.starts_with(prefix))
                .cloned()
                .collect()
        };
        of(&before) == of(&after)
    };
    assert!(is_kept("packs/") && is_kept("condemned/"), "{what}");
    assert!(before.keys().all(|name| after.contains_key(name)), "{what}");
    error
}

#[test]
fn nothing_happens_without_a_complete_view() {
    let world = busy();
    world.store.list_nothing(true);
    let error = assert_refused(&world, "empty lists");
    assert!(matches!(error, PackError::SessionLost { .. }), "{error}");
    world.store.list_nothing(false);
    world.store.forget_times();
    let error = assert_refused(&world, "no times");
    assert!(matches!(error, PackError::NoTimes { .. }), "{error}");

    for prefix in ["index/", "condemned/"] {
        let world = busy();
        let name = world.names(prefix).remove(0);
        let mut state = world.store.inner.state();
        let content = state.objects.get_mut(&name).expect("it exists");
        content[30] ^= 1;
        drop(state);
        let error = assert_refused(&world, prefix);
        assert!(error.to_string().contains(&name), "{error}");
        assert_eq!(error.class(), PackErrorClass::Damaged);
    }

    // Whatever pack is missing: if it is needed, nothing is deleted. Packs have random names, so
    // one repository misses each of them in turn.
    let whole = busy();
    let packs = whole.names("packs/").len();
    let mut refused = 0;
    for name in whole.names("packs/") {
        let world = whole.twin();
        world.store.inner.state().objects.remove(&name);
        match world.collect_with(&options()) {
            Ok(_) => world.assert_sound("an unneeded pack was missing"),
            Err(error) => {
                assert_eq!(error.class(), PackErrorClass::Damaged, "{error}");
                assert_eq!(world.names("packs/").len(), packs - 1);
                refused += 1;
            }
        }
    }
    assert!(refused > 1 && refused < packs);
}

#[test]
fn nothing_happens_without_all_restore_points() {
    let world = busy();
    let before = world.store.snapshot();
    let mut fails = |_: &Stop| -> crate::repo::pack_error::Result<Vec<Needed>> {
        Err(PackError::Damaged {
            location: "memory:".to_owned(),
            object: "points/x".to_owned(),
            why: "it cannot be read".to_owned(),
        })
    };
    let stop = Stop::default();
    let collected = world.open().collect(&mut fails, &CollectOptions::new("x"), &stop);
    assert!(collected.expect_err("it fails").to_string().contains("points/x"));
    let mut unknown = |_: &Stop| {
        Ok(vec![Needed {
            disks: Vec::new(),
            blocks: vec![BlockId::from_hex(&"ab".repeat(32)).expect("valid")],
        }])
    };
    let collected = world
        .open()
        .collect(&mut unknown, &CollectOptions::new("x"), &stop);
    assert!(
        collected
            .expect_err("it fails")
            .to_string()
            .contains("no pack contains it")
    );
    let after = world.store.snapshot();
    // Sound packs that a killed writer has left are listed in the index, which harms nobody.
    assert!(
        before
            .iter()
            .all(|(name, content)| after.get(name) == Some(content))
    );
}

#[test]
fn stop_ends_a_collection_and_its_session() {
    let world = busy();
    let before = world.names("sessions/");
    let stop = Stop::default();
    let request = stop.clone();
    world
        .store
        .before_call(9, move || request.request(StopReason::Interrupted));
    let mut live = |_: &Stop| Ok(Vec::new());
    let collected = world.open().collect(&mut live, &options(), &stop);
    let error = collected.expect_err("it stops");
    assert_eq!(error.class(), PackErrorClass::Stopped(StopReason::Interrupted));
    assert_eq!(world.names("sessions/"), before);
    world.assert_sound("stopped");
}

/// A pack with a damaged block is not rewritten, and stays.
#[test]
fn packs_that_cannot_be_read_stay() {
    let world = busy();
    let mut unreadable = 0;
    for name in world.names("packs/") {
        let sound = world.store.snapshot();
        let mut state = world.store.inner.state();
        state.objects.get_mut(&name).expect("it exists")[50] ^= 1;
        drop(state);
        if let Ok(report) = world.collect_with(&options()) {
            unreadable += report.unreadable.len();
            if !report.unreadable.is_empty() {
                assert_eq!(report.unreadable, std::slice::from_ref(&name));
                assert!(world.names("packs/").contains(&name));
            }
        }
        let mut state = world.store.inner.state();
        state.objects = sound;
    }
    assert_eq!(unreadable, 1);
    world.assert_collected("all is sound again");
}

/// A damaged block is stored again. Of its two places the sound one stays, whatever their order.
#[test]
fn sound_copy_of_a_damaged_block_stays() {
    for seed in 0..8 {
        let world = World::new();
        let disk = noise(100 + seed, BLOCK * C);
        let first = world.backup(None, &disk).expect("a backup");
        world.store.pass(30);
        let damaged: Vec<String> = world.names("packs/");
        let place = 10;
        for name in &damaged {
            let mut state = world.store.inner.state();
            let pack = state.objects.get_mut(name).expect("it is there");
            pack[place] ^= 1;
        }
        let draft = world.draft_reusing(Reuse::Sound, None, &disk).expect("a draft");
        world.check(&draft).expect("nothing was condemned");
        world.commit(draft).1.expect("it ends");
        world.assert_sound("stored again");
        let packs = world.names("packs/").len();
        for _ in 0..4 {
            world.store.pass(30);
            world.collect().expect("it collects");
            world.assert_sound(&format!("seed {seed}"));
        }
        assert!(world.names("packs/").len() < packs, "the damaged places are gone");
        world.remove(first);
        world.assert_collected(&format!("seed {seed}"));
    }
}
