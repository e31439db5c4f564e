//! Comparison of a domain with its newest restore point: a difference outside the bitmap is
//! reported.

use std::time::Duration;

use vmsnap::cli::exit_code::{ExitCode, Verb};
use vmsnap::cli::report::compare as shown;
use vmsnap::cli::report::status_document::document as status_document;
use vmsnap::cli::report::{list as shown_list, status as shown_status};
use vmsnap::host::Host;
use vmsnap::model::domain::DiskFormat;
use vmsnap::model::finding::Finding;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::compare::{Meaning, Options, Outcome, Verdict, compare};
use vmsnap::ops::each::{Fault, Faults, Judged, Turn};
use vmsnap::ops::list::list;
use vmsnap::ops::{Cause, Class, Context, Event, Monitor, Result};

use crate::lab::{CLUSTER, Lab, NAMES, tree};

mod missed;

const SIZE: usize = 40 * CLUSTER + 512;

fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", SIZE), ("vdb", 2 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[1; 30 * CLUSTER]));
    lab.host.disk("vm1", "vdb", |disk| disk.write(0, &[2; CLUSTER]));
    lab.backup("vm1").expect("a full");
    lab.host
        .disk("vm1", "vda", |disk| disk.write(5 * CLUSTER, &[3; CLUSTER]));
    lab.backup("vm1").expect("an increment");
    lab
}

fn run(lab: &mut Lab, sample: Option<u64>) -> Result<Outcome> {
    let options = Options {
        sample,
        ..Lab::comparing()
    };
    let context = Context {
        host: &lab.host,
        repo: lab.repo.as_ref(),
        now: lab.now.clone(),
        monitor: &lab.recorder,
        stop: lab.stop.clone(),
        random: &*lab.random,
    };
    let outcome = compare("vm1", &context, &options);
    lab.pass(jiff::Span::new().minutes(1));
    outcome
}

#[test]
fn comparison_skips_clusters_marked_as_changed() {
    let mut lab = lab();
    lab.host
        .disk("vm1", "vda", |disk| disk.write(7 * CLUSTER, &[9; 3 * CLUSTER]));
    lab.host
        .disk("vm1", "vda", |disk| disk.zero(20 * CLUSTER, CLUSTER));
    let before = tree(&lab.root());
    let outcome = run(&mut lab, None).expect("compared");
    assert!(outcome.is_same(), "{:?}", outcome.disks);
    let compared: Vec<(u64, u64)> = outcome
        .disks
        .iter()
        .map(|disk| (disk.unchanged, disk.compared))
        .collect();
    assert_eq!(compared, [(26, 26), (1, 1)], "of 30 and 1 clusters with data");
    assert_eq!(
        tree(&lab.root()),
        before,
        "no restore point was made, and nothing is left"
    );
    assert!(!lab.host.has_job("vm1"));
    let names = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
    assert_eq!(names, [NAMES[0], NAMES[1]]);
    assert_eq!(
        lab.backup("vm1").expect("a backup").point.level,
        Level::Incremental
    );
}

#[test]
fn missed_write_is_found_and_next_backup_of_disk_is_full() {
    // A write into data, a write into a hole, and zeroes over data.
    let cases: [(usize, u8); 3] = [(12, 77), (35, 77), (12, 0)];
    for (cluster, byte) in cases {
        let mut lab = lab();
        lab.host.disk("vm1", "vda", |disk| {
            disk.swap_content(cluster * CLUSTER + 1000, &[byte; 10]);
        });
        let outcome = run(&mut lab, None).expect("compared");
        let [vda, vdb] = &outcome.disks[..] else {
            panic!("{:?}", outcome.disks)
        };
        assert_eq!((vda.differing, vdb.differing), (1, 0), "cluster {cluster}");
        assert_eq!(vda.places, [(cluster * CLUSTER) as u64]);
        let point = lab.backup("vm1").expect("healed").point;
        let level = |target| point.disk(target).expect("it is there").level;
        assert_eq!((level("vda"), level("vdb")), (Level::Full, Level::Incremental));
        let reason = &point.disk("vda").expect("it is there").reason;
        assert!(reason.contains("found a write that a bitmap"), "{reason}");
        lab.assert_gives_back("vm1", "vda");
        assert_eq!(
            lab.backup("vm1").expect("the next backup").point.level,
            Level::Incremental
        );
        assert!(run(&mut lab, None).expect("compared").is_same());
    }
}

#[test]
fn a_sample_compares_no_more_than_was_asked_for() {
    let mut lab = lab();
    let outcome = run(&mut lab, Some(5)).expect("compared");
    assert_eq!((outcome.disks[0].unchanged, outcome.disks[0].compared), (30, 5));
    lab.host
        .disk("vm1", "vda", |disk| disk.swap_content(0, &[99; 30 * CLUSTER]));
    let outcome = run(&mut lab, Some(5)).expect("compared");
    assert_eq!(
        outcome.disks[0].differing, 5,
        "an exchanged disk differs everywhere"
    );
}

#[test]
fn grown_part_of_a_disk_is_not_compared() {
    let mut lab = lab();
    lab.host
        .disk("vm1", "vda", |disk| disk.resize(SIZE + 10 * CLUSTER));
    lab.host.disk("vm1", "vda", |disk| {
        disk.swap_content(SIZE + 3 * CLUSTER, &[5; CLUSTER])
    });
    assert!(run(&mut lab, None).expect("compared").is_same());
}

#[test]
fn shut_off_domain_is_compared_as_far_as_possible() {
    let mut lab = lab();
    lab.host.change("vm1", |domain| {
        domain.state = vmsnap::model::domain::DomainState::ShutOff;
    });
    assert!(run(&mut lab, None).expect("compared").is_same());
    lab.host.disk("vm1", "vda", |disk| {
        disk.remove_bitmap(NAMES[0]);
        disk.remove_bitmap(NAMES[1]);
    });
    let outcome = run(&mut lab, None).expect("compared");
    assert_eq!(outcome.disks.len(), 1);
    assert!(
        outcome
            .findings
            .iter()
            .any(|finding| finding.code == "not-compared")
    );
}

/// The lines that the program would print, and its exit code.
fn answer(outcome: &Outcome) -> (String, ExitCode) {
    (shown::lines("vm1", outcome), code(outcome.faults()))
}

fn code(faults: Vec<Fault>) -> ExitCode {
    ExitCode::of_faults(&Faults::of(faults), Verb::Other)
}

fn json(outcome: Outcome) -> serde_json::Value {
    let done = [Turn::new("vm1", Duration::ZERO, Ok(outcome))];
    let document = serde_json::to_value(shown::document(&done, &[], code(done[0].faults()))).expect("JSON");
    document["domains"][0].clone()
}

fn lose_bitmaps(lab: &Lab, target: &str) {
    lab.host.disk("vm1", target, |disk| {
        disk.remove_bitmap(NAMES[0]);
        disk.remove_bitmap(NAMES[1]);
    });
}

#[test]
fn missed_write_is_reported_until_the_disk_is_saved() {
    for with_others in [true, false] {
        let mut lab = lab();
        if !with_others {
            lab.host
                .disk("vm1", "vdb", |disk| disk.swap_content(0, &[99; 10]));
        }
        lab.host
            .disk("vm1", "vda", |disk| disk.swap_content(12 * CLUSTER, &[77; 10]));
        assert_eq!(run(&mut lab, None).expect("compared").verdict(), Verdict::Differs);
        for _ in 0..2 {
            let told = lab.recorder.findings().len();
            let outcome = run(&mut lab, None).expect("compared again");
            let (lines, code) = answer(&outcome);
            assert_eq!(code, ExitCode::Damaged, "{lines}");
            let line = "vm1: disk vda: NOT COMPARED: an earlier comparison (";
            assert!(lines.contains(line), "{lines}");
            assert_eq!(lines.lines().count(), 2, "a line for each disk: {lines}");
            let others = lines.contains("vm1: disk vdb: no difference from restore point ")
                && lines.contains(" in 1 of the 1 clusters");
            assert_eq!(others, with_others, "{lines}");
            assert_eq!(outcome.findings[0].code, "missed-write");
            assert_eq!(lab.recorder.findings().len(), told, "the lines say it");
            let json = json(outcome);
            assert_eq!(json["outcome"], "differs");
            assert_eq!(json["uncompared"][0]["disk"], "vda");
            assert_eq!(json["uncompared"][0]["meaning"], "missed-write");
        }
        lab.backup("vm1").expect("the disk is saved in full");
        let outcome = run(&mut lab, None).expect("compared");
        assert_eq!(
            (outcome.verdict(), outcome.disks.len()),
            (Verdict::Same, 2),
            "{outcome:?}"
        );
    }
}

#[test]
fn disk_that_could_not_be_compared_is_not_called_the_same() {
    let mut lab = lab();
    lose_bitmaps(&lab, "vda");
    let outcome = run(&mut lab, None).expect("the other disk is compared");
    let (lines, code) = answer(&outcome);
    assert_eq!(code, ExitCode::Failed, "{lines}");
    assert!(lines.contains("vm1: disk vda: NOT COMPARED: "), "{lines}");
    assert!(lines.contains("vm1: disk vdb: no difference from "), "{lines}");
    assert!(lab.recorder.findings().is_empty(), "the lines say it");
    let json = json(outcome);
    assert_eq!(json["outcome"], "incomplete");
    assert_eq!(json["uncompared"][0]["meaning"], "not-comparable");
    let finding = &json["findings"][0];
    assert_eq!(
        (&finding["code"], &finding["disk"]),
        (&"not-compared".into(), &"vda".into())
    );
    // The same when no disk can be compared.
    lose_bitmaps(&lab, "vdb");
    let outcome = run(&mut lab, None).expect("a result");
    let (lines, code) = answer(&outcome);
    assert_eq!((lines.lines().count(), code), (2, ExitCode::Failed), "{lines}");
    // A difference outweighs a disk that was not compared.
    let mut lab = self::lab();
    lose_bitmaps(&lab, "vdb");
    lab.host
        .disk("vm1", "vda", |disk| disk.swap_content(12 * CLUSTER, &[77; 10]));
    let outcome = run(&mut lab, None).expect("compared");
    assert_eq!(answer(&outcome).1, ExitCode::Damaged);
}

#[test]
fn disk_without_a_basis_for_comparison_is_no_failure() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER), ("vdb", CLUSTER)]);
    lab.host.change("vm1", |domain| {
        domain.disks[1].format = DiskFormat::Raw;
    });
    let raw = vmsnap::ops::backup::Options {
        raw: true,
        ..Lab::options()
    };
    lab.backup_with("vm1", &raw).expect("a full");
    let outcome = run(&mut lab, None).expect("compared");
    let (lines, code) = answer(&outcome);
    assert_eq!(code, ExitCode::Ok, "{lines}");
    let line = "vm1: disk vdb: not compared: a raw disk cannot carry a dirty bitmap";
    assert!(lines.contains(line), "{lines}");
    assert_eq!(outcome.uncompared[0].meaning, Meaning::NothingToCompare);
    // The result lines name the disk, so stderr has no finding for it. The JSON document has one.
    let of_vdb = |findings: &[Finding]| {
        let of_vdb = findings
            .iter()
            .filter(|found| found.disk.as_deref() == Some("vdb"));
        of_vdb.map(|found| found.code.clone()).collect::<Vec<_>>()
    };
    assert_eq!(lines.matches("vdb").count(), 1, "{lines}");
    assert_eq!(of_vdb(&lab.recorder.findings()), ["raw-disk-skipped"; 0]);
    assert_eq!(of_vdb(&outcome.findings), ["not-compared"]);
    // A disk that the domain no longer has.
    lab.host.change("vm1", |domain| {
        domain.disks.remove(1);
    });
    let outcome = run(&mut lab, None).expect("compared");
    let (lines, code) = answer(&outcome);
    assert_eq!(code, ExitCode::Ok, "{lines}");
    assert!(
        lines.contains("vm1: disk vdb: not compared: the domain no longer has this disk"),
        "{lines}"
    );
    // A comparison without any other disk is an error.
    lab.host.change("vm1", |domain| {
        domain.disks.clear();
    });
    let error = run(&mut lab, None).expect_err("there is nothing to compare");
    assert_eq!(error.class(), Class::NotFound, "{error}");
    assert_eq!(of_vdb(&error.findings), ["not-compared"]);
    assert_eq!(of_vdb(&lab.recorder.findings()), ["not-compared"]);
}

#[test]
fn the_json_of_a_failed_domain_has_its_error_and_findings() {
    let mut lab = lab();
    lab.host.change("vm1", |domain| domain.disks[1].shareable = true);
    lab.host.fail_reads_after(Some(0));
    let error = run(&mut lab, None).expect_err("the export breaks");
    let told = lab.recorder.findings();
    assert!(told.iter().any(|found| found.code == "not-compared"), "{told:?}");
    let code = ExitCode::of_error(&error);
    let failed = [Turn::new("vm1", Duration::ZERO, Err(error))];
    let unmatched = ["nope".to_owned()];
    let json = serde_json::to_value(shown::document(&failed, &unmatched, code)).expect("JSON");
    assert_eq!(
        (&json["exitCode"], &json["unmatched"][0]),
        (&3.into(), &"nope".into())
    );
    let domain = &json["domains"][0];
    assert_eq!(
        (&domain["domain"], &domain["outcome"]),
        (&"vm1".into(), &"failed".into())
    );
    assert_eq!(domain["error"]["disk"], "vda", "{domain:#}");
    let finding = &domain["findings"][0];
    assert_eq!(
        (&finding["code"], &finding["disk"]),
        (&"not-compared".into(), &"vdb".into())
    );
    assert_eq!(domain["findings"].as_array().map(Vec::len), Some(1), "{domain:#}");
}

#[test]
fn disk_no_longer_backed_up_is_not_reported_as_same() {
    let mut lab = lab();
    lab.host.change("vm1", |domain| domain.disks[1].shareable = true);
    let outcome = run(&mut lab, None).expect("the other disk is compared");
    let (lines, code) = answer(&outcome);
    assert_eq!(code, ExitCode::Failed, "{lines}");
    assert!(lines.contains("it is shareable"), "{lines}");
}

#[test]
fn list_and_status_show_a_missed_write() {
    let mut lab = lab();
    let sound = shown_status::text(&lab.status("vm1"), false);
    assert!(!sound.contains("issed"), "{sound}");
    let json = |lab: &Lab| {
        let statuses = [lab.status("vm1")];
        serde_json::to_value(status_document(&statuses, false)).expect("JSON")
    };
    assert!(json(&lab)["vm1"].get("missedWrites").is_none());
    lab.host
        .disk("vm1", "vda", |disk| disk.swap_content(12 * CLUSTER, &[77; 10]));
    run(&mut lab, None).expect("compared");

    let in_status = "disk vda, found on 2026-11-03";
    let sentence = "the bitmap of disk vda missed a write (found on 2026-11-03)";
    let stands = "; the next backup will save this disk in full\n";
    let shown = shown_status::text(&lab.status("vm1"), false);
    assert!(
        shown.contains(&format!("  Missed write: {in_status}{stands}")),
        "{shown}"
    );
    let found = json(&lab);
    assert_eq!(found["vm1"]["missedWrites"][0]["disk"], "vda");
    let listed = |lab: &Lab| list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("readable");
    let id = lab.latest("vm1");
    let shown = shown_list::text(
        &listed(&lab),
        &lab.repo.location(),
        shown_list::Columns::Fitting(80),
    );
    assert!(shown.contains(&format!("  {id}: {sentence}{stands}")), "{shown}");
    let found = serde_json::to_value(shown_list::document(&listed(&lab))).expect("JSON");
    let points = &found["domains"][0]["restorePoints"];
    assert_eq!(points[0]["missedWrites"], serde_json::json!([]));
    assert_eq!(points[1]["missedWrites"][0]["disk"], "vda");
    assert_eq!(points[1]["missedWrites"][0]["stands"], true);

    lab.backup("vm1").expect("the disk is saved in full");
    assert!(!shown_status::text(&lab.status("vm1"), false).contains("issed write"));
    let shown = shown_list::text(
        &listed(&lab),
        &lab.repo.location(),
        shown_list::Columns::Fitting(80),
    );
    assert!(shown.contains(&format!("  {id}: {sentence}\n")), "{shown}");
}

#[test]
fn foreign_job_and_broken_export_leave_nothing() {
    let mut lab = lab();
    let before = tree(&lab.root());
    lab.host.fail_reads_after(Some(0));
    run(&mut lab, None).expect_err("the export breaks");
    lab.host.fail_reads_after(None);
    assert!(!lab.host.has_job("vm1"));
    assert_eq!(tree(&lab.root()), before);
    lab.host.begin_foreign_job("vm1");
    let error = run(&mut lab, None).expect_err("it is busy");
    assert!(matches!(error.cause, Cause::Busy { .. }), "{error}");
    assert_eq!(tree(&lab.root()), before);
}

#[test]
fn next_backup_ends_what_a_comparison_could_not() {
    let mut lab = lab();
    lab.host.fail_reads_after(Some(0));
    lab.host.fail_end(true);
    run(&mut lab, None).expect_err("the export breaks, and the daemon is gone");
    lab.host.fail_end(false);
    lab.host.fail_reads_after(None);
    assert!(lab.host.has_job("vm1"));
    let outcome = lab.backup("vm1").expect("healed and backed up");
    assert_eq!(outcome.findings[0].code, "healed-partial");
    assert_eq!(outcome.point.level, Level::Incremental);
}

/// Ends the job while its first disk is being read.
struct Ender<'a>(&'a Lab);

impl Monitor for Ender<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::FileAt { .. } = event {
            let domain = self.0.host.domain("vm1").expect("it is there");
            let _ = self.0.host.abort_job(&domain);
        }
    }
}

#[test]
fn lost_job_ends_the_comparison() {
    let lab = lab();
    let ender = Ender(&lab);
    let error = compare("vm1", &lab.context(&ender), &Lab::comparing()).expect_err("the job has gone");
    assert!(matches!(error.cause, Cause::JobLost(_)), "{error}");
}

#[test]
fn disk_overwritten_in_place_is_noticed_by_the_backup() {
    let mut lab = lab();
    // The bitmaps have the right names but did not record the change.
    lab.host
        .disk("vm1", "vda", |disk| disk.swap_content(0, &[99; 30 * CLUSTER]));
    lab.host
        .disk("vm1", "vda", |disk| disk.write(2 * CLUSTER, &[7; CLUSTER]));
    let point = lab.backup("vm1").expect("healed").point;
    let level = |target| point.disk(target).expect("it is there").level;
    assert_eq!((level("vda"), level("vdb")), (Level::Full, Level::Incremental));
    let reason = &point.disk("vda").expect("it is there").reason;
    assert!(
        reason.contains("the bitmap marks the data there as unchanged"),
        "{reason}"
    );
    lab.assert_gives_back("vm1", "vda");
    assert_eq!(
        lab.backup("vm1").expect("the next backup").point.level,
        Level::Incremental
    );
}
