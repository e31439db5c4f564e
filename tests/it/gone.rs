//! Restore points that are missing completely, and folders that cannot be read.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use jiff::Span;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::ops::list::list;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::verify::{Options, Outcome, Which, verify};
use vmsnap::ops::{Class, Result};
use vmsnap::repo::Leftover;

use crate::lab::{CLUSTER, InFolder, Lab};

fn dir(lab: &Lab, index: usize) -> PathBuf {
    lab.history("vm1").kept[index].dir().clone()
}

fn proved(lab: &Lab, which: Which) -> Result<Outcome> {
    let options = Options {
        which,
        deep: false,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    verify("vm1", lab.repo.as_ref(), &options, &Silent, &Stop::default())
}

/// The damage that a verification of all points finds.
fn damage(lab: &Lab) -> Vec<String> {
    let outcome = proved(lab, Which::All).expect("there are restore points");
    outcome.all_damage().map(|damage| damage.what.clone()).collect()
}

/// The findings of `list` about the domain.
fn told(lab: &Lab) -> Vec<String> {
    let listed = list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("it can be listed");
    let findings = listed[0].findings.iter();
    findings.map(|finding| finding.message.clone()).collect()
}

/// The file that records that a restore point was committed.
fn record(dir: &Path) -> PathBuf {
    let (period, name) = (dir.parent().expect("a period"), dir.file_name().expect("a name"));
    period.join(".committed").join(name)
}

#[test]
fn missing_restore_point_is_reported_at_any_position() {
    for index in 0..3 {
        type Removal = fn(&Path);
        let removals: [Removal; 4] = [
            |dir| fs::remove_dir_all(dir).expect("removed"),
            |dir| fs::rename(dir, dir.with_extension("old")).expect("renamed"),
            |dir| fs::rename(dir, dir.with_extension("partial")).expect("renamed"),
            |dir| {
                fs::remove_dir_all(dir).expect("removed");
                symlink("/nowhere/at/all", dir).expect("linked");
            },
        ];
        for (way, remove) in removals.into_iter().enumerate() {
            let lab = Lab::with_three_points();
            let gone = dir(&lab, index);
            let stem = gone.with_extension("").display().to_string();
            remove(&gone);
            for told in [damage(&lab), told(&lab)] {
                let named = told.iter().filter(|what| what.contains(&stem)).count();
                assert!(named >= 1, "way {way}, point {index}: {told:?}");
            }
            let latest = proved(&lab, Which::Latest).expect("damage is not an error");
            assert!(!latest.is_sound(), "way {way}, point {index}");
        }
    }
}

#[test]
fn missing_restore_point_is_reported_once_and_blocks_no_backup() {
    let mut lab = Lab::with_three_points();
    let gone = dir(&lab, 2);
    fs::remove_dir_all(&gone).expect("removed");
    let found = damage(&lab);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with(&format!("restore point {} is missing", gone.display())),
        "{found:?}"
    );
    let error = lab
        .restored("vm1", "latest", "vda")
        .expect_err("the newest has gone");
    assert_eq!(error.class(), Class::Damaged);
    assert!(error.to_string().contains(&gone.display().to_string()), "{error}");

    let outcome = lab.backup("vm1").expect("a backup");
    assert_eq!(outcome.point.level, Level::Incremental);
    let codes: Vec<&str> = outcome
        .findings
        .iter()
        .map(|finding| finding.code.as_str())
        .collect();
    assert_eq!(codes, ["restore-point-missing"]);
    lab.assert_gives_back("vm1", "vda");
    assert_eq!(damage(&lab), found, "it is still reported as missing");

    fs::remove_file(record(&gone)).expect("the user removes the record too");
    assert_eq!(damage(&lab), [""; 0]);
}

#[test]
fn the_id_of_a_restore_point_that_has_gone_is_not_given_again() {
    let mut lab = Lab::with_three_points();
    let gone = dir(&lab, 2);
    fs::remove_dir_all(&gone).expect("removed");
    lab.pass(Span::new().minutes(-10));
    let outcome = lab.backup("vm1").expect("a backup in the same second");
    assert!(outcome.point.id.ends_with("-2"), "{}", outcome.point.id);
    assert_eq!(damage(&lab).len(), 1);
}

#[test]
fn committed_point_renamed_to_partial_is_not_removed() {
    let mut lab = Lab::with_three_points();
    let finished = dir(&lab, 2);
    let renamed = finished.with_extension("partial");
    fs::rename(&finished, &renamed).expect("renamed");
    let outcome = lab.backup("vm1").expect("a backup");
    assert_eq!(outcome.findings[0].code, "restore-point-misnamed");
    fs::rename(&renamed, &finished).expect("it is there still");
    let history = lab.history("vm1");
    assert_eq!((history.kept.len(), history.findings.len()), (4, 0));
}

#[test]
fn leftovers_of_a_killed_run_are_not_missing_points() {
    let mut lab = Lab::with_three_points();
    // Killed before its commit: everything is there except the final folder name.
    let third = dir(&lab, 2);
    let partial = third.with_extension("partial");
    fs::rename(&third, &partial).expect("renamed");
    fs::remove_file(record(&third)).expect("it was recorded after the commit");
    let history = lab.history("vm1");
    assert_eq!(history.findings, []);
    assert_eq!(
        history.leftovers,
        [Leftover {
            key: format!(
                "{}/{}",
                "vmsnap-backup-monthly-2026-11",
                partial.file_name().expect("a name").display()
            ),
            location: partial.display().to_string(),
            is_merge: false,
        }]
    );
    // Killed after its commit, before it was recorded.
    fs::rename(&partial, &third).expect("renamed");
    assert_eq!(damage(&lab), [""; 0]);
    lab.backup("vm1").expect("a backup");
    assert!(record(&third).exists(), "the next backup records it");
}

#[test]
fn older_repository_reports_nothing_missing_until_next_backup() {
    let mut lab = Lab::with_three_points();
    let kept = [0, 1, 2].map(|index| dir(&lab, index));
    fs::remove_dir_all(kept[0].parent().expect("a period").join(".committed")).expect("removed");
    assert_eq!(damage(&lab), [""; 0]);
    lab.backup("vm1").expect("a backup");
    fs::remove_dir_all(&kept[2]).expect("removed");
    assert!(damage(&lab)[0].contains("is missing"));
}

#[test]
fn pruned_period_is_not_reported_missing() {
    let mut lab = Lab::with_three_points();
    lab.at("2026-12-20T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("a full");
    lab.at("2026-12-21T02:00:00+01:00[Europe/Berlin]");
    lab.backup_with("vm1", &Lab::pruning()).expect("an increment");
    assert_eq!(lab.history("vm1").kept.len(), 2, "November is gone");
    assert_eq!(damage(&lab), [""; 0]);
}

#[test]
fn points_that_come_back_are_older_than_later_ones() {
    let mut lab = Lab::with_three_points();
    let manifests = [1, 2].map(|index| dir(&lab, index).join("manifest.json"));
    for manifest in &manifests {
        fs::rename(manifest, manifest.with_extension("away")).expect("renamed");
    }
    let made = lab.backup("vm1").expect("a backup").point;
    for manifest in &manifests {
        fs::rename(manifest.with_extension("away"), manifest).expect("renamed");
    }
    assert_eq!(lab.latest("vm1"), made.id);
    assert_eq!(damage(&lab), [""; 0]);
    assert!(lab.backup("vm1").expect("a backup").point.sequence > made.sequence);
}

#[test]
fn unreadable_manifest_of_committed_point_is_reported_once() {
    let lab = Lab::with_three_points();
    fs::write(dir(&lab, 2).join("manifest.json"), "{").expect("written");
    assert_eq!(damage(&lab).len(), 1);
}

#[test]
fn period_that_is_a_dangling_link_is_reported() {
    let mut lab = Lab::with_three_points();
    let period = dir(&lab, 0).parent().expect("a period").to_owned();
    lab.at("2026-12-02T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("a full in December");
    fs::rename(&period, lab.folder.path().join("another disk")).expect("moved");
    symlink("/nowhere/at/all", &period).expect("linked");
    assert_eq!(
        damage(&lab),
        [format!("{} is a dangling or circular link", period.display())]
    );
}

#[test]
fn unreadable_domain_folder_is_named_and_stops_no_other() {
    for target in ["vm1", "/nowhere/at/all"] {
        let mut lab = Lab::with_three_points();
        lab.host.add_domain("vm2", &[("vda", CLUSTER)]);
        lab.backup("vm2").expect("a full");
        let folder = lab.root().join("vm1");
        fs::rename(&folder, lab.folder.path().join("moved")).expect("moved");
        symlink(target, &folder).expect("linked");
        assert_eq!(lab.repo.domains().expect("they are listed"), ["vm1", "vm2"]);
        let error = proved(&lab, Which::All).expect_err("it cannot be read");
        assert_eq!(error.class(), Class::Failed, "{error}");
        assert!(
            error.to_string().contains(&folder.display().to_string()),
            "{error}"
        );
    }
}

#[test]
fn a_manifest_that_is_a_link_is_not_read() {
    let lab = Lab::with_three_points();
    let manifest = dir(&lab, 2).join("manifest.json");
    let elsewhere = lab.folder.path().join("manifest.json");
    fs::rename(&manifest, &elsewhere).expect("moved");
    symlink(&elsewhere, &manifest).expect("linked");
    let told = format!("{} cannot be read: it is a link, not a file", manifest.display());
    assert_eq!(damage(&lab), [told]);
}

#[test]
fn an_image_that_is_a_link_is_called_that() {
    let lab = Lab::with_three_points();
    let image = dir(&lab, 2).join("vda.qcow2");
    let elsewhere = lab.folder.path().join("vda.qcow2");
    fs::rename(&image, &elsewhere).expect("moved");
    symlink(&elsewhere, &image).expect("linked");
    let told = format!("cannot open {}: it is a link, not a file", image.display());
    assert_eq!(damage(&lab), [told]);
}
