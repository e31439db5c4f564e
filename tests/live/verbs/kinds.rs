//! Disks that cannot be incremental next to one that can, and drives that are not disks.

use vmsnap::model::restore_point::Level;
use vmsnap::ops::Cause;

use crate::embed::{Kind, Shape, TestDomain};
use crate::verbs::rng::Rng;
use crate::verbs::story::{Story, codes, levels, reason};

const MIB: u64 = 1 << 20;
const CDROM: &str = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/>\
                     <readonly/></disk>";

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

#[test]
fn a_version_2_disk_is_full_each_time_beside_an_incremental_one() {
    let mut rng = Rng::new();
    let disks = [(Kind::Qcow2Version2, 3 * MIB + 512), (Kind::Qcow2, 4 * MIB)];
    let mut story = Story::of(domain("old ", &disks, CDROM));
    for round in 0..4 {
        match round {
            1 => story.domain.start(),
            3 => story.domain.destroy(),
            _ => {}
        }
        story.scribble(&mut rng, 10);
        let outcome = story.back_up();
        let second = if round == 0 {
            Level::Full
        } else {
            Level::Incremental
        };
        assert_eq!(levels(&outcome), [("vda", Level::Full), ("vdb", second)]);
        assert!(reason(&outcome, "vda").contains("version 2"));
        assert_eq!(codes(&outcome.point.findings), [""; 0], "a CD drive is no disk");
    }
    story.prove();
}

#[test]
fn a_raw_disk_is_saved_only_on_request_and_then_in_full() {
    let mut rng = Rng::new();
    let disks = [(Kind::Raw, 2 * MIB + 512), (Kind::Qcow2, 3 * MIB)];
    let mut story = Story::of(domain("raw ", &disks, CDROM));
    story.domain.start();
    story.scribble(&mut rng, 15);
    let without = story.back_up();
    assert_eq!(levels(&without), [("vdb", Level::Full)]);
    let skipped = &without.point.findings;
    assert!(
        skipped
            .iter()
            .any(|finding| finding.disk.as_deref() == Some("vda") && finding.message.contains("--raw"))
    );

    story.options.raw = true;
    for round in 0..3 {
        if round == 2 {
            story.domain.destroy();
        }
        story.scribble(&mut rng, 10);
        let with = story.back_up();
        assert_eq!(levels(&with), [("vda", Level::Full), ("vdb", Level::Incremental)]);
        assert_eq!(with.point.disks[0].source_format, "raw");
    }
    story.prove();
}

#[test]
fn domain_without_eligible_disks_is_reported() {
    for running in [true, false] {
        let mut story = Story::of(domain("nothing ", &[(Kind::Raw, MIB)], CDROM));
        if running {
            story.domain.start();
        }
        let refused = story.try_back_up().map(|_| ()).expect_err("nothing to do");
        assert!(matches!(refused.cause, Cause::NothingToBackUp), "{refused}");
        assert!(refused.hint().expect("a hint").contains("--raw"));
        assert!(story.history().kept.is_empty() && story.history().leftovers.is_empty());

        // As the only disk it is saved too, without a checkpoint.
        story.options.raw = true;
        story.write("vda", 4096, 512, 0x61);
        story.back_up();
        story.write("vda", MIB - 512, 512, 0x62);
        let outcome = story.back_up();
        assert_eq!(outcome.point.checkpoint, None);
        assert_eq!(levels(&outcome), [("vda", Level::Full)]);
        story.prove();
    }
}
