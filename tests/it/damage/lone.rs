//! Damage outside the matrix: the newest point lost, a journal entry lost during its job, a
//! checkpoint's file whose manifest is lost.

use std::fs;

use vmsnap::host::Host;
use vmsnap::ops::restore::{Format, Options, plan};
use vmsnap::ops::{Cause, Class};

use super::stage::{POINTS, Stage};
use crate::lab::DEAD;

fn ask(stage: &Stage, at: &str) -> Options {
    Options {
        at: at.to_owned(),
        to: stage.lab.free_path(),
        pool: None,
        disks: vec!["vda".to_owned()],
        format: Some(Format::Raw),
        define: None,
    }
}

#[test]
fn older_point_is_never_substituted_for_an_unreadable_one() {
    let stage = Stage::new();
    let lost = &stage.points[2];
    let manifest = lost.dir.join("manifest.json");
    fs::write(&manifest, "{").expect("written");
    let refused = |at: &str| {
        let error = plan("vm1", stage.lab.repo.as_ref(), None, &ask(&stage, at)).expect_err("it is lost");
        assert_eq!(error.class(), Class::Damaged, "{at}: {error}");
        assert!(
            error.to_string().contains(&manifest.display().to_string()),
            "{at}: {error}"
        );
    };
    refused(&lost.id);
    refused("2026-11-03T01:20:05Z");
    fs::remove_dir_all(&stage.points[3].dir).expect("it was there");
    refused("latest");
    let before = plan(
        "vm1",
        stage.lab.repo.as_ref(),
        None,
        &ask(&stage, "2026-11-03T01:19:59Z"),
    );
    assert_eq!(
        before.expect("a moment before the lost one").point.id,
        stage.points[1].id
    );
}

#[test]
fn checkpoint_file_of_unreadable_manifest_is_not_overwritten() {
    let mut stage = Stage::new();
    let manifest = stage.points[3].dir.join("manifest.json");
    fs::write(&manifest, "{").expect("written");
    let newest = stage.lab.made[POINTS - 1].clone();
    let domain = stage.lab.host.domain("vm1").expect("it is there");
    for name in [newest.as_str(), DEAD] {
        stage
            .lab
            .host
            .delete_checkpoint(&domain, name)
            .expect("it was there");
    }
    let before = stage.contents();
    stage.lab.backup("vm1").expect("a backup");
    let after = stage.contents();
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)));
}

#[test]
fn a_job_whose_note_is_lost_is_not_taken_for_ours() {
    let mut stage = Stage::new();
    fs::write(stage.leftover.join("intent.json"), "{").expect("written");
    stage.lab.host.leave_job(
        "vm1",
        "/run/dead.sock",
        "virtnbdbackup.1793600000999999999999998",
        "vmsnap run dead",
    );
    let error = stage.lab.backup("vm1").expect_err("a job holds the domain");
    assert!(matches!(error.cause, Cause::Busy { .. }), "{error}");
    let domain = stage.lab.host.domain("vm1").expect("it is there");
    stage.lab.host.abort_job(&domain).expect("somebody ends it");
    let outcome = stage.lab.backup("vm1").expect("free again");
    assert_eq!(
        outcome.point.parent.as_deref(),
        Some(stage.points[POINTS - 1].id.as_str())
    );
}

#[test]
fn damage_of_one_image_does_not_affect_other_disks() {
    let mut stage = Stage::new();
    let image = stage.points[1].dir.join("vda.qcow2");
    fs::remove_file(&image).expect("it was there");
    let last = stage.points.last().expect("points");
    let restored = stage.lab.restored("vm1", &last.id, "vdb").expect("restored");
    assert!(restored == last.disks[1]);
    let outcome = stage.lab.backup("vm1").expect("a backup");
    let parents: Vec<Option<&str>> = outcome
        .point
        .disks
        .iter()
        .map(|disk| disk.parent.as_deref())
        .collect();
    assert_eq!(
        parents,
        [
            Some(stage.points[0].id.as_str()),
            Some(stage.points[3].id.as_str())
        ]
    );
}
