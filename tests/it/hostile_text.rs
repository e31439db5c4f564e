//! Text from outside (here a backing file name in an image's header) cannot forge lines or control
//! the terminal.

use std::time::Duration;

use vmsnap::cli::log::{Entry, Level};
use vmsnap::cli::report::lines::failure;
use vmsnap::cli::report::status::text as status_text;
use vmsnap::cli::report::{backup, compare, integrity, list, mount, restore, scrub, serve, verify};
use vmsnap::model::finding::Finding;
use vmsnap::model::guest::BootLevel;
use vmsnap::model::left_out::LeftOut;
use vmsnap::model::level::LevelReason;
use vmsnap::ops::backup::PruneOutcome;
use vmsnap::ops::compare::{Meaning, Outcome as Comparison, UncomparedDisk};
use vmsnap::ops::each::Turn;
use vmsnap::ops::integrity::{
    Cost, Damage as ObjectDamage, DamagedIndex, IndexFault, RebuildReport, RepositoryCheck, SessionNote,
};
use vmsnap::ops::list::BootProof;
use vmsnap::ops::scrub::{DiskBitmap, NextBackup, ScrubPlan};
use vmsnap::ops::serve::{Options, Place, start};
use vmsnap::ops::verify::{Damage, Outcome};
use vmsnap::ops::{Cause, Error};

use crate::lab::{CLUSTER, Lab};

const HOSTILE: &str = "'json:\u{1b}[2J\u{1b}[31mevil\nvm2: full backup 2026 OK\r\u{202e}'";
const HARMLESS: &str = "'json:evil'";

/// Hostile text causes no additional line, and its control characters are escaped.
fn assert_contained(lines: impl Fn(&str) -> String) {
    let (harmless, hostile) = (lines(HARMLESS), lines(HOSTILE));
    assert!(harmless.contains("json:evil"), "{harmless}");
    assert!(hostile.contains("json:\\u{1b}[2J"), "{hostile}");
    assert_eq!(hostile.lines().count(), harmless.lines().count(), "{hostile}");
    for what in ["\u{1b}[2J", "\u{1b}[31m", "\r", "\u{202e}", "\nvm2"] {
        assert!(!hostile.contains(what), "{what:?} in {hostile:?}");
    }
}

fn boot_proof(words: &str) -> BootProof {
    BootProof {
        id: "x".to_owned(),
        manifest: String::new(),
        time: jiff::Timestamp::UNIX_EPOCH,
        reached: BootLevel::Read,
        wanted: BootLevel::Same,
        pattern: None,
        command: Vec::new(),
        shortfall: Some(words.to_owned()),
        seconds: 1,
    }
}

fn finding(words: &str) -> Finding {
    Finding::new("x", words)
}

fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", 2 * CLUSTER), ("vdb", CLUSTER)]);
    lab.backup("vm1").expect("a full");
    lab
}

#[test]
fn mount_contains_it() {
    let lab = lab();
    let stop = vmsnap::model::stop::Stop::default();
    let mounted = vmsnap::ops::mount::open("vm1", "latest", lab.repo.as_ref(), &stop).expect("it opens");
    assert_contained(|words| mount::ready_text(words, &mounted, words.as_ref()));
    let outcome = vmsnap::ops::mount::Outcome {
        end: vmsnap::ops::mount::MountEnding::Unmounted,
        failed_reads: 1,
        is_damaged: false,
    };
    assert_contained(|words| mount::text(words, &outcome, words.as_ref()));
}

#[test]
fn backup_contains_it() {
    let mut lab = lab();
    let preview = lab.preview("vm1").expect("a plan");
    assert_contained(|words| {
        let mut preview = preview.clone();
        let left = LeftOut::skipped("vdb", words);
        preview.writer = Some(words.to_owned());
        preview.planned.obstacle = Some(words.to_owned());
        preview.planned.backup.disks[0].level.reason = LevelReason::FullOnly(words.to_owned());
        preview.planned.backup.findings.push(left.finding());
        preview.planned.backup.left_out.push(left);
        backup::plan_text("vm1", &preview)
    });
    let outcome = lab.backup("vm1").expect("an increment");
    assert_contained(|words| {
        let mut outcome = outcome.clone();
        outcome.prune = Some(PruneOutcome::Failed(words.to_owned()));
        backup::lines(&Turn::new("vm1", Duration::ZERO, Ok(outcome)))
    });
}

#[test]
fn status_contains_it() {
    let lab = lab();
    let found = lab.status("vm1");
    assert_contained(|words| {
        let mut found = found.clone();
        found.left_out = vec![LeftOut::skipped("vdb", words)];
        found.findings = vec![finding(words)];
        found.inconsistencies = vec![words.to_owned()];
        found.writer = Some(words.to_owned());
        found.boot_proof = Some(boot_proof(words));
        status_text(&found, false)
    });
}

#[test]
fn list_contains_it() {
    let lab = lab();
    let listed = || vmsnap::ops::list::list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("a list");
    assert_contained(|words| {
        let mut listed = listed();
        listed[0].points[0].faults = vec![words.to_owned()];
        listed[0].points[0].boot_proof = Some(boot_proof(words));
        listed[0].points[0].point.left_out = vec![LeftOut::skipped("vdb", words)];
        listed[0].findings = vec![finding(words)];
        list::text(&listed, &lab.repo.location(), list::Columns::Wide)
    });
}

#[test]
fn restore_contains_it() {
    let lab = lab();
    let plan =
        || vmsnap::ops::restore::plan("vm1", lab.repo.as_ref(), None, &lab.restoring()).expect("a plan");
    assert_contained(|words| {
        let mut plan = plan();
        plan.findings = vec![finding(words)];
        plan.disks[0].to = words.into();
        restore::plan_text("vm1", &plan)
    });
}

#[test]
fn serve_contains_it() {
    let lab = lab();
    let options = Options {
        at: "latest".to_owned(),
        disks: Vec::new(),
        place: Place::Socket(lab.folder.path().join("socket")),
    };
    let server = start("vm1", lab.repo.as_ref(), &options, &lab.stop).expect("it starts");
    let outcome = server.end();
    assert_contained(|words| {
        let mut served = outcome.served.clone();
        served.disks[0].target = words.to_owned();
        serve::text(words, &served) + &serve::ended_text(words, &outcome, Duration::ZERO)
    });
}

#[test]
fn verify_contains_it() {
    assert_contained(|words| {
        let outcome = Outcome {
            damage: vec![Damage {
                location: None,
                offset: None,
                disk: None,
                inherited_from: None,
                what: words.to_owned(),
            }],
            ..Outcome::default()
        };
        verify::lines(&Turn::new("vm1", Duration::ZERO, Ok(outcome)))
    });
}

#[test]
fn a_comparison_contains_it() {
    assert_contained(|words| {
        let uncompared = UncomparedDisk {
            target: "vda".to_owned(),
            why: words.to_owned(),
            meaning: Meaning::NotComparable,
        };
        let outcome = Comparison {
            disks: vec![],
            uncompared: vec![uncompared],
            findings: vec![],
        };
        compare::lines("vm1", &outcome)
    });
}

#[test]
fn scrub_contains_it() {
    assert_contained(|words| {
        let bitmap = DiskBitmap {
            disk: "vda".to_owned(),
            name: words.to_owned(),
        };
        let plan = ScrubPlan {
            steps: vec![],
            checkpoints: vec![words.to_owned()],
            bitmaps: vec![bitmap.clone()],
            tried: vec![words.to_owned()],
            left: vec![bitmap],
            next: NextBackup {
                level: None,
                is_refused: false,
                reason: words.to_owned(),
            },
            findings: vec![finding(words)],
        };
        let planned = scrub::Scrubbed::Planned(plan);
        scrub::lines(&Turn::new("vm1", Duration::ZERO, Ok(planned)))
    });
}

/// The logger prints failures and escapes each line.
#[test]
fn check_of_a_repository_contains_it() {
    assert_contained(|words| {
        let cost = Cost {
            domain: words.to_owned(),
            id: words.to_owned(),
            disks: [words.to_owned()].into(),
            files: [words.to_owned(), "x".to_owned()].into(),
        };
        let damage = ObjectDamage {
            object: Some(words.to_owned()),
            finding: finding(words),
            costs: vec![cost],
        };
        let session = SessionNote {
            host: words.to_owned(),
            kind: "write",
            began: None,
            renewed: jiff::Timestamp::UNIX_EPOCH,
        };
        let check = RepositoryCheck {
            damage: vec![damage],
            notes: vec![finding(words)],
            sessions: vec![session],
            ..RepositoryCheck::default()
        };
        integrity::check_lines(words, &check)
    });
    assert_contained(|words| {
        let damaged = |fault| DamagedIndex {
            name: words.to_owned(),
            why: words.to_owned(),
            fault,
            is_deleted: false,
        };
        let faults = [IndexFault::Seal, IndexFault::Format, IndexFault::Name];
        let report = RebuildReport {
            unsound: vec![(words.to_owned(), words.to_owned())],
            damaged: faults.map(damaged).to_vec(),
            ..RebuildReport::default()
        };
        integrity::rebuild_lines(words, &report, true)
    });
}

#[test]
fn failures_contain_it() {
    assert_contained(|words| {
        let error = Error::of("vm1", Cause::NoSuchRestorePoint(words.to_owned()));
        let failures = [failure(&error)];
        let entry = Entry {
            lines: &failures,
            hint: Some(words),
            ..Entry::new(Level::Error, words)
        };
        entry.text()
    });
}
