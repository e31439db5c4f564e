//! `vmsnap restore --in-place` of the program: its output, and a run that is killed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::cli_lab::{Change, Machine, Repo, STOP_DEADLINE, json, text_of};
use crate::daemon::{Daemon, URI};
use crate::process::{command, run};

const MIB: usize = 1 << 20;

fn args<'a>(machine: &'a Machine, root: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let words = ["restore", machine.name(), "--repository", root, "--in-place"];
    [&words, &["--connect", URI][..], more].concat()
}

/// Where the first cluster of a disk is in its qcow2 image, in bytes.
fn first_cluster(image: &Path) -> u64 {
    let image = image.display().to_string();
    let map = run(command(
        "qemu-img",
        &["map", "--output=json", "-f", "qcow2", &image],
    ));
    let map: Value = serde_json::from_str(&map).expect("JSON");
    map[0]["offset"].as_u64().expect("the first cluster has data")
}

fn byte_at(image: &Path, offset: u64) -> u8 {
    let mut byte = [0];
    let file = File::open(image).expect("it is there");
    file.read_exact_at(&mut byte, offset).expect("it is readable");
    byte[0]
}

#[test]
fn a_killed_restore_in_place_is_finished_by_the_next() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "in-place-killed", &[128 * MIB]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let root = repo.root().display().to_string();
    let first = repo.back_up(machine.name(), &[]);
    let then = machine.disks.clone();
    machine.fill(0, 90);
    let id = text_of(&first["restorePoint"]["id"]);

    let (image, mark) = (
        machine.image(0),
        repo.root().join(machine.name()).join(".restoring.json"),
    );
    let place = first_cluster(&image);
    let run = repo.begin(&args(&machine, &root, &["--at", id]));
    run.hold_once("the first cluster is written", || {
        byte_at(&image, place) == then[0][0]
    });
    assert!(mark.exists(), "marked before the first write");
    run.signal(Signal::KILL);
    run.go_on();
    assert_eq!(run.wait(STOP_DEADLINE).code, None);
    machine.wait_for_readers_to_end();
    let before = machine.disks[0].clone();
    machine.learn(0);
    assert!(
        machine.disks != then && machine.disks[0] != before,
        "the disk is in between"
    );

    // No backup takes the disk for a good state, and the status says why.
    let refused = repo.backup(&[machine.name()], &[]);
    assert_eq!(refused.code, Some(9), "{refused:#?}");
    assert!(refused.stderr.contains("only partly restored"), "{refused:#?}");
    let status = repo.run(&["status", machine.name(), "--output", &root, "--connect", URI]);
    assert!(status.stdout.contains("only partly restored"), "{status:#?}");
    assert_eq!(repo.list(machine.name()).len(), 2, "the state before was saved");

    let ended = repo.run(&args(&machine, &root, &["--at", id, "--json"]));
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let document = json(&ended);
    assert!(
        document["disks"][0]["since"].is_string(),
        "the bitmaps are sound: {document:#}"
    );
    machine.learn(0);
    assert!(machine.disks == then);
    assert!(!mark.exists());

    let next = repo.back_up(machine.name(), &[]);
    assert_eq!(next["restorePoint"]["level"], "incremental", "{next:#}");
    let restored = repo.restore(machine.name(), text_of(&next["restorePoint"]["id"]), "raw");
    machine.assert_restored(&restored, &then);
    machine.assert_no_files_left(&repo, &[]);
}

#[test]
fn a_disk_is_written_onto_the_disk_of_another_domain() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "giver", &[2 * MIB]);
    machine.fill(0, 1);
    let mut other = Machine::define(&daemon, "taker", &[MIB, 3 * MIB]);
    other.fill(0, 50);
    other.fill(1, 60);
    let repo = Repo::new();
    let root = repo.root().display().to_string();
    repo.back_up(machine.name(), &[]);
    repo.back_up(other.name(), &[]);
    other.change(1, MIB, 65536, Change::Data(3));
    let before = other.disks.clone();
    let disk = format!("vda={}:vdb", other.name());
    let onto = ["--disk", disk.as_str()];

    let dry = repo.run(&args(&machine, &root, &[&onto[..], &["--dry-run"]].concat()));
    assert_eq!(dry.code, Some(0), "{dry:#?}");
    assert!(dry.stdout.contains("disk vdb from disk vda"), "{dry:#?}");
    let ended = repo.run(&args(&machine, &root, &[&onto[..], &["--json"]].concat()));
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let document = json(&ended);
    assert_eq!(text_of(&document["domain"]), other.name());
    assert_eq!(text_of(&document["of"]), machine.name());
    let saved = text_of(&document["saved"]).to_owned();
    other.learn(0);
    other.learn(1);
    let expected = [&machine.disks[0][..], &before[1][2 * MIB..]].concat();
    assert!(other.disks[1] == expected && other.disks[0] == before[0]);
    other.assert_restored(&repo.restore(other.name(), &saved, "raw"), &before);
    let next = repo.back_up(other.name(), &[]);
    assert_eq!(next["restorePoint"]["level"], "incremental", "{next:#}");
    let restored = repo.restore(other.name(), text_of(&next["restorePoint"]["id"]), "raw");
    other.assert_restored(&restored, &other.disks);

    for wrong in [
        &["--disk", "vda=taker"][..],
        &["--disk", disk.as_str(), "--disk", "vda"],
    ] {
        let finished = repo.run(&args(&machine, &root, wrong));
        assert_eq!(finished.code, Some(64), "{finished:#?}");
    }
    let mut to = vec!["restore", machine.name(), "--repository", &root, "--to", "/tmp/x"];
    to.extend(onto);
    let finished = repo.run(&to);
    assert_eq!(finished.code, Some(64), "{finished:#?}");
    assert!(finished.stderr.contains("this needs --in-place"), "{finished:#?}");
    other.domain.start_paused();
    let refused = repo.run(&args(&machine, &root, &onto));
    assert_eq!(refused.code, Some(3), "{refused:#?}");
    other.assert_no_files_left(&repo, &[]);
}

#[test]
fn in_place_prints_what_it_does() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "in-place", &[4 * MIB, MIB]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let root = repo.root().display().to_string();
    repo.back_up(machine.name(), &[]);
    let then = machine.disks.clone();
    machine.change(0, MIB, 3 * 65536, Change::Data(7));

    let dry = repo.run(&args(&machine, &root, &["--dry-run"]));
    assert_eq!(dry.code, Some(0), "{dry:#?}");
    for words in [
        "first saves the present state",
        "compares what was written since",
        "4.19 MB",
    ] {
        assert!(dry.stdout.contains(words), "{words}: {dry:#?}");
    }
    let ended = repo.run(&args(&machine, &root, &[]));
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for words in [
        "restored in place to",
        "197 kB of 4.19 MB compared, 197 kB written",
        "the previous state of the disks was saved as",
    ] {
        assert!(ended.stdout.contains(words), "{words}: {ended:#?}");
    }
    for disk in 0..2 {
        machine.learn(disk);
    }
    assert!(machine.disks == then);

    machine.domain.start_paused();
    let refused = repo.run(&args(&machine, &root, &["--json"]));
    assert_eq!(refused.code, Some(3), "{refused:#?}");
    assert!(
        refused
            .stderr
            .contains("only be restored in place while it is shut off"),
        "{refused:#?}"
    );
    assert_eq!(json(&refused)["outcome"], "failed");
    let nothing = repo.run(&args(&machine, &root, &["--abandon"]));
    assert!(
        nothing.stdout.contains("no unfinished restore in place"),
        "{nothing:#?}"
    );
    for wrong in [&["--to", "/tmp/x"][..], &["--define"], &["--format", "raw"]] {
        assert_eq!(
            repo.run(&args(&machine, &root, wrong)).code,
            Some(64),
            "{wrong:?}"
        );
    }
}
