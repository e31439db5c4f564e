//! Features that newer versions of the Node program added, on real domains.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::Duration;

use serde_json::Value;

use crate::cli_lab::{Change, Machine, Repo, text_of};
use crate::cli_user::{User, golden, says};
use crate::daemon::Daemon;
use crate::process::{command, run};

const MIB: usize = 1 << 20;

#[test]
fn the_checkpoint_name_star_is_every_checkpoint() {
    let daemon = Daemon::acquire();
    let machine = Machine::paused(&daemon, "star", &[MIB]);
    let user = User::new();
    let domains = format!("--domains={}", machine.name());
    // A scrub of checkpoints alone leaves the bitmaps, which the next backup uses. So this type
    // comes last.
    for kind in ["both", "*", "checkpoint"] {
        for day in ["2026-11-02", "2026-11-03"] {
            let made = user.on(day, &[&domains, "--backup", "--output=OUT", "-q"]);
            assert_eq!(made.code, Some(0), "{made:#?}");
        }
        machine.domain.virsh(&["checkpoint-create-as", "mine"]);
        let scrub_type = format!("--scrubType={kind}");
        let scrub = [
            domains.as_str(),
            "--scrub",
            scrub_type.as_str(),
            "--checkpointName=*",
        ];
        let scrubbed = user.on("2026-11-05", &scrub);
        assert_eq!(scrubbed.code, Some(0), "{scrubbed:#?}");
        assert_eq!(scrubbed.stderr, "");
        assert!(scrubbed.stdout.contains("removed 2 checkpoints"), "{scrubbed:#?}");
        assert!(!scrubbed.stdout.contains("is ignored"), "{scrubbed:#?}");
        assert_eq!(machine.checkpoints(), ["mine"], "{kind}");
        machine.domain.virsh(&["checkpoint-delete", "mine"]);
    }
    let bitmaps = [&domains, "--scrub", "--scrubType=bitmap", "--checkpointName=*"];
    let nothing = user.on("2026-11-06", &bitmaps);
    assert_eq!(nothing.code, Some(0), "{nothing:#?}");
    says(
        &user.on("2026-11-06", &[&domains, "--scrub", "--scrubType=all"]),
        &[&machine],
        8,
        "",
        "vmsnap: Invalid scrub type: all\n",
    );
}

/// The names of a domain's bitmaps: from its QEMU if it runs, otherwise from its images.
fn bitmaps(machine: &Machine) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut add = |bitmaps: &Value| {
        let names_of = bitmaps.as_array().into_iter().flatten();
        names.extend(names_of.map(|bitmap| text_of(&bitmap["name"]).to_owned()));
    };
    if machine.domain.state() == "shut off" {
        for disk in 0..machine.disks.len() {
            let image = machine.image(disk).display().to_string();
            let info = run(command("qemu-img", &["info", "--output=json", &image]));
            let info: Value = serde_json::from_str(&info).expect("JSON");
            add(&info["format-specific"]["data"]["bitmaps"]);
        }
        return names;
    }
    let query = r#"{"execute": "query-named-block-nodes"}"#;
    let nodes = machine.domain.virsh(&["qemu-monitor-command", query]);
    let nodes: Value = serde_json::from_str(&nodes).expect("JSON");
    for node in nodes["return"].as_array().expect("a list") {
        add(&node["dirty-bitmaps"]);
    }
    names
}

/// The XML of each of the domain's checkpoints, without the sizes, which change with every write.
fn checkpoint_xml(machine: &Machine) -> Vec<String> {
    let checkpoints = machine.checkpoints();
    let dumps = checkpoints.iter().map(|name| {
        machine
            .domain
            .virsh(&["checkpoint-dumpxml", "--no-domain", "--checkpointname", name])
    });
    dumps.collect()
}

fn copies_leave_the_chain_alone(mut machine: Machine) {
    let user = User::new();
    let domains = format!("--domains={}", machine.name());
    let classic = [domains.as_str(), "--backup", "--output=OUT", "-q"];
    machine.change(0, 0, MIB, Change::Data(1));
    for day in ["2026-11-02", "2026-11-03"] {
        let made = user.on(day, &classic);
        assert_eq!(made.code, Some(0), "{made:#?}");
        machine.change(0, MIB, 65536, Change::Data(2));
    }
    let before = (checkpoint_xml(&machine), bitmaps(&machine));
    let parent = text_of(&user.repo.list(machine.name())[1]["id"]).to_owned();
    let copied = machine.disks.clone();
    let state = match machine.domain.state().as_str() {
        "shut off" => "shut off",
        _ => "crash-consistent",
    };
    says(
        &user.on("2026-11-04", &[&classic[..], &["--copy"]].concat()),
        &[&machine],
        0,
        &format!("VM1: full copy ID, 1 disk, 1.11 MB in TIME (RATE), stored in SIZE, {state}\n"),
        "",
    );
    assert_eq!((checkpoint_xml(&machine), bitmaps(&machine)), before);
    let listed = user.repo.list(machine.name());
    let copy = listed.last().expect("three");
    assert_eq!(copy["copy"], true, "{copy:#}");
    let id = text_of(&copy["id"]).to_owned();
    assert_eq!(text_of(&copy["period"]), format!("vmsnap-copy-{id}"));

    machine.change(0, 2 * MIB, 65536, Change::Data(3));
    let next = user.on("2026-11-05", &classic);
    assert!(
        golden(&next.stdout, &[&machine]).starts_with("VM1: incremental backup ID, 1 disk, 131 kB"),
        "{next:#?}"
    );
    let newest = user.repo.list(machine.name()).pop().expect("four");
    assert_eq!(text_of(&newest["parent"]), parent);
    machine.assert_restored(&user.repo.restore(machine.name(), &id, "raw"), &copied);
    machine.assert_restored(
        &user.repo.restore(machine.name(), "latest", "raw"),
        &machine.disks,
    );
    let verify = user.repo.run(&[
        "verify",
        machine.name(),
        "--all",
        "--deep",
        "--repository",
        &user.repo.root().display().to_string(),
    ]);
    assert_eq!(verify.code, Some(0), "{verify:#?}");
    assert!(verify.stdout.contains("4 restore points sound"), "{verify:#?}");
    fs::remove_dir_all(
        user.repo
            .root()
            .join(machine.name())
            .join(format!("vmsnap-copy-{id}")),
    )
    .expect("it is removed");
    let status = user.on("2026-11-05", &[&domains, "--output=OUT"]);
    assert!(status.stdout.contains("  Overall status: OK\n"), "{status:#?}");
    assert!(!status.stdout.contains("missing"), "{status:#?}");
    says(
        &user.on("2026-11-06", &[&classic[..], &["--copy", "--prune"]].concat()),
        &[&machine],
        64,
        "",
        "vmsnap: --copy and --prune cannot be combined: --prune deletes the period before that of the backup, and a copy belongs to no period\n",
    );
}

#[test]
fn a_copy_leaves_checkpoints_bitmaps_and_chain_alone() {
    let daemon = Daemon::acquire();
    copies_leave_the_chain_alone(Machine::paused(&daemon, "copy", &[4 * MIB]));
    copies_leave_the_chain_alone(Machine::define(&daemon, "copy-off", &[4 * MIB]));
}

#[test]
fn another_grouping_is_refused_and_forced() {
    let daemon = Daemon::acquire();
    let old = Machine::define(&daemon, "grouped", &[MIB]);
    let new = Machine::define(&daemon, "not-grouped", &[MIB]);
    let user = User::new();
    let backup = |domains: &str, more: &[&str]| {
        let domains = format!("--domains={domains}");
        let words = [&domains, "--backup", "--output=OUT", "-q"];
        user.on("2026-11-05", &[&words[..], more].concat())
    };
    assert_eq!(backup(old.name(), &[]).code, Some(0));
    let both = format!("{},{}", old.name(), new.name());
    let message = "the domain's backups are grouped by month (newest period: vmsnap-backup-monthly-2026-11), not by quarter";
    let hint = "hint: --group-by month continues those backups; --force makes a backup grouped by quarter, which starts a second chain \
                unless --full is never; --prune deletes only periods of the grouping given in the same command";
    let dry = backup(old.name(), &["--groupBy=quarter", "--dry-run"]);
    says(
        &dry,
        &[&old],
        10,
        "",
        &format!("vmsnap: VM1: {message}\n{hint}\n"),
    );
    says(
        &backup(&both, &["--groupBy=quarter"]),
        &[&old, &new],
        10,
        "VM2: full backup ID, 1 disk, no data, TIME, shut off\n",
        &format!("vmsnap: VM1: {message}\n{hint}\nvmsnap: 1 of 2 domains failed:\n  VM1: {message}\n"),
    );
    assert_eq!(user.periods(&old), ["vmsnap-backup-monthly-2026-11"]);
    says(
        &backup(old.name(), &["--groupBy=quarter", "--force"]),
        &[&old],
        0,
        "VM1: full backup ID, 1 disk, no data, TIME, shut off\n",
        "",
    );
    assert_eq!(
        user.periods(&old),
        ["vmsnap-backup-monthly-2026-11", "vmsnap-backup-quarterly-2026-Q4"]
    );
}

#[test]
fn runs_at_the_same_time_wait_for_each_other() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "waits", &[16 * MIB]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let mut first = repo.begin_backup(&[machine.name()], &["--json"]);
    first.hold_in_mid_copy();
    let second = repo.begin_backup(&[machine.name()], &["--wait", "100"]);
    let third = repo.begin_backup(&[machine.name()], &["--wait", "100"]);
    first.go_on();
    let minute = Duration::from_secs(60);
    for run in [first, second, third] {
        let finished = run.wait(minute);
        assert_eq!(finished.code, Some(0), "{finished:#?}");
    }
    let levels: Vec<Value> = repo
        .list(machine.name())
        .into_iter()
        .map(|point| point["level"].clone())
        .collect();
    assert_eq!(levels, ["full", "incremental", "incremental"]);
}

/// 2.0.3 no longer removes the file at its default socket path.
#[test]
fn the_socket_path_of_the_node_program_is_left_alone() {
    let daemon = Daemon::acquire();
    let machine = Machine::paused(&daemon, "socket", &[MIB]);
    let path = std::env::temp_dir().join(format!("virtnbdbackup.{}", std::process::id()));
    drop(File::create_new(&path).expect("a name of our own"));
    let user = User::new();
    let domains = format!("--domains={}", machine.name());
    let made = user.on("2026-11-05", &[&domains, "--backup", "--output=OUT", "-q"]);
    let is_there = path.is_file();
    fs::remove_file(&path).expect("it is ours");
    assert_eq!(made.code, Some(0), "{made:#?}");
    assert!(is_there);
}

#[test]
fn a_new_period_removes_checkpoints_with_their_bitmaps() {
    let daemon = Daemon::acquire();
    for machine in [
        Machine::paused(&daemon, "retired", &[MIB]),
        Machine::define(&daemon, "retired-off", &[MIB]),
    ] {
        let user = User::new();
        let domains = format!("--domains={}", machine.name());
        for day in ["2026-10-05", "2026-10-06", "2026-11-05"] {
            let made = user.on(day, &[&domains, "--backup", "--output=OUT", "-q"]);
            assert_eq!(made.code, Some(0), "{made:#?}");
        }
        let checkpoints: BTreeSet<String> = machine.checkpoints().into_iter().collect();
        assert_eq!(checkpoints.len(), 1);
        assert_eq!(bitmaps(&machine), checkpoints);
    }
}

#[test]
fn pruning_by_half_years_waits_ninety_days() {
    let daemon = Daemon::acquire();
    let machine = Machine::define(&daemon, "halves", &[MIB]);
    let user = User::new();
    let domains = format!("--domains={}", machine.name());
    let words = [
        domains.as_str(),
        "--backup",
        "--output=OUT",
        "-q",
        "--groupBy=bi-annual",
        "--prune",
    ];
    let (first, second) = (
        "vmsnap-backup-bi-annually-2026-p1",
        "vmsnap-backup-bi-annually-2026-p2",
    );
    for (day, left) in [
        ("2026-06-30", &[first][..]),
        ("2026-07-01", &[first, second]),
        ("2026-09-28", &[first, second]),
        ("2026-09-29", &[second]),
    ] {
        let made = user.on(day, &words);
        assert_eq!(made.code, Some(0), "{made:#?}");
        assert_eq!(user.periods(&machine), left, "{day}");
    }
}
