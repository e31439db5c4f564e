//! The damage matrix: every kind of damage to every kind of file, under every verb.
//!
//! The expectations follow from one rule: a verb fails, or reports the damage, exactly when it
//! needs the file. It then names the file.

mod cell;
mod kinds;
mod lone;
mod random;
mod stage;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use cell::Cell;
use kinds::Kind;

/// The files of a repository. Restore points are numbered from 0, which is full; each of the others
/// depends on the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Manifest(usize),
    /// The image of `vda`.
    Image(usize),
    DomainXml(usize),
    Nvram(usize),
    Tpm(usize),
    CheckpointXml(usize),
    Intent,
    Lock,
}

const TARGETS: [Target; 14] = [
    Target::Manifest(0),
    Target::Manifest(1),
    Target::Manifest(3),
    Target::Image(0),
    Target::Image(1),
    Target::Image(3),
    Target::DomainXml(1),
    Target::DomainXml(3),
    Target::Nvram(1),
    Target::Tpm(1),
    Target::CheckpointXml(1),
    Target::CheckpointXml(3),
    Target::Intent,
    Target::Lock,
];

/// A verb that takes longer hangs: on these small disks each takes far less.
const HANGS: Duration = Duration::from_secs(60);

#[test]
fn each_verb_on_damage_gives_right_bytes_or_names_the_file() {
    let cells: Vec<(Target, Kind)> = TARGETS
        .into_iter()
        .flat_map(|target| Kind::ALL.map(|kind| (target, kind)))
        .collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let run = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(&(target, kind)) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match in_time(target, kind) {
                        Ok(applies) => run.fetch_add(usize::from(applies), Ordering::Relaxed),
                        Err(what) => {
                            failures
                                .lock()
                                .expect("no poison")
                                .push(format!("{kind:?} of {target:?}: {what}"));
                            0
                        }
                    };
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no poison");
    assert!(
        failures.is_empty(),
        "{} cells failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(run.into_inner() > 200, "most kinds make sense for most files");
}

/// Runs a cell on its own thread, so that a panic or a hang counts as a failure. Returns
/// `Ok(false)` if this kind of damage makes no sense for the file.
fn in_time(target: Target, kind: Kind) -> Result<bool, String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let played = catch_unwind(AssertUnwindSafe(|| match Cell::new(target, kind) {
            Some(mut cell) => cell.play().map(|()| true),
            None => Ok(false),
        }));
        let _ = sender.send(played.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(format!("a panic: {}", text.unwrap_or_default()))
        }));
    });
    receiver
        .recv_timeout(HANGS)
        .unwrap_or_else(|_| Err("it hangs".to_owned()))
}
