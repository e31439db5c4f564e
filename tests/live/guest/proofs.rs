//! Tests of the lab's guest and of its check of disks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Agent, BOOT_DEADLINE, Expect, Guest, check_disk};
use crate::daemon::Daemon;
use crate::process::{command, run, wait_until};

/// Enough rounds for files that are rewritten in place, replaced and deleted, and for a trim.
const ROUNDS: u64 = 40;

fn convert(from: &Path, to: &Path, format: &str) {
    let words = ["convert", "-U", "-O", format].map(Path::new);
    run(command("qemu-img", &[&words[..], &[from, to]].concat()));
}

fn debugfs(disk: &Path, request: &str) -> String {
    run(command("debugfs", &[Path::new("-R"), Path::new(request), disk]))
}

/// The offset in bytes of one of the guest's files; the file system has blocks of 4 KiB.
fn offset_of_a_file(raw: &Path) -> u64 {
    let listing = debugfs(raw, "ls -p /");
    // /inode/mode/uid/gid/name/size/
    let line = listing
        .lines()
        .find(|line| line.contains("/slot-") && line.contains(".sha256-"));
    let inode = line
        .and_then(|line| line.split('/').nth(1))
        .expect("there is a file on the disk");
    let blocks = debugfs(raw, &format!("blocks <{inode}>"));
    let block: u64 = blocks
        .split_whitespace()
        .next()
        .and_then(|block| block.parse().ok())
        .expect("a file has blocks");
    block * 4096
}

#[test]
fn files_are_whole_and_reported_ones_kept_after_power_loss() {
    let daemon = Daemon::acquire();
    let guest = Guest::start(&daemon, "power", Agent::Absent);
    guest.wait_for_round(ROUNDS, BOOT_DEADLINE);
    assert!(!guest.agent_is_connected());
    guest.domain.destroy();
    let reported = guest.last_round();

    let report = check_disk(&guest.files.disk, Expect::Crash);
    assert_eq!(report.bad, 0, "{report:?}");
    assert!(report.files > 0, "{report:?}");
    assert!(report.last_round >= reported, "{report:?}, reported {reported}");
    assert!(report.needs_recovery, "{report:?}");

    // The check must be able to fail.
    let disk = guest.files.disk.clone();
    assert!(
        catch_unwind(|| check_disk(&disk, Expect::Frozen)).is_err(),
        "it was not frozen"
    );

    // On a disk that needs no replay, because replaying the journal would repair the damage.
    let raw = guest.domain.path("damaged.raw");
    convert(&guest.files.disk, &raw, "raw");
    run(command(
        "sh",
        &[
            "-c",
            "e2fsck -fy \"$0\" >/dev/null || test $? -eq 1",
            &raw.display().to_string(),
        ],
    ));
    let file = File::options().write(true).open(&raw).expect("the copy is ours");
    file.write_all_at(b"damaged", offset_of_a_file(&raw))
        .expect("the copy is ours");
    let damaged = check_disk(&raw, Expect::Frozen);
    assert_eq!((damaged.files, damaged.bad), (report.files, 1));
}

#[test]
fn disk_copied_while_frozen_needs_no_journal_replay() {
    let daemon = Daemon::acquire();
    let guest = Guest::start(&daemon, "freeze", Agent::Answering);
    guest.wait_for_round(ROUNDS, BOOT_DEADLINE);
    guest.wait_for_agent(BOOT_DEADLINE);

    let frozen = guest.domain.virsh(&["domfsfreeze"]);
    assert!(frozen.contains("Froze 1 filesystem"), "{frozen}");
    let reported = guest.last_round();
    let copy = guest.domain.path("copy.qcow2");
    convert(&guest.files.disk, &copy, "qcow2");
    let thawed = guest.domain.virsh(&["domfsthaw"]);
    assert!(thawed.contains("Thawed 1 filesystem"), "{thawed}");
    guest.wait_for_round(reported + 5, BOOT_DEADLINE);

    let report = check_disk(&copy, Expect::Frozen);
    assert_eq!((report.bad, report.needs_recovery), (0, false), "{report:?}");
    assert!(report.files > 0, "{report:?}");
    assert!(report.last_round >= reported, "{report:?}, reported {reported}");
}

#[test]
fn a_deaf_agent_is_connected_and_never_answers() {
    let daemon = Daemon::acquire();
    let guest = Guest::start(&daemon, "deaf", Agent::Deaf);
    guest.wait_for_round(1, BOOT_DEADLINE);
    assert!(
        wait_until(Duration::from_secs(30), || guest.agent_is_connected()),
        "the port was opened"
    );

    guest.domain.virsh(&["guest-agent-timeout", "--timeout", "1"]);
    let refused = guest.domain.try_virsh(&["domfsfreeze"]);
    assert!(!refused.ok());
    assert!(refused.stderr.contains("agent"), "{refused:?}");

    let reported = guest.last_round();
    guest.wait_for_round(reported + 5, BOOT_DEADLINE);
}

#[test]
fn a_guest_that_starts_again_goes_on_where_it_was() {
    let daemon = Daemon::acquire();
    let guest = Guest::start(&daemon, "again", Agent::Answering);
    guest.wait_for_round(5, BOOT_DEADLINE);
    guest.domain.destroy();
    let before = guest.last_round();
    guest.domain.start();
    guest.wait_for_round(before + 5, BOOT_DEADLINE);
}

#[test]
fn guest_boots_from_its_disk_until_the_boot_sector_is_lost() {
    let daemon = Daemon::acquire();
    let guest = Guest::start_from_disk(&daemon, "own-disk");
    guest.wait_for_round(3, BOOT_DEADLINE);
    guest.wait_for_agent(BOOT_DEADLINE);
    assert!(guest.files.serial.text().starts_with("init: system is up"));

    let host_name = guest.ask_agent("guest-get-host-name", &json!({}));
    assert_eq!(host_name["host-name"], "own-disk");
    let systems = guest.ask_agent("guest-get-fsinfo", &json!({}));
    let [system] = &systems.as_array().expect("a list")[..] else {
        panic!("one file system: {systems:#}");
    };
    assert_eq!(
        (&system["mountpoint"], &system["type"], &system["name"]),
        (&json!("/data"), &json!("ext4"), &json!("vda2"))
    );
    assert_eq!(guest.run("hostname", &[]), "own-disk\n");
    assert!(catch_unwind(AssertUnwindSafe(|| guest.run("false", &[]))).is_err());

    let began = Instant::now();
    let console = guest.power_cycle();
    console.wait_for_text("init: system is up", BOOT_DEADLINE);
    let boot_time = began.elapsed();

    guest.wait_for_round(guest.last_round() + 3, BOOT_DEADLINE);
    guest.wait_for_agent(BOOT_DEADLINE);
    guest.destroy_boot_sector();
    guest.wait_for_round(guest.last_round() + 3, BOOT_DEADLINE);
    let console = guest.power_cycle();
    // Twice the time that the intact disk needed for its first line.
    let printed = wait_until(boot_time * 2, || !console.text().is_empty());
    assert!(!printed, "{}", console.text());
    assert!(!guest.agent_is_connected());
    assert_eq!(guest.domain.state(), "running");
}

#[test]
fn lost_file_system_leaves_a_console_but_no_agent() {
    let daemon = Daemon::acquire();
    let guest = Guest::start_from_disk(&daemon, "lost-data");
    guest.wait_for_round(ROUNDS, BOOT_DEADLINE);
    guest.wait_for_agent(BOOT_DEADLINE);
    guest.destroy_file_system();

    // Nothing that a guest or a backup does brings the superblock back.
    let frozen = guest.domain.virsh(&["domfsfreeze"]);
    assert!(frozen.contains("Froze 1 filesystem"), "{frozen}");
    guest.domain.virsh(&["domfsthaw"]);
    guest.run("sync", &[]);
    let systems = guest.ask_agent("guest-get-fsinfo", &json!({}));
    assert_eq!(systems[0]["mountpoint"], "/data", "{systems:#}");

    let console = guest.power_cycle();
    console.wait_for_text("FAILED: cannot mount /dev/vda2", BOOT_DEADLINE);
    assert!(
        console.text().starts_with("init: system is up"),
        "{}",
        console.text()
    );
    assert!(!console.shows("round "), "{}", console.text());
    assert!(!guest.agent_is_connected() && !guest.agent_answers());
}
