//! Records of verifications, and the verbs that rely on them.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Span;
use vmsnap::model::guest::BootLevel;
use vmsnap::model::restore_point::Level;

use vmsnap::ops::list::{Listed, list};
use vmsnap::ops::verify::{Options, Outcome, Which};
use vmsnap::repo::{BootProof, MissedWriteRecord};

use crate::lab::{InFolder, Lab, tree};
use crate::verify::{all, flip, lab, options, run, words};

mod interrupted;

fn deep(lab: &Lab) -> Options {
    Options {
        deep: true,
        ..options(lab, Which::All)
    }
}

/// Runs a verification a day later that skips points verified within four days.
fn lately(lab: &mut Lab, options: &Options) -> Outcome {
    lab.pass(Span::new().hours(24));
    let options = Options {
        now: lab.now.timestamp(),
        verified_since: Some(
            lab.now
                .checked_sub(Span::new().hours(96))
                .expect("a time")
                .timestamp(),
        ),
        ..options.clone()
    };
    run(lab, &options).expect("there are restore points")
}

fn skipped(outcome: &Outcome) -> Vec<bool> {
    let points = outcome.points.iter();
    points.map(|point| point.skipped.is_some()).collect()
}

fn listed(lab: &Lab) -> Vec<Listed> {
    let mut lists = list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("readable");
    lists.remove(0).points
}

fn records(lab: &Lab) -> Vec<PathBuf> {
    let dir = lab.root().join("vm1/.verified");
    let mut paths: Vec<PathBuf> = tree(&dir).into_iter().map(|name| dir.join(name)).collect();
    paths.sort();
    paths
}

fn level(lab: &mut Lab, target: &str) -> Level {
    let outcome = lab.backup("vm1").expect("a restore point");
    outcome.point.disk(target).expect("it is there").level
}

#[test]
fn missing_or_shortened_file_is_found_despite_recent_proof() {
    let files = [
        "virtnbdbackup.1793668200000000000000001.xml",
        "vda.qcow2 of the first",
        "vda.qcow2 of the last",
    ];
    let path_of = |lab: &Lab, file: &str| {
        let kept = lab.history("vm1").kept;
        match file {
            "vda.qcow2 of the first" => kept[0].dir().join("vda.qcow2"),
            "vda.qcow2 of the last" => kept[2].dir().join("vda.qcow2"),
            xml => kept[0].dir().with_file_name("checkpoints").join(xml),
        }
    };
    let cases: [fn(&Path); 2] = [
        |path| fs::remove_file(path).expect("it is there"),
        |path| {
            let file = fs::File::options().write(true).open(path);
            file.and_then(|file| file.set_len(10)).expect("it is there");
        },
    ];
    for (case, damage) in cases.into_iter().enumerate() {
        for file in files {
            let mut lab = lab();
            assert!(all(&lab).is_sound());
            let options = options(&lab, Which::All);
            assert_eq!(skipped(&lately(&mut lab, &options)), [true; 3]);
            let path = path_of(&lab, file);
            damage(&path);
            let outcome = lately(&mut lab, &options);
            let told = words(&outcome);
            assert!(
                told.contains(path.to_str().expect("a plain path")),
                "case {case}: {told}"
            );
        }
    }
}

#[test]
fn missing_parent_is_found_despite_a_recent_proof() {
    let mut lab = lab();
    assert!(all(&lab).is_sound());
    let second = lab.history("vm1").kept[1].dir().clone();
    fs::remove_dir_all(second).expect("it is there");
    let options = options(&lab, Which::All);
    assert!(!lately(&mut lab, &options).is_sound());
}

#[test]
fn shallow_verify_keeps_the_record_of_a_deep_one() {
    let mut lab = lab();
    let deep = deep(&lab);
    assert!(run(&lab, &deep).expect("there are restore points").is_sound());
    lab.pass(Span::new().hours(1));
    assert!(all(&lab).is_sound());
    let proofs: Vec<_> = listed(&lab).into_iter().filter_map(|point| point.proof).collect();
    assert!(
        proofs
            .iter()
            .all(|proof| !proof.deep && proof.last_deep() == Some(deep.now))
    );
    assert_eq!(skipped(&lately(&mut lab, &deep)), [true; 3]);

    // A point that was damaged since must be read again.
    let image = lab.history("vm1").kept[2].dir().join("vdb.qcow2");
    flip(&image, 70_000, 0);
    assert!(!all(&lab).is_sound());
    flip(&image, 70_000, 0);
    assert!(all(&lab).is_sound());
    assert_eq!(skipped(&lately(&mut lab, &deep)), [true, true, false]);
}

#[test]
fn damage_of_one_disk_or_small_file_makes_no_other_disk_full() {
    let mut lab = lab();
    let first = lab.history("vm1").kept[0].dir().clone();
    flip(&first.join("vdb.qcow2"), 70_000, 0);
    flip(&first.join("domain.xml"), 10, 0);
    let outcome = all(&lab);
    let damaged: Vec<Vec<&str>> = outcome
        .points
        .iter()
        .map(|point| {
            let disks = point.damage.iter().map(|damage| damage.disk.as_deref());
            disks.map(|disk| disk.unwrap_or("-")).collect()
        })
        .collect();
    let mut own = damaged[0].clone();
    own.sort_unstable();
    assert_eq!(own, ["-", "vdb"]);
    assert_eq!(damaged[1..], [["vdb"], ["vdb"]], "vda depends on nothing damaged");
    let doubts: Vec<bool> = listed(&lab)
        .iter()
        .map(|point| point.suspected_damage.is_some())
        .collect();
    assert_eq!(doubts, [true; 3]);
    let outcome = lab.backup("vm1").expect("a restore point");
    let level = |target| outcome.point.disk(target).expect("it is there").level;
    assert_eq!((level("vda"), level("vdb")), (Level::Incremental, Level::Full));
}

#[test]
fn unreadable_damage_record_is_damage_until_next_verify() {
    let mut lab = lab();
    let image = lab.history("vm1").kept[2].dir().join("vda.qcow2");
    flip(&image, 70_000, 0);
    assert!(!all(&lab).is_sound());
    let record = records(&lab)
        .into_iter()
        .find(|path| path.to_str().is_some_and(|path| path.contains(".damaged.")));
    let record = record.expect("damage was remembered");
    let length = fs::metadata(&record).expect("it is there").len() as usize;
    for at in (0..length).step_by(7) {
        flip(&record, at, 1);
        let kept = &lab.history("vm1").chains;
        let id = &kept.points()[2].point.id;
        assert!(kept.suspected_damage(id, "vda").is_some(), "byte {at}");
        flip(&record, at, 1);
    }
    flip(&record, 20, 1);
    let history = lab.history("vm1");
    assert!(
        history
            .findings
            .iter()
            .any(|finding| finding.code == "record-unreadable"),
        "{:?}",
        history.findings
    );
    // The next verification reports the unreadable record once more and replaces it.
    flip(&image, 70_000, 0);
    lab.pass(Span::new().hours(1));
    assert!(words(&all(&lab)).contains(record.to_str().expect("a plain path")));
    assert!(all(&lab).is_sound());
    assert_eq!(level(&mut lab, "vda"), Level::Incremental);
}

#[test]
fn missed_write_survives_a_flipped_bit_in_its_record() {
    let lab = lab();
    let history = lab.history("vm1");
    let newest = &history.kept[2].manifest;
    let missed = MissedWriteRecord {
        id: newest.point.id.clone(),
        manifest: newest.digest.clone(),
        time: lab.now.timestamp(),
        disks: vec!["vda".to_owned()],
    };
    let repository = lab.repo.domain("vm1").expect("a name");
    repository.keep_missed_writes(&missed).expect("remembered");
    let record = records(&lab).remove(0);
    let length = fs::metadata(&record).expect("it is there").len() as usize;
    for at in 0..length {
        flip(&record, at, 2);
        let chains = lab.history("vm1").chains;
        let kept = &chains.points()[2];
        assert!(
            kept.missed_write("vda").is_some(),
            "byte {at}: {:?}",
            kept.missed_writes
        );
        flip(&record, at, 2);
    }
    let chains = lab.history("vm1").chains;
    let kept = &chains.points()[2];
    let disks: Vec<&str> = kept
        .missed_writes
        .iter()
        .map(|missed| missed.disk.as_str())
        .collect();
    assert_eq!(disks, ["vda"]);
    flip(&record, 20, 1);
    assert!(words(&all(&lab)).contains(record.to_str().expect("a plain path")));
}

#[test]
fn proof_under_a_wrong_name_is_ignored() {
    let lab = lab();
    assert!(all(&lab).is_sound());
    let records = records(&lab);
    let dir = records[0].parent().expect("a folder");
    let text = fs::read_to_string(&records[2]).expect("it can be read");
    fs::write(dir.join("zz.json"), text.replace("2026", "2036")).expect("written");
    let image = lab.history("vm1").kept[2].dir().join("vda.qcow2");
    flip(&image, 70_000, 0);
    assert!(!all(&lab).is_sound());
    assert!(listed(&lab)[2].suspected_damage.is_some());
}

#[test]
fn records_of_a_point_under_a_wrong_name_are_kept() {
    let lab = lab();
    let kept = &lab.history("vm1").kept[2];
    let missed = MissedWriteRecord {
        id: kept.manifest.point.id.clone(),
        manifest: kept.manifest.digest.clone(),
        time: lab.now.timestamp(),
        disks: vec!["vda".to_owned()],
    };
    let repository = lab.repo.domain("vm1").expect("a name");
    repository.keep_missed_writes(&missed).expect("remembered");
    let away = kept.dir().with_file_name(format!("{}.partial", missed.id));
    fs::rename(kept.dir(), &away).expect("renamed");
    assert!(!all(&lab).is_sound());
    fs::rename(&away, kept.dir()).expect("renamed back");
    assert!(
        lab.history("vm1").chains.points()[2]
            .missed_write("vda")
            .is_some()
    );
}

fn boot_proof(lab: &Lab, place: usize) -> BootProof {
    let kept = &lab.history("vm1").kept[place].manifest;
    BootProof {
        id: kept.point.id.clone(),
        manifest: kept.digest.clone(),
        time: lab.now.timestamp(),
        reached: BootLevel::Nothing,
        wanted: BootLevel::Agent,
        pattern: None,
        command: Vec::new(),
        shortfall: Some("it did not answer".to_owned()),
        seconds: 60,
    }
}

/// Every change of a byte, and every shortened record.
#[test]
fn a_damaged_boot_proof_counts_for_nothing_and_is_reported() {
    let mut lab = lab();
    let domain = lab.repo.domain("vm1").expect("a name");
    domain.keep_boot_proof(&boot_proof(&lab, 1)).expect("recorded");
    let path = records(&lab).remove(0);
    assert!(path.to_string_lossy().ends_with(".boot.json"), "{path:?}");
    let text = fs::read(&path).expect("it is there");
    let booted = |lab: &Lab| lab.history("vm1").kept[1].boot_proof.clone();
    assert_eq!(booted(&lab), Some(boot_proof(&lab, 1)));
    for place in 0..text.len() {
        let mut changed = text.clone();
        changed[place] ^= 1;
        for content in [&changed[..], &text[..place]] {
            fs::write(&path, content).expect("written");
            let history = lab.history("vm1");
            assert_eq!(history.kept[1].boot_proof, None, "at {place}");
            let codes: Vec<_> = history
                .findings
                .iter()
                .map(|finding| finding.code.as_str())
                .collect();
            assert_eq!(codes, ["record-unreadable"], "at {place}");
            let what = &history.findings[0].message;
            assert!(
                what.ends_with("this record does not count as a boot proof"),
                "{what}"
            );
            let points = history.chains.points();
            assert!(points.iter().all(|kept| kept.suspected_damage.is_empty()));
            assert!(points.iter().all(|kept| kept.missed_writes.is_empty()));
        }
    }
    // The next one replaces it.
    lab.pass(Span::new().hours(1));
    domain.keep_boot_proof(&boot_proof(&lab, 1)).expect("recorded");
    assert_eq!(booted(&lab), Some(boot_proof(&lab, 1)));
    assert_eq!(records(&lab).len(), 1);
}

#[test]
fn boot_proofs_of_removed_points_go_and_others_stay() {
    let mut lab = lab();
    let domain = lab.repo.domain("vm1").expect("a name");
    for place in 0..3 {
        domain
            .keep_boot_proof(&boot_proof(&lab, place))
            .expect("recorded");
    }
    assert!(all(&lab).is_sound());
    assert_eq!(records(&lab).len(), 6, "the verification removes no boot proof");
    lab.at("2026-12-01T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("a new chain");
    domain.keep_boot_proof(&boot_proof(&lab, 3)).expect("recorded");
    fs::remove_dir_all(lab.root().join("vm1/vmsnap-backup-monthly-2026-11")).expect("by hand");
    domain.forget_removed().expect("some are removed");
    let left = records(&lab);
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(lab.history("vm1").kept[0].boot_proof, Some(boot_proof(&lab, 0)));
}

/// A record as a killed run, or one without disk space, leaves it.
#[test]
fn unfinished_record_is_ignored_and_removed() {
    let lab = lab();
    let ids: Vec<String> = listed(&lab).into_iter().map(|point| point.point.id).collect();
    let dir = lab.root().join("vm1/.verified");
    fs::create_dir(&dir).expect("new");
    for (id, kind) in ids.iter().zip(["json", "damaged.json", "damaged.json"]) {
        fs::write(dir.join(format!("{id}.2026-10-01T02-00-03Z.{kind}.new")), b"").expect("written");
    }
    assert!(listed(&lab).iter().all(|point| point.suspected_damage.is_none()));
    let outcome = all(&lab);
    assert!(
        outcome.is_sound() && outcome.findings.is_empty(),
        "{}",
        words(&outcome)
    );
    assert_eq!(records(&lab).len(), 3);
}
