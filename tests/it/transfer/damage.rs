//! Transfers from and to damaged repositories.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Span;
use vmsnap::io::DiskStore;
use vmsnap::model::pin::Pin;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::model::text::with_sources;
use vmsnap::ops::Class;
use vmsnap::ops::each::{Fault, Judged};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::transfer::{Means, TransferDecision, Wanted, transfer};
use vmsnap::ops::verify::{self, Which, verify};
use vmsnap::repo::Repository;

use super::{all, assert_copies, beside, copied, copy, history, ids, means, wanting};
use crate::lab::{CLUSTER, InFolder, Lab, tree};
use crate::repositories::kinds::{Kind, read_through};
use crate::repositories::pack::PackFolder;

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
    assert_eq!(outcome.plan.count(&TransferDecision::IdTaken), 1);
    assert_eq!(outcome.faults(), [Fault::Incomplete]);
    let kept = other.restored("vm1", &ids(lab.repo.as_ref())[0], "vda");
    assert_eq!(kept.expect("it is the other one")[..100], [5; 100]);
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
    let count = damaged(&lab, kind.repository().as_ref(), false);
    assert_eq!(count, 1, "the one that lost its packs");
}

/// Verifies every restore point, and returns how many are damaged.
fn damaged(lab: &Lab, repository: &dyn Repository, deep: bool) -> usize {
    let options = verify::Options {
        which: Which::All,
        deep,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    let verified = verify("vm1", repository, &options, &Silent, &Stop::default());
    let points = verified.expect("it ends").points;
    points.iter().filter(|point| !point.damage.is_empty()).count()
}

#[test]
fn what_is_missing_in_the_target_is_copied_again() {
    let lab = Lab::with_three_points();
    let kind = PackFolder::default();
    let folder = beside(&lab, Arc::new(DiskStore));
    let pack = kind.repository();
    let targets: [&dyn Repository; 2] = [&folder, pack.as_ref()];
    for target in targets {
        copy(&lab, target, &all()).expect("copied");
        // In a pack, a later restore point names the missing one.
        let kept = &history(target).kept;
        let place = PathBuf::from(kept[1].location.trim_start_matches("pack:"));
        let newest = PathBuf::from(kept[2].location.trim_start_matches("pack:"));
        match place.is_dir() {
            true => fs::remove_dir_all(newest).expect("removed"),
            false => fs::remove_file(place).expect("removed"),
        }
        assert_eq!(history(target).findings.len(), 1);
        let outcome = copy(&lab, target, &all()).expect("copied");
        assert_eq!(copied(&outcome).len(), 1);
        assert_copies(lab.repo.as_ref(), target);
        assert_eq!(ids(target), ids(lab.repo.as_ref()));
    }
}

#[test]
fn a_damaged_copy_is_no_success() {
    let lab = Lab::with_points_of(&Lab::plain());
    let kind = PackFolder::default();
    let pack = kind.repository();
    copy(&lab, pack.as_ref(), &all()).expect("copied");
    let newest = lab.latest("vm1");
    kind.damage("vm1", &newest, "vda");
    assert!(damaged(&lab, pack.as_ref(), true) >= 1);
    let outcome = copy(&lab, pack.as_ref(), &all()).expect("it ends");
    assert_eq!(outcome.faults(), [Fault::Damaged]);
    let planned = outcome.plan.points.last().expect("some");
    assert!(matches!(&planned.decision, TransferDecision::DamagedInTarget(what) if !what.is_empty()));
    assert!(!outcome.findings.is_empty());
}

#[test]
fn what_is_missing_in_the_source_is_no_success() {
    let lab = Lab::with_three_points();
    let newest = history(lab.repo.as_ref()).kept[2].dir();
    fs::remove_dir_all(newest).expect("removed");
    let target = beside(&lab, Arc::new(DiskStore));
    let outcome = copy(&lab, &target, &all()).expect("it ends");
    assert_eq!(outcome.faults(), [Fault::Damaged]);
    assert_eq!(copied(&outcome).len(), 2);
}

#[test]
fn a_backup_does_not_rely_on_a_parent_without_its_packs() {
    let kind = PackFolder::default();
    let mut lab = Lab::of(tempfile::tempdir().expect("a folder"), kind.repository());
    lab.host.add_domain("vm1", &[("vda", 48 * CLUSTER)]);
    let mut noise = vec![0; 40 * CLUSTER];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &noise));
    lab.backup("vm1").expect("a restore point");
    let root = kind.root().join("packs");
    let packs = tree(&root).into_iter().map(|name| root.join(name));
    let packs = packs.filter(|path| path.is_file());
    let size = |path: &PathBuf| fs::metadata(path).expect("there").len();
    // The data; the pages of the map lie in another pack.
    let largest = packs.max_by_key(size).expect("some");
    fs::remove_file(largest).expect("removed");
    lab.repo = kind.repository();
    lab.host
        .disk("vm1", "vda", |disk| disk.write(47 * CLUSTER, &[1; 100]));
    let outcome = lab.backup("vm1").expect("a restore point");
    assert_eq!(
        outcome.point.level,
        Level::Full,
        "{:?}",
        outcome.point.disks[0].reason
    );
    lab.assert_gives_back("vm1", "vda");
    lab.host
        .disk("vm1", "vda", |disk| disk.write(46 * CLUSTER, &[2; 100]));
    let outcome = lab.backup("vm1").expect("a restore point");
    assert_eq!(
        outcome.point.level,
        Level::Incremental,
        "the missing pack is not needed"
    );
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn a_damaged_point_does_not_keep_the_others_from_being_copied() {
    let lab = Lab::with_points_of(&Lab::plain());
    let kind = PackFolder::default();
    let pack = kind.repository();
    copy(&lab, pack.as_ref(), &all()).expect("copied");
    let third = Lab::new();
    let first = ids(pack.as_ref()).remove(0);
    kind.damage("vm1", &first, "vda");
    let means = Means {
        from: pack.as_ref(),
        ..means(&lab, third.repo.as_ref(), &Silent)
    };
    let outcome = transfer("vm1", &means, &all()).expect("it begins");
    assert_eq!(outcome.error().expect("damage").class(), Class::Damaged);
    assert_eq!(outcome.findings.len(), 1, "{:?}", outcome.findings);
    assert_eq!(outcome.copied.expect("no dry run").len(), 2);
}

#[test]
fn damage_is_remembered_after_its_point_is_gone() {
    let kind = PackFolder::default();
    let mut lab = Lab::of(tempfile::tempdir().expect("a folder"), kind.repository());
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[7; 4 * CLUSTER]));
    let first = lab.backup("vm1").expect("a restore point").point.id;
    kind.damage("vm1", &first, "vda");
    lab.repo = kind.repository();
    assert_eq!(damaged(&lab, lab.repo.as_ref(), true), 1);
    {
        let domain = lab.repo.domain("vm1").expect("a name that fits");
        let locked = domain.try_lock().expect("free");
        let history = locked.history().expect("read");
        let removed = locked.remove_point(&history, &first, lab.now.timestamp());
        removed.expect("it is removed");
        domain.forget_removed().expect("done");
    }
    lab.repo = kind.repository();
    // The same content: its block is listed, but damaged.
    let again = lab.backup("vm1").expect("a restore point");
    assert_eq!(again.point.level, Level::Full);
    lab.repo = kind.repository();
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn a_point_that_another_host_has_pinned_is_not_removed() {
    let lab = Lab::with_three_points();
    let kind = PackFolder::default();
    let [pack, other] = [kind.repository(), kind.repository()];
    copy(&lab, pack.as_ref(), &all()).expect("copied");
    let [domain, elsewhere] = [&pack, &other].map(|pack| pack.domain("vm1").expect("a name"));
    let locked = domain.try_lock().expect("free");
    let before = locked.history().expect("read");
    let id = before.kept[0].manifest.point.id.clone();
    // The lock keeps apart the runs of one host only.
    drop(locked);
    let rival = elsewhere.try_lock().expect("free");
    let kept = rival.history().expect("read");
    rival.pin(&kept.kept[0], &Pin::default()).expect("pinned");
    drop(rival);
    let locked = domain.try_lock().expect("free");
    let refused = locked.remove_point(&before, &id, lab.now.timestamp());
    assert!(refused.expect_err("pinned").to_string().contains("pinned"));
    assert_eq!(ids(pack.as_ref()).len(), 3);
}

#[test]
fn another_folder_at_the_path_of_a_pack_is_noticed() {
    let lab = Lab::with_three_points();
    let kind = PackFolder::default();
    let pack = kind.repository();
    copy(&lab, pack.as_ref(), &wanting(Wanted::Newest)).expect("copied");
    // As if its file system was unmounted, and its mount point was empty.
    let aside = kind.root().with_extension("aside");
    fs::rename(kind.root(), &aside).expect("renamed");
    fs::create_dir(kind.root()).expect("new");
    let error = copy(&lab, pack.as_ref(), &all()).expect_err("it is not there");
    let text = with_sources(&error);
    assert!(text.contains("was its file system unmounted?"), "{text}");
    assert!(tree(&kind.root()).is_empty());
    fs::remove_dir(kind.root()).expect("empty");
    fs::rename(&aside, kind.root()).expect("renamed");
    let outcome = copy(&lab, pack.as_ref(), &all()).expect("copied");
    assert_eq!(copied(&outcome).len(), 2);
}
