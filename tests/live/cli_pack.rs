//! Backups of a domain on a libvirtd into a pack repository, and copies of them in a folder.

use std::path::PathBuf;

use crate::cli_lab::{Change, Machine, RUN_DEADLINE, Repo, json, outcome_of, text_of};
use crate::daemon::{Daemon, URI};
use crate::process::{Finished, try_run};

const MIB: usize = 1 << 20;

/// A pack repository beside a repository in a folder.
struct Pack {
    folder: Repo,
    location: String,
}

impl Pack {
    fn new() -> Pack {
        let folder = Repo::new();
        std::fs::write(folder.beside("passphrase"), "correct horse battery\n").expect("written");
        let location = format!("pack:{}", folder.beside("pack").display());
        let pack = Pack { folder, location };
        pack.done(&["init", &pack.location]);
        pack
    }

    fn run(&self, words: &[&str]) -> Finished {
        let mut command = self.folder.command(words);
        let own = ["STATE", "CACHE", "PASSPHRASE_FILE"];
        for (variable, name) in own.into_iter().zip(["state", "cache", "passphrase"]) {
            command.env(format!("VMSNAP_{variable}"), self.folder.beside(name));
        }
        let finished = try_run(command, RUN_DEADLINE);
        self.folder.assert_nothing_beside();
        finished
    }

    fn done(&self, words: &[&str]) -> Finished {
        let finished = self.run(words);
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        finished
    }

    /// Backs up the machine. Returns the id of the restore point and the content of the disks.
    fn back_up(&self, machine: &Machine, level: &str) -> (String, Vec<Vec<u8>>) {
        let words = [
            "backup",
            machine.name(),
            "--output",
            &self.location,
            "--connect",
            URI,
        ];
        let finished = self.done(&[&words[..], &["--json"]].concat());
        let point = &outcome_of(&finished, machine.name())["restorePoint"];
        assert_eq!(text_of(&point["level"]), level, "{point:#}");
        (text_of(&point["id"]).to_owned(), machine.disks.clone())
    }

    fn restore(&self, machine: &Machine, at: &str) -> PathBuf {
        let to = self.folder.beside(&format!("out of the pack {at}"));
        let folder = to.display().to_string();
        let words = ["restore", machine.name(), "--repository", &self.location];
        self.done(&[&words[..], &["--to", &folder, "--at", at, "--format", "raw"]].concat());
        to
    }
}

#[test]
fn a_pack_gives_back_every_point_and_so_do_its_copies() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "pack", &[8 * MIB, 4 * MIB]);
    machine.change(0, 0, 3 * MIB, Change::Data(0xaa));
    machine.change(1, MIB, MIB, Change::Data(0xbb));
    let pack = Pack::new();
    let mut points = vec![pack.back_up(&machine, "full")];
    machine.change(0, MIB, MIB, Change::Discard);
    machine.change(1, MIB, MIB / 2, Change::Zero);
    points.push(pack.back_up(&machine, "incremental"));
    for seed in 1..3 {
        machine.scatter(0, seed);
        machine.scatter(1, 10 + seed);
        points.push(pack.back_up(&machine, "incremental"));
    }
    machine.domain.destroy();
    machine.scatter(0, 5);
    points.push(pack.back_up(&machine, "incremental"));

    for (id, disks) in &points {
        machine.assert_restored(&pack.restore(&machine, id), disks);
    }
    let status = [
        "status",
        machine.name(),
        "--output",
        &pack.location,
        "--connect",
        URI,
    ];
    let status = json(&pack.done(&[&status[..], &["--json", "--machine"]].concat()));
    assert_eq!(status[machine.name()]["overallStatus"], 0, "{status:#}");

    let root = pack.folder.root().display().to_string();
    pack.done(&["copy", "--from", &pack.location, "--to", &root]);
    for (id, disks) in &points {
        machine.assert_restored(&pack.folder.restore(machine.name(), id, "raw"), disks);
    }

    let repository = ["--repository", &pack.location];
    pack.done(&[&["prune", machine.name(), "--keep-last", "1"], &repository[..]].concat());
    let listed = json(&pack.done(&[&["list", "--json"], &repository[..]].concat()));
    let listed = listed["domains"][0]["restorePoints"].as_array().expect("a list");
    assert_eq!(listed.len(), 1, "{listed:#?}");
    pack.done(&[&["verify", machine.name(), "--deep"], &repository[..]].concat());
    machine.scatter(0, 6);
    let last = pack.back_up(&machine, "incremental");
    machine.assert_restored(&pack.restore(&machine, &last.0), &last.1);
}
