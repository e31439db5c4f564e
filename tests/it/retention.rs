//! Retention by policy: removals, kept restore points, and obstacles.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use vmsnap::host::Host;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::{self, Options as BackupOptions};
use vmsnap::ops::each::Judged;
use vmsnap::ops::retention::{
    Decision, KeepReason, Means, Obstacle, Options, Outcome, Policy, Quota, RetentionOutcome,
    RetentionPreview, Rule, preview, prune,
};
use vmsnap::ops::{Class, Result};
use vmsnap::testkit::Recorder;

use crate::lab::{CLUSTER, InFolder, Lab, tree};

fn last(number: u32) -> Policy {
    Policy::default().with(Rule::Last, Quota::AtMost(number))
}

/// The content of `vda` in every restore point, with the id.
type Moments = Vec<(String, Vec<u8>)>;

/// Two chains: three restore points of October, three of November.
fn lab() -> (Lab, Moments) {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    let mut moments = Vec::new();
    for (number, day) in ["10-01", "10-02", "10-03", "11-01", "11-02", "11-03"]
        .into_iter()
        .enumerate()
    {
        let offset = if day < "10-25" { "+02:00" } else { "+01:00" };
        lab.at(&format!("2026-{day}T02:00:00{offset}[Europe/Berlin]"));
        let (place, byte) = (number % 4 * CLUSTER, number as u8 + 1);
        lab.host
            .disk("vm1", "vda", |disk| disk.write(place, &[byte; 5000]));
        let outcome = lab.backup("vm1").expect("a restore point");
        moments.push((outcome.point.id, lab.disk("vm1", "vda")));
    }
    (lab, moments)
}

fn pruned(lab: &Lab, policy: Policy) -> Result<Outcome> {
    with(lab, policy, prune)
}

fn planned(lab: &Lab, policy: Policy) -> Outcome {
    with(lab, policy, preview).expect("a plan")
}

fn with(
    lab: &Lab,
    policy: Policy,
    verb: fn(&str, &Means<'_>, &Options) -> Result<Outcome>,
) -> Result<Outcome> {
    let means = Means {
        repo: lab.repo.as_ref(),
        now: lab.now.clone(),
        monitor: &lab.recorder,
        stop: &lab.stop,
    };
    let wait = Duration::ZERO;
    verb("vm1", &means, &Options { policy, wait })
}

fn removed(outcome: &Outcome) -> &[String] {
    let removed = outcome.removed.as_ref().expect("it is no dry run");
    assert!(removed.failure.is_none(), "{:?}", removed.failure);
    &removed.ids
}

/// The numbers of the restore points that exist. Checks that each restores its content.
fn there(lab: &Lab, moments: &Moments) -> Vec<usize> {
    let history = lab.history("vm1");
    assert!(history.findings.is_empty(), "{:?}", history.findings);
    let is_there = |number: &usize| history.get(&moments[*number].0).is_some();
    let there: Vec<usize> = (0..moments.len()).filter(is_there).collect();
    for number in &there {
        let (id, disk) = &moments[*number];
        let restored = lab.restored("vm1", id, "vda").expect("it can be restored");
        assert!(restored == *disk, "{id}");
    }
    there
}

fn of_vm1(lab: &Lab) -> Vec<String> {
    tree(&lab.root().join("vm1"))
}

#[test]
fn a_chain_that_nothing_needs_goes_with_its_period() {
    let (lab, moments) = lab();
    let plan = planned(&lab, last(3));
    let outcome = pruned(&lab, last(3)).expect("pruned");
    let ids: Vec<&String> = moments[..3].iter().rev().map(|(id, _)| id).collect();
    assert_eq!(
        removed(&outcome).iter().collect::<Vec<_>>(),
        ids,
        "children go first"
    );
    assert_eq!(plan.plan, outcome.plan, "a dry run shows what is done");
    assert_eq!(there(&lab, &moments), [3, 4, 5]);
    let left = of_vm1(&lab);
    assert!(left.iter().all(|path| !path.contains("2026-10")), "{left:#?}");
    assert!(outcome.faults().is_empty());
}

#[test]
fn parents_go_into_the_kept_point() {
    let (lab, moments) = lab();
    // The newest of each month stays, and its parents are merged into it.
    let monthly = Policy::default().with(Rule::Monthly, Quota::AtMost(2));
    let plan = planned(&lab, monthly).plan;
    let outcome = pruned(&lab, monthly).expect("pruned");
    let into = |number: usize| Decision::Merge {
        into: moments[number].0.clone(),
    };
    let decisions: Vec<&Decision> = outcome.plan.points.iter().map(|point| &point.decision).collect();
    assert_eq!(decisions[..2], [&into(2), &into(2)]);
    assert_eq!(decisions[3..5], [&into(5), &into(5)]);
    assert_eq!(plan, outcome.plan, "a dry run shows what is done");
    assert_eq!(removed(&outcome).len(), 4);
    assert!(outcome.faults().is_empty() && outcome.findings.is_empty());
    assert_eq!(there(&lab, &moments), [2, 5]);
    let history = lab.history("vm1");
    for kept in &history.kept {
        assert_eq!(kept.manifest.point.level, Level::Full);
        let folder = kept.dir();
        assert!(folder.to_string_lossy().ends_with(".inc"), "it keeps its folder");
    }
    let left = of_vm1(&lab);
    let points = left.iter().filter(|path| path.ends_with("manifest.json"));
    assert_eq!(points.count(), 2, "{left:#?}");
    assert!(left.iter().all(|path| !path.contains("merg")), "{left:#?}");
    assert_eq!(removed(&pruned(&lab, monthly).expect("pruned")), [""; 0]);
}

#[test]
fn backups_go_on_after_a_merge() {
    let (mut lab, mut moments) = lab();
    assert_eq!(removed(&pruned(&lab, last(2)).expect("pruned")).len(), 4);
    for byte in [77, 78] {
        lab.host
            .disk("vm1", "vda", |disk| disk.write(CLUSTER, &[byte; 5000]));
        let outcome = lab.backup("vm1").expect("an increment");
        assert_eq!(outcome.point.level, Level::Incremental);
        moments.push((outcome.point.id, lab.disk("vm1", "vda")));
    }
    assert_eq!(there(&lab, &moments), [4, 5, 6, 7]);
    assert!(lab.status("vm1").is_consistent());
    // Children of a merged restore point refer to the manifest it had.
    assert_eq!(removed(&pruned(&lab, last(3)).expect("pruned")).len(), 1);
    assert_eq!(there(&lab, &moments), [5, 6, 7]);
}

#[test]
fn only_the_end_of_a_chain_that_nothing_needs_goes() {
    let (lab, moments) = lab();
    let within = "60d".parse().expect("a duration");
    let all = Policy::default().with_within(Some(within));
    assert_eq!(removed(&pruned(&lab, all).expect("pruned")), [""; 0]);
    let pin = |id: &str| crate::pins::pin(&lab, id, "").expect("pinned");
    pin(&moments[0].0);
    let outcome = pruned(&lab, last(3)).expect("pruned");
    assert_eq!(removed(&outcome), [moments[2].0.clone(), moments[1].0.clone()]);
    assert_eq!(there(&lab, &moments), [0, 3, 4, 5]);
    let checkpoints: Vec<String> = of_vm1(&lab)
        .into_iter()
        .filter(|path| path.contains("2026-10/checkpoints/"))
        .collect();
    assert_eq!(checkpoints.len(), 1, "{checkpoints:?}");
}

#[test]
fn a_policy_after_a_backup_does_what_its_dry_run_said() {
    let (mut lab, mut moments) = lab();
    let keeping = BackupOptions {
        keep: Some(last(4)),
        ..Lab::options()
    };
    let context = lab.context(&lab.recorder);
    let preview = backup::preview("vm1", &context, &keeping).expect("a plan");
    let Some(RetentionPreview::Plan(plan)) = preview.retention else {
        panic!("{:?}", preview.retention)
    };
    let announced: Vec<String> = plan.removals().map(|planned| planned.point.id.clone()).collect();
    assert_eq!(announced.len(), 3);
    let outcome = lab.backup_with("vm1", &keeping).expect("an increment");
    moments.push((outcome.point.id.clone(), lab.disk("vm1", "vda")));
    match outcome.retention {
        Some(RetentionOutcome::Applied { removed, .. }) => assert_eq!(removed, announced),
        other => panic!("{other:?}"),
    }
    assert_eq!(there(&lab, &moments), [3, 4, 5, 6]);
    assert!(lab.status("vm1").is_consistent());
}

#[test]
fn a_backup_beside_a_reader_reports_the_files_that_stay() {
    let mut lab = Lab::with_three_points();
    let keeping = BackupOptions {
        keep: Some(last(2)),
        ..Lab::options()
    };
    let reading = lab.history("vm1");
    let outcome = lab.backup_with("vm1", &keeping).expect("an increment");
    drop(reading);
    let codes: Vec<&str> = outcome.findings.iter().map(|found| found.code.as_str()).collect();
    assert!(codes.contains(&"removal-waits"), "{codes:?}");
}

#[test]
fn nothing_goes_when_the_backup_fails() {
    let (mut lab, moments) = lab();
    let keeping = BackupOptions {
        keep: Some(last(1)),
        ..Lab::options()
    };
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[9]));
    lab.host.fail_reads_after(Some(0));
    lab.backup_with("vm1", &keeping).expect_err("the export breaks");
    lab.host.fail_reads_after(None);
    assert_eq!(there(&lab, &moments), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn nothing_goes_when_the_newest_is_partial() {
    let (mut lab, moments) = lab();
    lab.host.attach("vm1", "vdb", CLUSTER);
    lab.host.change("vm1", |domain| domain.disks[1].transient = true);
    let keeping = BackupOptions {
        keep: Some(last(1)),
        ..Lab::options()
    };
    let why = "the backup is partial, and older restore points may hold the missing disk";
    let context = lab.context(&lab.recorder);
    let preview = backup::preview("vm1", &context, &keeping).expect("a plan");
    assert_eq!(preview.retention, Some(RetentionPreview::Keep(why.to_owned())));
    let outcome = lab.backup_with("vm1", &keeping).expect("vda is saved");
    assert!(outcome.point.is_partial());
    assert_eq!(outcome.retention, Some(RetentionOutcome::Kept(why.to_owned())));
    // A later prune is held back too, until a complete backup is the newest.
    let outcome = pruned(&lab, last(1)).expect("a result");
    assert_eq!(removed(&outcome), [""; 0]);
    let partial = lab.latest("vm1");
    assert_eq!(outcome.plan.obstacle, Some(Obstacle::Partial { id: partial }));
    assert!(!outcome.faults().is_empty(), "the prune is not a success");
    assert_eq!(there(&lab, &moments), [0, 1, 2, 3, 4, 5]);
    lab.host.change("vm1", |domain| domain.disks.truncate(1));
    lab.backup("vm1").expect("a complete backup");
    let outcome = pruned(&lab, last(1)).expect("pruned");
    assert_eq!(removed(&outcome).len(), 7);
    assert!(there(&lab, &moments).is_empty());
    assert_eq!(lab.history("vm1").kept.len(), 1);
}

#[test]
fn nothing_goes_when_the_newest_is_not_whole() {
    let (lab, moments) = lab();
    let newest = lab.history("vm1").kept.pop().expect("points");
    let image = newest.dir().join("vda.qcow2");
    let bytes = fs::read(&image).expect("an image");
    fs::remove_file(&image).expect("removed");
    let outcome = pruned(&lab, last(1)).expect("it is looked at");
    assert_eq!(removed(&outcome), [""; 0]);
    assert!(
        matches!(&outcome.plan.obstacle, Some(Obstacle::NotWhole { id, .. }) if *id == moments[5].0),
        "{:?}",
        outcome.plan.obstacle
    );
    assert!(!outcome.faults().is_empty(), "that is no success");
    let held_back = Decision::Keep(vec![KeepReason::HeldBack]);
    assert_eq!(outcome.plan.points[0].decision, held_back);
    fs::write(&image, bytes).expect("written");
    assert_eq!(there(&lab, &moments), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn nothing_goes_while_a_point_cannot_be_read() {
    let (lab, moments) = lab();
    let manifest = lab.history("vm1").kept[1].dir().join("manifest.json");
    let text = fs::read(&manifest).expect("a manifest");
    fs::write(&manifest, b"{}").expect("written");
    let outcome = pruned(&lab, last(1)).expect("it is looked at");
    assert_eq!(removed(&outcome), [""; 0]);
    assert!(matches!(outcome.plan.obstacle, Some(Obstacle::Unreadable { .. })));
    fs::write(&manifest, text).expect("written");
    assert_eq!(there(&lab, &moments), [0, 1, 2, 3, 4, 5]);
    // One that is gone as a whole needs nothing.
    fs::remove_dir_all(lab.history("vm1").kept[2].dir()).expect("removed");
    let outcome = pruned(&lab, last(3)).expect("pruned");
    assert_eq!(removed(&outcome).len(), 2);
}

#[test]
fn nothing_goes_while_a_point_is_of_the_future() {
    let (mut lab, moments) = lab();
    lab.at("2026-10-31T02:00:00+01:00[Europe/Berlin]");
    let outcome = pruned(&lab, last(1)).expect("it is looked at");
    assert!(matches!(outcome.plan.obstacle, Some(Obstacle::Future { .. })));
    assert_eq!(there(&lab, &moments).len(), 6);
}

#[test]
fn a_prune_waits_for_no_backup_and_an_empty_policy_is_misuse() {
    let (lab, moments) = lab();
    let domain = lab.repo.domain("vm1").expect("a name");
    let writer = domain.try_lock().expect("nobody writes");
    let error = pruned(&lab, last(1)).expect_err("it is locked");
    assert_eq!(error.class(), Class::Locked);
    let outcome = planned(&lab, last(1));
    assert!(outcome.writer.is_some() && !outcome.faults().is_empty());
    drop(writer);
    let empty = Policy::default().with(Rule::Daily, Quota::AtMost(0));
    let error = pruned(&lab, empty).expect_err("it would keep nothing");
    assert_eq!(error.class(), Class::Usage);
    assert_eq!(there(&lab, &moments).len(), 6);
}

#[test]
fn a_domain_made_anew_is_judged_by_itself() {
    let (mut lab, moments) = lab();
    lab.host.change("vm1", |domain| {
        domain.uuid = "11111111-0000-4000-8000-000000000001".into()
    });
    lab.at("2026-12-01T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("a full of the new one");
    // The newest of the old one stays.
    let outcome = pruned(&lab, last(1)).expect("pruned");
    assert_eq!(removed(&outcome).len(), 5);
    assert_eq!(there(&lab, &moments), [5]);
    // A damaged old one holds back its own only.
    let newest = lab.history("vm1").kept[0].dir();
    fs::remove_file(newest.join("vda.qcow2")).expect("removed");
    let outcome = pruned(&lab, last(1)).expect("pruned");
    assert!(outcome.plan.obstacle.is_none() && outcome.faults().is_empty());
    let codes: Vec<&str> = outcome
        .findings
        .iter()
        .map(|finding| finding.code.as_str())
        .collect();
    assert!(codes.contains(&"earlier-domain-held-back"), "{codes:?}");
}

#[test]
fn a_removed_point_is_no_lost_point() {
    let (lab, moments) = lab();
    pruned(&lab, last(3)).expect("pruned");
    let error = lab.restored("vm1", &moments[0].0, "vda").expect_err("it is gone");
    assert_eq!(error.class(), Class::NotFound);
    assert!(error.to_string().contains("was removed on 2026-11-03"), "{error}");
    let history = lab.history("vm1");
    assert_eq!(history.chains.removed().count(), 3);
    assert!(lab.status("vm1").is_consistent());
    // One that is removed by hand is lost.
    fs::remove_dir_all(history.kept[2].dir()).expect("removed");
    let lost = lab.history("vm1").findings;
    assert_eq!(lost[0].code, "restore-point-missing", "{lost:?}");
}

#[test]
fn a_removed_point_that_is_copied_back_is_there_again() {
    let (lab, moments) = lab();
    let point = lab.history("vm1").kept[0].dir();
    let aside = lab.folder.path().join("aside");
    fs::create_dir(&aside).expect("a folder");
    for entry in fs::read_dir(&point).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), aside.join(entry.file_name())).expect("copied");
    }
    pruned(&lab, last(3)).expect("pruned");
    fs::create_dir_all(point.parent().expect("a period")).expect("a folder");
    fs::rename(&aside, &point).expect("moved");
    let history = lab.history("vm1");
    assert!(history.get(&moments[0].0).is_some());
    assert_eq!(history.chains.removed().count(), 2);
    let restored = lab.restored("vm1", &moments[0].0, "vda").expect("restored");
    assert!(restored == moments[0].1);
}

#[test]
fn a_checkpoint_of_a_removed_point_is_retired_later() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.at("2026-10-20T02:00:00+02:00[Europe/Berlin]");
    lab.backup("vm1").expect("October's full");
    let october = lab.made[0].clone();
    lab.host.fail_removal_of(Some(&october));
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    let keeping = BackupOptions {
        keep: Some(last(1)),
        ..Lab::options()
    };
    let outcome = lab.backup_with("vm1", &keeping).expect("November's full");
    let why = "superseded checkpoints have to be removed first, but their removal failed".to_owned();
    assert_eq!(outcome.retention, Some(RetentionOutcome::Kept(why)));
    lab.host.fail_removal_of(None);
    let vm1 = lab.host.domain("vm1").expect("it is there");
    let has_it = |lab: &Lab| {
        let checkpoints = lab.host.checkpoints(&vm1).expect("they are listed");
        checkpoints.iter().any(|found| found.name == october)
    };
    // No manifest names the checkpoint, but the record of removed restore points does.
    assert_eq!(removed(&pruned(&lab, last(1)).expect("pruned")).len(), 1);
    assert!(has_it(&lab));
    assert!(
        lab.status("vm1").is_consistent(),
        "{:?}",
        lab.status("vm1").inconsistencies
    );
    lab.backup("vm1").expect("an increment");
    assert!(!has_it(&lab));
    assert_eq!(lab.host.disk("vm1", "vda", |disk| disk.bitmap_names()).len(), 2);
}

#[test]
fn readers_beside_a_prune_see_no_damage() {
    let (lab, _) = lab();
    let repo = lab.repo.as_ref();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let history = repo.domain("vm1").expect("a name").history().expect("readable");
                assert!(history.findings.is_empty(), "{:?}", history.findings);
                for kept in history.chains.points() {
                    assert_eq!(history.chains.faults(&kept.point.id), [""; 0]);
                }
            }
        });
        for number in (3..6).rev() {
            let means = Means {
                repo,
                now: lab.now.clone(),
                monitor: &Recorder::default(),
                stop: &lab.stop,
            };
            let wait = Duration::ZERO;
            let policy = last(number);
            prune("vm1", &means, &Options { policy, wait }).expect("pruned");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

fn vmsnap(lab: &Lab, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .args(arguments)
        .arg("--repository")
        .arg(lab.root())
        .env("TZ", "Europe/Berlin")
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// A lab whose restore points are of the past for the program's own clock.
fn past_lab() -> Lab {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    for day in ["2024-01-01", "2024-01-02", "2024-02-01"] {
        lab.at(&format!("{day}T02:00:00+01:00[Europe/Berlin]"));
        lab.backup("vm1").expect("a restore point");
    }
    lab
}

#[test]
fn a_dry_run_shows_each_point_and_why() {
    let lab = past_lab();
    let before = of_vm1(&lab);
    let output = vmsnap(&lab, &["prune", "--keep-last", "1", "--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = text(&output.stdout);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(
        lines[0].starts_with("vm1: would remove 2 of 3 restore points and free "),
        "{shown}"
    );
    assert_eq!(
        lines[1].split_whitespace().collect::<Vec<_>>(),
        ["ID", "(UTC)", "LEVEL", "SIZE", "DECISION", "WHY"]
    );
    assert!(lines[2].starts_with("  2024-01-01T01-00-00Z  full"), "{shown}");
    assert!(lines[2].ends_with("  remove    no rule keeps it"), "{shown}");
    assert!(lines[4].ends_with("  keep      last"), "{shown}");
    assert_eq!(of_vm1(&lab), before);
    let output = vmsnap(&lab, &["prune", "vm1", "--keep-last=1", "--dry-run", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(document["dryRun"], true);
    let domain = &document["domains"][0];
    assert_eq!(domain["outcome"], "planned");
    assert_eq!(domain["restorePoints"][0]["decision"], "remove");
    assert_eq!(domain["restorePoints"][2]["reasons"][0], "last");
    assert!(domain["freedBytes"].as_u64().expect("a number") > 0);
}

#[test]
fn a_prune_reports_what_went_in_both_forms() {
    let lab = past_lab();
    let pinned = vmsnap(
        &lab,
        &["pin", "vm1", "2024-01-01T01-00-00Z", "--note", "the first"],
    );
    assert_eq!(
        text(&pinned.stdout),
        "vm1: 2024-01-01T01-00-00Z is pinned: the first\n"
    );
    let output = vmsnap(&lab, &["prune", "--keep-yearly", "1"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = text(&output.stdout);
    assert!(
        shown.starts_with("vm1: removed 1 of 3 restore points and freed "),
        "{shown}"
    );
    assert!(shown.ends_with("\n  removed 2024-01-02T01-00-00Z\n"), "{shown}");
    let listed = vmsnap(&lab, &["list"]);
    let listed = text(&listed.stdout);
    assert!(
        listed.contains("  2024-01-01T01-00-00Z: pinned: the first\n"),
        "{listed}"
    );
    let unpinned = vmsnap(&lab, &["unpin", "vm1", "2024-01-01T01-00-00Z", "--json"]);
    let document: Value = serde_json::from_slice(&unpinned.stdout).expect("JSON");
    assert_eq!(
        (&document["wasPinned"], &document["pin"]),
        (&true.into(), &Value::Null)
    );
    let output = vmsnap(&lab, &["prune", "--keep-within", "1m", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(document["domains"][0]["removed"][0], "2024-01-01T01-00-00Z");
    assert_eq!(document["domains"][0]["outcome"], "ok");
    let again = vmsnap(&lab, &["prune", "--keep-daily", "-1", "--keep-last", "unlimited"]);
    assert_eq!(text(&again.stdout), "vm1: removed none of 1 restore point\n");
}

#[test]
fn misuse_of_a_policy_is_refused_with_sixty_four() {
    let lab = past_lab();
    let before = of_vm1(&lab);
    let root = lab.root().display().to_string();
    let cases: [&[&str]; 9] = [
        &["prune"],
        &["prune", "--keep-daily", "0"],
        &["prune", "--keep-within", "0d"],
        &["prune", "--keep-daily", "x"],
        &["prune", "--keep-daily=-2"],
        &["prune", "--keep-within", "7"],
        &["backup", "vm1", "--prune", "--keep-last", "1"],
        &["backup", "vm1", "--copy", "--keep-last", "1"],
        &["backup", "vm1", "--keep-last", "0"],
    ];
    for words in cases {
        let output = vmsnap(&lab, words);
        assert_eq!(output.status.code(), Some(64), "{words:?} {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    assert_eq!(of_vm1(&lab), before);
    let missing = vmsnap(&lab, &["prune", "vm2", "--keep-last", "1"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?} {root}");
    let nothing = vmsnap(&lab, &["pin", "vm1", "2024-01-09T01-00-00Z"]);
    assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    let long = "x".repeat(1001);
    let long = vmsnap(&lab, &["pin", "vm1", "latest", "--note", &long]);
    assert_eq!(long.status.code(), Some(64), "{long:?}");
}

#[test]
fn a_held_back_prune_ends_with_three_and_says_why() {
    let lab = past_lab();
    let newest = lab.history("vm1").kept.pop().expect("points");
    fs::remove_file(newest.dir().join("vda.qcow2")).expect("removed");
    let output = vmsnap(&lab, &["prune", "--keep-last", "1"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let shown = text(&output.stdout);
    assert!(
        shown.contains("\n  no restore point of this domain is removed: the newest restore point 2024-02-01"),
        "{shown}"
    );
    let output = vmsnap(&lab, &["prune", "--keep-last", "1", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(document["domains"][0]["outcome"], "held-back");
    assert_eq!(document["exitCode"], 3);
}
