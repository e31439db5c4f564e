//! Comparisons of real domains with their newest restore points.

use std::path::Path;

use vmsnap::model::restore_point::Level;
use vmsnap::ops::compare::{Options, Outcome, Verdict, compare};
use vmsnap::ops::{Class, PlaceWishes, Result};

use crate::embed::{Kind, Shape, TestDomain, run_ok};
use crate::verbs::rng::Rng;
use crate::verbs::story::{Story, levels, reason};

const DISKS: [(Kind, u64); 2] = [(Kind::Qcow2, 8 << 20), (Kind::Qcow2, (2 << 20) + 512)];

fn story(name: &str) -> Story {
    let shape = Shape {
        disks: &DISKS,
        ..Shape::default()
    };
    Story::of(TestDomain::shaped(name, &shape))
}

fn compared(story: &Story, sample: Option<u64>) -> Result<Outcome> {
    let options = Options {
        wait: std::time::Duration::ZERO,
        sample,
        seed: 3,
        places: PlaceWishes::default(),
    };
    compare(&story.domain.seen().name, &story.context(), &options)
}

#[test]
fn unchanged_clusters_are_equal_running_and_shut_off() {
    let mut rng = Rng::new();
    let mut story = story("compared ");
    story.write("vda", 0, 8 << 20, 0x31);
    for active in [true, false, true] {
        if active {
            story.domain.start();
        } else {
            story.domain.destroy();
        }
        story.scribble(&mut rng, 10);
        story.back_up();
        story.scribble(&mut rng, 3);
        for sample in [None, Some(7)] {
            let outcome = compared(&story, sample).expect("compared");
            assert!(outcome.is_same(), "{:?}", outcome.disks);
            assert_eq!(outcome.disks.len(), 2);
            assert!(outcome.disks.iter().any(|disk| disk.compared > 0));
        }
        assert!(story.history().leftovers.is_empty());
    }
    assert_eq!(
        levels(&story.back_up()),
        [("vda", Level::Incremental), ("vdb", Level::Incremental)]
    );
    story.prove();
}

/// Clears a bitmap, so that it forgets earlier writes.
fn clear(image: &Path, bitmap: &str) {
    run_ok("qemu-img", [&"bitmap", &"--clear", &image, &bitmap]);
}

#[test]
fn write_unknown_to_the_bitmap_is_found_and_forces_a_full() {
    for active in [true, false] {
        let mut story = story("missed ");
        story.write("vda", 0, 8 << 20, 0x21);
        let first = story.back_up();
        let bitmap = first.point.checkpoint.expect("it was made").name;
        story.write("vda", 3 << 20, 65536, 0x22);
        clear(&story.domain.image("vda"), &bitmap);
        if active {
            story.domain.start();
        }
        let outcome = compared(&story, None).expect("compared");
        let vda = &outcome.disks[0];
        assert_eq!(
            (vda.differing, &vda.places[..]),
            (1, &[3 << 20][..]),
            "active: {active}"
        );
        assert_eq!(outcome.disks[1].differing, 0);
        let again = compared(&story, None).expect("compared");
        assert_eq!(
            again.verdict(),
            Verdict::Differs,
            "the missed write is still reported: {again:?}"
        );
        assert_eq!(again.uncompared[0].target, "vda");
        let healed = story.back_up();
        assert_eq!(
            levels(&healed),
            [("vda", Level::Full), ("vdb", Level::Incremental)]
        );
        assert!(
            reason(&healed, "vda").contains("found a write that a bitmap"),
            "{}",
            reason(&healed, "vda")
        );
        assert!(compared(&story, None).expect("compared").is_same());
        story.prove();
    }
}

#[test]
fn without_a_restore_point_there_is_nothing_to_compare() {
    let story = story("nothing ");
    let error = compared(&story, None).expect_err("there is none");
    assert_eq!(error.class(), Class::NotFound, "{error}");
}
