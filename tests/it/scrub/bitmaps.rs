//! Bitmaps without a checkpoint, and the level of the backup after a scrub.

use vmsnap::model::level::FullRule;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::scrub::{self, Options, ScrubType};

use super::{OURS, bitmaps, done, lab, means, on_both, options, pairs, plan, shut_off, start};
use crate::lab::{CLUSTER, Lab};

#[test]
fn bitmaps_without_a_checkpoint_go_from_a_shut_off_domain() {
    for kind in [ScrubType::Bitmap, ScrubType::Both, ScrubType::All] {
        let lab = lab();
        shut_off(&lab);
        done(&lab, ScrubType::Checkpoint, None);
        let outcome = done(&lab, kind, None);
        assert_eq!(pairs(&outcome.bitmaps), on_both(&OURS));
        assert_eq!(bitmaps(&lab, "vda"), ["mine"]);
    }
}

#[test]
fn bitmaps_without_checkpoint_go_if_present_at_domain_start() {
    let lab = lab();
    done(&lab, ScrubType::Checkpoint, None);
    shut_off(&lab);
    start(&lab);
    let plan = plan(&lab, None, ScrubType::Bitmap, None);
    assert_eq!(pairs(&plan.bitmaps), on_both(&OURS));
    let outcome = done(&lab, ScrubType::Bitmap, None);
    assert_eq!(pairs(&outcome.bitmaps), on_both(&OURS));
    assert_eq!(bitmaps(&lab, "vdb"), ["mine"]);
}

#[test]
fn newer_bitmaps_go_when_they_or_the_repository_are_named() {
    let lab = lab();
    done(&lab, ScrubType::Checkpoint, None);
    let outcome = done(&lab, ScrubType::Bitmap, None);
    assert!(outcome.bitmaps.is_empty(), "libvirt does not list them");
    let said = outcome
        .findings
        .iter()
        .find(|found| found.code == "bitmaps-not-listed");
    assert!(
        said.expect("it is reported")
            .message
            .contains("--checkpoint-name")
    );

    let named = plan(&lab, None, ScrubType::Bitmap, Some(OURS[0]));
    assert_eq!(
        (named.tried.as_slice(), named.bitmaps.len()),
        (&[OURS[0].to_owned()][..], 0)
    );
    let outcome = done(&lab, ScrubType::Bitmap, Some(OURS[0]));
    assert_eq!(pairs(&outcome.bitmaps), on_both(&OURS[..1]));

    let plan = plan(&lab, Some(lab.repo.as_ref()), ScrubType::Both, None);
    assert_eq!(plan.tried, OURS);
    let means = means(&lab, Some(lab.repo.as_ref()));
    let outcome = scrub::scrub("vm1", &means, &options(ScrubType::Both, None)).expect("it begins");
    assert!(outcome.failure.is_none());
    assert_eq!(pairs(&outcome.bitmaps), on_both(&OURS[1..]));
    assert!(
        !outcome
            .findings
            .iter()
            .any(|found| found.code == "bitmaps-not-listed")
    );
    assert_eq!(bitmaps(&lab, "vda"), ["mine"]);
}

#[test]
fn bitmap_on_disk_outside_its_checkpoint_is_removed_too() {
    let lab = lab();
    lab.host.attach("vm1", "vdc", CLUSTER);
    lab.host
        .disk("vm1", "vdc", |disk| disk.add_bitmap(OURS[0]))
        .expect("it is new");
    shut_off(&lab);
    start(&lab);
    let outcome = done(&lab, ScrubType::Both, None);
    assert_eq!(outcome.bitmaps.len(), 5);
    assert!(bitmaps(&lab, "vdc").is_empty());
}

#[test]
fn with_repository_next_backup_level_is_exact() {
    let cases = [
        // The older or the newer restore point can still be the parent.
        (
            ScrubType::Both,
            Some(OURS[1]),
            Level::Incremental,
            "checkpoint virtnbdbackup.1793668200000000000000001 is gone",
        ),
        (
            ScrubType::Checkpoint,
            Some(OURS[0]),
            Level::Incremental,
            "changes since",
        ),
        (
            ScrubType::Bitmap,
            Some(OURS[1]),
            Level::Incremental,
            "missing or inconsistent",
        ),
        (ScrubType::Checkpoint, None, Level::Incremental, "changes since"),
        (
            ScrubType::Both,
            None,
            Level::Full,
            "checkpoint virtnbdbackup.1793668200000000000000001 is gone",
        ),
    ];
    for (kind, name, level, reason) in cases {
        let mut lab = lab();
        let announced = plan(&lab, Some(lab.repo.as_ref()), kind, name).next;
        let outcome = scrub::scrub("vm1", &means(&lab, Some(lab.repo.as_ref())), &options(kind, name));
        let outcome = outcome.expect("it begins");
        assert!(outcome.failure.is_none());
        assert_eq!(outcome.next, announced);
        assert_eq!(outcome.next.level, Some(level), "{kind:?} {name:?}");
        assert!(outcome.next.reason.contains(reason), "{}", outcome.next.reason);
        let next = lab.backup("vm1").expect("it is backed up");
        assert_eq!(next.point.level, level, "{kind:?} {name:?}");
        for disk in &next.point.disks {
            assert!(
                outcome.next.reason.contains(&disk.reason),
                "{}",
                outcome.next.reason
            );
        }
        lab.assert_gives_back("vm1", "vda");
    }
}

#[test]
fn the_rule_for_full_backups_decides_the_next_level() {
    let mut lab = lab();
    lab.at("2026-12-01T02:00:00+01:00[Europe/Berlin]");
    for (full, level, reason) in [
        (FullRule::Period, Level::Full, "first of the period"),
        (FullRule::Never, Level::Incremental, "changes since"),
    ] {
        let options = Options {
            full,
            ..options(ScrubType::Both, Some(OURS[0]))
        };
        let means = means(&lab, Some(lab.repo.as_ref()));
        let next = scrub::preview("vm1", &means, &options).expect("a plan").next;
        assert_eq!(next.level, Some(level));
        assert!(next.reason.contains(reason), "{}", next.reason);
    }
}

/// libvirt has lost the checkpoints of a running domain. Their bitmaps are in QEMU's memory, where
/// only a backup can look for them.
#[test]
fn bitmaps_in_memory_make_the_level_conditional_until_they_go() {
    let mut lab = lab();
    done(&lab, ScrubType::Checkpoint, None);
    let of_repo = |lab: &Lab, kind| plan(lab, Some(lab.repo.as_ref()), kind, None).next;
    let next = of_repo(&lab, ScrubType::Checkpoint);
    assert_eq!(next.level, None);
    let expected = format!(
        "incremental if the bitmap of checkpoint {} still exists, else full",
        OURS[1]
    );
    assert_eq!(next.reason, expected);
    assert_eq!(of_repo(&lab, ScrubType::Both).level, Some(Level::Full), "they go");
    assert_eq!(
        lab.backup("vm1").expect("backed up").point.level,
        Level::Incremental
    );
}

#[test]
fn without_repository_the_level_is_conditional() {
    let lab = lab();
    let next = done(&lab, ScrubType::Both, Some(OURS[1])).next;
    assert_eq!(next.level, None);
    assert!(
        next.reason.contains(OURS[0]) && next.reason.contains("--output"),
        "{}",
        next.reason
    );
}

#[test]
fn an_old_hypervisor_makes_full_backups_only() {
    let lab = lab();
    lab.host.forget_checkpoints("libvirt 4.0.0 is too old");
    let next = done(&lab, ScrubType::Both, Some(OURS[1])).next;
    assert_eq!(
        (next.level, next.reason.as_str()),
        (Some(Level::Full), "libvirt 4.0.0 is too old")
    );
}
