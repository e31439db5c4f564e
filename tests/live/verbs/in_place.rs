//! Restores in place: the disks of a shut-off domain go back to restore points, and backups go on.

use std::fs;

use vmsnap::model::compression::Compression;
use vmsnap::model::level::FullRule;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::Cause;
use vmsnap::ops::in_place::{Basis, Options, preview};

use crate::embed::{Kind, Shape, TestDomain, run_ok};
use crate::loops::Loop;
use crate::verbs::rng::Rng;
use crate::verbs::story::{Story, levels, reason};

const MIB: u64 = 1 << 20;

fn options(discard_current: bool) -> Options {
    Options {
        at: String::new(),
        disks: Vec::new(),
        mapping: None,
        discard_current,
        full: FullRule::Period,
        compression: Compression::default(),
        wait: std::time::Duration::ZERO,
    }
}

fn domain(name: &str, disks: &[(Kind, u64)], devices: &str) -> TestDomain {
    TestDomain::shaped(
        name,
        &Shape {
            disks,
            devices,
            ..Shape::default()
        },
    )
}

fn is_incremental(story: &mut Story) {
    let outcome = story.back_up();
    let all = levels(&outcome);
    assert!(
        all.iter().all(|(_, level)| *level == Level::Incremental),
        "{all:?}"
    );
}

#[test]
fn qcow2_disks_come_back_and_backups_stay_incremental() {
    let mut rng = Rng::new();
    let disks = [(Kind::Qcow2, 8 * MIB), (Kind::Qcow2, 3 * MIB + 512)];
    let mut story = Story::of(domain("in place ", &disks, ""));
    story.scribble(&mut rng, 20);
    story.back_up();
    story.domain.start();
    for _ in 0..2 {
        story.scribble(&mut rng, 10);
        story.back_up();
    }
    story.scribble(&mut rng, 10);
    story.domain.destroy();
    for (number, discard) in [(0, false), (2, true), (1, false)] {
        let outcome = story.bring_back(number, &options(discard));
        for disk in &outcome.disks {
            assert!(
                matches!(disk.disk.basis, Basis::Changes { .. }),
                "{:?}",
                disk.disk
            );
        }
        is_incremental(&mut story);
        story.scribble(&mut rng, 10);
    }
    // The domain goes on from the disks that came back, running and shut off.
    story.domain.start();
    story.scribble(&mut rng, 10);
    is_incremental(&mut story);
    story.domain.destroy();
    story.scribble(&mut rng, 5);
    is_incremental(&mut story);
    story.prove();
}

#[test]
fn an_overlay_is_restored_and_its_base_stays() {
    let mut rng = Rng::new();
    let domain = domain("overlay ", &[(Kind::Qcow2, 4 * MIB)], "");
    domain.io("vda", "write -P 0x41 0 2M");
    let (top, base) = (domain.image("vda"), domain.dir.path().join("base.img"));
    fs::rename(&top, &base).expect("it is there");
    run_ok(
        "qemu-img",
        [
            &"create", &"-q", &"-f", &"qcow2", &"-F", &"qcow2", &"-b", &base, &top,
        ],
    );
    let before = fs::read(&base).expect("it is readable");
    let mut story = Story::of(domain);
    story.scribble(&mut rng, 10);
    story.back_up();
    for _ in 0..2 {
        story.scribble(&mut rng, 10);
        is_incremental(&mut story);
    }
    story.scribble(&mut rng, 10);
    for number in [0, 2, 1] {
        let outcome = story.bring_back(number, &options(number == 2));
        assert!(matches!(outcome.disks[0].disk.basis, Basis::Changes { .. }));
        is_incremental(&mut story);
    }
    assert!(
        fs::read(&base).expect("it is readable") == before,
        "the base is not written to"
    );
    story.prove();
}

#[test]
fn broken_bitmaps_cost_a_comparison_and_a_full_backup() {
    let mut rng = Rng::new();
    let mut story = Story::of(domain("broken ", &[(Kind::Qcow2, 6 * MIB)], ""));
    story.scribble(&mut rng, 20);
    story.back_up();
    story.domain.start();
    story.scribble(&mut rng, 10);
    story.back_up();
    // As after a power cut, the bitmaps in the image are marked inconsistent.
    story.domain.kill();
    story.learn("vda");
    let outcome = story.bring_back(0, &options(true));
    assert!(
        matches!(outcome.disks[0].disk.basis, Basis::Whole(_)),
        "{:?}",
        outcome.disks
    );
    let next = story.back_up();
    assert_eq!(levels(&next), [("vda", Level::Full)], "{}", reason(&next, "vda"));
    story.scribble(&mut rng, 5);
    is_incremental(&mut story);
    story.prove();
}

#[test]
fn raw_files_and_block_devices_come_back() {
    let mut rng = Rng::new();
    let device = Loop::of(3 * MIB as usize);
    let block = format!(
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{}'/>\
         <target dev='vdb' bus='virtio'/></disk>",
        device.word()
    );
    let mut story = Story::of(domain("plain ", &[(Kind::Raw, 2 * MIB + 512)], &block));
    story.options.raw = true;
    story.scribble(&mut rng, 10);
    story.back_up();
    story.scribble(&mut rng, 10);
    story.back_up();
    story.scribble(&mut rng, 10);
    for (number, discard) in [(0, false), (1, true)] {
        let outcome = story.bring_back(number, &options(discard));
        assert!(
            outcome
                .disks
                .iter()
                .all(|disk| matches!(disk.disk.basis, Basis::Whole(_)))
        );
        // What differs is less than everything.
        let written =
            |disk: &vmsnap::ops::in_place::RestoredInPlace| disk.written.data_bytes + disk.written.zero_bytes;
        assert!(outcome.disks.iter().map(written).sum::<u64>() < 5 * MIB);
        story.back_up();
    }
    story.prove();
}

#[test]
fn domain_that_runs_or_sleeps_is_refused() {
    let mut rng = Rng::new();
    let mut story = Story::of(domain("busy ", &[(Kind::Qcow2, 2 * MIB)], ""));
    story.scribble(&mut rng, 5);
    story.back_up();
    let at = Options {
        at: "latest".to_owned(),
        ..options(true)
    };
    let refused = |story: &Story, words: &str| {
        let error = preview(&story.domain.name, &story.context(), &at).expect_err("refused");
        assert!(matches!(error.cause, Cause::InPlaceRefusal(_)), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    story.domain.start();
    refused(&story, "the domain is paused");
    story.domain.handle().managed_save(0).expect("it is saved");
    refused(&story, "managed save");
    story
        .domain
        .handle()
        .managed_save_remove(0)
        .expect("it is discarded");
    let planned = preview(&story.domain.name, &story.context(), &at).expect("planned");
    assert!(!planned.saves);
}
