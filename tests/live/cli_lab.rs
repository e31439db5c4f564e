//! What the tests of the program share: running it, its JSON, and domains whose disks are known byte by byte.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::daemon::{Daemon, TestDomain, URI};
use crate::leftovers;
use crate::owner;
use crate::process::{Finished, command, end, processes_with, run, try_run, wait_until};

/// Longer than any run of the program takes, also on a busy machine.
const RUN_DEADLINE: Duration = Duration::from_secs(120);

/// How long a run may take to end after a signal: 5 s are promised, the rest is for a busy machine.
pub const STOP_DEADLINE: Duration = Duration::from_secs(8);

/// A repository in a folder of its own, and the program that uses it. The program runs in an empty folder, which is its
/// home as well and has to stay empty.
pub struct Repo {
    dir: tempfile::TempDir,
}

impl Repo {
    pub fn new() -> Repo {
        // On a disk, where images are written past the page cache.
        let dir = owner::folder_on_disk("cli ");
        for name in ["repository", "home"] {
            fs::create_dir(dir.path().join(name)).expect("the folder is new");
        }
        Repo { dir }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    /// A path beside the repository.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program with exactly these arguments.
    pub fn run(&self, args: &[&str]) -> Finished {
        let finished = try_run(self.command(args), RUN_DEADLINE);
        self.assert_nothing_beside();
        finished
    }

    /// Asserts that the program has kept nothing outside the repository.
    pub fn assert_nothing_beside(&self) {
        assert_eq!(names_in(&self.beside("home")), [""; 0]);
    }

    /// Runs `vmsnap backup` of these domains on the lab's daemon into this repository, with more switches.
    pub fn backup(&self, domains: &[&str], more: &[&str]) -> Finished {
        self.run(&strs(&self.backup_args(domains, more)))
    }

    /// Begins the same and does not wait for its end.
    pub fn begin_backup(&self, domains: &[&str], more: &[&str]) -> Running {
        Running::start(self, &strs(&self.backup_args(domains, more)))
    }

    /// Begins a run with exactly these arguments.
    pub fn begin(&self, args: &[&str]) -> Running {
        Running::start(self, args)
    }

    /// A backup of one domain that has to succeed: what its JSON says of the domain.
    pub fn back_up(&self, domain: &str, more: &[&str]) -> Value {
        let finished = self.backup(&[domain], &[&["--json"], more].concat());
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        outcome_of(&finished, domain)
    }

    /// The restore points of a domain, as the JSON of `vmsnap list` tells them.
    pub fn list(&self, domain: &str) -> Vec<Value> {
        let root = self.root().display().to_string();
        let listed = self.run(&["list", domain, "--repository", &root, "--json"]);
        assert_eq!(listed.code, Some(0), "{listed:#?}");
        let domain = json(&listed)["domains"][0].clone();
        let points = domain["restorePoints"].as_array();
        points.expect("a list of restore points").clone()
    }

    /// Restores all disks of a restore point into a new folder, which it gives.
    pub fn restore(&self, domain: &str, at: &str, format: &str) -> PathBuf {
        let to = self.beside(&format!("restored {at} {format}"));
        let (root, folder) = (self.root().display().to_string(), to.display().to_string());
        let finished = self.run(&[
            "restore",
            domain,
            "--repository",
            &root,
            "--to",
            &folder,
            "--at",
            at,
            "--format",
            format,
        ]);
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        to
    }

    /// All files and folders of the repository with their sizes, sorted.
    pub fn tree(&self) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        collect(&self.root(), &mut found);
        found.sort();
        found
    }

    /// The folders of runs that have not finished.
    pub fn partials(&self) -> Vec<PathBuf> {
        let paths = self.tree().into_iter().map(|(path, _)| path);
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "partial"))
            .collect()
    }

    /// What the run that did not finish has noted down, if there is one.
    pub fn unfinished(&self) -> Option<Begun> {
        partial_in(&self.root()).and_then(|partial| read_intent(&partial))
    }

    fn backup_args(&self, domains: &[&str], more: &[&str]) -> Vec<String> {
        let root = self.root().display().to_string();
        let words = [&["backup"], domains, &["--output", &root, "--connect", URI], more].concat();
        words.into_iter().map(String::from).collect()
    }

    /// The program with exactly these arguments, to be run.
    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = command(env!("CARGO_BIN_EXE_vmsnap"), args);
        let home = self.beside("home");
        command.current_dir(&home).env("HOME", &home);
        for name in [
            "VMSNAP_CONNECT",
            "VMSNAP_REPOSITORY",
            "VMSNAP_EXCLUDE_DISK",
            "VMSNAP_STORE_DECRYPTED",
            "LIBVIRT_DEFAULT_URI",
        ] {
            command.env_remove(name);
        }
        command
    }
}

impl Drop for Repo {
    fn drop(&mut self) {
        // Of a run that was killed, if the test has ended before the next one.
        for place in leftovers::places_noted_in(&self.root()) {
            leftovers::remove(&place);
        }
    }
}

/// A run of the program that goes on. Killed when dropped.
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    root: PathBuf,
}

/// What a run has noted down that it is about to begin: `intent.json`.
pub struct Begun {
    /// The name of its checkpoint.
    pub checkpoint: String,
    /// Its sockets, scratch files and folders.
    pub places: Vec<PathBuf>,
}

impl Running {
    fn start(repo: &Repo, args: &[&str]) -> Running {
        let (stdout, stderr) = (repo.beside("stdout"), repo.beside("stderr"));
        let mut command = repo.command(args);
        command.stdout(File::create(&stdout).expect("the folder is ours"));
        command.stderr(File::create(&stderr).expect("the folder is ours"));
        let child = command.spawn().expect("the program starts");
        Running {
            child,
            stdout,
            stderr,
            root: repo.root(),
        }
    }

    /// Stops the process (not the job) as soon as the first image is being written. Only the first run in a repository
    /// with one domain can be caught so.
    pub fn hold_in_mid_copy(&mut self) -> Begun {
        let begun = self.hold_when("an image is being written", |partial| {
            names_in(partial).iter().any(|name| name.ends_with(".qcow2"))
        });
        assert!(
            begun.places.iter().any(|place| place.exists()),
            "a job is under way: {:?}",
            begun.places
        );
        begun
    }

    /// Stops the process as soon as its partial folder, which holds a whole intent, is in the state that is waited for.
    pub fn hold_when(&mut self, what: &str, mut ready: impl FnMut(&Path) -> bool) -> Begun {
        let mut found = None;
        // Copying does not take long: looking has to be quick.
        let started = std::time::Instant::now();
        while found.is_none() {
            assert!(
                started.elapsed() < RUN_DEADLINE,
                "{what} was waited for in vain: {}",
                self.said()
            );
            assert!(
                self.child.try_wait().expect("it is ours").is_none(),
                "it has ended: {}",
                self.said()
            );
            found = partial_in(&self.root)
                .filter(|partial| ready(partial))
                .and_then(|partial| read_intent(&partial));
            std::thread::sleep(Duration::from_micros(500));
        }
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        let stopped = wait_until(RUN_DEADLINE, || {
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
        assert!(stopped, "a process can be stopped");
        found.expect("it was found")
    }

    /// Stops the process as soon as it holds a device with all its locks.
    pub fn hold_with_locks_on(&mut self, device: &Path) {
        let started = std::time::Instant::now();
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let holds = |entry: fs::DirEntry| {
            let info = proc.join("fdinfo").join(entry.file_name());
            let locks = fs::read_to_string(info).map_or(0, |info| info.matches("lock:").count());
            // The kernel shows adjacent bytes as one lock.
            fs::read_link(entry.path()).is_ok_and(|to| to == device) && locks >= 2
        };
        while !fs::read_dir(proc.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .any(holds)
        {
            assert!(
                started.elapsed() < RUN_DEADLINE,
                "it takes no locks: {}",
                self.said()
            );
            assert!(self.is_running(), "it has ended: {}", self.said());
            std::thread::sleep(Duration::from_micros(200));
        }
        self.signal(Signal::STOP);
    }

    /// Stops the process as soon as something is seen. The process runs slowly until then, so that it
    /// does not get far beyond.
    pub fn hold_once(&self, what: &str, seen: impl FnMut() -> bool) {
        let seen = self.slowly(|| wait_until(RUN_DEADLINE, seen));
        assert!(seen, "{what} was waited for in vain: {}", self.said());
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process id is not zero");
        kill_process(pid, signal).expect("the process is ours");
    }

    /// Lets the process go on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Does something while the process goes on, a twentieth of the time only; it stands still afterwards.
    pub fn slowly<T>(&self, work: impl FnOnce() -> T) -> T {
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    self.go_on();
                    std::thread::sleep(Duration::from_millis(1));
                    self.signal(Signal::STOP);
                    std::thread::sleep(Duration::from_millis(19));
                }
            });
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            is_done.store(true, Ordering::Relaxed);
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_none()
    }

    /// Waits for its end; panics at the deadline.
    pub fn wait(mut self, deadline: Duration) -> Finished {
        let ended = wait_until(deadline, || !self.is_running());
        assert!(ended, "it goes on after {deadline:?}: {}", self.said());
        let status = self.child.wait().expect("it is ours");
        Finished {
            code: status.code(),
            stdout: fs::read_to_string(&self.stdout).expect("it is UTF-8"),
            stderr: fs::read_to_string(&self.stderr).expect("it is UTF-8"),
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn partial_in(root: &Path) -> Option<PathBuf> {
    let folders = |dir: PathBuf| {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    folders(root.to_owned())
        .flat_map(folders)
        .flat_map(folders)
        .find(|path| path.extension().is_some_and(|end| end == "partial"))
}

fn read_intent(partial: &Path) -> Option<Begun> {
    let text = fs::read_to_string(partial.join("intent.json")).ok()?;
    let intent: Value = serde_json::from_str(&text).ok()?;
    let places = &intent["places"];
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let mut paths = list(&places["sockets"]);
    paths.extend(list(&places["ownDirs"]));
    paths.extend(list(&places["scratch"]).iter().map(|pair| pair[1].clone()));
    Some(Begun {
        checkpoint: text_of(&intent["checkpoint"]).to_owned(),
        places: paths.iter().map(|path| text_of(path).into()).collect(),
    })
}

fn collect(dir: &Path, found: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(dir).expect("it is readable").flatten() {
        let meta = entry.metadata().expect("it is there");
        found.push((entry.path(), if meta.is_file() { meta.len() } else { 0 }));
        if meta.is_dir() {
            collect(&entry.path(), found);
        }
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// The one JSON document on standard output.
pub fn json(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:#?}"))
}

/// What the JSON of a backup says of a domain.
pub fn outcome_of(finished: &Finished, domain: &str) -> Value {
    let document = json(finished);
    let domains = document["domains"].as_array().expect("a list of domains");
    let found = domains.iter().find(|outcome| outcome["domain"] == domain);
    found
        .unwrap_or_else(|| panic!("{domain} is not in {document:#}"))
        .clone()
}

pub fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value:#}"))
}

/// The codes of the findings in a domain's outcome.
pub fn codes(outcome: &Value) -> Vec<&str> {
    let findings = outcome["findings"].as_array().expect("a list of findings");
    findings.iter().map(|finding| text_of(&finding["code"])).collect()
}

/// A change of a disk.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Data(u8),
    Zero,
    Discard,
}

/// A domain without a guest system; what its disks hold is known.
pub struct Machine {
    pub domain: TestDomain,
    /// What each disk holds: `vda`, `vdb` …
    pub disks: Vec<Vec<u8>>,
}

impl Machine {
    /// Defines it with disks of these sizes in bytes; it is shut off.
    pub fn define(daemon: &Daemon, label: &str, sizes: &[usize]) -> Machine {
        Machine::of(TestDomain::new(daemon, label), daemon, sizes)
    }

    /// The same for a domain that is not defined yet.
    pub fn of(domain: TestDomain, daemon: &Daemon, sizes: &[usize]) -> Machine {
        let mut devices = String::new();
        for (disk, size) in sizes.iter().enumerate() {
            let image = domain.path(&format!("{}.qcow2", target(disk)));
            let image = image.display().to_string();
            run(command(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", &image, &size.to_string()],
            ));
            devices.push_str(&format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>\
                 <source file='{image}'/><target dev='{}' bus='virtio'/></disk>\n",
                target(disk)
            ));
        }
        domain.define(&domain.xml(daemon.virt_type(), 32, "", &devices));
        Machine {
            domain,
            disks: sizes.iter().map(|&size| vec![0; size]).collect(),
        }
    }

    /// The same, started and paused: no guest is needed.
    pub fn paused(daemon: &Daemon, label: &str, sizes: &[usize]) -> Machine {
        let machine = Machine::define(daemon, label, sizes);
        machine.domain.start_paused();
        machine
    }

    pub fn name(&self) -> &str {
        self.domain.name()
    }

    pub fn image(&self, disk: usize) -> PathBuf {
        self.domain.path(&format!("{}.qcow2", target(disk)))
    }

    /// Changes a disk as its guest would; offset and length in bytes. What is discarded has whole
    /// clusters of 64 KiB, and reads as zero afterwards; not while a backup job is active, when QEMU ignores it.
    pub fn change(&mut self, disk: usize, offset: usize, length: usize, change: Change) {
        let (words, byte) = match change {
            Change::Data(byte) => (format!("write -P {byte} {offset} {length}"), byte),
            Change::Zero => (format!("write -z {offset} {length}"), 0),
            Change::Discard => (format!("discard {offset} {length}"), 0),
        };
        if self.domain.state() == "shut off" {
            let image = self.image(disk).display().to_string();
            run(command(
                "qemu-io",
                &["-f", "qcow2", "-d", "unmap", "-c", &words, &image],
            ));
        } else {
            let command =
                format!("qemu-io -d /machine/peripheral/virtio-disk{disk}/virtio-backend \"{words}\"");
            let said = self
                .domain
                .virsh(&["qemu-monitor-command", "--hmp", "--cmd", &command]);
            assert_eq!(said.trim(), "", "{words}");
        }
        self.disks[disk][offset..offset + length].fill(byte);
    }

    /// Fills a whole disk with data that differ from piece to piece and from `round` to `round`.
    pub fn fill(&mut self, disk: usize, round: u8) {
        const PIECE: usize = 32 << 20;
        let size = self.disks[disk].len();
        for (piece, offset) in (0..size).step_by(PIECE).enumerate() {
            let byte = 1 + (piece as u8).wrapping_mul(7).wrapping_add(round) % 255;
            self.change(disk, offset, PIECE.min(size - offset), Change::Data(byte));
        }
    }

    /// A few changes here and there; the same ones for the same seed.
    pub fn scatter(&mut self, disk: usize, seed: u64) {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut next = |below: usize| {
            // Constants of Knuth's MMIX; the low bits are poor.
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let size = self.disks[disk].len();
        for _ in 0..6 {
            let (kind, byte) = (next(5), 1 + next(255) as u8);
            let unit = if kind == 0 { 65536 } else { 512 };
            let offset = next(size / unit) * unit;
            let length = (unit + next(4) * 65536).min(size - offset);
            let change = match kind {
                0 => Change::Discard,
                1 => Change::Zero,
                _ => Change::Data(byte),
            };
            self.change(disk, offset, length, change);
        }
    }

    /// Asserts that a folder of restored raw disks holds exactly these.
    pub fn assert_restored(&self, folder: &Path, expected: &[Vec<u8>]) {
        for (disk, expected) in expected.iter().enumerate() {
            let path = folder.join(format!("{}.raw", target(disk)));
            let found = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(found.len(), expected.len(), "{}", path.display());
            let differs = found.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{} differs at this offset", path.display());
        }
    }

    /// The domain's checkpoints.
    pub fn checkpoints(&self) -> Vec<String> {
        checkpoints(&self.domain)
    }

    /// Takes what a disk holds as known; nobody may write meanwhile.
    pub fn learn(&mut self, disk: usize) {
        let raw = self.domain.path("learnt.raw");
        let (image, to) = (self.image(disk).display().to_string(), raw.display().to_string());
        run(command(
            "qemu-img",
            &["convert", "-U", "-f", "qcow2", "-O", "raw", &image, &to],
        ));
        self.disks[disk] = fs::read(&raw).expect("it was made");
        fs::remove_file(raw).expect("it was made");
    }

    /// Pulls the plug of a domain that may have a backup job, and gives whether its QEMU has closed the images
    /// (see [`Machine::closed_well_since`]).
    pub fn pull_the_plug(&mut self) -> bool {
        let crashes = self.domain.qemu_crashes();
        self.domain.destroy();
        self.closed_well_since(crashes)
    }

    /// Whether the QEMU that has ended has closed its images; `crashes` is how often one had crashed before.
    ///
    /// QEMU 7.2 may crash while it ends with the job of a killed run. As after a power cut, writes are then lost and
    /// bitmaps are broken: what the disks hold is learnt again. Any other loss is a failure.
    pub fn closed_well_since(&mut self, crashes: usize) -> bool {
        let before = self.disks.clone();
        for disk in 0..before.len() {
            self.learn(disk);
        }
        let lost = before != self.disks;
        let deadline = if lost { STOP_DEADLINE } else { Duration::ZERO };
        let has_crashed = wait_until(deadline, || self.domain.qemu_crashes() > crashes);
        assert!(has_crashed || !lost, "writes are lost, and QEMU has not crashed");
        if has_crashed {
            println!(
                "QEMU has crashed while {} was ended; writes were lost: {lost}",
                self.name()
            );
        }
        !has_crashed
    }

    /// Waits until nobody uses the images of a shut-off domain any more: the kernel ends the readers of a run that is killed, and a bitmap
    /// that was being changed is done at once.
    pub fn wait_for_readers_to_end(&self) {
        wait_for_readers_to_end(&self.domain);
    }

    /// Asserts that nothing of any run is left: no job, reader, partial folder, scratch file, nor what the run has noted down.
    pub fn assert_nothing_left(&self, repo: &Repo, begun: &Begun) {
        assert_nothing_left(&self.domain, repo, begun);
    }

    /// Asserts that no file of any run is left, be the job as it may, nor a reader: none of these places, no partial folder, no scratch file.
    pub fn assert_no_files_left(&self, repo: &Repo, places: &[PathBuf]) {
        assert_no_files_left(&self.domain, repo, places);
    }
}

/// The names of a domain's checkpoints.
pub fn checkpoints(domain: &TestDomain) -> Vec<String> {
    let names = domain.virsh(&["checkpoint-list", "--name"]);
    let names = names.lines().map(str::trim).filter(|name| !name.is_empty());
    names.map(String::from).collect()
}

/// Whether a backup job holds a running domain.
pub fn has_job(domain: &TestDomain) -> bool {
    !domain.virsh(&["domjobinfo"]).contains("None")
}

/// See [`Machine::assert_nothing_left`].
pub fn assert_nothing_left(domain: &TestDomain, repo: &Repo, begun: &Begun) {
    if domain.state() != "shut off" {
        assert!(!has_job(domain), "a job is left");
    }
    assert_no_files_left(domain, repo, &begun.places);
}

fn assert_no_files_left(domain: &TestDomain, repo: &Repo, places: &[PathBuf]) {
    assert_eq!(repo.partials(), [] as [PathBuf; 0]);
    for place in places {
        assert!(!place.exists(), "{} is left", place.display());
    }
    let hidden = names_in(domain.dir())
        .into_iter()
        .filter(|name| name.starts_with('.'));
    assert_eq!(hidden.collect::<Vec<_>>(), [""; 0]);
    assert_eq!(readers_of(domain), []);
}

/// See [`Machine::wait_for_readers_to_end`].
pub fn wait_for_readers_to_end(domain: &TestDomain) {
    let ended = wait_until(STOP_DEADLINE, || readers_of(domain).is_empty());
    assert!(ended, "{:?} are left", readers_of(domain));
}

/// The programs that use a shut-off domain's images for a run.
fn readers_of(domain: &TestDomain) -> Vec<(u32, String)> {
    let mut found = processes_with(&domain.dir().display().to_string());
    found.retain(|(_, line)| line.starts_with("qemu-nbd") || line.starts_with("qemu-img"));
    found
}

fn target(disk: usize) -> String {
    format!("vd{}", char::from(b'a' + u8::try_from(disk).expect("few disks")))
}
