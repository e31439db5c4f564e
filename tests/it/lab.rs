//! A simulated hypervisor, a repository in a temporary folder, and a clock that the test sets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{Span, Zoned};
use vmsnap::host::{Host, Places};
use vmsnap::image::chain::{ChainImage, ChainSource};
use vmsnap::io::{DiskStore, Store};
use vmsnap::model::block::{BlockSource, Content};
use vmsnap::model::compression::Compression;
use vmsnap::model::left_out::NOTHING_EXCLUDED;
use vmsnap::model::period::GroupBy;
use vmsnap::model::stop::Stop;
use vmsnap::ops::backup::{self, Options, Outcome, Preview};
use vmsnap::ops::journal::JournalEntry;
use vmsnap::ops::restore::{self, Format};
use vmsnap::ops::status::{DomainStatus, Subject, status};
use vmsnap::ops::verify;
use vmsnap::ops::{Context, Monitor, PlaceWishes, Result, compare, copy};
use vmsnap::repo::{FolderRepository, History, Kept, Leftover, Repository};
use vmsnap::testkit::{Recorder, SimHost};

pub const CLUSTER: usize = 65536;

/// The checkpoint of a killed run.
pub const DEAD: &str = "virtnbdbackup.1793600000999999999999999";

/// The socket on which the job of a killed run offers its disks.
const DEAD_SOCKET: &str = "/run/dead.sock";

/// The names of the checkpoints that a lab's first backups make, including failed ones, unless the
/// test changes the date.
pub const NAMES: [&str; 6] = [
    "virtnbdbackup.1793667600000000000000000",
    "virtnbdbackup.1793668200000000000000001",
    "virtnbdbackup.1793668800000000000000002",
    "virtnbdbackup.1793669400000000000000003",
    "virtnbdbackup.1793670000000000000000004",
    "virtnbdbackup.1793670600000000000000005",
];

pub struct Lab {
    pub host: SimHost,
    pub folder: tempfile::TempDir,
    pub repo: Box<dyn Repository>,
    pub now: Zoned,
    pub recorder: Recorder,
    pub stop: Stop,
    /// The checkpoints that backups have made, oldest first.
    pub made: Vec<String>,
    /// The number of random numbers drawn.
    drawn: Arc<AtomicU64>,
    /// Returns the next number, counted instead of random.
    pub random: Box<dyn Fn() -> u64 + Send + Sync>,
}

fn counting(drawn: &Arc<AtomicU64>) -> Box<dyn Fn() -> u64 + Send + Sync> {
    let drawn = Arc::clone(drawn);
    Box::new(move || drawn.fetch_add(1, Ordering::Relaxed))
}

impl Lab {
    pub fn new() -> Lab {
        Lab::with_store(Arc::new(DiskStore))
    }

    pub fn with_store(store: Arc<dyn Store>) -> Lab {
        Lab::in_folder(tempfile::tempdir().expect("a temporary folder"), store)
    }

    /// A lab on a file system in memory if there is one, for tests that sync thousands of times.
    pub fn in_memory() -> Lab {
        Lab::in_folder(folder_in_memory(), Arc::new(DiskStore))
    }

    /// A lab on a file system that is not in memory.
    pub fn on_disk() -> Lab {
        let folder = tempfile::tempdir_in("/var/tmp").expect("a temporary folder");
        Lab::in_folder(folder, Arc::new(DiskStore))
    }

    /// A lab with a full and two incremental restore points of a domain with one disk.
    pub fn with_three_points() -> Lab {
        Lab::with_points_of(&Lab::options())
    }

    /// The same made with these options.
    pub fn with_points_of(options: &Options) -> Lab {
        let mut lab = Lab::new();
        lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
        for round in 0..3u8 {
            lab.host
                .disk("vm1", "vda", |disk| disk.write(0, &[round + 1; 3000]));
            lab.backup_with("vm1", options).expect("a restore point");
        }
        lab
    }

    /// An independent copy of this lab.
    pub fn fork(&self) -> Lab {
        let folder = folder_in_memory();
        copy_tree(self.folder.path(), folder.path());
        let root = folder.path().join("backups");
        let drawn = Arc::new(AtomicU64::new(self.drawn.load(Ordering::Relaxed)));
        Lab {
            host: self.host.fork(),
            repo: Box::new(
                FolderRepository::open(&root, Arc::new(DiskStore)).expect("the copied repository"),
            ),
            folder,
            now: self.now.clone(),
            recorder: Recorder::default(),
            stop: Stop::default(),
            made: self.made.clone(),
            random: counting(&drawn),
            drawn,
        }
    }

    fn in_folder(folder: tempfile::TempDir, store: Arc<dyn Store>) -> Lab {
        let root = folder.path().join("backups");
        let repo = FolderRepository::open_or_create(&root, store).expect("a new repository");
        Lab::of(folder, Box::new(repo))
    }

    /// A lab with this repository.
    pub fn of(folder: tempfile::TempDir, repo: Box<dyn Repository>) -> Lab {
        let drawn = Arc::default();
        Lab {
            host: SimHost::default(),
            folder,
            repo,
            now: "2026-11-03T02:00:00+01:00[Europe/Berlin]"
                .parse()
                .expect("a time"),
            recorder: Recorder::default(),
            stop: Stop::default(),
            made: Vec::new(),
            random: counting(&drawn),
            drawn,
        }
    }

    pub fn options() -> Options {
        Options {
            freeze: None,
            ..Options::default()
        }
    }

    /// The options of [`Lab::options`] with `--compress none`: images contain the guest's bytes
    /// unchanged.
    pub fn plain() -> Options {
        Options {
            compression: Compression::None,
            ..Lab::options()
        }
    }

    /// The options of [`Lab::options`] with `--prune`.
    pub fn pruning() -> Options {
        Options {
            prune: true,
            ..Lab::options()
        }
    }

    /// The context of a verb, with this monitor.
    pub fn context<'a>(&'a self, monitor: &'a dyn Monitor) -> Context<'a> {
        Context {
            host: &self.host,
            repo: self.repo.as_ref(),
            now: self.now.clone(),
            monitor,
            stop: self.stop.clone(),
            random: &*self.random,
        }
    }

    pub fn backup(&mut self, domain: &str) -> Result<Outcome> {
        self.backup_with(domain, &Lab::options())
    }

    pub fn backup_with(&mut self, domain: &str, options: &Options) -> Result<Outcome> {
        let outcome = backup::backup(domain, &self.context(&self.recorder), options);
        let made = outcome
            .iter()
            .filter_map(|outcome| outcome.point.checkpoint.as_ref());
        self.made.extend(made.map(|made| made.name.clone()));
        self.pass(Span::new().minutes(10));
        outcome
    }

    /// The subject of a status, grouped by month, with the repository.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            host: &self.host,
            repo: Some(self.repo.as_ref()),
            group_by: GroupBy::Month,
            full: vmsnap::model::level::FullRule::Period,
            today: self.now.date(),
            store_decrypted: false,
            exclude: &NOTHING_EXCLUDED,
        }
    }

    /// The status of a domain.
    pub fn status(&self, domain: &str) -> DomainStatus {
        status(domain, &self.subject()).expect("a status")
    }

    /// Options to compare every cluster.
    pub fn comparing() -> compare::Options {
        compare::Options {
            sample: None,
            seed: 1,
            places: PlaceWishes::default(),
            wait: Duration::ZERO,
        }
    }

    /// Options to restore all disks of the newest restore point into a new folder.
    pub fn restoring(&self) -> restore::Options {
        restore::Options {
            at: "latest".into(),
            to: self.free_path(),
            pool: None,
            disks: Vec::new(),
            format: None,
            define: None,
        }
    }

    /// The means of a restore, with this monitor.
    pub fn means<'a>(&'a self, monitor: &'a dyn Monitor, stop: &'a Stop) -> restore::Means<'a> {
        restore::Means {
            repo: self.repo.as_ref(),
            store: &DiskStore,
            host: None,
            monitor,
            stop,
        }
    }

    /// The repository's folder.
    pub fn root(&self) -> PathBuf {
        self.repo.location().into()
    }

    /// The preview of a backup.
    pub fn preview(&self, domain: &str) -> Result<Preview> {
        backup::preview(domain, &self.context(&self.recorder), &Lab::options())
    }

    pub fn at(&mut self, time: &str) {
        self.now = time.parse().expect("a time");
    }

    pub fn pass(&mut self, time: Span) {
        self.now = self.now.checked_add(time).expect("in range");
    }

    /// Every restore point of a domain passes a deep verification.
    pub fn assert_verified(&self, domain: &str) {
        let options = verify::Options {
            which: verify::Which::All,
            deep: true,
            verified_since: None,
            now: self.now.timestamp(),
        };
        let outcome = verify::verify(domain, self.repo.as_ref(), &options, &self.recorder, &self.stop);
        let outcome = outcome.expect("it is verified");
        assert!(outcome.is_sound(), "{outcome:?}");
    }

    pub fn history(&self, domain: &str) -> History {
        let repository = self.repo.domain(domain).expect("a name that fits");
        repository.history().expect("a readable folder")
    }

    /// The id of the newest restore point.
    pub fn latest(&self, domain: &str) -> String {
        let history = self.history(domain);
        let latest = history.chains.latest().expect("there are some");
        latest.point.id.clone()
    }

    /// Asserts that the newest restore point gives back the current content of the disk.
    pub fn assert_gives_back(&self, domain: &str, disk: &str) {
        let restored = self.restored(domain, "latest", disk).expect("it can be restored");
        let held = self.disk(domain, disk);
        assert_eq!(restored.len(), held.len(), "{domain} {disk}");
        let differs = restored.iter().zip(&held).position(|(a, b)| a != b);
        assert_eq!(
            differs, None,
            "{domain} {disk}: the offset of the first difference"
        );
    }

    /// The journal entry of a killed run.
    pub fn intent_of_a_dead_run(&self, domain: &str, checkpoint: &str) -> JournalEntry {
        JournalEntry {
            uuid: self.host.domain(domain).expect("it is there").uuid,
            mark: "vmsnap run dead".into(),
            checkpoint: Some(checkpoint.into()),
            places: Places {
                sockets: vec![DEAD_SOCKET.into()],
                ..Places::default()
            },
            freezes: false,
        }
    }

    /// Creates the folder of a killed run, with its journal entry, in the newest period.
    pub fn leave_partial(&self, domain: &str, intent: &JournalEntry) -> PathBuf {
        let newest = self.history(domain).kept.pop().expect("there are some");
        let dir = newest.dir();
        let period = dir.parent().expect("a period");
        let partial = period.join("2026-11-03T20-00-00Z.partial");
        std::fs::create_dir(&partial).expect("a new folder");
        let note = serde_json::to_vec(intent).expect("JSON");
        std::fs::write(partial.join("intent.json"), note).expect("written");
        partial
    }

    /// Leaves the state of a killed run: its job is active, and its checkpoint and its folder
    /// exist. Returns the folder.
    pub fn leave_dead_run(&self, domain: &str, checkpoint: &str) -> PathBuf {
        let intent = self.intent_of_a_dead_run(domain, checkpoint);
        let partial = self.leave_partial(domain, &intent);
        std::fs::write(partial.join("vda.qcow2"), b"half an image").expect("written");
        self.host.leave_job(domain, DEAD_SOCKET, checkpoint, &intent.mark);
        partial
    }

    /// The content of a disk at a restore point, restored as a raw file.
    pub fn restored(&self, domain: &str, at: &str, disk: &str) -> Result<Vec<u8>> {
        let to = self.free_path();
        let options = restore::Options {
            at: at.to_owned(),
            disks: vec![disk.to_owned()],
            format: Some(Format::Raw),
            ..self.restoring()
        };
        let plan = restore::plan(domain, self.repo.as_ref(), None, &options)?;
        restore::restore(domain, plan, &self.means(&self.recorder, &Stop::default()))?;
        let bytes = std::fs::read(to.join(format!("{disk}.raw"))).expect("the restored file");
        std::fs::remove_dir_all(to).expect("it is removed");
        Ok(bytes)
    }

    pub fn free_path(&self) -> PathBuf {
        let path = self.folder.path().join("restored");
        assert!(!path.exists(), "the path for restores is free");
        path
    }

    /// The current content of the disk.
    pub fn disk(&self, domain: &str, disk: &str) -> Vec<u8> {
        self.host.disk(domain, disk, |disk| disk.bytes().to_vec())
    }
}

/// Something in a repository's folder, where a test can damage it.
pub trait InFolder {
    /// Its folder.
    fn dir(&self) -> PathBuf;
}

impl InFolder for Kept {
    fn dir(&self) -> PathBuf {
        PathBuf::from(&self.location)
    }
}

impl InFolder for Leftover {
    fn dir(&self) -> PathBuf {
        PathBuf::from(&self.location)
    }
}

impl InFolder for Outcome {
    fn dir(&self) -> PathBuf {
        PathBuf::from(&self.location)
    }
}

/// The disk in a qcow2 image without a backing file.
pub fn read_qcow2(path: &Path) -> Vec<u8> {
    let image = ChainImage {
        file: std::fs::File::open(path).expect("an image").into(),
        path: path.to_owned(),
        recorded: None,
    };
    let mut source =
        ChainSource::open(vec![image], copy::pool(), Stop::default()).expect("an image that can be read");
    let mut disk = vec![0; source.size() as usize];
    while let Some(block) = source.next_block().expect("a whole image") {
        if let Content::Data(bytes) = block.content {
            let start = block.offset as usize;
            disk[start..start + bytes.len()].copy_from_slice(&bytes);
        }
    }
    disk
}

pub fn folder_in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary folder")
}

/// Copies what is in a folder into another one. Images, which never change, are linked.
pub fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let copy = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&copy).expect("a new folder");
            copy_tree(&entry.path(), &copy);
        } else if copy.extension().is_some_and(|ending| ending == "qcow2") {
            // A hard link suffices, because images are never written to again.
            std::fs::hard_link(entry.path(), copy).expect("linked");
        } else {
            std::fs::copy(entry.path(), copy).expect("copied");
        }
    }
}

/// The paths of everything below a folder, relative to the folder and sorted.
pub fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            found.push(path.strip_prefix(root).expect("below").display().to_string());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}
