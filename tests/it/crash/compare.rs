//! A process killed at every step of a comparison that has found a missed write.

use vmsnap::model::restore_point::Level;
use vmsnap::ops::compare::compare;
use vmsnap::testkit::{Blow, CrashStore, Fuse};

use super::world::{DOMAIN, World, at_step, every_end};
use crate::lab::{CLUSTER, Lab};

/// A domain with a restore point; the bitmap of its first disk has missed a write.
fn world() -> World {
    let mut world = World::new();
    world.backup(&Lab::options());
    world
        .lab
        .host
        .disk(DOMAIN, "vda", |disk| disk.swap_content(CLUSTER + 10, &[77; 10]));
    world
}

/// Compares in a process that dies with the fuse.
fn crash(world: &mut World, fuse: &Fuse) -> bool {
    let compared = world.crash_in(fuse, CrashStore::new(fuse), |context| {
        compare(DOMAIN, context, &Lab::comparing())
    });
    compared.is_ok()
}

/// When the job begins to end, the difference has been read. It must be kept, however the process
/// ends.
#[test]
fn missed_write_is_kept_wherever_the_comparison_ends() {
    for is_ending_well in [true, false] {
        let prepared = world();
        // With a job that cannot be ended, the comparison fails and undoes its work.
        prepared.lab.host.fail_end(!is_ending_well);
        let fuse = Fuse::default();
        assert_eq!(crash(&mut prepared.fork(), &fuse), is_ending_well);
        let steps = fuse.steps();
        let ending = steps.iter().position(|step| step == "finish the job");
        let ending = ending.unwrap_or_else(|| panic!("no end of a job in {steps:#?}"));
        for (number, blow) in every_end(&steps, &[Blow::KilledBefore, Blow::KilledAfter]) {
            at_step(&steps, number, &blow, || {
                let mut world = prepared.fork();
                crash(&mut world, &Fuse::at(number, blow));
                world.lab.host.fail_end(false);
                world.reopen();
                let disks = world.disks();
                let outcome = world.lab.backup(DOMAIN).expect("healed");
                let disk = outcome.point.disk("vda").expect("it is there");
                if number >= ending {
                    assert_eq!(disk.level, Level::Full);
                    assert!(
                        disk.reason.contains("found a write that a bitmap"),
                        "{}",
                        disk.reason
                    );
                }
                if disk.level == Level::Full {
                    assert_eq!(
                        world.lab.restored(DOMAIN, "latest", "vda").expect("restored"),
                        disks["vda"]
                    );
                }
            });
        }
    }
}
