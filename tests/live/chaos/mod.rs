//! Each process that takes part in a backup is killed at random: nothing that is kept is lost, and
//! the next run repairs the rest.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vmsnap::io::DiskStore;
use vmsnap::repo::History;
use vmsnap::repo::{FolderRepository, Repository};

use crate::cli_lab::{Change, Machine, Repo, has_job};
use crate::daemon::{Crash, Daemon};
use crate::leftovers;
use crate::process::{command, processes_with, run};
use crate::verbs::rng::Rng;

mod daemons;
mod machines;
mod runs;

const MIB: usize = 1 << 20;

/// The number of times that libvirtd may crash by itself in one test. 9.0 does so now and then;
/// more crashes would need an investigation.
const MOST_CRASHES: usize = 3;

/// Small disks, one of which ends within a cluster.
const DISKS: [usize; 2] = [4 * MIB, MIB + 512];

/// The content of a disk, as a digest of each 64 KiB.
type Clusters = Vec<blake3::Hash>;

fn clusters(bytes: &[u8]) -> Clusters {
    bytes.chunks(65536).map(blake3::hash).collect()
}

/// Runs the rounds of a test. Repeats a round during which libvirtd crashed by itself.
struct Rounds<'a> {
    daemon: &'a Daemon,
    crashes: Vec<Crash>,
}

impl<'a> Rounds<'a> {
    fn new(daemon: &'a Daemon) -> Rounds<'a> {
        Rounds {
            daemon,
            crashes: Vec::new(),
        }
    }

    /// Runs one round. Repeats it only if it failed and libvirtd died by a signal that the lab had
    /// not sent. The restore points from before must exist in any case.
    fn run(&mut self, chaos: &mut Chaos, mut round: impl FnMut(&mut Chaos)) {
        loop {
            let before = self.daemon.crashes().len();
            let Err(panic) = catch_unwind(AssertUnwindSafe(|| round(chaos))) else {
                return;
            };
            let crashes = self.daemon.crashes().split_off(before);
            if crashes.is_empty() {
                resume_unwind(panic);
            }
            println!("libvirtd has crashed by itself, so the round is repeated: {crashes:?}");
            self.crashes.extend(crashes);
            assert!(
                self.crashes.len() <= MOST_CRASHES,
                "libvirtd has crashed by itself more than {MOST_CRASHES} times: {:?}",
                self.crashes
            );
            self.daemon.revive();
            chaos.begin_anew();
        }
    }
}

impl Drop for Rounds<'_> {
    fn drop(&mut self) {
        println!("libvirtd has crashed by itself {} times", self.crashes.len());
    }
}

/// A domain, a repository, and the content of the disks at each restore point.
struct Chaos {
    machine: Machine,
    repo: Repo,
    rng: Rng,
    /// For each restore point, the digests of the disks' clusters.
    moments: BTreeMap<String, Vec<Clusters>>,
    /// The restore points that have already been restored and compared.
    proved: Vec<String>,
    /// Sockets, scratch files and folders of runs that did not finish.
    places: Vec<PathBuf>,
    /// The duration of an undisturbed run.
    length: Duration,
}

impl Chaos {
    fn new(daemon: &Daemon, label: &str) -> Chaos {
        let mut chaos = Chaos {
            machine: Machine::paused(daemon, label, &DISKS),
            repo: Repo::new(),
            rng: Rng::new(),
            moments: BTreeMap::new(),
            proved: Vec::new(),
            places: Vec::new(),
            length: Duration::ZERO,
        };
        chaos.machine.fill(0, 1);
        chaos.machine.fill(1, 2);
        chaos.machine.sync();
        chaos.run_well();
        chaos.scribble_and_sync();
        let started = Instant::now();
        chaos.run_well();
        chaos.length = started.elapsed();
        chaos
    }

    /// Continues after a round that a crash of libvirtd ended early. Checks that kept points are
    /// whole, and takes the present content of the disks as known.
    fn begin_anew(&mut self) {
        let known: Vec<String> = self.moments.keys().cloned().collect();
        if let Some(lost) = self.machine.domain.lost_qemu() {
            leftovers::end_process(lost);
        } else if self.is_active() {
            // QEMU writes its caches to the images when it closes them.
            self.machine.domain.destroy();
        }
        self.machine.wait_for_readers_to_end();
        for disk in 0..DISKS.len() {
            self.machine.learn(disk);
        }
        self.take_stock();
        // The disks may have changed since these points were made.
        let new = self.moments.keys().filter(|id| !known.contains(id));
        self.proved.extend(new.cloned());
        self.machine.domain.start_paused();
    }

    /// The guest writes at random places.
    fn scribble(&mut self) {
        if !self.is_active() {
            // Programs that a killed run has started must end first.
            self.machine.wait_for_readers_to_end();
        }
        for _ in 0..1 + self.rng.below(2) {
            let disk = self.rng.below(DISKS.len() as u64) as usize;
            let sectors = (DISKS[disk] / 512) as u64;
            let at = self.rng.below(sectors);
            let length = (1 + self.rng.below(300)).min(sectors - at);
            let change = match self.rng.below(4) {
                0 => Change::Zero,
                _ => Change::Data(self.rng.next() as u8),
            };
            self.machine
                .change(disk, at as usize * 512, length as usize * 512, change);
        }
    }

    /// The guest writes at random places and syncs. QEMU 7.2 may crash when a job is aborted, and
    /// then loses unwritten data.
    fn scribble_and_sync(&mut self) {
        self.scribble();
        self.machine.sync();
    }

    /// Sleeps for a random part of a run's duration, at most a little longer.
    fn wait_a_moment(&mut self) {
        let longest = self.length.as_micros() as u64 * 11 / 10;
        thread::sleep(Duration::from_micros(self.rng.below(longest)));
    }

    /// The domain's QEMU. Searching for the process is faster than asking libvirt.
    fn qemu(&self) -> Option<u32> {
        let mut found = processes_with(&format!("guest={},", self.machine.name()));
        assert!(found.len() <= 1, "{found:?}");
        Some(found.pop()?.0)
    }

    fn is_active(&self) -> bool {
        self.qemu().is_some()
    }

    fn history(&self) -> History {
        let repo = FolderRepository::open(&self.repo.root(), Arc::new(DiskStore)).expect("it is there");
        let domain = repo.domain(self.machine.name()).expect("a name that fits");
        domain.history().expect("it is readable")
    }

    /// Whether a run's job has begun: the run's folder then holds an image.
    fn is_copying(&self) -> bool {
        let leftovers = self.history().leftovers;
        leftovers.iter().any(|leftover| {
            std::path::Path::new(&leftover.location)
                .join("vda.qcow2")
                .exists()
        })
    }

    /// Checks what the run that just ended has left: a whole restore point, a journal entry, or
    /// nothing.
    fn take_stock(&mut self) {
        let history = self.history();
        assert_eq!(history.findings, [], "no finding about the folder");
        for kept in history.chains.points() {
            let id = &kept.point.id;
            assert_eq!(history.chains.faults(id), [""; 0], "{id} is whole");
            let now = || self.machine.disks.iter().map(|disk| clusters(disk)).collect();
            self.moments.entry(id.clone()).or_insert_with(now);
        }
        let listed = history.chains.points().len();
        assert_eq!(self.moments.len(), listed, "every kept restore point is listed");
        assert!(history.leftovers.len() <= 1, "{:?}", history.leftovers);
        self.places
            .extend(self.repo.unfinished().into_iter().flat_map(|begun| begun.places));
    }

    /// An ordinary run, which has to succeed.
    fn run_well(&mut self) {
        self.repo.back_up(self.machine.name(), &[]);
        let before = self.moments.len();
        self.take_stock();
        assert_eq!(self.moments.len(), before + 1);
    }

    /// Restores every restore point that has not been restored yet.
    fn prove(&mut self) {
        let history = self.history();
        for (id, expected) in &self.moments {
            if self.proved.contains(id) {
                continue;
            }
            let disks = &history.chains.get(id).expect("it is kept").point.disks;
            let folder = self.repo.restore(self.machine.name(), id, "raw");
            for (disk, expected) in ["vda", "vdb"].iter().zip(expected) {
                let bytes = std::fs::read(folder.join(format!("{disk}.raw"))).expect("it was restored");
                let found = clusters(&bytes);
                assert_eq!(found.len(), expected.len(), "{disk} of {id}");
                let differ: Vec<usize> = (0..found.len())
                    .filter(|at| found[*at] != expected[*at])
                    .collect();
                assert!(
                    differ.is_empty(),
                    "clusters {differ:?} of {disk} of {id} differ: {disks:#?}"
                );
            }
            std::fs::remove_dir_all(folder).expect("it is removed");
            self.proved.push(id.clone());
        }
    }

    /// Asserts that an ordinary run has left nothing of the killed runs.
    fn assert_clean(&self) {
        let machine = &self.machine;
        assert!(!self.is_active() || !has_job(&machine.domain), "a job is left");
        machine.assert_no_files_left(&self.repo, &self.places);
        let history = self.history();
        let points = history.chains.points().iter();
        let recorded: Vec<&str> = points
            .filter_map(|kept| Some(kept.point.checkpoint.as_ref()?.name.as_str()))
            .collect();
        for checkpoint in machine.checkpoints() {
            assert!(
                recorded.contains(&checkpoint.as_str()),
                "{checkpoint} belongs to no restore point"
            );
        }
    }

    /// Shuts the domain off and checks that every bitmap in its images belongs to a checkpoint.
    fn assert_no_strange_bitmaps(&self) {
        if self.is_active() {
            self.machine.domain.destroy();
        }
        let known = self.machine.checkpoints();
        for disk in 0..DISKS.len() {
            let image = self.machine.image(disk).display().to_string();
            let info = run(command("qemu-img", &["info", "--output=json", &image]));
            let info: serde_json::Value = serde_json::from_str(&info).expect("it is JSON");
            let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
            for bitmap in bitmaps.unwrap_or_default() {
                let name = bitmap["name"].as_str().expect("it has a name").to_owned();
                assert!(known.contains(&name), "{name} belongs to no checkpoint");
            }
        }
    }
}
