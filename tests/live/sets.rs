//! Backups that the installed virtnbdbackup makes of a running domain, restored by vmsnap.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cli_lab::{Change, Machine, Repo, json, text_of};
use crate::daemon::Daemon;
use crate::process::{command, run};

const MIB: usize = 1 << 20;
const URI: &str = "qemu:///system";

/// A backup by virtnbdbackup.
fn back_up(machine: &Machine, level: &str, to: &Path, more: &[&str]) {
    let [to, scratch, socket] = [
        to.to_owned(),
        machine.domain.path("scratch"),
        machine.domain.path("sockets/nbd"),
    ]
    .map(|path| path.display().to_string());
    let words = [
        "-U",
        URI,
        "-d",
        machine.name(),
        "-l",
        level,
        "-o",
        &to,
        "--scratchdir",
        &scratch,
        "-f",
        &socket,
        "-n",
    ];
    let mut backup = command("virtnbdbackup", &[&words[..], more].concat());
    backup
        .env("HOME", machine.domain.dir())
        .current_dir(machine.domain.dir());
    run(backup);
}

/// The disks as virtnbdrestore restores them from all files of a set.
///
/// Each disk is restored by a call of its own. One call for all disks starts a `qemu-nbd` per disk
/// at the same socket path, and each one removes this path when it ends: sometimes the path that
/// the next one has just bound.
fn restored_by_virtnbdrestore(machine: &Machine, set: &Path) -> Vec<Vec<u8>> {
    let restored = |target| one_restored_by_virtnbdrestore(machine, set, target);
    ["vda", "vdb"].map(restored).to_vec()
}

fn one_restored_by_virtnbdrestore(machine: &Machine, set: &Path, target: &str) -> Vec<u8> {
    let out = machine.domain.path(&format!("{target} by virtnbdrestore"));
    let [from, to, log, socket] = [
        set.to_owned(),
        out.clone(),
        machine.domain.path("restore.log"),
        machine.domain.path(&format!("restore-{target}.sock")),
    ]
    .map(|path| path.display().to_string());
    let words = [
        "-U", URI, "-a", "restore", "-i", &from, "-o", &to, "-d", target, "-n", "-L", &log, "-f", &socket,
    ];
    let mut restore = command("virtnbdrestore", &words);
    restore
        .env("HOME", machine.domain.dir())
        .current_dir(machine.domain.dir());
    run(restore);
    // virtnbdrestore does not wait for the `qemu-nbd` that writes the image.
    machine.wait_for_readers_to_end();
    let (image, raw) = (out.join(format!("{target}.qcow2")), out.join("raw"));
    let [image, raw_path] = [&image, &raw].map(|path| path.display().to_string());
    run(command("qemu-img", &["convert", "-O", "raw", &image, &raw_path]));
    let disk = fs::read(&raw).expect("the restored disk");
    fs::remove_dir_all(&out).expect("it can be removed");
    disk
}

/// Makes a full and two incremental backups with writes, zeroes and a discard in between, and
/// compares every restore point with the disks of its moment.
fn story(more: &[&str]) {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "sets", &[40 * MIB, 3 * MIB]);
    // More than virtnbdbackup reads at once, so a compressed frame has several parts.
    machine.change(0, 0, 39 * MIB, Change::Data(1));
    machine.change(1, MIB, MIB, Change::Data(2));
    machine.domain.start_paused();
    let repo = Repo::new();
    let set: PathBuf = repo.root().join("set");
    let scratch = machine.domain.path("scratch");
    fs::create_dir(&scratch).expect("the folder is new");
    // QEMU's user creates the socket.
    let sockets = machine.domain.path("sockets");
    fs::create_dir(&sockets).expect("the folder is new");
    fs::set_permissions(&sockets, fs::Permissions::from_mode(0o777)).expect("the folder is ours");
    let mut moments = Vec::new();
    back_up(&machine, "full", &set, more);
    moments.push(machine.disks.clone());
    machine.change(0, 5 * MIB + 4096, 3 * 65536, Change::Data(3));
    machine.change(1, 0, 512, Change::Data(4));
    back_up(&machine, "inc", &set, more);
    moments.push(machine.disks.clone());
    machine.change(0, 2 * MIB, MIB, Change::Zero);
    machine.change(0, 20 * MIB, MIB, Change::Discard);
    machine.change(1, MIB + 65536, 65536, Change::Data(0));
    machine.change(1, 2 * MIB, 65536, Change::Data(5));
    back_up(&machine, "inc", &set, more);
    moments.push(machine.disks.clone());
    machine.domain.destroy();
    let location = format!("sets:{}", repo.root().display());
    let verified = repo.run(&["verify", "--all", "--deep", "--repository", &location]);
    assert_eq!(verified.code, Some(0), "{verified:#?}");
    let listed = json(&repo.run(&["list", "--repository", &location, "--json"]));
    let points = listed["domains"][0]["restorePoints"]
        .as_array()
        .expect("restore points")
        .clone();
    assert_eq!(points.len(), moments.len(), "{listed:#}");
    let theirs = restored_by_virtnbdrestore(&machine, &set);
    for (place, (point, moment)) in points.iter().zip(&moments).enumerate() {
        let to = repo.beside(&format!("restored {place}"));
        let (id, folder) = (text_of(&point["id"]), to.display().to_string());
        let words = [
            "restore",
            machine.name(),
            "--repository",
            &location,
            "--at",
            id,
            "--format",
            "raw",
            "--to",
            &folder,
        ];
        let restored = repo.run(&words);
        assert_eq!(restored.code, Some(0), "{restored:#?}");
        let findings = point["findings"].as_array().expect("findings").iter();
        let may_lack = findings
            .clone()
            .any(|finding| finding["code"] == "zeroes-may-be-missing");
        if place + 1 == moments.len() {
            machine.assert_restored(&to, &theirs);
        }
        // A version that leaves out zeroes says so.
        if !may_lack {
            machine.assert_restored(&to, moment);
        }
    }
}

#[test]
fn sets_give_back_the_disks_as_virtnbdrestore_does() {
    story(&[]);
}

#[test]
fn compressed_sets_give_back_the_disks_too() {
    story(&["-z"]);
}
