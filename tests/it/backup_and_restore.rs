//! The levels of backups and the bytes of restores, for many changes of the guest's disks.

use vmsnap::model::domain::{Backing, Device, DiskFormat, DomainState, Source};
use vmsnap::model::period::GroupBy;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::StopReason;
use vmsnap::ops::backup::Options;
use vmsnap::ops::{Cause, Class};

use crate::lab::{CLUSTER, Lab, NAMES, tree};

#[test]
fn the_first_backup_is_full_and_the_next_are_incremental() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 10 * CLUSTER + 512)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(CLUSTER, &[7; 3 * CLUSTER]));
    let first = lab.backup("vm1").expect("a full backup");
    assert_eq!(first.point.level, Level::Full);
    assert_eq!(first.point.disks[0].reason, "first of the period");
    assert_eq!(first.point.id, "2026-11-03T01-00-00Z");
    assert_eq!(first.point.period, "vmsnap-backup-monthly-2026-11");
    assert_eq!(first.point.disks[0].data_bytes, 3 * CLUSTER as u64);
    let at_first = lab.disk("vm1", "vda");

    lab.host.disk("vm1", "vda", |disk| {
        disk.write(5, &[1; 10]);
        disk.zero(2 * CLUSTER, CLUSTER);
        disk.write(10 * CLUSTER, &[9; 512]);
    });
    let second = lab.backup("vm1").expect("an incremental backup");
    assert_eq!(second.point.level, Level::Incremental);
    assert_eq!(second.point.parent.as_deref(), Some(first.point.id.as_str()));
    assert_eq!(
        second.point.disks[0].zero_bytes, CLUSTER as u64,
        "zeroed clusters are stored as zero"
    );
    let at_second = lab.disk("vm1", "vda");

    let third = lab.backup("vm1").expect("an idle backup");
    assert_eq!(third.point.disks[0].data_bytes, 0);

    assert_eq!(
        lab.restored("vm1", &first.point.id, "vda").expect("restored"),
        at_first
    );
    assert_eq!(
        lab.restored("vm1", &second.point.id, "vda").expect("restored"),
        at_second
    );
    assert_eq!(lab.restored("vm1", "latest", "vda").expect("restored"), at_second);
}

#[test]
fn new_month_starts_full_then_retires_old_checkpoints() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.backup("vm1").expect("full");
    lab.backup("vm1").expect("incremental");
    let names = |lab: &Lab| lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
    assert_eq!(names(&lab), [NAMES[0], NAMES[1]]);

    lab.pass(jiff::Span::new().months(1));
    lab.host.fail_reads_after(Some(0));
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[1]));
    lab.backup("vm1").expect_err("the export breaks");
    assert_eq!(names(&lab), [NAMES[0], NAMES[1]], "a failed run retires nothing");

    lab.host.fail_reads_after(None);
    let full = lab.backup("vm1").expect("full");
    assert_eq!(full.point.level, Level::Full);
    assert_eq!(full.point.period, "vmsnap-backup-monthly-2026-12");
    assert_eq!(names(&lab), [lab.made[2].as_str()]);
}

#[test]
fn a_hot_added_disk_gets_a_full_while_the_others_go_on() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.backup("vm1").expect("full");
    lab.host.attach("vm1", "vdb", 2 * CLUSTER);
    lab.host.disk("vm1", "vdb", |disk| disk.write(0, &[5; 100]));
    let mixed = lab.backup("vm1").expect("mixed");
    assert_eq!(mixed.point.level, Level::Incremental);
    let levels: Vec<Level> = mixed.point.disks.iter().map(|disk| disk.level).collect();
    assert_eq!(levels, [Level::Incremental, Level::Full]);
    assert!(
        mixed.point.disks[1]
            .reason
            .contains("vdb is not in restore point"),
        "{}",
        mixed.point.disks[1].reason
    );
    lab.host.disk("vm1", "vdb", |disk| disk.write(CLUSTER, &[6; 100]));
    let next = lab.backup("vm1").expect("incremental");
    assert!(
        next.point
            .disks
            .iter()
            .all(|disk| disk.level == Level::Incremental)
    );
    lab.assert_gives_back("vm1", "vdb");
}

#[test]
fn a_grown_disk_stays_incremental_and_a_shrunk_one_gets_a_full() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 3 * CLUSTER + 1024)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[3; 3 * CLUSTER + 1024]));
    lab.backup("vm1").expect("full");
    lab.host.disk("vm1", "vda", |disk| {
        disk.resize(6 * CLUSTER);
        disk.write(5 * CLUSTER, &[4; 10]);
    });
    let grown = lab.backup("vm1").expect("incremental");
    assert_eq!(grown.point.level, Level::Incremental);
    lab.assert_gives_back("vm1", "vda");
    lab.host.disk("vm1", "vda", |disk| disk.resize(2 * CLUSTER));
    let shrunk = lab.backup("vm1").expect("full");
    assert_eq!(shrunk.point.level, Level::Full);
    assert!(
        shrunk.point.disks[0].reason.contains("shrunk"),
        "{}",
        shrunk.point.disks[0].reason
    );
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn disk_shrunk_and_grown_again_gets_a_full() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 6 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[7; 6 * CLUSTER]));
    lab.backup("vm1").expect("full");
    lab.host
        .disk("vm1", "vda", |disk| disk.shrink_and_grow(2 * CLUSTER + 512));
    let outcome = lab.backup("vm1").expect("a full");
    assert_eq!(outcome.point.level, Level::Full);
    assert!(
        outcome.point.disks[0]
            .reason
            .contains("the bitmap or the parent restore point is unreliable"),
        "{}",
        outcome.point.disks[0].reason
    );
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn lost_bitmap_of_one_disk_takes_the_cheapest_fallback() {
    let mut lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", 4 * CLUSTER), ("vdb", 4 * CLUSTER)]);
    let first = lab.backup("vm1").expect("full");
    lab.host.disk("vm1", "vdb", |disk| disk.write(0, &[1]));
    lab.backup("vm1").expect("incremental");
    lab.host.disk("vm1", "vdb", |disk| {
        disk.remove_bitmap(NAMES[1]);
        disk.write(CLUSTER, &[2]);
    });
    let third = lab.backup("vm1").expect("incremental");
    let vdb = &third.point.disks[1];
    assert_eq!(
        vdb.parent.as_deref(),
        Some(first.point.id.as_str()),
        "the older checkpoint still serves"
    );
    assert!(vdb.reason.contains("missing or inconsistent"), "{}", vdb.reason);
    lab.assert_gives_back("vm1", "vdb");
}

#[test]
fn recreated_domain_of_the_same_name_gets_a_full() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.backup("vm1").expect("full");
    lab.host.change("vm1", |domain| {
        domain.uuid = "11111111-0000-4000-8000-000000000001".into()
    });
    let again = lab.backup("vm1").expect("full");
    assert_eq!(again.point.level, Level::Full);
    assert!(
        again.point.disks[0]
            .reason
            .contains("another domain with the same name")
    );
}

#[test]
fn skipped_disks_are_reported_and_none_left_is_a_failure() {
    let mut lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", CLUSTER), ("sda", CLUSTER), ("vdc", CLUSTER)]);
    lab.host.change("vm1", |domain| {
        domain.disks[1].device = Device::Cdrom;
        domain.disks[2].format = DiskFormat::Raw;
    });
    let outcome = lab.backup("vm1").expect("vda is eligible");
    assert_eq!(outcome.point.disks.len(), 1);
    let codes: Vec<&str> = outcome
        .findings
        .iter()
        .map(|finding| finding.code.as_str())
        .collect();
    assert_eq!(codes, ["raw-disk-skipped"], "a CD drive is no disk");
    assert_eq!(
        outcome.point.findings, outcome.findings,
        "the manifest says it too"
    );

    let raw = Options {
        raw: true,
        ..Lab::options()
    };
    let with_raw = lab.backup_with("vm1", &raw).expect("two disks");
    assert_eq!(with_raw.point.disks[1].level, Level::Full);
    assert!(!with_raw.point.disks[1].checkpointed);

    lab.host.change("vm1", |domain| domain.disks.truncate(0));
    let error = lab.backup("vm1").expect_err("nothing to back up");
    assert!(matches!(error.cause, Cause::NothingToBackUp), "{error}");
}

#[test]
fn old_hypervisor_gets_full_backups_with_the_reason() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.host.forget_checkpoints("libvirt 7.0.0 is older than 7.6.0");
    for _ in 0..2 {
        let outcome = lab.backup("vm1").expect("a full backup");
        assert_eq!(outcome.point.level, Level::Full);
        assert_eq!(outcome.point.checkpoint, None);
        assert_eq!(outcome.point.disks[0].reason, "libvirt 7.0.0 is older than 7.6.0");
        assert_eq!(outcome.findings[0].code, "no-incremental");
    }
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn qcow2_v2_disk_is_always_full_beside_incremental_disks() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER), ("vdb", CLUSTER)]);
    lab.host
        .change("vm1", |domain| domain.disks[1].format = DiskFormat::Qcow2V2);
    lab.backup("vm1").expect("full");
    let second = lab.backup("vm1").expect("mixed");
    assert_eq!(second.point.level, Level::Incremental);
    let old = &second.point.disks[1];
    assert_eq!((old.level, old.checkpointed), (Level::Full, false));
    assert!(old.reason.contains("version 2"), "{}", old.reason);
}

/// The files after a failed first run.
const NOTHING: [&str; 3] = [".vmsnap-repository.json", "vm1", "vm1/.lock"];

#[test]
fn a_failed_first_backup_leaves_nothing_and_the_next_one_works() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[1; 4 * CLUSTER]));
    lab.host.fail_reads_after(Some(2 * CLUSTER as u64));
    let error = lab.backup("vm1").expect_err("the export breaks");
    assert_eq!(error.disk.as_deref(), Some("vda"));
    assert_eq!(tree(&lab.root()), NOTHING);
    assert!(!lab.host.has_job("vm1"));
    assert!(lab.host.disk("vm1", "vda", |disk| disk.bitmap_names()).is_empty());
    lab.host.fail_begin(true);
    lab.host.fail_reads_after(None);
    lab.backup("vm1").expect_err("libvirt refuses");
    assert_eq!(tree(&lab.root()), NOTHING);
    lab.host.fail_begin(false);
    lab.backup("vm1").expect("full");
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn periods_of_different_groupings_keep_chains_of_their_own() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    let by = |group_by| Options {
        group_by,
        force: true,
        ..Lab::options()
    };
    let (month, year) = (by(GroupBy::Month), by(GroupBy::Year));
    lab.backup_with("vm1", &month).expect("full of the month");
    lab.backup_with("vm1", &year).expect("full of the year");
    let month = lab.backup_with("vm1", &month).expect("incremental of the month");
    let year = lab.backup_with("vm1", &year).expect("incremental of the year");
    assert_eq!(
        (month.point.level, year.point.level),
        (Level::Incremental, Level::Incremental)
    );
}

#[test]
fn checkpoints_over_the_limit_are_retired_and_chain_goes_on() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    let two = Options {
        keep_checkpoints: 2,
        ..Lab::options()
    };
    for round in 0..5u8 {
        lab.host.disk("vm1", "vda", |disk| {
            disk.write(usize::from(round % 4) * CLUSTER, &[round + 1])
        });
        let point = lab.backup_with("vm1", &two).expect("a backup").point;
        assert_eq!(point.level == Level::Full, round == 0);
        assert_eq!(
            lab.restored("vm1", &point.id, "vda").expect("restored"),
            lab.disk("vm1", "vda")
        );
    }
    let names = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
    assert_eq!(names, [NAMES[3], NAMES[4]]);
}

#[test]
fn bitmaps_without_checkpoint_are_harmless_and_kept() {
    for state in [DomainState::Running, DomainState::ShutOff] {
        let mut lab = Lab::new();
        lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
        for name in ["virtnbdbackup.0", "virtnbdbackup.1", NAMES[5]] {
            lab.host
                .disk("vm1", "vda", |disk| disk.add_bitmap(name))
                .expect("a new bitmap");
        }
        lab.host.change("vm1", |domain| domain.state = state);
        lab.backup("vm1").expect("full");
        assert_eq!(lab.host.disk("vm1", "vda", |disk| disk.bitmap_names()).len(), 4);
    }
}

#[test]
fn foreign_job_is_left_alone() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.host.begin_foreign_job("vm1");
    let error = lab.backup("vm1").expect_err("the domain is busy");
    assert!(matches!(error.cause, Cause::Busy { .. }), "{error}");
    assert!(lab.host.has_job("vm1"));
    assert_eq!(tree(&lab.root()), ["vm1", "vm1/.lock"]);
}

#[test]
fn a_stop_ends_the_job_and_leaves_nothing() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[1; 4 * CLUSTER]));
    lab.stop.request(StopReason::Terminated);
    let error = lab.backup("vm1").expect_err("stopped");
    assert_eq!(error.class(), Class::Stopped(StopReason::Terminated));
    assert!(!lab.host.has_job("vm1"));
    assert_eq!(tree(&lab.root()), ["vm1", "vm1/.lock"]);
}

#[test]
fn a_stop_while_the_job_begins_commits_nothing() {
    for disks in [1, 6] {
        let mut lab = Lab::new();
        let names: Vec<String> = (0..disks).map(|number| format!("vd{number}")).collect();
        let targets: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), CLUSTER)).collect();
        lab.host.add_domain("vm1", &targets);
        lab.host.stop_in_begin(&lab.stop);
        let error = lab.backup("vm1").expect_err("stopped");
        assert_eq!(error.class(), Class::Stopped(StopReason::Interrupted), "{error}");
        assert!(!lab.host.has_job("vm1"));
        assert_eq!(tree(&lab.root()), NOTHING);
    }
}

#[test]
fn swapped_disks_get_a_full_despite_equal_bitmap_names() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER), ("vdb", CLUSTER)]);
    lab.backup("vm1").expect("full");
    lab.host.change("vm1", |domain| {
        let source = domain.disks[0].source.clone();
        domain.disks[0].source = std::mem::replace(&mut domain.disks[1].source, source);
    });
    let swapped = lab.backup("vm1").expect("full");
    assert_eq!(swapped.point.level, Level::Full);
    let reason = &swapped.point.disks[0].reason;
    assert!(reason.contains("vda was at /images/vda.qcow2"), "{reason}");
}

#[test]
fn disk_with_a_snapshot_overlay_is_still_the_same_disk() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.backup("vm1").expect("full");
    lab.host.change("vm1", |domain| {
        let before = domain.disks[0].image();
        domain.disks[0].backing = Backing::Layer(Box::new(before));
        domain.disks[0].source = Source::File("/images/overlay.qcow2".into());
    });
    assert_eq!(
        lab.backup("vm1").expect("incremental").point.level,
        Level::Incremental
    );
}

#[test]
fn job_that_could_not_be_ended_is_ended_by_the_next_run() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 2 * CLUSTER)]);
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[1; CLUSTER]));
    lab.host.fail_end(true);
    lab.host.fail_reads_after(Some(0));
    lab.backup("vm1")
        .expect_err("the export breaks, and the daemon is gone");
    assert!(lab.host.has_job("vm1"), "the failed run could not end it");
    assert!(
        tree(&lab.root())
            .iter()
            .any(|path| path.ends_with(".partial/intent.json"))
    );
    lab.host.fail_end(false);
    lab.host.fail_reads_after(None);
    let outcome = lab.backup("vm1").expect("healed and backed up");
    assert_eq!(outcome.findings[0].code, "healed-partial");
    assert_eq!(
        lab.host.disk("vm1", "vda", |disk| disk.bitmap_names()),
        [NAMES[1]],
        "the failed run's is gone"
    );
}

#[test]
fn job_started_after_the_timeout_is_ended_by_the_next_run() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 2 * CLUSTER)]);
    lab.backup("vm1").expect("a full");
    lab.host.begin_late();
    let given_up = lab.backup("vm1").expect_err("no answer");
    assert!(given_up.is_unanswered(), "{given_up}");
    lab.host.begin_now();
    assert!(lab.host.has_job("vm1"), "libvirt ends the job later");
    let outcome = lab.backup("vm1").expect("ended and backed up");
    assert_eq!(outcome.findings[0].code, "healed-partial");
    let bitmaps = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
    assert_eq!(bitmaps, lab.made, "the checkpoint that libvirt began is gone");
}

#[test]
fn bitmaps_of_a_checkpoint_lost_by_the_daemon_are_removed() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 2 * CLUSTER)]);
    lab.backup("vm1").expect("a full");
    lab.host.begin_half();
    lab.backup("vm1").expect_err("the daemon dies");
    lab.backup("vm1").expect("incremental");
    let bitmaps = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
    assert_eq!(bitmaps, [NAMES[0], NAMES[2]], "no other run could remove it");
}

#[test]
fn checkpoint_of_a_failed_start_goes_in_this_run_or_the_next() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 2 * CLUSTER)]);
    lab.host
        .change("vm1", |domain| domain.state = DomainState::ShutOff);
    lab.backup("vm1").expect("a full");
    let bitmaps = |lab: &Lab| lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());

    lab.host.begin_half();
    lab.backup("vm1").expect_err("qemu-nbd fails");
    assert_eq!(bitmaps(&lab), [NAMES[0]], "removed by this run");
    assert!(lab.history("vm1").leftovers.is_empty());

    lab.host.begin_half();
    lab.host.fail_removal_of(Some(NAMES[2]));
    lab.backup("vm1").expect_err("qemu-nbd fails");
    assert_eq!(bitmaps(&lab), [NAMES[0], NAMES[2]]);
    assert_eq!(lab.history("vm1").leftovers.len(), 1, "with the journal entry");
    lab.host.fail_removal_of(None);
    lab.backup("vm1").expect("incremental");
    assert_eq!(bitmaps(&lab), [NAMES[0], NAMES[3]], "removed by the next run");
}

#[test]
fn a_shut_off_domain_is_backed_up_as_it_is() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.host
        .change("vm1", |domain| domain.state = DomainState::ShutOff);
    let outcome = lab.backup("vm1").expect("full");
    assert_eq!(outcome.point.level, Level::Full);
    lab.assert_gives_back("vm1", "vda");
}
