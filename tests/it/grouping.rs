//! Each domain has one grouping: another one is refused before anything starts, unless forced.

use std::fs;

use std::time::Duration;

use vmsnap::cli::exit_code::{ExitCode, Verb};
use vmsnap::cli::report;
use vmsnap::cli::report::backup::plan_document;
use vmsnap::model::level::FullRule;
use vmsnap::model::period::GroupBy;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::{Options, preview};
use vmsnap::ops::each::{Fault, Faults, Turn};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::scrub::{self, Means, ScrubPlan, ScrubType};
use vmsnap::ops::status::{DomainStatus, Subject, status};
use vmsnap::ops::{Class, Error};

use crate::lab::{CLUSTER, InFolder, Lab, tree};

fn lab() -> Lab {
    let lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 2 * CLUSTER)]);
    lab
}

fn by(group_by: GroupBy) -> Options {
    Options {
        group_by,
        ..Lab::options()
    }
}

fn forced(group_by: GroupBy) -> Options {
    Options {
        force: true,
        ..by(group_by)
    }
}

/// Checks that a backup and its dry run are refused with the same error and create nothing.
fn refused(lab: &mut Lab, group_by: GroupBy) -> Error {
    let before = tree(lab.folder.path());
    let error = lab
        .backup_with("vm1", &by(group_by))
        .expect_err("another grouping");
    let planned = preview("vm1", &lab.context(&Silent), &by(group_by)).expect_err("another grouping");
    assert_eq!(planned.to_string(), error.to_string());
    assert_eq!(error.class(), Class::GroupBy);
    let faults = Faults::of([Fault::Failed(error.class())]);
    assert_eq!(ExitCode::of_faults(&faults, Verb::Backup).number(), 10);
    assert_eq!(tree(lab.folder.path()), before);
    error
}

#[test]
fn another_grouping_is_refused_before_anything_is_begun() {
    let mut lab = lab();
    lab.backup("vm1").expect("a full");
    let error = refused(&mut lab, GroupBy::Quarter);
    assert_eq!(
        error.to_string(),
        "domain 'vm1': the domain's backups are grouped by month (newest period: vmsnap-backup-monthly-2026-11), not by quarter"
    );
    assert_eq!(
        error.hint().as_deref(),
        Some(
            "--group-by month continues those backups; --force makes a backup grouped by quarter, which starts a second chain \
             unless --full is never; --prune deletes only periods of the grouping given in the same command"
        )
    );
    let failed = [Turn::new("vm1", Duration::ZERO, Err(error))];
    let document = plan_document(&failed, &[], ExitCode::GroupBy);
    let json = serde_json::to_value(document).expect("JSON");
    let message = json["domains"][0]["error"]["message"]
        .as_str()
        .expect("a message");
    assert!(
        message.starts_with("domain 'vm1': the domain's backups are grouped by month"),
        "{json:#}"
    );
    assert_eq!(json["exitCode"], 10);
    let same = lab.backup("vm1").expect("an increment").point;
    assert_eq!(same.level, Level::Incremental);
}

#[test]
fn forced_grouping_continues_beside_the_other_chain() {
    let mut lab = lab();
    lab.backup("vm1").expect("a full");
    let year = forced(GroupBy::Year);
    let first = lab.backup_with("vm1", &year).expect("a second chain").point;
    assert_eq!(
        (first.level, first.period.as_str()),
        (Level::Full, "vmsnap-backup-yearly-2026")
    );
    // The new grouping is now that of the newest restore point.
    let second = lab
        .backup_with("vm1", &by(GroupBy::Year))
        .expect("it goes on")
        .point;
    assert_eq!(second.level, Level::Incremental);
    refused(&mut lab, GroupBy::Month);
    let month = lab
        .backup_with("vm1", &forced(GroupBy::Month))
        .expect("it goes on")
        .point;
    assert_eq!(month.level, Level::Incremental);
}

#[test]
fn forced_grouping_continues_the_chain_with_full_never() {
    let mut lab = lab();
    let first = lab.backup("vm1").expect("a full").point;
    let quarter = Options {
        full: FullRule::Never,
        ..forced(GroupBy::Quarter)
    };
    let second = lab.backup_with("vm1", &quarter).expect("an increment").point;
    assert_eq!(second.parent, Some(first.id));
    assert_eq!(second.period, "vmsnap-backup-quarterly-2026-Q4");
    lab.assert_verified("vm1");
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn sets_of_the_node_program_have_a_grouping_too() {
    for file in ["vda.full.data", "vm1.cpt"] {
        let mut lab = lab();
        let folder = lab.root().join("vm1/vmsnap-backup-quarterly-2026-Q3");
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join(file), "x").expect("written");
        let error = refused(&mut lab, GroupBy::Month);
        assert!(error.to_string().contains("grouped by quarter"), "{error}");
        lab.backup_with("vm1", &by(GroupBy::Quarter))
            .expect("the same grouping");
    }
}

#[test]
fn a_restore_point_that_cannot_be_read_has_a_grouping_too() {
    let mut lab = lab();
    let saved = lab.backup_with("vm1", &by(GroupBy::Year)).expect("a full");
    fs::write(saved.dir().join("manifest.json"), "torn").expect("written");
    let error = refused(&mut lab, GroupBy::Month);
    assert!(error.to_string().contains("grouped by year"), "{error}");
    lab.backup_with("vm1", &by(GroupBy::Year))
        .expect("the same grouping");
}

#[test]
fn folders_without_a_backup_have_none() {
    let mut lab = lab();
    for folder in [
        "vm1/vmsnap-backup-yearly-2026",
        "vm1/vmsnap-backup-quarterly-2026-Q4/2026-11-02T02-00-00Z.partial",
        "vm1/vmsnap-copy-2026-11-02T02-00-00Z",
    ] {
        fs::create_dir_all(lab.root().join(folder)).expect("made");
    }
    lab.backup("vm1").expect("a full");
}

#[test]
fn a_copy_has_none() {
    let mut lab = lab();
    let copying = |group_by| Options {
        copy: true,
        ..by(group_by)
    };
    lab.backup_with("vm1", &copying(GroupBy::Year)).expect("a copy");
    lab.backup("vm1").expect("a full by month");
    lab.backup_with("vm1", &copying(GroupBy::Year)).expect("a copy");
    lab.backup("vm1").expect("an increment by month");
}

fn stands(lab: &Lab, group_by: GroupBy) -> DomainStatus {
    let subject = Subject {
        group_by,
        full: FullRule::Period,
        ..lab.subject()
    };
    status("vm1", &subject).expect("a status")
}

fn scrub_plan(lab: &Lab, group_by: GroupBy) -> ScrubPlan {
    let means = Means {
        monitor: &Silent,
        host: &lab.host,
        repo: Some(lab.repo.as_ref()),
        today: lab.now.date(),
        stop: lab.stop.clone(),
    };
    let options = scrub::Options {
        kind: ScrubType::Both,
        name: None,
        group_by,
        full: FullRule::Period,
        wait: std::time::Duration::ZERO,
    };
    scrub::preview("vm1", &means, &options).expect("a plan")
}

const REFUSED: &str = "the domain's backups are grouped by month (newest period: vmsnap-backup-monthly-2026-11), not by quarter, \
    so the backup needs --force; --group-by month shows the next backup of the existing chain";

#[test]
fn status_announces_no_backup_that_would_be_refused() {
    let mut lab = lab();
    assert!(
        stands(&lab, GroupBy::Quarter).findings.is_empty(),
        "nothing is kept"
    );
    lab.backup("vm1").expect("a full");
    refused(&mut lab, GroupBy::Quarter);
    let found = stands(&lab, GroupBy::Quarter);
    assert!(found.next.is_none());
    let found_codes: Vec<&str> = found.findings.iter().map(|found| found.code.as_str()).collect();
    assert_eq!(found_codes, ["other-grouping"]);
    let text = report::status::text(&found, false);
    assert!(text.contains(&format!("  Note: {REFUSED}\n")), "{text}");
    assert!(!text.contains("Next backup"), "{text}");
    let found = [found];
    let document = report::status_document::document(&found, false);
    let json = serde_json::to_value(document).expect("JSON");
    assert_eq!(json["vm1"]["nextBackup"], serde_json::Value::Null);
    assert_eq!(json["vm1"]["findings"][0]["message"], REFUSED);

    let same = stands(&lab, GroupBy::Month);
    assert!(same.findings.is_empty() && same.next.is_some());
    lab.backup_with("vm1", &forced(GroupBy::Quarter))
        .expect("a second chain");
    let forced = stands(&lab, GroupBy::Quarter);
    assert!(forced.findings.is_empty() && forced.next.is_some());
}

#[test]
fn scrub_announces_no_backup_that_would_be_refused() {
    let mut lab = lab();
    lab.backup("vm1").expect("a full");
    let plan = scrub_plan(&lab, GroupBy::Quarter);
    assert!(plan.next.is_refused && plan.next.level.is_none());
    let planned = report::scrub::Scrubbed::Planned(plan);
    let shown = Turn::new("vm1", Duration::ZERO, Ok(planned));
    let text = report::scrub::lines(&shown);
    let last = format!("  the next backup of vm1 will be refused ({REFUSED})\n");
    assert!(text.ends_with(&last), "{text}");
    assert_eq!(text.matches("grouped by month").count(), 1, "{text}");
    let shown = [shown];
    let document = report::scrub::document(&shown, &[], ExitCode::Ok);
    let json = serde_json::to_value(document).expect("JSON");
    let domain = &json["domains"][0];
    assert_eq!(domain["nextBackup"]["refused"], true);
    assert_eq!(domain["nextBackup"]["level"], serde_json::Value::Null);
    assert_eq!(domain["findings"][0]["code"], "other-grouping");
    let same = scrub_plan(&lab, GroupBy::Month);
    assert_eq!(
        (same.next.level, same.next.is_refused),
        (Some(Level::Full), false)
    );
    assert!(same.findings.is_empty(), "{:?}", same.findings);
}
