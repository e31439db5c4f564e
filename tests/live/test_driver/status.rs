//! The status command: arguments and output.

use crate::process::{command, run};

use super::*;

#[test]
fn no_arguments_show_the_status_of_all_domains() {
    let node = Node::new(&[("vm1", RUNNING), ("vm2", SHUT_OFF)]);
    let all = node.vmsnap(&[]);
    ends(&all, 0, "");
    assert_eq!(all.stderr, "");
    assert!(all.stdout.starts_with(VM1), "{}", all.stdout);
    assert!(all.stdout.contains("\nStatus for vm2:\n"), "{}", all.stdout);
    assert!(!all.stdout.contains('\u{1b}'), "no colours in a pipe");
    for words in [
        &["--domains=vm1"][..],
        &["--status", "--domains", "vm1"],
        &["status", "vm1"],
    ] {
        assert_eq!(node.vmsnap(words).stdout, VM1, "{words:?}");
    }
    assert_eq!(node.vmsnap(&["--domains=*"]).stdout, all.stdout);
}

#[test]
fn colours_come_where_they_are_wanted() {
    let node = Node::new(&[("vm1", RUNNING)]);
    let forced = node.vmsnap_with(&[], &[("CLICOLOR_FORCE", "1")]);
    assert!(
        forced.stdout.contains("\u{1b}[35mvm1\u{1b}[0m"),
        "{}",
        forced.stdout
    );
    let refused = node.vmsnap_with(&[], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]);
    assert_eq!(refused.stdout, VM1);
}

#[test]
fn bitmaps_of_a_shut_off_domain_are_read_and_judged() {
    let node = Node::new(&[("vm1", SHUT_OFF)]);
    for bitmap in ["foreign", "virtnbdbackup.3"] {
        let image = node.image(0);
        let add = ["bitmap", "--add", image.to_str().expect("UTF-8"), bitmap];
        run(command("qemu-img", &add));
    }
    let status = node.vmsnap(&[]);
    ends(&status, 0, "");
    let expected = "  Overall status: INCONSISTENT\n";
    assert!(status.stdout.contains(expected), "{}", status.stdout);
    let bitmaps = "      Bitmaps found for vda:\n          foreign\n          virtnbdbackup.3\n";
    assert!(status.stdout.contains(bitmaps), "{}", status.stdout);
}

/// Fault 12: errors go to stdout, and `--verbose` breaks the JSON.
#[test]
fn stdout_has_only_the_answer() {
    let node = Node::new(&[("vm1", RUNNING)]);
    let json = ["--domains=vm1,gone", "--json", "--machine"];
    let plain = node.vmsnap(&json);
    for more in [
        &["--verbose"][..],
        &["-vv"],
        &["-q"],
        &["-v", "--log-format=json"],
    ] {
        let told = node.vmsnap(&[&json[..], more].concat());
        ends(&told, 1, "No matching domains found for: gone");
        assert_eq!(told.stdout, plain.stdout, "{more:?}");
    }
    let value: serde_json::Value = serde_json::from_str(&plain.stdout).expect("JSON");
    assert_eq!(value["vm1"]["overallStatus"], 0);
    assert_eq!(lines(&plain.stdout).len(), 1);
    let verbose = node.vmsnap(&["--verbose", "--log-format=json"]);
    for line in lines(&verbose.stderr) {
        let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(entry["time"].is_string() && entry["level"] == "debug", "{line}");
    }
    assert!(lines(&verbose.stderr).len() >= 2, "{verbose:#?}");
}

#[test]
fn json_and_yaml_have_frames_and_yaml_wins() {
    let node = Node::new(&[("vm1", RUNNING)]);
    let rule = "-".repeat(80);
    let json = node.vmsnap(&["--json", "--output=OUT"]).stdout;
    assert!(
        json.starts_with(&format!("JSON:\n{rule}\n{{\n  \"vm1\": {{\n")),
        "{json}"
    );
    assert!(json.ends_with(&format!("\n}}\n{rule}\n")), "{json}");
    let out = node.backups();
    let stats = format!("\"path\": \"{}/vm1/vmsnap-backup-monthly-", out.display());
    assert!(json.contains(&stats), "{json}");
    for words in [
        &["--yml", "--json"][..],
        &["--json", "--yaml=true"],
        &["status", "--yaml"],
    ] {
        let yaml = node.vmsnap(words).stdout;
        assert!(
            yaml.starts_with(&format!("YAML:\n{rule}\nvm1:\n  checkpoints: []\n")),
            "{yaml}"
        );
        assert!(yaml.ends_with(&format!("\n{rule}\n")), "{yaml}");
    }
    let bare = node.vmsnap(&["--yaml", "--machine"]).stdout;
    assert!(
        bare.starts_with("vm1:\n  checkpoints: []\n  disks:\n    - disk: \"vda\"\n"),
        "{bare}"
    );
}

/// Fault 15: `--backup=false` backs up.
#[test]
fn a_backup_that_is_not_meant_is_a_status() {
    let node = Node::new(&[("vm1", RUNNING)]);
    for word in ["--backup=false", "--no-backup"] {
        let finished = node.vmsnap(&["--domains=vm1", word, "--output=OUT"]);
        ends(&finished, 0, "");
        assert!(finished.stdout.starts_with("Status for vm1:\n"), "{finished:#?}");
    }
    assert_eq!(fs::read_dir(node.backups()).expect("a folder").count(), 0);
}

#[test]
fn a_folder_for_backups_that_is_not_there_yet_holds_nothing() {
    let node = Node::new(&[("vm1", RUNNING)]);
    for below in ["new", "new/and/deeper"] {
        let output = format!("--output=OUT/{below}");
        let finished = node.vmsnap(&[&output, "--json", "--machine"]);
        ends(&finished, 0, "");
        let status: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        let dir = &status["vm1"]["backupDirStats"];
        let path = dir["path"].as_str().expect("a path");
        let folder = format!("{}/{below}/vm1/vmsnap-backup-monthly-", node.backups().display());
        assert!(path.starts_with(&folder), "{path}");
        for key in ["totalFiles", "checkpoints", "totalSize"] {
            assert_eq!(dir[key], 0, "{key}");
        }
        assert_eq!(status["vm1"]["overallStatus"], 0);
        assert_eq!(
            status["vm1"]["findings"][0]["code"], "no-repository",
            "{status:#}"
        );
        let text = node.vmsnap(&["status", &output]).stdout;
        assert!(
            text.contains("\n    Total files: 0\n    Total size: 0\n    Checkpoints: 0\n"),
            "{text}"
        );
    }
    assert_eq!(
        fs::read_dir(node.backups()).expect("a folder").count(),
        0,
        "nothing is made"
    );
    fs::write(node.path("file"), "x").expect("it is written");
    let file = format!("--output={}", node.path("file").display());
    ends(&node.vmsnap(&[&file]), 2, "cannot be used: not a directory");
}

#[test]
fn failures_are_named_again_at_the_end() {
    let node = Node::new(&[("vm1", RUNNING), ("off", SHUT_OFF)]);
    fs::write(node.image(1), "this is no image").expect("it is written");
    let finished = node.vmsnap(&["--domains=off,gone,vm1"]);
    ends(&finished, 1, "");
    let off = "Status for off:\n  Overall status: INCONSISTENT\n";
    assert!(finished.stdout.starts_with(off), "{}", finished.stdout);
    assert!(finished.stdout.ends_with(VM1), "{}", finished.stdout);
    let (_, summary) = finished
        .stderr
        .split_once("vmsnap: 2 of 3 domains failed:\n")
        .expect("a summary");
    let summary = lines(summary);
    assert_eq!(summary[0], "  No matching domains found for: gone");
    assert!(
        summary[1].starts_with("  off, disk vda: ") && summary[1].contains("is not a qcow2 image"),
        "{summary:?}"
    );
    assert_eq!(summary.len(), 2);
}

#[test]
fn a_host_without_domains_matches_nothing() {
    let node = Node::new(&[]);
    let says = |words: &[&str], stdout: &str| {
        let finished = node.vmsnap(words);
        let message = "vmsnap: No matching domains found for: *\n";
        assert_eq!(
            (finished.code, finished.stdout.as_str(), finished.stderr.as_str()),
            (Some(1), stdout, message),
            "{words:?}"
        );
    };
    for words in [
        &[][..],
        &["--status"],
        &["--domains=*", "--output=OUT"],
        &["status"],
        &["status", "*"],
        &["--backup", "--domains=*", "--output=OUT"],
        &["backup", "*", "--output=OUT"],
        &["backup", "*", "--output=OUT", "--dry-run"],
        &["--scrub", "--domains=*", "--scrubType=both"],
        &["scrub", "*", "--scrub-type=both"],
    ] {
        says(words, "");
    }
    let rule = "-".repeat(80);
    says(&["--json", "--machine"], "{}\n");
    says(&["status", "--json"], &format!("JSON:\n{rule}\n{{}}\n{rule}\n"));
    says(&["--yaml", "--machine"], "{}\n");
    says(&["--yaml"], &format!("YAML:\n{rule}\n{{}}\n{rule}\n"));
    for words in [
        &["--backup", "--domains=*", "--output=OUT", "--json"][..],
        &["backup", "*", "--output=OUT", "--json", "--dry-run"],
        &["scrub", "*", "--scrub-type=both", "--json"],
    ] {
        let finished = node.vmsnap(words);
        ends(&finished, 1, "No matching domains found for: *");
        let answer: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        assert_eq!(answer["domains"], serde_json::json!([]), "{answer:#}");
        assert_eq!(answer["unmatched"], serde_json::json!(["*"]), "{answer:#}");
        assert_eq!(answer["exitCode"], 1, "{answer:#}");
    }
}
