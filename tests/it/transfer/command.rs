//! `vmsnap copy`.

use std::process::{Command, Output};

use super::history;
use crate::lab::Lab;

/// Runs the program.
fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .args(arguments)
        .env_remove("VMSNAP_REPOSITORY")
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_command_copies_and_the_list_shows_the_source() {
    let lab = Lab::with_three_points();
    let [from, to] = ["backups", "copies"].map(|name| lab.folder.path().join(name).display().to_string());
    let arguments = ["copy", "--from", &from, "--to", &to];
    let planned = run(&[&arguments[..], &["--dry-run"]].concat());
    assert_eq!(planned.status.code(), Some(0), "{planned:?}");
    let out = text(&planned.stdout);
    assert!(out.contains("vm1: would copy 3 of 3 restore points"), "{out}");
    assert!(!lab.folder.path().join("copies").exists());
    let done = run(&arguments);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let out = text(&done.stdout);
    assert!(out.contains("vm1: copied 3 of 3 restore points"), "{out}");
    let again = run(&[&arguments[..], &["--json"]].concat());
    let document: serde_json::Value = serde_json::from_slice(&again.stdout).expect("a document");
    let domain = &document["domains"][0];
    assert_eq!(
        (&domain["outcome"], &domain["copied"]),
        (&"ok".into(), &serde_json::json!([]))
    );
    assert_eq!(domain["restorePoints"][2]["reason"], "the target has it");
    let list = text(&run(&["list", "--repository", &to]).stdout);
    assert!(list.contains(&format!("  copied from {from}\n")), "{list}");
    let verified = run(&["verify", "vm1", "--all", "--deep", "--repository", &to]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let at = history(lab.repo.as_ref()).kept[0].manifest.point.id.clone();
    let one = lab.folder.path().join("one").display().to_string();
    let single = run(&["copy", "vm1", "--from", &from, "--to", &one, "--at", &at]);
    assert_eq!(single.status.code(), Some(0), "{single:?}");
}

#[test]
fn the_command_refuses_what_makes_no_sense() {
    let lab = Lab::with_three_points();
    let from = lab.root().display().to_string();
    let to = lab.folder.path().join("copies").display().to_string();
    let empty = lab.folder.path().join("empty").display().to_string();
    std::fs::create_dir(&empty).expect("new");
    let deep = lab.folder.path().join("no/such/folder").display().to_string();
    for (arguments, code, part) in [
        (
            vec!["copy", "--from", &from, "--to", &from],
            64,
            "are the same repository",
        ),
        (
            vec!["copy", "--from", &from, "--to", ""],
            2,
            "the location of --to is empty",
        ),
        (vec!["copy", "--from", "/no/such", "--to", &to], 2, "/no/such"),
        (vec!["copy", "--from", &from, "--to", &deep], 2, "no/such"),
        (
            vec!["copy", "vm7", "--from", &from, "--to", &to],
            1,
            "No matching domains found for: vm7",
        ),
        (
            vec!["copy", "--from", &from, "--to", &to, "--at", "2020"],
            1,
            "2020",
        ),
        (
            vec!["copy", "--from", &from, "--to", &to, "--all", "--newest"],
            64,
            "cannot be used with",
        ),
        (vec!["copy", "--from", &from], 64, "--to"),
        (
            vec!["copy", "--from", &from, "--to", &to, "--keep-last", "0"],
            64,
            "the policy keeps nothing",
        ),
        (
            vec!["copy", "", "--from", &from, "--to", &to],
            1,
            "the domain names are empty",
        ),
        (
            vec!["list", " , ", "--repository", &from],
            1,
            "the domain names are empty",
        ),
        (
            vec!["prune", "", "--repository", &from, "--keep-last", "1"],
            1,
            "the domain names are empty",
        ),
        (vec!["copy", "--from", &empty, "--to", &to], 1, "(check --from)"),
    ] {
        let done = run(&arguments);
        let message = text(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
}
