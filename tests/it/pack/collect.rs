//! The collection of unused data in repositories with restore points.

use std::path::Path;
use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use vmsnap::model::stop::Stop;
use vmsnap::ops::collect::{CollectReport, Collection, Waiting, collect};
use vmsnap::repo::{
    ObjectErrorKind, ObjectStore, PackError, PackRepository, RepoError, Repository, UnlockedHost,
};
use vmsnap::testkit::{MemoryObjects, ObjectTrouble};

use super::WHERE;
use super::beside::Beside;
use super::world::{DOMAIN, World, open, other_host};
use crate::lab::CLUSTER;
use crate::repositories::kinds::{Maker, PERIOD, data, moment, read_through};
use crate::repositories::pack::host;

/// The usual collection.
const USUAL: Collection = Collection {
    grace: Collection::GRACE,
    dry_run: false,
};

const SIZE: u64 = 8 * CLUSTER as u64;

/// Bytes that cannot be compressed and differ for each seed.
fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; CLUSTER];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn collected(repo: &dyn Repository, how: &Collection) -> CollectReport {
    let report = collect(repo, how, &Stop::default()).expect("it collects");
    report.expect("a pack repository")
}

fn hours(objects: &MemoryObjects, hours: i64) {
    objects.pass(SignedDuration::from_hours(hours));
}

fn names(objects: &MemoryObjects, prefix: &str) -> Vec<String> {
    let names = objects.names().into_iter();
    names.filter(|name| name.starts_with(prefix)).collect()
}

fn open_beside(store: &Arc<Beside>, host: UnlockedHost) -> vmsnap::repo::Result<Box<dyn Repository>> {
    let objects = Arc::clone(store) as Arc<dyn ObjectStore>;
    let stop = Stop::default();
    let pack = PackRepository::open_in(WHERE, objects, &stop)?;
    Ok(Box::new(pack.unlocked(None, host, &stop)?))
}

/// Removes a restore point.
fn remove(repo: &dyn Repository, id: &str) {
    let domain = repo.domain(DOMAIN).expect("a name");
    let writer = domain.try_lock().expect("nobody else writes");
    let history = writer.history().expect("it can be read");
    let removed = writer.remove_point(&history, id, moment(900));
    removed.expect("it is removed");
}

#[test]
fn removed_points_free_space_after_the_grace_period() {
    let mut world = World::new();
    for _ in 0..5 {
        world.backup();
    }
    let before = names(&world.objects, "packs/").len();
    for _ in 0..4 {
        let (id, _) = world.moments.remove(0);
        remove(world.lab.repo.as_ref(), &id);
    }
    let report = collected(world.lab.repo.as_ref(), &USUAL);
    assert_eq!(report.condemned.packs, 0, "they are young: {report:?}");
    hours(&world.objects, 30);
    let dry = Collection {
        dry_run: true,
        ..USUAL
    };
    let objects = world.objects.names();
    let planned = collected(world.lab.repo.as_ref(), &dry);
    assert!(planned.condemned.packs > 2, "{planned:?}");
    assert_eq!(world.objects.names(), objects, "a dry run changes nothing");
    let report = collected(world.lab.repo.as_ref(), &USUAL);
    assert_eq!((report.condemned, report.deleted.packs), (planned.condemned, 0));
    assert!(
        report
            .waiting
            .iter()
            .any(|wait| matches!(wait, Waiting::Until(_))),
        "{report:?}"
    );
    world.assert_kept();
    hours(&world.objects, 30);
    let last = collected(world.lab.repo.as_ref(), &USUAL);
    assert_eq!(last.deleted, report.condemned);
    assert!(names(&world.objects, "packs/").len() < before);
    for prefix in ["condemned/", "sessions/"] {
        assert_eq!(names(&world.objects, prefix), [""; 0]);
    }
    world.assert_kept();
    world.lab.assert_verified(DOMAIN);
    world.assert_next_backup_heals();
}

/// A run that writes and one that collects, of different hosts.
struct Pair {
    objects: Arc<MemoryObjects>,
    folders: [tempfile::TempDir; 2],
    /// A restore point whose data no other one needs, and its content.
    kept: (String, Vec<u8>),
}

impl Pair {
    /// A collection now deletes packs, condemns others, and rewrites one. The next restore point
    /// could reuse data of all of them.
    fn new() -> Pair {
        let objects = Arc::new(MemoryObjects::default());
        crate::repositories::pack::create(objects.as_ref());
        let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let repo = open(&objects, host(folders[0].path())).expect("it opens");
        let domain = repo.domain(DOMAIN).expect("a name");
        let make = |number: i64, seeds: &[u64], parent: Option<&str>| {
            let blocks = seeds.iter().zip(0..).map(|(seed, at)| data(at, &noise(*seed)));
            Maker::new(domain.as_ref(), number).make(SIZE, blocks.collect(), parent)
        };
        let first = make(1, &[1, 2], None);
        remove(&repo, &first);
        hours(&objects, 30);
        collected(&repo, &USUAL);
        let second = make(2, &[3, 4], None);
        let third = make(3, &[5, 6], Some(&second));
        remove(&repo, &second);
        hours(&objects, 30);
        let kept = read_through(domain.as_ref(), &third).expect("it is sound");
        Pair {
            objects,
            folders,
            kept: (third, kept),
        }
    }

    fn host(&self, number: usize) -> UnlockedHost {
        host(self.folders[number].path())
    }

    /// Checks that both restore points give back their disks, now and after further collections.
    fn assert_sound(&self, new: &str, what: &str) {
        for _ in 0..3 {
            let repo = open(&self.objects, self.host(1)).expect("it opens");
            let domain = repo.domain(DOMAIN).expect("a name");
            let (id, bytes) = &self.kept;
            let kept = read_through(domain.as_ref(), id);
            assert!(
                kept.unwrap_or_else(|error| panic!("{what}: {error}")) == *bytes,
                "{what}"
            );
            let read = read_through(domain.as_ref(), new);
            let read = read.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(read == expected(bytes), "{what}: wrong bytes");
            hours(&self.objects, 100);
            collected(&repo, &USUAL);
        }
        assert_eq!(names(&self.objects, "sessions/"), [""; 0], "{what}");
        assert_eq!(names(&self.objects, "condemned/"), [""; 0], "{what}");
    }
}

/// Makes a restore point that depends on the kept one and reuses all other data.
fn write(repo: &dyn Repository, parent: &str) -> String {
    let domain = repo.domain(DOMAIN).expect("a name");
    let blocks = (1..=4).map(|seed| data(1 + seed as usize, &noise(seed)));
    Maker::new(domain.as_ref(), 10).make(SIZE, blocks.collect(), Some(parent))
}

/// The disk of [`write`].
fn expected(parent: &[u8]) -> Vec<u8> {
    let mut disk = parent.to_vec();
    for seed in 1..=4 {
        let start = (1 + seed as usize) * CLUSTER;
        disk[start..start + CLUSTER].copy_from_slice(&noise(seed));
    }
    disk
}

#[test]
fn backup_beside_a_collection_at_any_call_is_whole() {
    for number in 0.. {
        let pair = Pair::new();
        let (objects, collector) = (Arc::clone(&pair.objects), pair.host(1));
        let reports = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&reports);
        let store = Beside::new(&pair.objects, number, move || {
            let repo = open(&objects, collector).expect("it opens");
            seen.lock().expect("one thread").push(collected(&repo, &USUAL));
        });
        let repo = open_beside(&store, pair.host(0)).expect("it opens");
        let new = write(repo.as_ref(), &pair.kept.0);
        pair.assert_sound(&new, &format!("call {number}"));
        if !store.is_done() {
            assert!(number > 20, "{number} calls");
            break;
        }
        let reports = reports.lock().expect("one thread");
        assert!(reports[0].all.packs > 3, "{reports:?}");
    }
}

#[test]
fn collection_beside_a_backup_at_any_call_is_safe() {
    for number in 0.. {
        let pair = Pair::new();
        let (objects, writer) = (Arc::clone(&pair.objects), pair.host(0));
        let parent = pair.kept.0.clone();
        let made = Arc::new(Mutex::new(None));
        let new = Arc::clone(&made);
        let store = Beside::new(&pair.objects, number, move || {
            let repo = open(&objects, writer).expect("it opens");
            *new.lock().expect("one thread") = Some(write(&repo, &parent));
        });
        let repo = open_beside(&store, pair.host(1)).expect("it opens");
        let report = collected(repo.as_ref(), &USUAL);
        let is_over = !store.is_done();
        assert!(!is_over || report.deleted.packs > 0, "{report:?}");
        drop(repo);
        let id = made.lock().expect("one thread").take();
        let id = id.unwrap_or_else(|| {
            let repo = open(&pair.objects, pair.host(0)).expect("it opens");
            write(&repo, &pair.kept.0)
        });
        pair.assert_sound(&id, &format!("call {number}"));
        if is_over {
            assert!(number > 20, "{number} calls");
            break;
        }
    }
}

/// The parent is removed and its data collected before the run reads the index.
#[test]
fn parent_that_was_removed_meanwhile_is_no_parent() {
    let pair = Pair::new();
    let repo = open(&pair.objects, pair.host(0)).expect("it opens");
    let domain = repo.domain(DOMAIN).expect("a name");
    let writer = domain.try_lock().expect("nobody else writes");
    let history = writer.history().expect("it can be read");
    let other = open(&pair.objects, pair.host(1)).expect("it opens");
    remove(&other, &pair.kept.0);
    let pending = writer.begin(PERIOD, moment(20));
    let pending = pending.expect("it begins");
    let disk = vmsnap::repo::NewDisk {
        target: "vda",
        size: SIZE,
        parent: history.get(&pair.kept.0),
        compression: vmsnap::model::compression::Compression::default(),
        stop: Stop::default(),
    };
    let error = pending.sink(&disk).map(drop).expect_err("it is refused");
    assert!(error.to_string().contains("was removed since"), "{error}");
    drop(pending);
    assert_eq!(names(&pair.objects, "sessions/"), [""; 0], "it was ended");
}

#[test]
fn deleted_session_is_an_error_before_the_commit() {
    let pair = Pair::new();
    let repo = open(&pair.objects, pair.host(0)).expect("it opens");
    let domain = repo.domain(DOMAIN).expect("a name");
    let writer = domain.try_lock().expect("nobody else writes");
    let history = writer.history().expect("it can be read");
    let pending = writer.begin(PERIOD, moment(20));
    let mut pending = pending.expect("it begins");
    let blocks = vec![data(0, &noise(9))];
    let manifest = Maker::new(domain.as_ref(), 20).fill(pending.as_ref(), SIZE, blocks, (&history, None));
    for name in names(&pair.objects, "sessions/") {
        pair.objects.remove(&name);
    }
    let points = names(&pair.objects, "points/");
    let error = pending.commit(&manifest).expect_err("it is refused");
    assert!(
        matches!(error, RepoError::Pack(PackError::SessionLost { .. })),
        "{error}"
    );
    assert_eq!(names(&pair.objects, "points/"), points);
}

/// A session that somebody deletes during the commit is noticed after it.
#[test]
fn session_deleted_during_the_commit_is_an_error() {
    let mut after_the_commit = 0;
    for number in 0.. {
        let pair = Pair::new();
        let objects = Arc::clone(&pair.objects);
        let store = Beside::new(&pair.objects, number, move || {
            for name in names(&objects, "sessions/") {
                objects.remove(&name);
            }
        });
        let repo = open_beside(&store, pair.host(0)).expect("it opens");
        let domain = repo.domain(DOMAIN).expect("a name");
        let writer = domain.try_lock().expect("nobody else writes");
        let history = writer.history().expect("it can be read");
        let pending = writer.begin(PERIOD, moment(20));
        let mut pending = pending.expect("it begins");
        let blocks = vec![data(0, &noise(9))];
        let manifest = Maker::new(domain.as_ref(), 20).fill(pending.as_ref(), SIZE, blocks, (&history, None));
        let before = names(&pair.objects, "points/").len();
        let committed = pending.commit(&manifest);
        let new = names(&pair.objects, "points/").len() - before;
        match committed {
            Ok(_) => assert_eq!(new, 1, "call {number}"),
            Err(RepoError::Pack(PackError::SessionLost { .. })) => assert_eq!(new, 0, "call {number}"),
            Err(RepoError::Pack(error @ PackError::CommittedAfterSession { .. })) => {
                assert_eq!(new, 1, "call {number}");
                let hint = error.hint().unwrap_or_default();
                assert!(hint.contains("verify --deep"), "{hint}");
                after_the_commit += 1;
            }
            Err(error) => panic!("call {number}: {error}"),
        }
        if !store.is_done() {
            break;
        }
    }
    assert!(after_the_commit > 0);
}

/// A commit whose answer is lost may still take effect, so its session protects it. The session of
/// a run that failed before is ended.
#[test]
fn session_of_a_doubtful_commit_stays() {
    let mut stayed = Vec::new();
    for number in 0.. {
        let pair = Pair::new();
        let repo = open(&pair.objects, pair.host(0)).expect("it opens");
        let domain = repo.domain(DOMAIN).expect("a name");
        let writer = domain.try_lock().expect("nobody else writes");
        let history = writer.history().expect("it can be read");
        let pending = writer.begin(PERIOD, moment(20));
        let mut pending = pending.expect("it begins");
        let blocks = vec![data(0, &noise(9))];
        let maker = Maker::new(domain.as_ref(), 20);
        let manifest = maker.fill(pending.as_ref(), SIZE, blocks, (&history, None));
        let refused = ObjectTrouble::Fails(ObjectErrorKind::Refused);
        pair.objects.trouble("put_if_absent", number, refused);
        let committed = pending.commit(&manifest);
        pair.objects.calm();
        drop(pending);
        if committed.is_ok() {
            break;
        }
        stayed.push(!names(&pair.objects, "sessions/").is_empty());
        hours(&pair.objects, 80);
        collected(&repo, &USUAL);
        assert_eq!(names(&pair.objects, "sessions/"), [""; 0], "it ends by its age");
    }
    assert_eq!(stayed.pop(), Some(true), "the commit is the last put");
    assert!(stayed.len() > 1 && !stayed.contains(&true), "{stayed:?}");
}

#[test]
fn unreadable_point_of_any_domain_forbids_a_collection() {
    let pair = Pair::new();
    let repo = open(&pair.objects, pair.host(0)).expect("it opens");
    let other = repo.domain("other").expect("a name");
    Maker::new(other.as_ref(), 5).make(SIZE, vec![data(0, &noise(7))], None);
    let own = names(&pair.objects, "points/");
    let assert_refused = |object: &str| {
        let repo = open(&pair.objects, pair.host(1)).expect("it opens");
        let before = names(&pair.objects, "packs/");
        let error = collect(&repo, &USUAL, &Stop::default()).expect_err("it is refused");
        assert!(error.to_string().contains(object), "{error}");
        assert!(error.hint().is_some(), "{error}");
        assert_eq!(names(&pair.objects, "packs/"), before);
        assert_eq!(names(&pair.objects, "sessions/"), [""; 0]);
    };
    for name in &own {
        let sound = pair.objects.content(name).expect("it is there");
        let mut damaged = sound.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        pair.objects.insert(name, &damaged);
        assert_refused(name);
        pair.objects.insert(name, &sound);
    }
    for unknown in ["points/x", "points/.hidden/y"] {
        pair.objects.insert(unknown, b"?");
        assert_refused(unknown);
        pair.objects.remove(unknown);
    }
    assert!(collected(&repo, &USUAL).deleted.packs > 0);
}

#[test]
fn collector_waits_for_a_run_of_another_host() {
    let pair = Pair::new();
    let repo = open(&pair.objects, pair.host(0)).expect("it opens");
    let domain = repo.domain(DOMAIN).expect("a name");
    let writer = domain.try_lock().expect("nobody else writes");
    let history = writer.history().expect("it can be read");
    let pending = writer.begin(PERIOD, moment(20));
    let mut pending = pending.expect("it begins");
    let collector = open(&pair.objects, pair.host(1)).expect("it opens");
    let report = collected(&collector, &USUAL);
    assert!(report.deleted.packs > 0, "condemned long before: {report:?}");
    let report = {
        hours(&pair.objects, 30);
        collected(&collector, &USUAL)
    };
    let process = format!("(process {})", std::process::id());
    let is_ours = |wait: &Waiting| matches!(wait, Waiting::Session(host) if host.ends_with(&process));
    assert!(report.waiting.iter().any(is_ours), "{report:?}");
    assert_eq!(report.deleted.packs, 0);
    let blocks = (1..=4).map(|seed| data(1 + seed as usize, &noise(seed)));
    let parent = Some(pair.kept.0.as_str());
    let maker = Maker::new(domain.as_ref(), 20);
    let manifest = maker.fill(pending.as_ref(), SIZE, blocks.collect(), (&history, parent));
    pending.commit(&manifest).expect("it is committed");
    let id = pending.id().to_owned();
    drop(pending);
    drop(writer);
    pair.assert_sound(&id, "afterwards");
}

#[test]
fn other_hosts_read_what_was_moved() {
    let pair = Pair::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let reader = open(&pair.objects, other_host(&folder)).expect("it opens");
    let domain = reader.domain(DOMAIN).expect("a name");
    let (id, bytes) = &pair.kept;
    assert!(read_through(domain.as_ref(), id).expect("it is sound") == *bytes);
    let collector = open(&pair.objects, pair.host(1)).expect("it opens");
    for _ in 0..3 {
        collected(&collector, &USUAL);
        hours(&pair.objects, 30);
    }
    // The reader's index still lists the old packs.
    let history = domain.history().expect("it can be read");
    let disk = domain.open_disk(&history, id, "vda", &Stop::default());
    let mut read = vec![0; bytes.len()];
    disk.expect("it opens").read_at(&mut read, 0).expect("it is read");
    assert!(read == *bytes);
}

#[test]
fn folders_of_images_have_nothing_to_collect() {
    let kind = crate::repositories::kinds::Folder::default();
    let repo = crate::repositories::kinds::Kind::repository(&kind);
    let collected = collect(repo.as_ref(), &USUAL, &Stop::default());
    assert_eq!(collected.expect("no error"), None);
}

/// A repository in a folder, for the command line: two restore points.
pub fn fill(folder: &Path, root: &Path) -> Vec<String> {
    let location = vmsnap::repo::PackLocation::Folder(root.to_owned());
    let stop = Stop::default();
    let pack = PackRepository::open(&location, &stop).expect("it is there");
    let repo = pack.unlocked(None, host(folder), &stop).expect("it opens");
    let domain = repo.domain(DOMAIN).expect("a name");
    let mut ids = Vec::new();
    for number in 1..=2 {
        let blocks = vec![data(0, &noise(number)), data(1, &noise(10 + number))];
        ids.push(Maker::new(domain.as_ref(), number as i64).make(SIZE, blocks, None));
    }
    ids
}
