//! Chains with more images than a process may open.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Output};

use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::Outcome;

use crate::lab::{CLUSTER, Lab};

const SIZE: usize = 4 * CLUSTER;

/// Set in the process with limits, so that the test can recognise it.
const LIMITED: &str = "VMSNAP_TEST_LIMITED";

fn lab() -> Lab {
    let lab = Lab::in_memory();
    lab.host.add_domain("vm1", &[("vda", SIZE)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[1; 3 * CLUSTER]));
    lab
}

/// Writes to the disk and backs it up.
fn next(lab: &mut Lab, number: usize) -> Outcome {
    let byte = number as u8 + 2;
    lab.host.disk("vm1", "vda", |disk| {
        disk.write(number % 3 * CLUSTER + number, &[byte; 100]);
    });
    lab.backup("vm1").expect("a backup")
}

/// A domain with a chain of this many images.
fn long_chain(images: usize) -> Lab {
    let mut lab = lab();
    for number in 0..images {
        next(&mut lab, number);
    }
    let history = lab.history("vm1");
    let newest = &history.chains.latest().expect("the newest").point;
    let chain = history.chains.lineage(&newest.id, "vda").expect("a chain");
    assert_eq!(chain.len(), images);
    lab
}

/// Runs a program with these soft and hard limits of open files, in the syntax of `prlimit`
/// (util-linux).
fn limited(limits: &str, program: impl AsRef<OsStr>, arguments: &[&str]) -> Output {
    Command::new("prlimit")
        .arg(format!("--nofile={limits}"))
        .arg(program)
        .args(arguments)
        .env(LIMITED, "1")
        .output()
        .expect("prlimit runs")
}

/// Runs a test of this module alone in a process with these limits. Returns true in that process.
fn is_limited(limits: &str, test: &str) -> bool {
    if env::var_os(LIMITED).is_some() {
        return true;
    }
    let name = format!("open_files::{test}");
    let this = env::current_exe().expect("this program");
    let output = limited(limits, this, &["--exact", &name]);
    let said = String::from_utf8_lossy(&output.stdout);
    let is_passed = output.status.success() && said.contains("1 passed");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(is_passed, "with the limits {limits}: {said}{complaints}");
    false
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether the text names the first image that could not be opened, and the reason.
fn names_the_file_and_the_limit(text: &str) -> bool {
    text.contains("/vda.qcow2") && text.contains("Too many open files")
}

#[test]
fn open_files_of_a_backup_are_bounded_by_chain_length() {
    if !is_limited("128", "open_files_of_a_backup_are_bounded_by_chain_length") {
        return;
    }
    let mut lab = lab();
    for number in 0..100 {
        let point = next(&mut lab, number).point;
        let disk = point.disk("vda").expect("it is there");
        assert_eq!(
            point.level == Level::Full,
            number == 0,
            "{number}: {}",
            disk.reason
        );
    }
    assert!(lab.restored("vm1", "latest", "vda").expect("restored") == lab.disk("vm1", "vda"));
}

#[test]
fn backup_is_full_with_a_reason_if_chain_cannot_be_opened() {
    if !is_limited("64", "backup_is_full_with_a_reason_if_chain_cannot_be_opened") {
        return;
    }
    let mut lab = lab();
    next(&mut lab, 0);
    let outcomes = (1..80).map(|number| next(&mut lab, number));
    let full = { outcomes }.find(|outcome| outcome.point.level == Level::Full);
    let full = full.expect("80 images cannot be opened");
    let told = |finding: &&vmsnap::model::finding::Finding| finding.code == "full-instead";
    let finding = full.findings.iter().find(told).expect("a finding");
    assert!(
        names_the_file_and_the_limit(&finding.message),
        "{}",
        finding.message
    );
    assert_eq!(finding.disk.as_deref(), Some("vda"));
    assert_eq!(full.point.findings.iter().find(told), Some(finding), "and kept");
    assert!(names_the_file_and_the_limit(
        &full.point.disk("vda").expect("it is there").reason
    ));
    assert_eq!(
        next(&mut lab, 80).point.level,
        Level::Incremental,
        "depends on the new full backup"
    );
    assert!(lab.restored("vm1", "latest", "vda").expect("restored") == lab.disk("vm1", "vda"));
}

#[test]
fn a_chain_longer_than_the_soft_limit_is_verified_and_restored() {
    let lab = long_chain(80);
    let root = lab.root().display().to_string();
    let to = lab.free_path();
    let words = ["verify", "vm1", "--deep", "--repository", &root];
    let verified = limited("64:4096", env!("CARGO_BIN_EXE_vmsnap"), &words);
    assert_eq!(verified.status.code(), Some(0), "{}", stderr(&verified));
    let file = to.display().to_string();
    let words = [
        "restore",
        "vm1",
        "--format",
        "raw",
        "--to",
        &file,
        "--repository",
        &root,
    ];
    let restored = limited("64:4096", env!("CARGO_BIN_EXE_vmsnap"), &words);
    assert_eq!(restored.status.code(), Some(0), "{}", stderr(&restored));
    assert!(fs::read(to.join("vda.raw")).expect("restored") == lab.disk("vm1", "vda"));
}

#[test]
fn deep_verify_of_all_points_opens_few_files() {
    let lab = long_chain(80);
    let root = lab.root().display().to_string();
    let words = ["verify", "vm1", "--all", "--deep", "--repository", &root];
    let verified = limited("64:64", env!("CARGO_BIN_EXE_vmsnap"), &words);
    assert_eq!(verified.status.code(), Some(0), "{}", stderr(&verified));
}

#[test]
fn a_file_too_many_is_named_with_a_hint_and_is_no_damage() {
    let lab = long_chain(80);
    let root = lab.root().display().to_string();
    let to = lab.free_path().display().to_string();
    let verify = ["verify", "vm1", "--deep", "--repository", &root];
    let restore = ["restore", "vm1", "--to", &to, "--repository", &root];
    for words in [&verify[..], &restore[..]] {
        let output = limited("64:64", env!("CARGO_BIN_EXE_vmsnap"), words);
        assert_eq!(output.status.code(), Some(3), "{words:?}: {output:?}");
        let told = stderr(&output);
        assert!(names_the_file_and_the_limit(&told), "{words:?}: {told}");
        assert!(told.contains("hint: ") && told.contains("LimitNOFILE"), "{told}");
        assert!(
            !String::from_utf8_lossy(&output.stdout).contains("DAMAGED"),
            "{output:?}"
        );
    }
    let history = lab.history("vm1");
    assert!(
        history
            .chains
            .points()
            .iter()
            .all(|kept| kept.suspected_damage.is_empty())
    );
    assert!(
        !lab.free_path().join("vda.qcow2").exists(),
        "nothing is half restored"
    );
}
