//! Failures of target, clock, domain and export: nothing that is kept is lost, and the next run
//! repairs the rest.

mod beside;
mod domain;
mod store;
mod target;
mod time;

use std::collections::BTreeMap;
use std::fs;

use vmsnap::host::Host;
use vmsnap::model::text::with_sources;
use vmsnap::ops::backup::{Options, Outcome, backup};
use vmsnap::ops::{Error, Event, Monitor, Result};

use crate::lab::{CLUSTER, Lab, tree};

/// A monitor that runs a closure at every event.
struct Watch<F>(F);

impl<F: Fn(&Event<'_>) + Send + Sync> Monitor for Watch<F> {
    fn event(&self, event: Event<'_>) {
        (self.0)(&event);
    }
}

/// Calls `act` once, when the first disk begins to be copied.
fn once_copying(act: impl Fn() + Send + Sync) -> impl Fn(&Event<'_>) + Send + Sync {
    let done = std::sync::Once::new();
    move |event| {
        if matches!(event, Event::DiskBegins { .. }) {
            done.call_once(&act);
        }
    }
}

fn watched(
    lab: &Lab,
    domain: &str,
    options: &Options,
    watch: impl Fn(&Event<'_>) + Send + Sync,
) -> Result<Outcome> {
    let monitor = Watch(watch);
    backup(domain, &lab.context(&monitor), options)
}

/// Adds a domain with one disk, and makes a full and an incremental restore point of it.
fn two_points(lab: &mut Lab, domain: &str) {
    lab.host.add_domain(domain, &[("vda", 4 * CLUSTER)]);
    lab.host
        .disk(domain, "vda", |disk| disk.write(0, &[1; 4 * CLUSTER]));
    lab.backup(domain).expect("full");
    lab.host
        .disk(domain, "vda", |disk| disk.write(CLUSTER, &[2; CLUSTER]));
    lab.backup(domain).expect("incremental");
    lab.host
        .disk(domain, "vda", |disk| disk.write(2 * CLUSTER, &[3; CLUSTER]));
}

/// The content of every committed file below a folder, such as the repository's root.
fn kept_files(root: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let is_kept = |path: &String| {
        let is_finished = path.contains(".full/") || path.contains(".inc/") || path.contains("/checkpoints/");
        is_finished && root.join(path).is_file()
    };
    let files = tree(root).into_iter().filter(is_kept);
    files
        .map(|path| {
            let content = fs::read(root.join(&path)).expect("readable");
            (path, content)
        })
        .collect()
}

/// Checks that every earlier file still has its content.
fn assert_unchanged(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>, case: &str) {
    for (path, content) in before {
        assert!(after.get(path) == Some(content), "{case}: {path} has changed");
    }
}

/// Checks that no job is active and that every checkpoint of ours belongs to a restore point.
fn assert_nothing_left(lab: &Lab, domain: &str, case: &str) {
    assert!(!lab.host.has_job(domain), "{case}: a job is left");
    let history = lab.history(domain);
    let recorded: Vec<&str> = history
        .chains
        .points()
        .iter()
        .filter_map(|kept| kept.point.checkpoint.as_ref())
        .map(|checkpoint| checkpoint.name.as_str())
        .collect();
    let found = lab.host.domain(domain).expect("it is there");
    for checkpoint in lab.host.checkpoints(&found).expect("they are listed") {
        assert!(
            recorded.contains(&checkpoint.name.as_str()),
            "{case}: {} is left",
            checkpoint.name
        );
    }
    assert!(
        history.leftovers.is_empty(),
        "{case}: {:?} is left",
        history.leftovers
    );
}

/// Checks that the next ordinary run succeeds, saves the disk correctly, and removes what the
/// failure left.
fn assert_next_run_heals(lab: &mut Lab, domain: &str, case: &str) -> Outcome {
    lab.host
        .disk(domain, "vda", |disk| disk.write(3 * CLUSTER + 5, &[0x77; 50]));
    let outcome = lab
        .backup(domain)
        .unwrap_or_else(|error| panic!("{case}: the next run: {}", with_sources(&error)));
    assert_nothing_left(lab, domain, case);
    assert_whole(lab, domain, case);
    let restored = lab
        .restored(domain, &outcome.point.id, "vda")
        .expect("the new point");
    assert!(restored == lab.disk(domain, "vda"), "{case}: wrong bytes");
    outcome
}

/// Checks that every listed restore point is whole.
fn assert_whole(lab: &Lab, domain: &str, case: &str) {
    let history = lab.history(domain);
    assert!(history.findings.is_empty(), "{case}: {:?}", history.findings);
    for kept in history.chains.points() {
        let faults = history.chains.faults(&kept.point.id);
        assert!(faults.is_empty(), "{case}: {}: {faults:?}", kept.point.id);
    }
}

fn assert_names(error: &Error, what: &str, case: &str) {
    let text = with_sources(error);
    assert!(text.contains(what), "{case}: '{what}' is not named: {text}");
}
