//! Restore points copied from one repository to another.

use std::sync::Arc;
use std::time::Duration;

use vmsnap::io::{DiskStore, Store};
use vmsnap::model::compression::Compression;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::each::Judged;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::retention::{Policy, Quota, Rule};
use vmsnap::ops::transfer::{Means, Options, Outcome, TransferDecision, Wanted, preview, transfer};
use vmsnap::ops::{Cause, Class, Monitor, Result};
use vmsnap::repo::{FolderRepository, History, Repository, SmallFile};
use vmsnap::testkit::MemoryRepository;

use crate::lab::{CLUSTER, Lab, tree};
use crate::repositories::kinds::{Kind, read_through};
use crate::repositories::pack::PackFolder;

mod command;
mod damage;
mod ends;
mod story;

/// A repository beside that of the lab.
fn beside(lab: &Lab, store: Arc<dyn Store>) -> FolderRepository {
    let root = lab.folder.path().join("other");
    FolderRepository::open_or_create(&root, store).expect("a new repository")
}

pub fn all() -> Options {
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

pub fn means<'a>(lab: &'a Lab, to: &'a dyn Repository, monitor: &'a dyn Monitor) -> Means<'a> {
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
        assert_eq!(outcome.plan.count(&TransferDecision::Present), 3);
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
            assert_eq!(copied + outcome.plan.count(&TransferDecision::Present), 4);
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
fn a_dry_run_shows_the_plan_and_changes_nothing() {
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
    assert_eq!(outcome.plan.count(&TransferDecision::Removed), 1);
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
    assert_eq!(outcome.plan.count(&TransferDecision::NotKept), 1);
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
