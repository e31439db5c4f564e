//! Targets that are removed, replaced or unmounted, during a run and between runs.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use vmsnap::io::DiskStore;
use vmsnap::ops::Class;
use vmsnap::repo::FolderRepository;

use super::{
    assert_names, assert_next_run_heals, assert_nothing_left, assert_unchanged, kept_files, once_copying,
    two_points, watched,
};
use crate::lab::{Lab, NAMES, tree};

/// The repository's path while its file system is not mounted.
fn away(lab: &Lab) -> PathBuf {
    lab.folder.path().join("away")
}

/// Unmounts the file system: its mount point is now an empty folder.
fn unmount(root: &PathBuf, away: &PathBuf) {
    fs::rename(root, away).expect("moved");
    fs::create_dir(root).expect("an empty folder");
}

fn mount_again(root: &PathBuf, away: &PathBuf) {
    fs::remove_dir(root).expect("still empty");
    fs::rename(away, root).expect("moved");
}

#[test]
fn target_removed_mid_run_is_a_named_error_and_not_recreated() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    let root = lab.root().to_owned();
    let gone = root.clone();
    let error = watched(
        &lab,
        "vm1",
        &Lab::options(),
        once_copying(move || fs::remove_dir_all(&gone).expect("removed")),
    )
    .expect_err("nothing can be written");
    assert_names(&error, "domain 'vm1'", "removed");
    assert_names(&error, &root.display().to_string(), "removed");
    assert!(!root.exists());
    assert!(!lab.host.has_job("vm1"));
    let again = lab.backup("vm1").expect_err("it is not there");
    assert_eq!(again.class(), Class::Repository, "{again}");
    assert!(!root.exists());
    lab.repo = Box::new(FolderRepository::open_or_create(&root, Arc::new(DiskStore)).expect("a new one"));
    let outcome = assert_full_after_loss(&mut lab);
    assert!(
        outcome.contains(&"repository-without-its-past".to_owned()),
        "{outcome:?}"
    );
}

/// Checks that the next run makes a full backup, and returns the codes of its findings.
fn assert_full_after_loss(lab: &mut Lab) -> Vec<String> {
    let outcome = lab.backup("vm1").expect("a full");
    assert_eq!(outcome.point.parent, None);
    lab.assert_gives_back("vm1", "vda");
    outcome.findings.into_iter().map(|found| found.code).collect()
}

#[test]
fn nothing_is_written_below_a_target_unmounted_mid_run() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    two_points(&mut lab, "vm2");
    let (root, away) = (lab.root().to_owned(), away(&lab));
    let before = kept_files(&root);
    let (from, to) = (root.clone(), away.clone());
    let error = watched(
        &lab,
        "vm1",
        &Lab::options(),
        once_copying(move || unmount(&from, &to)),
    )
    .expect_err("the target is another");
    assert_names(&error, &root.display().to_string(), "unmounted");
    assert_eq!(tree(&root), Vec::<String>::new());
    assert!(!lab.host.has_job("vm1"));
    // The next domain of the same run fails too.
    let error = lab.backup("vm2").expect_err("the target is another");
    assert_eq!(error.class(), Class::Repository, "{error}");
    assert_names(&error, &root.display().to_string(), "the next domain");
    assert_eq!(tree(&root), Vec::<String>::new());
    mount_again(&root, &away);
    assert_unchanged(&before, &kept_files(&root), "mounted again");
    for domain in ["vm1", "vm2"] {
        let outcome = assert_next_run_heals(&mut lab, domain, "mounted again");
        assert!(outcome.point.parent.is_some(), "{domain}");
    }
}

#[test]
fn unmounted_target_is_reported_as_far_as_it_can_be_known() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    let (root, away) = (lab.root().to_owned(), away(&lab));
    unmount(&root, &away);
    lab.repo =
        Box::new(FolderRepository::open_or_create(&root, Arc::new(DiskStore)).expect("a folder is there"));
    let outcome = lab.backup("vm1").expect("a full");
    let found = outcome
        .findings
        .iter()
        .find(|found| found.code == "repository-without-its-past");
    let message = &found.expect("a finding").message;
    assert!(message.contains(&root.display().to_string()), "{message}");
    assert_nothing_but_earlier_checkpoints(&lab);
    // The second backup has earlier restore points in its repository.
    let codes: Vec<String> = lab
        .backup("vm1")
        .expect("an incremental")
        .findings
        .into_iter()
        .map(|found| found.code)
        .collect();
    assert_eq!(codes, Vec::<String>::new());
    fs::remove_dir_all(&root).expect("removed");
    fs::rename(&away, &root).expect("mounted again");
    lab.repo = Box::new(FolderRepository::open(&root, Arc::new(DiskStore)).expect("it is back"));
    let outcome = lab.backup("vm1").expect("an incremental");
    assert!(
        outcome.point.parent.is_some(),
        "the old checkpoints are still usable"
    );
    lab.assert_gives_back("vm1", "vda");
}

/// The checkpoints of the repository that is not mounted are kept.
fn assert_nothing_but_earlier_checkpoints(lab: &Lab) {
    assert!(!lab.host.has_job("vm1"));
    let names = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
    assert_eq!(names, [NAMES[0], NAMES[1], NAMES[2]]);
}

#[test]
fn a_domains_folder_that_cannot_be_made_stops_no_other_domain() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm2");
    lab.host.add_domain("vm1", &[("vda", 4 * crate::lab::CLUSTER)]);
    let place = lab.root().join("vm1");
    fs::write(&place, "a file of somebody else").expect("written");
    let error = lab.backup("vm1").expect_err("it is no folder");
    assert_names(&error, &place.display().to_string(), "a file");
    assert_eq!(fs::read(&place).expect("it stays"), b"a file of somebody else");
    assert_next_run_heals(&mut lab, "vm2", "the other");
    fs::remove_file(&place).expect("somebody removes it");
    assert_next_run_heals(&mut lab, "vm1", "free again");
    assert_nothing_left(&lab, "vm1", "free again");
}
