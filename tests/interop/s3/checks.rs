//! What has to work on every S3 server.

use std::collections::BTreeSet;
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use serde_json::Value;
use vmsnap::model::stop::{Stop, WaitLimit};
use vmsnap::ops::monitor::{Event, Monitor, Silent};
use vmsnap::repo::{ObjectName, PutResult};

use super::server::{Server, refused};
use super::stage::{Stage, path_text};

/// What a server does, as `init` finds out.
pub struct Traits {
    /// `honoured` or `ignored`.
    pub conditional_puts: &'static str,
    /// Whether it refuses requests with a wrong signature.
    pub checks_signatures: bool,
}

fn points(server: &Server, location: &str) -> Vec<String> {
    let listed = server.document(&["list", "--repository", location]);
    let points = listed["domains"][0]["restorePoints"].as_array().cloned();
    let id = |point: &Value| point["id"].as_str().expect("an id").to_owned();
    points.expect("a list").iter().map(id).collect()
}

fn ids(points: &[(String, Vec<u8>)]) -> Vec<&str> {
    points.iter().map(|(id, _)| id.as_str()).collect()
}

/// A repository is created, filled, read, copied to a folder and from there to another prefix.
pub fn points_are_made_read_and_copied(server: &Server, traits: &Traits) {
    let location = server.location("hosts/kvm1");
    let created = server.init(&location);
    assert_eq!(created["conditionalPuts"], traits.conditional_puts);
    let facts = server.document(&["repository", "info", &location]);
    assert_eq!(facts["conditionalPuts"], traits.conditional_puts);
    assert_eq!(facts["id"], created["id"]);
    refused(
        &server.run(&["init", &location, "--no-encryption"]),
        64,
        "already a pack repository",
    );

    let mut stage = Stage::new(&location);
    stage.make_points(server, 4);
    assert_eq!(points(server, &location), ids(&stage.points));
    server.document(&["verify", "-r", &location, "--all", "--deep"]);
    stage.assert_restored(server, &location, &stage.points);

    let folder = super::temp_dir();
    let copies = folder.path().join("copies");
    let copies = path_text(&copies);
    server.document(&["copy", "vm1", "--from", &location, "--to", copies]);
    assert_eq!(points(server, copies), ids(&stage.points));
    let second = server.location("hosts/second");
    server.init(&second);
    server.document(&["copy", "vm1", "--from", copies, "--to", &second]);
    assert_eq!(points(server, &second), ids(&stage.points));
    server.document(&["verify", "-r", &second, "--all", "--deep"]);
    stage.assert_restored(server, &second, &stage.points[..2]);
    // The neighbour has not changed.
    assert_eq!(points(server, &location), ids(&stage.points));
}

/// `prune` and two collections free space, which the server's own times allow.
pub fn pruned_data_are_deleted_after_the_grace_period(server: &Server) {
    let location = server.location("pruned");
    server.init(&location);
    let mut stage = Stage::new(&location);
    stage.make_points(server, 5);
    let pruned = server.document(&["prune", "vm1", "-r", &location, "--keep-last", "2"]);
    assert_eq!(points(server, &location), ids(&stage.points[3..]));
    let young = &pruned["collection"];
    assert_eq!(young["condemned"]["packs"], 0, "they are young: {young}");
    let before = number_of_packs(server, &location);

    let collect = ["repository", "collect", &location, "--grace", "0s"];
    server.set_hours_ahead(3);
    let first = server.document(&collect)["collection"].clone();
    assert!(first["condemned"]["packs"].as_u64() > Some(0), "{first}");
    assert_eq!(first["deleted"]["packs"], 0, "{first}");
    server.document(&["verify", "-r", &location, "--all", "--deep"]);
    server.set_hours_ahead(6);
    let second = server.document(&collect)["collection"].clone();
    assert_eq!(second["deleted"], first["condemned"], "{second}");
    assert!(number_of_packs(server, &location) < before);
    server.document(&["verify", "-r", &location, "--all", "--deep"]);
    stage.assert_restored(server, &location, &stage.points[3..]);
    stage.make_points(server, 1);
    stage.assert_restored(server, &location, &stage.points[3..]);
}

fn number_of_packs(server: &Server, location: &str) -> usize {
    let objects = server.objects(location);
    let page = objects.list("packs/", None, &limit()).expect("listed");
    assert_eq!(page.next, None);
    page.objects.len()
}

pub fn limit() -> WaitLimit {
    WaitLimit {
        deadline: Duration::from_secs(60),
        stop: Stop::default(),
    }
}

/// Wrong credentials, a missing bucket, a wrong passphrase and an empty prefix are explained.
pub fn refusals_are_explained(server: &mut Server, traits: &Traits) {
    let location = server.location("refused");
    for arguments in [["init", &location].as_slice(), &["list", "-r", &location]] {
        let output = server.run_with_passphrase("correct horse battery", arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    refused(
        &server.run_with_passphrase("wrong horse battery", &["list", "-r", &location]),
        2,
        "passphrase",
    );
    let missing = server.location_in("missing", "x");
    let init = ["init", &missing, "--no-encryption"];
    for arguments in [init.as_slice(), &["repository", "info", &missing]] {
        refused(&server.run(arguments), 2, "the bucket does not exist");
    }
    let empty = server.location("empty");
    refused(
        &server.run(&["repository", "info", &empty]),
        2,
        "there is no pack repository",
    );
    if traits.checks_signatures {
        server.forget_secret();
        refused(
            &server.run(&["repository", "info", &location]),
            2,
            "AWS_SECRET_ACCESS_KEY",
        );
        server.set_region("elsewhere-1");
        refused(&server.run(&["repository", "info", &location]), 2, "AWS_REGION");
    }
}

/// A list that the server sends in several parts is complete.
pub fn long_lists_are_complete(server: &Server) {
    const NUMBER: usize = 1050;
    let location = server.location("many");
    let objects = server.objects(&location);
    let names: BTreeSet<String> = (0..NUMBER).map(|number| format!("probe/{number:05}")).collect();
    let waiting = Mutex::new(names.iter());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("no panic").next();
                    let Some(name) = next else { break };
                    let name = ObjectName::new(name).expect("valid");
                    let put = objects.put_if_absent(&name, b"x", &limit());
                    assert_eq!(put.expect("put"), PutResult::Created);
                }
            });
        }
    });
    let mut found = BTreeSet::new();
    let (mut pages, mut from) = (0, None);
    loop {
        let page = objects.list("", from.as_deref(), &limit()).expect("a page");
        pages += 1;
        found.extend(page.objects.iter().map(|object| object.name.to_string()));
        let has_times = page.objects.iter().all(|object| object.modified.is_some());
        assert!(has_times, "the server lists no times");
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!((pages, &found), (2, &names));
    // `init` takes them for what killed runs have left, and names them.
    let output = server.run(&["init", &location, "--no-encryption"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&NUMBER.to_string()), "{text}");
}

/// Waits for the other run in the middle of its own.
struct Meets<'a> {
    barrier: &'a Barrier,
    has_met: Mutex<bool>,
}

impl Monitor for Meets<'_> {
    fn event(&self, event: Event<'_>) {
        let mut has_met = self.has_met.lock().expect("no panic");
        if matches!(event, Event::DiskEnds { .. }) && !*has_met {
            *has_met = true;
            self.barrier.wait();
        }
    }
}

/// Of two hosts that back up one domain at the same time, one commits. Where the server ignores
/// conditions, both may, and all restore points give back their disks.
pub fn two_writers_lose_nothing(server: &Server, traits: &Traits) {
    let location = server.location("both");
    server.init(&location);
    let mut stages = [Stage::new(&location), Stage::new(&location)];
    stages[0].make_points(server, 1);
    let mut made = stages[0].points.clone();
    for round in 0..4u8 {
        let barrier = Barrier::new(2);
        let minute = 100 + 20 * i64::from(round);
        let results: Vec<_> = std::thread::scope(|scope| {
            let runs: Vec<_> = stages
                .iter_mut()
                .zip(0u8..)
                .map(|(stage, number)| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        let monitor = Meets {
                            barrier,
                            has_met: Mutex::new(false),
                        };
                        stage.write(20 + 2 * round + number);
                        let outcome = stage.try_backup(server, minute + i64::from(number), &monitor);
                        (outcome, stage.disk())
                    })
                })
                .collect();
            runs.into_iter()
                .map(|run| run.join().expect("no panic"))
                .collect()
        });
        let mut won = 0;
        for (outcome, disk) in results {
            match outcome {
                Ok(outcome) => {
                    won += 1;
                    made.push((outcome.point.id, disk));
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains("another run has committed"), "{text}");
                }
            }
        }
        assert!(won >= 1, "nobody commits");
        if traits.conditional_puts == "honoured" {
            assert_eq!(won, 1);
        }
    }
    let kept: BTreeSet<String> = points(server, &location).into_iter().collect();
    assert_eq!(kept, made.iter().map(|(id, _)| id.clone()).collect());
    server.document(&["verify", "-r", &location, "--all", "--deep"]);
    stages[0].assert_restored(server, &location, &made);
    stages[1].write(50);
    let last = stages[1].try_backup(server, 1000, &Silent).expect("it is alone");
    let last = [(last.point.id, stages[1].disk())];
    stages[1].assert_restored(server, &location, &last);
}
