//! Every write, sync, rename and removal fails in turn, in each way that a file system can fail.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;
use vmsnap::io::{Claim, DiskStore, Store};
use vmsnap::model::block::ImageFile;
use vmsnap::model::restore_point::Level;
use vmsnap::model::text::with_sources;
use vmsnap::ops::Error;
use vmsnap::ops::backup::Options;
use vmsnap::repo::FolderRepository;

use super::{assert_next_run_heals, assert_unchanged, kept_files, two_points};
use crate::lab::{CLUSTER, Lab, NAMES};

/// A file system that starts to fail at one of its calls.
struct FailingStore(Arc<Plan>);

struct Plan {
    calls: AtomicUsize,
    /// The first call that fails; `usize::MAX` for none.
    first: AtomicUsize,
    /// The number of calls that fail.
    count: usize,
    errno: Errno,
    /// While this file exists, nothing new can be created.
    hog: OnceLock<PathBuf>,
    /// Whether removing a folder reports success but leaves the folder.
    keeps_dirs: AtomicBool,
}

impl Plan {
    fn new(errno: Errno, count: usize) -> Arc<Plan> {
        Arc::new(Plan {
            calls: AtomicUsize::new(0),
            first: AtomicUsize::new(usize::MAX),
            count,
            errno,
            hog: OnceLock::new(),
            keeps_dirs: AtomicBool::new(false),
        })
    }

    fn fail_from(&self, first: usize) {
        self.calls.store(0, Ordering::SeqCst);
        self.first.store(first, Ordering::SeqCst);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn call(&self) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let first = self.first.load(Ordering::SeqCst);
        if call >= first && call - first < self.count {
            return Err(self.errno.into());
        }
        Ok(())
    }
}

impl Plan {
    /// A call that needs room unless the file already exists.
    fn call_for_room(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        let is_full = self.hog.get().is_some_and(|hog| hog.exists());
        match is_full && !path.exists() {
            true => Err(Errno::NOSPC.into()),
            false => Ok(()),
        }
    }
}

impl Store for FailingStore {
    fn create_open_dir(&self, path: &Path) -> io::Result<()> {
        self.0.call_for_room(path)?;
        DiskStore.create_open_dir(path)
    }

    fn create_passage(&self, path: &Path) -> io::Result<()> {
        self.0.call_for_room(path)?;
        DiskStore.create_passage(path)
    }

    fn create_claimed(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)> {
        self.0.call_for_room(path)?;
        let (image, claim) = DiskStore.create_claimed(path)?;
        Ok((Box::new(FailingImage(image, Arc::clone(&self.0))), claim))
    }

    fn claim_image(&self, path: &Path) -> io::Result<(Box<dyn ImageFile>, Claim)> {
        self.0.call()?;
        let (image, claim) = DiskStore.claim_image(path)?;
        Ok((Box::new(FailingImage(image, Arc::clone(&self.0))), claim))
    }

    fn remove_unclaimed(&self, path: &Path) -> io::Result<bool> {
        self.0.call()?;
        DiskStore.remove_unclaimed(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.call_for_room(path)?;
        DiskStore.create_dir(path)
    }

    fn create_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        self.0.call_for_room(path)?;
        let file = DiskStore.create_image(path)?;
        Ok(Box::new(FailingImage(file, Arc::clone(&self.0))))
    }

    fn continue_image(&self, path: &Path) -> io::Result<Box<dyn ImageFile>> {
        self.0.call()?;
        let file = DiskStore.continue_image(path)?;
        Ok(Box::new(FailingImage(file, Arc::clone(&self.0))))
    }

    fn clone_image(&self, _: &Path, _: &Path) -> io::Result<Box<dyn ImageFile>> {
        self.0.call()?;
        Err(io::ErrorKind::Unsupported.into())
    }

    fn link(&self, file: &Path, name: &Path) -> io::Result<()> {
        self.0.call_for_room(name)?;
        DiskStore.link(file, name)
    }

    fn create_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        if let Err(error) = self.0.call_for_room(path) {
            // A full disk leaves a file with a part of its content.
            if self.0.errno == Errno::NOSPC {
                fs::write(path, &content[..content.len() / 2])?;
            }
            return Err(error);
        }
        DiskStore.create_file(path, content)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.call()?;
        DiskStore.rename(from, to)
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.call()?;
        DiskStore.replace(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.call()?;
        DiskStore.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.call()?;
        DiskStore.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.call()?;
        if self.0.keeps_dirs.load(Ordering::SeqCst) {
            return Ok(());
        }
        DiskStore.remove_dir(path)
    }
}

struct FailingImage(Box<dyn ImageFile>, Arc<Plan>);

impl ImageFile for FailingImage {
    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.1.call()?;
        self.0.set_len(length)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.call()?;
        self.0.write_at(bytes, offset)
    }

    fn free(&mut self, range: Range<u64>) -> io::Result<()> {
        self.1.call()?;
        self.0.free(range)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.1.call()?;
        self.0.sync()
    }
}

/// The operation during which the file system fails.
#[derive(Clone, Copy, Debug)]
enum Scene {
    FirstBackup,
    Incremental,
    /// The first backup of a new period, which deletes the period before.
    NewPeriodWithPrune,
}

fn options(scene: Scene) -> Options {
    Options {
        prune: matches!(scene, Scene::NewPeriodWithPrune),
        ..Lab::options()
    }
}

fn staged(scene: Scene, plan: &Arc<Plan>) -> Lab {
    let mut lab = Lab::with_store(Arc::new(FailingStore(Arc::clone(plan))));
    match scene {
        Scene::FirstBackup => {
            lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
            lab.host.disk("vm1", "vda", |disk| disk.write(0, &[1; CLUSTER]));
        }
        Scene::Incremental => two_points(&mut lab, "vm1"),
        Scene::NewPeriodWithPrune => {
            two_points(&mut lab, "vm1");
            lab.at("2026-12-20T02:00:00+01:00[Europe/Berlin]");
        }
    }
    lab
}

/// Runs a scene once for each call of the store, with that call failing, and then the next run.
fn every_call_fails(scene: Scene, errno: Errno, count: usize) {
    let rehearsal = Plan::new(errno, count);
    let mut lab = staged(scene, &rehearsal);
    rehearsal.fail_from(usize::MAX);
    lab.backup_with("vm1", &options(scene)).expect("all goes well");
    let calls = rehearsal.calls();
    assert!(calls > 12, "a backup takes more than {calls} calls");
    for call in 0..calls {
        let case = format!("{scene:?}, {errno:?} at call {call} of {calls}, {count} times");
        let plan = Plan::new(errno, count);
        let mut lab = staged(scene, &plan);
        let before = kept_files(&lab.root());
        let points = lab.history("vm1").kept.len();
        plan.fail_from(call);
        let result = lab.backup_with("vm1", &options(scene));
        plan.fail_from(usize::MAX);
        let after = kept_files(&lab.root());
        let history = lab.history("vm1");
        match result {
            // After the commit a failure causes only a finding. Pruning may have begun.
            Ok(outcome) => {
                let restored = lab.restored("vm1", &outcome.point.id, "vda");
                assert!(restored.expect("it exists") == lab.disk("vm1", "vda"), "{case}");
            }
            Err(error) => {
                assert_unchanged(&before, &after, &case);
                let text = with_sources(&error);
                assert!(text.starts_with("domain 'vm1'"), "{case}: {text}");
                assert!(
                    text.contains(&lab.root().display().to_string()),
                    "{case}: no path in {text}"
                );
                let reason = io::Error::from(errno).to_string();
                assert!(text.contains(&reason), "{case}: {text}");
                assert_eq!(
                    error.hint().is_some(),
                    errno == Errno::NOSPC,
                    "{case}: {:?}",
                    error.hint()
                );
                assert!(
                    history.kept.len() <= points + 1,
                    "{case}: at most the point whose rename was not synced"
                );
            }
        }
        assert!(!lab.host.has_job("vm1"), "{case}: a job is left");
        // Without room the journal entry may not be written or removed, so that only the folder is
        // left. The points stay whole.
        lab.history("vm1").kept.iter().for_each(|kept| {
            let id = &kept.manifest.point.id;
            assert!(history.chains.faults(id).is_empty(), "{case}: {id}");
            lab.restored("vm1", id, "vda").expect("it is whole");
        });
        assert_next_run_heals(&mut lab, "vm1", &case);
    }
}

#[test]
fn full_target_of_a_first_backup_is_not_called_missing() {
    let plan = Plan::new(Errno::NOSPC, 1);
    plan.fail_from(0);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("backups");
    let opened = FolderRepository::open_or_create(&root, Arc::new(FailingStore(plan)));
    let error = Error::of("", opened.map(drop).expect_err("it cannot be created"));
    let hint = error.hint().expect("a hint");
    assert!(hint.starts_with("free space on that file system"), "{hint}");
}

#[test]
fn leftovers_of_a_dead_run_are_removed_from_a_full_target() {
    let plan = Plan::new(Errno::NOSPC, 0);
    let mut lab = staged(Scene::Incremental, &plan);
    let partial = lab.leave_dead_run("vm1", NAMES[5]);
    let hog = partial.join("vda.qcow2");
    fs::write(&hog, b"all the room there is").expect("written");
    plan.hog.set(hog).expect("once");

    let outcome = lab.backup("vm1").expect("healed and backed up");
    assert!(!partial.exists());
    assert_eq!(outcome.point.level, Level::Incremental);
    assert!(lab.restored("vm1", "latest", "vda").expect("restored") == lab.disk("vm1", "vda"));
}

#[test]
fn repair_without_effect_is_given_up_with_an_error() {
    let plan = Plan::new(Errno::IO, 0);
    let mut lab = staged(Scene::Incremental, &plan);
    let partial = "vm1/vmsnap-backup-monthly-2026-11/2026-11-03T05-00-00Z.partial";
    fs::create_dir(lab.root().join(partial)).expect("new");
    plan.keeps_dirs.store(true, Ordering::SeqCst);
    let error = with_sources(&lab.backup("vm1").expect_err("it cannot be removed"));
    assert!(
        error.contains(partial) && error.contains("rounds of repairs were not enough"),
        "{error}"
    );
    plan.keeps_dirs.store(false, Ordering::SeqCst);
    lab.backup("vm1").expect("healed and backed up");
}

#[test]
fn target_full_at_any_write_loses_nothing_kept() {
    for scene in [Scene::FirstBackup, Scene::Incremental, Scene::NewPeriodWithPrune] {
        every_call_fails(scene, Errno::NOSPC, 1);
    }
}

#[test]
fn target_read_only_at_any_moment_loses_nothing_kept() {
    for scene in [Scene::FirstBackup, Scene::Incremental, Scene::NewPeriodWithPrune] {
        every_call_fails(scene, Errno::ROFS, usize::MAX);
    }
}

#[test]
fn target_failing_or_vanishing_loses_nothing_kept() {
    every_call_fails(Scene::Incremental, Errno::IO, 1);
    every_call_fails(Scene::Incremental, Errno::IO, 3);
    every_call_fails(Scene::Incremental, Errno::NOENT, usize::MAX);
}
