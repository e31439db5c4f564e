//! Restores in place that stop at any step.

use vmsnap::model::domain::DomainState;
use vmsnap::ops::in_place::{Mapping, Options, restore_in_place};
use vmsnap::ops::{Cause, Result};
use vmsnap::testkit::{Blow, CrashStore, Fuse};

use super::world::{DOMAIN, Disks, World, at_step, every_end};
use crate::in_place::{Random, options};
use crate::lab::{CLUSTER, Lab};

/// A shut-off domain with restore points, and the disks of the oldest one.
fn world() -> (World, String, Disks) {
    let mut world = World::new();
    world.backup(&Lab::options());
    world.backup(&Lab::options());
    world.lab.host.change(DOMAIN, |domain| {
        domain.state = DomainState::ShutOff;
        domain.id = None;
    });
    let oldest = world.moments[0].clone();
    (world, oldest.id, oldest.disks)
}

fn run(world: &mut World, options: &Options, fuse: &Fuse, store: CrashStore) -> Result<()> {
    let ended = world.crash_in(fuse, store, |context| restore_in_place(DOMAIN, context, options));
    ended.map(drop)
}

fn steps(world: &World, options: &Options) -> Vec<String> {
    let fuse = Fuse::default();
    let mut world = world.fork();
    run(&mut world, options, &fuse, CrashStore::new(&fuse)).expect("it is not disturbed");
    fuse.steps()
}

fn is_marked(world: &World) -> bool {
    let status = world.lab.status(DOMAIN);
    status
        .inconsistencies
        .iter()
        .any(|what| what.contains("only partly restored"))
}

/// Checks what an interrupted restore left: every restore point gives back its disks, the state
/// before is not lost, and disks in between are marked.
fn assert_nothing_lost(world: &World, before: &Disks, wanted: &Disks, saves: bool) {
    world.assert_all_give_back();
    let history = world.lab.history(DOMAIN);
    let is_known = |id: &String| world.moments.iter().any(|moment| moment.id == *id);
    let ids = history.kept.iter().map(|kept| kept.manifest.point.id.clone());
    let new: Vec<String> = ids.filter(|id| !is_known(id)).collect();
    assert!(new.len() <= usize::from(saves), "{new:?}");
    for (id, (disk, bytes)) in new
        .iter()
        .flat_map(|id| before.iter().map(move |disk| (id, disk)))
    {
        let restored = world.lab.restored(DOMAIN, id, disk).expect("restored");
        assert!(restored == *bytes, "{disk} of {id} is the state before");
    }
    let now = world.disks();
    if now != *before {
        assert!(!saves || new.len() == 1, "the state before was saved first");
        assert!(now == *wanted || is_marked(world), "disks in between are marked");
    }
}

/// The next restore in place succeeds, and backups go on.
fn assert_next_heals(world: &mut World, options: &Options, wanted: &Disks) {
    world.reopen();
    if is_marked(world) {
        let error = world
            .lab
            .backup(DOMAIN)
            .expect_err("disks in between are not saved");
        assert!(matches!(error.cause, Cause::InBetween(_)), "{error}");
    }
    let lab = &mut world.lab;
    restore_in_place(DOMAIN, &lab.context(&lab.recorder), options).expect("the next one succeeds");
    lab.pass(jiff::Span::new().minutes(10));
    assert!(world.disks() == *wanted);
    assert!(!is_marked(world));
    let left = crate::lab::tree(&world.root());
    assert!(!left.iter().any(|path| path.contains("restoring")), "{left:?}");
    world.assert_next_backup_heals(&Lab::options());
    world.assert_all_give_back();
}

#[test]
fn restore_in_place_ends_anywhere_and_the_next_finishes() {
    let (world, id, wanted) = world();
    // Also one disk onto another.
    let mapping = Mapping {
        domain: DOMAIN.to_owned(),
        disk: "vda".to_owned(),
        onto: "vdb".to_owned(),
    };
    let mut mapped = world.disks();
    mapped.insert("vdb", wanted["vda"].clone());
    for (mapping, discard_current, wanted) in [
        (None, false, &wanted),
        (None, true, &wanted),
        (Some(mapping), false, &mapped),
    ] {
        let options = Options {
            mapping,
            discard_current,
            ..options(&id)
        };
        let before = world.disks();
        let steps = steps(&world, &options);
        assert!(
            steps.iter().any(|step| step.starts_with("write to a disk")),
            "{steps:#?}"
        );
        for (number, blow) in every_end(&steps, &Blow::ALL) {
            at_step(&steps, number, &blow, || {
                let mut world = world.fork();
                let fuse = Fuse::at(number, blow);
                let ended = run(&mut world, &options, &fuse, CrashStore::new(&fuse));
                world.reopen();
                assert_nothing_lost(&world, &before, wanted, !discard_current);
                if ended.is_ok() && !fuse.is_dead() {
                    assert!(world.disks() == *wanted && !is_marked(&world));
                }
                assert_next_heals(&mut world, &options, wanted);
            });
        }
    }
}

/// After a power cut, writes that were not flushed may be lost, and so are bitmaps in open images.
#[test]
fn power_cut_in_a_restore_in_place_is_healed() {
    let (world, id, wanted) = world();
    let options = Options {
        discard_current: false,
        ..options(&id)
    };
    let before = world.disks();
    let steps = steps(&world, &options);
    for number in 0..steps.len() {
        at_step(&steps, number, &"power cut", || {
            let mut world = world.fork();
            let fuse = Fuse::at(number, Blow::KilledBefore);
            let store = world.store_with_power(&fuse);
            // The process may have been killed after its success.
            let _ = run(&mut world, &options, &fuse, store.clone());
            store.cut_power(number as u64).expect("files are written");
            world.lab.host.lose_power();
            world.reopen();
            if world.disks() != wanted {
                lose_some(&world, &before, number as u64);
            }
            assert_nothing_lost(&world, &before, &wanted, true);
            assert_next_heals(&mut world, &options, &wanted);
        });
    }
}

/// Undoes some of the writes, cluster by cluster.
fn lose_some(world: &World, before: &Disks, seed: u64) {
    let mut random = Random(seed);
    for (target, old) in before {
        let targets = old.chunks(CLUSTER).enumerate();
        for (index, bytes) in targets.filter(|_| random.below(2) == 0) {
            world
                .lab
                .host
                .disk(DOMAIN, target, |disk| disk.swap_content(index * CLUSTER, bytes));
        }
    }
}

#[test]
fn finished_restore_in_place_survives_a_power_cut() {
    let (world, id, wanted) = world();
    for seed in 0..8 {
        let mut world = world.fork();
        let fuse = Fuse::default();
        let store = world.store_with_power(&fuse);
        run(&mut world, &options(&id), &fuse, store.clone()).expect("it is not disturbed");
        store.cut_power(seed).expect("files are written");
        world.lab.host.lose_power();
        world.reopen();
        assert!(world.disks() == wanted && !is_marked(&world));
        world.assert_next_backup_heals(&Lab::options());
        world.assert_all_give_back();
    }
}

/// A restore that was killed before its first write has changed nothing. The guest may go on, and
/// the next restore saves what it wrote.
#[test]
fn state_after_a_restore_that_only_compared_is_saved() {
    let (world, id, wanted) = world();
    for discard_current in [false, true] {
        let options = Options {
            discard_current,
            ..options(&id)
        };
        let steps = steps(&world, &options);
        let before = world.disks();
        let is_write = |step: &String| step.starts_with("write to a disk");
        let first_write = steps.iter().position(is_write).expect("it writes");
        let opened = steps.iter().position(|step| step == "open the disks");
        assert!(opened.expect("it opens the disks") < first_write);
        let mut kills = 0;
        for (number, blow) in every_end(&steps[..first_write], &[Blow::KilledBefore, Blow::KilledAfter]) {
            at_step(&steps, number, &blow, || {
                let mut world = world.fork();
                let fuse = Fuse::at(number, blow);
                let _ = run(&mut world, &options, &fuse, CrashStore::new(&fuse));
                assert!(world.disks() == before, "nothing was written");
                world.reopen();
                if is_marked(&world) {
                    // The mark says already that it writes.
                    assert!(steps[number].contains("restoring.json") || number + 1 == first_write);
                    return;
                }
                kills += 1;
                let lab = &mut world.lab;
                lab.pass(jiff::Span::new().minutes(10));
                world.guest_writes();
                let now = world.disks();
                let saving = Options {
                    discard_current: false,
                    ..options.clone()
                };
                let lab = &mut world.lab;
                let outcome = restore_in_place(DOMAIN, &lab.context(&lab.recorder), &saving);
                let outcome = outcome.expect("the next one succeeds");
                lab.pass(jiff::Span::new().minutes(10));
                let saved = outcome.saved.expect("the present state is saved");
                for (disk, bytes) in &now {
                    let restored = world.lab.restored(DOMAIN, &saved, disk).expect("restored");
                    assert!(restored == *bytes, "{disk} of {saved} is what the guest wrote");
                }
                assert!(world.disks() == wanted);
            });
        }
        assert!(kills > 10, "most steps are before the first write");
    }
}

/// The backup after such a restore needs no `--abandon`.
#[test]
fn backups_go_on_after_a_restore_that_only_compared() {
    let (world, id, _) = world();
    let options = options(&id);
    let steps = steps(&world, &options);
    let opened = steps
        .iter()
        .position(|step| step == "open the disks")
        .expect("a step");
    let mut world = world.fork();
    let fuse = Fuse::at(opened, Blow::KilledAfter);
    let _ = run(&mut world, &options, &fuse, CrashStore::new(&fuse));
    world.reopen();
    assert!(!is_marked(&world));
    world.assert_next_backup_heals(&Lab::options());
    let left = crate::lab::tree(&world.root());
    assert!(!left.iter().any(|path| path.contains("restoring")), "{left:?}");
    world.assert_all_give_back();
}

/// The run that died may have written without a flush.
#[test]
fn a_finishing_run_flushes_also_what_it_finds_right() {
    let (world, id, wanted) = world();
    let options = options(&id);
    let all = steps(&world, &options);
    let is_write = |step: &String| step.starts_with("write to a disk");
    let last_write = all.iter().rposition(is_write).expect("it writes");
    let mut world = world.fork();
    let fuse = Fuse::at(last_write, Blow::KilledAfter);
    let _ = run(&mut world, &options, &fuse, CrashStore::new(&fuse));
    world.reopen();
    assert!(is_marked(&world) && world.disks() == wanted, "all is written");
    let fuse = Fuse::default();
    run(&mut world, &options, &fuse, CrashStore::new(&fuse)).expect("it ends");
    let steps = fuse.steps();
    assert!(!steps.iter().any(is_write), "{steps:#?}");
    let flushes = steps.iter().filter(|step| *step == "flush a disk").count();
    assert_eq!(flushes, wanted.len(), "{steps:#?}");
}
