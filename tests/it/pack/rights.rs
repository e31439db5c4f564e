//! Users of a bucket who may not do everything.

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use vmsnap::host::Host;
use vmsnap::model::stop::Stop;
use vmsnap::repo::PackRepository;
use vmsnap::testkit::bucket;

use super::server::{BUCKET, Mood, Server};
use crate::lab::{CLUSTER, Lab};
use crate::repositories::pack::host;

const PASSPHRASE: &str = "correct horse battery";

/// A bucket, and a host with a passphrase.
struct Site {
    server: Server,
    folder: tempfile::TempDir,
}

impl Site {
    fn new(mood: Mood) -> Site {
        let site = Site {
            server: Server::start(),
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        site.server.be(mood);
        std::fs::write(site.folder.path().join("passphrase"), PASSPHRASE).expect("written");
        site
    }

    fn location(&self, name: &str) -> String {
        self.server.location(&format!("{BUCKET}/{name}"))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let folder = self.folder.path();
        Command::new(env!("CARGO_BIN_EXE_vmsnap"))
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .env("HOME", folder)
            .env("VMSNAP_STATE", folder.join("state"))
            .env("VMSNAP_CACHE", folder.join("cache"))
            .env("VMSNAP_REPOSITORY", self.location("kvm"))
            .env("VMSNAP_PASSPHRASE_FILE", folder.join("passphrase"))
            .env("AWS_ACCESS_KEY_ID", "testkey")
            .env("AWS_SECRET_ACCESS_KEY", "testsecret")
            .stdin(Stdio::null())
            .output()
            .expect("the program runs")
    }

    fn done(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        output
    }

    fn document(&self, arguments: &[&str]) -> Value {
        let output = self.done(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).expect("one JSON document")
    }

    /// The command is refused, and the message names what is missing.
    fn refused(&self, arguments: &[&str], part: &str) {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains("access was refused"), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    }

    /// A simulated host with a domain, whose backups go into the bucket.
    fn lab(&self) -> Lab {
        let (location, stop) = (self.location("kvm"), Stop::default());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let objects = bucket(&location).expect("it opens");
        let pack = PackRepository::open_in(&location, objects, &stop).expect("it is there");
        let opener = super::passphrase(PASSPHRASE);
        let repo = pack.unlocked(Some(&opener), host(folder.path()), &stop);
        let lab = Lab::of(folder, Box::new(repo.expect("it opens")));
        lab.host.add_domain("vm1", &[("vda", 40 * CLUSTER)]);
        lab
    }

    /// Makes three restore points.
    fn filled(&self) -> Lab {
        self.done(&["init", &self.location("kvm")]);
        let mut lab = self.lab();
        for round in 0..3u8 {
            lab.host.disk("vm1", "vda", |disk| {
                disk.write(usize::from(round) * 9 * CLUSTER, &[round + 1; CLUSTER]);
            });
            lab.backup("vm1").expect("a restore point");
        }
        lab
    }

    fn points(&self) -> usize {
        let listed = self.document(&["list"]);
        let points = listed["domains"][0]["restorePoints"].as_array();
        points.expect("a list").len()
    }
}

/// A host whose user may neither delete nor replace objects does all its work.
#[test]
fn backups_need_no_right_to_delete_or_replace() {
    let site = Site::new(Mood::MayOnlyAdd);
    let lab = site.filled();
    assert_eq!(site.points(), 3);
    // The second verification replaces the records of the first one.
    for _ in 0..2 {
        site.done(&["verify", "--all", "--deep"]);
    }
    site.done(&["pin", "vm1", "latest", "--note", "kept"]);
    site.done(&["restore", "vm1", "--to", "restored", "--format", "raw"]);
    let restored = std::fs::read(site.folder.path().join("restored/vda.raw")).expect("the disk");
    assert!(restored == lab.disk("vm1", "vda"));
    let (kvm, other) = (site.location("kvm"), site.location("other"));
    site.done(&["copy", "--from", &kvm, "--to", "folder"]);
    let init = site.done(&["init", &other]);
    let text = String::from_utf8_lossy(&init.stderr).into_owned();
    assert!(text.contains("you can delete them: probe/"), "{text}");
    site.done(&["copy", "--from", "folder", "--to", &other]);
    site.done(&["verify", "--all", "--deep", "--repository", &other]);
    std::fs::write(site.folder.path().join("second"), "another passphrase").expect("written");
    site.done(&["key", "add", "--new-passphrase-file", "second"]);
    site.done(&["key", "list"]);
}

/// What removes something says which right is missing, and changes nothing that matters.
#[test]
fn removals_without_the_right_to_delete_name_it() {
    let site = Site::new(Mood::Good);
    site.filled();
    site.done(&["pin", "vm1", "latest"]);
    std::fs::write(site.folder.path().join("second"), "another passphrase").expect("written");
    site.done(&["key", "add", "--new-passphrase-file", "second"]);
    let slots = site.document(&["key", "list"]);
    let slot = slots["slots"][1]["id"].as_str().expect("an id").to_owned();
    site.server.be(Mood::MayOnlyAdd);
    let kvm = site.location("kvm");
    let right = "s3:DeleteObject";
    site.refused(&["prune", "--keep-last", "1"], right);
    site.refused(&["unpin", "vm1", "latest"], right);
    site.refused(&["key", "remove", &slot], right);
    site.refused(&["repository", "collect", &kvm], right);
    assert_eq!(site.points(), 3);
    assert_eq!(site.document(&["key", "list"])["slots"], slots["slots"]);
    site.server.be(Mood::Good);
    // The refused collections have left no session for which another one waits.
    let collected = site.document(&["repository", "collect", &kvm]);
    assert!(collected["collection"]["collector"].is_null(), "{collected}");
    site.done(&["verify", "--all", "--deep"]);
    site.done(&["prune", "--keep-last", "1"]);
    assert_eq!(site.points(), 1);
}

/// Sessions of hosts that may not delete end by their age; then their data can be collected.
#[test]
fn sessions_that_cannot_be_deleted_end_by_their_age() {
    let site = Site::new(Mood::MayOnlyAdd);
    site.filled();
    let sessions = || {
        let keys = site.server.keys().into_iter();
        keys.filter(|key| key.contains("/sessions/")).count()
    };
    assert!(sessions() > 0);
    site.server.be(Mood::Good);
    let kvm = site.location("kvm");
    site.done(&["prune", "--keep-last", "1"]);
    for _ in 0..3 {
        site.server.pass(80);
        site.done(&["repository", "collect", &kvm]);
    }
    assert_eq!(sessions(), 0);
    assert_eq!(site.points(), 1);
    site.done(&["verify", "--all", "--deep"]);
}

/// A backup that cannot be stored fails before it begins anything with the domain.
#[test]
fn refused_uploads_end_a_backup_before_its_job() {
    let site = Site::new(Mood::Good);
    let mut lab = site.filled();
    let domain = lab.host.domain("vm1").expect("it is there");
    let before = lab.host.checkpoints(&domain).expect("they are listed").len();
    site.server.be(Mood::MayOnlyRead);
    let error = lab.backup("vm1").expect_err("it cannot be stored");
    let text = vmsnap::model::text::with_sources(&error);
    assert!(text.contains("access was refused"), "{text}");
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("s3:PutObject"), "{hint}");
    assert!(!lab.host.has_job("vm1"), "a job was begun");
    let after = lab.host.checkpoints(&domain).expect("they are listed").len();
    assert_eq!(after, before, "a checkpoint was made");
    assert_eq!(site.points(), 3);
    site.server.be(Mood::Good);
    lab.backup("vm1").expect("a restore point");
    assert_eq!(site.points(), 4);
}

/// Some stores answer 501 to a conditional put.
#[test]
fn store_that_refuses_conditional_puts_is_usable() {
    let site = Site::new(Mood::RefusesConditions);
    let lab = site.filled();
    let info = site.document(&["repository", "info", &site.location("kvm")]);
    assert_eq!(info["conditionalPuts"], "ignored");
    assert_eq!(site.points(), 3);
    site.done(&["pin", "vm1", "latest"]);
    site.done(&["verify", "--all", "--deep"]);
    site.done(&["restore", "vm1", "--to", "restored", "--format", "raw"]);
    let restored = std::fs::read(site.folder.path().join("restored/vda.raw")).expect("the disk");
    assert!(restored == lab.disk("vm1", "vda"));
    std::fs::write(site.folder.path().join("second"), "another passphrase").expect("written");
    site.done(&["key", "add", "--new-passphrase-file", "second"]);
    site.done(&["prune", "--keep-last", "1"]);
    assert_eq!(site.points(), 1);
}

/// The drill of a restore needs a user who may only read.
#[test]
fn reading_is_enough_for_list_verify_and_restore() {
    let site = Site::new(Mood::Good);
    let lab = site.filled();
    site.server.be(Mood::MayOnlyRead);
    assert_eq!(site.points(), 3);
    site.done(&["restore", "vm1", "--to", "restored", "--format", "raw"]);
    let restored = std::fs::read(site.folder.path().join("restored/vda.raw")).expect("the disk");
    assert!(restored == lab.disk("vm1", "vda"));
    site.done(&["copy", "--from", &site.location("kvm"), "--to", "folder"]);
    let verified = site.done(&["verify", "--deep"]);
    let text = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(text.contains("cannot be recorded"), "{text}");
    site.done(&["key", "export", "--to", "recovery.age"]);
    site.done(&["repository", "info", &site.location("kvm")]);
    site.refused(&["pin", "vm1", "latest"], "s3:PutObject");
}
