//! A prune that merges restore points, and that stops at any step.

use std::collections::BTreeMap;

use vmsnap::model::level::FullRule;
use vmsnap::ops::backup::Options;
use vmsnap::repo::History;
use vmsnap::testkit::{Blow, Fuse};

use super::prune::{cut_power_everywhere, last, pruned, steps_of};
use super::world::{DOMAIN, Moment, World, at_step, every_end};
use crate::lab::{InFolder, Lab, tree};

/// A chain of four restore points. A policy that keeps the last two merges the others into the
/// third.
fn world() -> World {
    chain(World::new())
}

/// The same with a disk whose image is continued by the merge.
fn continuing() -> World {
    chain(World::large())
}

/// The same on a file system whose files can share their space.
fn cloning() -> World {
    chain(World::large().cloning())
}

fn chain(mut world: World) -> World {
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
        .filter(|path| {
            let endings = [".removing", ".new", ".continued", ".patch"];
            path.contains("merg") || endings.iter().any(|ending| path.ends_with(ending))
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    world.lab.assert_verified(DOMAIN);
}

#[test]
fn a_merge_ends_anywhere_and_the_next_finishes_it() {
    for (world, kept) in [(world(), 2), (world(), 1), (continuing(), 2), (cloning(), 2)] {
        let stays = newest(&world, kept);
        let steps = steps_of(world.fork(), last(kept as u32));
        assert!(steps.iter().any(|step| step.starts_with("replace")), "{steps:#?}");
        for (number, blow) in every_end(&steps, &Blow::ALL) {
            at_step(&steps, number, &blow, || {
                let mut world = world.fork();
                let fuse = Fuse::at(number, blow);
                let store = world.store(&fuse);
                let _ = world.crash_in(&fuse, store, |context| pruned(context, last(kept as u32)));
                assert_all_restore(&world, &stays);
                assert_merged(&mut world, &stays);
            });
        }
    }
}

#[test]
fn a_merge_survives_a_power_cut_at_any_step() {
    for world in [world(), continuing(), cloning()] {
        let stays = newest(&world, 2);
        cut_power_everywhere(&world, last(2), 2, |world| {
            assert_all_restore(world, &stays);
            assert_merged(world, &stays);
        });
    }
}

/// A process dies right around the commit, before it is durable. The next one goes on with the
/// merge, and then the power fails.
#[test]
fn a_finished_merge_survives_a_power_cut_at_any_step() {
    for world in [world(), continuing()] {
        let stays = newest(&world, 2);
        let steps = steps_of(world.fork(), last(2));
        let commit = steps
            .iter()
            .position(|step| step.ends_with("manifest.json.new") && step.starts_with("replace"));
        let commit = commit.expect("a manifest is replaced");
        for died in [commit, commit + 1] {
            for (number, seed) in (0..steps.len() - commit + 12).flat_map(|number| [(number, 0), (number, 1)])
            {
                at_step(&steps, died, &(number, seed), || {
                    let mut world = world.fork();
                    let fuse = Fuse::at(died, Blow::KilledAfter);
                    let store = world.store_with_power(&fuse);
                    let _ = world.crash_in(&fuse, store.clone(), |context| pruned(context, last(2)));
                    world.reopen();
                    let fuse = Fuse::at(number, Blow::KilledBefore);
                    let store = store.reopened(&fuse);
                    let _ = world.crash_in(&fuse, store.clone(), |context| pruned(context, last(2)));
                    store
                        .cut_power(seed * 1000 + number as u64)
                        .expect("files are written");
                    assert_all_restore(&world, &stays);
                    assert_merged(&mut world, &stays);
                });
            }
        }
    }
}

#[test]
fn a_large_image_is_continued_and_a_small_one_copied() {
    for (world, step) in [(continuing(), "link "), (cloning(), "fill_clone ")] {
        let steps = steps_of(world, last(2));
        let is_continued = |disk: &str| {
            let ending = format!("{disk}.qcow2.merged-1");
            let found = |done: &&String| done.starts_with(step) && done.ends_with(&ending);
            steps.iter().any(|done| found(&done))
        };
        assert!(is_continued("vda"), "{steps:#?}");
        assert!(!is_continued("vdb"), "{steps:#?}");
        assert!(steps.iter().any(|step| step.starts_with("free ")), "{steps:#?}");
    }
}

/// Backups and prunes in turns; most prunes end early, somewhere. What stays, and is named, gives
/// back its bytes after each step.
#[test]
fn a_story_of_interrupted_merges_loses_nothing() {
    for seed in 0..4u64 {
        let mut random = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
        let mut roll = |sides: usize| {
            let mut bytes = [0; 4];
            random.fill(&mut bytes);
            u32::from_le_bytes(bytes) as usize % sides
        };
        let mut world = match seed % 2 {
            0 => World::large(),
            _ => World::large().cloning(),
        };
        let never = Options {
            full: FullRule::Never,
            ..Lab::options()
        };
        for _ in 0..60 {
            let kept = world.lab.history(DOMAIN).kept.len();
            if kept < 3 || roll(3) == 0 {
                world.backup(&never);
                continue;
            }
            let stays = 1 + roll(kept - 1);
            let stay = newest(&world, stays);
            let fuse = Fuse::at(roll(70), Blow::ALL[roll(Blow::ALL.len())]);
            let store = world.store(&fuse);
            let policy = last(stays as u32);
            let _ = world.crash_in(&fuse, store, |context| pruned(context, policy));
            world.reopen();
            assert_all_restore(&world, &stay);
        }
        let stay = newest(&world, 2);
        assert_merged(&mut world, &stay);
    }
}

#[test]
fn a_merge_into_a_point_that_is_lost_blocks_nothing() {
    let prepared = world();
    let steps = steps_of(prepared.fork(), last(2));
    let noted = steps.iter().position(|step| step.ends_with("merging"));
    let noted = noted.expect("a note is written");
    for damage in [None, Some("{}")] {
        let mut world = prepared.fork();
        let fuse = Fuse::at(noted + 3, Blow::KilledBefore);
        let store = world.store(&fuse);
        let _ = world.crash_in(&fuse, store, |context| pruned(context, last(2)));
        let history = world.lab.history(DOMAIN);
        let manifest = history.get(&world.moments[2].id).expect("it is there").dir();
        let manifest = manifest.join("manifest.json");
        drop(history);
        assert!(manifest.with_file_name("merging").exists());
        match damage {
            None => std::fs::remove_file(manifest).expect("removed"),
            Some(text) => std::fs::write(manifest, text).expect("written"),
        }
        world.reopen();
        let outcome = world.lab.backup(DOMAIN).expect("a backup goes on");
        world.lab.assert_gives_back(DOMAIN, "vda");
        let codes: Vec<&str> = outcome.findings.iter().map(|found| found.code.as_str()).collect();
        assert!(codes.contains(&"removal-waits"), "{codes:?}");
        let outcome = pruned(&world.lab.context(&world.lab.recorder), last(1)).expect("it begins");
        assert!(outcome.removed.expect("it is no dry run").failure.is_none());
    }
}

#[test]
fn a_backup_heals_an_interrupted_merge() {
    for world in [world(), continuing()] {
        heals_an_interrupted_merge(&world);
    }
}

fn heals_an_interrupted_merge(world: &World) {
    let stays = newest(world, 2);
    let steps = steps_of(world.fork(), last(2));
    for (number, blow) in every_end(&steps, &[Blow::KilledAfter]) {
        at_step(&steps, number, &blow, || {
            let mut world = world.fork();
            let fuse = Fuse::at(number, blow);
            let store = world.store(&fuse);
            let _ = world.crash_in(&fuse, store, |context| pruned(context, last(2)));
            world.guest_writes();
            let outcome = world.backup(&Lab::options());
            let mut all = stays.clone();
            all.push(outcome.point.id);
            let finished = outcome.findings.iter();
            for found in finished.filter(|found| found.code == "removal-finished") {
                let message = &found.message;
                assert!(!message.ends_with(".inc"), "a kept folder: {message}");
                let is_of_merge = message.contains("/merging");
                assert_eq!(message.contains("interrupted merge"), is_of_merge, "{message}");
                assert_eq!(message.contains("interrupted removal"), !is_of_merge, "{message}");
            }
            assert_all_restore(&world, &all);
            let left: Vec<String> = tree(world.lab.folder.path());
            let is_of_merge = |path: &String| path.contains("merg") || path.ends_with(".continued");
            assert!(!left.iter().any(is_of_merge), "{left:#?}");
        });
    }
}
