//! Merges that continue a large image in its file: the cost, readers beside them, and damage.

mod store;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmsnap::io::Store;
use vmsnap::model::finding::Finding;
use vmsnap::model::level::FullRule;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::model::text::with_sources;
use vmsnap::ops::backup::Options;
use vmsnap::ops::retention::{self, Means, Policy, Quota, Rule, preview, prune};
use vmsnap::ops::verify;
use vmsnap::ops::{Event, Monitor};
use vmsnap::repo::{DomainRepository, FolderRepository, Merge, Merged, Repository};

use self::store::{Clones, CountingStore};
use crate::lab::{CLUSTER, InFolder, Lab};

/// Clusters of the disk.
const CLUSTERS: usize = 120;

/// Records how far files were read.
#[derive(Default)]
struct Progress(Mutex<Vec<u64>>);

impl Monitor for Progress {
    fn event(&self, event: Event<'_>) {
        if let Event::FileAt {
            file: "vda",
            position,
            ..
        } = event
        {
            self.0.lock().expect("no test panics with it").push(position);
        }
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A domain with a disk full of data that cannot be compressed.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTERS * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &noise(0, CLUSTERS * CLUSTER)));
    lab
}

fn options() -> Options {
    Options {
        full: FullRule::Never,
        ..Lab::options()
    }
}

/// The guest writes noise, text and zeroes to three clusters.
fn guest_writes(lab: &Lab, day: usize) {
    let place = |number: usize| (day * 7 + number * 31) % CLUSTERS * CLUSTER;
    lab.host.disk("vm1", "vda", |disk| {
        disk.write(place(0), &noise(day as u64, CLUSTER));
        disk.write(place(1), &vec![day as u8; CLUSTER]);
        disk.zero(place(2), CLUSTER);
    });
}

/// Backs the domain up on this many days. Returns the id and the disk of each restore point.
fn backed_up(lab: &mut Lab, days: usize) -> Vec<(String, Vec<u8>)> {
    let mut made = Vec::new();
    for day in 1..=days {
        lab.at(&format!("2026-11-{day:02}T02:00:00+01:00[Europe/Berlin]"));
        guest_writes(lab, day);
        let outcome = lab.backup_with("vm1", &options()).expect("a restore point");
        made.push((outcome.point.id, lab.disk("vm1", "vda")));
    }
    made
}

fn image_of(lab: &Lab, id: &str) -> PathBuf {
    let history = lab.history("vm1");
    history.get(id).expect("it is kept").dir().join("vda.qcow2")
}

fn opened(lab: &Lab, store: Arc<dyn Store>) -> Box<dyn DomainRepository> {
    let repository = FolderRepository::open_or_create(&lab.root(), store).expect("it opens");
    repository.domain("vm1").expect("it is there")
}

fn merge(domain: &dyn DomainRepository, lab: &Lab, run: &[&str], into: &str) -> Merged {
    let run: Vec<String> = run.iter().map(|id| (*id).to_owned()).collect();
    let writer = domain.try_lock().expect("nobody else writes");
    let history = writer.history().expect("it can be read");
    let stop = Stop::default();
    let wish = Merge {
        run: &run,
        into,
        now: lab.now.timestamp(),
        stop: &stop,
        watch: &(),
    };
    writer.merge_points(&history, &wish).expect("merged")
}

fn assert_restores(lab: &Lab, points: &[(String, Vec<u8>)]) {
    let history = lab.history("vm1");
    assert!(history.findings.is_empty(), "{:?}", history.findings);
    assert!(history.damage().is_empty(), "{:?}", history.damage());
    for (id, disk) in points {
        let restored = lab.restored("vm1", id, "vda").expect("it can be restored");
        assert!(restored == *disk, "{id}");
    }
}

#[test]
fn a_merge_writes_at_most_three_times_the_increments() {
    for clones in [Clones::Unsupported, Clones::Whole] {
        merges_cost_three_times_the_increments(CountingStore::with(clones));
    }
}

fn merges_cost_three_times_the_increments(store: CountingStore) {
    let mut lab = lab();
    let points = backed_up(&mut lab, 20);
    let domain = opened(&lab, Arc::new(store.clone()));
    let full = image_of(&lab, &points[0].0)
        .metadata()
        .expect("it is there")
        .len();
    for pair in points.windows(2).take(16) {
        let [(gone, _), (into, _)] = pair else {
            unreachable!()
        };
        let increment = image_of(&lab, into).metadata().expect("it is there").len();
        let before = store.written();
        assert_eq!(merge(domain.as_ref(), &lab, &[gone], into), Merged::Completely);
        let written = store.written() - before;
        assert!(written <= 3 * increment, "{written} bytes for {increment}");
        assert!(3 * increment < full);
    }
    assert_restores(&lab, &points[16..]);
    let kept = lab.history("vm1");
    let kept = &kept.get(&points[16].0).expect("it is kept").manifest;
    assert_eq!(kept.point.level, Level::Full);
    // What became free takes no storage, and is not counted as stored.
    let found = image_of(&lab, &points[16].0).metadata().expect("it is there");
    let entry = kept.file("vda.qcow2").expect("it is listed");
    assert_eq!(entry.size, found.len());
    let stored = entry.size - entry.unused.expect("it was continued");
    let most = full + 20 * CLUSTER as u64;
    assert!(stored < most && found.blocks() * 512 < most, "{stored} {found:?}");
    lab.assert_verified("vm1");
}

#[test]
fn a_policy_plans_what_a_continued_image_costs() {
    let mut lab = lab();
    let points = backed_up(&mut lab, 6);
    let policy = Policy::default().with(Rule::Last, Quota::AtMost(5));
    let full = image_of(&lab, &points[0].0)
        .metadata()
        .expect("it is there")
        .len();
    let history = lab.history("vm1");
    let second = history.get(&points[1].0).expect("it is kept");
    let increment = second.manifest.file("vda.qcow2").expect("it is listed").size;
    let progress = Progress::default();
    let means = Means {
        repo: lab.repo.as_ref(),
        now: lab.now.clone(),
        monitor: &progress,
        stop: &lab.stop,
    };
    let wait = Duration::ZERO;
    let options = retention::Options { policy, wait };
    let planned = preview("vm1", &means, &options).expect("a plan");
    let merges = planned.plan.merges();
    assert_eq!(merges.len(), 1);
    assert!(
        merges[0].bytes >= increment && merges[0].bytes < full,
        "{merges:?}"
    );
    drop(history);
    // The merge reports how far it has come on the disk.
    prune("vm1", &means, &options).expect("it begins");
    let positions = progress.0.lock().expect("no test panics with it");
    assert!(positions.len() > 1 && positions.is_sorted(), "{positions:?}");
}

#[test]
fn readers_see_the_old_state_or_the_new_one() {
    for clones in [Clones::Unsupported, Clones::Whole] {
        readers_beside_a_merge(CountingStore::with(clones));
    }
}

fn readers_beside_a_merge(store: CountingStore) {
    let mut lab = lab();
    let points = backed_up(&mut lab, 4);
    let domain = opened(&lab, Arc::new(store));
    let old = domain.history().expect("it can be read");
    let merged = merge(domain.as_ref(), &lab, &[&points[0].0, &points[1].0], &points[2].0);
    assert_eq!(merged, Merged::ExceptFiles, "somebody reads");
    // The old state, all of it.
    let stop = Stop::default();
    for (id, disk) in &points {
        let reader = domain.open_disk(&old, id, "vda", &stop).expect("it opens");
        let mut found = vec![1; disk.len()];
        reader.read_at(&mut found, 0).expect("it is sound");
        assert!(found == *disk, "{id} in the old state");
    }
    // The new state, with the changes that are still to be made.
    let into = image_of(&lab, &points[2].0);
    assert!(into.with_file_name("vda.qcow2.merged-1.patch").exists());
    assert_restores(&lab, &points[2..]);
    lab.assert_verified("vm1");
    drop(old);
    // The next run makes them.
    let writer = domain.try_lock().expect("nobody else writes");
    let left = domain.interrupted_removals().expect("it can be read");
    assert_eq!(left.len(), 1);
    assert!(
        writer.finish_removal(&left[0]).expect("it goes on"),
        "nobody reads"
    );
    drop(writer);
    let names = fs::read_dir(into.parent().expect("a folder")).expect("it can be read");
    let names: Vec<_> = names.map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(
        !names.iter().any(|name| name.to_string_lossy().contains("merg")),
        "{names:?}"
    );
    assert_restores(&lab, &points[2..]);
    lab.assert_verified("vm1");
}

#[test]
fn damaged_changes_cost_their_point_and_give_no_wrong_byte() {
    let mut lab = lab();
    let points = backed_up(&mut lab, 3);
    let domain = opened(&lab, Arc::new(CountingStore::default()));
    let old = domain.history().expect("it can be read");
    let merged = merge(domain.as_ref(), &lab, &[&points[0].0], &points[1].0);
    assert_eq!(merged, Merged::ExceptFiles);
    drop(old);
    let changes = image_of(&lab, &points[1].0).with_file_name("vda.qcow2.merged-1.patch");
    let mut bytes = fs::read(&changes).expect("it is there");
    bytes[1000] ^= 1;
    fs::write(&changes, &bytes).expect("damaged");
    for (id, _) in &points[1..] {
        let refused = lab.restored("vm1", id, "vda").expect_err("it is damaged");
        let refused = with_sources(&refused);
        assert!(refused.contains("patch is damaged"), "{refused}");
    }
    let options = verify::Options {
        which: verify::Which::All,
        deep: true,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    let verdict = verify::verify("vm1", lab.repo.as_ref(), &options, &lab.recorder, &lab.stop);
    let verdict = verdict.expect("it ends");
    assert!(
        !verdict.is_sound() && format!("{verdict:?}").contains("patch"),
        "{verdict:?}"
    );
    // The next run leaves it, and goes on.
    lab.at("2026-11-09T02:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &self::options()).expect("a restore point");
    assert_eq!(outcome.point.level, Level::Full);
    bytes[1000] ^= 1;
    fs::write(&changes, &bytes).expect("mended");
    assert_restores(&lab, &points[1..]);
}

/// The ids of restore points, each with its disk.
type Points = Vec<(String, Vec<u8>)>;

/// A state between the commit and the changes in the file: somebody has read.
fn half_merged(lab: &mut Lab) -> (Points, Box<dyn DomainRepository>) {
    let points = backed_up(lab, 3);
    let domain = opened(lab, Arc::new(CountingStore::default()));
    let old = domain.history().expect("it can be read");
    let merged = merge(domain.as_ref(), lab, &[&points[0].0], &points[1].0);
    assert_eq!(merged, Merged::ExceptFiles);
    drop(old);
    (points, domain)
}

/// Goes on with the interrupted merge. Returns whether it was finished.
fn finished(domain: &dyn DomainRepository) -> bool {
    let writer = domain.try_lock().expect("nobody else writes");
    let left = domain.interrupted_removals().expect("it can be read");
    assert_eq!(left.len(), 1);
    writer.finish_removal(&left[0]).expect("it ends")
}

#[test]
fn lost_changes_are_damage_and_nothing_is_removed() {
    let mut lab = lab();
    let (points, domain) = half_merged(&mut lab);
    let changes = image_of(&lab, &points[1].0).with_file_name("vda.qcow2.merged-1.patch");
    let bytes = fs::read(&changes).expect("it is there");
    fs::remove_file(&changes).expect("lost");
    let faults = lab.history("vm1").damage();
    let is_named = |fault: &Finding| fault.message.contains("patch is missing");
    assert!(faults.iter().any(is_named), "{faults:?}");
    assert!(!finished(domain.as_ref()));
    fs::write(&changes, &bytes).expect("found again");
    assert_restores(&lab, &points[1..]);
    assert!(finished(domain.as_ref()));
    assert_restores(&lab, &points[1..]);
}

#[test]
fn a_damaged_note_cuts_no_committed_image() {
    let mut lab = lab();
    let (points, domain) = half_merged(&mut lab);
    let folders = fs::read_dir(image_of(&lab, &points[1].0).ancestors().nth(2).expect("a period"));
    let folders = folders
        .expect("it can be read")
        .map(|entry| entry.expect("an entry").path());
    let mut notes = folders.map(|folder| folder.join("vda.qcow2.continued"));
    let note = notes.find(|note| note.exists()).expect("it is there");
    let text = fs::read(&note).expect("it can be read");
    for damaged in [&b"x"[..], b"", &text[..text.len() - 2]] {
        fs::write(&note, damaged).expect("damaged");
        assert!(!finished(domain.as_ref()));
        assert_restores(&lab, &points[1..]);
    }
    fs::write(&note, &text).expect("mended");
    assert!(finished(domain.as_ref()));
    assert_restores(&lab, &points[1..]);
}

#[test]
fn bytes_that_an_old_merge_left_after_an_image_go() {
    let mut lab = lab();
    let points = backed_up(&mut lab, 3);
    let image = image_of(&lab, &points[0].0);
    let mut bytes = fs::read(&image).expect("it is there");
    bytes.extend(noise(9, 40 * CLUSTER));
    fs::write(&image, &bytes).expect("longer");
    fs::write(image.with_file_name("vda.qcow2.continued"), "of no merge\n7\n").expect("written");
    assert_restores(&lab, &points);
    let domain = opened(&lab, Arc::new(CountingStore::default()));
    let merged = merge(domain.as_ref(), &lab, &[&points[0].0], &points[1].0);
    assert_eq!(merged, Merged::Completely);
    assert_restores(&lab, &points[1..]);
    lab.assert_verified("vm1");
}

#[test]
fn a_clone_is_continued_and_leaves_the_old_file_alone() {
    let mut lab = lab();
    let points = backed_up(&mut lab, 3);
    let image = image_of(&lab, &points[0].0);
    let full = image.metadata().expect("it is there").len();
    // Another name, and a program that has it open without a lock.
    let copy = lab.folder.path().join("copy-of-the-full");
    fs::hard_link(&image, &copy).expect("linked");
    let before = fs::read(&image).expect("it can be read");
    let store = CountingStore::with(Clones::Whole);
    let domain = opened(&lab, Arc::new(store.clone()));
    let merged = merge(domain.as_ref(), &lab, &[&points[0].0], &points[1].0);
    assert_eq!(merged, Merged::Completely);
    assert!(store.written() < full / 3, "it was copied");
    assert!(fs::read(&copy).expect("it can be read") == before);
    assert_restores(&lab, &points[1..]);
    lab.assert_verified("vm1");
}

#[test]
fn a_clone_that_is_not_whole_is_not_used() {
    for clones in [Clones::Beginning, Clones::NoSpace] {
        let mut lab = lab();
        let points = backed_up(&mut lab, 3);
        let image = image_of(&lab, &points[0].0);
        let full = image.metadata().expect("it is there").len();
        let store = CountingStore::with(clones);
        let domain = opened(&lab, Arc::new(store.clone()));
        let merged = merge(domain.as_ref(), &lab, &[&points[0].0], &points[1].0);
        assert_eq!(merged, Merged::Completely);
        assert!(store.written() < full / 3, "it was copied");
        assert_restores(&lab, &points[1..]);
        lab.assert_verified("vm1");
    }
}

#[test]
fn a_file_with_another_name_is_not_continued() {
    let mut lab = lab();
    let points = backed_up(&mut lab, 3);
    let image = image_of(&lab, &points[0].0);
    let copy = lab.folder.path().join("copy-of-the-full");
    fs::hard_link(&image, &copy).expect("linked");
    let before = fs::read(&copy).expect("it can be read");
    let domain = opened(&lab, Arc::new(CountingStore::default()));
    assert_eq!(
        merge(domain.as_ref(), &lab, &[&points[0].0], &points[1].0),
        Merged::Completely
    );
    assert!(fs::read(&copy).expect("it can be read") == before);
    assert_restores(&lab, &points[1..]);
}
