//! Backups into a pack repository that stop at any step on their own host.

use vmsnap::testkit::{Blow, Fuse};

use super::world::World;
use crate::lab::Lab;

fn end_everywhere(world: &World) {
    let steps = {
        let fuse = Fuse::default();
        let mut world = world.fork();
        world.crash(&Lab::options(), &fuse).expect("it is not disturbed");
        fuse.steps()
    };
    assert!(steps.len() > 5, "{steps:#?}");
    for (number, step) in steps.iter().enumerate() {
        for blow in Blow::ALL {
            eprintln!("step {number} ({step}), {blow:?}");
            let mut world = world.fork();
            let fuse = Fuse::at(number, blow);
            let _ = world.crash(&Lab::options(), &fuse);
            world.assert_kept();
            world.assert_next_backup_heals();
        }
    }
}

#[test]
fn first_backup_ends_anywhere() {
    end_everywhere(&World::new());
}

#[test]
fn incremental_backup_ends_anywhere() {
    let mut world = World::new();
    world.backup();
    end_everywhere(&world);
}
