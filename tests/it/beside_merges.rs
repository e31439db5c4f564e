//! Processes of the program that read a repository beside one that merges: each sees the old state
//! or the new one, and never an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use vmsnap::model::level::FullRule;
use vmsnap::ops::backup::Options;

use crate::lab::{CLUSTER, Lab, tree};

/// Restore points at the start; each step merges the oldest into the next one.
const POINTS: usize = 10;

/// How often a reader that takes long runs in one step: the merge waits for it each time.
const READS: usize = 2;

fn noise(seed: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A repository of a domain with a disk of this many clusters of noise, of which this many are
/// written between two backups.
struct World {
    lab: Lab,
    points: Vec<(String, Vec<u8>)>,
}

impl World {
    fn new(clusters: usize, written: usize) -> World {
        let mut lab = Lab::new();
        let size = clusters * CLUSTER;
        lab.host.add_domain("vm1", &[("vda", size)]);
        lab.host.disk("vm1", "vda", |disk| disk.write(0, &noise(0, size)));
        let mut points = Vec::new();
        for day in 1..=POINTS {
            // In the past for the program's clock.
            lab.at(&format!("2024-01-{day:02}T02:00:00+01:00[Europe/Berlin]"));
            lab.host.disk("vm1", "vda", |disk| {
                for number in 0..written {
                    let place = (day * 7 + number * 31) % clusters * CLUSTER;
                    disk.write(place, &noise(day * 1000 + number, CLUSTER));
                }
            });
            let options = Options {
                full: FullRule::Never,
                ..Lab::options()
            };
            let outcome = lab.backup_with("vm1", &options).expect("a restore point");
            points.push((outcome.point.id, lab.disk("vm1", "vda")));
        }
        World { lab, points }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsnap"));
        command
            .args(words)
            .arg("--repository")
            .arg(self.lab.root())
            .env("TZ", "Europe/Berlin");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the program runs")
    }

    /// Runs the program, which has to succeed, and returns its JSON about the domain.
    fn ask(&self, words: &[&str]) -> Value {
        let output = self.run(&[words, &["vm1", "--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{words:?}: {output:#?}");
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        json["domains"][0].clone()
    }

    /// Starts a prune that keeps this many restore points.
    fn begin_prune(&self, keep: usize) -> Child {
        let keep = keep.to_string();
        let mut command = self.command(&["prune", "vm1", "--keep-last", &keep, "--json", "--wait", "120"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program runs")
    }

    /// The ids of the newest restore points, oldest first.
    fn newest(&self, number: usize) -> Vec<&str> {
        let from = self.points.len() - number;
        self.points[from..].iter().map(|(id, _)| id.as_str()).collect()
    }

    /// Asserts that these are the newest restore points, before or after a prune that keeps `keep`.
    /// Each prune before it may have left one to it because of readers.
    fn assert_old_or_new(&self, points: &Value, keep: usize) {
        let points = points.as_array().expect("a list");
        let ids: Vec<&str> = points
            .iter()
            .map(|point| point["id"].as_str().expect("an id"))
            .collect();
        assert!(ids.len() >= keep, "{ids:?}");
        assert_eq!(ids, self.newest(ids.len()));
    }

    fn list(&self, keep: usize) {
        let listed = self.ask(&["list"]);
        assert_eq!(listed["findings"], Value::Array(Vec::new()), "{listed:#}");
        let points = &listed["restorePoints"];
        self.assert_old_or_new(points, keep);
        for (number, point) in points.as_array().expect("a list").iter().enumerate() {
            let level = if number == 0 { "full" } else { "incremental" };
            assert_eq!(point["level"], level, "{listed:#}");
            assert_eq!(point["whole"], true, "{listed:#}");
        }
    }

    fn verify(&self, keep: usize, more: &[&str]) {
        let verified = self.ask(&[&["verify", "--all"], more].concat());
        assert_eq!(verified["outcome"], "sound", "{verified:#}");
        assert_eq!(verified["findings"], Value::Array(Vec::new()), "{verified:#}");
        self.assert_old_or_new(&verified["restorePoints"], keep);
    }

    /// Restores a restore point, which may be gone if `keep` does not include it. Returns whether
    /// it was there.
    fn restore(&self, number: usize, keep: usize, to: &Path) -> bool {
        let (id, disk) = &self.points[number];
        let folder = to.to_str().expect("plain");
        let words = ["restore", "vm1", "--at", id, "--to", folder, "--format", "raw"];
        let output = self.run(&words);
        let is_kept = number >= self.points.len() - keep;
        if output.status.code() == Some(1) && !is_kept {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                said.contains(&format!("restore point {id} was removed on")),
                "{said}"
            );
            return false;
        }
        assert_eq!(output.status.code(), Some(0), "{id}: {output:#?}");
        assert!(
            fs::read(to.join("vda.raw")).expect("restored") == *disk,
            "{id} differs"
        );
        fs::remove_dir_all(to).expect("it is removed");
        true
    }

    /// Merges the oldest restore point into the next one while other processes read.
    fn step(&self, keep: usize, seen: &Seen) {
        let merging = AtomicBool::new(true);
        let to = |name: &str| -> PathBuf { self.lab.folder.path().join(name) };
        let (last, first) = (self.points.len() - 1, self.points.len() - keep);
        let oldest: Vec<usize> = (first.saturating_sub(2)..=first).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                // Both want the same, and either may do it.
                let pruners = [self.begin_prune(keep), self.begin_prune(keep)];
                let outputs = pruners.map(Child::wait_with_output);
                merging.store(false, Ordering::SeqCst);
                for output in outputs {
                    let output = output.expect("it ends");
                    assert_eq!(output.status.code(), Some(0), "{output:#?}");
                }
            });
            scope.spawn(|| {
                while merging.load(Ordering::SeqCst) {
                    self.list(keep);
                    seen.reads.fetch_add(1, Ordering::SeqCst);
                }
            });
            scope.spawn(|| (0..READS).for_each(|_| self.verify(keep, &[])));
            scope.spawn(|| (0..READS).for_each(|_| self.verify(keep, &["--deep"])));
            scope.spawn(|| {
                for number in oldest {
                    let was_there = self.restore(number, keep, &to("oldest"));
                    let counter = if was_there { &seen.there } else { &seen.gone };
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            });
            scope.spawn(|| (0..READS).for_each(|_| assert!(self.restore(last, keep, &to("newest")))));
        });
    }

    /// Merges one restore point after the other beside readers, and then checks what is left.
    fn merge_all(&self) -> Seen {
        let seen = Seen::default();
        for keep in (1..POINTS).rev() {
            self.step(keep, &seen);
        }
        // What readers have held back is finished by the next run without them.
        for _ in 0..2 {
            let output = self.begin_prune(1).wait_with_output().expect("it ends");
            assert_eq!(output.status.code(), Some(0), "{output:#?}");
        }
        let listed = self.ask(&["list"]);
        assert_eq!(
            listed["restorePoints"].as_array().map(Vec::len),
            Some(1),
            "{listed:#}"
        );
        self.verify(1, &["--deep"]);
        assert!(self.restore(self.points.len() - 1, 1, &self.lab.folder.path().join("last")));
        let left: Vec<String> = { tree(&self.lab.root()).into_iter() }
            .filter(|name| name.contains("merg") || name.contains(".continued"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        seen
    }

    /// Whether merges have continued the image of the last restore point.
    fn is_continued(&self) -> bool {
        let history = self.lab.history("vm1");
        let entry = history.kept[0].manifest.file("vda.qcow2").expect("it is listed");
        entry.unused.is_some()
    }
}

/// What readers saw.
#[derive(Debug, Default)]
struct Seen {
    reads: AtomicUsize,
    there: AtomicUsize,
    gone: AtomicUsize,
}

#[test]
fn processes_beside_merges_in_the_file_see_no_error() {
    let world = World::new(120, 3);
    let seen = world.merge_all();
    println!("{seen:?}");
    assert!(world.is_continued());
}

#[test]
fn processes_beside_copying_merges_see_no_error() {
    let world = World::new(8, 8);
    let seen = world.merge_all();
    println!("{seen:?}");
    assert!(!world.is_continued());
}
