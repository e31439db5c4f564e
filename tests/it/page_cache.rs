//! Verbs that read a repository leave nothing of its images in the page cache.

use std::fs;
use std::path::{Path, PathBuf};

use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::compare::compare;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::restore::{self, Format};
use vmsnap::ops::verify::{self, Outcome, Which, verify};
use vmsnap::ops::{Cause, Event, Monitor, Result};
use vmsnap::testkit::{cached_bytes, forget_cached};

use crate::lab::{InFolder, Lab};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
const SIZE: usize = 40 * MIB;

/// Two restore points on a real disk. On tmpfs the page cache itself holds the files.
fn lab() -> Lab {
    let mut lab = Lab::on_disk();
    lab.host.add_domain("vm1", &[("vda", SIZE)]);
    let mut bytes = vec![0; SIZE];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &bytes));
    lab.backup("vm1").expect("a full");
    lab.host
        .disk("vm1", "vda", |disk| disk.write(3 * MIB, &bytes[..4 * MIB]));
    lab.backup("vm1").expect("an increment");
    lab
}

fn images(lab: &Lab) -> Vec<PathBuf> {
    let kept = lab.history("vm1").kept;
    kept.iter().map(|kept| kept.dir().join("vda.qcow2")).collect()
}

fn cached(path: &Path) -> u64 {
    cached_bytes(path).unwrap_or_else(|error| {
        panic!(
            "the file system of {} does not report cached pages: {error}",
            path.display()
        )
    })
}

fn forget(image: &Path) {
    forget_cached(image).expect("the cached pages are dropped");
}

/// Attempts for each verb. The kernel keeps pages that it is moving when a verb drops them, which
/// is not the verb's fault.
const ATTEMPTS: usize = 5;

/// Fails if bytes of the images stay cached in every attempt.
fn assert_leaves_nothing_cached(lab: &Lab, what: &str, mut verb: impl FnMut()) {
    let images = images(lab);
    let mut left = vec![];
    for _ in 0..ATTEMPTS {
        images.iter().for_each(|image| forget(image));
        verb();
        left = images.iter().map(|image| cached(image)).collect();
        if left.iter().all(|bytes| *bytes == 0) {
            return;
        }
    }
    panic!("{what} leaves {left:?} bytes of {images:?} in the cache");
}

fn prove(lab: &Lab, deep: bool, monitor: &dyn Monitor, stop: &Stop) -> Result<verify::Outcome> {
    let options = verify::Options {
        which: Which::Latest,
        deep,
        not_since: None,
        now: lab.now.timestamp(),
    };
    verify("vm1", lab.repo.as_ref(), &options, monitor, stop)
}

fn restore(lab: &Lab, monitor: &dyn Monitor, stop: &Stop) -> Result<()> {
    let to = lab.free_path();
    let options = restore::Options {
        format: Some(Format::Raw),
        ..lab.restoring()
    };
    let plan = restore::plan("vm1", lab.repo.as_ref(), None, &options)?;
    let restored = restore::restore("vm1", plan, &lab.means(monitor, stop));
    let _ = fs::remove_dir_all(to);
    restored.map(|_| ())
}

#[test]
fn the_test_sees_what_is_cached() {
    let lab = lab();
    let image = &images(&lab)[0];
    let length = fs::read(image).expect("it can be read").len();
    assert_eq!(cached(image), length.next_multiple_of(PAGE) as u64);
    forget(image);
    assert_eq!(cached(image), 0);
}

#[test]
fn verify_and_restore_leave_no_image_in_the_page_cache() {
    let lab = lab();
    let stop = Stop::default();
    assert_leaves_nothing_cached(&lab, "a verification", || {
        assert!(prove(&lab, false, &Silent, &stop).expect("proved").is_sound());
    });
    assert_leaves_nothing_cached(&lab, "a deep verification", || {
        assert!(prove(&lab, true, &Silent, &stop).expect("proved").is_sound());
    });
    assert_leaves_nothing_cached(&lab, "a restore", || {
        restore(&lab, &Silent, &stop).expect("restored");
    });
}

/// A damaged image is read again to locate the damage.
#[test]
fn nothing_of_a_damaged_image_stays_in_the_page_cache_either() {
    let lab = lab();
    let image = &images(&lab)[0];
    let mut bytes = fs::read(image).expect("it can be read");
    bytes[20 * MIB] ^= 1;
    fs::write(image, bytes).expect("it can be written");
    fs::File::open(image)
        .and_then(|file| file.sync_all())
        .expect("it can be synced");
    assert_leaves_nothing_cached(&lab, "a verification that found damage", || {
        let outcome = prove(&lab, true, &Silent, &Stop::default()).expect("proved");
        assert!(!outcome.is_sound());
    });
}

/// Requests a stop when a disk, or a file whose name begins with this, is half read.
struct Stopper<'a> {
    file: &'static str,
    stop: &'a Stop,
}

impl Monitor for Stopper<'_> {
    fn event(&self, event: Event<'_>) {
        let at = match event {
            Event::FileAt { file, position, .. } if file.starts_with(self.file) => position,
            Event::DiskAt { position, .. } => position,
            _ => 0,
        };
        if at >= SIZE as u64 / 2 {
            self.stop.request(StopReason::Interrupted);
        }
    }
}

/// `Ok`, or the error that ended the verification.
fn whole(outcome: Outcome) -> Result<()> {
    outcome.ended.map_or(Ok(()), Err)
}

#[test]
fn stopped_run_leaves_nothing_in_the_page_cache() {
    let lab = lab();
    type Verb = fn(&Lab, &dyn Monitor, &Stop) -> Result<()>;
    let verbs: [(&str, &'static str, Verb); 3] = [
        ("a verification", "vmsnap-backup-", |lab, monitor, stop| {
            prove(lab, false, monitor, stop).and_then(whole)
        }),
        ("a deep verification", "disk vda", |lab, monitor, stop| {
            prove(lab, true, monitor, stop).and_then(whole)
        }),
        ("a restore", "none", restore),
    ];
    for (name, file, verb) in verbs {
        assert_leaves_nothing_cached(&lab, &format!("{name} that is stopped"), || {
            let stop = Stop::default();
            let stopper = Stopper { file, stop: &stop };
            let error = verb(&lab, &stopper, &stop).expect_err("it was asked to stop");
            assert!(
                matches!(error.cause, Cause::Stopped(StopReason::Interrupted)),
                "{name}: {error}"
            );
        });
    }
}

/// The bytes that this thread has read from disks so far.
fn read_from_disks() -> usize {
    let counts = fs::read_to_string("/proc/thread-self/io").expect("the kernel counts what is read");
    let line = counts.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    line.and_then(|count| count.parse().ok()).expect("a number")
}

#[test]
fn verify_reads_the_disk_and_not_the_page_cache() {
    let lab = lab();
    let length: usize = images(&lab)
        .iter()
        .map(|image| fs::read(image).expect("it can be read").len())
        .sum();
    let mut read = 0;
    for _ in 0..ATTEMPTS {
        // Each attempt first fills the cache. Pages that the kernel is moving stay cached and are
        // not read from the disk.
        for image in images(&lab) {
            fs::read(image).expect("it can be read");
        }
        let before = read_from_disks();
        assert!(
            prove(&lab, false, &Silent, &Stop::default())
                .expect("proved")
                .is_sound()
        );
        read = read_from_disks() - before;
        if read >= length {
            return;
        }
    }
    panic!("{read} of {length} bytes came from the disk");
}

/// Records the cached bytes of an image when nearly all of it has been compared.
struct Watcher<'a> {
    image: &'a Path,
    cached: std::sync::Mutex<Option<u64>>,
}

impl Monitor for Watcher<'_> {
    fn event(&self, event: Event<'_>) {
        if matches!(event, Event::FileAt { position, .. } if position >= 39 * MIB as u64) {
            let mut seen = self.cached.lock().expect("no panic");
            seen.get_or_insert_with(|| cached(self.image));
        }
    }
}

#[test]
fn comparison_leaves_nothing_in_the_page_cache() {
    let lab = lab();
    let image = &images(&lab)[0];
    let options = Lab::comparing();
    assert_leaves_nothing_cached(&lab, "a comparison", || {
        let watcher = Watcher {
            image,
            cached: std::sync::Mutex::new(None),
        };
        let outcome = compare("vm1", &lab.context(&watcher), &options).expect("compared");
        assert!(outcome.is_same() && outcome.disks[0].compared == (SIZE / MIB * 16) as u64);
        let cached = watcher.cached.into_inner().expect("no panic");
        assert!(
            cached.is_some_and(|bytes| bytes > 0 && bytes < 20 * MIB as u64),
            "{cached:?} bytes cached near the end of the image"
        );
    });
}
