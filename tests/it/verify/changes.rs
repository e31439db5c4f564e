//! Files that disappear during a verification.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use vmsnap::model::stop::Stop;
use vmsnap::ops::verify::{Which, verify};
use vmsnap::ops::{Event, Monitor};

use super::{lab, options, words};
use crate::lab::InFolder;

/// Removes a period when one of its files begins to be read.
struct Pruner(Mutex<Option<PathBuf>>);

impl Monitor for Pruner {
    fn event(&self, event: Event<'_>) {
        if let Event::FileBegins { .. } = event
            && let Some(dir) = self.0.lock().expect("no panic").take()
        {
            fs::remove_dir_all(dir).expect("by hand");
        }
    }
}

#[test]
fn point_pruned_during_verify_is_no_damage() {
    let lab = lab();
    let pruner = Pruner(Mutex::new(Some(
        lab.root().join("vm1/vmsnap-backup-monthly-2026-11"),
    )));
    let options = options(&lab, Which::All);
    let outcome = verify("vm1", lab.repo.as_ref(), &options, &pruner, &Stop::default())
        .expect("there were restore points");
    assert!(outcome.is_sound(), "{}", words(&outcome));
    assert!(outcome.points.is_empty());
    assert!(
        outcome
            .findings
            .iter()
            .all(|finding| finding.code == "removed-meanwhile")
    );
    assert_eq!(outcome.findings.len(), 3);
}

/// Moves a path away after this many files, when the next file begins to be read.
struct Mover(Mutex<usize>, PathBuf, PathBuf);

impl Monitor for Mover {
    fn event(&self, event: Event<'_>) {
        if matches!(event, Event::FileBegins { .. }) {
            let mut left = self.0.lock().expect("no panic");
            match *left {
                0 => {
                    // After the first time the path no longer exists.
                    let _ = fs::rename(&self.1, &self.2);
                }
                _ => *left -= 1,
            }
        }
    }
}

#[test]
fn point_lost_during_verify_is_damage_of_all_its_children() {
    let lab = lab();
    let first = lab.history("vm1").kept[0].dir().clone();
    let mover = Mover(Mutex::new(0), first, lab.folder.path().join("moved"));
    let options = options(&lab, Which::All);
    let outcome =
        verify("vm1", lab.repo.as_ref(), &options, &mover, &Stop::default()).expect("it was looked at");
    let damaged = outcome.points.iter().filter(|point| !point.damage.is_empty());
    assert_eq!(damaged.count(), 3, "{}", words(&outcome));
}

#[test]
fn repository_lost_during_verify_is_an_error() {
    let lab = lab();
    let first_has = lab.history("vm1").kept[0].manifest.files.len();
    for files in [0, first_has + 2] {
        let (root, away) = (lab.root().to_owned(), lab.folder.path().join("moved"));
        let mover = Mover(Mutex::new(files), root.clone(), away.clone());
        let options = options(&lab, Which::All);
        let outcome = verify("vm1", lab.repo.as_ref(), &options, &mover, &Stop::default());
        fs::rename(&away, &root).expect("it comes back");
        let error = outcome.map_or_else(Some, |outcome| outcome.ended);
        assert!(error.is_some(), "after {files} files nothing is left to verify");
    }
}
