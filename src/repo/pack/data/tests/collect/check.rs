//! The check of a repository as a whole.

use std::collections::BTreeSet;

use super::world::{BLOCK, World};
use crate::model::stop::{Stop, StopReason};
use crate::repo::pack::data::tests::lab::{C, noise, read};
use crate::repo::pack::data::tests::store::Trouble;
use crate::repo::pack::data::{CollectOptions, Damage, RepositoryCheck};
use crate::repo::pack_error::PackErrorClass;

/// Two chains of restore points, condemned packs, and the session of a killed run.
fn busy() -> World {
    let world = World::new();
    let old = world.backup(None, &noise(9, 4 * BLOCK * C)).expect("a backup");
    let disk = noise(1, 6 * BLOCK * C);
    let first = world.backup(None, &disk).expect("a backup");
    let mut changed = disk;
    changed[..C].copy_from_slice(&noise(2, C));
    world.backup(Some(first), &changed).expect("a backup");
    world.backup(None, &noise(3, 2 * BLOCK * C)).expect("a backup");
    world.remove(old);
    world.store.pass(30);
    world.collect().expect("it condemns");
    let killed = world.draft(None, &noise(4, BLOCK * C)).expect("a draft");
    std::mem::forget(killed.writing);
    world
}

/// The restore points that cannot be read completely.
fn unreadable(world: &World) -> BTreeSet<String> {
    let data = world.open();
    data.refresh(&Stop::default()).expect("it lists");
    let points = world.points();
    let is_lost = |point: &super::world::Point| {
        let disk = read(&data, point.root, 0);
        disk.is_err() || data.get(&point.file, 1000, &Stop::default()).is_err()
    };
    let lost = points.iter().filter(|(_, point)| is_lost(point));
    lost.map(|(id, _)| id.to_string()).collect()
}

fn cost(damage: &[Damage]) -> BTreeSet<String> {
    let costs = damage.iter().flat_map(|damage| &damage.costs);
    costs.map(|cost| cost.id.clone()).collect()
}

/// Asserts that there is damage, and that this object has some.
fn assert_named(check: &RepositoryCheck, object: &str, what: &str) {
    let named = check
        .damage
        .iter()
        .find(|damage| damage.object.as_deref() == Some(object));
    let named = named.unwrap_or_else(|| panic!("{what}: {object} is not in {check:?}"));
    assert!(named.finding.message.contains(object), "{what}: {named:?}");
}

#[test]
fn whole_repository_is_ok_and_stays_as_it_is() {
    let world = busy();
    world.store.refuse_deletion(true);
    let before = world.store.snapshot();
    for deep in [false, true] {
        let check = world.check_whole(deep).expect("it checks");
        assert_eq!(check.damage, [], "deep: {deep}");
        assert_eq!((check.deep, check.points), (deep, 3));
        assert_eq!(check.packs.packs, world.names("packs/").len() as u64);
        assert_eq!(check.index_objects, world.names("index/").len() as u64);
        assert!(
            check.condemned.packs.packs > 1 && check.condemned.records == 1,
            "{check:?}"
        );
        assert_eq!(check.unlisted.packs, 0, "{check:?}");
        assert_eq!(check.notes, []);
        let [session] = &check.sessions[..] else {
            panic!("{check:?}");
        };
        assert_eq!(session.host, format!("host (process {})", std::process::id()));
        assert_eq!(session.kind, "write");
        assert_eq!(session.began, Some(session.renewed));
    }
    assert!(world.store.snapshot() == before, "nothing changes");
}

#[test]
fn each_damaged_pack_is_named_with_what_it_costs() {
    let world = busy();
    let mut costly = 0;
    for name in world.names("packs/") {
        let whole = world.store.inner.state().objects[&name].clone();
        let put = |content: Option<Vec<u8>>| {
            let mut state = world.store.inner.state();
            match content {
                Some(content) => drop(state.objects.insert(name.clone(), content)),
                None => drop(state.objects.remove(&name)),
            }
        };
        put(None);
        let check = world.check_whole(false).expect("it checks");
        assert_named(&check, &name, "deleted");
        let lost = unreadable(&world);
        assert_eq!(cost(&check.damage), lost, "{name} is deleted: {check:?}");
        costly += usize::from(!lost.is_empty());
        for length in [0, 47, whole.len() / 2, whole.len() - 1] {
            put(Some(whole[..length].to_vec()));
            let check = world.check_whole(false).expect("it checks");
            let what = format!("{length} bytes of {name}");
            assert_named(&check, &name, &what);
            // The last block of a pack without its end counts as lost, as in a verification.
            assert!(
                unreadable(&world).is_subset(&cost(&check.damage)),
                "{what}: {check:?}"
            );
        }
        for place in [0, whole.len() / 2, whole.len() - 60, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[place] ^= 4;
            put(Some(flipped));
            let check = world.check_whole(true).expect("it checks");
            let what = format!("byte {place} of {name}");
            assert_named(&check, &name, &what);
            assert_eq!(cost(&check.damage), unreadable(&world), "{what}: {check:?}");
        }
        put(Some(whole));
    }
    assert!(costly > 3, "{costly}");
    assert_eq!(world.check_whole(true).expect("it checks").damage, []);
}

#[test]
fn swapped_packs_are_damage() {
    let world = busy();
    let names = world.names("packs/");
    let before = world.store.snapshot();
    for pair in names.windows(2) {
        let (first, second) = (before[&pair[0]].clone(), before[&pair[1]].clone());
        {
            let mut state = world.store.inner.state();
            state.objects.insert(pair[0].clone(), second);
            state.objects.insert(pair[1].clone(), first);
        }
        let check = world.check_whole(true).expect("it checks");
        for name in pair {
            assert_named(&check, name, "swapped");
        }
        assert_eq!(cost(&check.damage), unreadable(&world), "{check:?}");
        world.store.inner.state().objects = before.clone();
    }
}

#[test]
fn damaged_records_are_named() {
    let world = busy();
    for prefix in ["index/", "condemned/"] {
        for name in world.names(prefix) {
            let whole = world.store.inner.state().objects[&name].clone();
            let mut flipped = whole.clone();
            flipped[30] ^= 1;
            let longer = [&whole[..], b"x"].concat();
            for content in [flipped, whole[..whole.len() / 2].to_vec(), Vec::new(), longer] {
                world.store.inner.state().objects.insert(name.clone(), content);
                let check = world.check_whole(false).expect("it checks");
                assert_named(&check, &name, "changed");
                assert_eq!(check.damage.len(), 1, "{check:?}");
                assert_eq!(cost(&check.damage), BTreeSet::new(), "packs have tables");
            }
            world.store.inner.state().objects.insert(name, whole);
        }
    }
    let session = world.names("sessions/").remove(0);
    world
        .store
        .inner
        .state()
        .objects
        .insert(session.clone(), vec![1; 80]);
    let check = world.check_whole(false).expect("it checks");
    assert_eq!(check.damage, []);
    let id = session.trim_start_matches("sessions/");
    assert!(check.sessions[0].host.contains(id), "{check:?}");
}

#[test]
fn damaged_index_object_leaves_needed_packs_that_are_not_listed() {
    let world = busy();
    for name in world.names("index/") {
        let mut state = world.store.inner.state();
        let content = state.objects.get_mut(&name).expect("listed");
        *content.last_mut().expect("a byte") ^= 1;
    }
    let check = world.check_whole(false).expect("it checks");
    assert_eq!(check.damage.len(), world.names("index/").len(), "{check:?}");
    let note = check.notes.iter().find(|note| note.code == "packs-not-listed");
    let note = note.unwrap_or_else(|| panic!("{check:?}"));
    assert!(note.message.contains("Restore points need"), "{note:?}");
    assert!(note.message.contains("rebuild-index"), "{note:?}");
}

#[test]
fn deleted_index_objects_leave_packs_that_are_not_listed() {
    let world = busy();
    let mut objects = world.store.inner.state();
    objects.objects.retain(|name, _| !name.starts_with("index/"));
    drop(objects);
    let check = world.check_whole(true).expect("it checks");
    assert_eq!(check.damage, []);
    assert_eq!(check.unlisted, check.packs);
    let [note] = &check.notes[..] else {
        panic!("{check:?}");
    };
    assert_eq!(note.code, "packs-not-listed");
    assert!(note.message.contains("rebuild-index"), "{note:?}");
    // A block that nothing knows any more.
    let pack = world.names("packs/").remove(0);
    for pack in world.names("packs/") {
        let content = world
            .store
            .inner
            .state()
            .objects
            .remove(&pack)
            .expect("it is there");
        let check = world.check_whole(false).expect("it checks");
        assert_eq!(cost(&check.damage), unreadable(&world), "{check:?}");
        world.store.inner.state().objects.insert(pack, content);
    }
    assert!(world.names("packs/").contains(&pack));
}

#[test]
fn foreign_objects_are_noted() {
    let world = busy();
    for name in [
        "packs/x",
        "README",
        "sessions/x",
        "points/x",
        "keys/0.age",
        "records/a/b",
    ] {
        world
            .store
            .inner
            .state()
            .objects
            .insert(name.to_owned(), Vec::new());
    }
    let check = world.check_whole(false).expect("it checks");
    assert_eq!(check.damage, []);
    let [note] = &check.notes[..] else {
        panic!("{check:?}");
    };
    assert_eq!(note.code, "objects-foreign");
    for part in ["6 (", "README", "points/"] {
        assert!(note.message.contains(part), "{note:?}");
    }
}

/// A list that fails never looks like an empty repository, and a passing failure never like damage.
#[test]
fn failures_of_the_store_are_errors_and_no_damage() {
    let world = busy();
    for deep in [false, true] {
        for number in 0.. {
            world.store.inner.trouble(number, Trouble::Dies);
            let checked = world.check_whole(deep);
            world.store.inner.calm();
            match checked {
                Ok(check) => {
                    assert_eq!(check.damage, []);
                    assert!(number > 10, "{number} calls");
                    break;
                }
                Err(error) => assert_ne!(error.class(), PackErrorClass::Damaged, "{number}: {error}"),
            }
        }
    }
    for number in (0..40).step_by(6) {
        world.store.inner.trouble(number, Trouble::Hiccups);
        let check = world.check_whole(true).expect("it tries again");
        assert_eq!(check.damage, [], "call {number}");
    }
    world.store.inner.calm();
    world.store.list_nothing(true);
    world.check_whole(false).expect_err("the list is not complete");
    world.store.list_nothing(false);
    let stop = Stop::default();
    stop.request(StopReason::Interrupted);
    let error = world.check_until(false, &stop).expect_err("it was stopped");
    assert!(matches!(error.class(), PackErrorClass::Stopped(_)), "{error}");
}

#[test]
fn what_a_collector_deletes_meanwhile_is_no_damage() {
    for deep in [false, true] {
        for number in (0..).step_by(if deep { 3 } else { 1 }) {
            let world = busy();
            world.store.pass(100);
            let collector = world.clone();
            let options = CollectOptions {
                rewrite_percent: 100,
                ..CollectOptions::new("x")
            };
            world.store.before_call(number, move || {
                let report = collector.collect_with(&options).expect("it collects");
                assert!(report.deleted.packs > 0, "{report:?}");
                collector.store.pass(100);
                collector.collect_with(&options).expect("it collects");
            });
            let check = world.check_whole(deep).expect("it checks");
            assert_eq!(check.damage, [], "call {number}");
            if world.store.take_callback() {
                assert!(number > 10, "{number} calls");
                break;
            }
        }
    }
}

#[test]
fn writers_and_removals_meanwhile_are_no_damage() {
    for number in 0.. {
        let world = busy();
        let writer = world.clone();
        world.store.before_call(number, move || {
            let first = writer.points().keys().next().copied();
            writer.backup(None, &noise(7, 3 * BLOCK * C)).expect("a backup");
            writer.remove(first.expect("one"));
        });
        let check = world.check_whole(false).expect("it checks");
        assert_eq!(check.damage, [], "call {number}");
        if world.store.take_callback() {
            assert!(number > 10, "{number} calls");
            break;
        }
    }
}
