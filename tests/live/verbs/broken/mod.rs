//! Broken states on real domains: the next ordinary backup is correct, and as incremental as
//! possible.

use std::path::Path;

use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::Outcome;

use crate::embed::{Kind, Shape, TestDomain, run_ok};
use crate::verbs::rng::Rng;
use crate::verbs::story::Story;

mod bitmaps;
mod identity;
mod images;
mod leftovers;
mod repository;

const DISKS: [(Kind, u64); 2] = [(Kind::Qcow2, 4 << 20), (Kind::Qcow2, (2 << 20) + 512)];

/// A story with a full and an incremental restore point, later changes, and a shut-off domain.
fn begun(name: &str, rng: &mut Rng) -> Story {
    let domain = TestDomain::shaped(
        name,
        &Shape {
            disks: &DISKS,
            ..Shape::default()
        },
    );
    let mut story = Story::of(domain);
    story.domain.start();
    story.scribble(rng, 15);
    story.back_up();
    story.scribble(rng, 5);
    story.back_up();
    story.scribble(rng, 5);
    story.domain.destroy();
    story
}

/// Starts a shut-off domain if `active`.
fn bring(story: &Story, active: bool) {
    if active {
        story.domain.start();
    }
}

/// Shuts the domain off if it is active.
fn off(story: &Story) {
    if story.domain.seen().state.is_active() {
        story.domain.destroy();
    }
}

/// The number of a disk's parent, or `None` for a full image.
fn upon(story: &Story, outcome: &Outcome, target: &str) -> Option<usize> {
    let disk = outcome.point.disk(target).expect("it was backed up");
    let parent = disk.parent.as_deref()?;
    assert_eq!(disk.level, Level::Incremental);
    let number = story.ids().iter().position(|id| *id == parent);
    Some(number.expect("the parent is a restore point of the story"))
}

/// Makes the next backup and checks the parents of `vda` and `vdb`; `None` means full. The backup
/// after it must be incremental to it.
fn assert_next(story: &mut Story, rng: &mut Rng, expected: [Option<usize>; 2]) -> Outcome {
    story.scribble(rng, 5);
    let outcome = story.back_up();
    let stands = ["vda", "vdb"].map(|target| upon(story, &outcome, target));
    let reasons = ["vda", "vdb"].map(|target| crate::verbs::story::reason(&outcome, target));
    assert_eq!(stands, expected, "{reasons:?}");
    story.scribble(rng, 5);
    let newest = Some(story.ids().len() - 1);
    let next = story.back_up();
    assert_eq!(
        ["vda", "vdb"].map(|target| upon(story, &next, target)),
        [newest; 2]
    );
    outcome
}

/// A `qemu-img bitmap` command on a disk of a shut-off domain.
fn bitmap(story: &Story, target: &str, action: &str, name: &str) {
    let image = story.domain.image_now(target);
    run_ok("qemu-img", [&"bitmap", &action, &"-f", &"qcow2", &image, &name]);
}

/// Copies a whole image, as a storage snapshot would.
fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).expect("it is copied");
}
