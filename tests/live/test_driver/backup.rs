//! Backups that fail, and hostile names.

use std::fs::{self, File};

use super::*;

/// Fault 4: an invalid `--groupBy` writes into a folder named `undefined`.
#[test]
fn an_invalid_grouping_is_refused_before_anything_is_written() {
    let node = Node::new(&[("vm1", SHUT_OFF)]);
    for words in [
        ["--backup", "--groupBy=weekly"],
        ["backup", "--group-by=Month"],
        ["--status", "--groupBy="],
    ] {
        let finished = node.vmsnap(&[&words[..], &["--domains=vm1", "--output=OUT"]].concat());
        ends(&finished, 10, "month, quarter, bi-annual, year");
    }
    assert_eq!(fs::read_dir(node.backups()).expect("a folder").count(), 0);
}

/// Faults 9 and 1: one missing domain ends the whole run, and a failed backup exits 0.
#[test]
fn failures_stop_no_other_domain_and_are_summarised() {
    let node = Node::new(&[("good", SHUT_OFF), ("running", RUNNING)]);
    let words = ["--backup", "--domains=gone,running,good", "--output=OUT"];
    let finished = node.vmsnap(&words);
    ends(&finished, 1, "No matching domains found for: gone");
    assert_eq!(node.restore_points("good"), 1);
    assert!(finished.stdout.starts_with("good: full backup "), "{finished:#?}");
    let summary = finished
        .stderr
        .split("vmsnap: 2 of 3 domains failed:\n")
        .nth(1)
        .expect("a summary");
    assert!(
        summary.contains("  No matching domains found for: gone\n"),
        "{summary}"
    );
    assert!(summary.contains("  running: libvirt could not "), "{summary}");
    let finished = node.vmsnap(&["backup", "running", "good", "-o", "OUT", "-q"]);
    ends(&finished, 9, "vmsnap: running: libvirt could not ");
    assert_eq!(node.restore_points("good"), 2);
    assert_eq!(node.restore_points("running"), 0);
}

/// Fault 1: a failed backup still prunes.
#[test]
fn a_failed_backup_with_prune_deletes_nothing() {
    let node = Node::new(&[("vm1", RUNNING)]);
    let mut kept = Vec::new();
    for year in 2020..=2040 {
        let old = node.backups().join(format!("vm1/vmsnap-backup-yearly-{year}"));
        fs::create_dir_all(&old).expect("it is made");
        fs::write(old.join("precious"), "x").expect("it is written");
        kept.push(old.join("precious"));
    }
    let words = [
        "--backup",
        "--domains=vm1",
        "--output=OUT",
        "--groupBy=year",
        "--prune",
    ];
    ends(&node.vmsnap(&words), 9, "vm1");
    assert!(kept.iter().all(|old| old.is_file()));
}

/// Faults 2 and 15: pruning without `--prune`, and with `--prune=false`.
#[test]
fn only_a_prune_that_is_meant_prunes() {
    let node = Node::new(&[("vm1", SHUT_OFF)]);
    for words in [
        &[][..],
        &["--prune=false"],
        &["--no-prune"],
        &["--prune", "--prune=false"],
    ] {
        let classic = [
            "--backup",
            "--domains=vm1",
            "--output=OUT",
            "--groupBy=year",
            "--dry-run",
            "--json",
        ];
        let plan = node.vmsnap(&[&classic[..], words].concat());
        ends(&plan, 0, "");
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout).expect("JSON");
        assert!(plan["domains"][0]["prune"]["keep"].is_null(), "{plan}");
        assert!(plan["domains"][0]["prune"]["delete"].is_null(), "{plan}");
    }
    let meant = [
        "backup",
        "vm1",
        "--output",
        "OUT",
        "--group-by=year",
        "--prune",
        "--dry-run",
    ];
    let plan = node.vmsnap(&meant);
    assert!(
        plan.stdout
            .contains("  prune nothing: there is no vmsnap-backup-yearly-"),
        "{plan:#?}"
    );
}

/// Fault 15: `--domains=101` matches nothing.
#[test]
fn a_number_is_a_name() {
    let node = Node::new(&[("101", SHUT_OFF), ("007", RUNNING)]);
    let status = node.vmsnap(&["--domains=101,007", "--json", "--machine"]);
    ends(&status, 0, "");
    assert!(status.stdout.starts_with("{\"101\":{"), "{status:#?}");
    assert!(status.stdout.contains(",\"007\":{"), "{status:#?}");
    ends(
        &node.vmsnap(&["--backup", "--domains=101", "--output=OUT"]),
        0,
        "",
    );
    assert_eq!(node.restore_points("101"), 1);
}

/// Fault 7: names reach a shell unquoted.
#[test]
fn a_name_made_of_shell_words_is_only_a_name() {
    let node = Node::new(&[(NASTY, SHUT_OFF)]);
    let status = node.vmsnap(&[]);
    ends(&status, 0, "");
    assert!(
        status.stdout.starts_with(&format!("Status for {NASTY}:\n")),
        "{status:#?}"
    );
    for words in [
        &["--backup", "--domains=a $*"][..],
        &["backup", NASTY],
        &["backup", NASTY, "--prune"],
    ] {
        ends(&node.vmsnap(&[words, &["--output=OUT"]].concat()), 0, "");
    }
    assert_eq!(node.restore_points(NASTY), 3);
    let yaml = node.vmsnap(&["--yaml", "--machine"]).stdout;
    assert!(
        yaml.starts_with(&format!("{}:\n", serde_json::to_string(NASTY).expect("JSON"))),
        "{yaml}"
    );
    assert!(!node.path("PWNED").exists());
}

/// Fault 10: a failed first full leaves its folder, and every later run of the period fails.
#[test]
fn after_a_failed_first_full_the_next_run_makes_it() {
    let mut node = Node::new(&[("vm1", RUNNING)]);
    let words = ["--backup", "--domains=vm1", "--output=OUT"];
    ends(&node.vmsnap(&words), 9, "vm1");
    assert_eq!(node.restore_points("vm1"), 0);
    node.set_state(0, SHUT_OFF);
    let second = node.vmsnap(&words);
    ends(&second, 0, "");
    assert!(second.stdout.starts_with("vm1: full backup "), "{second:#?}");
    assert_eq!(node.restore_points("vm1"), 1);
}

/// Fault 11: one lock for everything, without an owner, which also blocks status.
#[test]
fn lock_is_per_domain_and_does_not_block_status() {
    let node = Node::new(&[("vm1", SHUT_OFF), ("vm2", SHUT_OFF)]);
    let backup = |domains| node.vmsnap(&["--backup", domains, "--output=OUT", "--wait=0"]);
    ends(&backup("--domains=vm1,vm2"), 0, "");
    let lock = File::options()
        .write(true)
        .open(node.backups().join("vm1/.lock"))
        .expect("it is there");
    lock.try_lock().expect("nobody holds it now");
    fs::write(node.backups().join("vm1/.lock"), "process 4711\n").expect("it is written");
    let hindered = backup("--domains=vm1,vm2");
    assert!(
        hindered
            .stderr
            .contains("is locked by another run (process 4711)"),
        "{hindered:#?}"
    );
    assert_eq!((node.restore_points("vm1"), node.restore_points("vm2")), (1, 2));
    assert_eq!(hindered.code, Some(3), "{hindered:#?}");
    for (words, environment) in [
        (
            &["--backup", "--domains=vm1", "--output=OUT"][..],
            &[("VMSNAP_WAIT", "1")][..],
        ),
        (&["backup", "vm1", "--output=OUT", "--wait", "1"], &[]),
    ] {
        let waited = node.vmsnap_with(words, environment);
        let line = "vm1: waiting up to 1 s for another run (process 4711)\n";
        ends(&waited, 3, line);
        ends(&waited, 3, "is still locked by another run (process 4711)\n");
    }
    ends(
        &node.vmsnap(&["backup", "vm1", "--output=OUT"]),
        3,
        "(process 4711)\nhint: ",
    );
    ends(&node.vmsnap(&["--domains=vm1", "--output=OUT"]), 0, "");
    drop(lock);
    ends(&backup("--domains=vm1"), 0, "");
}

/// Fault 14: paths with blanks are cut, and a localized `virsh` makes every domain look offline.
#[test]
fn blanks_in_paths_and_other_languages_change_nothing() {
    let node = Node::new(&[("vm 1", RUNNING), ("vm2", SHUT_OFF)]);
    let german = [
        ("LANG", "de_DE.UTF-8"),
        ("LC_ALL", "de_DE.UTF-8"),
        ("LANGUAGE", "de"),
    ];
    let words = ["--json", "--machine", "--output=OUT"];
    let status = node.vmsnap_with(&words, &german);
    ends(&status, 0, "");
    assert_eq!(status.stdout, node.vmsnap(&words).stdout);
    let value: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(value["vm 1"]["state"], "running");
    assert_eq!(value["vm 1"]["disks"][0]["disk"], "vda");
    let made = node.vmsnap_with(&["--backup", "--domains=vm2", "--output=OUT"], &german);
    ends(&made, 0, "");
    assert_eq!(node.restore_points("vm2"), 1);
}

#[test]
fn dry_run_into_a_missing_folder_shows_the_plan() {
    let node = Node::new(&[("vm1", SHUT_OFF)]);
    let words = ["--backup", "--domains=vm1", "--dry-run"];
    let run = |output: &str| node.vmsnap(&[&words[..], &[output]].concat());
    let planned = run("--output=OUT/new");
    ends(&planned, 0, "");
    assert!(
        planned
            .stdout
            .starts_with("vm1: a full backup into vmsnap-backup-monthly-"),
        "{planned:#?}"
    );
    ends(&run("--output=OUT/new/deeper"), 2, "cannot be used");
    assert_eq!(fs::read_dir(node.backups()).expect("a folder").count(), 0);
    ends(&node.vmsnap(&["backup", "vm1", "--output=OUT/new"]), 0, "");
    ends(
        &node.vmsnap(&["backup", "vm1", "--output=OUT/other/deeper"]),
        2,
        "cannot be used",
    );
}
