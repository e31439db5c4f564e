//! What a pin keeps, where it lies, and what becomes of a damaged one.

use std::fs;
use std::time::Duration;

use vmsnap::io::DiskStore;
use vmsnap::model::pin::Pin;
use vmsnap::ops::backup::PruneOutcome;
use vmsnap::ops::pin::{Means, Outcome, PinRequest, change_pin};
use vmsnap::ops::retention::{self, Policy, Quota, Rule, prune};
use vmsnap::ops::{Class, Result};
use vmsnap::repo::{FolderRepository, Repository};

use crate::lab::{CLUSTER, InFolder, Lab, copy_tree};

/// Pins a restore point of `vm1`.
pub fn pin(lab: &Lab, at: &str, note: &str) -> Result<Outcome> {
    let now = lab.now.timestamp();
    let note = note.to_owned();
    changed(lab, at, &PinRequest::Pin { note, now })
}

fn changed(lab: &Lab, at: &str, change: &PinRequest) -> Result<Outcome> {
    let means = Means {
        repo: lab.repo.as_ref(),
        wait: Duration::ZERO,
        monitor: &lab.recorder,
        stop: &lab.stop,
    };
    change_pin("vm1", at, change, &means)
}

fn pins(repo: &dyn Repository) -> Vec<Option<Pin>> {
    let history = repo.domain("vm1").expect("a name").history().expect("readable");
    let points = history.chains.points().iter();
    points.map(|kept| kept.pin.clone()).collect()
}

/// A full restore point of each of these months.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 2 * CLUSTER)]);
    for month in ["09", "10"] {
        lab.at(&format!("2026-{month}-20T02:00:00+02:00[Europe/Berlin]"));
        lab.backup("vm1").expect("a full");
    }
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    lab
}

fn pruned(lab: &Lab) -> retention::Outcome {
    let means = retention::Means {
        repo: lab.repo.as_ref(),
        now: lab.now.clone(),
        monitor: &lab.recorder,
        stop: &lab.stop,
    };
    let options = retention::Options {
        policy: Policy::default().with(Rule::Last, Quota::AtMost(1)),
        wait: Duration::ZERO,
    };
    prune("vm1", &means, &options).expect("it is looked at")
}

#[test]
fn a_pin_is_set_changed_and_removed() {
    let lab = lab();
    let id = lab.history("vm1").kept[0].manifest.point.id.clone();
    let first = pin(&lab, &id, "one").expect("pinned");
    assert!(!first.was_pinned);
    let second = pin(&lab, &id, "two").expect("pinned again");
    assert!(second.was_pinned);
    assert_eq!(pins(lab.repo.as_ref())[0], second.pin);
    let gone = changed(&lab, &id, &PinRequest::Unpin).expect("unpinned");
    assert!(gone.was_pinned && gone.pin.is_none());
    assert!(
        !changed(&lab, "latest", &PinRequest::Unpin)
            .expect("nothing to do")
            .was_pinned
    );
    assert_eq!(pins(lab.repo.as_ref()), [None, None]);
    let error = pin(&lab, "2020-01-01T00-00-00Z", "").expect_err("there is none");
    assert_eq!(error.class(), Class::NotFound);
    let error = pin(&lab, &id, &"x".repeat(Pin::LONGEST_NOTE + 1)).expect_err("too long");
    assert_eq!(error.class(), Class::Usage);
    let writer = lab
        .repo
        .domain("vm1")
        .expect("a name")
        .try_lock()
        .expect("nobody writes");
    assert_eq!(
        pin(&lab, &id, "").expect_err("it is locked").class(),
        Class::Locked
    );
    drop(writer);
}

#[test]
fn classic_pruning_keeps_a_period_with_a_pinned_point() {
    let mut lab = lab();
    let october = lab.latest("vm1");
    pin(&lab, &october, "for the auditors").expect("pinned");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("a full");
    let why = format!("vmsnap-backup-monthly-2026-10 stays: restore point {october} is pinned");
    assert_eq!(outcome.prune, Some(PruneOutcome::Kept(why.clone())));
    let finding = outcome
        .findings
        .iter()
        .find(|finding| finding.code == "period-pinned");
    assert_eq!(finding.map(|finding| &finding.message), Some(&why));
    assert!(lab.history("vm1").get(&october).is_some());
    changed(&lab, &october, &PinRequest::Unpin).expect("unpinned");
    let outcome = lab.backup_with("vm1", &Lab::pruning()).expect("an increment");
    assert!(
        matches!(outcome.prune, Some(PruneOutcome::Deleted(_))),
        "{:?}",
        outcome.prune
    );
}

#[test]
fn a_pin_goes_with_a_copy_of_the_folder() {
    let lab = lab();
    let id = lab.history("vm1").kept[0].manifest.point.id.clone();
    pin(&lab, &id, "keep me").expect("pinned");
    let copy = lab.folder.path().join("copied by hand");
    fs::create_dir(&copy).expect("a new folder");
    copy_tree(&lab.root(), &copy);
    let repo = FolderRepository::open(&copy, std::sync::Arc::new(DiskStore)).expect("a repository");
    assert_eq!(pins(&repo), pins(lab.repo.as_ref()));
    assert_eq!(
        pins(&repo)[0].as_ref().map(|pin| pin.note.as_str()),
        Some("keep me")
    );
}

#[test]
fn a_damaged_pin_still_pins_and_is_reported() {
    let lab = lab();
    let point = lab.history("vm1").kept[0].dir();
    let id = lab.history("vm1").kept[0].manifest.point.id.clone();
    pin(&lab, &id, "keep me").expect("pinned");
    let file = point.join("pinned.json");
    let good = fs::read(&file).expect("a pin");
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for bad in [&b""[..], &good[..20], &flipped, &[b'x'; 100_000]] {
        fs::write(&file, bad).expect("written");
        let history = lab.history("vm1");
        assert_eq!(history.findings.len(), 1, "{:?}", history.findings);
        assert_eq!(history.findings[0].code, "pin-unreadable");
        let error = pin(&lab, &id, "again").expect_err("it is not overwritten");
        assert!(
            error.to_string().contains("cannot read") && error.to_string().contains("pinned.json"),
            "{error}"
        );
        assert_eq!(fs::read(&file).expect("it is there"), bad);
        let outcome = pruned(&lab);
        assert_eq!(outcome.removed.expect("it is no dry run").ids, [""; 0]);
        assert!(
            lab.restored("vm1", &id, "vda").is_ok(),
            "the restore point is as it was"
        );
    }
    changed(&lab, &id, &PinRequest::Unpin).expect("what cannot be read goes on request");
    assert_eq!(pruned(&lab).removed.expect("it is no dry run").ids, [id]);
}

#[test]
fn an_unreadable_record_of_removals_holds_everything_back() {
    let mut lab = lab();
    assert_eq!(pruned(&lab).removed.expect("it is no dry run").ids.len(), 1);
    let file = lab.root().join("vm1/.removed.json");
    let text = fs::read_to_string(&file).expect("a record");
    lab.backup("vm1").expect("November's full");
    fs::write(&file, text.replace("2026", "2027")).expect("written");
    let outcome = pruned(&lab);
    assert!(matches!(
        outcome.plan.obstacle,
        Some(retention::Obstacle::NoRecord { .. })
    ));
    assert_eq!(outcome.removed.expect("it is no dry run").ids, [""; 0]);
    fs::remove_file(&file).expect("moved away");
    assert_eq!(pruned(&lab).removed.expect("it is no dry run").ids.len(), 1);
}
