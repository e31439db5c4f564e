//! Random writers, removals, collections and steps of the clock.

use proptest::prelude::*;

use super::world::{BLOCK, Draft, World};
use crate::repo::pack::data::CollectOptions;
use crate::repo::pack::data::tests::lab::{C, noise};
use crate::repo::pack_error::PackError;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A writer writes everything but does not commit yet. The numbers choose a parent and the
    /// contents of the blocks, of which there are few.
    Begin {
        parent: Option<u8>,
        blocks: Vec<u8>,
    },
    /// A writer checks, and commits if it may.
    Commit(u8),
    /// A writer is killed.
    Kill(u8),
    Remove(u8),
    Collect {
        percent: u8,
    },
    Pass {
        hours: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let blocks = proptest::collection::vec(0..12u8, 1..6);
    prop_oneof![
        4 => (proptest::option::of(any::<u8>()), blocks)
            .prop_map(|(parent, blocks)| Step::Begin { parent, blocks }),
        4 => any::<u8>().prop_map(Step::Commit),
        1 => any::<u8>().prop_map(Step::Kill),
        2 => any::<u8>().prop_map(Step::Remove),
        4 => prop_oneof![Just(0), Just(50), Just(100)].prop_map(|percent| Step::Collect { percent }),
        4 => prop_oneof![Just(1), Just(5), Just(25), Just(49), Just(80)]
            .prop_map(|hours| Step::Pass { hours }),
    ]
}

fn disk(blocks: &[u8]) -> Vec<u8> {
    blocks
        .iter()
        .flat_map(|seed| match seed {
            0 => vec![0; BLOCK * C],
            seed => noise(u64::from(*seed), BLOCK * C),
        })
        .collect()
}

fn chosen<T: Clone>(all: &[T], number: u8) -> Option<T> {
    all.get(usize::from(number) % all.len().max(1)).cloned()
}

fn run(steps: &[Step]) -> World {
    let world = World::new();
    let mut drafts: Vec<Draft> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let what = format!("step {number} of {steps:?}");
        let ids: Vec<u64> = world.points().keys().copied().collect();
        let place = |number: u8, count: usize| usize::from(number) % count.max(1);
        match step {
            Step::Begin { parent, blocks } => {
                let parent = parent.and_then(|number| chosen(&ids, number));
                let draft = world.draft(parent, &disk(blocks));
                drafts.push(draft.unwrap_or_else(|error| panic!("{what}: {error}")));
            }
            Step::Commit(number) if !drafts.is_empty() => {
                let draft = drafts.remove(place(*number, drafts.len()));
                match world.check(&draft) {
                    Ok(()) => world
                        .commit(draft)
                        .1
                        .unwrap_or_else(|error| panic!("{what}: {error}")),
                    Err(PackError::SessionLost { .. }) => {}
                    Err(error) => panic!("{what}: {error}"),
                }
            }
            Step::Kill(number) if !drafts.is_empty() => {
                drop(drafts.remove(place(*number, drafts.len())));
            }
            Step::Remove(number) => {
                if let Some(id) = chosen(&ids, *number) {
                    world.remove(id);
                }
            }
            Step::Collect { percent } => {
                let options = CollectOptions {
                    rewrite_percent: *percent,
                    ..CollectOptions::new("x")
                };
                world
                    .collect_with(&options)
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                world.assert_sound(&what);
            }
            Step::Pass { hours } => world.store.pass(*hours),
            Step::Commit(_) | Step::Kill(_) => {}
        }
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn live_data_stays_and_everything_else_goes(steps in proptest::collection::vec(step(), 1..30)) {
        let world = run(&steps);
        world.assert_collected("at the end");
        world.points().clear();
        world.assert_collected("without restore points");
        prop_assert_eq!(world.names("packs/").len(), 0);
        prop_assert_eq!(world.names("index/").len(), 0);
    }
}
