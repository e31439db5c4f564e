//! Repositories with a missing or damaged file: only the restore points that need it are lost, and
//! the next backup does not need it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use vmsnap::model::text::with_sources;
use vmsnap::ops::restore::Format;

use super::{assert_next, begun, bring};
use crate::verbs::rng::Rng;
use crate::verbs::story::Story;

/// The folder of a restore point.
fn folder(story: &Story, number: usize) -> PathBuf {
    let id = story.ids()[number].to_owned();
    let history = story.history();
    PathBuf::from(&history.get(&id).expect("it is kept").location)
}

/// Marks these restore points as lost, given by their numbers, the highest first.
fn lose<const N: usize>(story: &mut Story, numbers: [usize; N]) {
    for number in numbers {
        let id = story.ids()[number].to_owned();
        story.lose(&id);
    }
}

/// A story with four restore points, numbered from 0.
fn four(name: &str, rng: &mut Rng) -> Story {
    let mut story = begun(name, rng);
    for _ in 0..2 {
        story.back_up();
        story.scribble(rng, 5);
    }
    story
}

#[test]
fn a_missing_image_of_the_newest_restore_point_costs_one_step() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = four("image lost ", &mut rng);
        fs::remove_file(folder(&story, 3).join("vda.qcow2")).expect("it is removed");
        // Each depends on those before it: 0 to 2 are unaffected.
        lose(&mut story, [3]);
        bring(&story, active);
        story.scribble(&mut rng, 5);
        let outcome = story.back_up();
        assert_eq!(super::upon(&story, &outcome, "vda"), Some(2));
        story.prove_those_left();
    }
}

#[test]
fn missing_manifest_in_the_middle_falls_back_to_the_one_before() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = four("manifest lost ", &mut rng);
        fs::remove_file(folder(&story, 2).join("manifest.json")).expect("it is removed");
        lose(&mut story, [3, 2]);
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
        story.prove_those_left();
        let findings = story.list().findings;
        assert!(
            findings
                .iter()
                .any(|finding| finding.message.contains("manifest")),
            "{findings:?}"
        );
    }
}

#[test]
fn a_period_whose_full_was_deleted_begins_with_a_full_again() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = four("full lost ", &mut rng);
        fs::remove_dir_all(folder(&story, 0)).expect("it is removed");
        lose(&mut story, [3, 2, 1, 0]);
        bring(&story, active);
        assert_next(&mut story, &mut rng, [None, None]);
        story.prove_those_left();
    }
}

/// A restore finds a changed byte, because it reads all data. A backup finds it only by chance.
#[test]
fn flipped_byte_in_a_parent_fails_every_restore_that_needs_it() {
    let mut rng = Rng::new();
    let mut story = four("flipped ", &mut rng);
    let damaged = folder(&story, 0).join("vda.qcow2");
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&damaged)
        .expect("it is there");
    let (at, mut byte) = (file.metadata().expect("it is there").len() / 2, [0]);
    file.read_exact_at(&mut byte, at)
        .and_then(|()| file.write_all_at(&[byte[0] ^ 1], at))
        .expect("it is changed");
    story.domain.start();
    story.scribble(&mut rng, 5);
    let outcome = story.back_up();
    // If a spot check hits the byte, the backup is full and correct.
    let stands_alone = super::upon(&story, &outcome, "vda").is_none();
    let newest = story.ids().len() - 1;
    if stands_alone {
        story.prove_one(newest);
    }
    let without_it = story.ids().len() - usize::from(stands_alone);
    for id in &story.ids()[..without_it] {
        let to = story.folder.path().join("damaged");
        let refused = story.restore(id, &to, Format::Raw, None).map(drop);
        let refused = refused.expect_err("its digest is wrong");
        assert!(with_sources(&refused).contains("vda.qcow2"), "{refused}");
        assert!(!to.join("vda.raw").exists(), "no wrong bytes are restored");
        let _ = fs::remove_dir_all(&to);
    }
}

#[test]
fn a_cut_off_image_is_noticed_by_its_size_and_passed_over() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = four("cut off ", &mut rng);
        let image = folder(&story, 3).join("vdb.qcow2");
        let file = fs::File::options().write(true).open(&image).expect("it is there");
        let length = file.metadata().expect("it is there").len();
        file.set_len(length - 1).expect("it is cut");
        lose(&mut story, [3]);
        bring(&story, active);
        story.scribble(&mut rng, 5);
        let outcome = story.back_up();
        assert_eq!(super::upon(&story, &outcome, "vdb"), Some(2));
        story.prove_those_left();
    }
}
