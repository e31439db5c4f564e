//! Repositories with unreadable files: no claim is made about their content, and everything else is
//! done.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use vmsnap::ops::verify::Which;

use crate::lab::{InFolder, Lab};
use crate::verify::{lab, options, run, words};

/// Runs `work` on a thread that may read only what file modes allow, although root runs the tests.
pub fn without_rights<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let limited = || {
        let mut sets = capabilities(None).expect("the kernel lists capabilities");
        sets.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        set_capabilities(None, sets).expect("capabilities can be dropped");
        work()
    };
    thread::scope(|scope| scope.spawn(limited).join().expect("no panic"))
}

fn lock_up(path: &Path) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o0)).expect("it is ours");
}

#[test]
fn points_not_using_an_unreadable_image_are_verified() {
    let mut lab = lab();
    lab.at("2026-12-01T02:00:00+01:00[Europe/Berlin]");
    lab.backup("vm1").expect("a new chain");
    let ids: Vec<String> = lab
        .history("vm1")
        .kept
        .iter()
        .map(|kept| kept.manifest.point.id.clone())
        .collect();
    lock_up(&lab.history("vm1").kept[0].dir().join("vda.qcow2"));
    let all = options(&lab, Which::All);
    let outcome = without_rights(|| run(&lab, &all)).expect("one can be read");
    let proved: Vec<&String> = outcome.points.iter().map(|point| &point.id).collect();
    assert_eq!(proved, [&ids[3]]);
    assert!(outcome.is_sound(), "{}", words(&outcome));
    let error = outcome.ended.expect("the verification is incomplete");
    assert!(error.cause.is_no_verdict(), "{error}");
    let found: Vec<&str> = outcome
        .findings
        .iter()
        .map(|found| found.message.as_str())
        .collect();
    assert_eq!(found.len(), 3, "{found:?}");
    for (found, id) in found.iter().zip(&ids) {
        assert!(
            found.contains(&format!("restore point {id} was not verified")),
            "{found}"
        );
    }
    let remembered: Vec<bool> = lab
        .history("vm1")
        .kept
        .iter()
        .map(|kept| kept.proof.is_some())
        .collect();
    assert_eq!(remembered, [false, false, false, true]);
}

#[test]
fn unreadable_records_count_neither_as_absent_nor_as_damage() {
    let places: [fn(&Lab) -> std::path::PathBuf; 3] = [
        |lab| lab.history("vm1").kept[0].dir().join("manifest.json"),
        |lab| lab.root().join("vm1/.verified"),
        |lab| {
            let period = lab.history("vm1").kept[0]
                .dir()
                .parent()
                .expect("a period")
                .to_owned();
            period.join(".committed")
        },
    ];
    for place in places {
        let lab = lab();
        let all = options(&lab, Which::All);
        assert!(run(&lab, &all).expect("proved").is_sound());
        let place = place(&lab);
        lock_up(&place);
        let error = without_rights(|| run(&lab, &all)).expect_err("the place is unreadable");
        let told = vmsnap::model::text::with_sources(&error);
        assert!(told.contains(place.to_str().expect("plain")), "{told}");
        let hint = error.hint().expect("a hint");
        assert!(hint.contains("run as root"), "{hint}");
    }
}
