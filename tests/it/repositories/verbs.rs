//! The verbs on every kind of repository.

use vmsnap::host::Host;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::{Options, PruneOutcome};
use vmsnap::ops::compare::{Verdict, compare};
use vmsnap::ops::in_place::{Basis, restore_in_place};
use vmsnap::ops::list::list;
use vmsnap::ops::retention::{Policy, Quota, RetentionOutcome, Rule};
use vmsnap::ops::verify::{self, Which, verify};
use vmsnap::ops::{Class, Context};
use vmsnap::testkit::Recorder;

use super::kinds::{Kind, PERIOD};
use crate::lab::{CLUSTER, Lab, NAMES};

pub(super) fn lab(kind: &dyn Kind) -> Lab {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut lab = Lab::of(folder, kind.repository());
    lab.host
        .add_domain("vm1", &[("vda", 6 * CLUSTER), ("vdb", CLUSTER)]);
    for round in 0..3u8 {
        lab.host.disk("vm1", "vda", |disk| {
            disk.write(usize::from(round) * CLUSTER, &[round + 1; CLUSTER]);
            disk.zero(5 * CLUSTER, 100);
        });
        lab.backup("vm1").expect("a restore point");
    }
    lab
}

pub(super) fn verified(lab: &Lab, which: Which) -> verify::Outcome {
    let options = verify::Options {
        which,
        deep: true,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    verify(
        "vm1",
        lab.repo.as_ref(),
        &options,
        &Recorder::default(),
        &lab.stop,
    )
    .expect("it begins")
}

pub fn a_chain_is_saved_listed_verified_and_restored(kind: &dyn Kind) {
    let lab = lab(kind);
    let listed = list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("it is listed");
    let levels: Vec<Level> = listed[0].points.iter().map(|point| point.point.level).collect();
    assert_eq!(levels, [Level::Full, Level::Incremental, Level::Incremental]);
    assert!(listed[0].points.iter().all(|point| point.is_whole()));
    assert_eq!(listed[0].findings, []);
    for disk in ["vda", "vdb"] {
        lab.assert_gives_back("vm1", disk);
    }
    let first = lab.history("vm1").chains.points()[0].point.id.clone();
    let restored = lab.restored("vm1", &first, "vda").expect("restored");
    assert!(restored[..CLUSTER].iter().all(|byte| *byte == 1));
    assert!(restored[CLUSTER..].iter().all(|byte| *byte == 0));
    let proved = verified(&lab, Which::All);
    assert!(proved.is_sound() && proved.points.len() == 3, "{proved:?}");
    let history = lab.history("vm1");
    assert!(history.kept.iter().all(|kept| kept.proof.is_some()));
    let status = lab.status("vm1");
    assert!(status.is_consistent(), "{:?}", status.inconsistencies);
    assert_eq!(status.latest.map(|(id, _)| id), Some(lab.latest("vm1")));
}

pub fn a_disk_is_restored_in_place(kind: &dyn Kind) {
    let mut lab = lab(kind);
    let first = lab.history("vm1").chains.points()[0].point.id.clone();
    let then = lab.restored("vm1", &first, "vda").expect("restored");
    crate::in_place::shut_off(&lab);
    let before = lab.disk("vm1", "vda");
    let options = crate::in_place::options(&first);
    let outcome = restore_in_place("vm1", &lab.context(&lab.recorder), &options).expect("restored");
    lab.pass(jiff::Span::new().minutes(10));
    assert!(lab.disk("vm1", "vda") == then);
    assert!(
        outcome
            .disks
            .iter()
            .all(|disk| matches!(disk.disk.basis, Basis::Changes { .. })),
        "{:?}",
        outcome.disks
    );
    let saved = outcome.saved.expect("it was saved");
    assert!(lab.restored("vm1", &saved, "vda").expect("restored") == before);
    let next = lab.backup("vm1").expect("a restore point").point;
    assert_eq!(next.level, Level::Incremental);
    lab.assert_gives_back("vm1", "vda");
    assert!(lab.status("vm1").is_consistent());
}

pub fn damage_is_found_and_not_restored(kind: &dyn Kind) {
    let mut lab = lab(kind);
    let first = lab.history("vm1").chains.points()[0].point.id.clone();
    kind.damage("vm1", &first, "vda");
    let error = lab.restored("vm1", "latest", "vda").expect_err("it is damaged");
    assert_eq!(error.class(), Class::Damaged, "{error}");
    lab.assert_gives_back("vm1", "vdb");
    let proved = verified(&lab, Which::All);
    assert!(!proved.is_sound());
    let hurt: Vec<usize> = proved.points.iter().map(|point| point.damage.len()).collect();
    assert!(hurt.iter().all(|damage| *damage > 0), "{hurt:?}");
    // No new image depends on the damaged one.
    let outcome = lab.backup("vm1").expect("a backup");
    let levels: Vec<Level> = outcome.point.disks.iter().map(|disk| disk.level).collect();
    assert_eq!(levels, [Level::Full, Level::Incremental]);
    lab.assert_gives_back("vm1", "vda");
}

pub fn a_comparison_finds_a_missed_write(kind: &dyn Kind) {
    let mut lab = lab(kind);
    let compared = |lab: &Lab| {
        let context: Context = lab.context(&lab.recorder);
        compare("vm1", &context, &Lab::comparing()).expect("it is compared")
    };
    assert_eq!(compared(&lab).verdict(), Verdict::Same);
    lab.host
        .disk("vm1", "vda", |disk| disk.swap_content(CLUSTER + 5, &[0xaa]));
    let outcome = compared(&lab);
    assert_eq!(outcome.verdict(), Verdict::Differs);
    assert_eq!(outcome.disks[0].places, [CLUSTER as u64]);
    let next = lab.backup("vm1").expect("a backup");
    assert_eq!(next.point.disks[0].level, Level::Full);
    lab.assert_gives_back("vm1", "vda");
}

pub fn a_dead_run_is_healed(kind: &dyn Kind) {
    let mut lab = lab(kind);
    let intent = lab.intent_of_a_dead_run("vm1", NAMES[5]);
    let domain = lab.repo.domain("vm1").expect("a name");
    let writer = domain.try_lock().expect("nobody else writes");
    let pending = writer.begin(PERIOD, lab.now.timestamp()).expect("it begins");
    let note = serde_json::to_vec(&intent).expect("JSON");
    pending.write_note(&note).expect("it is noted");
    let left = pending.leave();
    drop(writer);
    lab.host
        .leave_job("vm1", "/run/dead.sock", NAMES[5], &intent.mark);
    let outcome = lab.backup("vm1").expect("healed and backed up");
    assert_eq!(outcome.findings[0].code, "healed-partial");
    assert!(
        outcome.findings[0].message.contains(&left),
        "{:?}",
        outcome.findings
    );
    assert_eq!(lab.history("vm1").leftovers, []);
    let vm1 = lab.host.domain("vm1").expect("it is there");
    let checkpoints = lab.host.checkpoints(&vm1).expect("they are listed");
    assert!(checkpoints.iter().all(|found| found.name != NAMES[5]));
    lab.assert_gives_back("vm1", "vda");
}

pub fn a_period_is_pruned(kind: &dyn Kind) {
    let mut lab = lab(kind);
    lab.at("2026-12-20T02:00:00+01:00[Europe/Berlin]");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a new full");
    assert_eq!(outcome.point.level, Level::Full);
    assert_eq!(outcome.prune, Some(PruneOutcome::Deleted(PERIOD.to_owned())));
    assert_eq!(lab.history("vm1").kept.len(), 1);
    lab.assert_gives_back("vm1", "vda");
}

pub fn a_policy_removes_what_nothing_needs(kind: &dyn Kind) {
    let mut lab = lab(kind);
    let november = lab.latest("vm1");
    lab.at("2026-12-20T02:00:00+01:00[Europe/Berlin]");
    let keeping = Options {
        keep: Some(Policy::default().with(Rule::Last, Quota::AtMost(2))),
        ..Lab::options()
    };
    let outcome = lab.backup_with("vm1", &keeping).expect("a new full");
    match outcome.retention {
        Some(RetentionOutcome::Applied { removed, .. }) => {
            assert!(removed.len() == 2 && !removed.contains(&november), "{removed:?}");
        }
        other => panic!("{other:?}"),
    }
    let outcome = lab.backup_with("vm1", &keeping).expect("an increment");
    match outcome.retention {
        Some(RetentionOutcome::Applied { removed, .. }) => {
            assert_eq!(removed, [november]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(lab.history("vm1").kept.len(), 2);
    lab.assert_gives_back("vm1", "vda");
    assert!(lab.status("vm1").is_consistent());
    assert!(verified(&lab, Which::All).is_sound());
}
