//! Helpers for tests of the program: running it, and its JSON.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::daemon::URI;
use crate::leftovers;
use crate::owner;
use crate::process::{Finished, command, end, try_run, wait_until};

mod machine;

pub use machine::{Change, Machine, assert_nothing_left, checkpoints, has_job, wait_for_readers_to_end};

/// A limit for one run of the program, generous for a busy machine.
pub const RUN_DEADLINE: Duration = Duration::from_secs(120);

/// The time within which a run ends after a signal. The documented limit is 5 s; the rest is for a
/// busy machine.
pub const STOP_DEADLINE: Duration = Duration::from_secs(8);

/// A repository in its own folder, and the program that uses it. The program runs in an empty
/// folder, which is also its home and must stay empty.
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

    /// A path next to the repository.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program with exactly these arguments.
    pub fn run(&self, args: &[&str]) -> Finished {
        let finished = try_run(self.command(args), RUN_DEADLINE);
        self.assert_nothing_beside();
        finished
    }

    /// Asserts that the program has left nothing outside the repository.
    pub fn assert_nothing_beside(&self) {
        assert_eq!(names_in(&self.beside("home")), [""; 0]);
    }

    /// Runs `vmsnap backup` of these domains on the lab's daemon into this repository, with more
    /// switches.
    pub fn backup(&self, domains: &[&str], more: &[&str]) -> Finished {
        self.run(&strs(&self.backup_args(domains, more)))
    }

    /// Starts [`Repo::backup`] without waiting for its end.
    pub fn begin_backup(&self, domains: &[&str], more: &[&str]) -> Running {
        Running::start(self, &strs(&self.backup_args(domains, more)))
    }

    /// Starts a run with exactly these arguments.
    pub fn begin(&self, args: &[&str]) -> Running {
        Running::start(self, args)
    }

    /// Backs up one domain, which has to succeed, and returns the JSON about the domain.
    pub fn back_up(&self, domain: &str, more: &[&str]) -> Value {
        let finished = self.backup(&[domain], &[&["--json"], more].concat());
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        outcome_of(&finished, domain)
    }

    /// Starts this command of the program.
    pub fn begin_command(&self, command: std::process::Command) -> Running {
        Running::start_command(self, command)
    }

    /// The restore points of a domain in the JSON of `vmsnap list`.
    pub fn list(&self, domain: &str) -> Vec<Value> {
        let root = self.root().display().to_string();
        let listed = self.run(&["list", domain, "--repository", &root, "--json"]);
        assert_eq!(listed.code, Some(0), "{listed:#?}");
        let domain = json(&listed)["domains"][0].clone();
        let points = domain["restorePoints"].as_array();
        points.expect("a list of restore points").clone()
    }

    /// Restores all disks of a restore point into a new folder and returns the folder.
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

    /// The journal entry of an unfinished run, if there is one.
    pub fn unfinished(&self) -> Option<Begun> {
        partial_in(&self.root()).and_then(|partial| read_intent(&partial))
    }

    fn backup_args(&self, domains: &[&str], more: &[&str]) -> Vec<String> {
        let root = self.root().display().to_string();
        let words = [&["backup"], domains, &["--output", &root, "--connect", URI], more].concat();
        words.into_iter().map(String::from).collect()
    }

    /// The command of the program with exactly these arguments.
    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = command(env!("CARGO_BIN_EXE_vmsnap"), args);
        let home = self.beside("home");
        command.current_dir(&home).env("HOME", &home);
        command.env("VMSNAP_STATE", self.beside("state"));
        for name in [
            "VMSNAP_CONNECT",
            "VMSNAP_REPOSITORY",
            "VMSNAP_COMPRESS",
            "VMSNAP_EXCLUDE_DISK",
            "VMSNAP_FULL",
            "VMSNAP_SCRATCH_DIR",
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
        // A killed run leaves these if the test ends before the next run.
        for place in leftovers::places_noted_in(&self.root()) {
            leftovers::remove(&place);
        }
    }
}

/// A running program, killed when dropped.
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    root: PathBuf,
}

/// The journal entry (`intent.json`) of a run.
pub struct Begun {
    /// The name of its checkpoint.
    pub checkpoint: String,
    /// Its sockets, scratch files and folders.
    pub places: Vec<PathBuf>,
}

impl Running {
    fn start(repo: &Repo, args: &[&str]) -> Running {
        Running::start_command(repo, repo.command(args))
    }

    fn start_command(repo: &Repo, mut command: std::process::Command) -> Running {
        let (stdout, stderr) = (repo.beside("stdout"), repo.beside("stderr"));
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

    /// Stops the process, but not the job, when the first image is being written. Works only for
    /// the first run in a repository, with one domain.
    pub fn hold_in_mid_copy(&mut self) -> Begun {
        let begun = self.hold_when("an image is being written", |partial| {
            names_in(partial).iter().any(|name| name.ends_with(".qcow2"))
        });
        assert!(
            begun.places.iter().any(|place| place.exists()),
            "a job is active: {:?}",
            begun.places
        );
        begun
    }

    /// Stops the process when its partial folder holds a whole journal entry and `ready` accepts
    /// the folder.
    pub fn hold_when(&mut self, what: &str, mut ready: impl FnMut(&Path) -> bool) -> Begun {
        let mut found = None;
        // Copying is fast, so the folder is polled at short intervals.
        let started = std::time::Instant::now();
        while found.is_none() {
            assert!(
                started.elapsed() < RUN_DEADLINE,
                "timed out waiting ({what}): {}",
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

    /// Stops the process when it holds all its locks on a device.
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

    /// Stops the process when `seen` returns true. The process runs slowly until then, so that it
    /// stops soon after that.
    pub fn hold_once(&self, what: &str, seen: impl FnMut() -> bool) {
        let seen = self.slowly(|| wait_until(RUN_DEADLINE, seen));
        assert!(seen, "timed out waiting ({what}): {}", self.said());
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process id is not zero");
        kill_process(pid, signal).expect("the process is ours");
    }

    /// Lets the process continue.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Runs `work` while the process runs for only a twentieth of the time. The process is stopped
    /// afterwards.
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

    /// Waits until the process has ended; panics at the deadline.
    pub fn wait(mut self, deadline: Duration) -> Finished {
        let ended = wait_until(deadline, || !self.is_running());
        assert!(ended, "it still runs after {deadline:?}: {}", self.said());
        let status = self.child.wait().expect("it is ours");
        Finished {
            code: status.code(),
            stdout: fs::read_to_string(&self.stdout).expect("it is UTF-8"),
            stderr: fs::read_to_string(&self.stderr).expect("it is UTF-8"),
        }
    }

    /// What it has printed so far on stdout.
    pub fn answered(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
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

/// The outcome of a domain in the JSON of a backup.
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
