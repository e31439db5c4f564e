//! QEMU and vmsnap are killed during or between backups.

use std::path::Path;

use vmsnap::host::{BackupRequest, CheckpointRequest, DiskRequest, Host, Places};
use vmsnap::model::restore_point::Level;
use vmsnap::ops::journal::JournalEntry;
use vmsnap::repo::{PendingPoint, Repository};

use crate::embed::{Kind, Lab, Shape, TestDomain, run_ok};
use crate::host::names;
use crate::verbs::rng::Rng;
use crate::verbs::story::{Story, codes, levels, reason};

const DISKS: [(Kind, u64); 2] = [(Kind::Qcow2, 4 << 20), (Kind::Qcow2, (2 << 20) + 512)];
const INCREMENTAL: [(&str, Level); 2] = [("vda", Level::Incremental), ("vdb", Level::Incremental)];
const FULL: [(&str, Level); 2] = [("vda", Level::Full), ("vdb", Level::Full)];

fn story(name: &str) -> Story {
    Story::of(TestDomain::shaped(
        name,
        &Shape {
            disks: &DISKS,
            ..Shape::default()
        },
    ))
}

/// Takes the disks' content after a kill of QEMU as known, because QEMU's caches are lost.
fn learn(story: &mut Story) {
    for target in story.targets() {
        story.learn(&target);
    }
}

#[test]
fn killed_qemu_makes_the_next_backup_full() {
    let mut rng = Rng::new();
    // With bitmaps that are already in the image, and with bitmaps that QEMU never wrote there.
    for restarted in [true, false] {
        let mut story = story("killed ");
        story.domain.start();
        story.scribble(&mut rng, 15);
        story.back_up();
        story.scribble(&mut rng, 5);
        story.back_up();
        if restarted {
            story.domain.destroy();
            story.domain.start();
            story.scribble(&mut rng, 5);
            assert_eq!(levels(&story.back_up()), INCREMENTAL);
        }
        story.scribble(&mut rng, 5);
        story.domain.kill();
        story.domain.start();
        learn(&mut story);
        story.scribble(&mut rng, 5);
        let full = story.back_up();
        assert_eq!(levels(&full), FULL);
        for target in ["vda", "vdb"] {
            assert!(
                reason(&full, target).contains("missing or inconsistent"),
                "{}",
                reason(&full, target)
            );
        }
        let made = full.point.checkpoint.expect("it was made").name;
        assert_eq!(names(&story.domain), [made], "the broken checkpoints are gone");
        for _ in 0..2 {
            story.scribble(&mut rng, 5);
            assert_eq!(levels(&story.back_up()), INCREMENTAL);
        }
        story.domain.destroy();
        story.scribble(&mut rng, 5);
        assert_eq!(levels(&story.back_up()), INCREMENTAL);
        story.prove();
    }
}

#[test]
fn killed_qemu_makes_the_next_offline_backup_full() {
    let mut rng = Rng::new();
    let mut story = story("killed off ");
    story.scribble(&mut rng, 15);
    story.back_up();
    story.domain.start();
    story.scribble(&mut rng, 5);
    story.back_up();
    story.scribble(&mut rng, 5);
    story.domain.kill();
    learn(&mut story);
    story.scribble(&mut rng, 5);
    let full = story.back_up();
    assert_eq!(levels(&full), FULL);
    let made = full.point.checkpoint.expect("it was made").name;
    assert_eq!(names(&story.domain), [made.as_str()]);
    for target in ["vda", "vdb"] {
        let bitmaps = Lab::get().host.bitmap_names(&story.domain.seen(), target);
        assert_eq!(bitmaps.expect("they are listed"), [made.as_str()]);
    }
    story.domain.start();
    story.scribble(&mut rng, 5);
    assert_eq!(levels(&story.back_up()), INCREMENTAL);
    story.prove();
}

/// The step at which the run is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    Noted,
    Begun,
}

/// Does what a backup does until it is killed, without any cleanup. `since` is the parent's
/// checkpoint.
pub(super) fn killed_run(story: &Story, since: Option<&str>, until: Until) -> (Places, String) {
    let host = &Lab::get().host;
    let domain = story.domain.seen();
    let context = story.context();
    let repository = story.repo.domain(&domain.name).expect("a name that fits");
    let locked = repository.try_lock().expect("nobody holds it");
    let time = context.now.timestamp();
    let pending = locked
        .begin("vmsnap-backup-monthly-2026-11", time)
        .expect("it begins");
    let run = uuid::Uuid::new_v4().to_string();
    let places = host
        .places(&domain, &story.targets(), &story.options.places, &run)
        .expect("there are places");
    let intent = JournalEntry {
        uuid: domain.uuid.clone(),
        mark: format!("vmsnap run {run}"),
        checkpoint: Some("virtnbdbackup.77".to_owned()),
        places: places.clone(),
        freezes: false,
    };
    note(pending.as_ref(), &intent);
    if until == Until::Begun {
        let disk = |target: &String| DiskRequest {
            target: target.clone(),
            since: since.map(str::to_owned),
            checkpointed: true,
        };
        let request = BackupRequest {
            checkpoint: Some(CheckpointRequest {
                name: "virtnbdbackup.77".to_owned(),
                mark: intent.mark,
            }),
            disks: story.targets().iter().map(disk).collect(),
            places: places.clone(),
            freeze: None,
            now: time.as_second(),
            stop: context.stop,
        };
        std::mem::forget(host.begin_backup(&domain, &request).expect("it begins"));
        let partial = std::path::PathBuf::from(pending.leave());
        std::fs::write(partial.join("vda.qcow2"), "half an image").expect("it is written");
    } else {
        std::mem::forget(pending);
    }
    (places, run)
}

fn note(pending: &dyn PendingPoint, intent: &JournalEntry) {
    let text = serde_json::to_vec(intent).expect("it is JSON");
    pending.write_note(&text).expect("it is noted");
}

/// Asserts that the next backup cleans up after the killed run and continues the chain.
fn assert_healed(story: &mut Story, places: &Places, expected: [(&str, Level); 2]) {
    let before = names(&story.domain);
    let outcome = story.back_up();
    assert_eq!(levels(&outcome), expected);
    assert!(
        codes(&outcome.findings).contains(&"healed-partial"),
        "{:?}",
        outcome.findings
    );
    let scratch = places.scratch.iter().map(|(_, file)| file);
    for path in places.sockets.iter().chain(scratch).chain(&places.own_dirs) {
        assert!(!Path::new(path).exists(), "{} is left", path.display());
    }
    let made = outcome.point.checkpoint.expect("it was made").name;
    let now = names(&story.domain);
    assert_eq!(now.last(), Some(&made));
    if expected == INCREMENTAL {
        let mut good = before;
        good.retain(|name| name != "virtnbdbackup.77");
        good.push(made);
        assert_eq!(now, good, "only the killed run's checkpoint is gone");
    }
}

/// A story with a full and an incremental restore point, and the name of the newest checkpoint.
fn begun(name: &str, active: bool, rng: &mut Rng) -> (Story, String) {
    let mut story = story(name);
    if active {
        story.domain.start();
    }
    story.scribble(rng, 15);
    story.back_up();
    story.scribble(rng, 5);
    let outcome = story.back_up();
    story.scribble(rng, 5);
    (story, outcome.point.checkpoint.expect("it was made").name)
}

#[test]
fn run_killed_during_its_job_loses_only_its_own_point() {
    let mut rng = Rng::new();
    let (mut story, since) = begun("dead run ", true, &mut rng);
    let (places, _) = killed_run(&story, Some(&since), Until::Begun);
    assert!(places.sockets[0].exists() && !story.domain.strangers().is_empty());
    story.scribble(&mut rng, 10);
    assert_healed(&mut story, &places, INCREMENTAL);
    story.scribble(&mut rng, 5);
    story.back_up();
    story.prove();
}

#[test]
fn a_run_killed_before_its_job_is_cleared_away() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let (mut story, since) = begun("unborn ", active, &mut rng);
        let (places, _) = killed_run(&story, Some(&since), Until::Noted);
        assert_healed(&mut story, &places, INCREMENTAL);
        story.prove();
    }
}

#[test]
fn killed_first_run_blocks_nothing() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = story("first ");
        if active {
            story.domain.start();
        }
        story.scribble(&mut rng, 15);
        let (places, _) = killed_run(&story, None, Until::Begun);
        assert_healed(&mut story, &places, FULL);
        let checkpoints = names(&story.domain);
        assert_eq!(checkpoints.len(), 1, "{checkpoints:?}");
        story.scribble(&mut rng, 5);
        assert_eq!(levels(&story.back_up()), INCREMENTAL);
        story.prove();
    }
}

#[test]
fn killed_run_is_cleared_after_the_domain_restarted() {
    let mut rng = Rng::new();
    let (mut story, since) = begun("dead, restarted ", true, &mut rng);
    let (places, _) = killed_run(&story, Some(&since), Until::Begun);
    story.scribble(&mut rng, 5);
    story.domain.destroy();
    story.domain.start();
    story.scribble(&mut rng, 5);
    assert_healed(&mut story, &places, INCREMENTAL);
    story.prove();
}

#[test]
fn killed_run_is_cleared_after_the_domain_was_shut_off() {
    let mut rng = Rng::new();
    let (mut story, since) = begun("dead, off ", true, &mut rng);
    let (places, _) = killed_run(&story, Some(&since), Until::Begun);
    story.scribble(&mut rng, 5);
    story.domain.destroy();
    story.scribble(&mut rng, 5);
    assert_healed(&mut story, &places, INCREMENTAL);
    for target in ["vda", "vdb"] {
        let bitmaps = Lab::get().host.bitmap_names(&story.domain.seen(), target);
        assert!(
            !bitmaps
                .expect("they are listed")
                .contains(&"virtnbdbackup.77".to_owned())
        );
    }
    story.prove();
}

#[test]
fn a_killed_run_whose_qemu_was_killed_too_is_cleared_away() {
    let mut rng = Rng::new();
    let (mut story, since) = begun("all dead ", true, &mut rng);
    let (places, _) = killed_run(&story, Some(&since), Until::Begun);
    story.domain.kill();
    story.domain.start();
    learn(&mut story);
    assert_healed(&mut story, &places, FULL);
    story.scribble(&mut rng, 5);
    assert_eq!(levels(&story.back_up()), INCREMENTAL);
    story.prove();
}

#[test]
fn readers_of_a_killed_offline_run_are_ended() {
    let mut rng = Rng::new();
    let (mut story, since) = begun("readers ", false, &mut rng);
    let (places, run) = killed_run(&story, Some(&since), Until::Begun);
    assert!(
        run_ok("ps", [&"-eo", &"args"]).contains(&run),
        "its readers are still there"
    );
    assert!(story.domain.handle().create().is_err(), "and hold the images");
    assert_healed(&mut story, &places, INCREMENTAL);
    assert!(!run_ok("ps", [&"-eo", &"stat,args"]).contains(&run));
    story.domain.start();
    story.scribble(&mut rng, 5);
    assert_eq!(levels(&story.back_up()), INCREMENTAL);
    story.prove();
}

/// Killed after its bitmap was in the first image, but before libvirt recorded the checkpoint.
#[test]
fn a_bitmap_that_a_killed_run_left_without_a_checkpoint_goes() {
    let mut rng = Rng::new();
    for started in [false, true] {
        let (mut story, since) = begun("half made ", false, &mut rng);
        let (places, _) = killed_run(&story, Some(&since), Until::Noted);
        let image = story.domain.image("vda");
        run_ok("qemu-img", [&"bitmap", &"--add", &image, &"virtnbdbackup.77"]);
        if started {
            story.domain.start();
            story.scribble(&mut rng, 5);
        }
        assert_healed(&mut story, &places, INCREMENTAL);
        if started {
            story.domain.destroy();
        }
        let bitmaps = Lab::get().host.bitmap_names(&story.domain.seen(), "vda");
        assert!(
            !bitmaps
                .expect("they are listed")
                .contains(&"virtnbdbackup.77".to_owned())
        );
        story.prove();
    }
}
