//! A domain with restore points, and the checks after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use vmsnap::host::Host;
use vmsnap::io::DiskStore;
use vmsnap::model::firmware::Tpm;
use vmsnap::model::restore_point::Level;
use vmsnap::model::tpm_state::{TpmFile, TpmState};
use vmsnap::ops::backup::{self, Options, Outcome};
use vmsnap::ops::{Context, Error, Result};
use vmsnap::repo::{FolderRepository, History};
use vmsnap::testkit::{Blow, CrashHost, CrashStore, Fuse};

use crate::lab::{CLUSTER, InFolder, Lab, tree};

pub const DOMAIN: &str = "vm1";
/// The period that a prune in [`World::due_for_pruning`] deletes.
pub const OCTOBER: &str = "vmsnap-backup-monthly-2026-10";
const DISKS: [&str; 2] = ["vda", "vdb"];
const SIZE: usize = 2 * CLUSTER + 1536;
/// The size of a disk whose full image is larger than some incremental ones together.
const LARGE: usize = 30 * CLUSTER + 1536;

/// The file with the state of the domain's TPM.
pub const TPM_FILE: &str = "tpm2-00.permall";

/// The bytes of each disk.
pub type Disks = BTreeMap<&'static str, Vec<u8>>;

pub struct World {
    pub lab: Lab,
    /// The restore points that were made, with the disks they have to give back.
    pub moments: Vec<Moment>,
    writes: u8,
    /// Whether files can share their space on its file system.
    clones: bool,
}

#[derive(Clone)]
pub struct Moment {
    pub id: String,
    period: String,
    pub disks: Disks,
    /// The files of its folder.
    files: BTreeMap<String, Vec<u8>>,
}

impl World {
    /// A domain with two disks, and no restore point.
    pub fn new() -> World {
        let lab = Lab::in_memory();
        let disks = DISKS.map(|disk| (disk, SIZE));
        lab.host.add_domain(DOMAIN, &disks);
        lab.host.set_nvram(DOMAIN, b"variables");
        let tpm = Tpm {
            version: "2.0".to_owned(),
            ..Tpm::default()
        };
        lab.host.add_tpm(DOMAIN, tpm);
        let file = TpmFile {
            name: TPM_FILE.to_owned(),
            content: b"keys".to_vec(),
            owner: (0, 0),
            changed: 0,
        };
        let state = TpmState {
            files: vec![file],
            is_whole: true,
        };
        lab.host.set_tpm_state(DOMAIN, Ok(Some(state)));
        lab.host.set_tpm_folder(&tpm_folder(&lab));
        let mut world = World {
            lab,
            moments: Vec::new(),
            writes: 0,
            clones: false,
        };
        world.guest_writes();
        world
    }

    /// The same with a first disk that is large and full of data that cannot be compressed: a merge
    /// continues its full image.
    pub fn large() -> World {
        let lab = Lab::in_memory();
        lab.host
            .add_domain(DOMAIN, &[(DISKS[0], LARGE), (DISKS[1], SIZE)]);
        lab.host.set_nvram(DOMAIN, b"variables");
        let mut noise = vec![0; LARGE];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        lab.host.disk(DOMAIN, DISKS[0], |disk| disk.write(0, &noise));
        let mut world = World {
            lab,
            moments: Vec::new(),
            writes: 0,
            clones: false,
        };
        world.guest_writes();
        world
    }

    /// The same world on a file system whose files can share their space.
    #[must_use]
    pub fn cloning(self) -> World {
        World { clones: true, ..self }
    }

    /// The store of a process that can be killed.
    pub fn store(&self, fuse: &Fuse) -> CrashStore {
        self.with_clones(CrashStore::new(fuse))
    }

    /// The store of a machine that can lose its power.
    pub fn store_with_power(&self, fuse: &Fuse) -> CrashStore {
        let store = CrashStore::with_power(fuse, self.lab.folder.path());
        self.with_clones(store.expect("it can be read"))
    }

    fn with_clones(&self, store: CrashStore) -> CrashStore {
        match self.clones {
            true => store.cloning(),
            false => store,
        }
    }

    /// A world whose next backup begins a new period and may prune the one before.
    pub fn due_for_pruning() -> World {
        let mut world = World::new();
        world.lab.at("2026-10-20T02:00:00+02:00[Europe/Berlin]");
        world.backup(&Lab::options());
        world.backup(&Lab::options());
        world.lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
        world
    }

    /// An independent copy of this world.
    pub fn fork(&self) -> World {
        let lab = self.lab.fork();
        lab.host.set_tpm_folder(&tpm_folder(&lab));
        World {
            lab,
            moments: self.moments.clone(),
            writes: self.writes,
            clones: self.clones,
        }
    }

    /// The guest writes to every disk and zeroes a part of it.
    pub fn guest_writes(&mut self) {
        self.writes += 1;
        let (byte, place) = (self.writes, usize::from(self.writes) % 2 * CLUSTER);
        for disk in DISKS {
            self.lab.host.disk(DOMAIN, disk, |disk| {
                disk.write(place, &vec![byte; CLUSTER]);
                disk.write(SIZE - 600, &[byte; 600]);
                disk.zero(place + 5000, 3000);
            });
        }
    }

    /// The current content of the disks.
    pub fn disks(&self) -> Disks {
        DISKS.map(|disk| (disk, self.lab.disk(DOMAIN, disk))).into()
    }

    /// An undisturbed backup, after which the guest writes again.
    pub fn backup(&mut self, options: &Options) -> Outcome {
        self.reopen();
        let disks = self.disks();
        let outcome = self
            .lab
            .backup_with(DOMAIN, options)
            .expect("it is not disturbed");
        self.moments.push(Moment {
            id: outcome.point.id.clone(),
            period: outcome.point.period.clone(),
            disks,
            files: files_of(&outcome.dir()),
        });
        self.guest_writes();
        outcome
    }

    /// A backup in a process that dies with the fuse.
    pub fn crash(&mut self, options: &Options, fuse: &Fuse, store: CrashStore) -> Result<Outcome> {
        self.crash_in(fuse, store, |context| backup::backup(DOMAIN, context, options))
    }

    /// Runs `work` in a process that dies with the fuse.
    pub fn crash_in<T>(
        &mut self,
        fuse: &Fuse,
        store: CrashStore,
        work: impl FnOnce(&Context) -> Result<T>,
    ) -> Result<T> {
        self.lab.host.die_with(Some(fuse));
        let host = CrashHost::new(self.lab.host.clone(), fuse);
        let outcome = FolderRepository::open_or_create(&self.root(), Arc::new(store))
            .map_err(|error| Error::of(DOMAIN, error))
            .and_then(|repo| {
                let context = Context {
                    host: &host,
                    repo: &repo,
                    now: self.lab.now.clone(),
                    monitor: &self.lab.recorder,
                    stop: self.lab.stop.clone(),
                    random: &*self.lab.random,
                };
                work(&context)
            });
        self.lab.host.die_with(None);
        self.lab.pass(jiff::Span::new().minutes(10));
        outcome
    }

    /// Opens the repository again, as the next process does. After a power cut it may be another
    /// folder.
    pub fn reopen(&mut self) {
        let opened = FolderRepository::open_or_create(&self.root(), Arc::new(DiskStore));
        self.lab.repo = Box::new(opened.expect("it can be opened"));
    }

    pub fn root(&self) -> std::path::PathBuf {
        self.lab.folder.path().join("backups")
    }

    /// Compares the repository with its state before the crash, and adds the restore point of the
    /// crashed run if it exists.
    ///
    /// `doomed` is the period that the run was to delete: all its restore points may be missing.
    pub fn assert_kept(&mut self, doomed: Option<&str>) {
        if !self.root().exists() {
            // An interrupted first backup may leave no repository at all.
            assert!(self.moments.is_empty());
            return;
        }
        let history = self.lab.history(DOMAIN);
        assert!(history.findings.is_empty(), "{:?}", history.findings);
        self.drop_doomed(&history, doomed);
        let listed: BTreeSet<&str> = ids(&history).collect();
        for moment in &self.moments {
            assert!(listed.contains(moment.id.as_str()), "{} is lost", moment.id);
        }
        let is_new = |id: &&str| !self.moments.iter().any(|moment| moment.id == **id);
        let new: Vec<String> = listed.into_iter().filter(is_new).map(str::to_owned).collect();
        assert!(new.len() <= 1, "{new:?}");
        let is_new = !new.is_empty();
        if let Some(id) = new.into_iter().next() {
            let kept = history.get(&id).expect("it is listed");
            let disks = self.disks();
            self.moments.push(Moment {
                id,
                period: kept.manifest.point.period.clone(),
                disks,
                files: files_of(&kept.dir()),
            });
        }
        for moment in &self.moments {
            let kept = history.get(&moment.id).expect("it is listed");
            // Once a restore point exists, the run's journal entry in its folder has no effect.
            let mut files = files_of(&kept.dir());
            files.remove("intent.json");
            // A pin comes and goes.
            files.remove("pinned.json");
            files.remove("pinned.json.new");
            let mut before = moment.files.clone();
            before.remove("intent.json");
            assert!(files == before, "the files of {} have changed", moment.id);
            assert_eq!(history.chains.faults(&moment.id), [] as [String; 0]);
        }
        // The older points were checked earlier, and their files have not changed.
        if let Some(moment) = self.moments.last().filter(|_| is_new) {
            self.assert_gives_back(moment);
        }
    }

    fn drop_doomed(&mut self, history: &History, doomed: Option<&str>) {
        let (of_doomed, others): (Vec<Moment>, Vec<Moment>) = std::mem::take(&mut self.moments)
            .into_iter()
            .partition(|moment| Some(moment.period.as_str()) == doomed);
        self.moments = others;
        if of_doomed.iter().any(|moment| history.get(&moment.id).is_some()) {
            self.moments.splice(0..0, of_doomed);
        }
    }

    fn assert_gives_back(&self, moment: &Moment) {
        for (disk, bytes) in &moment.disks {
            let restored = self.lab.restored(DOMAIN, &moment.id, disk);
            let restored = restored.unwrap_or_else(|error| panic!("{} {disk}: {error}", moment.id));
            assert!(restored == *bytes, "{disk} of {} is not what it was", moment.id);
        }
    }

    /// Checks that every restore point gives back its disks.
    pub fn assert_all_give_back(&self) {
        self.moments
            .iter()
            .for_each(|moment| self.assert_gives_back(moment));
    }

    /// The next ordinary backup succeeds, is correct, and removes everything that the crash left.
    pub fn assert_next_backup_heals(&mut self, options: &Options) -> Level {
        self.guest_writes();
        // The program opens or creates the repository in the same way.
        FolderRepository::open_or_create(&self.root(), Arc::new(DiskStore)).expect("it is there or made");
        let outcome = self.backup(options);
        let latest = self.moments.last().expect("it was made");
        self.assert_gives_back(latest);
        assert_eq!(
            outcome.prune.as_ref().map(is_failed),
            options.prune.then_some(false)
        );

        let lab = &self.lab;
        assert!(!lab.host.has_job(DOMAIN), "a job is left");
        let history = lab.history(DOMAIN);
        let recorded: BTreeSet<&str> = history
            .kept
            .iter()
            .filter_map(|kept| kept.manifest.point.checkpoint.as_ref())
            .map(|checkpoint| checkpoint.name.as_str())
            .collect();
        let domain = lab.host.domain(DOMAIN).expect("it is there");
        let checkpoints = lab.host.checkpoints(&domain).expect("they are listed");
        let names: BTreeSet<&str> = checkpoints.iter().map(|found| found.name.as_str()).collect();
        assert!(names.is_subset(&recorded), "{names:?} besides {recorded:?}");
        for disk in DISKS {
            let bitmaps = lab.host.disk(DOMAIN, disk, |disk| disk.bitmap_names());
            let bitmaps: BTreeSet<&str> = bitmaps.iter().map(String::as_str).collect();
            assert_eq!(bitmaps, names, "the bitmaps of {disk} match the checkpoints");
        }
        let left: Vec<String> = tree(lab.folder.path())
            .into_iter()
            .filter(|path| path.contains(".partial") || path.contains(".removing-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        outcome.point.level
    }

    /// The number of the domain's checkpoints.
    pub fn checkpoints(&self) -> usize {
        let domain = self.lab.host.domain(DOMAIN).expect("it is there");
        self.lab.host.checkpoints(&domain).expect("they are listed").len()
    }
}

/// libvirt's folder with the states of TPMs.
pub fn tpm_folder(lab: &Lab) -> std::path::PathBuf {
    lab.folder.path().join("swtpm")
}

fn is_failed(outcome: &backup::PruneOutcome) -> bool {
    matches!(outcome, backup::PruneOutcome::Failed(_))
}

fn ids(history: &History) -> impl Iterator<Item = &str> {
    history.kept.iter().map(|kept| kept.manifest.point.id.as_str())
}

/// The files of a folder with their bytes.
fn files_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("a folder");
    let files = entries.map(|entry| entry.expect("an entry")).map(|entry| {
        let bytes = fs::read(entry.path()).expect("a file");
        (entry.file_name().to_string_lossy().into_owned(), bytes)
    });
    files.collect()
}

/// The steps of an undisturbed run.
pub fn steps_of(mut world: World, options: &Options) -> Vec<String> {
    let fuse = Fuse::default();
    world
        .crash(options, &fuse, CrashStore::new(&fuse))
        .expect("it is not disturbed");
    fuse.steps()
}

/// Every step combined with each of these ways to end there.
pub fn every_end<'a>(steps: &[String], blows: &'a [Blow]) -> impl Iterator<Item = (usize, Blow)> + 'a {
    (0..steps.len()).flat_map(move |number| blows.iter().map(move |blow| (number, *blow)))
}

/// Runs `work`, and prints the step of the run if an assertion in it fails.
pub fn at_step<T>(steps: &[String], number: usize, how: &dyn std::fmt::Debug, work: impl FnOnce() -> T) -> T {
    struct PrintOnPanic(String);
    impl Drop for PrintOnPanic {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("{}", self.0);
            }
        }
    }
    let step = steps.get(number).map_or("after the last", String::as_str);
    let _printer = PrintOnPanic(format!(
        "this was step {number} of {} ({step}), {how:?}",
        steps.len()
    ));
    work()
}
