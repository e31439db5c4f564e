//! Restores in place of one disk onto a disk of another domain.

use std::time::Duration;

use vmsnap::model::domain::DomainState;
use vmsnap::model::in_place::InPlaceRefusal;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::in_place::{Basis, Mapping, Options, Outcome, abandon, preview, restore_in_place};
use vmsnap::ops::{Cause, Class, Error, Event, Monitor, Result};

use crate::in_place::options;
use crate::lab::{CLUSTER, Lab};

const SIZE: usize = 6 * CLUSTER + 1536;
const LARGER: usize = 9 * CLUSTER + 512;

fn write(lab: &Lab, domain: &str, disk: &str, cluster: usize, byte: u8) {
    lab.host
        .disk(domain, disk, |disk| disk.write(cluster * CLUSTER, &[byte; 3000]));
}

fn shut_off(lab: &Lab, domain: &str) {
    lab.host.change(domain, |domain| {
        domain.state = DomainState::ShutOff;
        domain.id = None;
    });
}

/// A domain `vm1` with two restore points, and a shut-off domain `vm2` with a larger disk `vdb`.
/// Returns the older restore point of `vm1` with its disk.
fn lab() -> (Lab, String, Vec<u8>) {
    let mut lab = Lab::in_memory();
    lab.host.add_domain("vm1", &[("vda", SIZE)]);
    lab.host.add_domain("vm2", &[("vda", SIZE), ("vdb", LARGER)]);
    write(&lab, "vm1", "vda", 1, 11);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(SIZE - 700, &[12; 700]));
    let id = lab.backup("vm1").expect("a restore point").point.id;
    let then = lab.disk("vm1", "vda");
    write(&lab, "vm1", "vda", 2, 13);
    lab.backup("vm1").expect("a restore point");
    for cluster in 0..9 {
        write(&lab, "vm2", "vdb", cluster, 20 + cluster as u8);
    }
    write(&lab, "vm2", "vda", 0, 31);
    lab.backup("vm2").expect("a restore point");
    write(&lab, "vm2", "vdb", 1, 41);
    shut_off(&lab, "vm2");
    (lab, id, then)
}

fn onto(id: &str, disk: &str) -> Options {
    Options {
        mapping: Some(Mapping {
            domain: "vm1".to_owned(),
            disk: "vda".to_owned(),
            onto: disk.to_owned(),
        }),
        ..options(id)
    }
}

fn restore(lab: &mut Lab, options: &Options) -> Result<Outcome> {
    let outcome = restore_in_place("vm2", &lab.context(&lab.recorder), options);
    lab.pass(jiff::Span::new().minutes(10));
    outcome
}

fn refused(error: &Error) -> &InPlaceRefusal {
    match &error.cause {
        Cause::InPlaceRefusal(refused) => refused,
        other => panic!("{other}"),
    }
}

/// The disk of the restore point, and after it what the larger disk had.
fn joined(then: &[u8], before: &[u8]) -> Vec<u8> {
    [then, &before[then.len()..]].concat()
}

#[test]
fn a_disk_gets_the_content_of_another_domains_disk() {
    let (mut lab, id, then) = lab();
    let (before, other) = (lab.disk("vm2", "vdb"), lab.disk("vm2", "vda"));
    let source = lab.disk("vm1", "vda");
    let plan = preview("vm2", &lab.context(&lab.recorder), &onto(&id, "vdb")).expect("planned");
    assert!(plan.saves && plan.of.as_deref() == Some("vm1"));
    let outcome = restore(&mut lab, &onto(&id, "vdb")).expect("restored");
    assert!(lab.disk("vm2", "vdb") == joined(&then, &before));
    assert!(lab.disk("vm2", "vda") == other && lab.disk("vm1", "vda") == source);
    let disk = &outcome.disks[0].disk;
    assert_eq!((disk.target.as_str(), disk.from.as_deref()), ("vdb", Some("vda")));
    assert!(matches!(disk.basis, Basis::Whole(_)));
    let codes: Vec<&str> = outcome.findings.iter().map(|found| found.code.as_str()).collect();
    assert_eq!(codes, ["disk-larger"]);

    // The state before is a restore point of the other domain.
    let saved = outcome.saved.expect("it was saved");
    assert_eq!(lab.latest("vm2"), saved);
    assert!(lab.restored("vm2", &saved, "vdb").expect("restored") == before);
    assert!(lab.status("vm2").is_consistent() && lab.status("vm1").is_consistent());
    // The bitmaps have recorded the writes.
    let next = lab.backup("vm2").expect("a restore point");
    assert_eq!(
        next.point.disk("vdb").expect("it is saved").level,
        Level::Incremental
    );
    for (domain, disk) in [("vm2", "vda"), ("vm2", "vdb"), ("vm1", "vda")] {
        if domain == "vm2" {
            lab.assert_gives_back(domain, disk);
        }
        lab.assert_verified(domain);
    }
}

#[test]
fn a_second_restore_of_the_disk_writes_nothing() {
    let (mut lab, id, _) = lab();
    let discarding = Options {
        discard_current: true,
        ..onto(&id, "vdb")
    };
    let points = lab.history("vm2").kept.len();
    restore(&mut lab, &discarding).expect("restored");
    let again = restore(&mut lab, &discarding).expect("restored");
    let written = &again.disks[0].written;
    assert_eq!((written.data_bytes, written.zero_bytes), (0, 0));
    assert_eq!(lab.history("vm2").kept.len(), points, "nothing was saved");
}

/// The first backup of a domain is also a restore point of its state.
#[test]
fn a_domain_that_was_never_saved_is_saved_first() {
    let (mut lab, id, then) = lab();
    lab.host.add_domain("vm3", &[("vdc", SIZE)]);
    write(&lab, "vm3", "vdc", 3, 77);
    shut_off(&lab, "vm3");
    let before = lab.disk("vm3", "vdc");
    let outcome = restore_in_place("vm3", &lab.context(&lab.recorder), &onto(&id, "vdc"));
    lab.pass(jiff::Span::new().minutes(10));
    let saved = outcome.expect("restored").saved.expect("it was saved");
    assert!(lab.disk("vm3", "vdc") == then);
    assert!(lab.restored("vm3", &saved, "vdc").expect("restored") == before);
}

#[test]
fn another_disk_of_the_same_domain_can_be_the_target() {
    let (mut lab, _, _) = lab();
    let id = lab.latest("vm2");
    let then = lab.restored("vm2", &id, "vda").expect("restored");
    let before = lab.disk("vm2", "vdb");
    let mapping = Mapping {
        domain: "vm2".to_owned(),
        disk: "vda".to_owned(),
        onto: "vdb".to_owned(),
    };
    let same = Options {
        mapping: Some(mapping),
        ..options(&id)
    };
    restore(&mut lab, &same).expect("restored");
    assert!(lab.disk("vm2", "vdb") == joined(&then, &before));
}

#[test]
fn unclear_cases_are_refused_and_change_nothing() {
    let (lab, id, _) = lab();
    let run = |change: &dyn Fn(&Lab), options: &Options| {
        let mut lab = lab.fork();
        change(&lab);
        let before = [lab.disk("vm2", "vda"), lab.disk("vm2", "vdb")];
        let points = lab.history("vm2").kept.len();
        let error = restore(&mut lab, options).expect_err("refused");
        assert!(before == [lab.disk("vm2", "vda"), lab.disk("vm2", "vdb")]);
        assert_eq!(lab.history("vm2").kept.len(), points, "nothing is saved");
        error
    };
    let nothing = |_: &Lab| {};
    let start = |lab: &Lab| {
        lab.host
            .change("vm2", |domain| domain.state = DomainState::Running)
    };
    let at = onto(&id, "vdb");
    assert!(matches!(refused(&run(&start, &at)), InPlaceRefusal::Active(_)));
    let save = |lab: &Lab| lab.host.save_memory("vm2");
    assert_eq!(refused(&run(&save, &at)), &InPlaceRefusal::SavedMemory);
    let shrink = |lab: &Lab| lab.host.disk("vm2", "vdb", |disk| disk.resize(SIZE - 512));
    assert!(matches!(
        refused(&run(&shrink, &at)),
        InPlaceRefusal::TooSmall { .. }
    ));
    assert_eq!(
        refused(&run(&nothing, &onto(&id, "vdx"))),
        &InPlaceRefusal::NoDisk("vdx".to_owned())
    );
    let protect = |lab: &Lab| lab.host.change("vm2", |domain| domain.disks[1].readonly = true);
    assert!(matches!(
        refused(&run(&protect, &at)),
        InPlaceRefusal::Unsuitable { .. }
    ));
    let mut no_such_disk = at.clone();
    no_such_disk.mapping.as_mut().expect("there is one").disk = "vdz".to_owned();
    assert_eq!(run(&nothing, &no_such_disk).class(), Class::NotFound);
    let mut no_such_domain = at.clone();
    no_such_domain.mapping.as_mut().expect("there is one").domain = "vm9".to_owned();
    assert_eq!(run(&nothing, &no_such_domain).class(), Class::NotFound);
}

/// Asks to stop at the first write.
struct Stopper(Stop);

impl Monitor for Stopper {
    fn event(&self, event: Event<'_>) {
        if let Event::DiskBegins {
            disk: "vdb",
            level: None,
            ..
        } = event
        {
            self.0.request(StopReason::Interrupted);
        }
    }
}

#[test]
fn an_interrupted_one_marks_the_domain_that_is_written_to() {
    let (mut lab, id, then) = lab();
    let before = lab.disk("vm2", "vdb");
    let monitor = Stopper(lab.stop.clone());
    let error = restore_in_place("vm2", &lab.context(&monitor), &onto(&id, "vdb")).expect_err("stopped");
    assert!(error.is_stopped(), "{error}");
    lab.stop = Stop::default();
    lab.pass(jiff::Span::new().minutes(10));
    let status = lab.status("vm2");
    assert!(
        status
            .inconsistencies
            .iter()
            .any(|what| what.contains("disk vdb is only partly restored") && what.contains("of domain 'vm1'")),
        "{:?}",
        status.inconsistencies
    );
    assert!(matches!(
        lab.backup("vm2").expect_err("refused").cause,
        Cause::InBetween(_)
    ));
    lab.backup("vm1").expect("that domain is not concerned");
    let saved = lab.latest("vm2");
    // The same restore ends it, and so does any other of that disk.
    for again in [onto(&id, "vdb"), options(&saved)] {
        let mut lab = lab.fork();
        let outcome = restore(&mut lab, &again).expect("restored");
        assert_eq!(
            outcome.saved.as_ref(),
            Some(&saved),
            "the state in between is not saved"
        );
        let expected = match again.mapping {
            Some(_) => joined(&then, &before),
            None => before.clone(),
        };
        assert!(lab.disk("vm2", "vdb") == expected);
        assert!(lab.status("vm2").is_consistent());
        lab.backup("vm2").expect("a restore point");
        lab.assert_gives_back("vm2", "vdb");
    }
    let left = abandon("vm2", &lab.context(&lab.recorder), Duration::ZERO).expect("abandoned");
    assert!(left.is_some());
}
