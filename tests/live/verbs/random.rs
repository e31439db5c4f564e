//! A full restore point and five incremental ones, with random writes, zeroes and discards between
//! them.

use vmsnap::model::domain::DomainState;
use vmsnap::model::restore_point::{Consistency, Level};

use crate::embed::{Kind, Shape, TestDomain};
use crate::verbs::rng::Rng;
use crate::verbs::story::{Act, Story, levels};

/// The second disk ends within a cluster.
const DISKS: [(Kind, u64); 2] = [(Kind::Qcow2, 16 << 20), (Kind::Qcow2, (9 << 20) + 77 * 512)];

fn domain(name: &str) -> TestDomain {
    TestDomain::shaped(
        name,
        &Shape {
            disks: &DISKS,
            ..Shape::default()
        },
    )
}

fn tell(story: &mut Story, rng: &mut Rng, state: DomainState) {
    story.scribble(rng, 30);
    let full = story.back_up();
    assert_eq!(levels(&full), [("vda", Level::Full), ("vdb", Level::Full)]);
    assert_eq!(full.point.consistency, Consistency::Crash);
    for round in 1..=5 {
        // Rounds 2 and 4 are idle. In round 5 a cluster is written and discarded again.
        match round {
            2 | 4 => {}
            5 => {
                let (at, length) = (3 << 20, 2 << 20);
                story.write("vda", at, length, 0xee);
                story.act("vda", Act::Discard { at, length });
                let end = story.bytes("vdb").len() as u64;
                story.write("vdb", end - 512, 512, 0xdd);
            }
            _ => story.scribble(rng, 25),
        }
        let before = story.ids().last().map(|id| (*id).to_owned());
        let outcome = story.back_up();
        assert_eq!(
            levels(&outcome),
            [("vda", Level::Incremental), ("vdb", Level::Incremental)]
        );
        assert_eq!(outcome.point.parent, before);
        assert_eq!(story.domain.seen().state, state);
        if round == 2 || round == 4 {
            let copied = |disk: &vmsnap::model::restore_point::DiskPoint| disk.data_bytes + disk.zero_bytes;
            assert_eq!(
                outcome.point.disks.iter().map(copied).sum::<u64>(),
                0,
                "the round was idle"
            );
        }
    }
    story.prove();
}

#[test]
fn full_and_five_incrementals_of_a_running_domain_are_exact() {
    let mut rng = Rng::new();
    let domain = domain("random ");
    domain.start();
    domain.handle().resume().expect("it runs");
    let mut story = Story::of(domain);
    tell(&mut story, &mut rng, DomainState::Running);
}

#[test]
fn full_and_five_incrementals_of_a_paused_domain_are_exact() {
    let mut rng = Rng::new();
    let domain = domain("paused ");
    domain.start();
    let mut story = Story::of(domain);
    tell(&mut story, &mut rng, DomainState::Paused);
}
