//! The files of restore points, without the kernel.

use std::fs;

use vmsnap::model::stop::Stop;
use vmsnap::ops::mount::{MountedPoint, open};
use vmsnap::ops::{Class, Repository};

use super::Story;
use crate::lab::{CLUSTER, InFolder, Lab};
use crate::repositories::kinds::{Folder, Kind, Maker, Memory, data, zero};

fn opened(repo: &dyn Repository, at: &str) -> MountedPoint {
    open("vm1", at, repo, &Stop::default()).expect("it opens")
}

#[test]
fn every_kind_of_repository_shows_a_disk() {
    for kind in [&Folder::default() as &dyn Kind, &Memory::default()] {
        let repo = kind.repository();
        let domain = repo.domain("vm1").expect("a name");
        let size = 4 * CLUSTER as u64 + 512;
        let blocks = vec![
            data(0, &[1; CLUSTER]),
            zero(1, 2 * CLUSTER),
            data(3, &[2; CLUSTER]),
        ];
        let id = Maker::new(domain.as_ref(), 0).make(size, blocks, None);
        let changed = Maker::new(domain.as_ref(), 1);
        let newest = changed.make(size, vec![data(1, &[3; CLUSTER])], Some(&id));
        for (at, second) in [(id.as_str(), 0), (newest.as_str(), 3)] {
            let mounted = opened(repo.as_ref(), at);
            let (place, file) = mounted.files.find("vda.raw").expect("a disk");
            assert_eq!((place, file.size()), (0, size));
            let bytes = file.read_at(0, 1 << 20).expect("it reads");
            let mut expected = vec![1; CLUSTER];
            for byte in [second, 0, 2] {
                expected.resize(expected.len() + CLUSTER, byte);
            }
            expected.resize(size as usize, 0);
            assert!(bytes == expected, "{at}");
            let hole = file.hole_from(0).expect("known");
            let first_hole = if second == 0 { 1 } else { 2 };
            assert_eq!(hole, Some(first_hole * CLUSTER as u64));
            assert!(mounted.findings.is_empty());
        }
        kind.damage("vm1", &id, "vda");
        let mounted = opened(repo.as_ref(), "latest");
        let (_, file) = mounted.files.find("vda.raw").expect("a disk");
        file.read_at(0, 10).expect_err("it is damaged");
    }
}

#[test]
fn damage_that_hides_a_file_leaves_the_others() {
    let story = Story::new();
    let dir = story.lab.history("vm1").kept[2].dir();
    fs::write(dir.join("nvram.fd"), "otherwise").expect("written");
    let image = dir.join("vdb.qcow2");
    let mut header = fs::read(&image).expect("readable");
    header[..4].fill(0);
    fs::write(&image, header).expect("written");
    let mounted = opened(story.lab.repo.as_ref(), "latest");
    let codes: Vec<&str> = mounted
        .findings
        .iter()
        .map(|finding| finding.code.as_str())
        .collect();
    assert_eq!(codes, ["disk-not-readable", "file-not-readable"]);
    let hidden: Vec<&str> = mounted
        .files
        .all()
        .iter()
        .filter(|file| file.is_damaged())
        .map(|file| file.name())
        .collect();
    assert_eq!(hidden, ["vdb.raw", "nvram.fd"]);
    let (_, file) = mounted.files.find("vdb.raw").expect("it is listed");
    assert_eq!(file.size(), super::VDB as u64);
    file.read_at(0, 1).expect_err("it cannot be read");
    let (_, file) = mounted.files.find("vda.raw").expect("a disk");
    assert!(file.read_at(0, super::VDA).expect("it reads") == story.latest()[0]);
}

#[test]
fn a_point_without_any_readable_disk_is_refused() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 2 * CLUSTER)]);
    lab.backup("vm1").expect("a full");
    let dir = lab.history("vm1").kept[0].dir();
    fs::write(dir.join("vda.qcow2"), "no image").expect("written");
    let refused = open("vm1", "latest", lab.repo.as_ref(), &Stop::default());
    let error = refused.expect_err("it cannot be read");
    assert_eq!(
        (error.class(), error.disk.as_deref()),
        (Class::Damaged, Some("vda"))
    );
}
