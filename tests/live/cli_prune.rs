//! Retention by the program on a libvirtd.

use serde_json::Value;

use crate::cli_lab::{Machine, Repo, json, text_of};
use crate::daemon::{Daemon, URI};

const MIB: usize = 1 << 20;

/// Two chains in one period: a scrub makes the fourth backup full.
fn two_chains(repo: &Repo, machine: &mut Machine) -> Vec<(String, Vec<Vec<u8>>)> {
    let mut points = Vec::new();
    for (seed, level) in [(1, "full"), (2, "incremental"), (3, "incremental"), (4, "full")] {
        if seed == 4 {
            let words = ["scrub", machine.name(), "--scrub-type", "both", "--connect", URI];
            assert_eq!(repo.run(&words).code, Some(0));
        }
        machine.scatter(0, seed);
        let point = repo.back_up(machine.name(), &[])["restorePoint"].clone();
        assert_eq!(text_of(&point["level"]), level);
        points.push((text_of(&point["id"]).to_owned(), machine.disks.clone()));
    }
    points
}

fn ids(repo: &Repo, machine: &Machine) -> Vec<String> {
    let listed = repo.list(machine.name());
    listed
        .iter()
        .map(|point| text_of(&point["id"]).to_owned())
        .collect()
}

#[test]
fn a_policy_after_a_backup_leaves_one_full() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "policy", &[8 * MIB]);
    let repo = Repo::new();
    let mut points = two_chains(&repo, &mut machine);
    machine.scatter(0, 5);
    let outcome = repo.back_up(machine.name(), &["--keep-last", "1"]);
    let id = text_of(&outcome["restorePoint"]["id"]).to_owned();
    points.push((id, machine.disks.clone()));
    let removed: Vec<&str> = outcome["retention"]["removed"]
        .as_array()
        .expect("a list")
        .iter()
        .map(text_of)
        .collect();
    // The chain before it goes, and the full of its own chain is merged into it.
    let mut old: Vec<&str> = points[..3].iter().rev().map(|(id, _)| id.as_str()).collect();
    old.push(&points[3].0);
    assert_eq!(removed, old);
    assert_eq!(ids(&repo, &machine), [points[4].0.clone()]);
    let (id, disks) = &points[4];
    machine.assert_restored(&repo.restore(machine.name(), id, "raw"), disks);
    assert_eq!(text_of(&repo.list(machine.name())[0]["level"]), "full");
    // The chain goes on, and everything agrees.
    machine.scatter(0, 6);
    let next = repo.back_up(machine.name(), &[]);
    assert_eq!(text_of(&next["restorePoint"]["level"]), "incremental");
    let root = repo.root().display().to_string();
    let verified = repo.run(&["verify", machine.name(), "--repository", &root, "--all", "--deep"]);
    assert_eq!(verified.code, Some(0), "{verified:#?}");
    let words = [
        "status",
        machine.name(),
        "--output",
        &root,
        "--connect",
        URI,
        "--json",
        "--machine",
    ];
    let status = json(&repo.run(&words));
    assert_eq!(status[machine.name()]["overallStatus"], 0, "{status:#}");
}

#[test]
fn a_pinned_point_outlives_every_prune_of_a_running_domain() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "pinned", &[4 * MIB]);
    let repo = Repo::new();
    let points = two_chains(&repo, &mut machine);
    let root = repo.root().display().to_string();
    let run = |words: &[&str]| -> Value {
        let words = [words, &["--repository", &root, "--json"]].concat();
        let finished = repo.run(&words);
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        json(&finished)
    };
    run(&["pin", machine.name(), &points[1].0, "--note", "keep this"]);
    let pruned = run(&["prune", machine.name(), "--keep-last", "1"]);
    assert_eq!(
        pruned["domains"][0]["removed"][0],
        points[2].0.as_str(),
        "{pruned:#}"
    );
    assert_eq!(pruned["domains"][0]["removed"][1], points[0].0.as_str());
    assert_eq!(ids(&repo, &machine), [points[1].0.clone(), points[3].0.clone()]);
    let listed = repo.list(machine.name());
    assert_eq!(listed[0]["pin"]["note"], "keep this");
    let (id, disks) = &points[1];
    machine.assert_restored(&repo.restore(machine.name(), id, "raw"), disks);
    run(&["unpin", machine.name(), id]);
    run(&["prune", machine.name(), "--keep-last", "1"]);
    assert_eq!(ids(&repo, &machine), [points[3].0.clone()]);
    let (id, disks) = &points[3];
    machine.assert_restored(&repo.restore(machine.name(), id, "raw"), disks);
}
