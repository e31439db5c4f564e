//! The results of `status` in every output format.

use vmsnap::cli::report::status::{Form, Look, text, write};
use vmsnap::model::domain::DomainState;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::Result;
use vmsnap::ops::each::{Fault, Judged};
use vmsnap::ops::status::{DirStats, DiskStatus, DomainStatus, Newest, Subject, status, statuses};

use crate::lab::{CLUSTER, Lab, NAMES};

fn subject(lab: &Lab, with_repo: bool) -> Subject<'_> {
    Subject {
        repo: with_repo.then_some(lab.repo.as_ref()),
        ..lab.subject()
    }
}

fn ask(lab: &Lab, name: &str) -> Result<DomainStatus> {
    status(name, &subject(lab, true))
}

fn disk(target: &str, bitmaps: &[&str]) -> DiskStatus {
    DiskStatus {
        target: target.to_owned(),
        virtual_size: 107_374_182_400,
        actual_size: 14_286_573_568,
        bitmaps: bitmaps.iter().map(|name| (*name).to_owned()).collect(),
        bitmaps_known: true,
        changed_bytes: Some(1_048_576),
        can_be_incremental: true,
    }
}

/// The status in the examples of the classic interface.
fn sample() -> DomainStatus {
    let names = ["virtnbdbackup.0", "virtnbdbackup.1"];
    DomainStatus {
        domain: "vm1".to_owned(),
        state: DomainState::Running,
        checkpoints: names.map(str::to_owned).to_vec(),
        newest: Some(Newest {
            name: names[1].to_owned(),
            created: "2024-11-02T02:00:02Z".parse().ok(),
        }),
        disks: vec![disk("vda", &names)],
        inconsistencies: Vec::new(),
        dir: Some(DirStats {
            location: "/backups/vm1/vmsnap-backup-monthly-2024-11".to_owned(),
            total_files: 23,
            total_size: 2_147_483_648,
            checkpoints: 2,
        }),
        proof: None,
        boot_proof: None,
        suspected_damage: None,
        missed_writes: vec![],
        writer: None,
        left_out: vec![],
        latest_lacks: vec![],
        latest: Some((
            "2024-11-02T02-00-02Z".to_owned(),
            "2024-11-02T02:00:02Z".parse().expect("a time"),
        )),
        next: None,
        findings: Vec::new(),
    }
}

fn empty(name: &str) -> DomainStatus {
    DomainStatus {
        domain: name.to_owned(),
        state: DomainState::ShutOff,
        checkpoints: Vec::new(),
        newest: None,
        disks: Vec::new(),
        dir: None,
        latest: None,
        ..sample()
    }
}

fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

const CLASSIC: &str = "Status for vm1:
  Overall status: OK
  Checkpoints found for vm1:
    virtnbdbackup.0
    virtnbdbackup.1
  Eligible disks found for vm1:
    vda
      Virtual size: 107374182400
      Actual size: 14286573568
      Bitmaps found for vda:
          virtnbdbackup.0
          virtnbdbackup.1
  Backup directory stats for vm1:
    Path: /backups/vm1/vmsnap-backup-monthly-2024-11
    Total files: 23
    Total size: 2147483648
    Checkpoints: 2
";

const OURS: &str = "  State: running
  Newest checkpoint: virtnbdbackup.1, of 2024-11-02T02:00:02Z
  Changed since virtnbdbackup.1: 1048576 bytes
  Last restore point: 2024-11-02T02-00-02Z
  Last verified: never
";

#[test]
fn the_text_is_the_classic_one_with_ours_below() {
    assert_eq!(plain(&text(&sample(), false)), format!("{CLASSIC}{OURS}"));
}

#[test]
fn suspected_damage_has_a_line_of_its_own() {
    let status = DomainStatus {
        suspected_damage: Some("vda.qcow2 does not match its recorded digest".to_owned()),
        ..sample()
    };
    let ours = OURS.replace(
        "Last verified: never",
        "Damaged: vda.qcow2 does not match its recorded digest",
    );
    assert_eq!(plain(&text(&status, false)), format!("{CLASSIC}{ours}"));
}

#[test]
fn the_empty_cases_have_their_classic_lines() {
    assert_eq!(
        plain(&text(&empty("vm1"), false)),
        "Status for vm1:\n  Overall status: OK\n  No checkpoints found for vm1\n  No eligible disks found for vm1\n  \
         State: shut off\n"
    );
    let status = DomainStatus {
        disks: vec![disk("vda", &[])],
        inconsistencies: vec!["disk vda lacks a sound bitmap of checkpoint virtnbdbackup.0".to_owned()],
        ..empty("vm1")
    };
    assert_eq!(
        plain(&text(&status, true)),
        "Status for vm1:
  Overall status: INCONSISTENT
  No checkpoints found for vm1
  Eligible disks found for vm1:
    vda
      Virtual size: 107 GB
      Actual size: 14.3 GB
      No bitmaps found for vda
  State: shut off
  Inconsistent: disk vda lacks a sound bitmap of checkpoint virtnbdbackup.0
"
    );
}

#[test]
fn colours_are_on_the_domain_and_on_the_verdict() {
    let good = text(&sample(), false);
    assert!(good.starts_with(
        "Status for \u{1b}[1m\u{1b}[35mvm1\u{1b}[0m:\n  Overall status: \u{1b}[1m\u{1b}[32mOK\u{1b}[0m\n"
    ));
    let bad = DomainStatus {
        inconsistencies: vec!["x".to_owned()],
        ..sample()
    };
    assert!(text(&bad, false).contains("\u{1b}[1m\u{1b}[33mINCONSISTENT\u{1b}[0m\n"));
    assert_eq!(good.matches('\u{1b}').count(), 6, "nothing else is coloured");
}

const JSON: Look = Look {
    form: Form::Json,
    machine: true,
    pretty: false,
};

const CLASSIC_JSON: &str = "{\"vm1\":{\"checkpoints\":[\"virtnbdbackup.0\",\"virtnbdbackup.1\"],\
    \"disks\":[{\"disk\":\"vda\",\"virtualSize\":107374182400,\"actualSize\":14286573568,\
    \"bitmaps\":[\"virtnbdbackup.0\",\"virtnbdbackup.1\"],\"bitmapsKnown\":true,\"changedBytes\":1048576}],\
    \"overallStatus\":0,\"backupDirStats\":{\"path\":\"/backups/vm1/vmsnap-backup-monthly-2024-11\",\
    \"totalFiles\":23,\"checkpoints\":2,\"totalSize\":2147483648},\"state\":\"running\",\
    \"newestCheckpoint\":\"virtnbdbackup.1\",\"newestCheckpointTime\":\"2024-11-02T02:00:02Z\",\
    \"changedBytes\":1048576,\"lastRestorePoint\":\"2024-11-02T02-00-02Z\",\
    \"lastRestorePointTime\":\"2024-11-02T02:00:02Z\",\"nextBackup\":null,\"inconsistencies\":[],\"findings\":[],\"repairs\":[],\"lastVerifiedTime\":null,\"lastVerifiedDamage\":[],\"bootProof\":null,\"doubt\":null,\"writer\":null}}\n";

#[test]
fn json_for_machines_is_one_line_with_the_classic_keys_first() {
    assert_eq!(write(&[sample()], JSON), CLASSIC_JSON);
    assert_eq!(write(&[], JSON), "{}\n");
    let without = write(&[empty("101")], JSON);
    let classic = "{\"101\":{\"checkpoints\":[],\"disks\":[],\"overallStatus\":0,\"state\":\"shut off\",";
    assert!(without.starts_with(classic), "{without}");
}

#[test]
fn json_for_people_has_a_frame() {
    let framed = write(
        &[sample()],
        Look {
            machine: false,
            ..JSON
        },
    );
    let rule = "-".repeat(80);
    let inside = framed
        .strip_prefix(&format!("JSON:\n{rule}\n"))
        .expect("the frame's head");
    let inside = inside
        .strip_suffix(&format!("\n{rule}\n"))
        .expect("the frame's foot");
    let begin = "{\n  \"vm1\": {\n    \"checkpoints\": [\n      \"virtnbdbackup.0\",\n";
    assert!(inside.starts_with(begin), "{inside}");
    let value: serde_json::Value = serde_json::from_str(inside).expect("JSON");
    let machine: serde_json::Value = serde_json::from_str(CLASSIC_JSON).expect("JSON");
    assert_eq!(value, machine);
}

#[test]
fn pretty_makes_the_three_sizes_texts() {
    let look = Look { pretty: true, ..JSON };
    let expected = CLASSIC_JSON
        .replace("\"virtualSize\":107374182400", "\"virtualSize\":\"107 GB\"")
        .replace("\"actualSize\":14286573568", "\"actualSize\":\"14.3 GB\"")
        .replace("\"totalSize\":2147483648", "\"totalSize\":\"2.15 GB\"");
    assert_eq!(write(&[sample()], look), expected);
}

#[test]
fn yaml_has_bare_keys_quoted_texts_and_the_same_frame() {
    let look = Look {
        form: Form::Yaml,
        ..JSON
    };
    let yaml = write(&[sample(), empty("101")], look);
    let classic = "vm1:
  checkpoints:
    - \"virtnbdbackup.0\"
    - \"virtnbdbackup.1\"
  disks:
    - disk: \"vda\"
      virtualSize: 107374182400
      actualSize: 14286573568
      bitmaps:
        - \"virtnbdbackup.0\"
        - \"virtnbdbackup.1\"
      bitmapsKnown: true
      changedBytes: 1048576
  overallStatus: 0
  backupDirStats:
    path: \"/backups/vm1/vmsnap-backup-monthly-2024-11\"
    totalFiles: 23
    checkpoints: 2
    totalSize: 2147483648
  state: \"running\"
";
    assert!(yaml.starts_with(classic), "{yaml}");
    assert!(
        yaml.contains("\n\"101\":\n  checkpoints: []\n  disks: []\n  overallStatus: 0\n"),
        "{yaml}"
    );
    let framed = write(
        &[sample(), empty("101")],
        Look {
            machine: false,
            ..look
        },
    );
    let rule = "-".repeat(80);
    assert_eq!(framed, format!("YAML:\n{rule}\n{yaml}{rule}\n"));
}

#[test]
fn status_shows_changes_and_the_next_backup() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    let before = ask(&lab, "vm1").expect("a status");
    let plan = &before.next.as_ref().expect("there is a repository").backup;
    assert_eq!(
        (plan.level(), plan.reason().as_str()),
        (Level::Full, "first of the period")
    );
    assert_eq!(before.dir.as_ref().expect("asked for").total_files, 0);
    assert!(plain(&text(&before, false)).ends_with(
        "  State: running\n  Last restore point: none\n  Next backup: full, first of the period\n"
    ));

    let point = lab.backup("vm1").expect("a full").point;
    lab.host.disk("vm1", "vda", |disk| disk.write(0, &[1]));
    let after = ask(&lab, "vm1").expect("a status");
    assert!(after.is_consistent(), "{:?}", after.inconsistencies);
    assert_eq!(after.changed_bytes(), Some(CLUSTER as u64));
    assert_eq!(after.latest, Some((point.id.clone(), point.time)));
    let plan = after.next.expect("there is a repository").backup;
    assert_eq!(
        (plan.level(), plan.reason()),
        (Level::Incremental, format!("changes since {}", point.id))
    );
    let alone = status("vm1", &subject(&lab, false)).expect("a status");
    assert!(alone.next.is_none() && alone.dir.is_none() && alone.latest.is_none());
    assert_eq!(alone.newest.expect("one of ours").name, NAMES[0]);
}

#[test]
fn disks_that_differ_are_each_given_their_reason() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    let id = lab.backup("vm1").expect("a full").point.id;
    lab.host.attach("vm1", "vdb", CLUSTER);
    lab.host.attach("vm1", "vdc", CLUSTER);
    let status = ask(&lab, "vm1").expect("a status");
    let reason = status.next.expect("a repository").backup.reason();
    assert!(
        reason.starts_with(&format!("vda: changes since {id}; vdb: ")),
        "{reason}"
    );
}

#[test]
fn snapshots_blocked_by_our_bitmaps_are_a_finding() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.host.take_snapshot("vm1", "before the update");
    let codes = |lab: &Lab| {
        let findings = ask(lab, "vm1").expect("a status").findings;
        findings
            .into_iter()
            .map(|finding| finding.code)
            .collect::<Vec<_>>()
    };
    assert_eq!(codes(&lab), [""; 0]);
    lab.backup("vm1").expect("a full");
    assert_eq!(codes(&lab), ["internal-snapshots"]);
}

#[test]
fn our_bitmaps_without_checkpoint_are_shown_while_running() {
    let lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    for name in [NAMES[5], "mine"] {
        lab.host
            .disk("vm1", "vda", |disk| disk.add_bitmap(name))
            .expect("it is free");
    }
    assert_eq!(ask(&lab, "vm1").expect("a status").inconsistencies, [""; 0]);
    for state in [DomainState::ShutOff, DomainState::Running] {
        lab.host.change("vm1", |domain| domain.state = state);
    }
    let found = format!(
        "disk vda has a bitmap {} that belongs to no checkpoint of this disk",
        NAMES[5]
    );
    assert_eq!(ask(&lab, "vm1").expect("a status").inconsistencies, [found]);
}

/// Fault 13: status compares counts, not names.
#[test]
fn sets_of_names_are_compared_not_their_sizes() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.backup("vm1").expect("a full");
    lab.host.disk("vm1", "vda", |disk| {
        disk.remove_bitmap(NAMES[0]);
        disk.add_bitmap("virtnbdbackup.7").expect("it is free");
    });
    lab.host
        .change("vm1", |domain| domain.state = DomainState::ShutOff);
    let found = ask(&lab, "vm1").expect("a status");
    assert_eq!((found.checkpoints.len(), found.disks[0].bitmaps.len()), (1, 1));
    assert_eq!(
        found.inconsistencies,
        [
            "disk vda lacks a sound bitmap of checkpoint virtnbdbackup.1793667600000000000000000",
            "disk vda has a bitmap virtnbdbackup.7 that belongs to no checkpoint of this disk",
        ]
    );
}

#[test]
fn foreign_checkpoints_and_bitmaps_are_listed_unjudged() {
    let lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.add_bitmap("mine").expect("it is free"));
    lab.host
        .change("vm1", |domain| domain.state = DomainState::ShutOff);
    let found = ask(&lab, "vm1").expect("a status");
    assert_eq!(found.disks[0].bitmaps, ["mine"]);
    assert!(found.is_consistent());
    assert!(found.newest.is_none());
}

/// Fault 8: with a remote `--connect`, status runs qemu-img on the local path of the same name.
#[test]
fn what_is_invisible_remotely_is_said_and_not_guessed() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.backup("vm1").expect("a full");
    lab.host.move_away();
    lab.host
        .change("vm1", |domain| domain.state = DomainState::ShutOff);
    let found = ask(&lab, "vm1").expect("a status");
    assert!(!found.disks[0].bitmaps_known && found.disks[0].bitmaps.is_empty());
    assert!(found.is_consistent(), "{:?}", found.inconsistencies);
    assert!(found.next.is_none(), "it is unknown");
    assert_eq!(found.findings[0].code, "bitmaps-not-seen");
    lab.host
        .change("vm1", |domain| domain.state = DomainState::Running);
    let running = ask(&lab, "vm1").expect("a status");
    assert!(running.disks[0].bitmaps_known && running.next.is_some());
}

/// Fault 9: one missing domain ends the whole run.
#[test]
fn domains_keep_their_order_and_one_failure_stops_none() {
    let lab = Lab::new();
    let mut names: Vec<String> = (0..50).map(|number| format!("vm{number}")).collect();
    for name in &names {
        lab.host.add_domain(name, &[("vda", CLUSTER)]);
    }
    names.insert(7, "gone".to_owned());
    names.reverse();
    let results = statuses(&names, &subject(&lab, true), &Stop::default());
    assert_eq!(results.len(), names.len());
    for (name, result) in names.iter().zip(&results) {
        match result {
            Ok(found) => assert_eq!(&found.domain, name),
            Err(error) => assert_eq!((name.as_str(), error.domain.as_str()), ("gone", "gone")),
        }
    }
    let stop = Stop::default();
    stop.request(StopReason::Terminated);
    let stopped = statuses(&names, &subject(&lab, true), &stop);
    assert!(
        stopped
            .iter()
            .all(|result| result.as_ref().is_err_and(|error| error.is_stopped()))
    );
}

#[test]
fn a_disk_that_cannot_be_examined_hides_nothing_else() {
    let mut lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", CLUSTER), ("vdb", 2 * CLUSTER)]);
    lab.backup("vm1").expect("a full");
    lab.host
        .change("vm1", |domain| domain.state = DomainState::ShutOff);
    lab.host.lose_disk("vm1", "vda");
    let found = ask(&lab, "vm1").expect("the rest is known");
    let targets: Vec<&str> = found.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(targets, ["vdb"]);
    assert!(found.disks[0].bitmaps_known && found.dir.is_some());
    assert_eq!(found.faults(), [Fault::Incomplete]);
    assert!(found.next.is_none(), "it cannot be predicted");
    assert_eq!(
        found.inconsistencies,
        ["the bitmaps of disk vda cannot be checked"]
    );
    let finding = found.not_examined().next().expect("a finding");
    assert_eq!(finding.disk.as_deref(), Some("vda"));
    assert!(
        finding.message.starts_with("disk vda cannot be examined: ")
            && finding.message.contains("No such file"),
        "{}",
        finding.message
    );
    let text = text(&found, false);
    assert!(text.contains("  Note: disk vda cannot be examined: "), "{text}");
}

/// Fault 13: directories count as files, and more than four sibling folders are an error.
#[test]
fn only_files_of_the_current_period_are_counted() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    for month in 1..=8 {
        lab.at(&format!("2026-{month:02}-03T02:00:00+00:00[UTC]"));
        lab.backup("vm1").expect("a full");
    }
    let found = ask(&lab, "vm1")
        .expect("a status")
        .dir
        .expect("the period's statistics");
    // The files are domain.xml, manifest.json and vda.qcow2 of the restore point, and the
    // checkpoint's XML.
    assert_eq!((found.total_files, found.checkpoints), (4, 1));
    assert!(found.location.ends_with("vm1/vmsnap-backup-monthly-2026-08"));
}
