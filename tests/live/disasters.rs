//! The walk-throughs of docs/recovery.md, read from the page and carried out on domains.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::cli_lab::{Change, Machine, Repo, Running, text_of};
use crate::daemon::{Daemon, TestDomain, URI};
use crate::process::{Finished, command, run, try_run, wait_until};

const PAGE: &str = include_str!("../../docs/recovery.md");

/// The names on the page.
const DOMAIN: &str = "vm1";
const POINT: &str = "2026-11-02T02-00-02Z";

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(120);

/// The commands below a heading of the page, block by block.
fn blocks(heading: &str) -> Vec<Vec<String>> {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).expect("a heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("\n```sh\n").skip(1);
    let blocks = blocks.map(|part| part.split("\n```").next().unwrap_or_default());
    let blocks: Vec<Vec<String>> = blocks
        .map(|block| block.lines().map(str::to_owned).collect())
        .collect();
    assert!(!blocks.is_empty(), "{heading} has no commands");
    blocks
}

/// A domain with two restore points in a folder, and a copy of them in a pack repository.
struct Stage {
    daemon: Daemon,
    repo: Repo,
    machine: Machine,
    /// The older restore point, and the disk of its moment.
    good: (String, Vec<u8>),
}

impl Stage {
    fn new(label: &str) -> Stage {
        let daemon = Daemon::acquire();
        let mut machine = Machine::paused(&daemon, label, &[40 * MIB]);
        machine.fill(0, 1);
        let repo = Repo::new();
        let outcome = repo.back_up(machine.name(), &[]);
        let id = text_of(&outcome["restorePoint"]["id"]).to_owned();
        let good = (id, machine.disks[0].clone());
        machine.change(0, 7 * MIB, MIB, Change::Data(99));
        repo.back_up(machine.name(), &[]);
        fs::write(repo.beside("passphrase"), "correct horse battery\n").expect("written");
        Stage {
            daemon,
            repo,
            machine,
            good,
        }
    }

    /// Copies the repository, as a job does every night.
    fn copy(&self) {
        for line in [
            "vmsnap init pack:/mnt/copy",
            "vmsnap copy --from /backups --to pack:/mnt/copy",
        ] {
            self.done(line);
        }
    }

    fn images(&self) -> PathBuf {
        self.machine.domain.path("images")
    }

    /// The words of a line, with the names and places of this test.
    fn words(&self, line: &str) -> Vec<String> {
        let places = [
            ("/backups", self.repo.root()),
            ("/mnt/copy", self.repo.beside("copy")),
            ("/var/lib/libvirt/images/vm1", self.images()),
        ];
        let word = |word: &str| {
            let word = word.trim_matches('"');
            let (kind, path) = match word.strip_prefix("pack:") {
                Some(path) => ("pack:", path),
                None => ("", word),
            };
            match places.iter().find(|(place, _)| *place == path) {
                Some((_, here)) => format!("{kind}{}", here.display()),
                None if word == DOMAIN => self.machine.name().to_owned(),
                None if word == POINT => self.good.0.clone(),
                None => word.to_owned(),
            }
        };
        // The only quoted text is that of a note.
        let mut words: Vec<String> = Vec::new();
        for (number, part) in line.split('"').enumerate() {
            match number % 2 {
                0 => words.extend(part.split_whitespace().map(word)),
                _ => words.push(part.to_owned()),
            }
        }
        words
    }

    fn command(&self, line: &str) -> Command {
        let words = self.words(line);
        let (program, words) = words.split_first().expect("a command");
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut made = match program.as_str() {
            "vmsnap" => self.repo.command(&words),
            program @ ("virsh" | "mkdir") => command(program, &words),
            other => panic!("{other} in {line}"),
        };
        made.env("VMSNAP_CONNECT", URI)
            .env("LIBVIRT_DEFAULT_URI", URI)
            .env("VMSNAP_CACHE", self.repo.beside("cache"))
            .env("VMSNAP_SCRATCH_DIR", self.machine.domain.dir())
            .env("VMSNAP_PASSPHRASE_FILE", self.repo.beside("passphrase"));
        made
    }

    fn done(&self, line: &str) -> Finished {
        let finished = try_run(self.command(line), DEADLINE);
        assert_eq!(finished.code, Some(0), "{line}: {finished:#?}");
        finished
    }

    fn follow(&self, block: &[String]) -> Vec<Finished> {
        block.iter().map(|line| self.done(line)).collect()
    }

    /// Asserts that this image of the domain, which is shut off first, holds this disk.
    fn assert_holds(&mut self, image: PathBuf, expected: &[u8]) {
        self.machine.domain.destroy();
        let raw = self.machine.domain.path("found.raw");
        let [from, to] = [&image, &raw].map(|path| path.display().to_string());
        run(command(
            "qemu-img",
            &["convert", "-f", "qcow2", "-O", "raw", &from, &to],
        ));
        let found = fs::read(&raw).expect("it was made");
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!((found.len(), differs), (expected.len(), None));
    }
}

#[test]
fn a_corrupt_disk_comes_back() {
    let mut stage = Stage::new("corrupt");
    // What a broken guest writes.
    stage.machine.change(0, 0, 3 * MIB, Change::Data(255));
    for block in blocks("A disk is corrupt") {
        stage.follow(&block);
    }
    // The present state was saved, and the next backup is incremental.
    assert_eq!(stage.repo.list(stage.machine.name()).len(), 3);
    let next = stage.repo.back_up(stage.machine.name(), &[]);
    assert_eq!(text_of(&next["restorePoint"]["level"]), "incremental", "{next:#}");
    let expected = stage.good.1.clone();
    stage.assert_holds(stage.machine.image(0), &expected);
}

#[test]
fn a_lost_host_is_replaced() {
    let mut stage = Stage::new("lost-host");
    let latest = stage.machine.disks[0].clone();
    stage.machine.domain.destroy();
    stage
        .machine
        .domain
        .virsh(&["undefine", "--checkpoints-metadata"]);
    fs::remove_file(stage.machine.image(0)).expect("it is there");
    let _ = fs::remove_dir_all(stage.repo.beside("state"));
    let [block] = &blocks("The host is lost")[..] else {
        panic!("one block");
    };
    let done = stage.follow(block);
    let backup = done.last().expect("a backup");
    assert!(backup.stdout.contains("full backup"), "{backup:#?}");
    stage.assert_holds(stage.images().join("vda.qcow2"), &latest);
}

#[test]
fn a_lost_repository_is_replaced() {
    let stage = Stage::new("lost-repository");
    stage.copy();
    fs::remove_dir_all(stage.repo.root()).expect("it is there");
    let [block] = &blocks("The repository is lost")[..] else {
        panic!("one block");
    };
    let done = stage.follow(block);
    let backup = done.last().expect("a backup");
    assert!(backup.stdout.contains("full backup"), "{backup:#?}");
    assert_eq!(stage.repo.list(stage.machine.name()).len(), 3);
    let restored = stage.repo.restore(stage.machine.name(), &stage.good.0, "raw");
    stage
        .machine
        .assert_restored(&restored, std::slice::from_ref(&stage.good.1));
    let latest = stage.machine.disks.clone();
    let restored = stage.repo.restore(stage.machine.name(), "latest", "raw");
    stage.machine.assert_restored(&restored, &latest);
    stage.machine.domain.destroy();
}

#[test]
fn ransomware_is_undone_from_a_copy() {
    let mut stage = Stage::new("ransomware");
    stage.copy();
    // The host is taken over: the disk, and every backup that it can reach.
    stage.machine.fill(0, 200);
    fs::remove_dir_all(stage.repo.root()).expect("it is there");
    fs::create_dir(stage.repo.root()).expect("an empty folder");
    let [find, look, bring_back] = &blocks("Ransomware")[..] else {
        panic!("three blocks");
    };
    let found = stage.follow(find);
    assert!(found[0].stdout.contains(&stage.good.0), "{:#?}", found[0]);
    let [boot] = &look[..] else {
        panic!("one command");
    };
    // What libvirt keeps about the new domain goes with it.
    let _booted = TestDomain::named(&stage.daemon, &format!("{}-boot", stage.machine.name()));
    look_at(&stage, boot);
    stage.follow(bring_back);
    let expected = stage.good.1.clone();
    stage.assert_holds(stage.machine.image(0), &expected);
}

/// Runs the command that boots a restore point, until its domain runs.
fn look_at(stage: &Stage, line: &str) {
    let mut booted: Running = stage.repo.begin_command(stage.command(line));
    let runs = wait_until(DEADLINE, || {
        booted.answered().contains("runs from restore point") || !booted.is_running()
    });
    assert!(runs && booted.is_running(), "{:#?}", booted.wait(DEADLINE));
    booted.signal(Signal::INT);
    let ended = booted.wait(DEADLINE);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}
