//! Disks that are added, removed, grown, shrunk and exchanged between backups.

use vmsnap::model::domain::DomainState;
use vmsnap::model::restore_point::Level;

use crate::embed::{Kind, Shape, TestDomain};
use crate::verbs::rng::Rng;
use crate::verbs::story::{Act, Story, levels, reason};

const MIB: u64 = 1 << 20;

fn domain(name: &str, disks: &[(Kind, u64)]) -> TestDomain {
    TestDomain::shaped(
        name,
        &Shape {
            disks,
            ..Shape::default()
        },
    )
}

/// Attaches a disk to the definition of a shut-off domain.
fn plug_in(story: &Story, target: &str) {
    let config = virt_sys::VIR_DOMAIN_AFFECT_CONFIG;
    let handle = story.domain.handle();
    handle
        .attach_device_flags(&story.domain.disk_xml(target), config)
        .expect("it is plugged in");
}

fn unplug(story: &Story, target: &str) {
    let config = virt_sys::VIR_DOMAIN_AFFECT_CONFIG;
    let handle = story.domain.handle();
    handle
        .detach_device_flags(&story.domain.disk_xml(target), config)
        .expect("it is unplugged");
}

#[test]
fn disk_plugged_in_while_running_gets_a_full_alone() {
    let mut rng = Rng::new();
    let disks = [(Kind::Qcow2, 8 * MIB), (Kind::Qcow2, 3 * MIB + 512)];
    let domain = domain("hotplug ", &disks);
    domain.start();
    let mut story = Story::of(domain);
    story.scribble(&mut rng, 15);
    story.back_up();
    story.scribble(&mut rng, 10);
    story.back_up();
    story.domain.attach("vdc");
    story.learn("vdc");
    story.scribble(&mut rng, 20);
    let mixed = story.back_up();
    assert_eq!(
        levels(&mixed),
        [
            ("vda", Level::Incremental),
            ("vdb", Level::Incremental),
            ("vdc", Level::Full)
        ]
    );
    assert_eq!(mixed.point.level, Level::Incremental);
    assert!(
        reason(&mixed, "vdc").contains("not in restore point"),
        "{}",
        reason(&mixed, "vdc")
    );
    for _ in 0..2 {
        story.scribble(&mut rng, 10);
        let outcome = story.back_up();
        assert!(
            levels(&outcome)
                .iter()
                .all(|(_, level)| *level == Level::Incremental)
        );
    }
    story.prove();
}

#[test]
fn disks_that_grow_between_the_backups_stay_incremental() {
    let mut rng = Rng::new();
    let disks = [(Kind::Qcow2, 4 * MIB + 512), (Kind::Qcow2, 2 * MIB)];
    let domain = domain("grown ", &disks);
    domain.start();
    let mut story = Story::of(domain);
    story.scribble(&mut rng, 15);
    story.back_up();

    story.resize("vda", 6 * MIB + 1024);
    story.back_up();
    story.scribble(&mut rng, 10);
    story.resize("vdb", 2 * MIB + 512);
    story.scribble(&mut rng, 10);
    story.back_up();

    story.domain.destroy();
    story.resize("vda", 7 * MIB);
    story.write("vda", 7 * MIB - 512, 512, 0x71);
    story.back_up();
    story.resize("vdb", 5 * MIB);
    story.domain.start();
    story.write("vdb", 4 * MIB, 4096, 0x72);
    let last = story.back_up();
    assert_eq!(
        levels(&last),
        [("vda", Level::Incremental), ("vdb", Level::Incremental)]
    );
    story.prove();
}

#[test]
fn a_disk_that_has_shrunk_gets_a_full_image() {
    let domain = domain("shrunk ", &[(Kind::Qcow2, 4 * MIB), (Kind::Qcow2, MIB)]);
    domain.start();
    let mut story = Story::of(domain);
    story.write("vda", 0, 4 * MIB, 0x31);
    story.back_up();
    story.resize("vda", 3 * MIB);
    story.write("vda", MIB, MIB, 0x32);
    let outcome = story.back_up();
    assert_eq!(
        levels(&outcome),
        [("vda", Level::Full), ("vdb", Level::Incremental)]
    );
    assert!(reason(&outcome, "vda").contains("shrunk"));
    story.write("vda", 0, 512, 0x33);
    let outcome = story.back_up();
    assert_eq!(levels(&outcome)[0], ("vda", Level::Incremental));
    story.prove();
}

/// Dirty bitmaps forget the range that was cut off. A range added later is clean and zero.
#[test]
fn no_old_data_shows_where_a_disk_shrank_and_grew() {
    for running in [true, false] {
        let domain = domain("regrown ", &[(Kind::Qcow2, 4 * MIB), (Kind::Qcow2, 4 * MIB)]);
        domain.start();
        let mut story = Story::of(domain);
        story.write("vda", 0, 4 * MIB, 0x31);
        story.write("vdb", MIB, 2 * MIB + 512, 0x41);
        story.back_up();
        if !running {
            story.domain.destroy();
        }
        // Back to the same size, with a write at the end of the new range.
        story.resize("vda", 2 * MIB + 512);
        story.resize("vda", 4 * MIB);
        // The rest of the cluster at the cut may have its old bytes again.
        story.learn("vda");
        assert_eq!(story.bytes("vda")[2 * MIB as usize + 65536], 0);
        story.write("vda", 4 * MIB - 4096, 4096, 0x32);
        // To a larger size, cut within the data.
        story.resize("vdb", 2 * MIB);
        story.resize("vdb", 6 * MIB);
        story.write("vdb", 5 * MIB, 512, 0x42);
        story.back_up();
        story.write("vda", 0, 512, 0x33);
        story.back_up();
        story.prove();
    }
}

#[test]
fn a_disk_that_was_away_goes_on_where_its_bitmap_left_off() {
    let mut rng = Rng::new();
    let disks = [(Kind::Qcow2, 4 * MIB), (Kind::Qcow2, 4 * MIB)];
    let domain = domain("away ", &disks);
    domain.start();
    let mut story = Story::of(domain);
    story.scribble(&mut rng, 15);
    story.back_up();
    story.scribble(&mut rng, 10);
    story.back_up();
    let before = story.ids().last().map(|id| (*id).to_owned());

    story.scribble(&mut rng, 5);
    story.domain.destroy();
    unplug(&story, "vdb");
    story.domain.start();
    let away = story.forget("vdb");
    for _ in 0..2 {
        story.scribble(&mut rng, 5);
        let outcome = story.back_up();
        assert_eq!(levels(&outcome), [("vda", Level::Incremental)]);
    }

    story.domain.destroy();
    plug_in(&story, "vdb");
    story.domain.start();
    story.learn("vdb");
    assert!(story.bytes("vdb") == away, "the detached disk has not changed");
    story.scribble(&mut rng, 10);
    let outcome = story.back_up();
    assert_eq!(
        levels(&outcome),
        [("vda", Level::Incremental), ("vdb", Level::Incremental)]
    );
    let back = outcome.point.disk("vdb").expect("it is back");
    assert_eq!(back.parent, before, "its parent is its own last image");
    story.scribble(&mut rng, 5);
    story.back_up();
    assert_eq!(story.domain.seen().state, DomainState::Paused);
    story.prove();
}

/// Both images carry bitmaps with the same names, each of which records the changes of the other
/// disk.
#[test]
fn swapped_disks_do_not_use_each_others_images_as_parent() {
    let domain = domain("swapped ", &[(Kind::Qcow2, 2 * MIB), (Kind::Qcow2, 2 * MIB)]);
    let mut story = Story::of(domain);
    story.write("vda", 0, MIB, 0x61);
    story.write("vdb", MIB, MIB, 0x62);
    story.back_up();
    let (vda, vdb) = (story.domain.image("vda"), story.domain.image("vdb"));
    let xml = story.domain.seen().inactive_xml;
    let name = |image: &std::path::Path| crate::embed::escape(&image.display().to_string());
    let swapped = xml
        .replace(&name(&vda), "\u{1}")
        .replace(&name(&vdb), &name(&vda))
        .replace('\u{1}', &name(&vdb));
    assert_ne!(xml, swapped);
    virt::domain::Domain::define_xml(&crate::embed::Lab::get().connection, &swapped)
        .expect("it is redefined");
    for target in ["vda", "vdb"] {
        story.learn(target);
    }
    assert_eq!(story.bytes("vda")[MIB as usize], 0x62);
    let outcome = story.back_up();
    assert_eq!(levels(&outcome), [("vda", Level::Full), ("vdb", Level::Full)]);
    story.write("vda", 0, 512, 0x63);
    let outcome = story.back_up();
    assert_eq!(
        levels(&outcome),
        [("vda", Level::Incremental), ("vdb", Level::Incremental)]
    );
    story.prove();
}

#[test]
fn every_layer_of_an_external_snapshot_is_in_the_restored_disk() {
    let mut rng = Rng::new();
    let domain = domain(
        "layered ",
        &[(Kind::Qcow2, 4 * MIB), (Kind::Qcow2, 2 * MIB + 512)],
    );
    domain.start();
    let mut story = Story::of(domain);
    story.scribble(&mut rng, 15);
    story.back_up();
    story.scribble(&mut rng, 5);
    let handle = story.domain.handle().clone();
    let xml = "<domainsnapshot><name>layer</name></domainsnapshot>";
    let flags =
        virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | virt_sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA;
    virt::domain_snapshot::DomainSnapshot::create_xml(&handle, xml, flags).expect("it is made");
    let overlay = story.domain.image_now("vda");
    assert_ne!(overlay, story.domain.image("vda"));
    for _ in 0..2 {
        story.scribble(&mut rng, 10);
        let outcome = story.back_up();
        assert_eq!(
            levels(&outcome),
            [("vda", Level::Incremental), ("vdb", Level::Incremental)]
        );
    }
    // When the domain is shut off, the older bitmaps are in two layers and qemu-nbd reports only
    // one. The bytes are correct at any level.
    story.domain.destroy();
    for _ in 0..2 {
        story.scribble(&mut rng, 10);
        story.back_up();
    }
    story.domain.start();
    story.scribble(&mut rng, 10);
    let outcome = story.back_up();
    assert_eq!(levels(&outcome)[0], ("vda", Level::Incremental));
    story.prove();
}

#[test]
fn a_discarded_disk_gives_back_zeroes() {
    let domain = domain("emptied ", &[(Kind::Qcow2, 3 * MIB + 512)]);
    domain.start();
    let mut story = Story::of(domain);
    let length = 3 * MIB + 512;
    story.write("vda", 0, length, 0x51);
    story.back_up();
    story.act("vda", Act::Discard { at: 0, length });
    let outcome = story.back_up();
    assert_eq!(outcome.point.disks[0].data_bytes, 0);
    story.write("vda", MIB, 512, 0x52);
    story.back_up();
    story.prove();
}
