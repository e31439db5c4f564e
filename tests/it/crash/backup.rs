//! Backups that stop at any step.

use vmsnap::host::Host;
use vmsnap::model::domain::DomainState;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::Options;
use vmsnap::testkit::{Blow, CrashStore, Fuse};

use super::world::{DOMAIN, OCTOBER, World, at_step, every_end, steps_of};
use crate::lab::Lab;

/// The ways to stop that suffice for tests whose steps another test stops in all ways. Being killed
/// after a step equals being killed before the next one, and a lost answer matters only where
/// something starts.
const FEWER: [Blow; 2] = [Blow::KilledAfter, Blow::Fails];

/// Ends the run at every step in each of these ways, checks what is left, and checks that the next
/// run repairs it.
fn end_everywhere(
    world: &World,
    options: &Options,
    doomed: Option<&str>,
    blows: &[Blow],
) -> Vec<(usize, Blow, Level)> {
    end_everywhere_before(world, options, options, doomed, blows)
}

/// Does the same, but the next run has other options.
fn end_everywhere_before(
    world: &World,
    options: &Options,
    next: &Options,
    doomed: Option<&str>,
    blows: &[Blow],
) -> Vec<(usize, Blow, Level)> {
    let steps = steps_of(world.fork(), options);
    let mut levels = Vec::new();
    for (number, blow) in every_end(&steps, blows) {
        at_step(&steps, number, &blow, || {
            let mut world = world.fork();
            let fuse = Fuse::at(number, blow);
            let outcome = world.crash(options, &fuse, CrashStore::new(&fuse));
            let before = world.moments.len();
            world.assert_kept(doomed);
            if outcome.is_ok() && !fuse.is_dead() {
                assert!(
                    world.moments.len() > before || doomed.is_some(),
                    "the reported restore point exists"
                );
            }
            levels.push((number, blow, world.assert_next_backup_heals(next)));
            world.assert_kept(doomed);
            world.assert_all_give_back();
        });
    }
    levels
}

#[test]
fn a_first_full_backup_ends_anywhere() {
    let world = World::new();
    end_everywhere(&world, &Lab::options(), None, &Blow::ALL);
}

#[test]
fn incremental_backup_ends_anywhere_and_next_is_incremental() {
    let mut world = World::new();
    world.backup(&Lab::options());
    world.backup(&Lab::options());
    for (number, blow, level) in end_everywhere(&world, &Lab::options(), None, &Blow::ALL) {
        assert_eq!(level, Level::Incremental, "step {number}, {blow:?}");
    }
}

#[test]
fn a_backup_of_a_shut_off_domain_ends_anywhere() {
    let mut world = World::new();
    world.backup(&Lab::options());
    world.backup(&Lab::options());
    world
        .lab
        .host
        .change(DOMAIN, |domain| domain.state = DomainState::ShutOff);
    for (number, blow, level) in end_everywhere(&world, &Lab::options(), None, &Blow::ALL) {
        assert_eq!(level, Level::Incremental, "step {number}, {blow:?}");
    }
}

#[test]
fn a_copy_ends_anywhere_and_the_chain_goes_on() {
    let copying = Options {
        copy: true,
        ..Lab::options()
    };
    for state in [DomainState::Running, DomainState::ShutOff] {
        let mut world = World::new();
        world.backup(&Lab::options());
        world.backup(&Lab::options());
        world.lab.host.change(DOMAIN, |domain| domain.state = state);
        for (number, blow, level) in
            end_everywhere_before(&world, &copying, &Lab::options(), None, &Blow::ALL)
        {
            assert_eq!(level, Level::Incremental, "step {number}, {blow:?}, {state:?}");
        }
    }
}

#[test]
fn a_backup_that_retires_checkpoints_ends_anywhere() {
    let options = Options {
        keep_checkpoints: 1,
        ..Lab::options()
    };
    let cases: [(DomainState, &[Blow]); 2] = [
        (DomainState::Running, &FEWER),
        (DomainState::ShutOff, &[Blow::KilledAfter]),
    ];
    for (state, blows) in cases {
        let mut world = World::new();
        world.lab.host.change(DOMAIN, |domain| domain.state = state);
        for _ in 0..3 {
            world.backup(&Lab::options());
        }
        assert_eq!(world.checkpoints(), 3);
        end_everywhere(&world, &options, None, blows);
    }
}

#[test]
fn a_backup_that_prunes_ends_anywhere() {
    let world = World::due_for_pruning();
    end_everywhere(&world, &Lab::pruning(), Some(OCTOBER), &FEWER);
}

#[test]
fn finishing_an_interrupted_removal_ends_anywhere() {
    let (mut world, options) = (World::due_for_pruning(), Lab::pruning());
    let steps = steps_of(world.fork(), &options);
    let removes = |step: &String| step.starts_with("remove_file") && step.contains(".removing-");
    let number = steps.iter().position(removes).expect("it prunes");
    let fuse = Fuse::at(number, Blow::KilledAfter);
    let _ = world.crash(&options, &fuse, CrashStore::new(&fuse));
    assert!(fuse.is_dead());
    world.assert_kept(Some(OCTOBER));
    world.guest_writes();
    end_everywhere(&world, &options, Some(OCTOBER), &[Blow::KilledAfter]);
}

#[test]
fn registering_a_lost_checkpoint_ends_anywhere() {
    for state in [DomainState::Running, DomainState::ShutOff] {
        let mut world = World::new();
        world.backup(&Lab::options());
        let made = world.lab.made[0].clone();
        let domain = world.lab.host.domain(DOMAIN).expect("it is there");
        world
            .lab
            .host
            .forget_checkpoint(&domain, &made)
            .expect("it was there");
        world.lab.host.change(DOMAIN, |domain| domain.state = state);
        for (number, blow, level) in end_everywhere(&world, &Lab::options(), None, &FEWER) {
            assert_eq!(level, Level::Incremental, "step {number}, {blow:?}");
        }
    }
}

#[test]
fn repair_ends_anywhere() {
    for state in [DomainState::Running, DomainState::ShutOff] {
        let mut world = World::new();
        world.backup(&Lab::options());
        world.lab.host.change(DOMAIN, |domain| domain.state = state);
        let options = Lab::options();
        let steps = steps_of(world.fork(), &options);
        let number = |name: &str| {
            let found = steps.iter().position(|step| step.starts_with(name));
            found.unwrap_or_else(|| panic!("no step {name} in {steps:#?}"))
        };
        let mut ends = vec![
            (number("begin the job"), Blow::KilledAfter),
            (number("rename"), Blow::KilledBefore),
        ];
        if state == DomainState::ShutOff {
            ends.push((number("add the bitmap"), Blow::KilledAfter));
        }
        for (number, blow) in ends {
            let mut world = world.fork();
            let fuse = Fuse::at(number, blow);
            world
                .crash(&options, &fuse, CrashStore::new(&fuse))
                .expect_err("it was killed");
            at_step(&steps, number, &"the first run", || {
                end_everywhere(&world, &options, None, &[Blow::KilledAfter])
            });
        }
    }
}
