//! What the guest agent reports is recorded with each restore point.

use std::fs;

use vmsnap::model::domain::DomainState;
use vmsnap::model::guest::{GuestFacts, GuestFileSystem};
use vmsnap::model::restore_point::RestorePoint;
use vmsnap::ops::list::list;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::transfer::transfer;
use vmsnap::repo::Repository;

use crate::lab::{CLUSTER, InFolder, Lab};
use crate::repositories::kinds::Kind;
use crate::repositories::pack::PackFolder;
use crate::transfer::{all, means};

fn facts() -> GuestFacts {
    GuestFacts {
        hostname: Some("web".to_owned()),
        system: Some("Debian GNU/Linux 12".to_owned()),
        file_systems: vec![GuestFileSystem {
            place: "/".to_owned(),
            kind: "ext4".to_owned(),
            disks: vec!["vda".to_owned()],
        }],
    }
}

fn points(repository: &dyn Repository) -> Vec<RestorePoint> {
    let lists = list(repository, &["vm1".to_owned()]).expect("it can be read");
    let listed = lists.into_iter().flat_map(|list| list.points);
    listed.map(|listed| listed.point).collect()
}

#[test]
fn backup_records_what_a_connected_agent_tells() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    let outcome = lab.backup("vm1").expect("a backup without an agent");
    assert_eq!(outcome.point.guest, None);
    let manifest = fs::read_to_string(outcome.dir().join("manifest.json")).expect("it is there");
    assert!(!manifest.contains("\"guest\""), "{manifest}");

    lab.host.set_guest("vm1", Some(facts()));
    let outcome = lab.backup("vm1").expect("a backup with an agent");
    assert_eq!(outcome.point.guest, Some(facts()));

    // An agent that does not answer, one that reports nothing, and a guest that cannot answer.
    lab.host.set_guest("vm1", None);
    let outcome = lab.backup("vm1").expect("a backup in spite of the agent");
    assert_eq!((outcome.point.guest, outcome.findings), (None, Vec::new()));
    lab.host.set_guest("vm1", Some(GuestFacts::default()));
    assert_eq!(lab.backup("vm1").expect("a backup").point.guest, None);
    lab.host.set_guest("vm1", Some(facts()));
    lab.host
        .change("vm1", |domain| domain.state = DomainState::Paused);
    assert_eq!(lab.backup("vm1").expect("a backup").point.guest, None);

    let recorded: Vec<_> = points(lab.repo.as_ref())
        .into_iter()
        .map(|point| point.guest)
        .collect();
    assert_eq!(recorded, [None, Some(facts()), None, None, None]);
    lab.assert_verified("vm1");
}

#[test]
fn copies_and_packs_keep_what_the_agent_told() {
    let kind = PackFolder::default();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut lab = Lab::of(folder, kind.repository());
    lab.host.add_domain("vm1", &[("vda", 4 * CLUSTER)]);
    lab.host.set_guest("vm1", Some(facts()));
    lab.backup("vm1").expect("a backup");
    let other = Lab::new();
    let means = means(&lab, other.repo.as_ref(), &Silent);
    transfer("vm1", &means, &all()).expect("copied");
    for repository in [lab.repo.as_ref(), other.repo.as_ref()] {
        let points = points(repository);
        assert_eq!(points.len(), 1);
        assert_eq!(points[0].guest, Some(facts()));
    }
}
