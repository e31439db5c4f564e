//! One collection after another.

use jiff::SignedDuration;

use super::world::{BLOCK, World};
use crate::model::stop::Stop;
use crate::repo::pack::data::tests::lab::{C, noise, read};
use crate::repo::pack::data::tests::store::Trouble;
use crate::repo::pack::data::{CollectOptions, Waiting};
use crate::repo::pack_error::PackError;

/// A disk of this many blocks, each with a content of its own.
fn disk(seeds: &[u64]) -> Vec<u8> {
    seeds.iter().flat_map(|seed| noise(*seed, BLOCK * C)).collect()
}

#[test]
fn unused_packs_go_after_two_calls_and_a_day() {
    let world = World::new();
    let old = world.backup(None, &disk(&[1, 2, 3, 4])).expect("a backup");
    world.backup(None, &disk(&[5, 6])).expect("a backup");
    world.remove(old);
    let report = world.collect().expect("it collects");
    assert_eq!(
        report.condemned.packs, 0,
        "the packs are younger than the grace period"
    );
    world.store.pass(30);
    let report = world.collect().expect("it collects");
    assert!(
        report.condemned.packs > 1 && report.deleted.packs == 0,
        "{report:?}"
    );
    let condemned = report.condemned;
    let before = world.names("packs/").len();
    let report = world.collect().expect("it collects");
    assert_eq!((report.kept, report.condemned.packs), (condemned, 0));
    assert!(matches!(report.waiting[..], [Waiting::Until(_)]), "{report:?}");
    assert_eq!(world.names("packs/").len(), before);
    world.store.pass(25);
    let report = world.collect().expect("it collects");
    assert_eq!(report.deleted, condemned);
    assert_eq!(
        world.names("packs/").len() as u64,
        before as u64 - condemned.packs
    );
    assert_eq!(world.names("condemned/"), [""; 0]);
    world.assert_collected("at the end");
}

#[test]
fn dry_run_changes_nothing() {
    let world = World::new();
    let old = world.backup(None, &disk(&[1, 2, 3, 4])).expect("a backup");
    world.remove(old);
    world.store.pass(30);
    let before = world.store.snapshot();
    let options = CollectOptions {
        dry_run: true,
        ..CollectOptions::new("x")
    };
    let report = world.collect_with(&options).expect("it collects");
    assert!(
        report.condemned.packs > 0 && report.needed.packs == 0,
        "{report:?}"
    );
    assert_eq!(report.condemned, report.all);
    assert_eq!(world.store.snapshot(), before);
}

#[test]
fn packs_with_little_use_are_rewritten() {
    let world = World::new();
    let seeds: Vec<u64> = (0..8).collect();
    let old = world.backup(None, &disk(&seeds)).expect("a backup");
    // Block 0 stays, its neighbour in the pack goes.
    world.backup(None, &disk(&[0, 100])).expect("a backup");
    world.remove(old);
    world.store.pass(30);
    let options = CollectOptions {
        rewrite_percent: 60,
        ..CollectOptions::new("x")
    };
    let report = world.collect_with(&options).expect("it collects");
    assert_eq!(report.rewritten.packs, 1, "{report:?}");
    world.assert_sound("rewritten");
    let report = world.assert_collected("at the end");
    assert!(report.all.bytes < (3 * BLOCK * C) as u64, "{report:?}");
}

#[test]
fn without_rewriting_half_used_packs_stay() {
    let world = World::new();
    let old = world.backup(None, &disk(&[0, 1])).expect("a backup");
    world.backup(None, &disk(&[0])).expect("a backup");
    world.remove(old);
    world.store.pass(30);
    let options = CollectOptions {
        rewrite_percent: 0,
        grace: SignedDuration::from_hours(1),
        ..CollectOptions::new("x")
    };
    let report = world.collect_with(&options).expect("it collects");
    assert_eq!(report.rewritten.packs, 0, "{report:?}");
    world.assert_sound("at the end");
}

#[test]
fn deletion_waits_for_a_session_that_began_before() {
    let world = World::new();
    let old = world.backup(None, &disk(&[1, 2, 3, 4])).expect("a backup");
    world.store.pass(30);
    let draft = world.draft(None, &disk(&[1, 2, 3, 4])).expect("a draft");
    world.remove(old);
    let report = world.collect().expect("it collects");
    assert!(report.condemned.packs > 0, "{report:?}");
    world.store.pass(40);
    draft
        .writing
        .session()
        .renew(&Stop::default())
        .expect("it renews");
    let report = world.collect().expect("it collects");
    assert_eq!(report.deleted.packs, 0, "{report:?}");
    let host = format!("host (process {})", std::process::id());
    assert_eq!(report.waiting, [Waiting::Session(host)]);
    // The writer reuses condemned blocks, and notices it.
    world.check(&draft).expect("it stores them again");
    let (_, ended) = world.commit(draft);
    ended.expect("it ends");
    world.assert_collected("at the end");
}

/// A list of the index misses objects that a collector replaces while it is made.
#[test]
fn condemned_blocks_that_the_index_lacks_are_stored_again() {
    let world = World::new();
    let old = world.backup(None, &disk(&[1, 2, 3, 4])).expect("a backup");
    world.store.pass(30);
    let listed = world.names("index/");
    // The root of its map is new, so the index has it.
    let draft = world.draft(None, &disk(&[1, 2, 3, 9])).expect("a draft");
    world.remove(old);
    let report = world.collect().expect("it collects");
    assert!(report.condemned.packs > 0, "{report:?}");
    assert!(!listed.is_empty());
    for name in listed {
        world.store.inner.state().objects.remove(&name);
    }
    world.check(&draft).expect("it stores them again");
    let (_, ended) = world.commit(draft);
    ended.expect("it ends");
    world.assert_collected("at the end");
}

#[test]
fn blocks_of_condemned_packs_are_not_reused() {
    let world = World::new();
    let old = world.backup(None, &disk(&[1, 2, 3, 4])).expect("a backup");
    world.remove(old);
    world.store.pass(30);
    world.collect().expect("it collects");
    let before = world.names("packs/").len();
    world.store.pass(2);
    world.backup(None, &disk(&[1, 2, 3, 4])).expect("a backup");
    assert_eq!(world.names("packs/").len(), 2 * before);
    world.store.pass(25);
    let report = world.collect().expect("it collects");
    assert_eq!(report.deleted.packs, before as u64, "{report:?}");
    world.assert_collected("at the end");
}

/// The parent was committed after its blocks were condemned, and is removed before the commit of
/// its child.
#[test]
fn condemned_blocks_of_a_late_parent_are_stored_again() {
    let world = World::new();
    let content = disk(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let old = world.backup(None, &content).expect("a backup");
    world.store.pass(30);
    let parent = world.draft(None, &content).expect("a draft");
    world.check(&parent).expect("nothing is condemned");
    world.remove(old);
    let report = world.collect().expect("it collects");
    assert!(report.condemned.packs > 0, "{report:?}");
    let (parent, ended) = world.commit(parent);
    ended.expect("it ends");
    world.store.pass(2);
    let mut changed = content;
    changed[..C].copy_from_slice(&noise(99, C));
    let child = world.draft(Some(parent), &changed).expect("a draft");
    world.check(&child).expect("it stores the parent's blocks again");
    world.remove(parent);
    world.store.pass(25);
    let report = world.collect().expect("it collects");
    assert!(report.deleted.packs > 0, "{report:?}");
    world.commit(child).1.expect("it ends");
    world.assert_collected("at the end");
}

#[test]
fn sleeping_writer_must_not_commit() {
    let world = World::new();
    let draft = world.draft(None, &disk(&[1, 2])).expect("a draft");
    for _ in 0..3 {
        world.store.pass(40);
        draft
            .writing
            .session()
            .renew(&Stop::default())
            .expect("it renews in time");
    }
    assert_eq!(world.names("sessions/").len(), 2, "the first and the newest");
    world.store.pass(49);
    for _ in 0..2 {
        let error = world.check(&draft).expect_err("it was late");
        assert!(matches!(error, PackError::SessionLost { .. }), "{error}");
    }
    world.store.pass(100);
    world.collect().expect("it collects");
    assert_eq!(world.names("sessions/"), [""; 0], "the session has ended");
    let error = draft.writing.end(&Stop::default()).expect_err("it has vanished");
    assert!(matches!(error, PackError::SessionLost { .. }), "{error}");
    world.assert_collected("at the end");
    assert_eq!(world.names("packs/"), [""; 0]);
}

/// It passed its check, slept, and commits before a collector has deleted its session.
#[test]
fn writer_that_slept_before_its_commit_says_so() {
    let world = World::new();
    let draft = world.draft(None, &disk(&[1, 2])).expect("a draft");
    world.check(&draft).expect("it may commit");
    world.store.pass(80);
    let (_, ended) = world.commit(draft);
    let error = ended.expect_err("packs may have been deleted since");
    assert!(matches!(error, PackError::SessionLost { .. }), "{error}");
}

/// A collector that dies anywhere has not deleted a pack while an ended session is still there.
#[test]
fn ended_sessions_go_before_packs() {
    for number in 0.. {
        let world = World::new();
        let old = world.backup(None, &disk(&[1, 2])).expect("a backup");
        world.remove(old);
        world.store.pass(30);
        world.collect().expect("it condemns");
        let sleeper = world.draft(None, &disk(&[3])).expect("a draft");
        world.store.pass(80);
        let before = world.names("packs/").len();
        world.store.inner.trouble(number, Trouble::Dies);
        let collected = world.collect();
        world.store.inner.calm();
        let is_deleting = world.names("packs/").len() < before;
        let renewed = sleeper.writing.session().renew(&Stop::default());
        let is_lost = matches!(renewed, Err(PackError::SessionLost { .. }));
        assert!(is_lost, "call {number}: {renewed:?}");
        let own = format!("sessions/{}", sleeper.writing.session().id());
        let is_there = world.names("sessions/").contains(&own);
        assert!(!(is_deleting && is_there), "call {number}");
        sleeper.writing.give_up();
        if collected.is_ok() {
            assert!(number > 10 && is_deleting, "{number} calls");
            break;
        }
    }
}

#[test]
fn sessions_end_by_age_where_deletion_is_refused() {
    let world = World::new();
    world.store.refuse_deletion(true);
    let old = world.backup(None, &disk(&[1, 2])).expect("a backup");
    world.store.refuse_deletion(false);
    world.remove(old);
    world.store.pass(60);
    let report = world.collect().expect("it collects");
    assert_eq!(report.condemned.packs, 0, "they are as young as the session");
    world.assert_collected("at the end");
    assert_eq!(world.names("packs/"), [""; 0]);
}

#[test]
fn packs_of_a_killed_writer_are_adopted_and_go() {
    let world = World::new();
    world.backup(None, &disk(&[50])).expect("a backup");
    let kept = world.names("packs/").len() as u64;
    let index = world.names("index/");
    let killed = world.draft(None, &disk(&[1, 2, 3, 4])).expect("a draft");
    std::mem::forget(killed.writing);
    let mut objects = world.store.inner.state();
    objects
        .objects
        .retain(|name, _| !name.starts_with("index/") || index.contains(name));
    let torn = objects
        .objects
        .iter()
        .filter(|(name, _)| name.starts_with("packs/"));
    let (torn, content) = torn
        .map(|(name, content)| (name.clone(), content.clone()))
        .next()
        .expect("one");
    drop(objects);
    world.store.pass(100);
    let report = world.collect().expect("it collects");
    let all = world.names("packs/").len() as u64;
    assert_eq!(
        (report.adopted.packs, report.condemned.packs),
        (all - kept, all - kept)
    );
    assert_eq!(world.store.snapshot().get(&torn), Some(&content));
    world.assert_collected("at the end");
    assert_eq!(world.names("packs/").len() as u64, kept);
}

/// A reader that has opened the index before a collection still finds what was moved.
#[test]
fn long_readers_find_moved_blocks() {
    let world = World::new();
    let seeds: Vec<u64> = (0..8).collect();
    let old = world.backup(None, &disk(&seeds)).expect("a backup");
    let kept = world.backup(None, &disk(&[0, 100])).expect("a backup");
    let reader = world.open();
    reader.refresh(&Stop::default()).expect("it lists");
    let packs = reader.packs(&Stop::default()).expect("it lists");
    world.remove(old);
    for _ in 0..4 {
        world.store.pass(30);
        let options = CollectOptions {
            rewrite_percent: 100,
            ..CollectOptions::new("x")
        };
        world.collect_with(&options).expect("it collects");
    }
    let point = world.points()[&kept].clone();
    let mut faults = Vec::new();
    let (root, size) = point.root;
    let stop = Stop::default();
    let checked = reader.check_disk(root, size, &packs, true, &stop, &mut |fault| faults.push(fault));
    checked.expect("it checks");
    assert_eq!(faults, [], "deleted packs are no damage");
    assert!(read(&reader, point.root, 0).expect("it reads") == point.disk);
}

/// The thread that renews a session has to notice its end at any moment, also just before it waits
/// for hours. If it does not, this test does not end.
#[test]
fn many_sessions_end_at_once() {
    let world = World::new();
    let (data, stop) = (world.open(), Stop::default());
    for _ in 0..3000 {
        data.begin_writing("host", &stop).expect("it begins").give_up();
    }
    assert_eq!(world.names("sessions/"), [""; 0]);
}
