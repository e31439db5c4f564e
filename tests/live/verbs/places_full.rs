//! Targets that are full, read-only or missing, and readers that die: a clear error, nothing left,
//! and the next run succeeds.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmsnap::host::Host;
use vmsnap::io::DiskStore;
use vmsnap::model::compression::Compression;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::{self, Outcome};
use vmsnap::ops::monitor::{Event, Monitor};
use vmsnap::ops::{Class, Context, Error, Result};
use vmsnap::repo::FolderRepository;

use crate::embed::{Kind, Lab, Shape, TestDomain, run_ok};
use crate::host::names;
use crate::mount::Mount;
use crate::process::processes_with;
use crate::verbs::rng::Rng;
use crate::verbs::story::{Story, codes, levels};

const MIB: u64 = 1 << 20;
const DISKS: [(Kind, u64); 2] = [(Kind::Qcow2, 4 * MIB), (Kind::Qcow2, 2 * MIB + 512)];
const INCREMENTAL: [(&str, Level); 2] = [("vda", Level::Incremental), ("vdb", Level::Incremental)];

/// A story with one restore point and its repository on a separate file system.
fn story_on(mount: &Mount, name: &str, active: bool, rng: &mut Rng) -> Story {
    let shape = Shape {
        disks: &DISKS,
        ..Shape::default()
    };
    let mut story = Story::of(TestDomain::shaped(name, &shape));
    story.repo = FolderRepository::open_or_create(&mount.path().join("repository"), Arc::new(DiskStore))
        .expect("it is new");
    if active {
        story.domain.start();
    }
    story.scribble(rng, 15);
    story.back_up();
    story
}

/// Asserts that a failed run has left nothing on the domain's side. The repository may hold
/// leftovers that could not be removed.
fn assert_taken_back(story: &Story, checkpoints: &[String], error: &Error) {
    let job = Lab::get().host.active_job(&story.domain.seen());
    assert_eq!(job.expect("it is known"), None, "{error}");
    assert_eq!(names(&story.domain), checkpoints, "{error}");
    assert!(
        story.domain.strangers().is_empty(),
        "{:?}",
        story.domain.strangers()
    );
    let images = story.domain.dir.path().display().to_string();
    let mut readers = processes_with(&images);
    readers.retain(|(_, line)| line.starts_with("qemu-nbd"));
    assert_eq!(readers, [], "{error}");
}

#[test]
fn full_target_fails_the_run_and_says_what_to_do() {
    let mut rng = Rng::new();
    let zstd = Compression::default();
    // With the most KiB that are not enough.
    let cases = [
        (true, Compression::None, 4200),
        (false, Compression::None, 4200),
        (true, zstd, 256),
        (false, zstd, 256),
    ];
    for (active, compression, most) in cases {
        let mount = Mount::of(64 * MIB);
        let mut story = story_on(&mount, "full target ", active, &mut rng);
        story.options.compression = compression;
        story.write("vda", 0, 4 * MIB, 0x41);
        let before = names(&story.domain);
        let kib = [0, 4, 8, 12, 16, 20, 28, 64, 256, 1024, 4096, 4200];
        for left in kib.into_iter().filter(|left| *left <= most) {
            mount.leave(left * 1024);
            let error = story.try_back_up().map(drop).expect_err("there is no room");
            assert_eq!(error.class(), Class::Failed, "{left} KiB left: {error}");
            let hint = error.hint().unwrap_or_default();
            assert!(hint.contains("free space"), "{left} KiB left: {error} ({hint})");
            assert_taken_back(&story, &before, &error);
            let history = story.history();
            assert!(history.leftovers.is_empty(), "{left} KiB left: {error}");
            assert_eq!(history.kept.len(), 1);
            // The kept restore point can still be restored.
            assert!(story.list().points[0].is_whole());
        }
        mount.make_room();
        assert_eq!(levels(&story.back_up()), INCREMENTAL);
        story.prove();
    }
}

#[test]
fn read_only_target_is_reported_before_anything_starts() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mount = Mount::of(64 * MIB);
        let mut story = story_on(&mount, "read-only ", active, &mut rng);
        let before = names(&story.domain);
        mount.make_read_only();
        let error = story.try_back_up().map(drop).expect_err("it is read-only");
        let said = vmsnap::model::text::with_sources(&error);
        assert!(said.contains("Read-only file system"), "{said}");
        assert_taken_back(&story, &before, &error);
        // The existing points can be listed and restored.
        story.prove();
        mount.make_writable();
        story.scribble(&mut rng, 5);
        assert_eq!(levels(&story.back_up()), INCREMENTAL);
        story.prove();
    }
}

/// A monitor that runs `act` at one event of a run.
struct At<'a> {
    number: usize,
    seen: AtomicUsize,
    act: &'a (dyn Fn() + Sync),
}

impl Monitor for At<'_> {
    fn event(&self, event: Event<'_>) {
        // Findings are reported after the run.
        if !matches!(event, Event::Found { .. }) && self.seen.fetch_add(1, Ordering::SeqCst) == self.number {
            (self.act)();
        }
    }
}

/// A backup that runs `act` at the event with this number. Also returns whether there was such an
/// event.
pub(super) fn back_up_at(story: &Story, number: usize, act: &(dyn Fn() + Sync)) -> (Result<Outcome>, bool) {
    let at = At {
        number,
        seen: AtomicUsize::new(0),
        act,
    };
    let context = Context {
        monitor: &at,
        ..story.context()
    };
    let outcome = backup::backup(&story.domain.name, &context, &story.options);
    let happened = at.seen.load(Ordering::SeqCst) > number;
    (outcome, happened)
}

#[test]
fn target_vanishing_at_any_moment_fails_only_that_run() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mount = Mount::of(64 * MIB);
        let mut story = story_on(&mount, "vanished ", active, &mut rng);
        for number in 0.. {
            story.scribble(&mut rng, 5);
            let before = names(&story.domain);
            let (outcome, happened) = back_up_at(&story, number, &|| mount.vanish());
            story.pass(jiff::Span::new().minutes(10));
            if !happened {
                outcome.map(drop).expect("nothing has happened");
                break;
            }
            let error = outcome.map(drop).expect_err("the target is gone");
            assert_taken_back(&story, &before, &error);
            let beneath = fs::read_dir(mount.path()).expect("it is readable").count();
            assert_eq!(beneath, 0, "nothing is written into the folder beneath: {error}");
            mount.come_back();
            assert_eq!(levels(&story.back_up()), INCREMENTAL);
        }
        story.prove_those_left();
    }
}

#[test]
fn killed_offline_reader_fails_only_that_run() {
    let mut rng = Rng::new();
    let mount = Mount::of(64 * MIB);
    let mut story = story_on(&mount, "dead reader ", false, &mut rng);
    let images = story.domain.dir.path().display().to_string();
    let kill = || {
        for (pid, line) in processes_with(&images) {
            if line.starts_with("qemu-nbd") {
                run_ok("kill", [&"-KILL", &pid.to_string()]);
            }
        }
    };
    assert_costs_one_run(&mut story, &mut rng, &kill);
}

#[test]
fn a_server_in_qemu_that_dies_costs_the_run_and_no_more() {
    let mut rng = Rng::new();
    let mount = Mount::of(64 * MIB);
    let mut story = story_on(&mount, "dead server ", true, &mut rng);
    let handle = story.domain.handle().clone();
    let stop = || {
        // QEMU 7.2 waits forever in `nbd_server_stop` if a connection is being negotiated at the
        // same time, such as that of another disk.
        std::thread::sleep(std::time::Duration::from_millis(500));
        let hmp = virt_sys::VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP;
        // Before the job there is no server.
        let _ = handle.qemu_monitor_command("nbd_server_stop", hmp);
    };
    assert_costs_one_run(&mut story, &mut rng, &stop);
}

/// Checks that the run fails and leaves nothing, or no longer needs what `act` breaks, for every
/// event.
fn assert_costs_one_run(story: &mut Story, rng: &mut Rng, act: &(dyn Fn() + Sync)) {
    let mut failed = 0;
    for number in 0.. {
        story.scribble(rng, 5);
        let before = names(&story.domain);
        let (outcome, happened) = back_up_at(story, number, act);
        story.pass(jiff::Span::new().minutes(10));
        match &outcome {
            Ok(_) if !happened => break,
            Ok(outcome) => assert_eq!(codes(&outcome.findings), [""; 0]),
            Err(error) => {
                failed += 1;
                assert_eq!(error.class(), Class::Failed, "{error}");
                assert_taken_back(story, &before, error);
            }
        }
        assert!(story.history().leftovers.is_empty());
        assert_eq!(levels(&story.back_up()), INCREMENTAL);
    }
    assert!(failed > 0, "no run has failed");
    story.prove_those_left();
}
