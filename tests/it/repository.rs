//! Repositories: locks, leftovers, damage, names.

use std::fs;

use vmsnap::model::restore_point::Level;
use vmsnap::ops::{Cause, Class};
use vmsnap::repo::RepoError;

use crate::lab::{CLUSTER, InFolder, Lab, NAMES, tree};

fn lab_with_two_points() -> Lab {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[1; 4 * CLUSTER]));
    lab.backup("vm1").expect("full");
    lab.host
        .disk("vm1", "vda", |disk| disk.write(CLUSTER, &[2; CLUSTER]));
    lab.backup("vm1").expect("incremental");
    lab
}

#[test]
fn second_run_on_a_domain_fails_at_once_naming_lock_holder() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.host.add_domain("vm2", &[("vda", CLUSTER)]);
    let held = lab.repo.domain("vm1").expect("a name").try_lock().expect("free");
    let error = lab.backup("vm1").expect_err("locked");
    match &error.cause {
        Cause::Repo(RepoError::Locked { holder, .. }) => {
            assert_eq!(holder, &format!("process {}", std::process::id()));
        }
        other => panic!("{other:?}"),
    }
    lab.backup("vm2").expect("another domain is free");
    drop(held);
    lab.backup("vm1").expect("free again");
}

#[test]
fn next_run_clears_what_a_killed_run_left() {
    let mut lab = lab_with_two_points();
    let partial = lab.leave_dead_run("vm1", NAMES[5]);
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[9; 10]));

    let outcome = lab.backup("vm1").expect("healed and backed up");
    assert_eq!(outcome.point.level, Level::Incremental);
    assert_eq!(outcome.findings[0].code, "healed-partial");
    assert!(!partial.exists());
    assert_eq!(
        lab.host.disk("vm1", "vda", |disk| disk.bitmap_names()),
        [NAMES[0], NAMES[1], NAMES[2]],
        "the dead run's checkpoint went"
    );
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn checkpoint_of_another_run_with_same_name_is_kept() {
    let mut lab = lab_with_two_points();
    lab.leave_partial("vm1", &lab.intent_of_a_dead_run("vm1", NAMES[2]));
    lab.host
        .leave_job("vm1", "/run/other.sock", NAMES[2], "vmsnap run 2");
    let error = lab.backup("vm1").expect_err("the other's job is active");
    assert!(matches!(error.cause, Cause::Busy { .. }), "{error}");
    let names = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
    assert!(names.contains(&NAMES[2].to_owned()));
}

#[test]
fn links_named_like_partial_or_removed_folders_are_ignored() {
    for name in ["vmsnap-backup-monthly-2026-11/x.partial", ".removing-x"] {
        let mut lab = lab_with_two_points();
        let elsewhere = lab.folder.path().join("precious");
        fs::create_dir(&elsewhere).expect("new");
        fs::write(elsewhere.join("file"), b"x").expect("written");
        std::os::unix::fs::symlink(&elsewhere, lab.root().join("vm1").join(name)).expect("linked");
        lab.backup("vm1").expect_err("a link is refused");
        assert!(elsewhere.join("file").exists(), "{name}");
    }
}

#[test]
fn missing_parent_image_forces_a_full_and_fails_the_restore() {
    let mut lab = lab_with_two_points();
    let points = lab.history("vm1");
    fs::remove_file(points.kept[0].dir().join("vda.qcow2")).expect("it was there");
    let error = lab.restored("vm1", "latest", "vda").expect_err("not whole");
    assert_eq!(error.class(), Class::Damaged);
    assert!(error.to_string().contains("vda.qcow2 is missing"), "{error}");
    let next = lab.backup("vm1").expect("full");
    assert_eq!(next.point.level, Level::Full);
    assert!(
        next.point.disks[0].reason.contains("is missing"),
        "{}",
        next.point.disks[0].reason
    );
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn one_flipped_byte_in_any_image_is_never_restored() {
    let lab = lab_with_two_points();
    let points = lab.history("vm1");
    for kept in &points.kept {
        let path = kept.dir().join("vda.qcow2");
        let good = fs::read(&path).expect("an image");
        for step in 0..20 {
            let mut bad = good.clone();
            let place = step * (good.len() - 1) / 19;
            bad[place] ^= 1;
            fs::write(&path, &bad).expect("written");
            let error = lab.restored("vm1", "latest", "vda").expect_err("damaged");
            let text = format!("{error} {:?}", error.cause);
            assert!(
                text.contains("vda.qcow2"),
                "byte {place} of {}: {text}",
                path.display()
            );
            assert!(
                !lab.folder.path().join("restored").exists(),
                "nothing is left of a failed restore"
            );
        }
        fs::write(&path, &good).expect("written");
    }
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn bad_or_missing_manifest_is_reported_and_forces_a_full() {
    for damage in ["flip", "empty", "remove", "newer"] {
        let mut lab = lab_with_two_points();
        let path = lab.history("vm1").kept[1].dir().join("manifest.json");
        let text = fs::read_to_string(&path).expect("a manifest");
        match damage {
            "flip" => fs::write(&path, text.replacen("vda", "vdb", 1)),
            "empty" => fs::write(&path, ""),
            "newer" => fs::write(
                &path,
                text.replacen("\"format\": ", "\"format\": 9, \"new\": ", 1),
            ),
            _ => fs::remove_file(&path),
        }
        .expect("done");
        let history = lab.history("vm1");
        assert_eq!(history.kept.len(), 1, "{damage}");
        assert!(
            history.findings[0].message.contains("manifest.json"),
            "{damage}: {:?}",
            history.findings
        );
        let outcome = lab.backup("vm1").expect("a backup");
        assert_eq!(
            lab.restored("vm1", "latest", "vda").expect("restored"),
            lab.disk("vm1", "vda"),
            "{damage}"
        );
        let code = match damage {
            "newer" => "restore-point-too-new",
            _ => "restore-point-unreadable",
        };
        assert!(
            outcome.findings.iter().any(|finding| finding.code == code),
            "{damage}"
        );
    }
}

#[test]
fn a_restore_point_put_where_another_belongs_is_not_used() {
    let mut lab = lab_with_two_points();
    lab.host.add_domain("vm2", &[("vda", CLUSTER)]);
    lab.backup("vm2").expect("full");
    let from = lab.history("vm1").kept[0].dir().clone();
    let to = lab
        .root()
        .join("vm2/vmsnap-backup-monthly-2026-11")
        .join(from.file_name().expect("a name"));
    fs::rename(&from, &to).expect("moved");
    let history = lab.history("vm2");
    assert_eq!(history.kept.len(), 1);
    assert!(
        history.findings[0].message.contains("is in the wrong folder"),
        "{:?}",
        history.findings
    );
    assert!(
        !lab.history("vm1")
            .chains
            .faults("2026-11-03T01-10-00Z")
            .is_empty()
    );
}

#[test]
fn every_name_stays_in_the_repository() {
    let mut lab = Lab::new();
    let names = [
        "a b",
        "-rf",
        "x;$(touch /tmp/y)",
        "..",
        "büro \"1\"",
        "100%",
        "a'b",
        ".hidden",
    ];
    for name in names {
        lab.host.add_domain(name, &[("vda", CLUSTER)]);
        lab.backup(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let mut sorted = names.map(str::to_owned);
    sorted.sort();
    assert_eq!(lab.repo.domains().expect("readable"), sorted);
    let outside = tree(lab.folder.path());
    assert!(
        outside.iter().all(|path| path.starts_with("backups")),
        "{outside:?}"
    );
    for name in names {
        assert_eq!(
            lab.restored(name, "latest", "vda").expect("restored"),
            lab.disk(name, "vda")
        );
    }
}

#[test]
fn two_restore_points_in_one_second_get_different_ids() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    let moment = lab.now.clone();
    let first = lab.backup("vm1").expect("full");
    lab.now = moment;
    let second = lab.backup("vm1").expect("incremental");
    assert_eq!(second.point.id, format!("{}-2", first.point.id));
    assert_eq!(
        lab.history("vm1").chains.latest().expect("two points").point.id,
        second.point.id
    );
}

#[test]
fn a_clock_set_back_does_not_change_the_order() {
    let mut lab = lab_with_two_points();
    lab.now = "2026-11-01T00:00:00+01:00[Europe/Berlin]"
        .parse()
        .expect("a time");
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[8]));
    let third = lab.backup("vm1").expect("incremental");
    assert_eq!(third.point.level, Level::Incremental);
    assert_eq!(
        lab.history("vm1").chains.latest().expect("three points").point.id,
        third.point.id
    );
    lab.assert_gives_back("vm1", "vda");
}
