//! A domain, a repository, and the content of every disk at every backup.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{Span, Zoned};
use vmsnap::host::Host;
use vmsnap::io::DiskStore;
use vmsnap::model::finding::Finding;
use vmsnap::model::restore_point::{DiskPoint, Level};
use vmsnap::model::stop::Stop;
use vmsnap::ops::backup::{self, Options, Outcome};
use vmsnap::ops::in_place;
use vmsnap::ops::list::{self, DomainList};
use vmsnap::ops::restore::{self, DefineOptions, Format};
use vmsnap::ops::{Context, Result};
use vmsnap::repo::{FolderRepository, Repository};
use vmsnap::testkit::Recorder;

use crate::embed::{Lab, TestDomain, random, run_ok};
use crate::owner;
use crate::verbs::rng::Rng;

const CLUSTER: u64 = 65536;

/// A change of a disk.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Writes this many bytes with the same value.
    Write { at: u64, length: u64, byte: u8 },
    /// Writes zeroes in a way that allows the image to deallocate the range.
    Zero { at: u64, length: u64 },
    /// Discards the range. Whole clusters then read as zero, and so does a partial cluster at the
    /// disk's end.
    Discard { at: u64, length: u64 },
}

/// A restore point, with a raw copy of each disk.
struct Moment {
    id: String,
    disks: Vec<(String, PathBuf)>,
}

/// A domain with a repository. Each backup keeps a reference copy of each disk, taken while nothing
/// writes. [`Story::prove`] compares all of them with restored disks.
pub struct Story {
    pub domain: TestDomain,
    pub repo: FolderRepository,
    pub options: Options,
    pub folder: tempfile::TempDir,
    pub recorder: Recorder,
    now: Zoned,
    /// The content of each disk according to the writes so far.
    models: BTreeMap<String, Vec<u8>>,
    moments: Vec<Moment>,
}

impl Story {
    pub fn of(domain: TestDomain) -> Story {
        let folder = owner::folder("story ");
        let root = folder.path().join("the repository");
        let repo = FolderRepository::open_or_create(&root, Arc::new(DiskStore)).expect("a new repository");
        let mut story = Story {
            domain,
            repo,
            options: Options::default(),
            folder,
            recorder: Recorder::default(),
            now: "2026-11-03T02:00:00+01:00[Europe/Berlin]"
                .parse()
                .expect("a time"),
            models: BTreeMap::new(),
            moments: Vec::new(),
        };
        for disk in story.domain.seen().disks {
            if disk.source.path().is_some() && disk.target.starts_with("vd") {
                story.learn(&disk.target);
            }
        }
        story
    }

    /// Takes the present content of a disk as known.
    pub fn learn(&mut self, target: &str) {
        let copy = self.copy(target, "learnt");
        let bytes = fs::read(&copy).expect("it is readable");
        fs::remove_file(copy).expect("it is there");
        self.models.insert(target.to_owned(), bytes);
    }

    /// Forgets a disk that no longer belongs to the domain, and returns its content.
    pub fn forget(&mut self, target: &str) -> Vec<u8> {
        self.models.remove(target).expect("it was known")
    }

    pub fn targets(&self) -> Vec<String> {
        self.models.keys().cloned().collect()
    }

    pub fn bytes(&self, target: &str) -> &[u8] {
        &self.models[target]
    }

    pub fn act(&mut self, target: &str, act: Act) {
        let command = match act {
            Act::Write { at, length, byte } => format!("write -P {byte} {at} {length}"),
            Act::Zero { at, length } => format!("write -z -u {at} {length}"),
            Act::Discard { at, length } => format!("discard {at} {length}"),
        };
        self.domain.io(target, &command);
        let model = self.models.get_mut(target).expect("it is known");
        let size = model.len() as u64;
        let (from, to, byte) = match act {
            Act::Write { at, length, byte } => (at, at + length, byte),
            Act::Zero { at, length } => (at, at + length, 0),
            Act::Discard { at, length } => {
                let end = at + length;
                let to = if end == size { end } else { end - end % CLUSTER };
                (at.next_multiple_of(CLUSTER), to, 0)
            }
        };
        if from < to {
            model[from as usize..to as usize].fill(byte);
        }
    }

    pub fn write(&mut self, target: &str, at: u64, length: u64, byte: u8) {
        self.act(target, Act::Write { at, length, byte });
    }

    /// Makes this many random changes of random disks.
    pub fn scribble(&mut self, rng: &mut Rng, acts: usize) {
        // QEMU may ignore a guest's discards while a job's copy-before-write filter is on the disk.
        let job = Lab::get().host.active_job(&self.domain.seen());
        let may_discard = job.expect("it is known").is_none();
        for _ in 0..acts {
            let target = rng.pick(&self.targets()).clone();
            let act = self.random_act(rng, &target, may_discard);
            self.act(&target, act);
        }
    }

    fn random_act(&self, rng: &mut Rng, target: &str, may_discard: bool) -> Act {
        let sectors = self.models[target].len() as u64 / 512;
        let at = rng.below(sectors);
        let longest = *rng.pick(&[1, 8, 127, 128, 513, 2048]);
        let length = (1 + rng.below(longest)).min(sectors - at);
        let (at, length) = (at * 512, length * 512);
        // In a raw file the file system decides which parts of clusters are discarded.
        let kinds = if may_discard && self.domain.format(target) == "qcow2" {
            8
        } else {
            6
        };
        match rng.below(kinds) {
            0..4 => Act::Write {
                at,
                length,
                byte: rng.next() as u8,
            },
            4 | 5 => Act::Zero { at, length },
            _ => Act::Discard { at, length },
        }
    }

    /// Resizes a disk: with libvirt if the domain runs, otherwise with `qemu-img`.
    pub fn resize(&mut self, target: &str, size: u64) {
        let handle = self.domain.handle();
        let model = self.models.get_mut(target).expect("it is known");
        if handle.is_active().expect("it is known") {
            let in_bytes = virt_sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES;
            handle
                .block_resize(target, size, in_bytes)
                .expect("it is resized");
        } else {
            let (image, bytes) = (self.domain.image_now(target), size.to_string());
            let shrink = if size < model.len() as u64 {
                "--shrink"
            } else {
                "--preallocation=off"
            };
            run_ok(
                "qemu-img",
                [&"resize", &"-q", &"-f", &"qcow2", &shrink, &image, &bytes],
            );
        }
        model.resize(size as usize, 0);
    }

    /// Copies the content of a disk from its image into a raw file. The domain must not write at
    /// the same time.
    fn copy(&self, target: &str, name: &str) -> PathBuf {
        let to = self.folder.path().join(format!("{name}.{target}.raw"));
        if self.domain.handle().is_active().expect("it is known") {
            self.domain.io(target, "flush");
        }
        let (image, format) = (self.domain.image_now(target), self.domain.format(target));
        run_ok(
            "qemu-img",
            [&"convert", &"-U", &"-f", &format, &"-O", &"raw", &image, &to],
        );
        to
    }

    pub fn context(&self) -> Context<'_> {
        Context {
            host: &Lab::get().host,
            repo: &self.repo,
            now: self.now.clone(),
            monitor: &self.recorder,
            stop: Stop::default(),
            random: &random,
        }
    }

    /// The name of the checkpoint that the restore point with this number made.
    pub fn made(&self, number: usize) -> String {
        let history = self.history();
        let made = history.kept[number].manifest.point.checkpoint.clone();
        made.expect("it made one").name
    }

    pub fn pass(&mut self, time: Span) {
        self.now = self.now.checked_add(time).expect("in range");
    }

    pub fn try_back_up(&mut self) -> Result<Outcome> {
        let outcome = backup::backup(&self.domain.name, &self.context(), &self.options);
        self.pass(Span::new().minutes(10));
        outcome
    }

    /// Backs up and keeps a copy of every disk. Asserts that the domain's state is unchanged and
    /// nothing of the job is left.
    pub fn back_up(&mut self) -> Outcome {
        let before = self.domain.seen();
        let outcome = self.try_back_up().expect("a backup");
        let after = self.domain.seen();
        assert_eq!(
            (after.state, after.id),
            (before.state, before.id),
            "the state is unchanged"
        );
        assert_eq!(Lab::get().host.active_job(&after).expect("it is known"), None);
        let mut scratch = self.domain.strangers();
        scratch.retain(|name| name.as_encoded_bytes().starts_with(b".vmsnap-"));
        assert!(scratch.is_empty(), "{scratch:?}");
        let history = self.history();
        assert!(history.leftovers.is_empty(), "{:?}", history.leftovers);

        let id = outcome.point.id.clone();
        let mut disks = Vec::new();
        for disk in &outcome.point.disks {
            let copy = self.copy(&disk.target, &id);
            let bytes = fs::read(&copy).expect("it is readable");
            let model = &self.models[&disk.target];
            let differs = (0..bytes.len().min(model.len())).find(|at| bytes[*at] != model[*at]);
            assert_eq!(differs, None, "the reference of {} is right", disk.target);
            assert_eq!(disk.virtual_size, bytes.len() as u64, "{}", disk.target);
            disks.push((disk.target.clone(), copy));
        }
        self.moments.push(Moment { id, disks });
        outcome
    }

    pub fn history(&self) -> vmsnap::repo::History {
        let repository = self.repo.domain(&self.domain.name).expect("a name that fits");
        repository.history().expect("a readable folder")
    }

    pub fn list(&self) -> DomainList {
        let names = [self.domain.name.clone()];
        let mut lists = list::list(&self.repo, &names).expect("it is listed");
        lists.pop().expect("one domain, one list")
    }

    /// Restores every restore point, alternately as raw and qcow2, and compares each disk with its
    /// copy.
    pub fn prove(&self) {
        let list = self.list();
        assert_eq!(list.findings, [], "no finding about the folder");
        let listed: Vec<&str> = list.points.iter().map(|one| one.point.id.as_str()).collect();
        assert_eq!(listed, self.ids(), "all restore points in order");
        self.prove_those_left();
    }

    /// Checks the remaining restore points if some were lost, which `list` may report.
    pub fn prove_those_left(&self) {
        (0..self.moments.len()).for_each(|number| self.prove_one(number));
    }

    /// Checks that a restore point is whole and gives back every disk.
    pub fn prove_one(&self, number: usize) {
        let (list, moment) = (self.list(), &self.moments[number]);
        let listed = list.points.iter().find(|one| one.point.id == moment.id);
        let listed = listed.unwrap_or_else(|| panic!("{} is listed", moment.id));
        assert!(listed.is_whole(), "{:?}", listed.faults);
        let format = [Format::Raw, Format::Qcow2][number % 2];
        let to = self.folder.path().join("restored");
        self.restore(&moment.id, &to, format, None)
            .expect("it is restored");
        for (target, reference) in &moment.disks {
            let restored = to.join(format!("{target}.{}", format.word()));
            let what = format!("{target} of {}", moment.id);
            assert_same(&restored, format.word(), reference, &what);
        }
        let restored = fs::read_dir(&to).expect("it is readable").count();
        assert_eq!(restored, moment.disks.len(), "only the disks");
        fs::remove_dir_all(&to).expect("it is removed");
    }

    /// Restores all disks in place to the backup with this number, and compares every byte. The
    /// state before counts as a backup if it was saved.
    pub fn bring_back(&mut self, number: usize, options: &in_place::Options) -> in_place::Outcome {
        let id = self.moments[number].id.clone();
        let before: Vec<(String, PathBuf)> = self
            .targets()
            .into_iter()
            .map(|target| {
                let copy = self.copy(&target, &format!("before-{}", self.now.timestamp().as_second()));
                (target, copy)
            })
            .collect();
        let options = in_place::Options {
            at: id.clone(),
            ..options.clone()
        };
        let outcome = in_place::restore_in_place(&self.domain.name, &self.context(), &options);
        let outcome = outcome.expect("it is restored in place");
        self.pass(Span::new().minutes(10));
        for (target, reference) in self.moments[number].disks.clone() {
            let (image, format) = (self.domain.image_now(&target), self.domain.format(&target));
            assert_same(&image, format, &reference, &format!("{target} in place of {id}"));
            self.learn(&target);
        }
        let history = self.history();
        assert!(history.leftovers.is_empty(), "{:?}", history.leftovers);
        let mark = self.folder.path().join("the repository").join(&self.domain.name);
        assert!(!mark.join(".restoring.json").exists(), "the mark is gone");
        match &outcome.saved {
            Some(id) => self.moments.push(Moment {
                id: id.clone(),
                disks: before,
            }),
            None => before
                .into_iter()
                .for_each(|(_, copy)| fs::remove_file(copy).expect("it is there")),
        }
        outcome
    }

    /// Records that the restore point with this id can no longer be restored.
    pub fn lose(&mut self, id: &str) {
        let before = self.moments.len();
        self.moments.retain(|moment| moment.id != id);
        assert_eq!(self.moments.len(), before - 1, "{id} was kept");
    }

    /// Restores all disks into a folder.
    pub fn restore(
        &self,
        at: &str,
        to: &Path,
        format: Format,
        define: Option<DefineOptions>,
    ) -> Result<restore::Outcome> {
        let host: Option<&dyn Host> = match define {
            Some(_) => Some(&Lab::get().host),
            None => None,
        };
        let options = restore::Options {
            at: at.to_owned(),
            to: to.to_owned(),
            pool: None,
            disks: Vec::new(),
            format: Some(format),
            define,
        };
        let name = &self.domain.name;
        let plan = restore::plan(name, &self.repo, host, &options)?;
        let means = restore::Means {
            repo: &self.repo,
            store: &DiskStore,
            host,
            monitor: &self.recorder,
            stop: &Stop::default(),
        };
        restore::restore(name, plan, &means)
    }

    /// The reference copy of a disk at the backup with this number, counted from 0.
    pub fn reference(&self, number: usize, target: &str) -> &Path {
        let disks = &self.moments[number].disks;
        let found = disks.iter().find(|(of, _)| of == target);
        &found.expect("it was backed up").1
    }

    /// The ids of the restore points, oldest first.
    pub fn ids(&self) -> Vec<&str> {
        self.moments.iter().map(|moment| moment.id.as_str()).collect()
    }
}

/// Asserts that an image has the content of a raw file, according to QEMU and byte by byte.
pub fn assert_same(image: &Path, format: &str, reference: &Path, what: &str) {
    println!("comparing {what}");
    run_ok(
        "qemu-img",
        [&"compare", &"-f", &format, &"-F", &"raw", &image, &reference],
    );
    let expected = fs::read(reference).expect("it is readable");
    if format == "raw" {
        assert!(
            fs::read(image).expect("it is readable") == expected,
            "{what} differs"
        );
        return;
    }
    run_ok("qemu-img", [&"check", &"-q", &"-f", &format, &image]);
    let raw = image.with_extension("as-raw");
    run_ok(
        "qemu-img",
        [&"convert", &"-f", &format, &"-O", &"raw", &image, &raw],
    );
    assert!(
        fs::read(&raw).expect("it is readable") == expected,
        "{what} differs"
    );
    fs::remove_file(raw).expect("it is there");
}

/// The level of each disk: `(target, level)`.
pub fn levels(outcome: &Outcome) -> Vec<(&str, Level)> {
    let level = |disk: &'_ DiskPoint| disk.level;
    outcome
        .point
        .disks
        .iter()
        .map(|disk| (disk.target.as_str(), level(disk)))
        .collect()
}

/// The reason for a disk's level.
pub fn reason<'a>(outcome: &'a Outcome, target: &str) -> &'a str {
    &outcome.point.disk(target).expect("it was backed up").reason
}

/// The codes of findings.
pub fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.code.as_str()).collect()
}
