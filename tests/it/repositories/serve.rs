//! Disks served to NBD clients.

use std::path::Path;
use std::time::Duration;

use vmsnap::model::stop::{Stop, WaitLimit};
use vmsnap::nbd::{Client, Error};
use vmsnap::ops::Class;
use vmsnap::ops::serve::{DiskServer, Options, Place, start};

use super::kinds::{Kind, Maker, data, zero};
use super::points::domain;
use crate::lab::CLUSTER;

/// The number of clusters of the disk. The last one is short.
const CLUSTERS: usize = 70;
const SIZE: usize = (CLUSTERS - 1) * CLUSTER + 1536;

fn noise(seed: u8, clusters: usize) -> Vec<u8> {
    let mut bytes = vec![0; clusters * CLUSTER];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Two restore points, with the disk of each.
fn two_points(kind: &dyn Kind) -> [(String, Vec<u8>); 2] {
    let domain = domain(kind);
    let mut disk = vec![0; SIZE];
    disk[..40 * CLUSTER].copy_from_slice(&noise(1, 40));
    disk[(CLUSTERS - 1) * CLUSTER..].fill(5);
    let end = data(CLUSTERS - 1, &[5; 1536]);
    let blocks = vec![data(0, &disk[..40 * CLUSTER]), end];
    let first = Maker::new(domain.as_ref(), 0).make(SIZE as u64, blocks, None);
    let full = disk.clone();
    disk[3 * CLUSTER..5 * CLUSTER].copy_from_slice(&noise(2, 2));
    disk[20 * CLUSTER..22 * CLUSTER].fill(0);
    disk[50 * CLUSTER..51 * CLUSTER].fill(7);
    let blocks = vec![
        data(3, &disk[3 * CLUSTER..5 * CLUSTER]),
        zero(20, 2 * CLUSTER),
        data(50, &[7; CLUSTER]),
    ];
    let second = Maker::new(domain.as_ref(), 1).make(SIZE as u64, blocks, Some(&first));
    [(first, full), (second, disk)]
}

fn served(kind: &dyn Kind, at: &str, socket: &Path) -> DiskServer {
    let options = Options {
        at: at.to_owned(),
        disks: Vec::new(),
        place: Place::Socket(socket.to_owned()),
    };
    start("vm1", kind.repository().as_ref(), &options, &Stop::default()).expect("it starts")
}

/// A client of the disk `vda`.
pub fn client(socket: &Path) -> Client {
    let limit = WaitLimit {
        deadline: Duration::from_secs(60),
        stop: Stop::default(),
    };
    Client::connect_unix(socket, "vda", &["base:allocation"], &limit).expect("it is served")
}

/// The clusters that a server reports as other than zero.
pub fn data_clusters(client: &mut Client) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < client.size() {
        let status = client.block_status(at, client.size() - at).expect("a status");
        for run in &status[0] {
            let clusters = at as usize / CLUSTER..(at + run.length) as usize / CLUSTER;
            let end = (at + run.length).div_ceil(CLUSTER as u64) as usize;
            if run.flags & 2 == 0 {
                found.extend(clusters.start..end);
            }
            at += run.length;
        }
    }
    found
}

pub fn every_point_is_served_exactly(kind: &dyn Kind) {
    let folder = tempfile::tempdir().expect("a folder");
    let points = two_points(kind);
    let sockets = ["first", "second"].map(|name| folder.path().join(name));
    // Both at the same time, each to several clients.
    let servers: Vec<DiskServer> = points
        .iter()
        .zip(&sockets)
        .map(|((id, _), socket)| served(kind, id, socket))
        .collect();
    for (server, ((id, disk), socket)) in servers.iter().zip(points.iter().zip(&sockets)) {
        let offered = server.served();
        assert_eq!((&offered.point.id, offered.disks[0].size), (id, SIZE as u64));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut client = client(socket);
                    let mut bytes = vec![9; SIZE];
                    client.read(0, &mut bytes).expect("it is served");
                    assert!(bytes == *disk, "{id}");
                    let mut part = vec![9; 100_001];
                    client
                        .read(19 * CLUSTER as u64 + 77, &mut part)
                        .expect("it is served");
                    assert!(part == disk[19 * CLUSTER + 77..][..100_001], "{id}");
                });
            }
        });
        let clusters = disk.chunks(CLUSTER).enumerate();
        let holding = clusters.filter(|(_, cluster)| cluster.iter().any(|byte| *byte != 0));
        let holding: Vec<usize> = holding.map(|(number, _)| number).collect();
        assert_eq!(data_clusters(&mut client(socket)), holding, "{id}");
    }
    for (server, socket) in servers.into_iter().zip(&sockets) {
        let outcome = server.end();
        assert!(!outcome.has_damage() && !outcome.has_failures());
        assert_eq!((outcome.visits.served, outcome.visits.refused), (4, 0));
        assert!(outcome.counts[0].bytes >= 3 * 39 * CLUSTER as u64, "{outcome:?}");
        assert!(!socket.exists());
    }
}

pub fn damage_is_an_error_for_clients_and_a_finding(kind: &dyn Kind) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    let points = two_points(kind);
    kind.damage("vm1", &points[0].0, "vda");
    let server = served(kind, &points[0].0, &socket);
    let mut client = client(&socket);
    let mut failures = 0;
    for (number, cluster) in points[0].1.chunks(CLUSTER).enumerate() {
        let mut bytes = vec![9; cluster.len()];
        match client.read((number * CLUSTER) as u64, &mut bytes) {
            Ok(()) => assert!(bytes == cluster, "cluster {number}"),
            Err(Error::Server { errno: 5, .. }) => failures += 1,
            Err(error) => panic!("cluster {number}: {error}"),
        }
    }
    assert!(failures > 0);
    let findings = server.new_findings(Duration::from_secs(60));
    assert_eq!(findings.len(), 1, "the same only once: {findings:?}");
    assert_eq!(findings[0].code, "served-data-damaged");
    assert_eq!(findings[0].disk.as_deref(), Some("vda"));
    let outcome = server.end();
    assert!(outcome.has_damage() && !outcome.has_failures());
    assert_eq!(outcome.counts[0].damaged, failures);
    assert_eq!(outcome.findings, []);
}

pub fn what_is_not_there_is_not_served(kind: &dyn Kind) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("s");
    two_points(kind);
    for (at, disk, class) in [
        ("2020-01-01T00-00-00Z", "vda", Class::NotFound),
        ("latest", "vdz", Class::NotFound),
    ] {
        let options = Options {
            at: at.to_owned(),
            disks: vec![disk.to_owned()],
            place: Place::Socket(socket.clone()),
        };
        let refused = start("vm1", kind.repository().as_ref(), &options, &Stop::default());
        assert_eq!(refused.expect_err("it is not there").class(), class);
        assert!(!socket.exists());
    }
}
