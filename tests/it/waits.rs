//! Waiting for another run's lock, up to a deadline.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::Parser;
use vmsnap::cli::args::{self, Cli, Command};
use vmsnap::cli::classic::{is_classic, translate};
use vmsnap::model::level::FullRule;
use vmsnap::model::period::GroupBy;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::backup::{Options, backup};
use vmsnap::ops::scrub::{self, Means, ScrubType};
use vmsnap::ops::{Cause, Class, Event, Monitor, compare};
use vmsnap::repo::DomainWriter;

use crate::lab::{CLUSTER, Lab};

/// Long enough that no test reaches its end.
const LONG: Duration = Duration::from_secs(3600);

/// Another run, with its actions while this run waits for it.
struct Other {
    lock: Mutex<Option<Box<dyn DomainWriter>>>,
    stops: Option<Stop>,
    told: Mutex<Vec<(String, Duration)>>,
}

impl Other {
    fn at_work(lab: &Lab) -> Other {
        let lock = lab.repo.domain("vm1").expect("a name").try_lock().expect("free");
        Other {
            lock: Mutex::new(Some(lock)),
            stops: None,
            told: Mutex::default(),
        }
    }

    fn told(&self) -> Vec<(String, Duration)> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Monitor for Other {
    fn event(&self, event: Event<'_>) {
        if let Event::Waits { holder, at_most, .. } = event {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.push((holder.to_owned(), at_most));
            match &self.stops {
                Some(stop) => stop.request(StopReason::Interrupted),
                None => drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take()),
            }
        }
    }
}

fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.backup("vm1").expect("a full");
    lab
}

fn waiting(wait: Duration) -> Options {
    Options {
        wait,
        ..Lab::options()
    }
}

fn this_process() -> String {
    format!("process {}", std::process::id())
}

#[test]
fn every_verb_that_takes_the_lock_waits_for_the_other_run() {
    let lab = lab();
    let said = [(this_process(), LONG)];
    let other = Other::at_work(&lab);
    backup("vm1", &lab.context(&other), &waiting(LONG)).expect("it got the lock");
    assert_eq!(other.told(), said);

    let other = Other::at_work(&lab);
    let options = compare::Options {
        sample: None,
        seed: 1,
        places: vmsnap::ops::PlaceWishes::default(),
        wait: LONG,
    };
    compare::compare("vm1", &lab.context(&other), &options).expect("it got the lock");
    assert_eq!(other.told(), said);

    let other = Other::at_work(&lab);
    let means = Means {
        host: &lab.host,
        repo: Some(lab.repo.as_ref()),
        today: lab.now.date(),
        monitor: &other,
        stop: Stop::default(),
    };
    let options = scrub::Options {
        kind: ScrubType::Both,
        name: None,
        group_by: GroupBy::Month,
        full: FullRule::Period,
        wait: LONG,
    };
    scrub::scrub("vm1", &means, &options).expect("it got the lock");
    assert_eq!(other.told(), said);
}

#[test]
fn a_wait_ends_at_its_deadline_and_names_the_other_run() {
    let lab = lab();
    let held = lab.repo.domain("vm1").expect("a name").try_lock().expect("free");
    let at_once = backup("vm1", &lab.context(&lab.recorder), &waiting(Duration::ZERO));
    let at_once = at_once.expect_err("locked").to_string();
    assert!(at_once.ends_with(&format!("({})", this_process())), "{at_once}");
    let later = backup(
        "vm1",
        &lab.context(&lab.recorder),
        &waiting(Duration::from_secs(1)),
    );
    let later = later.expect_err("locked");
    assert_eq!(later.class(), Class::Locked);
    let end = format!("is still locked by another run ({})", this_process());
    assert!(later.to_string().ends_with(&end), "{later}");
    assert!(later.to_string().contains(": after 1 s, "), "{later}");
    drop(held);
}

#[test]
fn a_stop_ends_the_wait() {
    let lab = lab();
    let mut other = Other::at_work(&lab);
    other.stops = Some(lab.stop.clone());
    let stopped = backup("vm1", &lab.context(&other), &waiting(LONG)).expect_err("stopped");
    assert!(
        matches!(stopped.cause, Cause::Stopped(StopReason::Interrupted)),
        "{stopped}"
    );
    assert_eq!(other.told().len(), 1, "it is reported once");
}

/// The seconds that a command line waits for a lock.
fn seconds(line: &str) -> u64 {
    let words = format!("vmsnap {line}");
    let words: Vec<_> = words.split_whitespace().map(Into::into).collect();
    let grammar = args::grammar();
    let is_classic = is_classic(&words, &grammar);
    let mut cli = Cli::try_parse_from(translate(words, &grammar).expect("understood")).expect("parsed");
    if is_classic {
        cli.set_classic();
    }
    match cli.command {
        Command::Backup(args) => args.wait.time().as_secs(),
        Command::Scrub(args) => args.wait.time().as_secs(),
        Command::Verify(args) => args.wait,
        _ => panic!("{line} takes no lock"),
    }
}

#[test]
fn the_classic_spelling_waits_as_the_node_program_did() {
    for (line, expected) in [
        ("--domains=vm1 --backup --output=/b", 100),
        ("--domains=vm1 --scrub --scrubType=both", 100),
        ("--domains=vm1 --backup --output=/b --wait=5", 5),
        ("--domains=vm1 --backup --output=/b --wait 0", 0),
        ("backup vm1 --output=/b", 0),
        ("backup --domains=vm1 --output=/b", 0),
        ("backup vm1 --output=/b --wait 7", 7),
        ("scrub vm1 --scrub-type=both", 0),
        ("verify vm1 --compare-live -r /b", 0),
        ("verify vm1 --compare-live -r /b --wait=9", 9),
    ] {
        assert_eq!(seconds(line), expected, "{line}");
    }
}
