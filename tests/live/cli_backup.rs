//! Backups by the program on a libvirtd: restores and output.

use std::path::Path;

use serde_json::Value;

use crate::cli_lab::{Change, Machine, Repo, codes, json, outcome_of, text_of};
use crate::daemon::{Daemon, URI};
use crate::process::{command, run};

const MIB: usize = 1 << 20;

/// The restore points made so far, each with the content of the disks.
struct Story {
    repo: Repo,
    machine: Machine,
    points: Vec<(Value, Vec<Vec<u8>>)>,
}

impl Story {
    fn back_up(&mut self, level: &str, consistency: &str) {
        let state = self.machine.domain.state();
        let outcome = self.repo.back_up(self.machine.name(), &[]);
        assert_eq!(self.machine.domain.state(), state);
        let point = outcome["restorePoint"].clone();
        assert_eq!(
            (text_of(&point["level"]), text_of(&point["consistency"])),
            (level, consistency),
            "{point:#}"
        );
        assert!(
            Path::new(text_of(&outcome["path"]))
                .join("manifest.json")
                .is_file()
        );
        self.points.push((point, self.machine.disks.clone()));
    }

    fn scatter(&mut self, seed: u64) {
        for disk in 0..self.machine.disks.len() {
            self.machine.scatter(disk, seed * 10 + disk as u64);
        }
    }
}

#[test]
fn two_disks_come_back_right_at_every_restore_point() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "story", &[8 * MIB, 4 * MIB]);
    machine.change(0, 0, 3 * MIB, Change::Data(0xaa));
    machine.change(1, MIB, MIB, Change::Data(0xbb));
    let mut story = Story {
        repo: Repo::new(),
        machine,
        points: Vec::new(),
    };
    story.back_up("full", "crash");

    story.machine.change(0, MIB, MIB, Change::Discard);
    story.machine.change(1, MIB, MIB / 2, Change::Zero);
    story.back_up("incremental", "crash");
    story.scatter(1);
    story.back_up("incremental", "crash");

    story.back_up("incremental", "crash");
    let idle = &story.points.last().expect("it was made").0;
    for disk in idle["disks"].as_array().expect("two disks") {
        assert_eq!(
            (&disk["dataBytes"], &disk["zeroBytes"]),
            (&0.into(), &0.into()),
            "{disk:#}"
        );
    }

    story.machine.domain.destroy();
    story.machine.domain.start_paused();
    story.scatter(2);
    story.back_up("incremental", "crash");

    story.machine.domain.destroy();
    story.scatter(3);
    story.back_up("incremental", "offline");
    story.scatter(4);
    story.back_up("incremental", "offline");

    story.machine.domain.start_paused();
    story.scatter(5);
    story.back_up("incremental", "crash");

    let Story {
        repo,
        machine,
        points,
    } = story;
    let name = machine.name();
    assert_listed(&repo, name, &points);
    for (point, disks) in &points {
        let folder = repo.restore(name, text_of(&point["id"]), "raw");
        machine.assert_restored(&folder, disks);
    }
    let (newest, _) = points.last().expect("there are some");
    let by_checkpoint = repo.restore(name, text_of(&newest["checkpoint"]), "qcow2");
    machine.domain.destroy();
    for (disk, file) in ["vda.qcow2", "vdb.qcow2"].iter().enumerate() {
        let words = [Path::new("compare")];
        run(command(
            "qemu-img",
            &[&words[..], &[&by_checkpoint.join(file), &machine.image(disk)]].concat(),
        ));
    }
}

/// `list` shows the restore points as `backup` reported them, oldest first, each the parent of the
/// next.
fn assert_listed(repo: &Repo, name: &str, points: &[(Value, Vec<Vec<u8>>)]) {
    let listed = repo.list(name);
    assert_eq!(listed.len(), points.len());
    let mut parent = Value::Null;
    for (listed, (made, _)) in listed.iter().zip(points) {
        let mut listed = listed.clone();
        let object = listed.as_object_mut().expect("an object");
        assert_eq!(object.remove("whole"), Some(true.into()));
        assert_eq!(object.remove("verified"), Some(Value::Null));
        assert_eq!(object.remove("bootProof"), Some(Value::Null));
        assert_eq!(object.remove("doubt"), Some(Value::Null));
        assert_eq!(object.remove("missedWrites"), Some(Value::Array(vec![])));
        assert_eq!(object.remove("pin"), Some(Value::Null));
        assert_eq!(object.remove("copiedFrom"), Some(Value::Null));
        assert_eq!(object.remove("findings"), Some(Value::Array(vec![])));
        assert_eq!(&listed, made);
        assert_eq!(made["parent"], parent);
        parent = made["id"].clone();
    }
}

#[test]
fn the_json_has_the_promised_keys_and_types() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "json", &[4 * MIB]);
    machine.change(0, 0, MIB, Change::Data(1));
    let repo = Repo::new();
    let finished = repo.backup(&[machine.name()], &["--json"]);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let document = json(&finished);
    assert_camel_case(&document);
    assert_keys(&document, &["schema", "domains", "unmatched", "exitCode"]);
    assert_eq!(
        (&document["schema"], &document["exitCode"], &document["unmatched"]),
        (&1.into(), &0.into(), &Value::Array(vec![]))
    );
    let outcome = outcome_of(&finished, machine.name());
    let keys = [
        "domain",
        "outcome",
        "seconds",
        "restorePoint",
        "path",
        "error",
        "findings",
    ];
    assert_keys(&outcome, &keys);
    assert_eq!(
        (&outcome["outcome"], &outcome["error"]),
        (&"ok".into(), &Value::Null)
    );
    assert!(outcome["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));

    let point = &outcome["restorePoint"];
    let keys = [
        "id",
        "time",
        "period",
        "level",
        "parent",
        "checkpoint",
        "size",
        "consistency",
        "guest",
        "disks",
        "copy",
        "partial",
        "leftOut",
    ];
    assert_keys(point, &keys);
    let time: jiff::Timestamp = text_of(&point["time"]).parse().expect("RFC 3339");
    let id = text_of(&point["id"]);
    let id_as_time = format!("{}:{}:{}", &id[..13], &id[14..16], &id[17..]);
    assert_eq!(
        id_as_time.parse::<jiff::Timestamp>().expect("a time").as_second(),
        time.as_second()
    );
    assert!(text_of(&point["period"]).starts_with("vmsnap-backup-monthly-"));
    let name = text_of(&point["checkpoint"]);
    assert!(name.starts_with("virtnbdbackup.") && name.len() == 39, "{name}");
    let size = point["size"].as_u64().expect("a number");
    assert!(
        (1..MIB as u64).contains(&size),
        "a MiB of one byte is compressed: {size}"
    );

    let disk = &point["disks"][0];
    let keys = [
        "disk",
        "level",
        "reason",
        "parent",
        "virtualSize",
        "dataBytes",
        "zeroBytes",
        "compression",
        "image",
        "decrypted",
    ];
    assert_keys(disk, &keys);
    assert_eq!(
        (&disk["disk"], &disk["image"]),
        (&"vda".into(), &"vda.qcow2".into())
    );
    assert_eq!(disk["virtualSize"].as_u64(), Some(4 * MIB as u64));
    assert_eq!(disk["dataBytes"].as_u64(), Some(MIB as u64));
    assert_eq!(disk["compression"], "zstd");

    let root = repo.root().display().to_string();
    let listed = json(&repo.run(&["list", "--repository", &root, "--json"]));
    assert_camel_case(&listed);
    assert_keys(&listed, &["schema", "domains"]);
    assert_keys(&listed["domains"][0], &["domain", "restorePoints", "findings"]);
    let to = repo.beside("to").display().to_string();
    let restored = repo.run(&[
        "restore",
        machine.name(),
        "--repository",
        &root,
        "--to",
        &to,
        "--json",
        "--quiet",
    ]);
    let restored = json(&restored);
    let keys = [
        "schema",
        "domain",
        "restorePoint",
        "time",
        "pool",
        "disks",
        "defined",
        "findings",
    ];
    assert_keys(&restored, &keys);
    assert_camel_case(&restored);
    assert_eq!(
        (&restored["restorePoint"], &restored["time"]),
        (&point["id"], &point["time"])
    );
}

fn assert_keys(value: &Value, keys: &[&str]) {
    let object = value
        .as_object()
        .unwrap_or_else(|| panic!("no object: {value:#}"));
    let mut found: Vec<&str> = object.keys().map(String::as_str).collect();
    let mut keys = keys.to_vec();
    found.sort_unstable();
    keys.sort_unstable();
    assert_eq!(found, keys);
}

fn assert_camel_case(value: &Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                assert!(key.chars().all(|c| c.is_ascii_alphanumeric()), "{key}");
                assert!(key.starts_with(|c: char| c.is_ascii_lowercase()), "{key}");
                assert_camel_case(value);
            }
        }
        Value::Array(items) => items.iter().for_each(assert_camel_case),
        _ => {}
    }
}

#[test]
fn a_name_that_a_shell_would_run_is_only_a_name() {
    let daemon = Daemon::acquire();
    let label = " it's, \"two\"  blanks;$(touch x)`touch y` * %41 \u{e4}";
    let mut machine = Machine::paused(&daemon, label, &[MIB]);
    machine.change(0, 0, MIB, Change::Data(7));
    let repo = Repo::new();
    let name = machine.name();
    let first = repo.back_up(name, &[]);
    let by_switch = repo.backup(&[], &["--domains", name, "--json"]);
    assert_eq!(by_switch.code, Some(0), "{by_switch:#?}");
    let second = outcome_of(&by_switch, name);
    assert_eq!(
        second["restorePoint"]["parent"], first["restorePoint"]["id"],
        "{second:#}"
    );
    // The home folder is checked after each run.
    assert_eq!(repo.list(name).len(), 2);
    machine.assert_restored(&repo.restore(name, "latest", "raw"), &machine.disks);
}

#[test]
fn stdout_is_the_answer_and_stderr_everything_else() {
    let daemon = Daemon::acquire();
    let machine = Machine::paused(&daemon, "streams", &[MIB]);
    let repo = Repo::new();
    let (name, root) = (machine.name(), repo.root().display().to_string());

    let made = repo.backup(&[name], &[]);
    assert_eq!(made.code, Some(0), "{made:#?}");
    let lines: Vec<&str> = made.stdout.lines().collect();
    let [line] = lines[..] else { panic!("{made:#?}") };
    assert!(
        line.starts_with(&format!("{name}: full backup 20")) && line.contains("1 disk"),
        "{line}"
    );
    assert!(
        made.stderr.contains("vda") && !made.stderr.contains("full backup"),
        "{made:#?}"
    );

    let quiet = repo.backup(&[name], &["--quiet"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""), "{quiet:#?}");
    assert_eq!(quiet.stdout.lines().count(), 1, "{quiet:#?}");

    let as_json = repo.backup(&[name], &["--json"]);
    assert_eq!(outcome_of(&as_json, name)["outcome"], "ok");

    let made = machine.checkpoints();
    assert_eq!(made.len(), 3);
    let status = repo.run(&[
        "status",
        name,
        "--output",
        &root,
        "--connect",
        URI,
        "--json",
        "--machine",
    ]);
    let status = &json(&status)[name];
    let listed = status["checkpoints"].as_array().expect("a list");
    let mut listed: Vec<&str> = listed.iter().map(text_of).collect();
    listed.sort_unstable();
    assert_eq!(listed, made, "points of one second have no known order");
    assert_eq!(
        (&status["overallStatus"], &status["inconsistencies"]),
        (&0.into(), &serde_json::json!([]))
    );
}

#[test]
fn a_shut_off_domain_stays_shut_off_all_the_time() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "off", &[64 * MIB]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let name = machine.name().to_owned();
    let mut run = repo.begin_backup(&[&name], &["--json"]);
    let begun = run.hold_in_mid_copy();
    assert_eq!(machine.domain.state(), "shut off");
    run.go_on();
    while run.is_running() {
        assert_eq!(machine.domain.state(), "shut off");
    }
    let finished = run.wait(std::time::Duration::from_secs(1));
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let outcome = outcome_of(&finished, &name);
    assert_eq!(outcome["restorePoint"]["consistency"], "offline");
    assert_eq!(codes(&outcome), [""; 0]);
    machine.assert_nothing_left(&repo, &begun);

    machine.domain.start_paused();
    machine.change(0, MIB, MIB, Change::Zero);
    let next = repo.back_up(&name, &[]);
    assert_eq!(next["restorePoint"]["level"], "incremental");
    machine.assert_restored(&repo.restore(&name, "latest", "raw"), &machine.disks);
}
