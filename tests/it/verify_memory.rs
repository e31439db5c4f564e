//! What is remembered of verifications, and what relies on it.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::{Span, Timestamp};
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::list::{Listed, list};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::verify::{Options, Outcome, Which, verify};
use vmsnap::ops::{Cause, Event, Monitor};
use vmsnap::repo::Missed;

use crate::lab::{CLUSTER, InFolder, Lab, tree};
use crate::verify::{all, flip, lab, options, run, words};

fn deep(lab: &Lab) -> Options {
    Options {
        deep: true,
        ..options(lab, Which::All)
    }
}

/// The same again a day later, for what was not proved within four days.
fn lately(lab: &mut Lab, options: &Options) -> Outcome {
    lab.pass(Span::new().hours(24));
    let options = Options {
        now: lab.now.timestamp(),
        not_since: Some(
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
fn what_is_missing_or_cut_is_found_though_it_was_proved_lately() {
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
fn a_parent_that_is_missing_is_found_though_all_was_proved_lately() {
    let mut lab = lab();
    assert!(all(&lab).is_sound());
    let second = lab.history("vm1").kept[1].dir().clone();
    fs::remove_dir_all(second).expect("it is there");
    let options = options(&lab, Which::All);
    assert!(!lately(&mut lab, &options).is_sound());
}

#[test]
fn a_verification_of_the_files_alone_does_not_forget_that_every_disk_was_read() {
    let mut lab = lab();
    let deep = deep(&lab);
    assert!(run(&lab, &deep).expect("some").is_sound());
    lab.pass(Span::new().hours(1));
    assert!(all(&lab).is_sound());
    let proofs: Vec<_> = listed(&lab).into_iter().filter_map(|point| point.proof).collect();
    assert!(
        proofs
            .iter()
            .all(|proof| !proof.deep && proof.last_deep() == Some(deep.now))
    );
    assert_eq!(skipped(&lately(&mut lab, &deep)), [true; 3]);

    // One that was damaged meanwhile has to be read again.
    let image = lab.history("vm1").kept[2].dir().join("vdb.qcow2");
    flip(&image, 70_000, 0);
    assert!(!all(&lab).is_sound());
    flip(&image, 70_000, 0);
    assert!(all(&lab).is_sound());
    assert_eq!(skipped(&lately(&mut lab, &deep)), [true, true, false]);
}

#[test]
fn damage_to_one_disk_or_to_a_small_file_makes_no_other_disk_full() {
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
    assert_eq!(
        damaged[1..],
        [["vdb"], ["vdb"]],
        "vda stands upon nothing damaged"
    );
    let doubts: Vec<bool> = listed(&lab).iter().map(|point| point.doubt.is_some()).collect();
    assert_eq!(doubts, [true; 3]);
    let outcome = lab.backup("vm1").expect("a restore point");
    let level = |target| outcome.point.disk(target).expect("it is there").level;
    assert_eq!((level("vda"), level("vdb")), (Level::Incremental, Level::Full));
}

#[test]
fn a_record_of_damage_that_cannot_be_read_counts_as_damage_until_the_next_verification() {
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
        assert!(kept.doubt(id, "vda").is_some(), "byte {at}");
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
    // It is told once more by the verification that puts it right.
    flip(&image, 70_000, 0);
    lab.pass(Span::new().hours(1));
    assert!(words(&all(&lab)).contains(record.to_str().expect("a plain path")));
    assert!(all(&lab).is_sound());
    assert_eq!(level(&mut lab, "vda"), Level::Incremental);
}

#[test]
fn a_missed_write_is_not_forgotten_for_a_flipped_bit_in_what_remembers_it() {
    let lab = lab();
    let history = lab.history("vm1");
    let newest = &history.kept[2].manifest;
    let missed = Missed {
        id: newest.point.id.clone(),
        manifest: newest.digest.clone(),
        time: lab.now.timestamp(),
        disks: vec!["vda".to_owned()],
    };
    let repository = lab.repo.domain("vm1").expect("a name");
    repository.keep_missed(&missed).expect("remembered");
    let record = records(&lab).remove(0);
    let length = fs::metadata(&record).expect("it is there").len() as usize;
    for at in 0..length {
        flip(&record, at, 2);
        let chains = lab.history("vm1").chains;
        let kept = &chains.points()[2];
        assert!(kept.missed_write("vda").is_some(), "byte {at}: {:?}", kept.missed);
        flip(&record, at, 2);
    }
    let chains = lab.history("vm1").chains;
    let kept = &chains.points()[2];
    let disks: Vec<&str> = kept.missed.iter().map(|missed| missed.disk.as_str()).collect();
    assert_eq!(disks, ["vda"]);
    flip(&record, 20, 1);
    assert!(words(&all(&lab)).contains(record.to_str().expect("a plain path")));
}

#[test]
fn a_proof_under_another_name_than_its_own_counts_for_nothing() {
    let lab = lab();
    assert!(all(&lab).is_sound());
    let records = records(&lab);
    let dir = records[0].parent().expect("a folder");
    let text = fs::read_to_string(&records[2]).expect("it can be read");
    fs::write(dir.join("zz.json"), text.replace("2026", "2036")).expect("written");
    let image = lab.history("vm1").kept[2].dir().join("vda.qcow2");
    flip(&image, 70_000, 0);
    assert!(!all(&lab).is_sound());
    assert!(listed(&lab)[2].doubt.is_some());
}

/// Asks for a stop as soon as a file whose name ends so has been read.
struct StopBehind<'a>(&'a Stop, &'a str);

impl Monitor for StopBehind<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::FileEnds { file, .. } = event
            && file.ends_with(self.1)
        {
            self.0.request(StopReason::Interrupted);
        }
    }
}

#[test]
fn damage_is_told_and_remembered_though_a_stop_comes_before_its_place_is_known() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 40 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[5; 40 * CLUSTER]));
    lab.backup("vm1").expect("a restore point");
    flip(&lab.history("vm1").kept[0].dir().join("vda.qcow2"), 2_200_000, 0);
    let stop = Stop::default();
    let monitor = StopBehind(&stop, "vda.qcow2");
    let outcome = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &monitor,
        &stop,
    );
    let outcome = outcome.expect("something was found");
    assert!(words(&outcome).contains("vda.qcow2"), "{}", words(&outcome));
    assert!(outcome.ended.is_some());
    assert!(listed(&lab)[0].doubt.is_some());
}

#[test]
fn a_verification_that_was_stopped_does_not_forget_the_damage_that_it_did_not_come_to() {
    let mut lab = lab();
    let first = lab.history("vm1").kept[0].dir().clone();
    for image in ["vda.qcow2", "vdb.qcow2"] {
        flip(&first.join(image), 70_000, 0);
    }
    assert!(!all(&lab).is_sound());
    lab.pass(Span::new().hours(1));
    let stop = Stop::default();
    let monitor = StopBehind(&stop, "vda.qcow2");
    let outcome = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &monitor,
        &stop,
    );
    assert!(outcome.expect("something was found").ended.is_some());
    let chains = lab.history("vm1").chains;
    let id = &chains.points()[0].point.id;
    assert!(chains.doubt(id, "vda").is_some() && chains.doubt(id, "vdb").is_some());
}

#[test]
fn nor_the_damage_that_a_record_may_have_told_of_which_cannot_be_read() {
    let mut lab = lab();
    let first = lab.history("vm1").kept[0].dir().clone();
    for image in ["vda.qcow2", "vdb.qcow2"] {
        flip(&first.join(image), 70_000, 0);
    }
    assert!(!all(&lab).is_sound());
    let record = records(&lab)
        .into_iter()
        .find(|path| path.to_string_lossy().contains(".damaged."));
    flip(&record.expect("it is remembered"), 20, 1);
    lab.pass(Span::new().hours(1));
    let stop = Stop::default();
    let monitor = StopBehind(&stop, "vda.qcow2");
    let outcome = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &monitor,
        &stop,
    );
    assert!(outcome.expect("something was found").ended.is_some());
    let chains = lab.history("vm1").chains;
    let id = &chains.points()[0].point.id;
    assert!(chains.doubt(id, "vda").is_some() && chains.doubt(id, "vdb").is_some());
}

#[test]
fn a_restore_point_that_was_not_read_to_its_end_is_not_remembered_as_sound_for_what_it_stands_upon() {
    let lab = lab();
    let kept = lab.history("vm1").kept;
    flip(&kept[0].dir().join("vda.qcow2"), 70_000, 0);
    let second = kept[1]
        .dir()
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let stop = Stop::default();
    let file = format!("{second}/vda.qcow2");
    let outcome = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &StopBehind(&stop, &file),
        &stop,
    );
    assert!(outcome.expect("something was found").ended.is_some());
    let proved: Vec<bool> = listed(&lab).iter().map(|point| point.proof.is_some()).collect();
    assert_eq!(proved, [true, false, false]);
}

/// Asks for a stop as soon as the file whose name ends so is read.
struct StopAt<'a>(&'a Stop, &'a str);

impl Monitor for StopAt<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::FileBegins { file, .. } = event
            && file.ends_with(self.1)
        {
            self.0.request(StopReason::Interrupted);
        }
    }
}

#[test]
fn damage_that_was_found_before_a_stop_is_told_and_remembered() {
    let lab = lab();
    let first = &lab.history("vm1").kept[0];
    let names: Vec<&str> = first
        .manifest
        .files
        .iter()
        .map(|file| file.name.as_str())
        .collect();
    let (damaged, later) = (names[0], *names.last().expect("several"));
    flip(&first.dir().join(damaged), 10, 0);
    let stop = Stop::default();
    let outcome = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &StopAt(&stop, later),
        &stop,
    );
    let outcome = outcome.expect("something was found");
    assert!(words(&outcome).contains(damaged), "{}", words(&outcome));
    assert!(matches!(
        outcome.ended.map(|error| error.cause),
        Some(Cause::Stopped(StopReason::Interrupted))
    ));
    assert!(listed(&lab)[0].doubt.is_some());
    let sound = self::lab();
    let nothing = verify(
        "vm1",
        sound.repo.as_ref(),
        &options(&sound, Which::All),
        &Silent,
        &stop,
    );
    assert!(nothing.is_err(), "nothing was looked at");
}

/// The newest one is read deep, and through it the first, which was proved lately and is rotten since.
#[test]
fn what_a_deep_verification_meets_in_a_parent_is_remembered_of_the_parent() {
    let mut lab = lab();
    assert!(all(&lab).is_sound());
    flip(&lab.history("vm1").kept[0].dir().join("vda.qcow2"), 100_000, 3);
    let latest = Options {
        deep: true,
        ..options(&lab, Which::Latest)
    };
    assert!(!lately(&mut lab, &latest).is_sound());
    let first = lab.history("vm1").kept[0].proof.clone().expect("it was read");
    assert!(!first.is_sound(), "its image is the damaged one");
    let shallow = options(&lab, Which::All);
    assert!(!lately(&mut lab, &shallow).is_sound(), "nothing is forgotten");
    assert_eq!(level(&mut lab, "vda"), Level::Full, "nothing stands upon it");
}

/// The same, but stopped before it comes to look for whose damage it is.
#[test]
fn what_a_deep_verification_has_met_when_it_is_stopped_is_not_forgotten_by_a_shallow_one() {
    let mut lab = lab();
    assert!(all(&lab).is_sound());
    let kept = lab.history("vm1").kept;
    let newest = kept.last().expect("several").manifest.point.id.clone();
    flip(&kept[0].dir().join("vda.qcow2"), 100_000, 3);
    lab.pass(Span::new().hours(24));
    let deep = Options {
        deep: true,
        not_since: Some(Timestamp::UNIX_EPOCH),
        ..options(&lab, Which::Latest)
    };
    let stop = Stop::default();
    let behind_vda = format!("disk vdb of {newest}");
    let stopped = verify(
        "vm1",
        lab.repo.as_ref(),
        &deep,
        &StopAt(&stop, &behind_vda),
        &stop,
    );
    let stopped = stopped.expect("something was found");
    assert!(
        stopped.ended.is_some() && !stopped.is_sound(),
        "{}",
        words(&stopped)
    );
    let shallow = options(&lab, Which::All);
    assert!(!lately(&mut lab, &shallow).is_sound(), "nothing is forgotten");
    let first = lab.history("vm1").kept[0].proof.clone().expect("it was read");
    assert!(!first.is_sound(), "its image is the damaged one");
    assert_eq!(level(&mut lab, "vda"), Level::Full, "nothing stands upon it");
}

/// Does something once, when the first file is about to be read.
struct Meanwhile<'a>(std::sync::Mutex<Option<Box<dyn FnOnce() + Send + 'a>>>);

impl<'a> Meanwhile<'a> {
    fn new(action: impl FnOnce() + Send + 'a) -> Meanwhile<'a> {
        Meanwhile(std::sync::Mutex::new(Some(Box::new(action))))
    }
}

impl Monitor for Meanwhile<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::FileBegins { .. } = event {
            let action = self.0.lock().expect("no panic").take();
            action.into_iter().for_each(|action| action());
        }
    }
}

/// A second verification begins later, is done sooner, and has read what then was sound.
#[test]
fn damage_is_not_hidden_by_a_verification_that_began_later_and_read_earlier() {
    let lab = lab();
    let earlier = options(&lab, Which::All);
    let later = Options {
        now: lab
            .now
            .checked_add(Span::new().minutes(10))
            .expect("a time")
            .timestamp(),
        ..earlier.clone()
    };
    let image = lab.history("vm1").kept[0].dir().join("vda.qcow2");
    let meanwhile = Meanwhile::new(|| {
        assert!(run(&lab, &later).expect("proved").is_sound());
        flip(&image, 100_000, 3);
    });
    let outcome = verify("vm1", lab.repo.as_ref(), &earlier, &meanwhile, &Stop::default()).expect("proved");
    assert!(!outcome.is_sound());
    assert!(listed(&lab)[0].doubt.is_some(), "nobody has disproved it");
    // Who knows of it can.
    flip(&image, 100_000, 3);
    assert!(all(&lab).is_sound());
    assert!(listed(&lab)[0].doubt.is_none());
}

/// The other way round: the verification that began earlier has read the image before it was damaged.
#[test]
fn damage_that_was_found_meanwhile_outlives_a_verification_that_began_before() {
    let lab = lab();
    let options = options(&lab, Which::All);
    let earlier = Options {
        now: lab
            .now
            .checked_sub(Span::new().minutes(10))
            .expect("a time")
            .timestamp(),
        ..options.clone()
    };
    let image = lab.history("vm1").kept[2].dir().join("vda.qcow2");
    let meanwhile = Meanwhile::new(|| {
        flip(&image, 70_000, 3);
        assert!(!run(&lab, &earlier).expect("proved").is_sound());
        flip(&image, 70_000, 3);
    });
    assert!(
        verify("vm1", lab.repo.as_ref(), &options, &meanwhile, &Stop::default())
            .expect("proved")
            .is_sound()
    );
    assert!(listed(&lab)[2].doubt.is_some());
}

#[test]
fn what_is_remembered_of_a_restore_point_under_a_wrong_name_is_not_forgotten() {
    let lab = lab();
    let kept = &lab.history("vm1").kept[2];
    let missed = Missed {
        id: kept.manifest.point.id.clone(),
        manifest: kept.manifest.digest.clone(),
        time: lab.now.timestamp(),
        disks: vec!["vda".to_owned()],
    };
    let repository = lab.repo.domain("vm1").expect("a name");
    repository.keep_missed(&missed).expect("remembered");
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

/// As a run leaves it that is killed, or whose disk is full.
#[test]
fn a_record_that_was_not_written_to_its_end_counts_for_nothing_and_goes() {
    let lab = lab();
    let ids: Vec<String> = listed(&lab).into_iter().map(|point| point.point.id).collect();
    let dir = lab.root().join("vm1/.verified");
    fs::create_dir(&dir).expect("new");
    for (id, kind) in ids.iter().zip(["json", "damaged.json", "damaged.json"]) {
        fs::write(dir.join(format!("{id}.2026-10-01T02-00-03Z.{kind}.new")), b"").expect("written");
    }
    assert!(listed(&lab).iter().all(|point| point.doubt.is_none()));
    let outcome = all(&lab);
    assert!(
        outcome.is_sound() && outcome.findings.is_empty(),
        "{}",
        words(&outcome)
    );
    assert_eq!(records(&lab).len(), 3);
}
