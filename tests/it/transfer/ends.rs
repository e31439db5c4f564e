//! Transfers that end early: stopped, killed, failed, without power.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmsnap::io::DiskStore;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::each::Judged;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::transfer::{Outcome, transfer};
use vmsnap::ops::{Class, Event, Monitor, Result};
use vmsnap::repo::{FolderRepository, Repository};
use vmsnap::testkit::{Blow, CrashStore, Fuse};

use super::{all, assert_copies, beside, copied, copy, history, ids, means};
use crate::crash::world::{DOMAIN, World, at_step, every_end};
use crate::lab::{Lab, tree};

/// Requests a stop when the second disk begins.
struct StopsAtSecond {
    stop: Stop,
    begun: AtomicUsize,
}

impl Monitor for StopsAtSecond {
    fn event(&self, event: Event<'_>) {
        if let Event::DiskBegins { .. } = event
            && self.begun.fetch_add(1, Ordering::Relaxed) == 1
        {
            self.stop.request(StopReason::Interrupted);
        }
    }
}

#[test]
fn a_stopped_transfer_goes_on_later() {
    let mut lab = Lab::with_three_points();
    let target = beside(&lab, Arc::new(DiskStore));
    let monitor = StopsAtSecond {
        stop: lab.stop.clone(),
        begun: AtomicUsize::new(0),
    };
    let outcome = transfer("vm1", &means(&lab, &target, &monitor), &all()).expect("it begins");
    let class = outcome.error().expect("stopped").class();
    assert_eq!(class, Class::Stopped(StopReason::Interrupted));
    assert_eq!(ids(&target), ids(lab.repo.as_ref())[..1]);
    assert!(history(&target).leftovers.is_empty());
    lab.stop = Stop::default();
    let outcome = copy(&lab, &target, &all()).expect("copied");
    assert_eq!(copied(&outcome).len(), 2);
    assert_copies(lab.repo.as_ref(), &target);
}

/// Copies all restore points of the world's repository into the one beside it.
fn copy_world(world: &World, to: &dyn Repository) -> Result<Outcome> {
    transfer(DOMAIN, &means(&world.lab, to, &Silent), &all())
}

fn world() -> World {
    let mut world = World::new();
    for _ in 0..3 {
        world.backup(&Lab::options());
    }
    world
}

/// After a run that ended early, what is there is whole; the next run copies the rest.
fn assert_goes_on(world: &World) {
    let target = beside(&world.lab, Arc::new(DiskStore));
    let there = history(&target);
    assert!(there.chains.points().iter().all(|kept| kept.faults.is_empty()));
    let outcome = copy_world(world, &target).expect("it begins");
    assert!(outcome.error().is_none(), "{:?}", outcome.error());
    assert_eq!(ids(&target), ids(world.lab.repo.as_ref()));
    assert_copies(world.lab.repo.as_ref(), &target);
    let left = tree(&world.lab.folder.path().join("other"));
    let left: Vec<&String> = left.iter().filter(|path| path.contains(".partial")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_transfer_ends_anywhere_and_the_next_goes_on() {
    let world = world();
    let fuse = Fuse::default();
    let undisturbed = world.fork();
    let target = beside(&undisturbed.lab, Arc::new(CrashStore::new(&fuse)));
    copy_world(&undisturbed, &target).expect("nothing happens to it");
    let steps = fuse.steps();
    assert!(
        steps.iter().filter(|step| step.starts_with("rename")).count() >= 3,
        "{steps:#?}"
    );
    for (number, blow) in every_end(&steps, &Blow::ALL) {
        at_step(&steps, number, &blow, || {
            let world = world.fork();
            let fuse = Fuse::at(number, blow);
            let root = world.lab.folder.path().join("other");
            if let Ok(target) = FolderRepository::open_or_create(&root, Arc::new(CrashStore::new(&fuse))) {
                let _ = copy_world(&world, &target);
            }
            assert_goes_on(&world);
        });
    }
}

#[test]
fn a_transfer_survives_a_power_cut_at_any_step() {
    let world = world();
    let fuse = Fuse::default();
    let undisturbed = world.fork();
    let target = beside(&undisturbed.lab, Arc::new(CrashStore::new(&fuse)));
    copy_world(&undisturbed, &target).expect("nothing happens to it");
    let steps = fuse.steps();
    for number in 0..=steps.len() {
        at_step(&steps, number, &"power cut", || {
            let world = world.fork();
            let fuse = Fuse::at(number, Blow::KilledBefore);
            let store = world.store_with_power(&fuse);
            let root = world.lab.folder.path().join("other");
            let mut committed = Vec::new();
            if let Ok(target) = FolderRepository::open_or_create(&root, Arc::new(store.clone()))
                && let Ok(outcome) = copy_world(&world, &target)
            {
                let done = outcome.copied.unwrap_or_default();
                committed.extend(done.into_iter().map(|copied| copied.id));
            }
            store.cut_power(number as u64).expect("files are written");
            if !committed.is_empty() {
                let there = ids(&beside(&world.lab, Arc::new(DiskStore)));
                assert!(
                    committed.iter().all(|id| there.contains(id)),
                    "{committed:?} {there:?}"
                );
            }
            assert_goes_on(&world);
        });
    }
}
