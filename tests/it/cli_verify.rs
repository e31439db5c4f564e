//! `vmsnap verify` on the command line: output and exit codes.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

use crate::lab::{CLUSTER, DEAD, InFolder, Lab, NAMES};

fn lab() -> Lab {
    let mut lab = Lab::new();
    for domain in ["vm1", "a b"] {
        lab.host.add_domain(domain, &[("vda", 2 * CLUSTER)]);
        lab.host.disk(domain, "vda", |disk| disk.write(0, &[1; 100]));
        lab.backup(domain).expect("a full");
        lab.backup(domain).expect("an increment");
    }
    lab
}

fn vmsnap(lab: &Lab, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .arg("verify")
        .args(arguments)
        .arg("--repository")
        .arg(lab.root())
        .output()
        .expect("the program runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn damage(lab: &Lab) -> String {
    let image = lab.history("vm1").kept[0].dir().join("vda.qcow2");
    let mut bytes = fs::read(&image).expect("it can be read");
    bytes[70_000] ^= 1;
    fs::write(&image, bytes).expect("it can be written");
    image.display().to_string()
}

#[test]
fn every_domain_has_its_line_and_sound_means_exit_zero() {
    let lab = lab();
    let output = vmsnap(&lab, &["--all", "--deep"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let lines = stdout(&output);
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("a b: 2 restore points sound, "), "{lines:?}");
    assert!(lines[1].starts_with("vm1: 2 restore points sound, "), "{lines:?}");
    let again = vmsnap(&lab, &["vm1", "--all", "--older-than", "7d"]);
    assert!(
        stdout(&again) == "vm1: 0 restore points sound, 2 skipped (verified recently)\n",
        "nothing was read: {again:?}"
    );
}

#[test]
fn damage_is_named_ends_with_eleven_and_stops_no_other_domain() {
    let lab = lab();
    let image = damage(&lab);
    let output = vmsnap(&lab, &["vm1", "a*"]);
    assert_eq!(output.status.code(), Some(11), "{output:?}");
    let lines = stdout(&output);
    let lines: Vec<&str> = lines.lines().collect();
    assert!(
        lines[0].starts_with(&format!(
            "vm1: DAMAGED: {image} does not match its recorded digest: expected "
        )),
        "{lines:?}"
    );
    assert!(
        lines[1].contains("restore points that depend on the damaged ones"),
        "{lines:?}"
    );
    assert!(
        lines[2].starts_with("vm1: 0 restore points sound, 2 DAMAGED, "),
        "{lines:?}"
    );
    assert!(lines[3].starts_with("a b: 2 restore points sound, "), "{lines:?}");
}

#[test]
fn the_json_names_file_and_outcome_of_every_restore_point() {
    let lab = lab();
    let image = damage(&lab);
    let output = vmsnap(&lab, &["vm1", "--json"]);
    assert_eq!(output.status.code(), Some(11), "{output:?}");
    let json: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(json["exitCode"], 11);
    let domain = &json["domains"][0];
    assert_eq!(
        (&domain["domain"], &domain["outcome"]),
        (&"vm1".into(), &"damaged".into())
    );
    let points = domain["restorePoints"].as_array().expect("a list");
    assert_eq!(points[0]["outcome"], "damaged");
    assert_eq!(points[0]["damage"][0]["path"], image.as_str());
    assert_eq!(points[1]["outcome"], "damaged", "it depends on the damaged one");
}

#[test]
fn the_json_of_a_failed_domain_has_its_error_and_findings() {
    let lab = lab();
    lab.leave_dead_run("vm1", DEAD);
    let at = lab.latest("a b");
    let output = vmsnap(&lab, &["vm1", "a b", "--at", &at, "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let json: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(json["exitCode"], 1);
    let [failed, other] = &json["domains"].as_array().expect("a list")[..] else {
        panic!("{json:#}");
    };
    assert_eq!(
        (&other["domain"], &other["outcome"]),
        (&"a b".into(), &"sound".into())
    );
    assert_eq!(other["error"], Value::Null);
    assert_eq!(
        (&failed["domain"], &failed["outcome"]),
        (&"vm1".into(), &"failed".into())
    );
    let message = failed["error"]["message"].as_str().expect("a text");
    assert!(message.contains(&at), "{message}");
    assert!(failed["error"]["disk"].is_null() && failed["error"].get("hint").is_some());
    assert_eq!(failed["findings"][0]["code"], "unfinished-run", "{failed:#}");
    assert_eq!(failed["findings"].as_array().map(Vec::len), Some(1), "{failed:#}");
}

#[test]
fn senseless_requests_are_errors_and_prove_nothing() {
    let lab = lab();
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--older-than", "soon"], 64, "--older-than takes a time like 7d"),
        (
            &["--older-than", "11y"],
            64,
            "takes at most 10 years; '11y' is longer",
        ),
        (&["--older-than", "300mo"], 64, "m is minutes, mo is months"),
        (&["--compare-live"], 1, "--compare-live needs a domain"),
        (&["--older-than=-7d"], 64, "--older-than takes a time like 7d"),
        (&["vm9"], 1, "No matching domains found for: vm9"),
        (&["vm1", "--at", "nonsense"], 1, "'nonsense' is neither"),
        (&["--all", "--at", "latest"], 64, "cannot be used with"),
    ];
    for (arguments, code, words) in cases {
        let output = vmsnap(&lab, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn damage_decides_the_exit_code() {
    let lab = lab();
    damage(&lab);
    for arguments in [["vm1", "nope"], ["nope", "vm1"]] {
        let output = vmsnap(&lab, &arguments);
        assert_eq!(output.status.code(), Some(11), "{output:?}");
        assert!(
            stderr(&output).contains("No matching domains found for: nope"),
            "{output:?}"
        );
    }
}

#[test]
fn a_domain_without_restore_points_that_nobody_named_is_a_note() {
    let lab = lab();
    fs::create_dir_all(lab.root().join("vm3/vmsnap-backup-monthly-2026-11")).expect("made");
    let words = "there are no restore points of this domain in the repository";
    for arguments in [&[][..], &["*"], &["vm*"]] {
        let output = vmsnap(&lab, arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(words), "{arguments:?}: {output:?}");
    }
    let named = vmsnap(&lab, &["vm1", "vm3"]);
    assert_eq!(named.status.code(), Some(1), "{named:?}");
    let nothing = vmsnap(&lab, &["vm3*"]);
    assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    assert!(
        stderr(&nothing).contains("none of these domains has a restore point"),
        "{nothing:?}"
    );
    let empty = Lab::new();
    fs::create_dir_all(empty.root()).expect("a folder");
    let nothing = vmsnap(&empty, &[]);
    assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    assert!(
        stderr(&nothing).contains(": it has no restore points (check --repository)"),
        "{nothing:?}"
    );
    damage(&lab);
    assert_eq!(vmsnap(&lab, &[]).status.code(), Some(11));
}

#[test]
fn unreadable_folder_is_an_error_and_others_are_processed() {
    let lab = lab();
    let folder = lab.root().join("vm1");
    fs::rename(&folder, lab.folder.path().join("moved")).expect("moved");
    std::os::unix::fs::symlink("vm1", &folder).expect("a link to itself");
    let output = vmsnap(&lab, &["--all"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(
        stderr(&output).contains(&folder.display().to_string()),
        "{output:?}"
    );
    assert!(
        stdout(&output).starts_with("a b: 2 restore points sound"),
        "{output:?}"
    );
    let listed = Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .args(["list", "--repository"])
        .arg(lab.root())
        .output()
        .expect("the program runs");
    assert_eq!(listed.status.code(), Some(3), "{listed:?}");
    assert!(
        stderr(&listed).contains(&folder.display().to_string()),
        "{listed:?}"
    );
    assert!(stdout(&listed).contains("a b"), "{listed:?}");
}

#[test]
fn newer_format_ends_with_exit_code_3() {
    let lab = lab();
    let manifest = lab.history("vm1").kept[1].dir().join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    fs::write(
        &manifest,
        text.replacen("\"format\": ", "\"format\": 9, \"new\": ", 1),
    )
    .expect("written");
    for arguments in [&["vm1"][..], &["vm1", "--all"]] {
        let output = vmsnap(&lab, arguments);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(
            stderr(&output).contains("written by a newer vmsnap"),
            "{output:?}"
        );
        assert!(!stdout(&output).contains("DAMAGED"), "{output:?}");
    }
    // An older point is sound, but the domain has more than that.
    let older = lab.history("vm1").kept[0].manifest.point.id.clone();
    let output = vmsnap(&lab, &["vm1", "--at", &older, "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(document["domains"][0]["outcome"], "incomplete", "{document}");
    assert_eq!(document["exitCode"], 3);
}

#[test]
fn missing_repository_error_names_the_commands_own_switch() {
    for command in ["verify", "list"] {
        let output = Command::new(env!("CARGO_BIN_EXE_vmsnap"))
            .arg(command)
            .env_remove("VMSNAP_REPOSITORY")
            .output()
            .expect("the program runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains("use --repository DIR"), "{output:?}");
    }
}

#[test]
fn naming_checkpoint_of_damaged_point_reports_the_damage() {
    let lab = lab();
    let manifest = lab.history("vm1").kept[1].dir().join("manifest.json");
    fs::write(&manifest, "{").expect("written");
    for (at, code) in [(NAMES[1], 11), (NAMES[0], 0)] {
        let output = vmsnap(&lab, &["vm1", "--at", at]);
        assert_eq!(output.status.code(), Some(code), "{at}: {output:?}");
        let is_told = stderr(&output).contains(manifest.to_str().expect("plain"));
        assert!(is_told || code == 0, "{output:?}");
    }
    let output = vmsnap(&lab, &["vm1", "--at", NAMES[1], "--json"]);
    let json: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(json["domains"][0]["outcome"], "failed");
    let message = json["domains"][0]["error"]["message"].as_str().expect("a text");
    assert!(message.contains(manifest.to_str().expect("plain")), "{message}");
}
