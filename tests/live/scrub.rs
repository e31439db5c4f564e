//! Scrubs of real domains: the remaining bitmaps in QEMU and in the images, and the next backup.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Zoned;
use vmsnap::host::Host;
use vmsnap::io::DiskStore;
use vmsnap::model::checkpoint::{Bitmap, Checkpoint};
use vmsnap::model::domain::DomainState;
use vmsnap::model::level::FullRule;
use vmsnap::model::period::GroupBy;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::ops::backup::{self, backup};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::restore::{self, Format};
use vmsnap::ops::scrub::{self, Means, Options, Outcome, ScrubType};
use vmsnap::ops::{Cause, Context};
use vmsnap::repo::{FolderRepository, Repository};

use crate::embed::{DISK, Kind, Lab, TestDomain, run_ok};
use crate::host::{back_up, begin};

/// A number that ends the name of a checkpoint in 7. No two are the same, because they also name
/// the places of runs, which go on at the same time.
fn ending_in_seven() -> u64 {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let drawn = DRAWN.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id());
    drawn % 18_000 * 10_u64.pow(15) + 7
}

/// The names of the checkpoints of a domain's first two backups.
const OURS: [&str; 2] = [
    "virtnbdbackup.1793671200000000000000007",
    "virtnbdbackup.1793671800000000000000007",
];
const STATES: [DomainState; 3] = [DomainState::Running, DomainState::Paused, DomainState::ShutOff];

/// A domain with two disks and a repository for it.
struct Scene {
    domain: TestDomain,
    folder: tempfile::TempDir,
    repo: FolderRepository,
    now: Zoned,
}

impl Scene {
    fn new(name: &str, state: DomainState) -> Scene {
        let domain = TestDomain::define(name, &[Kind::Qcow2, Kind::Qcow2]);
        let folder = crate::owner::folder("scrub-");
        let repo = FolderRepository::open_or_create(&folder.path().join("b"), Arc::new(DiskStore));
        let scene = Scene {
            domain,
            folder,
            repo: repo.expect("it is made"),
            now: "2026-11-03T02:00:00[UTC]".parse().expect("a time"),
        };
        scene.bring_to(state);
        scene
    }

    /// A scene with two restore points.
    fn with_points(name: &str, state: DomainState) -> Scene {
        let mut scene = Scene::new(name, state);
        scene.domain.io("vda", "write -P 0x41 0 1M");
        assert_eq!(scene.back_up(), Level::Full);
        scene.domain.io("vda", "write -P 0x42 4M 1M");
        assert_eq!(scene.back_up(), Level::Incremental);
        scene
    }

    fn bring_to(&self, state: DomainState) {
        if state.is_active() {
            self.domain.start();
        }
        if state == DomainState::Running {
            self.domain.handle().resume().expect("it runs");
        }
    }

    /// Backs up, checks that the restore point gives back the disks, and returns its level.
    fn back_up(&mut self) -> Level {
        let context = Context {
            host: &Lab::get().host,
            repo: &self.repo,
            now: self.now.clone(),
            monitor: &Silent,
            stop: Stop::default(),
            random: &ending_in_seven,
        };
        let outcome = backup(&self.domain.name, &context, &backup::Options::default());
        let outcome = outcome.expect("it is backed up");
        self.now = self
            .now
            .checked_add(jiff::Span::new().minutes(10))
            .expect("in range");
        outcome.point.level
    }

    /// The bytes at each of `places` (in MiB) of a disk in the newest restore point.
    fn restored(&self, disk: &str, places: &[usize]) -> Vec<u8> {
        let to = self.folder.path().join("restored");
        let options = restore::Options {
            at: "latest".to_owned(),
            to: to.clone(),
            pool: None,
            disks: vec![disk.to_owned()],
            format: Some(Format::Raw),
            define: None,
        };
        let plan = restore::plan(&self.domain.name, &self.repo, None, &options).expect("a plan");
        restore::restore(
            &self.domain.name,
            plan,
            &restore::Means {
                repo: &self.repo,
                store: &DiskStore,
                host: None,
                monitor: &Silent,
                stop: &Stop::default(),
            },
        )
        .expect("it is restored");
        let bytes = std::fs::read(to.join(format!("{disk}.raw"))).expect("it is there");
        assert_eq!(bytes.len() as u64, DISK);
        std::fs::remove_dir_all(to).expect("it is removed");
        places.iter().map(|place| bytes[place << 20]).collect()
    }

    fn means<'a>(&self, repo: Option<&'a FolderRepository>) -> Means<'a> {
        Means {
            monitor: &vmsnap::ops::monitor::Silent,
            host: &Lab::get().host,
            repo: repo.map(|repo| repo as &dyn Repository),
            today: self.now.date(),
            stop: Stop::default(),
        }
    }

    fn options(kind: ScrubType, name: Option<&str>) -> Options {
        Options {
            wait: std::time::Duration::ZERO,
            kind,
            name: name.map(str::to_owned),
            group_by: GroupBy::Month,
            full: FullRule::Period,
        }
    }

    fn scrub_with(&self, repo: Option<&FolderRepository>, kind: ScrubType, name: Option<&str>) -> Outcome {
        let means = self.means(repo);
        let outcome = scrub::scrub(&self.domain.name, &means, &Scene::options(kind, name));
        let outcome = outcome.expect("it begins");
        if let Some(failure) = &outcome.failure {
            panic!("{failure}");
        }
        outcome
    }

    fn scrub(&self, kind: ScrubType, name: Option<&str>) -> Outcome {
        self.scrub_with(None, kind, name)
    }

    fn fails(&self, kind: ScrubType, name: Option<&str>) -> Cause {
        let means = self.means(None);
        match scrub::scrub(&self.domain.name, &means, &Scene::options(kind, name)) {
            Err(error) => error.cause,
            Ok(outcome) => outcome.failure.expect("it fails").cause,
        }
    }

    fn checkpoints(&self) -> Vec<Checkpoint> {
        let checkpoints = Lab::get().host.checkpoints(&self.domain.seen());
        checkpoints.expect("they are listed")
    }

    fn names(&self) -> Vec<String> {
        self.checkpoints().into_iter().map(|one| one.name).collect()
    }

    /// Whether a disk really has a bitmap with this name: in QEMU if it runs, otherwise in the
    /// image.
    fn has(&self, disk: &str, bitmap: &str) -> bool {
        let quoted = format!("\"{bitmap}\"");
        if !self.domain.seen().state.is_active() {
            let image = self.domain.image(disk);
            return run_ok("qemu-img", [&"info", &"--output=json", &image]).contains(&quoted);
        }
        let nodes = self
            .domain
            .handle()
            .qemu_monitor_command("{\"execute\":\"query-block\"}", 0)
            .expect("the monitor answers");
        let nodes: serde_json::Value = serde_json::from_str(&nodes).expect("it is JSON");
        let image = self.domain.image(disk).display().to_string();
        let devices = nodes["return"].as_array().expect("a list");
        let of_disk = devices
            .iter()
            .find(|device| device["inserted"]["file"] == image.as_str());
        let of_disk = of_disk.unwrap_or_else(|| panic!("{disk} is none of {nodes}"));
        of_disk["inserted"]["dirty-bitmaps"].to_string().contains(&quoted)
    }

    fn has_any_of_ours(&self) -> bool {
        let pairs = ["vda", "vdb"].map(|disk| OURS.map(|name| self.has(disk, name)));
        pairs.as_flattened().contains(&true)
    }
}

fn full(outcome: &Outcome) {
    assert_eq!(outcome.next.level, Some(Level::Full), "{}", outcome.next.reason);
}

#[test]
fn type_both_leaves_nothing_of_ours_in_any_state() {
    for state in STATES {
        let mut scene = Scene::with_points("scrub $(x) ", state);
        back_up(&scene.domain, "mine", &[("vda", None)]);
        let outcome = scene.scrub(ScrubType::Both, None);
        assert_eq!(outcome.checkpoints, OURS, "{state:?}");
        assert_eq!(outcome.bitmaps.len(), 4, "{state:?}");
        full(&outcome);
        assert_eq!(scene.names(), ["mine"], "{state:?}");
        assert!(!scene.has_any_of_ours() && scene.has("vda", "mine"), "{state:?}");
        assert_eq!(scene.domain.seen().state, state);

        scene.domain.io("vda", "write -P 0x43 0 1M");
        assert_eq!(scene.back_up(), Level::Full, "as announced");
        scene.domain.io("vda", "write -P 0x44 8M 1M");
        assert_eq!(scene.back_up(), Level::Incremental);
        assert_eq!(scene.restored("vda", &[0, 4, 8, 12]), [0x43, 0x42, 0x44, 0]);
        assert_eq!(scene.names()[0], "mine", "the foreign checkpoint is still there");
    }
}

#[test]
fn type_checkpoint_leaves_bitmaps_that_block_no_backup() {
    for state in STATES {
        let mut scene = Scene::with_points("records ", state);
        let outcome = scene.scrub(ScrubType::Checkpoint, None);
        assert_eq!(outcome.checkpoints, OURS, "{state:?}");
        assert_eq!((outcome.bitmaps.len(), outcome.left.len()), (0, 4), "{state:?}");
        assert_eq!(outcome.next.level, None, "{}", outcome.next.reason);
        assert_eq!(scene.names(), [""; 0]);
        assert!(scene.has("vda", OURS[0]) && scene.has("vdb", OURS[1]));
        assert_eq!(scene.back_up(), Level::Incremental, "{state:?}");
        assert_eq!(scene.restored("vda", &[0, 4, 8]), [0x41, 0x42, 0]);

        // A repository that has not recorded the checkpoints.
        let elsewhere = scene.folder.path().join("c");
        scene.repo = FolderRepository::open_or_create(&elsewhere, Arc::new(DiskStore)).expect("it is made");
        scene.scrub(ScrubType::Checkpoint, None);
        assert_eq!(scene.back_up(), Level::Full, "{state:?}");
        assert_eq!(scene.restored("vda", &[0, 4, 8]), [0x41, 0x42, 0]);
    }
}

#[test]
fn type_bitmap_keeps_records_and_next_backup_is_full() {
    for state in STATES {
        let mut scene = Scene::with_points("bare ", state);
        let before = scene.checkpoints();
        let outcome = scene.scrub(ScrubType::Bitmap, None);
        assert_eq!(
            (outcome.checkpoints.len(), outcome.bitmaps.len()),
            (0, 4),
            "{state:?}"
        );
        full(&outcome);
        assert!(!scene.has_any_of_ours(), "{state:?}");
        let after = scene.checkpoints();
        assert_eq!(after.len(), 2);
        for (was, is) in before.iter().zip(&after) {
            assert_eq!(
                (&was.name, was.created, &was.mark),
                (&is.name, is.created, &is.mark)
            );
            let states: Vec<Bitmap> = is.disks.iter().map(|disk| disk.bitmap).collect();
            assert_eq!(states, [Bitmap::Broken, Bitmap::Broken], "{state:?}");
        }
        assert!(matches!(
            scene.fails(ScrubType::Bitmap, Some(OURS[0])),
            Cause::NotThere { .. }
        ));
        assert_eq!(scene.names(), OURS, "the search has removed no checkpoint");
        assert_eq!(scene.back_up(), Level::Full, "{state:?}");
        assert_eq!(scene.back_up(), Level::Incremental);
        assert_eq!(scene.restored("vda", &[0, 4, 8]), [0x41, 0x42, 0]);
    }
}

#[test]
fn named_one_goes_alone_and_the_next_level_is_predicted() {
    for state in STATES {
        let mut scene = Scene::with_points("named ", state);
        let outcome = scene.scrub_with(Some(&scene.repo), ScrubType::Both, Some(OURS[1]));
        assert_eq!(
            outcome.next.level,
            Some(Level::Incremental),
            "{}",
            outcome.next.reason
        );
        assert_eq!(scene.names(), [OURS[0]]);
        assert!(scene.has("vdb", OURS[0]) && !scene.has("vda", OURS[1]));
        scene.domain.io("vda", "write -P 0x45 8M 1M");
        assert_eq!(scene.back_up(), Level::Incremental, "{state:?}: as announced");
        assert_eq!(scene.restored("vda", &[0, 4, 8, 12]), [0x41, 0x42, 0x45, 0]);
    }
}

#[test]
fn bitmaps_without_checkpoint_go_by_name_or_repository() {
    let scene = Scene::with_points("unlisted ", DomainState::Running);
    scene.scrub(ScrubType::Checkpoint, None);
    let outcome = scene.scrub(ScrubType::Bitmap, None);
    assert!(
        outcome.bitmaps.is_empty(),
        "bitmaps made since the start cannot be listed"
    );
    let told = outcome
        .findings
        .iter()
        .any(|found| found.code == "bitmaps-not-listed");
    assert!(told && scene.has("vda", OURS[0]));

    let outcome = scene.scrub(ScrubType::Bitmap, Some(OURS[0]));
    assert_eq!(outcome.bitmaps.len(), 2);
    assert!(!scene.has("vda", OURS[0]) && !scene.has("vdb", OURS[0]) && scene.has("vda", OURS[1]));
    let outcome = scene.scrub_with(Some(&scene.repo), ScrubType::Both, None);
    assert_eq!(outcome.bitmaps.len(), 2);
    assert!(!scene.has_any_of_ours());
    assert_eq!(scene.names(), [""; 0], "the search leaves no checkpoint");
}

#[test]
fn those_from_before_the_start_are_found_in_the_images() {
    for state in [DomainState::Running, DomainState::ShutOff] {
        let mut scene = Scene::with_points("stored ", DomainState::Paused);
        scene.scrub(ScrubType::Checkpoint, None);
        scene.domain.destroy();
        // One bitmap is missing, so no checkpoint covers both disks. A bitmap on one disk is
        // enough.
        run_ok(
            "qemu-img",
            [&"bitmap", &"--remove", &scene.domain.image("vdb"), &OURS[0]],
        );
        scene.bring_to(state);
        assert!(scene.has("vda", OURS[0]) && !scene.has("vdb", OURS[0]));
        let outcome = scene.scrub(ScrubType::Bitmap, None);
        assert_eq!(outcome.bitmaps.len(), 3, "{state:?}");
        assert!(!scene.has_any_of_ours());
        let again = scene.scrub(ScrubType::Both, None);
        assert!(again.bitmaps.is_empty(), "{state:?}: {:?}", again.bitmaps);
        assert_eq!(scene.back_up(), Level::Full);
    }
}

#[test]
fn a_checkpoint_without_its_bitmaps_goes() {
    for state in STATES {
        let mut scene = Scene::with_points("lost ", DomainState::Paused);
        scene.domain.destroy();
        for (disk, name) in [("vda", OURS[0]), ("vdb", OURS[0]), ("vdb", OURS[1])] {
            run_ok(
                "qemu-img",
                [&"bitmap", &"--remove", &scene.domain.image(disk), &name],
            );
        }
        scene.bring_to(state);
        let outcome = scene.scrub(ScrubType::Both, None);
        assert_eq!(outcome.checkpoints, OURS, "{state:?}");
        assert_eq!(outcome.bitmaps.len(), 1, "{state:?}: {:?}", outcome.bitmaps);
        assert!(scene.names().is_empty() && !scene.has_any_of_ours(), "{state:?}");
        assert_eq!(scene.back_up(), Level::Full, "{state:?}");
    }
}

#[test]
fn inconsistent_bitmaps_of_a_killed_qemu_go() {
    for (kind, state) in [
        (ScrubType::Both, DomainState::Running),
        (ScrubType::Both, DomainState::ShutOff),
        (ScrubType::Bitmap, DomainState::Running),
        (ScrubType::Bitmap, DomainState::ShutOff),
    ] {
        let mut scene = Scene::with_points("killed ", DomainState::Paused);
        scene.domain.destroy();
        scene.domain.start();
        scene.domain.kill();
        scene.bring_to(state);
        assert!(scene.has("vda", OURS[0]), "the bitmap exists but is unusable");
        let outcome = scene.scrub(kind, None);
        assert_eq!(outcome.bitmaps.len(), 4, "{kind:?} {state:?}");
        assert!(!scene.has_any_of_ours(), "{kind:?} {state:?}");
        full(&outcome);
        assert_eq!(scene.names().len(), if kind == ScrubType::Bitmap { 2 } else { 0 });
        assert_eq!(scene.back_up(), Level::Full, "{kind:?} {state:?}");
        assert_eq!(scene.back_up(), Level::Incremental, "{kind:?} {state:?}");
    }
}

#[test]
fn a_qemu_killed_in_its_first_run_leaves_records_that_go() {
    for state in [DomainState::Paused, DomainState::ShutOff] {
        let mut scene = Scene::with_points("first run ", DomainState::Paused);
        scene.domain.kill();
        scene.bring_to(state);
        assert!(!scene.has_any_of_ours(), "the bitmaps were never saved");
        let outcome = scene.scrub(ScrubType::Both, None);
        assert_eq!(
            (outcome.checkpoints.len(), outcome.bitmaps.len()),
            (2, 0),
            "{state:?}"
        );
        assert_eq!(scene.back_up(), Level::Full, "{state:?}");
    }
}

#[test]
fn foreign_or_missing_names_and_jobs_stop_scrub_early() {
    for state in STATES {
        let scene = Scene::with_points("refused ", state);
        back_up(&scene.domain, "mine", &[("vda", None), ("vdb", None)]);
        for kind in [ScrubType::Checkpoint, ScrubType::Bitmap, ScrubType::Both] {
            assert!(matches!(scene.fails(kind, Some("mine")), Cause::NotOurs { .. }));
            let missing = scene.fails(kind, Some("virtnbdbackup.7"));
            assert!(matches!(missing, Cause::NotThere { .. }), "{missing}");
        }
        if state.is_active() {
            let (job, _) = begin(&scene.domain, "other", &[("vda", None)]).expect("it begins");
            for kind in ScrubType::ALL {
                assert!(matches!(scene.fails(kind, None), Cause::Busy { .. }));
            }
            assert_eq!(job.abort(), []);
        }
        assert_eq!(scene.names(), [OURS[0], OURS[1], "mine"], "{state:?}");
        assert!(scene.has("vda", "mine") && scene.has("vdb", OURS[1]));
    }
}

#[test]
fn disk_held_by_a_reader_is_a_failure_with_no_false_claim() {
    let scene = Scene::with_points("held ", DomainState::ShutOff);
    let (job, _) = begin(&scene.domain, "other", &[("vda", None)]).expect("it begins");
    let cause = scene.fails(ScrubType::Both, None);
    assert!(cause.to_string().contains("is in use: process "), "{cause}");
    assert_eq!(scene.names().len(), 3);
    assert_eq!(job.abort(), []);
    assert_eq!(scene.scrub(ScrubType::Both, None).bitmaps.len(), 4);
}
