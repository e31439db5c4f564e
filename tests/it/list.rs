//! What `list` tells, and which restore point `--at` means.

use vmsnap::ops::list::list;
use vmsnap::ops::restore::{Format, Options, plan};
use vmsnap::ops::{Cause, Class};

use crate::lab::{CLUSTER, Lab, NAMES};

fn options(lab: &Lab, at: &str) -> Options {
    Options {
        at: at.to_owned(),
        to: lab.free_path(),
        disks: vec![],
        format: Some(Format::Qcow2),
        define: None,
    }
}

#[test]
fn a_point_is_found_by_id_checkpoint_time_and_as_the_latest() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    let first = lab.backup("vm1").expect("full").point.id;
    let second = lab.backup("vm1").expect("incremental").point.id;
    let cases = [
        ("latest", &second),
        (first.as_str(), &first),
        (NAMES[0], &first),
        (NAMES[1], &second),
        ("2026-11-03T02:05:00+01:00", &first),
        ("2030-01-01T00:00:00Z", &second),
    ];
    for (at, expected) in cases {
        let found = plan("vm1", &lab.repo, None, &options(&lab, at)).expect("a plan");
        assert_eq!(&found.point.id, expected, "{at}");
    }
    for at in ["2020-01-01T00:00:00Z", "nonsense", "virtnbdbackup.9"] {
        let error = plan("vm1", &lab.repo, None, &options(&lab, at)).expect_err("no such point");
        assert_eq!(error.class(), Class::NotFound, "{at}: {error}");
    }
}

#[test]
fn a_list_tells_the_whole_from_the_broken() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.backup("vm1").expect("full");
    lab.backup("vm1").expect("incremental");
    let image = lab.history("vm1").kept[1].dir.join("vda.qcow2");
    std::fs::write(image, b"short").expect("written");
    let listed = list(&lab.repo, &["vm1".to_owned()]).expect("readable");
    let whole: Vec<bool> = listed[0]
        .points
        .iter()
        .map(vmsnap::ops::list::Listed::is_whole)
        .collect();
    assert_eq!(whole, [true, false]);
    assert!(listed[0].points[1].faults[0].contains("has 5 bytes instead of"));
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER), ("vdb", CLUSTER)]);
    lab.backup("vm1").expect("full");
    let to = lab.free_path();
    std::fs::create_dir(&to).expect("new");
    std::fs::write(to.join("vdb.qcow2"), b"precious").expect("written");
    let error = plan("vm1", &lab.repo, None, &options_to(to.clone())).expect_err("vdb.qcow2 exists");
    assert!(matches!(error.cause, Cause::Exists(_)), "{error}");
    assert_eq!(std::fs::read(to.join("vdb.qcow2")).expect("there"), b"precious");
    let file = to.join("one.qcow2");
    let error = plan("vm1", &lab.repo, None, &options_to(file)).expect_err("two disks, one file");
    assert_eq!(error.class(), Class::Usage, "{error}");
}

fn options_to(to: std::path::PathBuf) -> Options {
    Options {
        at: "latest".into(),
        to,
        disks: vec![],
        format: Some(Format::Qcow2),
        define: None,
    }
}

/// Runs `vmsnap list` and gives its exit code and standard output; its errors have to name `stderr`.
fn typed(lab: &Lab, arguments: &[&str], stderr: &str) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .arg("list")
        .args(arguments)
        .arg("--repository")
        .arg(lab.repo.root())
        .output()
        .expect("the program runs");
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(told.contains(stderr), "{told}");
    (
        output.status.code(),
        String::from_utf8(output.stdout).expect("text"),
    )
}

#[test]
fn a_list_that_failed_does_not_claim_emptiness() {
    let empty = Lab::new();
    let (code, stdout) = typed(&empty, &[], "");
    assert_eq!(
        (code, stdout.starts_with("No restore points in ")),
        (Some(0), true)
    );

    let lab = Lab::with_three_points();
    let (code, stdout) = typed(&lab, &["nobody"], "No matching domains found for: nobody");
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    let folder = lab.repo.root().join("vm1");
    std::fs::rename(&folder, lab.folder.path().join("moved")).expect("moved");
    std::os::unix::fs::symlink("vm1", &folder).expect("linked");
    let (code, stdout) = typed(&lab, &[], &folder.display().to_string());
    assert_eq!((code, stdout.as_str()), (Some(3), ""));
    let (code, stdout) = typed(&lab, &["--json"], &folder.display().to_string());
    let document: serde_json::Value = serde_json::from_str(&stdout).expect("a document");
    assert_eq!(
        (code, document["domains"].as_array().map(Vec::len)),
        (Some(3), Some(0))
    );
}
