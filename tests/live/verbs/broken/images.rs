//! Images that were replaced, reverted or covered by an overlay without libvirt's knowledge.

use std::path::{Path, PathBuf};

use super::{DISKS, assert_next, begun, bring, copy, off};
use crate::embed::{Lab, Shape, TestDomain, escape, run_ok};
use crate::process::processes_with;
use crate::verbs::places_full::back_up_at;
use crate::verbs::rng::Rng;
use crate::verbs::story::Story;

/// The path at which an image is kept for later.
fn kept(story: &Story, name: &str) -> PathBuf {
    story.folder.path().join(name)
}

/// Takes the present content of both disks as known.
fn learn(story: &mut Story) {
    for target in ["vda", "vdb"] {
        story.learn(target);
    }
}

#[test]
fn a_disk_replaced_by_a_fresh_image_gets_a_full_alone() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("fresh ", &mut rng);
        let image = story.domain.image("vda");
        std::fs::remove_file(&image).expect("it is removed");
        run_ok(
            "qemu-img",
            [&"create", &"-q", &"-f", &"qcow2", &image, &(4 << 20).to_string()],
        );
        story.learn("vda");
        bring(&story, active);
        assert_next(&mut story, &mut rng, [None, Some(1)]);
        story.prove();
    }
}

/// As after a revert to a storage snapshot, the image has the bitmaps of that time.
#[test]
fn reverted_disk_continues_from_newest_point_with_a_bitmap() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("set back ", &mut rng);
        let image = story.domain.image("vda");
        // After restore point 1 and some changes; after 2; after 3 and some changes.
        copy(&image, &kept(&story, "after-1"));
        story.back_up();
        copy(&image, &kept(&story, "after-2"));
        story.scribble(&mut rng, 5);
        story.back_up();
        story.scribble(&mut rng, 5);
        copy(&image, &kept(&story, "after-3"));
        story.scribble(&mut rng, 5);

        copy(&kept(&story, "after-1"), &image);
        story.learn("vda");
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(1), Some(3)]);

        // Forward again, to a time that no bitmap of the newer restore points covers.
        off(&story);
        copy(&kept(&story, "after-3"), &image);
        story.learn("vda");
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(3), Some(5)]);

        off(&story);
        copy(&kept(&story, "after-2"), &image);
        story.learn("vda");
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(2), Some(7)]);
        story.prove();
    }
}

#[test]
fn a_disk_set_back_to_before_its_first_backup_gets_a_full_alone() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("set back far ", &mut rng);
        let image = story.domain.image("vdb");
        let early = kept(&story, "early");
        copy(&image, &early);
        for name in [story.made(0), story.made(1)] {
            run_ok("qemu-img", [&"bitmap", &"--remove", &early, &name]);
        }
        copy(&early, &image);
        story.learn("vdb");
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(1), None]);
        story.prove();
    }
}

/// Puts an overlay without bitmaps over a disk's image while the domain is shut off.
fn lay_over(story: &Story, target: &str, overlay: &Path) {
    let image = story.domain.image_now(target);
    run_ok(
        "qemu-img",
        [
            &"create", &"-q", &"-f", &"qcow2", &"-F", &"qcow2", &"-b", &image, &overlay,
        ],
    );
    point_to(story, &image, overlay);
}

/// Changes the path of an image in the definition.
fn point_to(story: &Story, from: &Path, to: &Path) {
    let xml = story.domain.seen().inactive_xml;
    let name = |path: &Path| format!("'{}'", escape(&path.display().to_string()));
    let changed = xml.replace(&name(from), &name(to));
    assert_ne!(xml, changed);
    virt::domain::Domain::define_xml(&Lab::get().connection, &changed).expect("it is redefined");
}

#[test]
fn overlay_added_without_libvirt_gets_a_full_alone() {
    let mut rng = Rng::new();
    for active in [true, false] {
        for is_committed in [true, false] {
            let mut story = begun("laid over ", &mut rng);
            let (image, overlay) = (story.domain.image("vda"), kept(&story, "overlay"));
            lay_over(&story, "vda", &overlay);
            story.write("vda", 1 << 20, 70000 / 512 * 512, 0x71);
            bring(&story, active);
            assert_next(&mut story, &mut rng, [None, Some(1)]);

            // The overlay is removed: committed into the image below, or discarded.
            off(&story);
            if is_committed {
                run_ok("qemu-img", [&"commit", &"-q", &"-f", &"qcow2", &overlay]);
            }
            point_to(&story, &overlay, &image);
            std::fs::remove_file(&overlay).expect("it is removed");
            learn(&mut story);
            bring(&story, active);
            story.scribble(&mut rng, 5);
            story.back_up();
            story.scribble(&mut rng, 5);
            story.back_up();
            story.prove();
        }
    }
}

/// libvirt creates bitmaps with the same names in the new overlay, so some are in two layers.
#[test]
fn discarded_libvirt_overlay_takes_its_bitmaps_with_it() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("thrown away ", &mut rng);
        let plain = story.domain.seen().inactive_xml;
        story.domain.start();
        let handle = story.domain.handle().clone();
        let xml = "<domainsnapshot><name>layer</name></domainsnapshot>";
        let flags =
            virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA;
        virt::domain_snapshot::DomainSnapshot::create_xml(&handle, xml, flags).expect("it is made");
        assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
        off(&story);
        let overlays = ["vda", "vdb"].map(|target| story.domain.image_now(target));
        virt::domain::Domain::define_xml(&Lab::get().connection, &plain).expect("it is redefined");
        for overlay in overlays {
            std::fs::remove_file(&overlay).expect("it is removed");
        }
        learn(&mut story);
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
        story.prove();
    }
}

/// A story with two restore points of a shut-off domain whose disk `vda` holds only data. Zeroes
/// could reveal a wrong bitmap, but this test is about the bitmap's name.
fn filled(name: &str, byte: u8) -> Story {
    let shape = Shape {
        disks: &DISKS,
        ..Shape::default()
    };
    let mut story = Story::of(TestDomain::shaped(name, &shape));
    story.write("vda", 0, 4 << 20, byte);
    story.back_up();
    story.write("vda", 0, 4096, byte + 1);
    story.back_up();
    story
}

/// The bitmaps of another domain's image have the same names but record other changes.
#[test]
fn disk_replaced_by_another_domains_image_gets_a_full_alone() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let other = filled("other ", 0x31);
        let mut story = filled("replaced ", 0x41);
        let (image, moved) = (story.domain.image("vda"), kept(&story, "moved"));
        copy(&other.domain.image("vda"), &moved);
        run_ok("mv", [&moved, &image]);
        story.learn("vda");
        bring(&story, active);
        assert_next(&mut story, &mut rng, [None, Some(1)]);
        story.prove();
    }
}

/// The storage snapshot was taken during a run and holds the bitmap of that run, which failed. A
/// later run made another checkpoint.
#[test]
fn bitmap_of_a_failed_run_in_a_reverted_disk_is_not_used() {
    let mut story = filled("set back in mid-run ", 0x51);
    let (image, early) = (story.domain.image("vda"), kept(&story, "early"));
    let images = story.domain.dir.path().display().to_string();
    let fail = || {
        // The first event after the job has started: the bitmaps are in the images.
        for (pid, line) in processes_with(&images) {
            if line.starts_with("qemu-nbd") {
                copy(&image, &early);
                run_ok("kill", [&"-KILL", &pid.to_string()]);
            }
        }
    };
    for number in 0.. {
        let (outcome, happened) = back_up_at(&story, number, &fail);
        story.pass(jiff::Span::new().minutes(10));
        assert!(happened, "there was a reader");
        match outcome {
            Err(_) => break,
            // The run had no job yet or no longer: remove its restore point and try the next event.
            Ok(outcome) => {
                let folder = std::path::PathBuf::from(outcome.location);
                let (period, name) = (folder.parent(), folder.file_name());
                let known = period.expect("a period").join(".committed");
                std::fs::remove_file(known.join(name.expect("a name"))).expect("on purpose");
                std::fs::remove_dir_all(&folder).expect("it is removed");
            }
        }
    }
    assert!(early.exists());
    story.write("vda", 1 << 20, 1 << 20, 0x72);
    story.back_up();
    copy(&early, &image);
    story.learn("vda");
    story.back_up();
    story.prove();
}
