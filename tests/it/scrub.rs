//! The checkpoints and bitmaps that a scrub removes and keeps, and the level of the next backup.

use std::time::Duration;

use vmsnap::cli::exit_code::{ExitCode, Verb};
use vmsnap::cli::report;
use vmsnap::host::Host;
use vmsnap::model::domain::DomainState;
use vmsnap::model::level::FullRule;
use vmsnap::model::period::GroupBy;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::StopReason;
use vmsnap::ops::each::{Faults, Turn};
use vmsnap::ops::scrub::{self, Means, Options, Outcome, ScrubPlan, ScrubType};
use vmsnap::ops::{Cause, Error, Repository, Result};
use vmsnap::repo::RepoError;

use crate::lab::{CLUSTER, Lab, NAMES, tree};

mod bitmaps;

const OURS: [&str; 2] = [NAMES[0], NAMES[1]];

/// A domain with two disks, two restore points, and a foreign checkpoint.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", 2 * CLUSTER), ("vdb", CLUSTER)]);
    lab.backup("vm1").expect("a full");
    lab.backup("vm1").expect("an incremental");
    lab.host.make_foreign_checkpoint("vm1", "mine");
    lab
}

fn options(kind: ScrubType, name: Option<&str>) -> Options {
    Options {
        wait: std::time::Duration::ZERO,
        kind,
        name: name.map(str::to_owned),
        group_by: GroupBy::Month,
        full: FullRule::Period,
    }
}

fn means<'a>(lab: &'a Lab, repo: Option<&'a dyn Repository>) -> Means<'a> {
    Means {
        monitor: &vmsnap::ops::monitor::Silent,
        host: &lab.host,
        repo,
        today: lab.now.date(),
        stop: lab.stop.clone(),
    }
}

fn run(lab: &Lab, kind: ScrubType, name: Option<&str>) -> Result<Outcome> {
    scrub::scrub("vm1", &means(lab, None), &options(kind, name))
}

fn plan(lab: &Lab, repo: Option<&dyn Repository>, kind: ScrubType, name: Option<&str>) -> ScrubPlan {
    scrub::preview("vm1", &means(lab, repo), &options(kind, name)).expect("a plan")
}

/// Runs a scrub that has to succeed.
fn done(lab: &Lab, kind: ScrubType, name: Option<&str>) -> Outcome {
    let outcome = run(lab, kind, name).expect("it begins");
    if let Some(failure) = &outcome.failure {
        panic!("{failure}");
    }
    outcome
}

fn checkpoints(lab: &Lab) -> Vec<String> {
    let domain = lab.host.domain("vm1").expect("it is there");
    let listed = lab.host.checkpoints(&domain).expect("they are listed");
    listed.into_iter().map(|checkpoint| checkpoint.name).collect()
}

fn bitmaps(lab: &Lab, disk: &str) -> Vec<String> {
    lab.host.disk("vm1", disk, |disk| disk.bitmap_names())
}

fn shut_off(lab: &Lab) {
    lab.host
        .change("vm1", |domain| domain.state = DomainState::ShutOff);
}

fn start(lab: &Lab) {
    lab.host
        .change("vm1", |domain| domain.state = DomainState::Running);
}

fn pairs(bitmaps: &[scrub::DiskBitmap]) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = bitmaps
        .iter()
        .map(|bitmap| (bitmap.name.clone(), bitmap.disk.clone()))
        .collect();
    pairs.sort();
    pairs
}

/// These bitmaps on both disks, as pairs of bitmap and disk.
fn on_both(names: &[&str]) -> Vec<(String, String)> {
    let pair = |name: &&str| ["vda", "vdb"].map(|disk| ((*name).to_owned(), disk.to_owned()));
    names.iter().flat_map(pair).collect()
}

fn cause(result: Result<Outcome>) -> Cause {
    match result {
        Err(Error { cause, .. }) => cause,
        Ok(outcome) => outcome.failure.expect("it fails").cause,
    }
}

const STATES: [DomainState; 3] = [DomainState::Running, DomainState::Paused, DomainState::ShutOff];

/// Runs a check with the lab's domain in each state.
fn in_every_state(check: impl Fn(&mut Lab, DomainState)) {
    for state in STATES {
        let mut lab = lab();
        lab.host.change("vm1", |domain| domain.state = state);
        check(&mut lab, state);
        let now = lab.host.domain("vm1").expect("it is there").state;
        assert_eq!(now, state, "a scrub changes no state");
    }
}

#[test]
fn type_both_removes_only_ours_and_next_backup_is_full() {
    for kind in [ScrubType::Both, ScrubType::All] {
        in_every_state(|lab, state| {
            let outcome = done(lab, kind, None);
            assert_eq!(outcome.checkpoints, OURS, "{state:?}");
            assert_eq!(pairs(&outcome.bitmaps), on_both(&OURS), "{state:?}");
            assert!(outcome.left.is_empty());
            assert_eq!(checkpoints(lab), ["mine"]);
            for disk in ["vda", "vdb"] {
                assert_eq!(bitmaps(lab, disk), ["mine"], "{state:?}");
            }
            assert_eq!(outcome.next.level, Some(Level::Full));
            let next = lab.backup("vm1").expect("it is backed up");
            assert_eq!(next.point.level, Level::Full, "as announced");
            assert_eq!(lab.backup("vm1").expect("again").point.level, Level::Incremental);
        });
    }
}

#[test]
fn checkpoint_removes_the_records_only_and_says_what_that_costs() {
    in_every_state(|lab, state| {
        let outcome = done(lab, ScrubType::Checkpoint, None);
        assert_eq!(outcome.checkpoints, OURS, "{state:?}");
        assert!(outcome.bitmaps.is_empty());
        assert_eq!(pairs(&outcome.left), on_both(&OURS), "{state:?}");
        let said = outcome.findings.iter().find(|found| found.code == "bitmaps-left");
        let said = &said.expect("it is said").message;
        assert!(
            said.contains("memory") && said.contains("`--scrub-type bitmap`"),
            "{said}"
        );
        assert_eq!(checkpoints(lab), ["mine"]);
        assert_eq!(bitmaps(lab, "vda"), ["mine", OURS[0], OURS[1]]);
        assert_eq!(outcome.next.level, None);
        assert!(outcome.next.reason.contains(OURS[1]), "{}", outcome.next.reason);
        let next = lab.backup("vm1").expect("no bitmap is in the way");
        assert_eq!(next.point.level, Level::Incremental, "{state:?}");
        for disk in ["vda", "vdb"] {
            lab.assert_gives_back("vm1", disk);
        }
    });
}

#[test]
fn bitmap_removes_the_bitmaps_only_and_the_records_stay() {
    in_every_state(|lab, state| {
        let outcome = done(lab, ScrubType::Bitmap, None);
        assert!(outcome.checkpoints.is_empty());
        assert_eq!(pairs(&outcome.bitmaps), on_both(&OURS), "{state:?}");
        assert_eq!(checkpoints(lab), [OURS[0], OURS[1], "mine"]);
        assert_eq!(bitmaps(lab, "vda"), ["mine"]);
        let said = &outcome
            .findings
            .iter()
            .find(|found| found.code == "checkpoints-left");
        assert!(said.expect("it is reported").message.contains(NAMES[1]));
        assert_eq!(outcome.next.level, Some(Level::Full));
        assert_eq!(lab.backup("vm1").expect("backed up").point.level, Level::Full);
    });
}

#[test]
fn a_named_one_goes_alone() {
    in_every_state(|lab, state| {
        let outcome = done(lab, ScrubType::Both, Some(OURS[0]));
        assert_eq!(outcome.checkpoints, [OURS[0]]);
        assert_eq!(pairs(&outcome.bitmaps), on_both(&OURS[..1]), "{state:?}");
        assert_eq!(checkpoints(lab), [OURS[1], "mine"]);
        assert_eq!(bitmaps(lab, "vda"), ["mine", OURS[1]]);
    });
    in_every_state(|lab, state| {
        let outcome = done(lab, ScrubType::Bitmap, Some(OURS[1]));
        assert_eq!(pairs(&outcome.bitmaps), on_both(&OURS[1..]), "{state:?}");
        assert_eq!(checkpoints(lab).len(), 3);
        assert_eq!(bitmaps(lab, "vdb"), ["mine", OURS[0]]);
    });
    in_every_state(|lab, state| {
        let outcome = done(lab, ScrubType::Checkpoint, Some(OURS[1]));
        assert_eq!(outcome.checkpoints, [OURS[1]]);
        assert_eq!(pairs(&outcome.left), on_both(&OURS[1..]), "{state:?}");
        assert_eq!(checkpoints(lab), [OURS[0], "mine"]);
        assert_eq!(bitmaps(lab, "vda").len(), 3);
    });
}

#[test]
fn type_star_removes_all_despite_a_name() {
    for name in [OURS[0], "virtnbdbackup.77", "mine", ""] {
        let lab = lab();
        let outcome = done(&lab, ScrubType::All, Some(name));
        assert_eq!(outcome.checkpoints, OURS);
        assert_eq!(checkpoints(&lab), ["mine"]);
        let codes: Vec<&str> = outcome.findings.iter().map(|found| found.code.as_str()).collect();
        assert!(codes.contains(&"checkpoint-name-ignored"), "{codes:?}");
    }
}

#[test]
fn foreign_names_are_refused_even_on_request() {
    let kinds = [ScrubType::Checkpoint, ScrubType::Bitmap, ScrubType::Both];
    for kind in kinds {
        for name in [
            "mine",
            "",
            "virtnbdbackup.",
            "virtnbdbackup.1 ",
            "virtnbdbackup.1;x",
            "*",
        ] {
            in_every_state(|lab, state| {
                let cause = cause(run(lab, kind, Some(name)));
                assert!(
                    matches!(&cause, Cause::NotOurs { name: told } if told == name),
                    "{state:?}: {cause}"
                );
                assert_eq!(checkpoints(lab).len(), 3);
                assert_eq!(bitmaps(lab, "vda").len(), 3);
            });
        }
    }
}

#[test]
fn missing_name_is_reported_and_nothing_else_is_removed() {
    let kinds = [
        (ScrubType::Checkpoint, "checkpoint"),
        (ScrubType::Bitmap, "bitmap"),
        (ScrubType::Both, "checkpoint or bitmap"),
    ];
    for (kind, what) in kinds {
        in_every_state(|lab, state| {
            let cause = cause(run(lab, kind, Some("virtnbdbackup.7")));
            assert_eq!(
                cause.to_string(),
                format!("there is no {what} named 'virtnbdbackup.7'"),
                "{state:?}"
            );
            assert_eq!(checkpoints(lab).len(), 3);
            assert_eq!(bitmaps(lab, "vda").len(), 3);
        });
    }
}

#[test]
fn a_domain_without_anything_of_ours_is_no_failure() {
    for kind in ScrubType::ALL {
        in_every_state(|lab, _| {
            done(lab, ScrubType::All, None);
            let outcome = done(lab, kind, None);
            assert!(outcome.checkpoints.is_empty() && outcome.bitmaps.is_empty());
            assert_eq!(outcome.next.level, Some(Level::Full));
        });
    }
}

#[test]
fn dry_run_of_a_scrub_changes_nothing() {
    for kind in ScrubType::ALL {
        in_every_state(|lab, state| {
            let before = tree(lab.folder.path());
            let plan = plan(lab, Some(lab.repo.as_ref()), kind, None);
            assert_eq!(checkpoints(lab).len(), 3);
            assert_eq!(bitmaps(lab, "vda").len(), 3);
            assert_eq!(tree(lab.folder.path()), before, "no lock, no folder");
            let outcome = scrub::scrub("vm1", &means(lab, Some(lab.repo.as_ref())), &options(kind, None));
            let outcome = outcome.expect("it begins");
            assert!(outcome.failure.is_none());
            assert_eq!(outcome.checkpoints, plan.checkpoints, "{state:?}");
            assert_eq!(pairs(&outcome.bitmaps), pairs(&plan.bitmaps), "{state:?}");
            assert_eq!(outcome.left, plan.left);
            assert_eq!(outcome.next.level, plan.next.level);
        });
    }
}

#[test]
fn active_job_prevents_a_scrub() {
    let lab = lab();
    lab.host.begin_foreign_job("vm1");
    for kind in ScrubType::ALL {
        assert!(matches!(cause(run(&lab, kind, None)), Cause::Busy { .. }));
        let planned = scrub::preview("vm1", &means(&lab, None), &options(kind, None));
        assert!(matches!(
            planned.map(drop).expect_err("busy").cause,
            Cause::Busy { .. }
        ));
    }
    assert_eq!(checkpoints(&lab).len(), 3);
    assert!(lab.host.has_job("vm1"));
}

#[test]
fn scrub_during_a_backup_names_the_lock_holder() {
    let lab = lab();
    let repository = lab.repo.domain("vm1").expect("a name");
    let held = repository.try_lock().expect("it is free");
    let means = means(&lab, Some(lab.repo.as_ref()));
    let refused = scrub::scrub("vm1", &means, &options(ScrubType::Both, None));
    assert!(matches!(cause(refused), Cause::Repo(RepoError::Locked { .. })));
    assert_eq!(checkpoints(&lab).len(), 3);
    drop(held);
    let outcome = scrub::scrub("vm1", &means, &options(ScrubType::Both, None)).expect("it begins");
    assert!(outcome.failure.is_none());
}

#[test]
fn failed_scrub_reports_what_is_gone_and_next_backup() {
    let lab = lab();
    lab.host.fail_removal_of(Some(OURS[1]));
    let outcome = run(&lab, ScrubType::Both, None).expect("it begins");
    assert_eq!(outcome.checkpoints, [OURS[0]]);
    assert_eq!(pairs(&outcome.bitmaps), on_both(&OURS[..1]));
    let failure = outcome.failure.expect("it fails");
    assert!(failure.to_string().contains("simulated"), "{failure}");
    assert_eq!(checkpoints(&lab), [OURS[1], "mine"]);
    assert_eq!(outcome.next.level, None, "{}", outcome.next.reason);
    lab.host.fail_removal_of(None);
    assert_eq!(done(&lab, ScrubType::Both, None).checkpoints, [OURS[1]]);
}

#[test]
fn a_stop_ends_it_between_two_names() {
    let lab = lab();
    lab.stop.request(StopReason::Interrupted);
    let outcome = run(&lab, ScrubType::Both, None).expect("it begins");
    assert!(matches!(
        outcome.failure.expect("stopped").cause,
        Cause::Stopped(StopReason::Interrupted)
    ));
    assert_eq!(checkpoints(&lab).len(), 3);
}

#[test]
fn unrecorded_leftovers_are_known_from_the_intent() {
    let lab = lab();
    let note = r#"{"uuid":"00000000-0000-4000-8000-000000000001","mark":"m","checkpoint":"virtnbdbackup.9",
        "places":{"sockets":[],"scratch":[],"ownDirs":[]}}"#;
    let folder = lab.root().join("vm1/vmsnap-backup-monthly-2026-11/x.partial");
    std::fs::create_dir(&folder).expect("new");
    std::fs::write(folder.join("intent.json"), note).expect("written");
    lab.host
        .disk("vm1", "vda", |disk| disk.add_bitmap("virtnbdbackup.9"))
        .expect("it is new");
    let means = means(&lab, Some(lab.repo.as_ref()));
    let outcome = scrub::scrub("vm1", &means, &options(ScrubType::Both, None)).expect("it begins");
    assert!(outcome.failure.is_none());
    assert_eq!(bitmaps(&lab, "vda"), ["mine"]);
}

#[test]
fn the_json_of_a_failed_domain_has_its_error_and_findings() {
    let lab = lab();
    shut_off(&lab);
    lab.host.move_away();
    let missing = Some("virtnbdbackup.9");
    let result = run(&lab, ScrubType::Checkpoint, missing).map(report::scrub::Scrubbed::Done);
    let failed = Turn::new("vm1", Duration::ZERO, result);
    assert_eq!(report::scrub::lines(&failed), "", "nothing was done");
    let code = ExitCode::of_faults(&Faults::of(failed.faults()), Verb::Scrub);
    let failed = [failed];
    let json = serde_json::to_value(report::scrub::document(&failed, &[], code)).expect("JSON");
    assert_eq!(json["exitCode"], 5);
    let domain = &json["domains"][0];
    assert_eq!(domain["outcome"], "failed");
    assert_eq!(domain["nextBackup"], serde_json::Value::Null);
    let message = domain["error"]["message"].as_str().expect("a text");
    assert!(message.contains("virtnbdbackup.9"), "{message}");
    let findings = domain["findings"].as_array().expect("a list");
    let found: Vec<_> = findings
        .iter()
        .map(|found| (&found["code"], &found["disk"]))
        .collect();
    let unknown = serde_json::Value::from("bitmaps-unknown");
    assert_eq!(
        found,
        [(&unknown, &"vda".into()), (&unknown, &"vdb".into())],
        "{domain:#}"
    );
}
