//! Twenty hosts write into one repository, while others prune, collect, restore and copy.
//!
//! The seed of the random numbers is printed; `VMSNAP_TEST_SEED` repeats it. The order in which the
//! threads run is not repeated. The clock of the store follows the number of restore points, so a
//! slow machine sees the same history as a fast one.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use vmsnap::model::compression::Compression;
use vmsnap::model::stop::Stop;
use vmsnap::ops::collect::{Collection, collect};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::retention::Policy;
use vmsnap::ops::transfer::{Means, Options, Wanted, transfer};
use vmsnap::repo::{PackError, RepoError, Repository, UnlockedPack};
use vmsnap::testkit::{MemoryObjects, MemoryRepository};

use super::world::open;
use crate::lab::{CLUSTER, Lab, folder_in_memory};
use crate::repositories::kinds::{Maker, PERIOD, data, moment, read_through};
use crate::repositories::pack::{create, host};

const HOSTS: usize = 20;

/// How many restore points each host makes.
const ROUNDS: usize = 30;

/// A disk has this many ranges, each with one cluster of data. All data is one of few contents, so
/// that hosts share blocks.
const RANGES: usize = 4;
const RANGE: usize = 16 * CLUSTER;
const CONTENTS: u64 = 16;
const SIZE: u64 = (RANGES * RANGE) as u64;

/// After so many restore points there is a collection, and the clock moves on.
const PER_COLLECTION: usize = 3;

/// When the clock of the store stops. A session is lost after two days without a renewal, and a
/// thread that does not run for a moment must not lose its session.
const LAST: Timestamp = Timestamp::constant(44 * 60 * 60, 0);

/// The contents of the ranges of a disk.
type Disk = [u64; RANGES];

/// A restore point: its domain and its id.
type Key = (String, String);

/// Random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        let number = self.below(all.len().max(1) as u64) as usize;
        all.get(number).cloned()
    }
}

fn content(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; CLUSTER];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn is_disk(bytes: &[u8], disk: &Disk) -> bool {
    bytes.len() as u64 == SIZE
        && disk.iter().zip(bytes.chunks(RANGE)).all(|(seed, range)| {
            range[..CLUSTER] == content(*seed) && range[CLUSTER..].iter().all(|byte| *byte == 0)
        })
}

/// What the test knows of the repository.
#[derive(Default)]
struct Known {
    /// The restore points that nobody removes.
    kept: BTreeMap<Key, Disk>,
    /// All restore points that were ever committed.
    ever: HashMap<Key, Disk>,
}

struct Site {
    objects: Arc<MemoryObjects>,
    known: Mutex<Known>,
    committed: AtomicUsize,
    overtaken: AtomicUsize,
    deleted: AtomicUsize,
    restored: AtomicUsize,
    copied: AtomicUsize,
    writers: AtomicUsize,
}

impl Site {
    fn new(objects: MemoryObjects) -> Site {
        create(&objects);
        Site {
            objects: Arc::new(objects),
            known: Mutex::default(),
            committed: AtomicUsize::new(0),
            overtaken: AtomicUsize::new(0),
            deleted: AtomicUsize::new(0),
            restored: AtomicUsize::new(0),
            copied: AtomicUsize::new(0),
            writers: AtomicUsize::new(HOSTS),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no thread panics with it")
    }

    /// The repository as a command on this host sees it.
    fn open(&self, folder: &tempfile::TempDir) -> UnlockedPack {
        open(&self.objects, host(folder.path())).expect("it opens")
    }

    fn is_over(&self) -> bool {
        self.writers.load(Ordering::SeqCst) == 0
    }

    fn is_kept(&self, key: &Key) -> bool {
        self.known().kept.contains_key(key)
    }

    fn chosen(&self, random: &mut Random) -> Option<(Key, Disk)> {
        let known = self.known();
        let keys: Vec<&Key> = known.kept.keys().collect();
        let key = random.of(&keys)?.clone();
        let disk = known.kept[&key];
        Some((key, disk))
    }

    /// A host backs up its domain again and again. The last two share a domain.
    fn write(&self, number: usize, random: &mut Random, tick: &Sender<()>) {
        let folder = folder_in_memory();
        let name = format!("vm{}", number.min(HOSTS - 2));
        let mut sequence = 0;
        for _ in 0..ROUNDS {
            sequence += 1;
            let time = (number * 1000 + sequence) as i64;
            match self.backup(&folder, &name, time, random) {
                Ok(true) => {
                    self.committed.fetch_add(1, Ordering::SeqCst);
                    let _ = tick.send(());
                }
                Ok(false) => {}
                // Two hosts share the last domain: one of two runs at the same time is refused, or
                // its parent has been removed.
                Err(RepoError::Pack(PackError::Overtaken { .. })) if number >= HOSTS - 2 => {
                    self.overtaken.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) if number >= HOSTS - 2 && error.to_string().contains("was removed since") => {}
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }

    /// One backup. `false` if it was abandoned or killed.
    fn backup(
        &self,
        folder: &tempfile::TempDir,
        name: &str,
        time: i64,
        random: &mut Random,
    ) -> Result<bool, RepoError> {
        let repo = self.open(folder);
        let domain = repo.domain(name)?;
        let writer = domain.try_lock()?;
        let history = writer.history()?;
        let newest = history.chains.latest().map(|kept| kept.point.id.clone());
        let parent = newest.and_then(|id| {
            let known = self.known();
            let disk = known.ever.get(&(name.to_owned(), id.clone())).copied();
            disk.map(|disk| (id, disk))
        });
        let parent = parent.filter(|_| random.below(4) > 0);
        let mut disk: Disk = [0; RANGES].map(|_: u64| random.below(CONTENTS));
        let mut written: Vec<usize> = (0..RANGES).collect();
        if let Some((_, before)) = &parent {
            let changed = random.below(RANGES as u64) as usize;
            let seed = disk[changed];
            disk = *before;
            disk[changed] = seed;
            written = vec![changed];
        }
        let mut pending = writer.begin(PERIOD, moment(time))?;
        let blocks = written
            .into_iter()
            .map(|range| data(range * RANGE / CLUSTER, &content(disk[range])));
        let maker = Maker::new(domain.as_ref(), time);
        let parent = parent.as_ref().map(|(id, _)| id.as_str());
        let base = (&history, parent);
        let manifest = maker.try_fill(pending.as_ref(), SIZE, blocks.collect(), base)?;
        match random.below(60) {
            // The run gives up.
            0..=2 => return Ok(false),
            // The run is killed.
            3 => {
                pending.leave();
                return Ok(false);
            }
            _ => {}
        }
        pending.commit(&manifest)?;
        let key = (name.to_owned(), pending.id().to_owned());
        let mut known = self.known();
        known.ever.insert(key.clone(), disk);
        known.kept.insert(key, disk);
        Ok(true)
    }

    /// A host removes old restore points of all domains.
    fn prune(&self, random: &mut Random) {
        let folder = folder_in_memory();
        while !self.is_over() {
            let repo = self.open(&folder);
            let name = format!("vm{}", random.below(HOSTS as u64 - 1));
            let domain = repo.domain(&name).expect("a name");
            let writer = domain.try_lock().expect("no other run of this host");
            let history = writer.history().expect("it can be read");
            let points = history.chains.points();
            let old = points.len().saturating_sub(3);
            let ids: Vec<String> = points
                .iter()
                .take(old)
                .map(|kept| kept.point.id.clone())
                .collect();
            let Some(id) = random.of(&ids) else {
                thread::yield_now();
                continue;
            };
            // A restore point that was committed just now is known a moment later.
            if self.known().kept.remove(&(name.clone(), id.clone())).is_some() {
                let removed = writer.remove_point(&history, &id, moment(100_000));
                removed.unwrap_or_else(|error| panic!("{name} {id}: {error}"));
            }
        }
    }

    /// Two hosts collect, sometimes at once.
    fn collect(&self, random: &mut Random) {
        let folder = folder_in_memory();
        let repo = self.open(&folder);
        let how = Collection {
            grace: SignedDuration::from_hours(4),
            dry_run: random.below(8) == 0,
        };
        let report = collect(&repo, &how, &Stop::default());
        let report = report.unwrap_or_else(|error| panic!("{error}"));
        let deleted = report.expect("a pack repository").deleted.packs;
        self.deleted.fetch_add(deleted as usize, Ordering::SeqCst);
    }

    /// A host restores. What is removed meanwhile may fail, but no byte may be wrong.
    fn restore(&self, random: &mut Random) {
        let folder = folder_in_memory();
        while !self.is_over() {
            let Some((key, disk)) = self.chosen(random) else {
                thread::yield_now();
                continue;
            };
            let repo = self.open(&folder);
            let domain = repo.domain(&key.0).expect("a name");
            match read_through_known(domain.as_ref(), &key.1) {
                Ok(Some(bytes)) => {
                    assert!(is_disk(&bytes, &disk), "{key:?} has wrong bytes");
                    self.restored.fetch_add(1, Ordering::SeqCst);
                }
                Ok(None) => assert!(!self.is_kept(&key), "{key:?} is lost"),
                Err(error) => assert!(!self.is_kept(&key), "{key:?}: {error}"),
            }
        }
    }

    /// A host copies from the repository. A copy is right, or it does not exist.
    fn copy_out(&self, random: &mut Random) {
        let folder = folder_in_memory();
        let lab = Lab::in_memory();
        while !self.is_over() {
            let Some((key, _)) = self.chosen(random) else {
                thread::yield_now();
                continue;
            };
            let (repo, target) = (self.open(&folder), MemoryRepository::default());
            let copied = transfer(
                &key.0,
                &Means {
                    from: &repo,
                    to: &target,
                    now: lab.now.clone(),
                    monitor: &Silent,
                    stop: &lab.stop,
                },
                &copying(Wanted::At(key.1.clone())),
            );
            let failure = match copied {
                Ok(outcome) => outcome.failure.map(|failure| failure.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(failure) = failure {
                assert!(!self.is_kept(&key), "{key:?}: {failure}");
            }
            let domain = target.domain(&key.0).expect("a name");
            for kept in domain.history().expect("it can be read").kept {
                let id = kept.manifest.point.id;
                let bytes = read_through(domain.as_ref(), &id).expect("a copy is whole");
                let disk = self.known().ever[&(key.0.clone(), id)];
                assert!(is_disk(&bytes, &disk), "a copy has wrong bytes");
                self.copied.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// A host copies another repository into this one, as far as it has grown.
    fn copy_in(&self, random: &mut Random, tick: &Sender<()>) {
        let (own, folder) = (MemoryRepository::default(), folder_in_memory());
        let lab = Lab::in_memory();
        let domain = own.domain("copied").expect("a name");
        let mut number = 50_000;
        while !self.is_over() {
            number += 1;
            let disk: Disk = [0; RANGES].map(|_: u64| random.below(CONTENTS));
            let blocks = (0..RANGES).map(|range| data(range * RANGE / CLUSTER, &content(disk[range])));
            let id = Maker::new(domain.as_ref(), number).make(SIZE, blocks.collect(), None);
            let repo = self.open(&folder);
            let means = Means {
                from: &own,
                to: &repo,
                now: lab.now.clone(),
                monitor: &Silent,
                stop: &lab.stop,
            };
            let copied = transfer("copied", &means, &copying(Wanted::All));
            let copied = copied.unwrap_or_else(|error| panic!("{error}"));
            assert!(copied.failure.is_none(), "{:?}", copied.failure);
            let key = ("copied".to_owned(), id);
            let mut known = self.known();
            known.ever.insert(key.clone(), disk);
            known.kept.insert(key, disk);
            drop(known);
            let _ = tick.send(());
        }
    }

    /// In the end every kept restore point gives back its disk, everything passes a deep
    /// verification, and nothing is left of any run.
    fn assert_sound(&self) {
        for _ in 0..4 {
            self.objects.pass(SignedDuration::from_hours(100));
            self.collect(&mut Random(1));
        }
        let folder = folder_in_memory();
        let repo = self.open(&folder);
        let known = self.known();
        for (key, disk) in &known.kept {
            let domain = repo.domain(&key.0).expect("a name");
            let bytes = read_through(domain.as_ref(), &key.1);
            let bytes = bytes.unwrap_or_else(|error| panic!("{key:?}: {error}"));
            assert!(is_disk(&bytes, disk), "{key:?} has wrong bytes");
        }
        let names = repo.domains().expect("they are listed");
        let lab = Lab::of(folder, Box::new(repo));
        for name in &names {
            let history = lab.history(name);
            assert!(history.findings.is_empty(), "{:?}", history.findings);
            for kept in &history.kept {
                let key = (name.clone(), kept.manifest.point.id.clone());
                assert!(known.kept.contains_key(&key), "{key:?} was removed");
            }
            lab.assert_verified(name);
        }
        let left = |name: &&String| name.starts_with("sessions/") || name.starts_with("condemned/");
        let names = self.objects.names();
        assert_eq!(names.iter().find(left), None);
    }
}

fn copying(wanted: Wanted) -> Options {
    Options {
        wanted,
        policy: Policy::default(),
        compression: Compression::default(),
        wait: Duration::ZERO,
    }
}

/// As [`read_through`]; `None` if the history does not have the restore point.
fn read_through_known(
    domain: &dyn vmsnap::repo::DomainRepository,
    id: &str,
) -> Result<Option<Vec<u8>>, RepoError> {
    match domain.history()?.get(id) {
        Some(_) => read_through(domain, id).map(Some),
        None => Ok(None),
    }
}

fn run(objects: MemoryObjects) {
    let seed = match std::env::var("VMSNAP_TEST_SEED") {
        Ok(seed) => seed.parse().expect("VMSNAP_TEST_SEED is a number"),
        Err(_) => 20_261_128,
    };
    println!("VMSNAP_TEST_SEED={seed}");
    let site = &Site::new(objects);
    let (tick, ticks) = channel();
    let random = |number: usize| Random(seed ^ ((number as u64) << 32));
    thread::scope(|scope| {
        for number in 0..HOSTS {
            let tick = tick.clone();
            scope.spawn(move || {
                // Also if it fails, so that the others end.
                let _end = Ended(&site.writers);
                site.write(number, &mut random(number), &tick);
            });
        }
        scope.spawn(move || site.prune(&mut random(100)));
        for number in 200..202 {
            scope.spawn(move || site.restore(&mut random(number)));
        }
        scope.spawn(move || site.copy_out(&mut random(300)));
        scope.spawn(move || site.copy_in(&mut random(301), &tick));
        scope.spawn(move || {
            let mut random = random(400);
            let mut waiting = 0;
            while !site.is_over() {
                match ticks.recv_timeout(Duration::from_millis(50)) {
                    Ok(()) => waiting += 1,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                if waiting < PER_COLLECTION {
                    continue;
                }
                waiting = 0;
                if site.objects.now() < LAST {
                    let hours = 1 + random.below(3) as i64;
                    site.objects.pass(SignedDuration::from_hours(hours));
                }
                let mut other = Random(random.below(u64::MAX));
                match random.below(4) {
                    0 => thread::scope(|scope| {
                        scope.spawn(|| site.collect(&mut other));
                        site.collect(&mut random);
                    }),
                    _ => site.collect(&mut random),
                }
            }
        });
    });
    let counts = [
        &site.committed,
        &site.overtaken,
        &site.deleted,
        &site.restored,
        &site.copied,
    ];
    let [committed, overtaken, deleted, restored, copied] = counts.map(|count| count.load(Ordering::SeqCst));
    println!(
        "{committed} restore points, {overtaken} overtaken runs, {deleted} packs deleted, {restored} restores, {copied} copies"
    );
    assert!(committed > HOSTS * ROUNDS / 2 && restored > 0 && copied > 0 && deleted > 0);
    site.assert_sound();
}

/// Counts a writer as ended when it is dropped.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn twenty_hosts_write_beside_everything_else() {
    run(MemoryObjects::default());
}

#[test]
fn twenty_hosts_write_where_conditions_are_ignored() {
    let objects = MemoryObjects::default();
    objects.ignore_conditions();
    run(objects);
}
