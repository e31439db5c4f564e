//! `boot`: a new domain over served disks, its end, and what a killed run leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmsnap::host::Host;
use vmsnap::host::trial::TrialLife;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::boot::{BootPlan, Ending, Means, Options, Outcome, boot, clear, plan};
use vmsnap::ops::{Cause, DiskStore, Result};

use crate::lab::{CLUSTER, InFolder, Lab, tree};
use crate::repositories::serve::client;

const NAME: &str = "vm1-boot";

/// A lab with folders for the state and for temporary files.
struct Stage {
    lab: Lab,
    stop: Stop,
}

impl Stage {
    fn new() -> Stage {
        let lab = Lab::with_three_points();
        for name in ["state", "scratch", "images"] {
            fs::create_dir(lab.folder.path().join(name)).expect("new");
        }
        Stage {
            lab,
            stop: Stop::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.folder.path().join(name)
    }

    fn options(&self, keep: Option<&str>) -> Options {
        Options {
            at: "latest".to_owned(),
            keep: keep.map(|name| self.path(name)),
            scratch: self.path("scratch"),
            ..Options::default()
        }
    }

    fn plan(&self, options: &Options) -> Result<BootPlan> {
        plan("vm1", self.lab.repo.as_ref(), &self.lab.host, options)
    }

    fn boot(&self, options: &Options, ready: impl FnOnce(&BootPlan)) -> Result<Outcome> {
        self.carry_out(self.plan(options)?, ready)
    }

    fn carry_out(&self, plan: BootPlan, ready: impl FnOnce(&BootPlan)) -> Result<Outcome> {
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
        boot("vm1", plan, &means, |booted| ready(booted.plan))
    }

    fn clear(&self) -> Vec<String> {
        let cleared = clear(&self.lab.host, &DiskStore, &self.path("state"));
        cleared.into_iter().map(|found| found.code.to_string()).collect()
    }

    fn assert_nothing_left(&self) {
        assert!(
            self.lab.host.running_trials().is_empty(),
            "{:?}",
            self.lab.host.running_trials()
        );
        for name in ["state/boot", "scratch", "images"] {
            assert_eq!(files(&self.path(name)), [""; 0], "{name}");
        }
    }
}

fn files(folder: &Path) -> Vec<String> {
    match folder.exists() {
        true => tree(folder),
        false => Vec::new(),
    }
}

#[test]
fn a_domain_runs_over_its_served_disks_and_goes() {
    let stage = Stage::new();
    let outcome = stage.boot(&stage.options(None), |plan| {
        let trials = stage.lab.host.running_trials();
        let trial = &trials[&plan.uuid];
        assert_eq!((trial.name.as_str(), trial.life), (NAME, TrialLife::OfProcess));
        let old = stage.lab.host.domain("vm1").expect("the old one is untouched");
        assert_ne!(old.uuid, plan.uuid);
        let socket = plan.folder.join("nbd.sock");
        assert!(trial.xml.contains(&socket.display().to_string()), "{}", trial.xml);
        let mode = fs::metadata(&plan.folder)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o711);
        let mut served = vec![9; 4 * CLUSTER];
        client(&socket).read(0, &mut served).expect("it is served");
        assert!(served == stage.lab.disk("vm1", "vda"));
        let overlay = fs::read(&plan.disks[0].path).expect("an image");
        let name = format!("nbd+unix:///vda?socket={}", socket.display());
        assert!(overlay.windows(name.len()).any(|bytes| bytes == name.as_bytes()));
        stage.stop.request(StopReason::Interrupted);
    });
    let outcome = outcome.expect("it runs");
    assert_eq!(outcome.ending, Ending::Stopped);
    assert_eq!(outcome.counts[0].bytes, (4 * CLUSTER) as u64);
    stage.assert_nothing_left();
}

#[test]
fn a_guest_that_ends_ends_the_run() {
    let stage = Stage::new();
    let outcome = stage.boot(&stage.options(None), |_| stage.lab.host.shut_trials_down());
    assert_eq!(outcome.expect("it ran").ending, Ending::Ended);
    stage.assert_nothing_left();
}

#[test]
fn disks_that_are_kept_stay_with_their_domain() {
    for folder in ["images", "new"] {
        let stage = Stage::new();
        let outcome = stage.boot(&stage.options(Some(folder)), |plan| {
            let trials = stage.lab.host.running_trials();
            assert_eq!(trials[&plan.uuid].life, TrialLife::OfItself);
        });
        let outcome = outcome.expect("it is kept");
        assert_eq!(outcome.ending, Ending::Kept);
        let kept = stage.lab.host.domain(NAME).expect("it is defined");
        assert_eq!(kept.uuid, outcome.plan.uuid);
        let image = stage.path(folder).join("vda.qcow2");
        assert_eq!(kept.disk("vda").expect("its disk").source.path(), Some(&image));
        assert!(image.exists());
        assert!(!kept.inactive_xml.contains("nbd.sock"), "{}", kept.inactive_xml);
        assert_eq!(files(&stage.path("state/boot")), [""; 0]);
        assert_eq!(files(&stage.path("scratch")), [""; 0]);
        assert_eq!(stage.lab.host.running_trials().len(), 1, "it goes on");
    }
}

#[test]
fn nothing_is_kept_of_a_domain_that_ends_too_early() {
    let stage = Stage::new();
    let outcome = stage.boot(&stage.options(Some("new")), |_| stage.lab.host.shut_trials_down());
    assert_eq!(outcome.expect("it ran").ending, Ending::Ended);
    stage.assert_nothing_left();
    assert!(!stage.path("new").exists());
}

#[test]
fn a_pull_that_fails_leaves_the_guest_running() {
    let stage = Stage::new();
    let outcome = stage.boot(&stage.options(Some("images")), |_| stage.lab.host.stick_trials(5));
    let outcome = outcome.expect("it ran until its guest ended");
    assert_eq!(outcome.ending, Ending::Ended);
    let codes = outcome.findings.iter().map(|found| found.code.to_string());
    assert_eq!(codes.filter(|code| code == "disk-not-pulled").count(), 4);
    stage.assert_nothing_left();
    // One that succeeds in the end is kept.
    let stage = Stage::new();
    let outcome = stage.boot(&stage.options(Some("images")), |_| {
        stage.lab.host.fail_next_pull()
    });
    assert_eq!(outcome.expect("it is kept").ending, Ending::Kept);
}

#[test]
fn files_of_others_are_never_removed() {
    let stage = Stage::new();
    let options = stage.options(Some("images"));
    let planned = stage.plan(&options).expect("a plan");
    // Another program is faster.
    let foreign = stage.path("images/vda.qcow2");
    fs::write(&foreign, "precious").expect("written");
    let refused = stage.carry_out(planned, |_| panic!("it does not run"));
    refused.expect_err("the file exists");
    assert_eq!(fs::read(&foreign).expect("it is there"), b"precious");
    fs::remove_file(&foreign).expect("it is ours");
    stage.assert_nothing_left();

    // A run that was killed; then its file was replaced by another one of the same name.
    let planned = stage.plan(&options).expect("a plan");
    let names = [
        format!("{}.json", planned.uuid),
        format!("{}.files", planned.uuid),
    ];
    let (records, copies) = (stage.path("state/boot"), stage.path("copies"));
    let copy = |from: &Path, to: &Path| {
        for name in &names {
            fs::copy(from.join(name), to.join(name)).expect("copied");
        }
    };
    let killed = stage.carry_out(planned, |_| {
        fs::create_dir(&copies).expect("new");
        copy(&records, &copies);
        stage.stop.request(StopReason::Interrupted);
    });
    killed.expect("it is stopped");
    copy(&copies, &records);
    fs::write(&foreign, "precious").expect("written");
    assert_eq!(stage.clear(), ["healed-trial"]);
    assert_eq!(fs::read(&foreign).expect("it is there"), b"precious");
}

#[test]
fn a_domain_that_cannot_start_leaves_nothing() {
    let stage = Stage::new();
    stage.lab.host.fail_next_trial();
    let refused = stage.boot(&stage.options(None), |_| panic!("it does not run"));
    refused.expect_err("it cannot start");
    stage.assert_nothing_left();
    stage.stop.request(StopReason::Terminated);
    let stopped = stage.boot(&stage.options(None), |_| panic!("it does not run"));
    assert!(stopped.expect_err("it is stopped").is_stopped());
    stage.assert_nothing_left();
}

#[test]
fn taken_names_and_files_are_refused_before_anything_is_made() {
    let stage = Stage::new();
    let taken = Options {
        name: Some("vm1".to_owned()),
        ..stage.options(None)
    };
    let refused = stage.plan(&taken).expect_err("the name is taken");
    assert!(refused.to_string().contains("--name"), "{refused}");
    fs::write(stage.path("images/vda.qcow2"), "x").expect("written");
    let refused = stage
        .plan(&stage.options(Some("images")))
        .expect_err("the file exists");
    assert!(matches!(refused.cause, Cause::Exists(_)), "{refused}");
    let refused = stage
        .plan(&stage.options(Some("no/such")))
        .expect_err("the folder is missing");
    assert!(matches!(refused.cause, Cause::Io { .. }), "{refused}");
    let nowhere = Options {
        at: "2020-01-01T00:00:00Z".to_owned(),
        ..stage.options(None)
    };
    let refused = stage.plan(&nowhere).expect_err("there is no such restore point");
    assert!(matches!(refused.cause, Cause::NoSuchRestorePoint(_)), "{refused}");
}

#[test]
fn damage_that_the_guest_reads_is_reported() {
    let stage = Stage::new();
    let image = newest_image(&stage.lab);
    let bytes = fs::read(&image).expect("an image");
    fs::write(&image, vec![0x5a; bytes.len()]).expect("written");
    let begun = stage.boot(&stage.options(None), |_| {
        stage.stop.request(StopReason::Interrupted)
    });
    assert!(begun.is_err() || begun.is_ok_and(|outcome| outcome.has_damage()));
    stage.assert_nothing_left();
}

fn newest_image(lab: &Lab) -> PathBuf {
    let kept = lab.history("vm1").kept.pop().expect("a restore point");
    kept.dir().join("vda.qcow2")
}

#[test]
fn records_that_cannot_be_read_remove_nothing() {
    let stage = Stage::new();
    let folder = stage.path("state/boot");
    fs::create_dir_all(&folder).expect("made");
    let uuid = "6b0a1111-2222-4333-8444-555566667777";
    let record = folder.join(format!("{uuid}.json"));
    fs::write(stage.path("images/precious"), "x").expect("written");
    for text in [
        "no JSON".to_owned(),
        "{}".to_owned(),
        format!(
            r#"{{"format":2,"domain":"a","name":"a","uuid":"{uuid}","uri":"simulated:///","folder":"/x","files":["{}"],"newDir":null,"tpm":null}}"#,
            stage.path("images/precious").display()
        ),
        format!(
            r#"{{"format":1,"domain":"a","name":"a","uuid":"7b0a1111-2222-4333-8444-555566667777","uri":"simulated:///","folder":"/x","files":["{}"],"newDir":null,"tpm":null}}"#,
            stage.path("images/precious").display()
        ),
    ] {
        fs::write(&record, text).expect("written");
        assert_eq!(stage.clear(), ["trial-record-unreadable"]);
        assert!(record.exists());
    }
    // A process that died before it had made anything.
    fs::write(&record, "").expect("written");
    assert_eq!(stage.clear(), [""; 0]);
    assert!(!record.exists());
    assert!(stage.path("images/precious").exists());
}

#[test]
fn the_folder_of_a_record_has_to_be_one_of_ours() {
    let stage = Stage::new();
    let folder = stage.path("state/boot");
    fs::create_dir_all(&folder).expect("made");
    fs::write(stage.path("images/precious"), "x").expect("written");
    let uuid = "6b0a1111-2222-4333-8444-555566667777";
    let text = format!(
        r#"{{"format":1,"domain":"a","name":"a","uuid":"{uuid}","uri":"simulated:///","folder":"{}","files":[],"newDir":null,"tpm":null}}"#,
        stage.path("images").display()
    );
    fs::write(folder.join(format!("{uuid}.json")), text).expect("written");
    assert_eq!(stage.clear(), ["healed-trial"]);
    assert!(stage.path("images/precious").exists());
}

#[test]
fn a_link_in_place_of_the_folder_is_not_followed() {
    let stage = Stage::new();
    let folder = stage.path("state/boot");
    fs::create_dir_all(&folder).expect("made");
    fs::write(stage.path("images/precious"), "x").expect("written");
    let link = stage.path("scratch/vmsnap-boot-0123");
    std::os::unix::fs::symlink(stage.path("images"), &link).expect("a link");
    let uuid = "6b0a1111-2222-4333-8444-555566667777";
    let text = format!(
        r#"{{"format":1,"domain":"a","name":"a","uuid":"{uuid}","uri":"simulated:///","folder":"{}","files":[],"newDir":null,"tpm":null}}"#,
        link.display()
    );
    fs::write(folder.join(format!("{uuid}.json")), text).expect("written");
    assert_eq!(stage.clear(), ["healed-trial"]);
    assert!(stage.path("images/precious").exists());
}
