//! Restore points copied from one repository to another.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use jiff::Span;
use vmsnap::io::{DiskStore, Store};
use vmsnap::model::compression::Compression;
use vmsnap::model::level::FullRule;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::backup::Options as BackupOptions;
use vmsnap::ops::each::{Fault, Judged};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::retention::{Policy, Quota, Rule};
use vmsnap::ops::transfer::{Means, Options, Outcome, Verdict, Wanted, preview, transfer};
use vmsnap::ops::{Cause, Class, Event, Monitor, Result};
use vmsnap::repo::{FolderRepository, History, Repository, SmallFile};
use vmsnap::testkit::{Blow, CrashStore, Fuse, MemoryRepository};

use crate::crash::world::{DOMAIN, World, at_step, every_end};
use crate::lab::{CLUSTER, InFolder, Lab, tree};
use crate::repositories::kinds::{Kind, read_through};
use crate::repositories::pack::PackFolder;

/// A repository beside that of the lab.
fn beside(lab: &Lab, store: Arc<dyn Store>) -> FolderRepository {
    let root = lab.folder.path().join("other");
    FolderRepository::open_or_create(&root, store).expect("a new repository")
}

fn all() -> Options {
    Options {
        wanted: Wanted::All,
        policy: Policy::default(),
        compression: Compression::default(),
        wait: Duration::ZERO,
    }
}

fn wanting(wanted: Wanted) -> Options {
    Options { wanted, ..all() }
}

fn keeping_last(number: u32) -> Options {
    Options {
        policy: Policy::default().with(Rule::Last, Quota::AtMost(number)),
        ..all()
    }
}

fn means<'a>(lab: &'a Lab, to: &'a dyn Repository, monitor: &'a dyn Monitor) -> Means<'a> {
    Means {
        from: lab.repo.as_ref(),
        to,
        now: lab.now.clone(),
        monitor,
        stop: &lab.stop,
    }
}

fn copy(lab: &Lab, to: &dyn Repository, options: &Options) -> Result<Outcome> {
    transfer("vm1", &means(lab, to, &Silent), options)
}

/// The ids of the copied restore points.
fn copied(outcome: &Outcome) -> Vec<&str> {
    assert!(outcome.failure.is_none(), "{:?}", outcome.failure);
    let copied = outcome.copied.as_ref().expect("no dry run");
    copied.iter().map(|copied| copied.id.as_str()).collect()
}

fn history(repository: &dyn Repository) -> History {
    let domain = repository.domain("vm1").expect("a name that fits");
    domain.history().expect("it can be read")
}

fn ids(repository: &dyn Repository) -> Vec<String> {
    let history = history(repository);
    let points = history.chains.points().iter();
    points.map(|kept| kept.point.id.clone()).collect()
}

/// Each restore point of `to` is a copy of that of `from`, and holds the same bytes.
fn assert_copies(from: &dyn Repository, to: &dyn Repository) {
    let [originals, copies] = [from, to].map(history);
    assert!(
        copies.findings.is_empty() && copies.leftovers.is_empty(),
        "{copies:?}"
    );
    let [from, to] = [from, to].map(|repository| repository.domain("vm1").expect("a name that fits"));
    for copy in &copies.kept {
        let point = &copy.manifest.point;
        let original = originals.get(&point.id).expect("it is there");
        let of = &original.manifest.point;
        assert_eq!(
            (point.time, point.sequence, &point.period),
            (of.time, of.sequence, &of.period)
        );
        let record = point.copied_from.as_ref().expect("it is a copy");
        assert_eq!(record.manifest, original.manifest.digest);
        assert_eq!(copies.chains.faults(&point.id), [""; 0]);
        let read = |domain: &dyn vmsnap::repo::DomainRepository| {
            read_through(domain, &point.id).expect("it is sound")
        };
        assert!(read(to.as_ref()) == read(from.as_ref()), "{}", point.id);
        for file in [SmallFile::Definition, SmallFile::Nvram, SmallFile::Tpm] {
            assert_eq!(
                to.read_file(copy, file).ok(),
                from.read_file(original, file).ok(),
                "{}",
                file.name()
            );
        }
    }
}

fn levels(repository: &dyn Repository) -> Vec<Level> {
    let history = history(repository);
    let points = history.chains.points().iter();
    points.map(|kept| kept.point.level).collect()
}

#[test]
fn every_restore_point_is_copied_once() {
    let mut lab = Lab::with_three_points();
    lab.host.set_nvram("vm1", b"variables");
    let (folder, memory) = (beside(&lab, Arc::new(DiskStore)), MemoryRepository::default());
    let kind = PackFolder::default();
    let pack = kind.repository();
    let targets: [&dyn Repository; 3] = [&folder, &memory, pack.as_ref()];
    for target in targets {
        let outcome = copy(&lab, target, &all()).expect("copied");
        assert_eq!(copied(&outcome), ids(lab.repo.as_ref()));
        assert_eq!(ids(target), ids(lab.repo.as_ref()));
        assert_eq!(levels(target), levels(lab.repo.as_ref()));
        assert_copies(lab.repo.as_ref(), target);
    }
    lab.host
        .disk("vm1", "vda", |disk| disk.write(CLUSTER, &[9; 3000]));
    let added = lab.backup("vm1").expect("a restore point").point.id;
    for target in targets {
        let outcome = copy(&lab, target, &all()).expect("copied");
        assert_eq!(copied(&outcome), [added.as_str()]);
        assert_eq!(outcome.plan.count(&Verdict::Present), 3);
        assert!(outcome.faults().is_empty());
        // Only what has changed was copied.
        let bytes = outcome.copied.as_ref().expect("no dry run")[0].data_bytes;
        assert_eq!(bytes, CLUSTER as u64);
        assert_copies(lab.repo.as_ref(), target);
        let outcome = copy(&lab, target, &all()).expect("nothing to copy");
        assert_eq!(copied(&outcome), [""; 0]);
    }
    // A copy can be copied again, to any kind.
    let other = PackFolder::default();
    for source in targets {
        let (third, fourth) = (Lab::new(), other.repository());
        for target in [third.repo.as_ref(), fourth.as_ref()] {
            let means = Means {
                from: source,
                to: target,
                ..means(&lab, target, &Silent)
            };
            let outcome = transfer("vm1", &means, &all()).expect("copied");
            let copied = copied(&outcome).len();
            assert_eq!(copied + outcome.plan.count(&Verdict::Present), 4);
            if copied > 0 {
                assert_copies(source, target);
            }
        }
        third.assert_verified("vm1");
    }
    assert_eq!(ids(other.repository().as_ref()).len(), 4);
}

#[test]
fn old_points_may_reach_a_pack_after_newer_ones() {
    let mut lab = Lab::with_three_points();
    let kind = PackFolder::default();
    let pack = kind.repository();
    copy(&lab, pack.as_ref(), &wanting(Wanted::Newest)).expect("copied");
    let outcome = copy(&lab, pack.as_ref(), &all()).expect("copied");
    assert_eq!(copied(&outcome).len(), 2);
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[9; 3000]));
    lab.backup("vm1").expect("a restore point");
    let outcome = copy(&lab, pack.as_ref(), &all()).expect("copied");
    assert_eq!(copied(&outcome).len(), 1);
    assert_eq!(ids(pack.as_ref()), ids(lab.repo.as_ref()));
    assert_copies(lab.repo.as_ref(), pack.as_ref());
}

#[test]
fn the_newest_is_copied_alone_and_the_rest_later() {
    let lab = Lab::with_three_points();
    let target = beside(&lab, Arc::new(DiskStore));
    let outcome = copy(&lab, &target, &wanting(Wanted::Newest)).expect("copied");
    assert_eq!(copied(&outcome), [lab.latest("vm1")]);
    assert_eq!(levels(&target), [Level::Full], "it stands alone");
    assert_copies(lab.repo.as_ref(), &target);
    let outcome = copy(&lab, &target, &all()).expect("copied");
    assert_eq!(copied(&outcome).len(), 2);
    assert_eq!(ids(&target), ids(lab.repo.as_ref()));
    assert_eq!(levels(&target), [Level::Full, Level::Incremental, Level::Full]);
    assert_copies(lab.repo.as_ref(), &target);
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let lab = Lab::with_three_points();
    let target = beside(&lab, Arc::new(DiskStore));
    let before = tree(lab.folder.path());
    let outcome = preview("vm1", &means(&lab, &target, &Silent), &all()).expect("a plan");
    assert_eq!(outcome.plan.copies().count(), 3);
    assert!(outcome.copied.is_none());
    assert_eq!(tree(lab.folder.path()), before);
}

#[test]
fn what_was_removed_from_the_target_stays_away() {
    let lab = Lab::with_three_points();
    let target = beside(&lab, Arc::new(DiskStore));
    copy(&lab, &target, &all()).expect("copied");
    let newest = lab.latest("vm1");
    let domain = target.domain("vm1").expect("a name that fits");
    let locked = domain.try_lock().expect("free");
    let removed = locked.remove_point(&locked.history().expect("read"), &newest, lab.now.timestamp());
    removed.expect("nothing depends on it");
    drop(locked);
    let outcome = copy(&lab, &target, &all()).expect("nothing to copy");
    assert_eq!(copied(&outcome), [""; 0]);
    assert_eq!(outcome.plan.count(&Verdict::Removed), 1);
    // Who names it gets it.
    let outcome = copy(&lab, &target, &wanting(Wanted::At(newest.clone()))).expect("copied");
    assert_eq!(copied(&outcome), [newest.as_str()]);
    assert_eq!(ids(&target), ids(lab.repo.as_ref()));
    assert_copies(lab.repo.as_ref(), &target);
}

#[test]
fn a_policy_decides_what_is_copied_and_what_stays() {
    let mut lab = Lab::with_three_points();
    let target = beside(&lab, Arc::new(DiskStore));
    let outcome = copy(&lab, &target, &keeping_last(2)).expect("copied");
    assert_eq!(copied(&outcome).len(), 2);
    assert_eq!(outcome.plan.count(&Verdict::NotKept), 1);
    assert_copies(lab.repo.as_ref(), &target);
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[77; 3000]));
    lab.backup("vm1").expect("a restore point");
    let outcome = copy(&lab, &target, &keeping_last(2)).expect("copied");
    assert_eq!(copied(&outcome).len(), 1);
    assert_eq!(ids(&target), ids(lab.repo.as_ref())[2..]);
    let [history, of_lab] = [&target as &dyn Repository, lab.repo.as_ref()].map(history);
    let newest = |history: &History| history.chains.latest().expect("some").point.id.clone();
    assert_eq!(newest(&history), newest(&of_lab));
    lab.assert_verified("vm1");
}

#[test]
fn damage_is_not_copied() {
    let lab = Lab::with_points_of(&Lab::plain());
    let target = beside(&lab, Arc::new(DiskStore));
    let second = history(lab.repo.as_ref()).kept[1].dir().join("vda.qcow2");
    let mut image = fs::read(&second).expect("an image");
    image[CLUSTER + 10] ^= 1;
    fs::write(&second, image).expect("written");
    let outcome = copy(&lab, &target, &all()).expect("it begins");
    let failure = outcome.error().expect("it cannot be copied");
    assert_eq!(failure.class(), Class::Damaged, "{failure}");
    assert!(failure.to_string().contains("vda.qcow2") || failure.to_string().contains("vda"));
    assert_eq!(ids(&target), ids(lab.repo.as_ref())[..1]);
    assert!(history(&target).leftovers.is_empty());
    // A missing image is noticed before anything is copied.
    fs::remove_file(&second).expect("removed");
    let outcome = copy(&lab, &target, &all()).expect("it ends");
    assert_eq!(outcome.faults(), [Fault::Damaged]);
    assert_eq!(outcome.plan.obstacles().count(), 2);
    assert_eq!(outcome.findings.len(), 2, "{:?}", outcome.findings);
    assert_eq!(ids(&target).len(), 1);
}

#[test]
fn another_restore_point_of_the_same_id_is_not_replaced() {
    let lab = Lab::with_three_points();
    let mut other = Lab::new();
    other.host.add_domain("vm1", &[("vda", CLUSTER)]);
    other.pass(Span::new().milliseconds(5));
    other.host.disk("vm1", "vda", |disk| disk.write(0, &[5; 100]));
    other.backup("vm1").expect("a restore point");
    let outcome = copy(&lab, other.repo.as_ref(), &all()).expect("it ends");
    assert_eq!(copied(&outcome).len(), 2);
    assert_eq!(outcome.plan.count(&Verdict::IdTaken), 1);
    assert_eq!(outcome.faults(), [Fault::Incomplete]);
    let kept = other.restored("vm1", &ids(lab.repo.as_ref())[0], "vda");
    assert_eq!(kept.expect("it is the other one")[..100], [5; 100]);
}

#[test]
fn a_repository_is_not_copied_to_itself() {
    let lab = Lab::with_three_points();
    let again = FolderRepository::open(&lab.root(), Arc::new(DiskStore)).expect("it is there");
    let error = copy(&lab, &again, &all()).expect_err("the same");
    assert_eq!(error.class(), Class::Usage, "{error}");
}

#[test]
fn unknown_restore_points_create_nothing() {
    let lab = Lab::with_three_points();
    let target = beside(&lab, Arc::new(DiskStore));
    let before = tree(lab.folder.path());
    let error = copy(&lab, &target, &wanting(Wanted::At("2020".to_owned()))).expect_err("unknown");
    assert!(matches!(error.cause, Cause::NoSuchRestorePoint(_)), "{error}");
    let error = transfer("vm7", &means(&lab, &target, &Silent), &all()).expect_err("unknown");
    assert!(matches!(error.cause, Cause::NoRestorePoints), "{error}");
    assert_eq!(tree(lab.folder.path()), before);
}

/// Requests a stop when the second disk begins.
struct StopsAtSecond {
    stop: Stop,
    begun: std::sync::atomic::AtomicUsize,
}

impl Monitor for StopsAtSecond {
    fn event(&self, event: Event<'_>) {
        if let Event::DiskBegins { .. } = event
            && self.begun.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1
        {
            self.stop.request(StopReason::Interrupted);
        }
    }
}

#[test]
fn a_stopped_transfer_goes_on_later() {
    let mut lab = Lab::with_three_points();
    let target = beside(&lab, Arc::new(DiskStore));
    let monitor = StopsAtSecond {
        stop: lab.stop.clone(),
        begun: std::sync::atomic::AtomicUsize::new(0),
    };
    let outcome = transfer("vm1", &means(&lab, &target, &monitor), &all()).expect("it begins");
    let class = outcome.error().expect("stopped").class();
    assert_eq!(class, Class::Stopped(StopReason::Interrupted));
    assert_eq!(ids(&target), ids(lab.repo.as_ref())[..1]);
    assert!(history(&target).leftovers.is_empty());
    lab.stop = Stop::default();
    let outcome = copy(&lab, &target, &all()).expect("copied");
    assert_eq!(copied(&outcome).len(), 2);
    assert_copies(lab.repo.as_ref(), &target);
}

/// Copies all restore points of the world's repository into the one beside it.
fn copy_world(world: &World, to: &dyn Repository) -> Result<Outcome> {
    transfer(DOMAIN, &means(&world.lab, to, &Silent), &all())
}

fn world() -> World {
    let mut world = World::new();
    for _ in 0..3 {
        world.backup(&Lab::options());
    }
    world
}

/// After a run that ended early, what is there is whole; the next run copies the rest.
fn assert_goes_on(world: &World) {
    let target = beside(&world.lab, Arc::new(DiskStore));
    let there = history(&target);
    assert!(there.chains.points().iter().all(|kept| kept.faults.is_empty()));
    let outcome = copy_world(world, &target).expect("it begins");
    assert!(outcome.error().is_none(), "{:?}", outcome.error());
    assert_eq!(ids(&target), ids(world.lab.repo.as_ref()));
    assert_copies(world.lab.repo.as_ref(), &target);
    let left = tree(&world.lab.folder.path().join("other"));
    let left: Vec<&String> = left.iter().filter(|path| path.contains(".partial")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_transfer_ends_anywhere_and_the_next_goes_on() {
    let world = world();
    let fuse = Fuse::default();
    let undisturbed = world.fork();
    let target = beside(&undisturbed.lab, Arc::new(CrashStore::new(&fuse)));
    copy_world(&undisturbed, &target).expect("nothing happens to it");
    let steps = fuse.steps();
    assert!(
        steps.iter().filter(|step| step.starts_with("rename")).count() >= 3,
        "{steps:#?}"
    );
    for (number, blow) in every_end(&steps, &Blow::ALL) {
        at_step(&steps, number, &blow, || {
            let world = world.fork();
            let fuse = Fuse::at(number, blow);
            let root = world.lab.folder.path().join("other");
            if let Ok(target) = FolderRepository::open_or_create(&root, Arc::new(CrashStore::new(&fuse))) {
                let _ = copy_world(&world, &target);
            }
            assert_goes_on(&world);
        });
    }
}

#[test]
fn a_transfer_survives_a_power_cut_at_any_step() {
    let world = world();
    let fuse = Fuse::default();
    let undisturbed = world.fork();
    let target = beside(&undisturbed.lab, Arc::new(CrashStore::new(&fuse)));
    copy_world(&undisturbed, &target).expect("nothing happens to it");
    let steps = fuse.steps();
    for number in 0..=steps.len() {
        at_step(&steps, number, &"power cut", || {
            let world = world.fork();
            let fuse = Fuse::at(number, Blow::KilledBefore);
            let store = world.store_with_power(&fuse);
            let root = world.lab.folder.path().join("other");
            let mut committed = Vec::new();
            if let Ok(target) = FolderRepository::open_or_create(&root, Arc::new(store.clone()))
                && let Ok(outcome) = copy_world(&world, &target)
            {
                let done = outcome.copied.unwrap_or_default();
                committed.extend(done.into_iter().map(|copied| copied.id));
            }
            store.cut_power(number as u64).expect("files are written");
            if !committed.is_empty() {
                let there = ids(&beside(&world.lab, Arc::new(DiskStore)));
                assert!(
                    committed.iter().all(|id| there.contains(id)),
                    "{committed:?} {there:?}"
                );
            }
            assert_goes_on(&world);
        });
    }
}

#[test]
fn a_story_of_backups_prunes_and_transfers_agrees() {
    let mut lab = Lab::in_memory();
    lab.host.add_domain("vm1", &[("vda", 6 * CLUSTER + 512)]);
    let folder = beside(&lab, Arc::new(DiskStore));
    let memory = MemoryRepository::default();
    let kind = PackFolder::default();
    let pack = kind.repository();
    let targets: [&dyn Repository; 3] = [&folder, &memory, pack.as_ref()];
    let forever = BackupOptions {
        full: FullRule::Never,
        ..Lab::options()
    };
    let mut disks: Vec<(String, Vec<u8>)> = Vec::new();
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for round in 0..150 {
        let (place, byte) = (next(6) * CLUSTER, next(255) as u8);
        match next(6) {
            0..=2 => {
                lab.host
                    .disk("vm1", "vda", |disk| disk.write(place, &[byte; 4000]));
                let id = lab
                    .backup_with("vm1", &forever)
                    .expect("a restore point")
                    .point
                    .id;
                disks.push((id, lab.disk("vm1", "vda")));
            }
            3 => lab.pass(Span::new().hours(20)),
            4 if !disks.is_empty() => {
                let policy = Policy::default().with(Rule::Last, Quota::AtMost(3));
                let policy = policy.with(Rule::Daily, Quota::AtMost(3));
                let keep = BackupOptions {
                    keep: Some(policy),
                    ..forever.clone()
                };
                let id = lab.backup_with("vm1", &keep).expect("a restore point").point.id;
                disks.push((id, lab.disk("vm1", "vda")));
            }
            _ if !disks.is_empty() => {
                let options = match next(3) {
                    0 => all(),
                    1 => keeping_last(4),
                    _ => wanting(Wanted::Newest),
                };
                let outcome = copy(&lab, targets[next(3)], &options).expect("copied");
                assert!(outcome.error().is_none(), "round {round}: {:?}", outcome.error());
            }
            _ => {}
        }
    }
    for target in targets {
        let there = ids(target);
        assert!(there.len() > 3, "{there:?}");
        let domain = target.domain("vm1").expect("a name that fits");
        for id in there {
            let (_, disk) = disks.iter().find(|(of, _)| *of == id).expect("it was made");
            let read = read_through(domain.as_ref(), &id).expect("it is sound");
            assert!(read == *disk, "{id}");
        }
    }
}

/// Runs the program.
fn run(arguments: &[&str]) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .args(arguments)
        .env_remove("VMSNAP_REPOSITORY")
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_command_copies_and_the_list_tells_from_where() {
    let lab = Lab::with_three_points();
    let [from, to] = ["backups", "copies"].map(|name| lab.folder.path().join(name).display().to_string());
    let arguments = ["copy", "--from", &from, "--to", &to];
    let planned = run(&[&arguments[..], &["--dry-run"]].concat());
    assert_eq!(planned.status.code(), Some(0), "{planned:?}");
    let out = text(&planned.stdout);
    assert!(out.contains("vm1: would copy 3 of 3 restore points"), "{out}");
    assert!(!lab.folder.path().join("copies").exists());
    let done = run(&arguments);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let out = text(&done.stdout);
    assert!(out.contains("vm1: copied 3 of 3 restore points"), "{out}");
    let again = run(&[&arguments[..], &["--json"]].concat());
    let document: serde_json::Value = serde_json::from_slice(&again.stdout).expect("a document");
    let domain = &document["domains"][0];
    assert_eq!(
        (&domain["outcome"], &domain["copied"]),
        (&"ok".into(), &serde_json::json!([]))
    );
    assert_eq!(domain["restorePoints"][2]["reason"], "the target has it");
    let list = text(&run(&["list", "--repository", &to]).stdout);
    assert!(list.contains(&format!("  copied from {from}\n")), "{list}");
    let verified = run(&["verify", "vm1", "--all", "--deep", "--repository", &to]);
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let at = history(lab.repo.as_ref()).kept[0].manifest.point.id.clone();
    let one = lab.folder.path().join("one").display().to_string();
    let single = run(&["copy", "vm1", "--from", &from, "--to", &one, "--at", &at]);
    assert_eq!(single.status.code(), Some(0), "{single:?}");
}

#[test]
fn the_command_refuses_what_makes_no_sense() {
    let lab = Lab::with_three_points();
    let from = lab.root().display().to_string();
    let to = lab.folder.path().join("copies").display().to_string();
    let deep = lab.folder.path().join("no/such/folder").display().to_string();
    for (arguments, code, part) in [
        (
            vec!["copy", "--from", &from, "--to", &from],
            64,
            "are the same repository",
        ),
        (
            vec!["copy", "--from", &from, "--to", ""],
            2,
            "the location of --to is empty",
        ),
        (vec!["copy", "--from", "/no/such", "--to", &to], 2, "/no/such"),
        (vec!["copy", "--from", &from, "--to", &deep], 2, "no/such"),
        (
            vec!["copy", "vm7", "--from", &from, "--to", &to],
            1,
            "No matching domains found for: vm7",
        ),
        (
            vec!["copy", "--from", &from, "--to", &to, "--at", "2020"],
            1,
            "2020",
        ),
        (
            vec!["copy", "--from", &from, "--to", &to, "--all", "--newest"],
            64,
            "cannot be used with",
        ),
        (vec!["copy", "--from", &from], 64, "--to"),
    ] {
        let done = run(&arguments);
        let message = text(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
}

#[test]
fn deleted_packs_are_not_relied_on() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 48 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(20 * CLUSTER, &[7; 20 * CLUSTER]));
    lab.backup("vm1").expect("a restore point");
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[9; 3000]));
    lab.backup("vm1").expect("a restore point");
    let kind = PackFolder::default();
    copy(&lab, kind.repository().as_ref(), &wanting(Wanted::Newest)).expect("copied");
    // The index still lists what somebody deletes.
    for name in tree(&kind.root().join("packs")) {
        let path = kind.root().join("packs").join(name);
        if path.is_file() {
            fs::remove_file(path).expect("deleted");
        }
    }
    let first = ids(lab.repo.as_ref()).remove(0);
    let pack = kind.repository();
    let outcome = copy(&lab, pack.as_ref(), &wanting(Wanted::At(first.clone()))).expect("copied");
    assert_eq!(copied(&outcome), [first.as_str()]);
    for repository in [pack, kind.repository()] {
        let [from, to] = [lab.repo.as_ref(), repository.as_ref()].map(|repository| {
            let domain = repository.domain("vm1").expect("a name that fits");
            read_through(domain.as_ref(), &first).expect("it is sound")
        });
        assert!(from == to);
    }
    let options = vmsnap::ops::verify::Options {
        which: vmsnap::ops::verify::Which::All,
        deep: false,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    let verified = vmsnap::ops::verify::verify(
        "vm1",
        kind.repository().as_ref(),
        &options,
        &Silent,
        &Stop::default(),
    );
    let verified = verified.expect("it ends");
    let damaged = verified.points.iter().filter(|point| !point.damage.is_empty());
    assert_eq!(damaged.count(), 1, "the one that lost its packs: {verified:?}");
}
