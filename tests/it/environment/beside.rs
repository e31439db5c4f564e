//! Verbs that read while another run writes and prunes: they return the right answer or a clear
//! error, with no false alarm and no wrong bytes.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use jiff::Span;
use vmsnap::model::chain::Concern;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::model::text::with_sources;
use vmsnap::ops::backup::PruneOutcome;
use vmsnap::ops::list::list;
use vmsnap::ops::restore::{self, Format, restore};
use vmsnap::ops::verify::{self, Which, verify};
use vmsnap::ops::{Event, Result};
use vmsnap::repo::{DamageNote, MissedWriteRecord, Proof};

use super::{Watch, two_points, watched};
use crate::lab::{CLUSTER, InFolder, Lab, NAMES, tree};

const OCTOBER: &str = "vmsnap-backup-monthly-2026-10";

/// A domain with two disks and, in October, a full and an incremental restore point, which its next
/// backup prunes. Also returns the content of the disks at the newest of them.
fn due_for_pruning() -> (Lab, [Vec<u8>; 2]) {
    let mut lab = Lab::in_memory();
    lab.at("2026-10-20T02:00:00+02:00[Europe/Berlin]");
    lab.host
        .add_domain("vm1", &[("vda", 6 * CLUSTER), ("vdb", 3 * CLUSTER)]);
    for round in 1..=2 {
        lab.host
            .disk("vm1", "vda", |disk| disk.write(CLUSTER, &[round; 3 * CLUSTER]));
        lab.host
            .disk("vm1", "vdb", |disk| disk.write(0, &[round + 10; CLUSTER]));
        lab.backup("vm1").expect("October's");
    }
    let disks = [lab.disk("vm1", "vda"), lab.disk("vm1", "vdb")];
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[99; 2 * CLUSTER]));
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    (lab, disks)
}

/// Another run backs up the domain and prunes October.
fn prune_october(lab: &Lab) {
    let outcome = watched(lab, "vm1", &Lab::pruning(), |_| {}).expect("readers do not disturb it");
    assert_eq!(outcome.prune, Some(PruneOutcome::Deleted(OCTOBER.to_owned())));
}

/// Prunes at the event with this number, and records whether that event was reached.
struct PruneAt<'a> {
    lab: &'a Lab,
    moment: usize,
    seen: AtomicUsize,
}

impl<'a> PruneAt<'a> {
    fn new(lab: &'a Lab, moment: usize) -> Self {
        PruneAt {
            lab,
            moment,
            seen: AtomicUsize::new(0),
        }
    }

    fn watch(&self, _: &Event<'_>) {
        if self.seen.fetch_add(1, Ordering::SeqCst) == self.moment {
            prune_october(self.lab);
        }
    }

    fn has_pruned(&self) -> bool {
        self.seen.load(Ordering::SeqCst) > self.moment
    }
}

fn restored_files(to: &Path) -> Vec<String> {
    match to.exists() {
        true => tree(to),
        false => Vec::new(),
    }
}

#[test]
fn restore_during_a_prune_is_right_or_a_clear_error() {
    let (base, disks) = due_for_pruning();
    let (mut given, mut refused) = (0, 0);
    for moment in 0.. {
        let lab = base.fork();
        let to = lab.free_path();
        let options = restore::Options {
            format: Some(Format::Raw),
            ..lab.restoring()
        };
        let plan = restore::plan("vm1", lab.repo.as_ref(), None, &options).expect("it is all there");
        // Moment 0 lies between the plan and the restore.
        let pruner = PruneAt::new(&lab, usize::wrapping_sub(moment, 1));
        if moment == 0 {
            prune_october(&lab);
        }
        let monitor = Watch(|event: &Event<'_>| pruner.watch(event));
        let outcome = restore("vm1", plan, &lab.means(&monitor, &Stop::default()));
        match outcome {
            Ok(_) => {
                given += 1;
                for (name, expected) in [("vda.raw", &disks[0]), ("vdb.raw", &disks[1])] {
                    let found = fs::read(to.join(name)).expect("it was restored");
                    assert!(found == *expected, "moment {moment}: {name} has wrong bytes");
                }
            }
            Err(error) => {
                refused += 1;
                let text = with_sources(&error);
                assert!(
                    text.contains(OCTOBER) && text.contains(".qcow2"),
                    "moment {moment}: the missing image is not named: {text}"
                );
                assert_eq!(restored_files(&to), [""; 0], "moment {moment}");
            }
        }
        if moment > 0 && !pruner.has_pruned() {
            break;
        }
    }
    assert!(given > 1 && refused > 1, "{given} were given, {refused} refused");
}

#[test]
fn verify_during_a_prune_reports_no_damage() {
    let (base, _) = due_for_pruning();
    let mut left_out = 0;
    for which in [Which::All, Which::Latest] {
        for moment in 0.. {
            let lab = base.fork();
            let pruner = PruneAt::new(&lab, moment);
            let monitor = Watch(|event: &Event<'_>| pruner.watch(event));
            let options = verify::Options {
                which: which.clone(),
                deep: true,
                verified_since: None,
                now: lab.now.timestamp(),
            };
            let outcome = verify("vm1", lab.repo.as_ref(), &options, &monitor, &Stop::default())
                .expect("there were restore points");
            let told: Vec<_> = outcome.all_damage().collect();
            assert!(outcome.is_sound(), "{which:?}, moment {moment}: {told:#?}");
            left_out += 2 - outcome.points.len();
            if !pruner.has_pruned() {
                break;
            }
        }
    }
    assert!(left_out > 2, "{left_out} were left out");
}

/// The folder of a period is removed while it is being read, hundreds of times.
#[test]
fn period_pruned_during_list_is_shown_whole_or_not_at_all() {
    let mut base = Lab::in_memory();
    base.host.add_domain("vm1", &[("vda", CLUSTER)]);
    for _ in 0..12 {
        base.backup("vm1").expect("a restore point");
    }
    let mut gone_in_time = 0;
    for round in 0..60 {
        let lab = base.fork();
        let repository = lab.repo.domain("vm1").expect("a name that fits");
        let is_gone = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Each round removes it at another point of the reading.
                for _ in 0..round % 7 {
                    let _ = repository.history();
                }
                let locked = repository.try_lock().expect("nobody else writes");
                locked
                    .remove_period("vmsnap-backup-monthly-2026-11", lab.now.timestamp())
                    .expect("it is removed");
                is_gone.store(true, Ordering::SeqCst);
            });
            loop {
                let was_gone = is_gone.load(Ordering::SeqCst);
                let history = repository.history().expect("it can be read");
                let faults = history.damage();
                assert!(
                    history.findings.is_empty() && faults.is_empty(),
                    "round {round}: {:?} {faults:?}",
                    history.findings
                );
                let count = history.kept.len();
                assert!(matches!(count, 0 | 12), "round {round}: {count} of 12 are listed");
                if was_gone {
                    break;
                }
                gone_in_time += usize::from(count == 0);
            }
        });
    }
    assert!(gone_in_time > 0, "some were read during the removal");
}

#[test]
fn list_and_verify_ignore_a_running_backup() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    let told: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let look = |lab: &Lab| -> Result<Vec<String>> {
        let options = verify::Options {
            which: Which::All,
            deep: false,
            verified_since: None,
            now: lab.now.timestamp(),
        };
        let monitor = Watch(|_: &Event<'_>| {});
        let outcome = verify("vm1", lab.repo.as_ref(), &options, &monitor, &Stop::default())?;
        assert!(outcome.is_sound() && outcome.points.len() == 2);
        let listed = list(lab.repo.as_ref(), &["vm1".to_owned()])?.remove(0);
        assert!(listed.points.len() == 2 && listed.points.iter().all(|point| point.is_whole()));
        let findings = outcome.findings.into_iter().chain(listed.findings);
        Ok(findings.map(|finding| finding.code.to_owned()).collect())
    };
    watched(
        &lab,
        "vm1",
        &Lab::options(),
        super::once_copying(|| {
            let found = look(&lab).expect("readers do not wait");
            told.lock().expect("no panic").extend(found);
        }),
    )
    .expect("readers do not disturb a backup");
    assert_eq!(*told.lock().expect("no panic"), [""; 0]);

    let period = lab.history("vm1").kept[0]
        .dir()
        .parent()
        .expect("a period")
        .to_owned();
    let third = lab.history("vm1").kept[2].dir().clone();
    fs::remove_dir_all(&third).expect("by hand");
    let known = period.join(".committed").join(third.file_name().expect("a name"));
    fs::remove_file(known).expect("the record is removed too");
    fs::create_dir(period.join("2026-11-03T20-00-00Z.partial")).expect("new");
    assert_eq!(look(&lab).expect("both work"), ["unfinished-run"; 2]);
}

#[test]
fn only_a_dead_runs_checkpoint_is_an_inconsistency() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    let look = |lab: &Lab| lab.status("vm1");
    let during = Mutex::new(None);
    let watch = super::once_copying(|| *during.lock().expect("no panic") = Some(look(&lab)));
    watched(&lab, "vm1", &Lab::options(), watch).expect("readers do not disturb a backup");
    let during = during.into_inner().expect("no panic").expect("it copied");
    assert!(during.writer.is_some() && during.checkpoints.len() == 3);
    assert_eq!(during.inconsistencies, [""; 0]);
    let after = look(&lab);
    assert_eq!((after.writer, after.inconsistencies), (None, Vec::new()));

    lab.host
        .leave_job("vm1", "/run/dead.sock", NAMES[3], "a dead run");
    let dead = look(&lab).inconsistencies;
    assert!(dead.len() == 1 && dead[0].contains(NAMES[3]), "{dead:?}");
}

#[test]
fn later_verify_findings_survive_an_earlier_one_that_ends_last() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    let options = |lab: &Lab| verify::Options {
        which: Which::All,
        deep: false,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    let earlier = options(&lab);
    let newest = lab.history("vm1").kept[1].dir().join("vda.qcow2");
    lab.pass(Span::new().minutes(10));
    let later = std::sync::Once::new();
    let monitor = Watch(|event: &Event<'_>| {
        // The checkpoint's file is read last, so the images have been read.
        if matches!(event, Event::FileEnds { file, .. } if file.ends_with(&format!("{}.xml", NAMES[1]))) {
            later.call_once(|| {
                let mut bytes = fs::read(&newest).expect("it can be read");
                bytes[70_000] ^= 1;
                fs::write(&newest, bytes).expect("it can be written");
                let silent = Watch(|_: &Event<'_>| {});
                let found = verify(
                    "vm1",
                    lab.repo.as_ref(),
                    &options(&lab),
                    &silent,
                    &Stop::default(),
                );
                assert!(!found.expect("there are restore points").is_sound());
            });
        }
    });
    let outcome = verify("vm1", lab.repo.as_ref(), &earlier, &monitor, &Stop::default())
        .expect("there are restore points");
    assert!(later.is_completed() && outcome.is_sound());
    let history = lab.history("vm1");
    assert!(!history.chains.latest().expect("two").suspected_damage.is_empty());
    let proofs = tree(&lab.root().join("vm1/.verified"));
    assert_eq!(
        proofs.len(),
        3,
        "two of the newest point, one of the other: {proofs:?}"
    );
}

/// A verification keeps the records that another process wrote during it: the next backup relies on
/// them.
#[test]
fn verify_keeps_damage_records_of_a_point_made_meanwhile() {
    let mut lab = Lab::new();
    two_points(&mut lab, "vm1");
    let options = verify::Options {
        which: Which::All,
        deep: false,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    let meanwhile = std::sync::Once::new();
    let monitor = Watch(|event: &Event<'_>| {
        if let Event::FileBegins { .. } = event {
            meanwhile.call_once(|| {
                let made = watched(&lab, "vm1", &Lab::options(), |_| {}).expect("a restore point");
                let (id, time) = (made.point.id, lab.now.timestamp());
                let history = lab.history("vm1");
                let manifest = history.get(&id).expect("it is there").manifest.digest.clone();
                let repository = lab.repo.domain("vm1").expect("a name that fits");
                let missed = MissedWriteRecord {
                    id: id.clone(),
                    manifest: manifest.clone(),
                    time,
                    disks: vec!["vda".to_owned()],
                };
                repository.keep_missed_writes(&missed).expect("it is remembered");
                let proof = Proof {
                    id,
                    manifest,
                    time,
                    deep: false,
                    deep_time: None,
                    damage: vec![DamageNote {
                        what: "a flipped bit".to_owned(),
                        concerns: Concern::Disk("vda".to_owned()),
                    }],
                };
                repository.keep_proof(&proof, &[]).expect("it is remembered");
            });
        }
    });
    let outcome = verify("vm1", lab.repo.as_ref(), &options, &monitor, &Stop::default()).expect("sound");
    assert_eq!(outcome.points.len(), 2);
    let history = lab.history("vm1");
    let newest = history.chains.latest().expect("three");
    assert!(newest.missed_write("vda").is_some());
    assert!(
        newest
            .suspected_damage
            .iter()
            .any(|damage| damage.what.contains("a flipped bit")),
        "{:?}",
        newest.suspected_damage
    );
    lab.pass(Span::new().minutes(10));
    let next = lab.backup("vm1").expect("it goes on");
    assert_eq!(
        next.point.disks[0].level,
        Level::Full,
        "{}",
        next.point.disks[0].reason
    );
}
