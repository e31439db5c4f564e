//! Boot proofs: how far the simulated guest of a restore point comes, and what is recorded.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use vmsnap::host::Host;
use vmsnap::host::trial::GuestExit;
use vmsnap::model::guest::{BootLevel, GuestFacts, GuestFileSystem};
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::boot::{Means, Memory, clear};
use vmsnap::ops::boot_proof::{BootedPoint, Options, Outcome, of_lines, prove};
use vmsnap::ops::each::{Fault, Judged};
use vmsnap::ops::verify::Which;
use vmsnap::ops::{Cause, DiskStore, Result};
use vmsnap::repo::BootProof;
use vmsnap::testkit::SimGuest;

use crate::lab::{Lab, tree};

/// The time for guests that never come far enough.
const SOON: Duration = Duration::from_millis(200);

struct Stage {
    lab: Lab,
    stop: Stop,
    now: Timestamp,
}

impl Stage {
    fn new() -> Stage {
        Stage::of(Lab::with_three_points())
    }

    /// A domain whose agent reported these facts at its last backup.
    fn with_facts(facts: GuestFacts) -> Stage {
        let mut lab = Lab::with_three_points();
        lab.host.set_guest("vm1", Some(facts));
        lab.backup("vm1").expect("a restore point");
        Stage::of(lab)
    }

    fn of(lab: Lab) -> Stage {
        for name in ["state", "scratch", "pictures"] {
            fs::create_dir(lab.folder.path().join(name)).expect("new");
        }
        Stage {
            now: lab.now.timestamp(),
            lab,
            stop: Stop::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.folder.path().join(name)
    }

    fn options(&self) -> Options {
        Options {
            which: Which::Latest,
            proven_since: None,
            level: None,
            pattern: None,
            command: Vec::new(),
            deadline: Duration::from_secs(600),
            memory: Memory::Own,
            scratch: self.path("scratch"),
            pictures: None,
        }
    }

    fn prove(&self, options: &Options) -> Result<Outcome> {
        let state = self.path("state");
        let means = Means {
            repo: self.lab.repo.as_ref(),
            store: &DiskStore,
            host: &self.lab.host,
            state: &state,
            monitor: &self.lab.recorder,
            stop: &self.stop,
            glance: Duration::from_millis(1),
        };
        let outcome = prove("vm1", &means, options, &|| self.now);
        assert!(self.lab.host.running_trials().is_empty(), "the guest was ended");
        for name in ["state/boot", "scratch"] {
            let left = match self.path(name).exists() {
                true => tree(&self.path(name)),
                false => Vec::new(),
            };
            assert_eq!(left, [""; 0], "{name}");
        }
        outcome
    }

    /// The only restore point of a proof.
    fn prove_one(&self, options: &Options) -> BootedPoint {
        let mut outcome = self.prove(options).expect("it is started");
        let is_proven = outcome.points.iter().all(|point| point.proof.is_proven());
        assert_eq!(outcome.faults().contains(&Fault::NotProven), !is_proven);
        assert_eq!(outcome.points.len(), 1);
        outcome.points.remove(0)
    }

    /// The boot proof that the repository has of the newest restore point.
    fn kept(&self) -> Option<BootProof> {
        let domain = self.lab.repo.domain("vm1").expect("it is there");
        let history = domain.history().expect("it is readable");
        history.kept.last().expect("a restore point").boot_proof.clone()
    }
}

fn facts(hostname: &str, place: &str) -> GuestFacts {
    GuestFacts {
        hostname: Some(hostname.to_owned()),
        system: None,
        file_systems: vec![GuestFileSystem {
            place: place.to_owned(),
            kind: "ext4".to_owned(),
            disks: vec!["vda".to_owned()],
        }],
    }
}

/// A guest that boots, greets, and has an agent.
fn good_guest() -> SimGuest {
    SimGuest {
        console: b"Linux\r\nvm1 login: ".to_vec(),
        reads: vec!["vda".to_owned()],
        silent: Some(2),
        facts: facts("web", "/"),
        exits: vec![GuestExit::Code(0)],
        screen: b"P6\n1 1\n255\n\x01\x02\x03".to_vec(),
        ends: false,
    }
}

#[test]
fn a_prompt_on_the_console_proves_a_guest_without_agent() {
    let stage = Stage::new();
    stage.lab.host.set_trial_guest(SimGuest {
        silent: None,
        ..good_guest()
    });
    let point = stage.prove_one(&stage.options());
    assert_eq!(
        (point.proof.wanted, point.proof.reached, point.proof.is_proven()),
        (BootLevel::Console, BootLevel::Console, true)
    );
    assert_eq!(point.last_line, "vm1 login:");
    assert_eq!(stage.kept(), Some(point.proof));
}

#[test]
fn every_shortfall_is_named() {
    let stage = Stage::with_facts(facts("web", "/"));
    let silent = SimGuest {
        silent: None,
        ..good_guest()
    };
    let nothing = SimGuest {
        console: Vec::new(),
        reads: Vec::new(),
        silent: None,
        ..SimGuest::default()
    };
    let other = SimGuest {
        facts: facts("other", "/"),
        ..good_guest()
    };
    let unmounted = SimGuest {
        facts: facts("web", "/elsewhere"),
        ..good_guest()
    };
    let failing = SimGuest {
        exits: vec![GuestExit::Code(3)],
        ..good_guest()
    };
    let busy = SimGuest {
        exits: Vec::new(),
        ..good_guest()
    };
    let ends = SimGuest {
        ends: true,
        silent: None,
        console: Vec::new(),
        ..good_guest()
    };
    let plain = Options {
        deadline: SOON,
        ..stage.options()
    };
    let pattern = Options {
        pattern: Some(of_lines("^database is ready$").expect("valid")),
        ..plain.clone()
    };
    let command = Options {
        command: vec!["/bin/true".to_owned(), "-x".to_owned()],
        ..plain.clone()
    };
    let cases = [
        (
            &nothing,
            &plain,
            BootLevel::Nothing,
            "did not read from its disks",
        ),
        (&silent, &plain, BootLevel::Console, "agent did not answer"),
        (
            &good_guest(),
            &pattern,
            BootLevel::Same,
            "did not show '^database is ready$'",
        ),
        (
            &other,
            &plain,
            BootLevel::Agent,
            "the host name is \"other\", not \"web\"",
        ),
        (
            &unmounted,
            &plain,
            BootLevel::Agent,
            "no ext4 file system is mounted at \"/\"",
        ),
        (
            &failing,
            &command,
            BootLevel::Same,
            "the command ended with code 3",
        ),
        (&busy, &command, BootLevel::Same, "the command did not end"),
        (&unmounted, &command, BootLevel::Agent, "no ext4 file system"),
        (&ends, &plain, BootLevel::Read, "before the guest shut down"),
    ];
    for (guest, options, reached, why) in cases {
        stage.lab.host.set_trial_guest(guest.clone());
        let point = stage.prove_one(options);
        let shortfall = point.proof.shortfall.clone().unwrap_or_default();
        assert!(shortfall.contains(why), "{shortfall:?} lacks {why:?}");
        assert_eq!(point.proof.reached, reached, "{why}");
        assert_eq!(stage.kept(), Some(point.proof));
    }
}

#[test]
fn same_facts_and_a_command_prove_a_guest() {
    let stage = Stage::with_facts(facts("web", "/"));
    stage.lab.host.set_trial_guest(good_guest());
    let point = stage.prove_one(&stage.options());
    assert_eq!(
        (point.proof.wanted, point.proof.reached, point.proof.is_proven()),
        (BootLevel::Same, BootLevel::Same, true)
    );
    let command = Options {
        command: vec!["/bin/true".to_owned()],
        ..stage.options()
    };
    let point = stage.prove_one(&command);
    assert_eq!(
        (point.proof.reached, point.proof.is_proven()),
        (BootLevel::Command, true)
    );
}

#[test]
fn an_agent_is_wanted_if_the_domain_has_a_port_for_it() {
    let mut lab = Lab::with_three_points();
    lab.host.change("vm1", |domain| {
        let channel =
            "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices>";
        domain.inactive_xml = domain.inactive_xml.replace("</devices>", channel);
    });
    lab.backup("vm1").expect("a restore point");
    let stage = Stage::of(lab);
    stage.lab.host.set_trial_guest(good_guest());
    let point = stage.prove_one(&stage.options());
    assert_eq!(
        (point.proof.wanted, point.proof.reached, point.proof.is_proven()),
        (BootLevel::Agent, BootLevel::Agent, true)
    );
    // Nothing was recorded at the backup, so nothing can be the same.
    let same = Options {
        level: Some(BootLevel::Same),
        ..stage.options()
    };
    let point = stage.prove_one(&same);
    let shortfall = point.proof.shortfall.expect("it is not proven");
    assert!(shortfall.contains("nothing was recorded"), "{shortfall}");
}

#[test]
fn damaged_data_are_no_proof() {
    let stage = Stage::new();
    let domain = stage.lab.repo.domain("vm1").expect("it is there");
    for kept in &domain.history().expect("readable").kept {
        let image = PathBuf::from(&kept.location).join("vda.qcow2");
        let mut bytes = fs::read(&image).expect("an image");
        // The data come last.
        let end = bytes.len();
        bytes[end / 2..].iter_mut().for_each(|byte| *byte ^= 1);
        fs::write(&image, bytes).expect("it is ours");
    }
    stage.lab.host.set_trial_guest(good_guest());
    let outcome = stage.prove(&stage.options()).expect("it is started");
    assert!(outcome.faults().contains(&Fault::Damaged), "{outcome:?}");
    let point = &outcome.points[0];
    assert!(!point.proof.is_proven(), "{point:?}");
}

#[test]
fn only_proofs_that_show_enough_are_skipped() {
    let mut stage = Stage::with_facts(facts("web", "/"));
    stage.lab.host.set_trial_guest(good_guest());
    let weak = Options {
        level: Some(BootLevel::Console),
        ..stage.options()
    };
    stage.prove_one(&weak);
    let since = stage.now - SignedDuration::from_hours(1);
    let wants = |level| Options {
        level: Some(level),
        proven_since: Some(since),
        ..stage.options()
    };
    let [console, same] = [BootLevel::Console, BootLevel::Same].map(wants);
    let usual = Options {
        proven_since: Some(since),
        ..stage.options()
    };
    assert!(stage.prove_one(&console).is_skipped);
    let strong = stage.prove_one(&usual);
    assert!(!strong.is_skipped, "the console is less than the same facts");
    assert_eq!(strong.proof.reached, BootLevel::Same);
    assert!(stage.prove_one(&same).is_skipped);
    assert!(stage.prove_one(&console).is_skipped);
    // Another text or command than before.
    let asked = Options {
        pattern: Some(of_lines("login").expect("valid")),
        command: vec!["/bin/true".to_owned()],
        proven_since: Some(since),
        ..stage.options()
    };
    assert!(!stage.prove_one(&asked).is_skipped);
    assert!(stage.prove_one(&asked).is_skipped);
    let other_text = Options {
        pattern: Some(of_lines("Linux").expect("valid")),
        ..asked.clone()
    };
    let other_command = Options {
        command: vec!["/bin/true".to_owned(), "-x".to_owned()],
        ..asked
    };
    for other in [other_text, other_command] {
        assert!(!stage.prove_one(&other).is_skipped);
    }
    // Too old, or from a clock that was wrong.
    for now in [
        stage.now + SignedDuration::from_hours(48),
        since - SignedDuration::from_hours(48),
    ] {
        let was = std::mem::replace(&mut stage.now, now);
        let recent = Options {
            proven_since: Some(now - SignedDuration::from_hours(1)),
            ..same.clone()
        };
        assert!(!stage.prove_one(&recent).is_skipped, "{now}");
        stage.now = was;
    }
}

#[test]
fn a_failed_proof_is_never_a_reason_to_skip() {
    let stage = Stage::new();
    stage.lab.host.set_trial_guest(SimGuest::default());
    let options = Options {
        deadline: SOON,
        proven_since: Some(stage.now - SignedDuration::from_hours(1)),
        ..stage.options()
    };
    for _ in 0..2 {
        let point = stage.prove_one(&options);
        assert!(!point.is_skipped && !point.proof.is_proven(), "{point:?}");
    }
    stage.lab.host.set_trial_guest(good_guest());
    assert!(stage.prove_one(&options).proof.is_proven());
    assert!(stage.kept().expect("a proof").is_proven());
}

#[test]
fn pictures_of_every_guest_are_kept() {
    let stage = Stage::new();
    let options = Options {
        deadline: SOON,
        pictures: Some(stage.path("pictures")),
        ..stage.options()
    };
    for console in [&b"vm1 login: "[..], b"panic"] {
        stage.lab.host.set_trial_guest(SimGuest {
            console: console.to_vec(),
            ..good_guest()
        });
        let point = stage.prove_one(&options);
        let picture = fs::read(point.picture.expect("a picture")).expect("it is there");
        assert!(picture.starts_with(b"\x89PNG"), "{picture:?}");
        let text = fs::read(point.console.expect("a text")).expect("it is there");
        assert_eq!(text, console);
    }
    assert_eq!(tree(&stage.path("pictures")).len(), 2);
    stage.lab.host.set_trial_guest(SimGuest {
        screen: Vec::new(),
        ..good_guest()
    });
    let outcome = stage.prove(&options).expect("it is started");
    assert!(outcome.findings.iter().any(|found| found.code == "no-picture"));
    assert!(outcome.faults().is_empty(), "a picture is no part of the proof");
}

#[test]
fn all_points_are_started_and_one_trouble_stops_no_other() {
    let stage = Stage::new();
    stage.lab.host.set_trial_guest(good_guest());
    stage.lab.host.fail_next_trial();
    let all = Options {
        which: Which::All,
        ..stage.options()
    };
    let outcome = stage.prove(&all).expect("two were started");
    assert_eq!(outcome.points.len(), 2);
    assert!(outcome.points.iter().all(|point| point.proof.is_proven()));
    assert!(outcome.error().is_some(), "the first was not");
    assert!(outcome.findings.iter().any(|found| found.code == "not-booted"));
}

#[test]
fn the_error_of_a_single_point_is_reported_once() {
    let stage = Stage::new();
    stage.lab.host.fail_next_trial();
    let error = stage.prove(&stage.options()).expect_err("it is not started");
    assert!(error.to_string().contains("cannot be started"), "{error}");
    let repeated = error.findings.iter().find(|found| found.code == "not-booted");
    assert_eq!(repeated, None);
    assert_eq!(stage.kept(), None, "that says nothing about the restore point");
}

#[test]
fn a_stop_ends_the_guest_and_records_nothing() {
    let stage = Stage::new();
    stage.lab.host.set_trial_guest(SimGuest::default());
    stage.stop.request(StopReason::Interrupted);
    let error = stage.prove(&stage.options()).expect_err("it was stopped");
    assert!(
        matches!(error.cause, Cause::Stopped(StopReason::Interrupted)),
        "{error}"
    );
    assert_eq!(stage.kept(), None);
}

#[test]
fn a_taken_name_makes_room_for_another() {
    let stage = Stage::new();
    stage.lab.host.set_trial_guest(good_guest());
    stage.lab.host.add_domain("vm1-proof", &[("vda", 65536)]);
    assert!(stage.prove_one(&stage.options()).proof.is_proven());
    assert!(stage.lab.host.domain("vm1-proof").is_ok(), "the other one stays");
    assert!(clear(&stage.lab.host, &DiskStore, &stage.path("state")).is_empty());
}
