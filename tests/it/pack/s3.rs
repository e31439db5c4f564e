//! Repositories in a bucket. The server is in this process; `tests/interop/s3.rs` has real ones.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use vmsnap::model::stop::Stop;
use vmsnap::repo::PackRepository;
use vmsnap::testkit::{MemoryRepository, bucket};

use super::Person;
use super::server::{BUCKET, Mood, Server};
use crate::lab::{CLUSTER, Lab};
use crate::repositories::pack::host;

/// Runs the program with credentials for the server.
fn run(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("a temporary folder");
    Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .args(arguments)
        .current_dir(home.path())
        .env_clear()
        .env("HOME", home.path())
        .env("VMSNAP_STATE", home.path().join("state"))
        .env("VMSNAP_CACHE", home.path().join("cache"))
        .env("AWS_ACCESS_KEY_ID", "testkey")
        .env("AWS_SECRET_ACCESS_KEY", "hunter2")
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

fn document(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

fn refused(output: &Output, code: i32, part: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(part), "{part}: {text}");
    assert!(!text.contains("hunter2") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn repository_in_a_bucket_is_created_and_its_keys_change() {
    let (server, person) = (Server::start(), Person::new());
    // More pages than one, and neighbours that only begin like the prefix.
    server.insert("hosts/kvm10/x", b"x");
    let location = server.location(&format!("{BUCKET}/hosts/kvm1"));
    let identity = person.file.path().display().to_string();
    let created = document(&run(&[
        "init",
        &location,
        "--encrypt-to",
        &person.public,
        "--json",
    ]));
    assert_eq!(created["conditionalPuts"], "honoured");
    assert_eq!(created["location"], location.as_str());
    let add = [
        "key",
        "add",
        "-r",
        &location,
        "--identity-file",
        &identity,
        "--encrypt-to",
        &person.public,
    ];
    for _ in 0..2 {
        assert_eq!(run(&add).status.code(), Some(0));
    }
    let listed = document(&run(&["key", "list", "-r", &location, "--json"]));
    assert_eq!(listed["slots"].as_array().map(Vec::len), Some(3));
    let slot = listed["slots"][0]["id"].as_str().expect("an id");
    let removed = run(&[
        "key",
        "remove",
        slot,
        "-r",
        &location,
        "--identity-file",
        &identity,
    ]);
    assert_eq!(removed.status.code(), Some(0), "{removed:?}");
    assert_eq!(
        document(&run(&["repository", "info", &location, "--json"]))["id"],
        created["id"]
    );
    refused(
        &run(&["init", &location, "--no-encryption"]),
        64,
        "already a pack repository",
    );
    assert_eq!(server.keys().len(), 6, "{:?}", server.keys());
}

#[test]
fn server_that_ignores_conditions_is_recorded() {
    let server = Server::start();
    server.be(Mood::IgnoresConditions);
    let location = server.location(BUCKET);
    let created = document(&run(&["init", &location, "--no-encryption", "--json"]));
    assert_eq!(created["conditionalPuts"], "ignored");
    assert_eq!(server.keys(), ["vmsnap.json"]);
}

#[test]
fn puts_have_the_checksum_that_locked_buckets_require() {
    let server = Server::start();
    server.be(Mood::LocksObjects);
    let location = server.location(BUCKET);
    document(&run(&["init", &location, "--no-encryption", "--json"]));
}

#[test]
fn refusals_of_the_server_are_explained() {
    let server = Server::start();
    let location = server.location(BUCKET);
    for (status, code, part) in [
        (403, "AccessDenied", "access was refused"),
        (403, "InvalidAccessKeyId", "does not accept the credentials"),
        (403, "SignatureDoesNotMatch", "AWS_ACCESS_KEY_ID"),
        (403, "RequestTimeTooSkewed", "correct the clock"),
        (301, "PermanentRedirect", "AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", "another region"),
        (400, "Something", "Something: a \\u{1b}[2J test"),
    ] {
        server.be(Mood::Refuses(status, code));
        refused(&run(&["init", &location, "--no-encryption"]), 2, part);
    }
    server.be(Mood::Good);
    refused(
        &run(&["init", &server.location("missing"), "--no-encryption"]),
        2,
        "the bucket does not exist",
    );
    refused(
        &run(&["repository", "info", &server.location("missing")]),
        2,
        "the bucket does not exist",
    );
    refused(
        &run(&["repository", "info", &location]),
        2,
        "there is no pack repository",
    );
    assert!(server.keys().is_empty());
}

#[test]
fn busy_server_is_asked_again() {
    let server = Server::start();
    server.be(Mood::Busy(3));
    document(&run(&[
        "init",
        &server.location(BUCKET),
        "--no-encryption",
        "--json",
    ]));
    assert!(server.requests() > 3);
}

#[test]
fn broken_answers_are_errors() {
    let server = Server::start();
    let location = server.location(BUCKET);
    document(&run(&["init", &location, "--no-encryption", "--json"]));
    for mood in [Mood::Tears, Mood::Garbage] {
        server.be(mood);
        refused(&run(&["repository", "info", &location]), 2, "cannot read");
    }
    server.be(Mood::Good);
    server.insert("vmsnap.json", &vec![b' '; 1 << 20]);
    refused(&run(&["repository", "info", &location]), 11, "is damaged");
}

#[test]
fn silent_server_does_not_delay_a_stop() {
    let server = Server::start();
    server.be(Mood::Silent);
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .args(["init", &server.location(BUCKET), "--no-encryption"])
        .env("AWS_ACCESS_KEY_ID", "testkey")
        .env("AWS_SECRET_ACCESS_KEY", "hunter2")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program runs");
    while server.requests() == 0 {
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(143));
}

#[test]
fn backups_in_a_bucket_are_listed_verified_and_restored() {
    let server = Server::start();
    let location = server.location(&format!("{BUCKET}/hosts/kvm1"));
    document(&run(&["init", &location, "--no-encryption", "--json"]));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let objects = bucket(&location).expect("it opens");
    let stop = Stop::default();
    let pack = PackRepository::open_in(&location, objects, &stop).expect("it is there");
    let repo = pack.unlocked(None, host(folder.path()), &stop).expect("it opens");
    let mut lab = Lab::of(folder, Box::new(repo));
    lab.host.add_domain("vm1", &[("vda", 40 * CLUSTER)]);
    for round in 0..3u8 {
        lab.host.disk("vm1", "vda", |disk| {
            disk.write(usize::from(round) * 9 * CLUSTER, &[round + 1; CLUSTER]);
        });
        lab.backup("vm1").expect("a restore point");
    }
    lab.assert_gives_back("vm1", "vda");
    lab.assert_verified("vm1");
    let listed = document(&run(&["list", "--repository", &location, "--json"]));
    let points = listed["domains"][0]["restorePoints"].as_array();
    assert_eq!(points.map(Vec::len), Some(3), "{listed}");
    document(&run(&["verify", "-r", &location, "--all", "--deep", "--json"]));
    let to = lab.free_path();
    let shown = to.display().to_string();
    document(&run(&[
        "restore", "vm1", "-r", &location, "--to", &shown, "--format", "raw", "--json",
    ]));
    let restored = std::fs::read(to.join("vda.raw")).expect("the restored disk");
    assert!(restored == lab.disk("vm1", "vda"), "the bytes differ");
}

/// A request costs money and time, so their number must not grow with the disk or with the
/// repository.
#[test]
fn requests_of_a_small_backup_are_few() {
    let server = Server::start();
    server.list_long_pages();
    let location = server.location(&format!("{BUCKET}/hosts/kvm1"));
    document(&run(&["init", &location, "--no-encryption", "--json"]));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folders = folder.path().to_owned();
    let reopened = || {
        let stop = Stop::default();
        let objects = bucket(&location).expect("it opens");
        let pack = PackRepository::open_in(&location, objects, &stop).expect("it is there");
        pack.unlocked(None, host(&folders), &stop).expect("it opens")
    };
    let mut lab = Lab::of(folder, Box::new(reopened()));
    lab.host.add_domain("vm1", &[("vda", 1200 * CLUSTER)]);
    let mut counts = Vec::new();
    for round in 0..12u8 {
        lab.host.disk("vm1", "vda", |disk| {
            disk.write(usize::from(round) * 90 * CLUSTER, &[round + 1; CLUSTER]);
        });
        // Each run is a process of its own, which finds the cache free.
        lab.repo = Box::new(MemoryRepository::default());
        lab.repo = Box::new(reopened());
        let before = server.requests();
        lab.backup("vm1").expect("a restore point");
        counts.push(server.requests() - before);
    }
    assert!(counts[1] <= 40, "{counts:?}");
    let more = counts[11] - counts[1];
    assert!(more <= 10, "more than one for each restore point: {counts:?}");
}
