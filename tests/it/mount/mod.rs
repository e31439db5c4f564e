//! `vmsnap mount`: restore points as files. The tests in `program` and `ends` need /dev/fuse, and
//! `fusermount3` unless root runs them.

mod ends;
mod opened;
mod program;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{CLUSTER, Lab};

/// How long the program may take for anything.
const DEADLINE: Duration = Duration::from_secs(120);

/// The first image of the disk has several pieces, so that damage hides only a part of it.
const VDA: usize = 100 * CLUSTER;
/// Where the newest restore point differs.
const CHANGE: usize = 61 * CLUSTER + 5;
const VDB: usize = 3 * CLUSTER + 512;

/// A domain with three restore points in a folder, and the content of its disks at each of them.
struct Story {
    lab: Lab,
    points: Vec<(String, [Vec<u8>; 2])>,
}

impl Story {
    fn new() -> Story {
        let mut lab = Lab::new();
        lab.host.add_domain("vm1", &[("vda", VDA), ("vdb", VDB)]);
        lab.host.set_nvram("vm1", b"variables");
        let mut noise = vec![0; 44 * CLUSTER];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut points = Vec::new();
        for round in 0..3u8 {
            lab.host.disk("vm1", "vda", |disk| match round {
                // Incompressible and compressible data with holes between them.
                0 => {
                    disk.write(CLUSTER / 2, &noise);
                    disk.write(60 * CLUSTER, &[7; 5 * CLUSTER]);
                    disk.write(VDA - 10, b"the end");
                }
                1 => {
                    disk.zero(3 * CLUSTER, 2 * CLUSTER);
                    disk.write(70 * CLUSTER + 77, &noise[..CLUSTER]);
                }
                _ => disk.write(CHANGE, b"a change"),
            });
            lab.host
                .disk("vm1", "vdb", |disk| disk.write(0, &[round + 1; 4000]));
            lab.backup_with("vm1", &Lab::plain_or_not(round))
                .expect("a backup");
            let disks = ["vda", "vdb"].map(|disk| lab.disk("vm1", disk));
            points.push((lab.latest("vm1"), disks));
        }
        Story { lab, points }
    }

    fn latest(&self) -> &[Vec<u8>; 2] {
        &self.points.last().expect("there are some").1
    }

    /// A path beside the repository.
    fn beside(&self, name: &str) -> PathBuf {
        self.lab.folder.path().join(name)
    }

    /// The location of the repository in the folder.
    fn images(&self) -> String {
        self.lab.root().display().to_string()
    }

    /// Copies all restore points into a new, encrypted pack repository. Returns its location.
    fn pack(&self) -> String {
        fs::write(self.beside("passphrase"), "correct horse battery\n").expect("written");
        let pack = format!("pack:{}", self.beside("pack").display());
        for words in [
            &["init", &pack][..],
            &["copy", "--from", &self.images(), "--to", &pack],
        ] {
            let output = self.command(words).output().expect("the program runs");
            assert_eq!(output.status.code(), Some(0), "{output:?}");
        }
        pack
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsnap"));
        command.args(words).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.beside("home"));
        for (variable, name) in [
            ("STATE", "state"),
            ("CACHE", "cache"),
            ("PASSPHRASE_FILE", "passphrase"),
        ] {
            command.env(format!("VMSNAP_{variable}"), self.beside(name));
        }
        command
    }

    /// A new, empty folder to mount on.
    fn folder(&self) -> PathBuf {
        let dir = self.beside("mounted here");
        fs::create_dir_all(&dir).expect("a new folder");
        dir
    }

    /// Mounts a restore point of a repository, and returns when its files can be read.
    fn mount(&self, repository: &str, more: &[&str]) -> Mounted {
        let dir = self.folder();
        let word = dir.display().to_string();
        let words = ["mount", "vm1", &word, "--repository", repository];
        Mounted::start(self.command(&[&words[..], more].concat()), dir)
    }
}

impl Lab {
    /// The first restore point is compressed.
    fn plain_or_not(round: u8) -> vmsnap::ops::backup::Options {
        match round {
            0 => Lab::options(),
            _ => Lab::plain(),
        }
    }
}

/// A program that mounts a restore point. It is killed and its mount removed when this is dropped,
/// even after a panic.
struct Mounted {
    child: Child,
    dir: PathBuf,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    said: String,
}

impl Mounted {
    /// Starts the program, and waits until the files can be read.
    fn start(mut command: Command, dir: PathBuf) -> Mounted {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the program starts");
        let stdout = lines(child.stdout.take().expect("a pipe"));
        let stderr = lines(child.stderr.take().expect("a pipe"));
        let mut mounted = Mounted {
            child,
            dir,
            stdout,
            stderr,
            said: String::new(),
        };
        mounted.wait_for("to end, press Ctrl-C");
        mounted
    }

    /// Waits for a line on stdout that contains this text.
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.said.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stdout.recv_timeout(left) {
                Ok(line) => self.said.push_str(&line),
                Err(why) => {
                    let errors: String = self.stderr.try_iter().collect();
                    panic!("{why} without {text:?}: {:?} {errors:?}", self.said);
                }
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn open(&self, name: &str) -> File {
        File::open(self.path(name)).expect("it can be opened")
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("it can be read")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits until the program has ended. Returns its status, stdout and stderr.
    fn wait(&mut self) -> (ExitStatus, String, String) {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            assert!(Instant::now() < deadline, "the program has not ended");
            thread::sleep(Duration::from_millis(5));
        };
        self.said.extend(rest(&self.stdout));
        (status, self.said.clone(), rest(&self.stderr).collect())
    }

    /// Asks the program to end, which it has to do with this code, and returns stdout and stderr.
    fn end(mut self, code: i32) -> (String, String) {
        self.signal(Signal::TERM);
        let (status, stdout, stderr) = self.wait();
        assert_eq!(status.code(), Some(code), "{stdout}{stderr}");
        self.assert_gone();
        (stdout, stderr)
    }

    /// Nothing is mounted, and the folder is as it was.
    fn assert_gone(&self) {
        assert!(!is_mounted(&self.dir), "{} is not mounted", self.dir.display());
        assert_eq!(fs::read_dir(&self.dir).expect("a folder").count(), 0);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        remove_mount(&self.dir);
    }
}

/// Removes a mount as another program would.
fn remove_mount(dir: &Path) -> bool {
    if unmount(dir, UnmountFlags::DETACH).is_ok() {
        return true;
    }
    let helper = Command::new("fusermount3").args(["-u", "-z"]).arg(dir).output();
    helper.is_ok_and(|output| output.status.success())
}

fn is_mounted(dir: &Path) -> bool {
    let dir = fs::canonicalize(dir.parent().expect("a parent")).expect("there");
    let point = dir
        .join("mounted here")
        .display()
        .to_string()
        .replace(' ', "\\040");
    let text = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    text.lines().any(|line| line.split(' ').nth(4) == Some(&point))
}

/// The lines that come from a pipe.
fn lines(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count) = pipe.read(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            if count == 0 || sender.send(text).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Everything until the pipe is closed.
fn rest(receiver: &Receiver<String>) -> impl Iterator<Item = String> {
    std::iter::from_fn(|| match receiver.recv_timeout(DEADLINE) {
        Ok(text) => Some(text),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => panic!("the pipe stays open"),
    })
}

/// The bytes of a file from an offset on: what `pread(2)` returns.
fn pread(file: &File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
