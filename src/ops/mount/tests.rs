//! Tests of the reports about failed reads.

use std::sync::Mutex;

use super::*;

#[derive(Default)]
struct Heard(Mutex<Vec<Finding>>);

impl Monitor for Heard {
    fn event(&self, event: Event<'_>) {
        if let Event::Found { finding, .. } = event {
            self.0.lock().expect("no thread panicked").push(finding.clone());
        }
    }
}

fn report(monitor: &Heard) -> Report<'_> {
    Report {
        domain: "vm1",
        monitor,
        seen: BTreeSet::new(),
        is_damaged: false,
    }
}

fn failure(kind: BlockErrorKind, what: &str) -> FailedRead {
    FailedRead {
        file: "vda.raw".into(),
        error: BlockError::new(kind, what),
    }
}

#[test]
fn each_place_of_failed_reads_is_reported_once() {
    let heard = Heard::default();
    let mut report = report(&heard);
    for what in ["piece 1", "piece 2", "piece 1"] {
        report.add(&failure(BlockErrorKind::Lost, what));
    }
    assert!(!report.is_damaged, "an unreachable store is no damage");
    report.add(&failure(BlockErrorKind::Damaged, "piece 3"));
    assert!(report.is_damaged);
    let heard = heard.0.into_inner().expect("no thread panicked");
    let messages: Vec<&str> = heard.iter().map(|finding| finding.message.as_str()).collect();
    let expected = [1, 2, 3].map(|number| format!("a read of vda.raw failed: piece {number}"));
    assert_eq!(messages, expected);
    assert!(heard.iter().all(|finding| finding.disk.as_deref() == Some("vda")));
}

#[test]
fn the_number_of_reported_places_is_limited() {
    let heard = Heard::default();
    let mut report = report(&heard);
    for number in 0..2 * MOST_PLACES {
        report.add(&failure(BlockErrorKind::Damaged, &format!("piece {number}")));
    }
    let heard = heard.0.into_inner().expect("no thread panicked");
    assert_eq!(heard.len(), MOST_PLACES + 1);
    assert!(heard[MOST_PLACES].message.contains("are not reported"));
}
