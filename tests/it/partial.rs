//! Backups without some disks: when they are partial, and the findings.

use vmsnap::cli::report;
use vmsnap::model::domain::{Device, DiskFormat, DomainState, Source};
use vmsnap::model::finding::Finding;
use vmsnap::model::firmware::Nvram;
use vmsnap::model::left_out::{Exclusion, Exclusions, Kind, LeftOut, targets};
use vmsnap::model::restore_point::Level;
use vmsnap::ops::Cause;
use vmsnap::ops::backup::{Options, Outcome, PruneOutcome, preview};
use vmsnap::ops::compare::{self, Verdict, compare};
use vmsnap::ops::prune::PrunePlan;
use vmsnap::ops::restore::{self, DefineOptions};
use vmsnap::ops::status::{DomainStatus, Subject, status};

use crate::lab::{CLUSTER, InFolder, Lab};

fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.code.as_str()).collect()
}

/// A domain `vm1` with disks of these targets.
fn lab(disks: &[&str]) -> Lab {
    let lab = Lab::new();
    let disks: Vec<(&str, usize)> = disks.iter().map(|target| (*target, 2 * CLUSTER)).collect();
    lab.host.add_domain("vm1", &disks);
    lab
}

fn excluding(disks: &[&str]) -> Options {
    let exclusion = |disk: &&str| Exclusion {
        disk: (*disk).to_owned(),
        is_expected: true,
    };
    Options {
        exclude: disks.iter().map(exclusion).collect(),
        ..Lab::options()
    }
}

fn write(lab: &Lab, disk: &str, byte: u8) {
    lab.host.disk("vm1", disk, |disk| disk.write(0, &[byte; CLUSTER]));
}

fn left_out(outcome: &Outcome) -> Vec<(&str, Kind)> {
    let left = outcome.point.left_out.iter();
    left.map(|left| (left.disk.as_str(), left.kind)).collect()
}

#[test]
fn a_disk_that_cannot_be_saved_makes_a_backup_partial() {
    let mut lab = lab(&["vda", "vdb", "vdc", "vdd", "vde", "vdf"]);
    lab.host.change("vm1", |domain| {
        domain.disks[1].shareable = true;
        domain.disks[2].transient = true;
        domain.disks[3].device = Device::Lun;
        domain.disks[4].format = DiskFormat::Other("vmdk".into());
        domain.disks[5].source = Source::Other("vhostuser".into());
    });
    let outcome = lab.backup("vm1").expect("vda is saved");
    let skipped = ["vdb", "vdc", "vdd", "vde", "vdf"];
    assert!(outcome.point.is_partial());
    assert_eq!(targets(&outcome.point.left_out, &[Kind::Skipped]), skipped);
    assert_eq!(codes(&outcome.findings), ["disk-skipped"; 5]);

    let manifest = &lab.history("vm1").kept[0].manifest;
    assert_eq!(
        manifest.point.left_out, outcome.point.left_out,
        "as the manifest says"
    );
    let planned = lab.preview("vm1").expect("a plan").planned.backup;
    assert!(planned.is_partial());
    assert_eq!(targets(&planned.left_out, &[Kind::Skipped]), skipped);
}

#[test]
fn drives_raw_disks_and_excluded_disks_make_no_backup_partial() {
    let mut lab = lab(&["vda", "sda", "fda", "vdb", "vdc", "vdd", "vde"]);
    lab.host.change("vm1", |domain| {
        domain.disks[1].device = Device::Cdrom;
        domain.disks[2].device = Device::Floppy;
        domain.disks[3].source = Source::Empty;
        domain.disks[4].format = DiskFormat::Raw;
        domain.disks[6].shareable = true;
        domain.excluded = vec!["vdd".into()];
    });
    let outcome = lab
        .backup_with("vm1", &excluding(&["vde"]))
        .expect("vda is saved");
    assert!(!outcome.point.is_partial());
    let expected = [
        ("vdc", Kind::Raw),
        ("vdd", Kind::Excluded),
        ("vde", Kind::Excluded),
    ];
    assert_eq!(left_out(&outcome), expected);
    assert_eq!(
        codes(&outcome.findings),
        ["raw-disk-skipped", "disk-excluded", "disk-excluded"]
    );
}

#[test]
fn a_partial_backup_prunes_nothing_and_says_why() {
    let mut lab = lab(&["vda", "vdb"]);
    lab.at("2026-10-20T02:00:00+02:00[Europe/Berlin]");
    lab.backup("vm1").expect("October's full");
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    lab.host.change("vm1", |domain| domain.disks[1].shareable = true);
    let planned = preview("vm1", &lab.context(&lab.recorder), &Lab::pruning()).expect("a plan");
    assert!(matches!(planned.prune, Some(PrunePlan::Keep(why)) if why.contains("partial")));
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("vda is saved");
    assert!(matches!(outcome.prune, Some(PruneOutcome::Kept(why)) if why.contains("partial")));
    assert!(lab.root().join("vm1/vmsnap-backup-monthly-2026-10").is_dir());
}

#[test]
fn an_excluded_disk_keeps_its_past_and_can_come_back() {
    let mut lab = lab(&["vda", "vdb"]);
    write(&lab, "vdb", 1);
    let first = lab.backup("vm1").expect("a full");
    write(&lab, "vda", 2);
    write(&lab, "vdb", 3);
    let without = lab.backup_with("vm1", &excluding(&["vdb"])).expect("vda");
    assert_eq!(without.point.level, Level::Incremental);
    assert!(without.point.disk("vdb").is_none());
    lab.assert_gives_back("vm1", "vda");
    assert_eq!(
        lab.restored("vm1", &first.point.id, "vdb").expect("it is there")[0],
        1
    );
    lab.restored("vm1", "latest", "vdb")
        .expect_err("it is not in there");

    let with = lab.backup("vm1").expect("both");
    assert_eq!(with.point.disks.len(), 2);
    lab.assert_gives_back("vm1", "vdb");
    let vdb = with.point.disk("vdb").expect("it is back");
    assert_eq!(vdb.parent.as_deref(), Some(first.point.id.as_str()));
}

#[test]
fn an_exclusion_without_its_disk_is_a_finding() {
    let mut lab = lab(&["vda"]);
    lab.host
        .change("vm1", |domain| domain.excluded = vec!["vdy\n".into()]);
    let mut options = excluding(&["vdz"]);
    options.exclude.push(Exclusion {
        disk: "vdx".into(),
        is_expected: false,
    });
    let outcome = lab.backup_with("vm1", &options).expect("vda is saved");
    assert_eq!(codes(&outcome.findings), ["excluded-disk-missing"; 2]);
    assert!(
        outcome.findings[0].message.contains("'vdz'"),
        "{:?}",
        outcome.findings
    );
    assert!(
        outcome.findings[1].message.contains("'vdy\\n'"),
        "{:?}",
        outcome.findings
    );
    assert!(!outcome.point.is_partial());
}

#[test]
fn a_domain_of_which_all_is_excluded_has_nothing_to_back_up() {
    let mut lab = lab(&["vda"]);
    let error = lab.backup_with("vm1", &excluding(&["vda"])).expect_err("nothing");
    assert!(matches!(error.cause, Cause::NothingToBackUp));
    assert_eq!(codes(&error.findings), ["disk-excluded"]);
}

fn stands(lab: &Lab, exclude: &Exclusions) -> DomainStatus {
    let subject = Subject {
        exclude,
        ..lab.subject()
    };
    status("vm1", &subject).expect("a status")
}

#[test]
fn status_names_each_left_out_disk_once_and_is_consistent() {
    let mut lab = lab(&["vda", "vdb", "vdc", "vdd", "sda"]);
    lab.backup("vm1").expect("a full");
    lab.host.change("vm1", |domain| {
        domain.disks[2].shareable = true;
        domain.disks[4].device = Device::Cdrom;
        domain.excluded = vec!["vdb".into()];
    });
    lab.backup("vm1").expect("vda and vdd");
    let exclude = Exclusions::from([("vm1".to_owned(), excluding(&["vdd"]).exclude)]);
    let found = stands(&lab, &exclude);
    assert!(found.is_consistent(), "{:?}", found.inconsistencies);
    let next = found.next.as_ref().expect("it is known").backup.clone();
    assert_eq!(next.disks.len(), 1, "vda alone");
    assert_eq!(found.latest_lacks, ["vdc"]);

    let text = report::status::text(&found, false);
    for line in [
        "  Left out: vdb, the domain's metadata excludes it\n",
        "  Left out: vdc, it is shareable, so other domains may write to it at the same time\n",
        "  Left out: vdd, --exclude-disk names it\n",
        ", PARTIAL (without vdc)\n",
    ] {
        assert_eq!(text.matches(line).count(), 1, "{line}{text}");
    }
    assert!(!text.contains("Note: ") && !text.contains("sda"), "{text}");
    let look = report::status::Look {
        form: report::status::Form::Json,
        machine: true,
        pretty: false,
    };
    let json = report::status::write(&[found], look);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["vm1"]["leftOut"][0]["kind"], "excluded");
    assert_eq!(json["vm1"]["leftOut"][1]["kind"], "skipped");
    assert_eq!(json["vm1"]["lastRestorePointLacks"][0], "vdc");
}

#[test]
fn an_excluded_disk_is_nothing_to_compare() {
    let mut lab = lab(&["vda", "vdb"]);
    write(&lab, "vda", 1);
    lab.backup("vm1").expect("a full");
    lab.host
        .change("vm1", |domain| domain.excluded = vec!["vdb".into()]);
    let expected = "the domain's metadata excludes it";
    assert_eq!(uncompared(&lab), [("vdb".to_owned(), expected.to_owned())]);
    lab.backup("vm1").expect("vda is saved");
    assert_eq!(uncompared(&lab), [("vdb".to_owned(), expected.to_owned())]);
}

fn compare_all(lab: &Lab) -> compare::Outcome {
    let outcome = compare("vm1", &lab.context(&lab.recorder), &Lab::comparing()).expect("it is compared");
    assert_eq!(outcome.verdict(), Verdict::Same, "{outcome:?}");
    outcome
}

/// The disks that a comparison leaves out, each with the reason.
fn uncompared(lab: &Lab) -> Vec<(String, String)> {
    let outcome = compare_all(lab);
    let compared: Vec<&str> = outcome.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(compared, ["vda"]);
    let disks = outcome.uncompared.into_iter();
    disks.map(|disk| (disk.target, disk.why)).collect()
}

/// The bitmap is missing, which would make the comparison incomplete if backups saved the disk.
#[test]
fn a_disk_that_the_newest_point_excludes_is_not_compared() {
    for was_saved in [true, false] {
        let mut lab = lab(&["vda", "vdb"]);
        write(&lab, "vda", 1);
        if was_saved {
            lab.backup("vm1").expect("both");
        }
        lab.backup_with("vm1", &excluding(&["vdb"]))
            .expect("vda is saved");
        lab.host.disk("vm1", "vdb", |disk| {
            for name in disk.bitmap_names() {
                disk.remove_bitmap(&name);
            }
        });
        let why = "the newest restore point leaves it out: --exclude-disk names it";
        assert_eq!(
            uncompared(&lab),
            [("vdb".to_owned(), why.to_owned())],
            "{was_saved}"
        );
        lab.backup("vm1").expect("both");
        let compared = compare_all(&lab).disks.len();
        assert_eq!(compared, 2, "it is saved again");
    }
}

#[test]
fn a_restore_says_what_a_partial_restore_point_lacks() {
    let mut lab = lab(&["vda", "vdb"]);
    lab.host.change("vm1", |domain| domain.disks[1].shareable = true);
    lab.backup("vm1").expect("vda is saved");
    let mut options = lab.restoring();
    let plan = restore::plan("vm1", lab.repo.as_ref(), None, &options).expect("a plan");
    assert_eq!(codes(&plan.findings), ["disk-not-restored"]);
    assert!(
        plan.findings[0].message.contains("it is shareable"),
        "{:?}",
        plan.findings
    );

    options.define = Some(DefineOptions { name: None });
    lab.host.remove_domain("vm1");
    let plan = restore::plan("vm1", lab.repo.as_ref(), Some(&lab.host), &options).expect("a plan");
    let of_vdb = plan
        .findings
        .iter()
        .find(|found| found.code == "disk-not-restored");
    let message = &of_vdb.expect("it is reported").message;
    assert!(
        message.contains("it is shareable") && message.contains("/images/vdb"),
        "{message}"
    );
}

#[test]
fn list_and_json_mark_partial_restore_points() {
    let mut lab = lab(&["vda", "vdb"]);
    lab.backup("vm1").expect("a full");
    lab.host.change("vm1", |domain| domain.disks[1].shareable = true);
    lab.backup("vm1").expect("vda is saved");
    let listed = vmsnap::ops::list::list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("a list");
    let text = report::list::text(&listed, &lab.repo.location(), report::list::Columns::Fitting(80));
    assert_eq!(text.matches("  PARTIAL  ").count(), 1, "{text}");
    assert_eq!(
        text.matches("partial, without disk vdb: it is shareable").count(),
        1,
        "{text}"
    );
    let json = serde_json::to_value(report::list::document(&listed)).expect("JSON");
    let points = &json["domains"][0]["restorePoints"];
    assert_eq!(
        (&points[0]["partial"], &points[1]["partial"]),
        (&false.into(), &true.into())
    );
    assert_eq!(points[1]["leftOut"][0]["disk"], "vdb");
    assert_eq!(points[1]["leftOut"][0]["kind"], "skipped");
}

#[test]
fn a_failed_backup_carries_what_was_found_before() {
    let mut lab = lab(&["vda"]);
    lab.host.change("vm1", |domain| {
        domain.disks[0].format = DiskFormat::Other("vmdk".into());
    });
    let error = lab.backup("vm1").expect_err("nothing is eligible");
    assert_eq!(codes(&error.findings), ["disk-skipped"]);
    assert_eq!(error.findings[0].disk.as_deref(), Some("vda"));
}

#[test]
fn a_failed_restore_carries_what_was_found_before() {
    let mut lab = lab(&["vda", "vdb"]);
    lab.host.change("vm1", |domain| domain.disks[1].shareable = true);
    lab.backup("vm1").expect("vda is saved");
    let plan = restore::plan("vm1", lab.repo.as_ref(), None, &lab.restoring()).expect("a plan");
    std::fs::remove_file(lab.history("vm1").kept[0].dir().join("vda.qcow2")).expect("it is gone");
    let failed = restore::restore("vm1", plan, &lab.means(&lab.recorder, &lab.stop));
    let error = failed.map(|_| ()).expect_err("its image is gone");
    assert_eq!(codes(&error.findings), ["disk-not-restored"]);
    let json = serde_json::to_value(report::restore::failed_document(&error)).expect("JSON");
    assert_eq!(json["outcome"], "failed");
    assert_eq!(json["findings"][0]["code"], "disk-not-restored");
}

#[test]
fn a_left_out_disk_is_reported_once_however_often_it_is_tried() {
    let mut lab = lab(&["vda", "vdb"]);
    lab.host.change("vm1", |domain| domain.disks[1].shareable = true);
    for number in 0..2 {
        let name = format!("virtnbdbackup.{number}");
        lab.host
            .disk("vm1", "vda", |disk| disk.add_bitmap(&name).expect("a new bitmap"));
    }
    let outcome = lab.backup("vm1").expect("vda is eligible");
    let reported = lab.recorder.findings();
    let of_vdb = |findings: &[Finding]| {
        let found = findings
            .iter()
            .filter(|found| found.disk.as_deref() == Some("vdb"));
        found.count()
    };
    assert_eq!(of_vdb(&reported), 1, "{reported:?}");
    assert_eq!(of_vdb(&outcome.findings), 1);
    assert_eq!(of_vdb(&outcome.point.findings), 1);
}

#[test]
fn lost_uefi_variables_are_a_finding_and_fresh_ones_are_not() {
    let mut lab = lab(&["vda"]);
    let is_reported = |outcome: &Outcome| codes(&outcome.findings) == ["nvram-missing"];
    lab.host.change("vm1", |domain| {
        domain.nvram = Some(Nvram::raw("/nvram/vm1_VARS.fd"));
        domain.state = DomainState::ShutOff;
    });
    let never_started = lab.backup("vm1").expect("a full");
    assert!(!is_reported(&never_started), "{:?}", never_started.findings);

    lab.host
        .change("vm1", |domain| domain.state = DomainState::Running);
    assert!(is_reported(&lab.backup("vm1").expect("it runs without them")));
    lab.host
        .change("vm1", |domain| domain.state = DomainState::ShutOff);
    assert!(is_reported(&lab.backup("vm1").expect("a backup")));

    lab.host.set_nvram("vm1", b"variables");
    let with = lab.backup("vm1").expect("they are there");
    assert!(with.findings.is_empty(), "{:?}", with.findings);
}

#[test]
fn a_manifest_that_knows_nothing_of_it_is_not_partial() {
    let mut lab = lab(&["vda"]);
    lab.backup("vm1").expect("a full");
    let kept = &lab.history("vm1").kept[0];
    let text = std::fs::read_to_string(kept.dir().join("manifest.json")).expect("a manifest");
    assert!(!text.contains("leftOut"), "as earlier versions wrote it");
    assert!(!kept.manifest.point.is_partial());
    let left = LeftOut::skipped("vdb", "r");
    let text = serde_json::to_string(&left).expect("it is written");
    assert_eq!(text, r#"{"disk":"vdb","kind":"skipped","reason":"r"}"#);
}

#[test]
fn a_backup_without_changes_has_no_rate() {
    let mut lab = lab(&["vda"]);
    write(&lab, "vda", 1);
    let line = |result| {
        let took = std::time::Duration::from_millis(200);
        report::backup::lines(&vmsnap::ops::each::Turn::new("vm1", took, result))
    };
    let first = line(lab.backup("vm1"));
    assert!(first.contains(", 65.5 kB in 0.2 s (328 kB/s), "), "{first}");
    let idle = line(lab.backup("vm1"));
    assert!(
        idle.ends_with(", 1 disk, no changes, 0.2 s, crash-consistent\n"),
        "{idle}"
    );
    lab.host.disk("vm1", "vda", |disk| disk.zero(0, CLUSTER));
    let zeroed = line(lab.backup("vm1"));
    assert!(zeroed.contains(", only zeroes, 0.2 s, "), "{zeroed}");
}
