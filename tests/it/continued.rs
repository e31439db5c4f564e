//! Merges that continue a large image in its file: the cost, readers beside them, and damage.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmsnap::io::{Claim, DiskStore, Store};
use vmsnap::model::block::ImageFile;
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
use vmsnap::testkit::clone_by_copying;

use crate::lab::{CLUSTER, InFolder, Lab};

/// Clusters of the disk.
const CLUSTERS: usize = 120;

/// What comes of a clone.
#[derive(Clone, Copy, Default, PartialEq)]
enum Clones {
    #[default]
    Unsupported,
    Whole,
    /// Only the beginning, although the file system reports success.
    Beginning,
    NoSpace,
}

/// A store that counts the bytes that are written, whatever the real file system is.
#[derive(Clone, Default)]
struct CountingStore {
    written: Arc<AtomicU64>,
    clones: Clones,
}

impl CountingStore {
    fn with(clones: Clones) -> CountingStore {
        CountingStore {
            clones,
            ..CountingStore::default()
        }
    }

    fn count(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    fn image(&self, file: Box<dyn ImageFile>) -> Box<dyn ImageFile> {
        Box::new(CountingImage(file, self.clone()))
    }
}

struct CountingImage(Box<dyn ImageFile>, CountingStore);

impl ImageFile for CountingImage {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.count(bytes.len());
        self.0.write_at(bytes, offset)
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }

    fn free(&mut self, range: Range<u64>) -> io::Result<()> {
        self.0.free(range)
    }
}

impl Store for CountingStore {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DiskStore.create_dir(path)
    }

    fn create_open_dir(&self, path: &Path) -> io::Result<()> {
        DiskStore.create_open_dir(path)
    }

    fn create_passage(&self, path: &Path) -> io::Result<()> {
        DiskStore.create_passage(path)
    }

    fn create_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        Ok(self.image(DiskStore.create_image(path)?))
    }

    fn continue_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        Ok(self.image(DiskStore.continue_image(path)?))
    }

    fn clone_image(&self, file: &Path, name: &Path) -> io::Result<Box<dyn ImageFile>> {
        match self.clones {
            Clones::Unsupported => return Err(io::ErrorKind::Unsupported.into()),
            Clones::NoSpace => return Err(io::ErrorKind::QuotaExceeded.into()),
            Clones::Whole | Clones::Beginning => drop(DiskStore.create_image(name)?),
        }
        let mut clone = clone_by_copying(file, name)?;
        if self.clones == Clones::Beginning {
            clone.set_len(file.metadata()?.len() / 2)?;
        }
        Ok(self.image(clone))
    }

    fn link(&self, file: &Path, name: &Path) -> io::Result<()> {
        DiskStore.link(file, name)
    }

    fn create_claimed(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)> {
        DiskStore.create_claimed(path)
    }

    fn remove_unclaimed(&self, path: &Path) -> io::Result<bool> {
        DiskStore.remove_unclaimed(path)
    }

    fn create_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.count(content.len());
        DiskStore.create_file(path, content)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskStore.rename(from, to)
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskStore.replace(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        DiskStore.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        DiskStore.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        DiskStore.remove_dir(path)
    }
}

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
