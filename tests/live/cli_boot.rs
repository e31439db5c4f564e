//! `vmsnap boot` on a libvirtd: domains that run from a restore point, their end, and what a killed
//! run leaves.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cli_lab::{Change, Machine, Repo, Running, text_of};
use crate::daemon::{Daemon, TestDomain, URI};
use crate::process::{Finished, processes_with, wait_until};

const MIB: usize = 1 << 20;

/// The time for a domain to start or end.
const DEADLINE: Duration = Duration::from_secs(180);

/// A backed up domain, and the new one that runs from its restore point.
struct Stage {
    daemon: Daemon,
    repo: Repo,
    old: Machine,
    /// The new domain, with the disks of the restore point.
    new: Machine,
}

impl Stage {
    fn new(label: &str, megabytes: usize) -> Stage {
        let daemon = Daemon::acquire();
        let mut old = Machine::paused(&daemon, label, &[megabytes * MIB, 3 * MIB]);
        old.fill(0, 1);
        old.change(1, MIB, MIB, Change::Data(2));
        let repo = Repo::new();
        repo.back_up(old.name(), &[]);
        old.change(0, 5 * MIB, 65536, Change::Data(3));
        repo.back_up(old.name(), &[]);
        let new = Machine {
            domain: TestDomain::new(&daemon, "booted"),
            disks: old.disks.clone(),
        };
        // What comes later is not in the restore point.
        old.change(0, 0, MIB, Change::Data(99));
        Stage {
            daemon,
            repo,
            old,
            new,
        }
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let root = self.repo.root().display().to_string();
        let scratch = self.old.domain.dir().display().to_string();
        let words = [
            "boot",
            self.old.name(),
            "--repository",
            &root,
            "--name",
            self.new.name(),
            "--scratch-dir",
            &scratch,
            "--connect",
            URI,
        ];
        let words = words.iter().chain(more).map(|word| (*word).to_owned());
        words.collect()
    }

    /// Starts a run and waits until its domain runs.
    fn begin(&self, more: &[&str]) -> Running {
        let words = self.args(more);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut run = self.repo.begin(&words);
        let ready = wait_until(DEADLINE, || {
            run.answered().contains("runs from restore point") || !run.is_running()
        });
        assert!(ready && run.is_running(), "{:#?}", run.wait(DEADLINE));
        run
    }

    fn run(&self, more: &[&str]) -> Finished {
        let words = self.args(more);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.repo.run(&words)
    }

    /// Asserts that a range of a disk of the new domain has this content.
    fn assert_reads(&self, disk: usize, offset: usize, length: usize) {
        let byte = self.new.disks[disk][offset];
        let command = format!(
            "qemu-io -d /machine/peripheral/virtio-disk{disk}/virtio-backend \"read -q -P {byte} {offset} {length}\""
        );
        let words = ["qemu-monitor-command", "--hmp", "--cmd", &command];
        assert_eq!(self.new.domain.virsh(&words).trim(), "", "{command}");
    }

    fn is_known(&self) -> bool {
        self.daemon
            .try_virsh(&["dominfo", "--domain", self.new.name()])
            .ok()
    }

    /// Asserts that the images of the new domain, which is shut off, hold its disks.
    fn assert_disks_kept(&mut self) {
        for disk in 0..2 {
            let expected = self.new.disks[disk].clone();
            self.new.learn(disk);
            let found = self.new.disks[disk].iter().zip(&expected);
            let differs = found.into_iter().position(|(a, b)| a != b);
            assert_eq!(differs, None, "disk {disk}");
        }
    }

    /// The folders and records of new domains.
    fn left(&self) -> Vec<PathBuf> {
        let names = |folder: PathBuf| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.path())
        };
        let scratch = names(self.old.domain.dir().to_owned());
        let scratch = scratch.filter(|path| path.display().to_string().contains("/vmsnap-boot-"));
        let records = names(self.repo.beside("state").join("boot"));
        let records = records.filter(|path| path.extension().is_none_or(|end| end != "log"));
        scratch.chain(records).collect()
    }

    fn assert_nothing_left(&self) {
        assert!(wait_until(DEADLINE, || !self.is_known()), "the domain is left");
        assert_eq!(self.left(), [] as [PathBuf; 0]);
        let images = fs::read_dir(self.new.domain.dir()).expect("it is ours").count();
        assert_eq!(images, 0, "files are left");
    }
}

#[test]
fn a_domain_runs_from_a_restore_point_and_goes() {
    let mut stage = Stage::new("boot", 40);
    let run = stage.begin(&[]);
    assert_eq!(stage.new.domain.state(), "running");
    stage.assert_reads(0, 0, MIB);
    stage.assert_reads(0, 5 * MIB, 65536);
    stage.assert_reads(0, 32 * MIB, 8 * MIB);
    stage.assert_reads(1, MIB, MIB);
    stage.new.change(0, 3 * MIB + 512, 4096, Change::Data(77));
    stage.assert_reads(0, 3 * MIB + 512, 4096);
    let xml = stage.new.domain.virsh(&["dumpxml"]);
    let uuid = stage.old.domain.virsh(&["domuuid"]);
    assert!(!xml.contains(uuid.trim()), "{xml}");
    run.signal(Signal::TERM);
    let ended = run.wait(DEADLINE);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stdout.contains("was ended and removed"), "{ended:#?}");
    stage.assert_nothing_left();
    // The restore point is as it was.
    let latest = stage.repo.list(stage.old.name()).pop().expect("a restore point");
    let restored = stage
        .repo
        .restore(stage.old.name(), text_of(&latest["id"]), "raw");
    let mut disks = stage.new.disks.clone();
    let before = disks[0][3 * MIB];
    disks[0][3 * MIB + 512..3 * MIB + 4608].fill(before);
    stage.new.assert_restored(&restored, &disks);
}

#[test]
fn a_kept_domain_has_disks_of_its_own() {
    let mut stage = Stage::new("boot-kept", 256);
    let folder = stage.new.domain.dir().display().to_string();
    let mut run = stage.begin(&["--keep", &folder]);
    // While its disks are being copied.
    stage.new.change(0, 200 * MIB + 512, 4096, Change::Data(77));
    stage.new.change(1, 0, 65536, Change::Data(78));
    assert!(wait_until(DEADLINE, || !run.is_running()), "it ends by itself");
    let ended = run.wait(DEADLINE);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert_eq!(stage.new.domain.state(), "running");
    assert_eq!(stage.left(), [] as [PathBuf; 0]);
    stage.new.change(0, 100 * MIB, 65536, Change::Data(79));
    stage.assert_reads(0, 250 * MIB, MIB);
    stage.new.domain.destroy();
    assert_eq!(stage.new.domain.state(), "shut off", "it is defined");
    stage.assert_disks_kept();
    let xml = stage.new.domain.virsh(&["dumpxml"]);
    assert!(!xml.contains("nbd") && xml.contains(&folder), "{xml}");
    // It starts without the repository, and can be backed up.
    stage.new.domain.start_paused();
    stage.repo.back_up(stage.new.name(), &[]);
}

/// As a power cut does, a killed QEMU loses what it has not written out.
#[test]
fn a_crash_after_disks_are_kept_loses_nothing() {
    let mut stage = Stage::new("boot-kept-crash", 256);
    let folder = stage.new.domain.dir().display().to_string();
    let mut run = stage.begin(&["--keep", &folder]);
    assert!(wait_until(DEADLINE, || !run.is_running()), "it ends by itself");
    let qemu = processes_with(&format!("guest={},", stage.new.name()));
    let [(pid, _)] = qemu[..] else {
        panic!("it has one QEMU: {qemu:?}");
    };
    let pid = Pid::from_raw(pid as i32).expect("a process id is not zero");
    kill_process(pid, Signal::KILL).expect("it is ours");
    let ended = run.wait(DEADLINE);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    stage.new.domain.settle();
    assert_eq!(stage.new.domain.state(), "shut off");
    stage.assert_disks_kept();
}

#[test]
fn a_killed_run_is_cleared_by_the_next() {
    let stage = Stage::new("boot-killed", 40);
    let run = stage.begin(&[]);
    run.signal(Signal::KILL);
    assert_eq!(run.wait(DEADLINE).code, None);
    // libvirt ends the domain with its client.
    assert!(wait_until(DEADLINE, || !stage.is_known()));
    assert_eq!(stage.left().len(), 3, "a folder, a record and a list of files");
    let run = stage.begin(&[]);
    assert_eq!(stage.left().len(), 3, "those of the new run");
    run.signal(Signal::INT);
    let ended = run.wait(DEADLINE);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(
        ended.stderr.contains("left by a run that was killed"),
        "{ended:#?}"
    );
    stage.assert_nothing_left();
}

#[test]
fn a_run_killed_while_copying_leaves_no_half_disk() {
    let stage = Stage::new("boot-keep-killed", 512);
    let folder = stage.new.domain.dir().display().to_string();
    let words = stage.args(&["--keep", &folder]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = stage.repo.begin(&words);
    // Slowly: the disks are far from being copied when the domain runs.
    run.hold_once("the domain runs", || {
        run.answered().contains("runs from restore point")
    });
    run.signal(Signal::KILL);
    assert_eq!(run.wait(DEADLINE).code, None);
    assert!(stage.is_known(), "nobody has ended it");
    // The next run ends the domain of that name first.
    let run = stage.begin(&[]);
    run.signal(Signal::TERM);
    let ended = run.wait(DEADLINE);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(
        ended.stderr.contains("left by a run that was killed"),
        "{ended:#?}"
    );
    stage.assert_nothing_left();
}

#[test]
fn a_domain_in_the_background_ends_its_server() {
    let stage = Stage::new("boot-detached", 40);
    let begun = stage.run(&["--detach"]);
    assert_eq!(begun.code, Some(0), "{begun:#?}");
    assert!(begun.stdout.contains("runs from restore point"), "{begun:#?}");
    let server = || {
        processes_with(stage.new.name())
            .into_iter()
            .filter(|(_, line)| line.contains("--detached"))
    };
    assert_eq!(server().count(), 1);
    stage.assert_reads(0, 32 * MIB, 8 * MIB);
    stage.new.domain.destroy();
    assert!(wait_until(DEADLINE, || server().next().is_none()), "it ends");
    stage.assert_nothing_left();
    // A failure has its message and its code.
    let refused = stage.run(&["--detach", "--at", "2020-01-01T00:00:00Z"]);
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(
        refused.stderr.contains("there is no restore point at or before"),
        "{refused:#?}"
    );
}

#[test]
fn a_taken_name_and_a_missing_network_are_refused() {
    let stage = Stage::new("boot-refused", 40);
    let planned = stage.run(&["--dry-run"]);
    assert_eq!(planned.code, Some(0), "{planned:#?}");
    assert!(planned.stdout.contains("would start domain"), "{planned:#?}");
    stage.assert_nothing_left();
    let root = stage.repo.root().display().to_string();
    let (old, scratch) = (stage.old.name(), stage.old.domain.dir().display().to_string());
    let words = [
        "boot",
        old,
        "--repository",
        &root,
        "--name",
        old,
        "--scratch-dir",
        &scratch,
        "--connect",
        URI,
    ];
    let refused = stage.repo.run(&words);
    assert_eq!(refused.code, Some(64), "{refused:#?}");
    assert!(refused.stderr.contains("already defined"), "{refused:#?}");
    stage.assert_nothing_left();
}
