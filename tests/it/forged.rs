//! Restore points that are valid by themselves but replaced the ones their children depend on.

use std::fs;

use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::verify::{Options, Outcome, Which, verify};
use vmsnap::ops::{Cause, Class};
use vmsnap::repo::Manifest;

use crate::lab::{InFolder, Lab};

fn proved(lab: &Lab) -> Outcome {
    let options = Options {
        which: Which::All,
        deep: true,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    verify("vm1", lab.repo.as_ref(), &options, &Silent, &Stop::default()).expect("there are restore points")
}

/// Rewrites the manifest of a restore point and gives it a valid digest.
pub fn rewrite(lab: &Lab, index: usize, change: impl FnOnce(&mut Manifest)) {
    let history = lab.history("vm1");
    let kept = &history.kept[index];
    let mut manifest = kept.manifest.clone();
    change(&mut manifest);
    let text = manifest.to_text().expect("JSON");
    fs::write(kept.dir().join("manifest.json"), text).expect("it can be written");
}

/// Changes a byte of the guest's data and updates the manifest to match.
fn change_data(lab: &Lab, index: usize) {
    let image = lab.history("vm1").kept[index].dir().join("vda.qcow2");
    let mut bytes = fs::read(&image).expect("it can be read");
    let place = bytes
        .windows(64)
        .position(|found| found == [1; 64])
        .expect("data");
    bytes[place] = 0xee;
    let digest = blake3::hash(&bytes).to_hex().to_string();
    fs::write(&image, bytes).expect("it can be written");
    rewrite(lab, index, |manifest| {
        let mut files = manifest.files.iter_mut();
        files
            .find(|file| file.name == "vda.qcow2")
            .expect("listed")
            .blake3 = digest;
    });
}

#[test]
fn parent_with_other_data_and_valid_digests_is_detected() {
    let mut lab = Lab::with_points_of(&Lab::plain());
    change_data(&lab, 0);
    let outcome = proved(&lab);
    let sound: Vec<bool> = outcome
        .points
        .iter()
        .map(|point| point.damage.is_empty())
        .collect();
    assert_eq!(sound, [true, false, false], "the parent is sound by itself");
    let words = "depends on restore point 2026-11-03T01-00-00Z, which has been replaced by another one";
    assert!(outcome.points[1].damage[0].what.contains(words), "{outcome:?}");
    let history = lab.history("vm1");
    let newest = lab.latest("vm1");
    assert!(
        history.chains.faults(&newest)[0].contains(words),
        "list and status report it"
    );
    let error = lab.restored("vm1", "latest", "vda").expect_err("not what it was");
    assert_eq!(error.class(), Class::Damaged);
    assert!(error.to_string().contains(words), "{error}");
    let outcome = lab.backup_with("vm1", &Lab::plain()).expect("a backup");
    assert_eq!(
        outcome.point.level,
        Level::Full,
        "nothing new depends on the replaced one"
    );
    let reason = &outcome.point.disks[0].reason;
    assert!(reason.contains(words), "{reason}");
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn parent_must_be_older() {
    let lab = Lab::with_three_points();
    rewrite(&lab, 2, |manifest| manifest.point.sequence = 1);
    let history = lab.history("vm1");
    let faults: Vec<String> = history
        .chains
        .points()
        .iter()
        .flat_map(|kept| history.chains.faults(&kept.point.id))
        .collect();
    assert!(
        faults.len() == 1 && faults[0].contains("whose sequence number is not lower"),
        "{faults:?}"
    );
}

#[test]
fn older_manifests_without_parent_digest_are_sound() {
    let mut lab = Lab::with_three_points();
    for index in [0, 1, 2] {
        rewrite(&lab, index, |manifest| {
            for disk in &mut manifest.point.disks {
                disk.parent_manifest = None;
            }
        });
    }
    assert!(proved(&lab).is_sound());
    let outcome = lab.backup("vm1").expect("a backup");
    assert_eq!(outcome.point.level, Level::Incremental);
    let newest = lab.history("vm1").kept[2].manifest.digest.clone();
    assert_eq!(outcome.point.disks[0].parent_manifest, Some(newest));
    assert!(proved(&lab).is_sound());
}

#[test]
fn newer_manifest_format_is_not_recorded_as_damage() {
    let lab = Lab::with_three_points();
    let manifest = lab.history("vm1").kept[2].dir().join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    fs::write(
        &manifest,
        text.replacen("\"format\": ", "\"format\": 9, \"new\": ", 1),
    )
    .expect("written");
    let outcome = proved(&lab);
    assert!(outcome.is_sound() && outcome.needs_newer());
    assert_eq!(outcome.points.len(), 2, "the older ones are proved");
    assert!(
        outcome.findings[0]
            .message
            .contains("written by a newer vmsnap; this vmsnap reads versions up to"),
        "{:?}",
        outcome.findings
    );
    let error = lab
        .restored("vm1", "latest", "vda")
        .expect_err("it cannot be read");
    assert_eq!(error.class(), Class::Failed);
    assert!(
        matches!(error.cause, Cause::WrittenByANewerVmsnap { .. }),
        "{error}"
    );
}
