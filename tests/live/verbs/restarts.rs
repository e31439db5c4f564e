//! Domains that are stopped, started, reset and saved between backups.

use vmsnap::model::domain::DomainState;
use vmsnap::model::restore_point::{Consistency, Level};

use crate::embed::{Kind, Shape, TestDomain};
use crate::verbs::rng::Rng;
use crate::verbs::story::{Story, codes, levels};

const DISKS: [(Kind, u64); 2] = [(Kind::Qcow2, 8 << 20), (Kind::Qcow2, (3 << 20) + 512)];

fn story(name: &str) -> Story {
    Story::of(TestDomain::shaped(
        name,
        &Shape {
            disks: &DISKS,
            ..Shape::default()
        },
    ))
}

/// Makes a backup in this state, which has to be incremental.
fn increment(story: &mut Story, rng: &mut Rng, state: DomainState) {
    story.scribble(rng, 12);
    assert_eq!(story.domain.seen().state, state);
    let outcome = story.back_up();
    assert_eq!(
        levels(&outcome),
        [("vda", Level::Incremental), ("vdb", Level::Incremental)]
    );
    let expected = match state {
        DomainState::ShutOff => Consistency::Offline,
        _ => Consistency::Crash,
    };
    assert_eq!(outcome.point.consistency, expected);
}

#[test]
fn chain_continues_through_every_change_of_domain_state() {
    let mut rng = Rng::new();
    let mut story = story("states ");
    story.scribble(&mut rng, 20);
    let full = story.back_up();
    assert_eq!(levels(&full), [("vda", Level::Full), ("vdb", Level::Full)]);
    assert_eq!(full.point.consistency, Consistency::Offline);

    increment(&mut story, &mut rng, DomainState::ShutOff);
    story.domain.handle().create().expect("it starts");
    increment(&mut story, &mut rng, DomainState::Running);
    story.domain.handle().suspend().expect("it pauses");
    increment(&mut story, &mut rng, DomainState::Paused);
    story.domain.destroy();
    increment(&mut story, &mut rng, DomainState::ShutOff);
    story.domain.start();
    story.scribble(&mut rng, 5);
    story.domain.destroy();
    story.scribble(&mut rng, 5);
    story.domain.start();
    increment(&mut story, &mut rng, DomainState::Paused);
    story.prove();
}

#[test]
fn a_chain_goes_on_after_a_reset_and_a_restart() {
    let mut rng = Rng::new();
    let mut story = story("reset ");
    story.domain.handle().create().expect("it starts");
    story.scribble(&mut rng, 15);
    story.back_up();
    story.scribble(&mut rng, 5);
    story.domain.handle().reset().expect("it is reset");
    increment(&mut story, &mut rng, DomainState::Running);
    story.domain.destroy();
    story.domain.handle().create().expect("it starts");
    increment(&mut story, &mut rng, DomainState::Running);
    story.prove();
}

#[test]
fn a_chain_goes_on_while_and_after_the_memory_is_saved() {
    let mut rng = Rng::new();
    let mut story = story("saved ");
    story.domain.handle().create().expect("it starts");
    story.scribble(&mut rng, 15);
    story.back_up();
    story.scribble(&mut rng, 5);
    story.domain.handle().managed_save(0).expect("it is saved");
    let outcome = story.back_up();
    assert_eq!(levels(&outcome)[0], ("vda", Level::Incremental));
    assert_eq!(outcome.point.consistency, Consistency::Crash);
    assert!(codes(&outcome.point.findings).contains(&"managed-save"));
    story.domain.handle().create().expect("it wakes up");
    increment(&mut story, &mut rng, DomainState::Running);
    story.domain.handle().managed_save(0).expect("it is saved");
    story.domain.handle().create().expect("it wakes up");
    increment(&mut story, &mut rng, DomainState::Running);
    story.prove();
}
