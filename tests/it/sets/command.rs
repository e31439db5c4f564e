//! The commands on sets.

use std::path::Path;
use std::process::{Command, Output};

use super::MadeSet;
use crate::lab::tree;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .args(arguments)
        .env_remove("VMSNAP_REPOSITORY")
        .env("TZ", "UTC")
        .output()
        .expect("the program runs")
}

fn both(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    out + &err
}

fn sets(folder: &Path) -> String {
    format!("sets:{}", folder.display())
}

#[test]
fn commands_read_sets_and_write_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("b");
    let set = MadeSet::write(&root.join("vm1/vmsnap-backup-monthly-2024-11"), None, true);
    let before = tree(&root);
    let location = sets(&root);
    let listed = run(&["list", "--repository", &location]);
    assert_eq!(listed.status.code(), Some(0), "{listed:?}");
    let text = both(&listed);
    assert!(
        text.contains("Restore points of vm1:") && text.contains("2024-11-12T02-00-03"),
        "{text}"
    );
    assert!(
        text.contains("vda.inc.virtnbdbackup.1.data may lack ranges that became zero"),
        "{text}"
    );
    let json = run(&["list", "--repository", &location, "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&json.stdout).expect("a document");
    let points = &document["domains"][0]["restorePoints"];
    assert_eq!(points[1]["findings"][0]["code"], "zeroes-may-be-missing");
    assert_eq!(points[0]["findings"], serde_json::json!([]));
    let verified = run(&["verify", "vm1", "--all", "--deep", "--repository", &location]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    assert!(both(&verified).contains("Adler-32"), "{verified:?}");
    let to = folder.path().join("restored");
    let restored = run(&[
        "restore",
        "vm1",
        "--repository",
        &location,
        "--format",
        "raw",
        "--to",
        &to.display().to_string(),
    ]);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}");
    assert!(
        both(&restored).contains("may lack ranges that became zero"),
        "{restored:?}"
    );
    assert!(std::fs::read(to.join("vda.raw")).expect("the disk") == set.contents[2]);
    for arguments in [
        vec!["pin", "vm1", "latest"],
        vec!["prune", "vm1", "--keep-last", "1"],
    ] {
        let refused = run(&[&arguments[..], &["--repository", &location]].concat());
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        let text = both(&refused);
        assert!(
            text.contains("holds backups of virtnbdbackup, which vmsnap can only read"),
            "{text}"
        );
        assert!(text.contains("vmsnap copy --from"), "{text}");
    }
    let refused = run(&["copy", "--from", &location, "--to", &location]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert_eq!(tree(&root), before);
}

#[test]
fn folder_with_sets_only_names_their_location() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    MadeSet::write(&folder.path().join("vm1"), None, true);
    let path = folder.path().display().to_string();
    let location = sets(&folder.path().canonicalize().expect("it exists"));
    for command in ["list", "verify"] {
        let output = run(&[command, "--repository", &path]);
        assert!(both(&output).contains(&location), "{command}: {output:?}");
    }
    let named = run(&["verify", "vm1", "--repository", &path]);
    assert!(both(&named).contains(&location), "{named:?}");
    let to = folder.path().join("x").display().to_string();
    let output = run(&["restore", "vm1", "--repository", &path, "--to", &to]);
    assert!(both(&output).contains(&location), "{output:?}");
    let missing = run(&["list", "--repository", &sets(&folder.path().join("vm1/none"))]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
}

/// A copy of older months into the folder in which newer ones are.
#[test]
fn sets_can_be_copied_into_the_same_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let period = folder.path().join("vm1/vmsnap-backup-monthly-2024-11");
    let set = MadeSet::write(&period, Some(1 << 20), true);
    let path = folder.path().display().to_string();
    let copied = run(&["copy", "--from", &sets(folder.path()), "--to", &path]);
    assert_eq!(copied.status.code(), Some(0), "{copied:?}");
    assert!(period.join("2024-11-12T02-00-03.full/manifest.json").is_file());
    let listed = run(&["list", "--repository", &path]);
    assert!(
        both(&listed).contains("backups of virtnbdbackup are here too"),
        "{listed:?}"
    );
    let verified = run(&["verify", "vm1", "--all", "--deep", "--repository", &path]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let to = folder.path().join("restored");
    let restored = run(&[
        "restore",
        "vm1",
        "--repository",
        &path,
        "--format",
        "raw",
        "--to",
        &to.display().to_string(),
    ]);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}");
    assert!(std::fs::read(to.join("vda.raw")).expect("the disk") == set.contents[2]);
}

/// Runs the commands of docs/classic.md, with its folders in a temporary one.
#[test]
fn commands_of_the_page_work() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let set = MadeSet::write(
        &folder.path().join("backups/vm1/vmsnap-backup-monthly-2024-11"),
        None,
        true,
    );
    let page = include_str!("../../../docs/classic.md");
    let (_, section) = page
        .split_once("## Backups that virtnbdbackup made")
        .expect("the section");
    let block = section.split("```").nth(1).expect("its commands");
    let commands: Vec<&str> = block
        .lines()
        .filter_map(|line| line.strip_prefix("vmsnap "))
        .collect();
    assert_eq!(commands.len(), 4, "{block}");
    std::fs::create_dir(folder.path().join("srv")).expect("new");
    for command in commands {
        let words = command.split(' ').map(|word| {
            let place = folder.path().display();
            word.replace("/backups", &format!("{place}/backups"))
                .replace("/srv", &format!("{place}/srv"))
        });
        let words: Vec<String> = words.collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = run(&words);
        assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
    }
    let restored = crate::lab::read_qcow2(&folder.path().join("srv/restored/vda.qcow2"));
    assert!(restored == set.contents[2]);
}
