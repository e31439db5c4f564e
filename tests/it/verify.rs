//! Verification: sound points are reported as sound, all damage is found, and results are recorded.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::{Span, Timestamp};
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::list::list;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::verify::{Damage, Options, Outcome, Which, verify};
use vmsnap::ops::{Cause, Class, Result};
use vmsnap::repo::Manifest;

use crate::lab::{CLUSTER, InFolder, Lab};

mod alone;
mod changes;
mod deep;

pub fn options(lab: &Lab, which: Which) -> Options {
    Options {
        which,
        deep: false,
        verified_since: None,
        now: lab.now.timestamp(),
    }
}

pub fn run(lab: &Lab, options: &Options) -> Result<Outcome> {
    verify("vm1", lab.repo.as_ref(), options, &Silent, &Stop::default())
}

pub fn all(lab: &Lab) -> Outcome {
    run(lab, &options(lab, Which::All)).expect("there are restore points")
}

/// Three restore points of two disks.
pub fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", 6 * CLUSTER), ("vdb", CLUSTER + 512)]);
    for round in 0..3u8 {
        lab.host.disk("vm1", "vda", |disk| {
            disk.write(usize::from(round) * CLUSTER, &[round + 1; 3000])
        });
        lab.host
            .disk("vm1", "vdb", |disk| disk.write(100, &[round + 7; 600]));
        lab.backup("vm1").expect("a restore point");
    }
    lab
}

/// Every file that belongs to a restore point.
fn files(lab: &Lab) -> Vec<PathBuf> {
    let root = lab.root().join("vm1");
    let mut files: Vec<PathBuf> = crate::lab::tree(&root)
        .into_iter()
        .filter(|name| name.starts_with("vmsnap-backup") && !name.contains("/.committed/"))
        .map(|name| root.join(name))
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

pub fn flip(path: &Path, at: usize, bit: usize) {
    let mut bytes = fs::read(path).expect("it can be read");
    bytes[at] ^= 1 << bit;
    fs::write(path, bytes).expect("it can be written");
}

/// The messages about all damage.
pub fn words(outcome: &Outcome) -> String {
    let damage: Vec<&str> = outcome.all_damage().map(|damage| damage.what.as_str()).collect();
    damage.join("\n")
}

#[test]
fn sound_point_is_read_completely_and_reported_sound() {
    let lab = lab();
    let outcome = all(&lab);
    assert!(outcome.is_sound(), "{}", words(&outcome));
    assert_eq!(outcome.points.len(), 3);
    let kept = lab.history("vm1").kept;
    let sizes = kept.iter().flat_map(|kept| {
        let checkpoint = kept.manifest.checkpoint_file.iter();
        kept.manifest.files.iter().chain(checkpoint).map(|file| file.size)
    });
    assert_eq!(outcome.bytes, sizes.sum::<u64>());
    let deep = Options {
        deep: true,
        ..options(&lab, Which::All)
    };
    let deep = run(&lab, &deep).expect("there are restore points");
    assert!(deep.is_sound() && deep.bytes > outcome.bytes);
}

#[test]
fn one_flipped_byte_anywhere_is_found_and_its_file_named() {
    let lab = lab();
    let mut random = 0x9e37_79b9_u64;
    for path in files(&lab) {
        let length = fs::metadata(&path).expect("it is there").len();
        for _ in 0..12 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (at, bit) = ((random >> 33) % length, (random >> 20) as usize % 8);
            flip(&path, at as usize, bit);
            let outcome = all(&lab);
            let told = words(&outcome);
            assert!(
                told.contains(path.to_str().expect("a plain path")),
                "byte {at} of {}: {told}",
                path.display()
            );
            flip(&path, at as usize, bit);
        }
    }
    assert!(all(&lab).is_sound(), "everything is restored");
}

#[test]
fn damage_is_located_to_the_mebibyte() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 80 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[5; 80 * CLUSTER]));
    lab.backup_with("vm1", &Lab::plain()).expect("a restore point");
    let image = lab.history("vm1").kept[0].dir().join("vda.qcow2");
    for at in [2_200_000, 3_300_000, 4_000_001] {
        flip(&image, at, 4);
    }
    let outcome = all(&lab);
    let places: Vec<Option<u64>> = outcome.all_damage().map(|damage| damage.offset).collect();
    assert_eq!(places, [Some(2 << 20); 2], "{}", words(&outcome));
    assert!(
        words(&outcome).contains("between offset 2097152 and offset 4194304"),
        "{}",
        words(&outcome)
    );
    let of_image = |damage: &&Damage| damage.location == Some(image.display().to_string());
    assert_eq!(outcome.all_damage().filter(of_image).count(), 2);
}

#[test]
fn missing_swapped_shortened_or_extended_file_is_found() {
    let lab = lab();
    let paths = files(&lab);
    for path in &paths {
        let bytes = fs::read(path).expect("it can be read");
        let twin = paths
            .iter()
            .find(|twin| *twin != path && twin.extension() == path.extension())
            .unwrap_or(path);
        let swapped = fs::read(twin).expect("it can be read");
        let mut longer = bytes.clone();
        longer.push(0);
        let cases = [
            None,
            Some(bytes[..bytes.len() - 1].to_vec()),
            Some(longer),
            Some(vec![]),
            (swapped != bytes).then_some(swapped),
        ];
        for (case, content) in cases.into_iter().enumerate() {
            match content {
                Some(content) => fs::write(path, content).expect("it can be written"),
                None => fs::remove_file(path).expect("it is there"),
            }
            let outcome = all(&lab);
            let told = words(&outcome);
            assert!(
                told.contains(path.to_str().expect("a plain path")),
                "case {case} of {}: {told}",
                path.display()
            );
            let mut of_file = outcome
                .all_damage()
                .filter(|damage| damage.location == Some(path.display().to_string()));
            let has_place = of_file.any(|damage| damage.offset.is_some());
            assert!(
                case > 0 || !has_place,
                "the damage of a missing file has no place"
            );
        }
        fs::write(path, bytes).expect("it can be written");
    }
    assert!(all(&lab).is_sound(), "everything is restored");
}

#[test]
fn link_or_pipe_in_place_of_a_file_is_damage_without_waiting() {
    let lab = lab();
    let image = lab.history("vm1").kept[1].dir().join("vda.qcow2");
    let elsewhere = lab.folder.path().join("elsewhere");
    fs::rename(&image, &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, &image).expect("linked");
    assert!(words(&all(&lab)).contains(image.to_str().expect("a plain path")));
    fs::remove_file(&image).expect("it is there");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &image,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("a pipe");
    assert!(words(&all(&lab)).contains(image.to_str().expect("a plain path")));
}

#[test]
fn newest_point_is_verified_with_its_chain_and_no_other() {
    let mut lab = lab();
    lab.at("2026-12-01T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("a new chain");
    let newest = lab.backup("vm1").expect("an increment").point.id;
    let old = lab.history("vm1").kept[1].dir().join("vda.qcow2");
    flip(&old, 70_000, 3);
    let outcome = run(&lab, &options(&lab, Which::Latest)).expect("there is one");
    assert!(outcome.is_sound(), "{}", words(&outcome));
    assert_eq!(outcome.points.len(), 2);
    assert_eq!(outcome.points[1].id, newest);
    let at = lab.history("vm1").kept[2].manifest.point.id.clone();
    let outcome = run(&lab, &options(&lab, Which::At(at))).expect("there is one");
    assert_eq!(outcome.points.len(), 3);
    assert!(words(&outcome).contains(old.to_str().expect("a plain path")));
    let error = run(&lab, &options(&lab, Which::At("nonsense".to_owned()))).expect_err("none");
    assert_eq!(error.class(), Class::NotFound);
}

#[test]
fn found_damage_is_recorded_and_nothing_new_relies_on_it() {
    let mut lab = lab();
    let image = lab.history("vm1").kept[1].dir().join("vda.qcow2");
    flip(&image, 70_000, 0);
    assert!(!all(&lab).is_sound());
    let listed = &list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("readable")[0];
    let damaged: Vec<bool> = listed
        .points
        .iter()
        .map(|point| point.suspected_damage.is_some())
        .collect();
    assert_eq!(damaged, [false, true, true], "the third depends on the second");

    let outcome = lab.backup("vm1").expect("a restore point");
    let disk = |target| outcome.point.disk(target).expect("it is there");
    // The first point and its bitmap are sound, so the next backup can be incremental.
    assert_eq!(disk("vda").level, Level::Incremental);
    assert_eq!(
        disk("vda").parent.as_deref(),
        Some(lab.history("vm1").kept[0].manifest.point.id.as_str())
    );
    assert!(
        disk("vda").reason.contains("is damaged"),
        "{}",
        disk("vda").reason
    );
    lab.assert_gives_back("vm1", "vda");

    let first = lab.history("vm1").kept[0].dir().join("vda.qcow2");
    flip(&first, 70_000, 0);
    assert!(!all(&lab).is_sound());
    let outcome = lab.backup("vm1").expect("a restore point");
    assert_eq!(outcome.point.disk("vda").expect("it is there").level, Level::Full);
    lab.assert_gives_back("vm1", "vda");

    // After a repair by hand, the last verification counts.
    flip(&first, 70_000, 0);
    flip(&image, 70_000, 0);
    assert!(all(&lab).is_sound());
    let listed = &list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("readable")[0];
    assert!(listed.points.iter().all(|point| {
        let proof = point.proof.as_ref().expect("it was proved");
        proof.is_sound()
    }));
}

#[test]
fn a_period_is_not_pruned_for_one_that_was_found_damaged() {
    let mut lab = lab();
    lab.at("2026-12-20T02:00:00+01:00[Europe/Berlin]");
    let full = lab.backup("vm1").expect("a new chain");
    flip(&full.dir().join("vda.qcow2"), 70_000, 0);
    assert!(!all(&lab).is_sound());
    let repository = lab.repo.domain("vm1").expect("a name");
    let plan = vmsnap::ops::prune::plan(
        repository.as_ref(),
        &lab.history("vm1").chains,
        vmsnap::model::period::GroupBy::Month,
        lab.now.date(),
    );
    match plan {
        vmsnap::ops::prune::PrunePlan::Keep(why) => assert!(why.contains("is damaged"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn recently_verified_points_are_skipped_unless_deep() {
    let mut lab = lab();
    assert!(all(&lab).is_sound());
    let week = Span::new().days(7);
    let later = |lab: &Lab, deep| Options {
        deep,
        verified_since: Some(lab.now.checked_sub(week).expect("in range").timestamp()),
        ..options(lab, Which::All)
    };
    let skipped = |outcome: &Outcome| {
        let skipped = outcome.points.iter().filter(|point| point.skipped.is_some());
        skipped.count()
    };
    let soon = run(&lab, &later(&lab, false)).expect("there are some");
    assert_eq!((skipped(&soon), soon.bytes), (3, 0));
    let deep = run(&lab, &later(&lab, true)).expect("there are some");
    assert_eq!(skipped(&deep), 0, "a verification of files does not suffice");
    assert_eq!(
        skipped(&run(&lab, &later(&lab, true)).expect("there are restore points")),
        3
    );
    lab.pass(Span::new().days(8));
    assert_eq!(
        skipped(&run(&lab, &later(&lab, false)).expect("there are restore points")),
        0
    );
    // The clock was ahead and has been corrected.
    lab.pass(Span::new().days(-3));
    assert_eq!(
        skipped(&run(&lab, &later(&lab, false)).expect("there are restore points")),
        0
    );
    let image = lab.history("vm1").kept[2].dir().join("vda.qcow2");
    flip(&image, 70_000, 1);
    assert!(
        !run(&lab, &options(&lab, Which::All))
            .expect("there are restore points")
            .is_sound()
    );
    flip(&image, 70_000, 1);
    let again = run(&lab, &later(&lab, false)).expect("there are restore points");
    assert_eq!(skipped(&again), 2, "the damaged point is read again");
}

/// Replaces an image and updates the manifest to match.
fn forge(lab: &Lab, index: usize, change: impl FnOnce(&mut Vec<u8>, &mut Manifest)) {
    let history = lab.history("vm1");
    let kept = &history.kept[index];
    let path = kept.dir().join("vda.qcow2");
    let mut bytes = fs::read(&path).expect("it can be read");
    let mut manifest = kept.manifest.clone();
    change(&mut bytes, &mut manifest);
    let entry = manifest
        .files
        .iter_mut()
        .find(|file| file.name == "vda.qcow2")
        .expect("it is listed");
    entry.size = bytes.len() as u64;
    entry.blake3 = blake3::hash(&bytes).to_hex().to_string();
    fs::write(&path, bytes).expect("it can be written");
    let text = manifest.to_text().expect("JSON");
    fs::write(kept.dir().join("manifest.json"), text).expect("it can be written");
}

#[test]
fn wrong_structure_or_parent_is_found_despite_valid_digest() {
    let lab_with = |change: fn(&mut Vec<u8>, &mut Manifest)| {
        let lab = lab();
        forge(&lab, 2, change);
        words(&all(&lab))
    };
    let structure = lab_with(|bytes, _| {
        let block = u64::from_be_bytes(bytes[48..56].try_into().expect("eight bytes")) as usize;
        bytes[block + 5] ^= 1;
    });
    assert!(structure.contains("vda.qcow2: at offset"), "{structure}");
    let parent = lab_with(|_, manifest| {
        let point = &mut manifest.point;
        let first = point.disks[1].parent.clone().expect("it has one");
        let other = first.replace("01-10-00Z", "01-00-00Z");
        assert_ne!(first, other);
        point.disks[0].parent = Some(other);
    });
    assert!(parent.contains("the backing file of the image is"), "{parent}");
    let size = lab_with(|_, manifest| manifest.point.disks[0].virtual_size += 512);
    assert!(size.contains("the image is for a disk of"), "{size}");
}

#[test]
fn a_result_that_cannot_be_kept_is_a_result_all_the_same() {
    let lab = lab();
    fs::write(lab.root().join("vm1/.verified"), b"in the way").expect("written");
    let outcome = all(&lab);
    assert!(outcome.is_sound());
    assert_eq!(outcome.findings.len(), 1, "{:?}", outcome.findings);
    assert_eq!(outcome.findings[0].code, "proof-not-kept");
}

#[test]
fn damaged_forged_or_stale_proofs_are_ignored() {
    let mut lab = lab();
    assert!(all(&lab).is_sound());
    let dir = lab.root().join("vm1/.verified");
    let proofs = |lab: &Lab| {
        let kept = lab.history("vm1").kept;
        kept.iter().filter(|kept| kept.proof.is_some()).count()
    };
    assert_eq!(proofs(&lab), 3);
    let mut paths = fs::read_dir(&dir).expect("it is there");
    let path = paths.next().expect("one").expect("readable").path();
    fs::write(&path, b"{\"id\": 7").expect("written");
    assert_eq!(proofs(&lab), 2);
    // A restore point that was replaced under the same id has no proof.
    forge(&lab, 2, |_, manifest| manifest.host.push('x'));
    assert!(proofs(&lab) <= 2);
    assert!(lab.history("vm1").kept[2].proof.is_none());
    // The next verification removes the proofs of a deleted period.
    lab.at("2026-12-01T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("a new chain");
    fs::remove_dir_all(lab.root().join("vm1/vmsnap-backup-monthly-2026-11")).expect("by hand");
    assert!(all(&lab).is_sound());
    assert_eq!(fs::read_dir(&dir).expect("it is there").count(), 1);
}

#[test]
fn foreign_files_beside_proofs_stay_and_links_are_ignored() {
    let mut lab = lab();
    let dir = lab.root().join("vm1/.verified");
    fs::create_dir(&dir).expect("new");
    fs::write(dir.join("notes.json"), b"mine").expect("written");
    assert!(all(&lab).is_sound());
    assert!(dir.join("notes.json").exists());

    let precious = lab.folder.path().join("precious");
    fs::create_dir(&precious).expect("new");
    let theirs = precious.join("2020-01-01T00-00-00Z.2020-01-02T00-00-00Z.json");
    fs::write(&theirs, b"mine").expect("written");
    fs::write(precious.join("virtnbdbackup.0"), b"mine").expect("written");
    fs::remove_dir_all(&dir).expect("it was there");
    std::os::unix::fs::symlink(&precious, &dir).expect("linked");
    std::os::unix::fs::symlink(&precious, lab.root().join("vm1/.spent")).expect("linked");
    assert!(all(&lab).is_sound());
    lab.host.fail_reads_after(Some(0));
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[99; 10]));
    lab.backup("vm1").expect_err("the export breaks");
    assert!(theirs.exists() && precious.join("virtnbdbackup.0").exists());
}

#[test]
fn stop_ends_verify_and_unknown_domain_is_an_error() {
    let lab = lab();
    let stop = Stop::default();
    stop.request(StopReason::Terminated);
    let error = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &Silent,
        &stop,
    )
    .expect_err("stopped");
    assert!(
        matches!(error.cause, Cause::Stopped(StopReason::Terminated)),
        "{error}"
    );
    let error = verify(
        "vm9",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &Silent,
        &Stop::default(),
    );
    assert_eq!(error.expect_err("there is none").class(), Class::NotFound);
    assert!(options(&lab, Which::All).now > Timestamp::UNIX_EPOCH);
}
