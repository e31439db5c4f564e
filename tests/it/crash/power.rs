//! Power cuts at any step of a backup.

use vmsnap::model::domain::DomainState;
use vmsnap::ops::backup::Options;
use vmsnap::testkit::{Blow, CrashStore, Fuse};

use super::world::{DOMAIN, OCTOBER, World, at_step, steps_of};
use crate::lab::Lab;

/// The machine that loses its power.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The repository's machine; the domain keeps running.
    Repository,
    /// Both machines. A running domain has lost its bitmaps and its job.
    Both,
}

/// Cuts the power before every step and after the last one, checks what is left, and checks that
/// the next run repairs it.
fn cut_everywhere(world: &World, options: &Options, doomed: Option<&str>, cut: Cut) {
    let steps = steps_of(begin(world), options);
    for number in 0..=steps.len() {
        // A run that reported success must be complete, whichever unsynced data is lost.
        let seeds = match cut {
            _ if number == steps.len() => 10,
            Cut::Repository => 2,
            Cut::Both => 1,
        };
        for seed in 0..seeds {
            at_step(&steps, number, &(cut, seed), || {
                let mut world = begin(world);
                let fuse = Fuse::at(number, Blow::KilledBefore);
                let store = CrashStore::with_power(&fuse, world.lab.folder.path()).expect("it can be read");
                let outcome = world.crash(options, &fuse, store.clone());
                store
                    .cut_power(seed * 1000 + number as u64)
                    .expect("files are written");
                if let Cut::Both = cut {
                    world.lab.host.lose_power();
                }
                world.assert_kept(doomed);
                if !fuse.is_dead() {
                    let promised = outcome.expect("nothing happened to it").point.id;
                    assert_eq!(
                        world.moments.last().map(|moment| moment.id.as_str()),
                        Some(&*promised)
                    );
                }
                world.assert_next_backup_heals(options);
                world.assert_kept(doomed);
            });
        }
    }
}

/// The world before the run. Without any restore point there is no repository either.
fn begin(world: &World) -> World {
    let world = world.fork();
    if world.moments.is_empty() {
        std::fs::remove_dir(world.root()).expect("it is empty");
    }
    world
}

#[test]
fn the_power_fails_in_a_first_full_backup() {
    let world = World::new();
    cut_everywhere(&world, &Lab::options(), None, Cut::Repository);
}

#[test]
fn the_power_fails_in_an_incremental_backup() {
    for (state, cut) in [
        (DomainState::Running, Cut::Repository),
        (DomainState::Running, Cut::Both),
        (DomainState::ShutOff, Cut::Both),
    ] {
        let mut world = World::new();
        world.backup(&Lab::options());
        world.backup(&Lab::options());
        world.lab.host.change(DOMAIN, |domain| domain.state = state);
        cut_everywhere(&world, &Lab::options(), None, cut);
    }
}

#[test]
fn the_power_fails_in_a_copy() {
    let mut world = World::new();
    world.backup(&Lab::options());
    let copying = Options {
        copy: true,
        ..Lab::options()
    };
    cut_everywhere(&world, &copying, None, Cut::Repository);
}

#[test]
fn the_power_fails_in_a_backup_that_prunes() {
    let world = World::due_for_pruning();
    cut_everywhere(&world, &Lab::pruning(), Some(OCTOBER), Cut::Repository);
}

#[test]
fn the_power_fails_in_a_healing() {
    let mut world = World::new();
    world.backup(&Lab::options());
    world
        .lab
        .host
        .change(DOMAIN, |domain| domain.state = DomainState::ShutOff);
    let steps = steps_of(world.fork(), &Lab::options());
    let rename = steps.iter().position(|step| step.starts_with("rename"));
    let fuse = Fuse::at(rename.expect("a commit renames"), Blow::KilledBefore);
    world
        .crash(&Lab::options(), &fuse, CrashStore::new(&fuse))
        .expect_err("it was killed");
    cut_everywhere(&world, &Lab::options(), None, Cut::Both);
}
