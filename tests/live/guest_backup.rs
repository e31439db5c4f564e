//! Backups of a real guest that never stops writing: every restore point is good, and the guest
//! continues.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cli_lab::{Repo, STOP_DEADLINE, assert_nothing_left, checkpoints, codes, text_of};
use crate::daemon::Daemon;
use crate::guest::{Agent, BOOT_DEADLINE, CheckReport, Expect, Guest, check_disk};

/// Rounds between two backups: enough for files that are rewritten, replaced and deleted.
const ROUNDS: u64 = 12;

/// Asserts that the guest continues to write, so it is neither frozen nor paused.
fn assert_writes_on(guest: &Guest) {
    guest.wait_for_round(guest.last_round() + 3, BOOT_DEADLINE);
}

/// The time that libvirt waits for the domain's agent, read from libvirt's own file. No call
/// reports it.
fn agent_timeout(guest: &Guest) -> String {
    let path = format!("/run/libvirt/qemu/{}.xml", guest.domain.name());
    let status = fs::read_to_string(path).expect("libvirt notes down what runs");
    let rest = status.split_once("<agentTimeout>").expect("it is noted down").1;
    rest.split('<').next().unwrap_or(rest).to_owned()
}

/// What the manifest records of the guest; null if it records nothing.
fn recorded_guest(outcome: &Value) -> Value {
    let path = Path::new(text_of(&outcome["path"])).join("manifest.json");
    let manifest: Value = serde_json::from_slice(&fs::read(path).expect("it is there")).expect("it is JSON");
    assert_eq!(
        manifest["guest"]["hostname"],
        outcome["restorePoint"]["guest"]["hostname"]
    );
    manifest["guest"].clone()
}

/// A backup while the guest writes. Also returns the last round reported before it began.
fn back_up(repo: &Repo, guest: &Guest, more: &[&str]) -> (Value, u64) {
    let before = guest.last_round();
    let outcome = repo.back_up(guest.domain.name(), more);
    let path = Path::new(text_of(&outcome["path"])).join("manifest.json");
    let manifest: Value =
        serde_json::from_slice(&fs::read(path).expect("it was committed")).expect("it is JSON");
    assert_eq!(manifest["consistency"], outcome["restorePoint"]["consistency"]);
    (outcome, before)
}

/// Restores a point and checks every file on it.
fn check(repo: &Repo, guest: &Guest, made: &(Value, u64), expect: Expect) -> CheckReport {
    let (outcome, before) = made;
    let id = text_of(&outcome["restorePoint"]["id"]);
    let folder = repo.restore(guest.domain.name(), id, "qcow2");
    let report = check_disk(&folder.join("vda.qcow2"), expect);
    assert_eq!(report.bad, 0, "{report:?}");
    assert!(
        report.files > 0 && report.last_round >= *before,
        "{report:?}, reported {before}"
    );
    report
}

#[test]
fn frozen_guest_gives_clean_points_and_goes_on_writing() {
    let daemon = Daemon::acquire();
    let guest = Guest::start(&daemon, "backup-frozen", Agent::Answering);
    guest.wait_for_round(ROUNDS, BOOT_DEADLINE);
    guest.wait_for_agent(BOOT_DEADLINE);
    let repo = Repo::new();
    let mut made = Vec::new();
    for level in ["full", "incremental", "incremental"] {
        let point = back_up(&repo, &guest, &[]);
        let outcome = &point.0;
        assert_eq!(outcome["restorePoint"]["level"], level);
        assert_eq!(
            outcome["restorePoint"]["consistency"], "filesystem",
            "{outcome:#}"
        );
        assert_eq!(codes(outcome), [""; 0]);
        let recorded = recorded_guest(outcome);
        assert!(recorded["hostname"].is_string(), "{recorded:#}");
        let data = json!({"place": "/data", "kind": "ext4", "disks": ["vda"]});
        assert_eq!(recorded["fileSystems"], json!([data]), "{recorded:#}");
        made.push(point);
        guest.wait_for_round(guest.last_round() + ROUNDS, BOOT_DEADLINE);
    }

    let (outcome, _) = back_up(&repo, &guest, &["--freeze-timeout", "0"]);
    assert_eq!(
        (text_of(&outcome["restorePoint"]["consistency"]), codes(&outcome)),
        ("crash", vec![])
    );

    // A run killed between freeze and thaw leaves the file systems frozen.
    guest.domain.virsh(&["domfsfreeze"]);
    let (outcome, _) = back_up(&repo, &guest, &[]);
    assert_eq!(
        outcome["restorePoint"]["consistency"], "crash",
        "it is unknown whether the guest is still frozen"
    );
    assert_eq!(codes(&outcome), ["freeze-failed"]);
    assert_writes_on(&guest);

    let mut newest = 0;
    for point in &made {
        let report = check(&repo, &guest, point, Expect::Frozen);
        assert!(report.last_round > newest, "{report:?} after round {newest}");
        newest = report.last_round;
    }
}

#[test]
fn hanging_agent_costs_only_its_deadline() {
    const DEADLINE: f64 = 4.0;
    let daemon = Daemon::acquire();
    let guest = Guest::start(&daemon, "backup-deaf", Agent::Deaf);
    guest.wait_for_round(ROUNDS, BOOT_DEADLINE);
    let connected = crate::process::wait_until(BOOT_DEADLINE, || guest.agent_is_connected());
    assert!(connected, "the port was opened");
    let repo = Repo::new();
    let usual_timeout = agent_timeout(&guest);

    // Ctrl-C while the run waits for the agent.
    let name = guest.domain.name();
    let mut run = repo.begin_backup(&[name], &["--freeze-timeout", "100"]);
    let begun = run.hold_when("the run's journal entry", |_| true);
    run.go_on();
    std::thread::sleep(Duration::from_secs(1));
    assert!(run.is_running());
    run.signal(Signal::INT);
    let interrupted = run.wait(STOP_DEADLINE);
    assert_eq!(interrupted.code, Some(130), "{interrupted:#?}");
    assert_nothing_left(&guest.domain, &repo, &begun);
    assert_eq!(checkpoints(&guest.domain), [""; 0]);
    assert_eq!(guest.domain.state(), "running");
    assert_eq!(agent_timeout(&guest), usual_timeout);
    assert_writes_on(&guest);

    let mut made = Vec::new();
    for level in ["full", "incremental"] {
        let point = back_up(&repo, &guest, &["--freeze-timeout", "4"]);
        let outcome = &point.0;
        assert_eq!(outcome["restorePoint"]["level"], level);
        assert_eq!(
            (text_of(&outcome["restorePoint"]["consistency"]), codes(outcome)),
            ("crash", vec!["agent-not-answering"]),
            "{outcome:#}"
        );
        assert!(
            outcome["seconds"]
                .as_f64()
                .is_some_and(|seconds| seconds < DEADLINE + 20.0),
            "{outcome:#}"
        );
        assert_eq!(agent_timeout(&guest), usual_timeout);
        assert_eq!(recorded_guest(outcome), Value::Null);
        made.push(point);
        assert_writes_on(&guest);
    }
    let newest = made.last().expect("there are two");
    check(&repo, &guest, newest, Expect::Crash);
}

#[test]
fn chain_continues_through_shutdown_and_restart_of_a_guest() {
    let daemon = Daemon::acquire();
    let guest = Guest::start(&daemon, "backup-off", Agent::Absent);
    guest.wait_for_round(ROUNDS, BOOT_DEADLINE);
    let repo = Repo::new();
    let mut made = vec![back_up(&repo, &guest, &[])];
    assert_writes_on(&guest);
    guest.domain.destroy();
    made.push(back_up(&repo, &guest, &[]));
    assert_eq!(guest.domain.state(), "shut off");
    guest.domain.start();
    guest.wait_for_round(guest.last_round() + ROUNDS, BOOT_DEADLINE);
    made.push(back_up(&repo, &guest, &[]));
    assert_writes_on(&guest);

    let words: Vec<_> = made
        .iter()
        .map(|(outcome, _)| {
            let point = &outcome["restorePoint"];
            assert_eq!(codes(outcome), [""; 0], "no agent was asked to freeze anything");
            (text_of(&point["level"]), text_of(&point["consistency"]))
        })
        .collect();
    assert_eq!(
        words,
        [
            ("full", "crash"),
            ("incremental", "offline"),
            ("incremental", "crash")
        ]
    );
    let mut newest = 0;
    for point in &made {
        let report = check(&repo, &guest, point, Expect::Crash);
        assert!(report.last_round > newest, "{report:?} after round {newest}");
        newest = report.last_round;
    }
}
