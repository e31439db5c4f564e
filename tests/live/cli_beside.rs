//! Commands that run during a backup of the same domain.

use std::time::Duration;

use serde_json::Value;

use crate::cli_lab::{Change, Machine, Repo, json, text_of};
use crate::daemon::{Daemon, URI};

const MIB: usize = 1 << 20;

/// While a backup is stopped in mid-copy, reading commands do not wait for it.
fn assert_readers_do_not_wait(mut machine: Machine) {
    machine.fill(0, 1);
    let repo = Repo::new();
    let name = machine.name().to_owned();
    let first = repo.back_up(&name, &[]);
    let moment = machine.disks.clone();
    machine.fill(0, 2);
    machine.change(0, 3 * MIB, MIB, Change::Zero);
    let state = machine.domain.state();

    // The process is stopped: a command that waited for it would never end.
    let mut run = repo.begin_backup(&[&name], &["--json"]);
    let begun = run.hold_in_mid_copy();
    let root = repo.root().display().to_string();
    let ask = |words: &[&str]| {
        let finished = repo.run(&[words, &[&name, "--repository", &root, "--json", "--quiet"]].concat());
        assert_eq!(
            (finished.code, finished.stderr.as_str()),
            (Some(0), ""),
            "{words:?}"
        );
        json(&finished)
    };

    let listed = ask(&["list"])["domains"][0].clone();
    assert_eq!(listed["findings"], Value::Array(Vec::new()));
    let points = listed["restorePoints"].as_array().expect("a list");
    assert_eq!(points.len(), 1, "the unfinished restore point is not listed");
    assert_eq!(points[0]["id"], first["restorePoint"]["id"]);

    // QEMU reports no bitmaps until the reader has taken the data in flight, so this reader must
    // run.
    let status = run.slowly(|| ask(&["status", "--machine", "--connect", URI]))[&name].clone();
    let holder = format!("process {}", run.id());
    assert_eq!(status["writer"], holder.as_str(), "{status:#}");
    assert_eq!(
        (&status["overallStatus"], &status["inconsistencies"]),
        (&0.into(), &Value::Array(Vec::new()))
    );
    assert_eq!(status["lastRestorePoint"], first["restorePoint"]["id"]);

    for words in [&["verify", "--all"][..], &["verify", "--all", "--deep"]] {
        let verified = ask(words)["domains"][0].clone();
        assert_eq!(verified["outcome"], "sound", "{verified:#}");
        assert_eq!(verified["findings"], Value::Array(Vec::new()), "{verified:#}");
        assert_eq!(verified["restorePoints"].as_array().map(Vec::len), Some(1));
    }
    machine.assert_restored(&repo.restore(&name, "latest", "raw"), &moment);
    assert!(run.is_running());
    assert_eq!(machine.domain.state(), state);

    run.go_on();
    let finished = run.wait(Duration::from_secs(60));
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    machine.assert_nothing_left(&repo, &begun);
    let listed = repo.list(&name);
    assert_eq!(listed.len(), 2, "{listed:#?}");
    let proof = &listed[0]["verified"];
    assert_eq!(
        (&proof["deep"], &proof["damage"]),
        (&true.into(), &Value::Array(Vec::new()))
    );
    let id = text_of(&listed[1]["id"]);
    machine.assert_restored(&repo.restore(&name, id, "raw"), &machine.disks);
}

#[test]
fn reading_verbs_do_not_wait_for_a_backup_of_the_domain() {
    let daemon = Daemon::acquire();
    assert_readers_do_not_wait(Machine::paused(&daemon, "read-beside", &[256 * MIB]));
}

#[test]
fn reading_verbs_do_not_wait_for_an_offline_backup() {
    let daemon = Daemon::acquire();
    assert_readers_do_not_wait(Machine::define(&daemon, "read-beside-off", &[256 * MIB]));
}
