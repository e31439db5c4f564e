//! `vmsnap verify --boot` with a guest that boots from its own disk.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cli_lab::{Repo, json, text_of};
use crate::daemon::{Daemon, TestDomain, URI};
use crate::guest::{BOOT_DEADLINE, Guest};
use crate::process::{Finished, wait_until};

/// What the guest prints before it needs its file system.
const UP: &str = "^init: system is up";

/// A guest that was backed up, and the name under which it is proven.
struct Stage {
    daemon: Daemon,
    guest: Guest,
    repo: Repo,
    proof: TestDomain,
    pictures: PathBuf,
}

impl Stage {
    fn new(label: &str) -> Stage {
        let daemon = Daemon::acquire();
        let guest = Guest::start_from_disk(&daemon, label);
        guest.wait_for_round(3, BOOT_DEADLINE);
        guest.wait_for_agent(BOOT_DEADLINE);
        let repo = Repo::new();
        let pictures = repo.beside("pictures");
        fs::create_dir(&pictures).expect("it is new");
        let proof = TestDomain::named(&daemon, &format!("{}-proof", guest.domain.name()));
        Stage {
            daemon,
            guest,
            repo,
            proof,
            pictures,
        }
    }

    fn back_up(&self) -> Value {
        self.repo.back_up(self.guest.domain.name(), &[])["restorePoint"].clone()
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let root = self.repo.root().display().to_string();
        let scratch = self.guest.domain.dir().display().to_string();
        let words = [
            "verify",
            "--boot",
            self.guest.domain.name(),
            "--repository",
            &root,
            "--scratch-dir",
            &scratch,
            "--connect",
            URI,
        ];
        let words = words.iter().chain(more).map(|word| (*word).to_owned());
        words.collect()
    }

    fn prove(&self, more: &[&str]) -> Finished {
        let words = self.args(more);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let finished = self.repo.run(&words);
        assert!(!self.is_known(), "the domain is left");
        let entries = fs::read_dir(self.guest.domain.dir())
            .expect("it is ours")
            .flatten();
        let mut names = entries.map(|entry| entry.file_name().display().to_string());
        assert!(
            !names.any(|name| name.starts_with("vmsnap-boot-")),
            "files are left"
        );
        finished
    }

    /// Proves with the JSON as answer. Returns the exit code and the JSON about the restore point.
    fn prove_one(&self, more: &[&str]) -> (Option<i32>, Value) {
        let pictures = self.pictures.display().to_string();
        let words = [&["--json", "--screenshots", &pictures], more].concat();
        let finished = self.prove(&words);
        let point = json(&finished)["domains"][0]["restorePoints"][0].clone();
        assert!(point.is_object(), "{finished:#?}");
        let picture = fs::read(text_of(&point["picture"])).expect("a picture");
        assert!(picture.starts_with(b"\x89PNG\r\n"), "{finished:#?}");
        (finished.code, point)
    }

    fn is_known(&self) -> bool {
        let known = self.daemon.try_virsh(&["dominfo", "--domain", self.proof.name()]);
        known.ok()
    }

    /// The newest boot proof in the list.
    fn listed(&self) -> Value {
        let points = self.repo.list(self.guest.domain.name());
        points.last().expect("a restore point")["bootProof"].clone()
    }
}

#[test]
fn a_good_point_is_the_same_guest_until_its_boot_sector_is_lost() {
    let stage = Stage::new("proven");
    let point = stage.back_up();
    assert_eq!(point["guest"]["hostname"], "proven", "{point:#}");

    let began = Instant::now();
    let (code, point) = stage.prove_one(&[]);
    let took = began.elapsed();
    let proof = &point["bootProof"];
    assert_eq!((code, &proof["reached"]), (Some(0), &"same".into()), "{point:#}");
    assert_eq!(stage.listed(), *proof);
    let console = fs::read_to_string(text_of(&point["console"])).expect("a text");
    assert!(console.contains("init: system is up"), "{console}");

    let pattern = ["--console-pattern", UP, "--command"];
    let (code, point) = stage.prove_one(&[&pattern[..], &["/bin/busybox true"]].concat());
    assert_eq!(
        (code, &point["bootProof"]["reached"]),
        (Some(0), &"command".into()),
        "{point:#}"
    );
    let failed = stage.prove(&[&pattern[..], &["/bin/busybox sh -c 'exit 7'"]].concat());
    assert_eq!(failed.code, Some(12), "{failed:#?}");
    let what = "NOT PROVEN: same reached, but not command: the command ended with code 7";
    assert!(failed.stdout.contains(what), "{failed:#?}");
    let text = stage
        .repo
        .run(&["list", "--repository", &stage.repo.root().display().to_string()]);
    assert!(text.stdout.contains("the command ended with code 7"), "{text:#?}");

    // What a killed run leaves goes with the next one.
    let words = stage.args(&[]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let run = stage.repo.begin(&words);
    assert!(wait_until(BOOT_DEADLINE, || stage.is_known()), "it starts");
    let process = Pid::from_raw(i32::try_from(run.id()).expect("a process")).expect("a process");
    kill_process(process, Signal::KILL).expect("it is ours");
    run.wait(BOOT_DEADLINE);
    assert!(
        wait_until(BOOT_DEADLINE, || !stage.is_known()),
        "libvirt ends its domain"
    );
    let healed = stage.prove(&["--level", "read"]);
    assert_eq!(healed.code, Some(0), "{healed:#?}");
    assert!(healed.stderr.contains("removed trial domain"), "{healed:#?}");

    stage.guest.destroy_boot_sector();
    stage.back_up();
    // Long enough for a good one, and shorter than the time for a run.
    let deadline = (took * 3).clamp(Duration::from_secs(20), Duration::from_secs(90));
    let deadline = format!("{}s", deadline.as_secs());
    let (code, point) = stage.prove_one(&["--console-pattern", UP, "--deadline", &deadline]);
    let proof = &point["bootProof"];
    assert_eq!((code, &proof["proven"]), (Some(12), &false.into()), "{point:#}");
    let reached = text_of(&proof["reached"]);
    assert!(["nothing", "read"].contains(&reached), "{point:#}");
    assert_eq!(stage.listed(), *proof);
}

#[test]
fn a_lost_root_file_system_is_told_apart() {
    let stage = Stage::new("half-proven");
    stage.guest.destroy_file_system();
    stage.back_up();
    let (code, point) = stage.prove_one(&["--console-pattern", UP, "--deadline", "60s"]);
    let proof = &point["bootProof"];
    assert_eq!(
        (code, &proof["reached"], &proof["wanted"]),
        (Some(12), &"console".into(), &"same".into()),
        "{point:#}"
    );
    let why = text_of(&proof["shortfall"]);
    assert!(why.contains("agent did not answer within 60 s"), "{why}");
    let last = text_of(&point["lastLine"]);
    assert!(last.contains("FAILED: cannot mount"), "{last}");
}
