//! A domain whose restore points are in a pack repository in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmsnap::host::Host;
use vmsnap::io::{DiskStore, Store};
use vmsnap::ops::backup::{self, Options, Outcome};
use vmsnap::ops::{Context, Error, Result};
use vmsnap::repo::{ObjectStore, PackRepository, Repository, UnlockedHost, UnlockedPack};
use vmsnap::testkit::{CrashHost, CrashStore, Fuse, MemoryObjects};

use super::{WHERE, creation};
use crate::lab::{CLUSTER, Lab, copy_tree, folder_in_memory, tree};
use crate::repositories::pack::host;
use vmsnap::model::stop::Stop;
use vmsnap::repo::Protection;

pub const DOMAIN: &str = "vm1";
const DISKS: [&str; 2] = ["vda", "vdb"];
const SIZES: [usize; 2] = [20 * CLUSTER + 1536, 3 * CLUSTER];

/// The bytes of each disk.
pub type Disks = BTreeMap<&'static str, Vec<u8>>;

pub struct World {
    pub lab: Lab,
    pub objects: Arc<MemoryObjects>,
    /// The restore points that were made, with the disks they have to give back.
    pub moments: Vec<(String, Disks)>,
    writes: u8,
}

/// Opens a repository in memory on a host.
pub fn open(objects: &Arc<MemoryObjects>, host: UnlockedHost) -> vmsnap::repo::Result<UnlockedPack> {
    let stop = Stop::default();
    let objects = Arc::clone(objects) as Arc<dyn ObjectStore>;
    PackRepository::open_in(WHERE, objects, &stop)?.unlocked(None, host, &stop)
}

impl World {
    /// A domain with two disks, and an empty repository.
    pub fn new() -> World {
        World::of(Arc::new(MemoryObjects::default()))
    }

    /// The same in this object store.
    pub fn of(objects: Arc<MemoryObjects>) -> World {
        let creation = creation(Protection::None);
        PackRepository::create_in(WHERE, objects.as_ref(), &creation, &Stop::default()).expect("created");
        let folder = folder_in_memory();
        let repo = open(&objects, host(folder.path())).expect("it opens");
        let mut world = World {
            lab: Lab::of(folder, Box::new(repo)),
            objects,
            moments: Vec::new(),
            writes: 0,
        };
        world
            .lab
            .host
            .add_domain(DOMAIN, &[(DISKS[0], SIZES[0]), (DISKS[1], SIZES[1])]);
        world.guest_writes();
        world
    }

    /// An independent copy of this world.
    pub fn fork(&self) -> World {
        let objects = Arc::new(MemoryObjects::default());
        for name in self.objects.names() {
            objects.insert(&name, &self.objects.content(&name).expect("it is there"));
        }
        let folder = folder_in_memory();
        copy_tree(self.lab.folder.path(), folder.path());
        let repo = open(&objects, host(folder.path())).expect("it opens");
        let mut lab = Lab::of(folder, Box::new(repo));
        lab.host = self.lab.host.fork();
        lab.now = self.lab.now.clone();
        World {
            lab,
            objects,
            moments: self.moments.clone(),
            writes: self.writes,
        }
    }

    /// The guest writes to every disk and zeroes a part of it.
    pub fn guest_writes(&mut self) {
        self.writes += 1;
        let byte = self.writes;
        for (disk, size) in DISKS.into_iter().zip(SIZES) {
            let place = usize::from(byte) * 7 * CLUSTER % (size - 2 * CLUSTER);
            self.lab.host.disk(DOMAIN, disk, |disk| {
                disk.write(place, &vec![byte; CLUSTER]);
                disk.write(size - 600, &[byte; 600]);
                disk.zero(place + CLUSTER, 3000);
            });
        }
    }

    /// The current content of the disks.
    pub fn disks(&self) -> Disks {
        DISKS.map(|disk| (disk, self.lab.disk(DOMAIN, disk))).into()
    }

    /// Opens the repository again, as the next process does.
    pub fn reopen(&mut self) {
        let repo = open(&self.objects, host(self.lab.folder.path())).expect("it opens");
        self.lab.repo = Box::new(repo);
    }

    /// An undisturbed backup, after which the guest writes again.
    pub fn backup(&mut self) -> Outcome {
        self.reopen();
        let disks = self.disks();
        let outcome = self.lab.backup(DOMAIN).expect("it is not disturbed");
        self.moments.push((outcome.point.id.clone(), disks));
        self.guest_writes();
        outcome
    }

    /// A backup in a process that dies with the fuse.
    pub fn crash(&mut self, options: &Options, fuse: &Fuse) -> Result<Outcome> {
        self.lab.host.die_with(Some(fuse));
        let client = CrashHost::new(self.lab.host.clone(), fuse);
        let store: Arc<dyn Store> = Arc::new(CrashStore::new(fuse));
        let host = UnlockedHost {
            store,
            ..host(self.lab.folder.path())
        };
        let outcome = open(&self.objects, host)
            .map_err(|error| Error::of(DOMAIN, error))
            .and_then(|repo| self.backup_in(&client, &repo, options));
        self.lab.host.die_with(None);
        self.lab.pass(jiff::Span::new().minutes(10));
        outcome
    }

    fn backup_in(&self, host: &dyn Host, repo: &dyn Repository, options: &Options) -> Result<Outcome> {
        let context = Context {
            host,
            repo,
            now: self.lab.now.clone(),
            monitor: &self.lab.recorder,
            stop: self.lab.stop.clone(),
            random: &*self.lab.random,
        };
        backup::backup(DOMAIN, &context, options)
    }

    /// Checks that all restore points are there, and adds the one of a disturbed run if it exists.
    pub fn assert_kept(&mut self) {
        self.reopen();
        let history = self.lab.history(DOMAIN);
        assert!(history.findings.is_empty(), "{:?}", history.findings);
        let ids: Vec<&String> = history.kept.iter().map(|kept| &kept.manifest.point.id).collect();
        for (id, _) in &self.moments {
            assert!(ids.contains(&id), "{id} is lost");
        }
        let is_new = |id: &&&String| !self.moments.iter().any(|(known, _)| known == **id);
        let new: Vec<String> = ids.iter().filter(is_new).map(|id| (*id).clone()).collect();
        assert!(new.len() <= 1, "{new:?}");
        let disks = self.disks();
        self.moments.extend(new.into_iter().map(|id| (id, disks.clone())));
        self.assert_all_give_back();
    }

    /// Checks that every restore point gives back its disks.
    pub fn assert_all_give_back(&self) {
        for (id, disks) in &self.moments {
            for (disk, bytes) in disks {
                let restored = self.lab.restored(DOMAIN, id, disk);
                let restored = restored.unwrap_or_else(|error| panic!("{id} {disk}: {error}"));
                assert!(restored == *bytes, "{disk} of {id} is not what it was");
            }
        }
    }

    /// The next backup succeeds, and removes everything that a disturbed run has left.
    pub fn assert_next_backup_heals(&mut self) {
        self.guest_writes();
        self.backup();
        self.assert_all_give_back();
        assert!(!self.lab.host.has_job(DOMAIN), "a job is left");
        let history = self.lab.history(DOMAIN);
        assert_eq!(history.leftovers, []);
        let recorded: Vec<&str> = history
            .kept
            .iter()
            .filter_map(|kept| Some(kept.manifest.point.checkpoint.as_ref()?.name.as_str()))
            .collect();
        let domain = self.lab.host.domain(DOMAIN).expect("it is there");
        for found in self.lab.host.checkpoints(&domain).expect("they are listed") {
            assert!(recorded.contains(&found.name.as_str()), "{} is left", found.name);
        }
        let left = tree(self.lab.folder.path());
        assert!(!left.iter().any(|path| path.contains(".partial")), "{left:?}");
    }

    /// The host of this world.
    pub fn host(&self) -> UnlockedHost {
        host(self.lab.folder.path())
    }
}

/// Another host, which has nothing of its own yet.
pub fn other_host(folder: &tempfile::TempDir) -> UnlockedHost {
    UnlockedHost {
        store: Arc::new(DiskStore),
        ..host(folder.path())
    }
}
